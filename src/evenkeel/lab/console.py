"""Serial consoles: one owner for each, many readers, one writer; recorded, watched, and freed when they are stuck.

:class:`Consoles` runs in a thread with an event loop of its own, holds every console of the pool open, and keeps what
they print (:mod:`evenkeel.lab.recording`).  A session attaches to one: everybody who may use consoles can read; writing
is for one at a time, who may touch the machine, and is handed over by asking.

A line is stuck when a newline typed after a prompt, or a return that somebody typed, brings no byte back; or when its
BMC says that our session is gone.  A newline is sent after a prompt only: in firmware or a boot menu it would decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI
from sqlalchemy import Connection, select

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import power, recording, schema, touch
from evenkeel.lab.actor import SERVICE, Actor, Conflict, NotFound
from evenkeel.lab.console_lines import Heard, Line, LineFailed, line_for
from evenkeel.lab.lab import Lab
from evenkeel.lab.recording import Recorded, Recorder
from evenkeel.lab.set_within import set_within
from evenkeel.lab.store import Away, StoreClosed

T = TypeVar("T")
LineState = Literal["up", "down", "off"]
#: What is looked for in the last line or lines; the first group of each is told.
PATTERNS: dict[str, str] = {
    # The second is GRUB's (/etc/grub.d/10_linux), and all that a kernel that was told to be quiet lets one see.
    "boot": r"((?:Linux version|Loading Linux) \d\S*)",
    "panic": r"(Kernel panic - not syncing.*)",
    "oops": r"((?:BUG|Oops|Unable to handle kernel|general protection fault|Internal error)[: ].*)",
    "stall": r"(watchdog: BUG: soft lockup.*|rcu: INFO: rcu_\w+ \S*detected .*stall.*|INFO: task \S+ blocked .*)",
    "login": r"(\S* ?login: ?)$",
}
#: After which a newline does no harm: a getty or a shell that waits.
_PROMPT = re.compile(rb"(?:login: ?|[#$%>] ?)$")
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")
#: Of a line that opens: a port that serves one at a time lets the next one connect, and leaves it waiting.
_SILENT = "nothing came after it was freed: the machine is silent, or somebody else holds the line"
#: A kind of pattern is told once in this time.
_TOLD_AGAIN_NS = 60 * 10**9
#: What a new reader is shown of what came before.
_BACKLOG = 1 << 16
_KEPT_NS = 90 * 86400 * 10**9
_AT_ONCE = 32


@dataclass(frozen=True)
class Times:
    """Seconds.  ``probe_s``: of quiet, until a line is asked whether it lives; ``answer_s``: for a byte to come back.

    A stuck line is found within ``probe_s + 2 * answer_s``.  While nobody is attached and a line answers, it is asked
    more and more rarely, up to ``rarely_s``.  ``retry_s``: first and longest pause before a line is opened again.
    ``idle_s``: of a writer who does not answer, until the next one who asked gets the line.
    """

    probe_s: float = 15.0
    answer_s: float = 5.0
    rarely_s: float = 600.0
    retry_s: tuple[float, float] = (1.0, 60.0)
    idle_s: float = 30.0
    refresh_s: float = 5.0


class ConsoleState(Model):
    """``line``: up, down, or off: the machine has none.  ``why``: it is down, or seems dead though it is up.

    ``freed``: how often it was stuck and freed.
    """

    machine: str
    line: LineState
    why: str
    since_ns: int
    writer: str | None
    readers: tuple[str, ...]
    last_byte_ns: int | None
    freed: int


#: To a session: bytes of the console, or a message (``type``: state, asked, refused, gone).
Send = Callable[[bytes | dict[str, Any]], None]


@dataclass(eq=False)
class Session:
    """One reader.  Its methods may be called from any thread; ``send`` is called in the thread of the consoles."""

    console: _Console
    actor: Actor
    send: Send
    typed_at: float = field(default_factory=time.monotonic)

    def type(self, data: bytes) -> None:
        self._call(self.console.typed, data)

    def ask(self) -> None:
        """For the writer's seat.  It is free, or its holder is asked, and loses it when idle."""
        self._call(self.console.ask)

    def give(self) -> None:
        """The writer's seat to who asked, or to nobody."""
        self._call(self.console.give)

    def keep(self) -> None:
        """Answer to who asked: no."""
        self._call(self.console.keep)

    def resize(self, columns: int, rows: int) -> None:
        """For the recording; a serial line has no size of its own."""
        self._call(self.console.resize, columns, rows)

    def close(self) -> None:
        self._call(self.console.detach)

    def _call(self, function: Callable[..., None], *more: Any) -> None:
        self.console.loop.call_soon_threadsafe(function, self, *more)


class Consoles:
    """All consoles of a lab.  ``with Consoles(lab): ...``, or start and stop."""

    def __init__(self, lab: Lab, times: Times | None = None) -> None:
        self.lab = lab
        self.times = times or Times()
        self.loop = asyncio.new_event_loop()
        self._all: dict[str, _Console] = {}
        self._thread = threading.Thread(target=self._run, name="consoles", daemon=True)
        self._ended: asyncio.Event | None = None
        self._ready = threading.Event()

    def __enter__(self) -> Consoles:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()
        self.lab.consoles = self

    def stop(self) -> None:
        """Close all lines, so that no BMC keeps a session of ours."""
        self.lab.consoles = None
        assert self._ended
        self.loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        """Run it in the loop, from any other thread."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(timeout_s)

    async def of(self, machine_id: str) -> _Console:
        """Raises Conflict when that machine has no console."""
        if machine_id not in self._all:
            await self._refresh()
        if machine_id not in self._all:
            raise Conflict(
                "that machine has no console",
                hint="`evenkeel lab endpoint set MACHINE console DRIVER ADDRESS` says how it is reached",
            )
        return self._all[machine_id]

    def forget_prompt(self, machine_id: str) -> None:
        """The machine is being switched: who waited at a prompt is gone, and a newline would reach its firmware."""

        def forget() -> None:
            if machine_id in self._all:
                self._all[machine_id].forget_prompt()

        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self.loop.call_soon_threadsafe(forget)

    def states(self) -> list[ConsoleState]:
        async def read() -> list[ConsoleState]:
            return [console.state() for console in self._all.values()]

        return sorted(self.call(read()), key=lambda state: state.machine)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        # Of serial over LAN each opening and closing waits for a BMC in a thread.
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="consoles") as pool:
            self.loop.set_default_executor(pool)
            self.loop.run_until_complete(self._main())
        self.loop.close()

    async def _main(self) -> None:
        self._ended = asyncio.Event()
        pruned_ns: int | None = None
        await self._refresh()
        self._ready.set()
        while not await set_within(self._ended, self.times.refresh_s):
            await self._refresh()
            if pruned_ns is None or self.lab.steady() - pruned_ns > 3600 * 10**9:
                pruned_ns = self.lab.steady()
                await asyncio.to_thread(prune, self.lab)
        await asyncio.gather(*(console.end() for console in self._all.values()))

    async def _refresh(self) -> None:
        """Follow the endpoints: begin new ones, end those that are gone or changed."""
        try:
            wanted = await asyncio.to_thread(_endpoints, self.lab)
        except (StoreClosed, Away):  # those that are open stay
            return
        for machine_id, console in list(self._all.items()):
            if machine_id not in wanted or wanted[machine_id].line != console.what.line:
                del self._all[machine_id]
                await console.end()
            else:
                console.what = wanted[machine_id]
                console.check_writer()
        for machine_id, what in wanted.items():
            if machine_id not in self._all:
                self._all[machine_id] = _Console(self.lab, what, self.times, self.loop)


@contextlib.contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Consoles]:
    """For :mod:`evenkeel.lab.parts`."""
    del app
    with Consoles(lab) as consoles:
        yield consoles


@dataclass(frozen=True)
class _What:
    """A console endpoint.  ``line``: what makes it another line when it changes.  ``machine``: with who holds it."""

    machine: touch.Touched
    line: tuple[Any, ...]
    row: Any


def _endpoints(lab: Lab) -> dict[str, _What]:
    table = schema.endpoint
    found: dict[str, _What] = {}
    with lab.store.read() as connection:
        # A virtual host's console needs no endpoint of its own; one that is given comes last, and counts.
        wanted = (table.c.kind == "console") | (table.c.driver == "virtual")
        rows = connection.execute(select(table).where(wanted).order_by(table.c.kind.desc(), table.c.id.desc())).all()
        for row in rows:
            machine = touch.find(connection, row.machine_id)
            if machine.state != "retired":
                # What a driver learned (cipher) is no reason to open it anew.
                options = {key: value for key, value in row.options.items() if key != "cipher"}
                line = (row.driver, row.address, row.secret, repr(sorted(options.items())))
                found[row.machine_id] = _What(machine, line, row)
    return found


class _Console:
    """One console, in the loop's thread only."""

    def __init__(self, lab: Lab, what: _What, times: Times, loop: asyncio.AbstractEventLoop) -> None:
        self.lab, self.what, self.times, self.loop = lab, what, times, loop
        self.sessions: list[Session] = []
        self.writer: Session | None = None
        self._asked: tuple[Session, asyncio.TimerHandle] | None = None
        self._line: Line | None = None
        self._heard = Heard()
        self._up: LineState = "down"
        self._why = "not opened yet"
        self._since_ns = lab.now()
        self._backlog = bytearray()
        self._last_line = b""
        self._told: dict[str, int] = {}
        self._loader_told = False  # of a boot whose kernel has said nothing so far
        self._freed = self._in_vain = 0
        self._quiet = 0.0  # doubles while a quiet line answers
        self._last_byte = self._returned = 0.0
        self._lived = 0.0  # when it last showed that it lives, by a byte or otherwise
        self._last_byte_ns: int | None = None
        self._reset = asyncio.Event()
        self._recorder = Recorder(folder_of(lab, what.machine.id), what.machine.name, lab.now)
        self._patterns = _patterns(what.row.options)
        self._task = loop.create_task(self._own())

    def state(self) -> ConsoleState:
        return ConsoleState(
            machine=self.what.machine.name,
            line=self._up,
            why=self._why,
            since_ns=self._since_ns,
            writer=self.writer.actor.name if self.writer else None,
            readers=tuple(sorted({session.actor.name for session in self.sessions})),
            last_byte_ns=self._last_byte_ns,
            freed=self._freed,
        )

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for session in list(self.sessions):
            session.send({"type": "gone"})
        self.sessions.clear()
        self._recorder.close()

    # -- the line -------------------------------------------------------------------------------------------------

    async def _own(self) -> None:
        """Hold the line open for ever."""
        first_s, longest_s = self.times.retry_s
        pause_s = first_s
        while True:
            why = ""
            freed = False
            try:
                way = await asyncio.to_thread(power.way_of, self.lab, self.what.row)
                self._line = line_for(way, self._heard)
                try:
                    await self._line.open()
                except LineFailed as error:
                    if not error.held:
                        raise
                    await self._free(error.message)
                    await self._line.open()
                self._become("up", _SILENT if self._in_vain else "")
                opened = time.monotonic()
                why, freed = await self._pump(self._line)
                if time.monotonic() - opened > longest_s or freed:
                    pause_s = first_s
            except EvenkeelError as error:
                why = error.message
            finally:
                if self._line is not None:
                    await self._line.close()
                    self._line = None
            self._become("down", why)
            if not freed:
                if await set_within(self._reset, pause_s):
                    self._reset.clear()
                    pause_s = first_s
                else:
                    pause_s = min(longest_s, pause_s * 2)

    async def _pump(self, line: Line) -> tuple[str, bool]:
        """Carry bytes until the line ends or is stuck: why, and whether it was freed."""
        self._last_byte = self._lived = time.monotonic()
        self._returned = 0.0
        self._reset.clear()
        # A line that was freed in vain is freed again, but more and more rarely: then it is the machine that is silent.
        self._quiet = min(self.times.rarely_s, self.times.probe_s * 2**self._in_vain)
        if not self._in_vain:
            self._last_line = b""
        reading = asyncio.ensure_future(line.read())
        try:
            while True:
                await asyncio.wait({reading}, timeout=min(1.0, self.times.answer_s / 2))
                if reading.done():
                    data = reading.result()
                    if not data:
                        return "the line ended", False
                    self._came(data)
                    self._in_vain = 0
                    self._become("up", "")
                    reading = asyncio.ensure_future(line.read())
                    continue
                if self._reset.is_set():
                    self._reset.clear()
                    await self._free("somebody asked for it")
                    return "it was reset", True
                if why := await self._stuck(line, reading):
                    self._in_vain += 1
                    await self._free(why)
                    return why, True
        finally:
            reading.cancel()

    async def _stuck(self, line: Line, reading: asyncio.Future[bytes]) -> str | None:
        """Why the line is stuck; None when it is not, or when it is not time to ask."""
        now = time.monotonic()
        answer_s = self.times.answer_s
        if self._returned > self._last_byte and now - self._returned > 2 * answer_s:
            self._returned = 0.0
            return "a return was typed, and nothing came back"
        if now - self._lived < self._quiet:
            return None
        if not _PROMPT.search(self._last_line):
            self._rest()
            gone = await line.alive() is False
            return "its session is gone" if gone else None
        for _ in range(2):  # the first byte after a session was opened can be lost: seen with ipmi_sim
            line.write(b"\r")
            done, _pending = await asyncio.wait({reading}, timeout=answer_s)
            if done:
                self._rest()
                return None
        return f"a newline at a prompt brought nothing back in {2 * answer_s:g} s"

    def _rest(self) -> None:
        """It lives: ask again later, and later still while nobody looks."""
        self._lived = time.monotonic()
        self._quiet = self.times.probe_s if self.sessions else min(self.times.rarely_s, self._quiet * 2)

    async def _free(self, why: str) -> None:
        assert self._line
        how = await self._line.free()
        self._freed += 1
        self._recorder.mark(f"freed: {why}")
        self._event("console.freed", SERVICE.name, why=why, how=how)

    def reset(self) -> None:
        self._reset.set()

    def forget_prompt(self) -> None:
        self._last_line = b""

    def _become(self, up: LineState, why: str) -> None:
        if (up, why) == (self._up, self._why):
            return
        if up != self._up and (self._up, self._why) != ("down", "not opened yet"):
            self._event(f"console.{up}", SERVICE.name, why=why)
        self._up, self._why, self._since_ns = up, why, self.lab.now()
        self._tell_state()

    def _came(self, data: bytes) -> None:
        self._last_byte = self._lived = time.monotonic()
        self._last_byte_ns = self.lab.now()
        self._recorder.output(data)
        self._backlog += data
        del self._backlog[:-_BACKLOG]
        for session in list(self.sessions):
            session.send(data)
        text = _ESCAPES.sub(b"", self._last_line + data)
        lines = text.replace(b"\r", b"\n").split(b"\n")
        for line in lines[:-1]:
            self._watch(line.decode(errors="replace"), self._patterns)
        self._last_line = lines[-1][-500:]
        # A prompt is the one thing that is whole without an end of line.
        self._watch(self._last_line.decode(errors="replace"), ("login",))

    def _watch(self, line: str, kinds: Iterable[str]) -> None:
        for kind in kinds:
            found = self._patterns[kind].search(line)
            if found is None:
                continue
            if kind == "boot":
                loader_told, self._loader_told = self._loader_told, found[0].startswith("Loading")
                if loader_told and not self._loader_told:
                    continue  # of this boot its loader told already
            # A reboot at once after another is news; the same panic in many lines is not.
            key = f"{kind} {found[0]}" if kind == "boot" else kind
            if self._last_byte_ns is None or self._last_byte_ns - self._told.get(key, -_TOLD_AGAIN_NS) < (
                10**9 if kind == "boot" else _TOLD_AGAIN_NS
            ):
                continue
            self._told[key] = self._last_byte_ns
            self._recorder.mark(kind)
            self._event(f"console.{kind}", SERVICE.name, line=found[0][:300])

    def _event(self, type_: str, actor: str, **data: Any) -> None:
        machine = self.what.machine

        def change(connection: Connection) -> None:
            self.lab.store.event(connection, actor, type_, "machine", machine.id, name=machine.name, **data)

        with contextlib.suppress(StoreClosed):
            self.lab.store.write_soon(change)

    # -- who reads and writes -------------------------------------------------------------------------------------

    def attach(self, actor: Actor, send: Send, write: bool, machine: touch.Touched) -> Session:
        self.what = replace(self.what, machine=machine)  # it may have been reserved a moment ago
        session = Session(self, actor, send)
        self.sessions.append(session)
        self._quiet = min(self._quiet, self.times.probe_s)
        if self._backlog:
            send(bytes(self._backlog))
        if write and self.writer is None and touch.may_touch(actor, self.what.machine):
            self._seat(session)
        else:
            self._tell_state()
        return session

    def detach(self, session: Session) -> None:
        if session in self.sessions:
            self.sessions.remove(session)
        if self._asked and self._asked[0] is session:
            self._forget()
        if self.writer is session:
            self._seat(self._asked[0] if self._asked else None)
        else:
            self._tell_state()

    def typed(self, session: Session, data: bytes) -> None:
        if session is not self.writer or self._line is None or self._up != "up":
            return
        session.typed_at = time.monotonic()
        if b"\r" in data and self._returned <= self._last_byte:
            self._returned = session.typed_at
        self._line.write(data)

    def ask(self, session: Session) -> None:
        if session is self.writer or session not in self.sessions:
            return
        if not touch.may_touch(session.actor, self.what.machine):
            holder = self.what.machine.holder or self.what.machine.owner or "nobody"
            session.send({"type": "refused", "why": f"only who holds or owns the machine may write: {holder}"})
        elif self.writer is None or self.writer.actor.name == session.actor.name:
            self._seat(session)
        elif self._asked and self._asked[0] is not session:
            session.send({"type": "refused", "why": f"{self._asked[0].actor.name} asked before"})
        elif self._asked is None:
            self._asked = session, self.loop.call_later(self.times.idle_s, self._answer, time.monotonic())
            self.writer.send({"type": "asked", "by": session.actor.name, "within_s": self.times.idle_s})

    def _answer(self, asked_at: float) -> None:
        """The writer said nothing: who types keeps the seat, who is idle loses it."""
        if self._asked is None or self.writer is None:
            return
        if self.writer.typed_at > asked_at:
            self.keep(self.writer)
        else:
            self._seat(self._asked[0])

    def give(self, session: Session) -> None:
        if session is self.writer:
            self._seat(self._asked[0] if self._asked else None)

    def keep(self, session: Session) -> None:
        if session is self.writer and self._asked:
            self._asked[0].send({"type": "refused", "why": f"{session.actor.name} goes on writing"})
            self._forget()

    def resize(self, session: Session, columns: int, rows: int) -> None:
        if session is self.writer and 0 < columns < 1000 and 0 < rows < 1000:
            self._recorder.resize(columns, rows)

    def check_writer(self) -> None:
        """A claim that ended takes the seat with it."""
        if self.writer and not touch.may_touch(self.writer.actor, self.what.machine):
            self.writer.send({"type": "refused", "why": "the machine is not yours any more"})
            self._seat(None)

    def _seat(self, session: Session | None) -> None:
        self._forget()
        old = self.writer.actor.name if self.writer else None
        self.writer = session
        if session:
            session.typed_at = time.monotonic()
        new = session.actor.name if session else None
        if new != old:
            self._recorder.mark(f"writer {new or 'nobody'}")
            self._event("console.writer", new or SERVICE.name, writer=new, before=old)
        self._tell_state()

    def _forget(self) -> None:
        if self._asked:
            self._asked[1].cancel()
            self._asked = None

    def _tell_state(self) -> None:
        state = self.state().model_dump(mode="json")
        for session in list(self.sessions):
            session.send({"type": "state", **state, "you_write": session is self.writer})


# -- what is asked of them ------------------------------------------------------------------------------------------


def attach(lab: Lab, actor: Actor, machine: str, send: Send, *, write: bool = True) -> Session:
    """Begin to read, and to write when the seat is free and the machine is the actor's.  ``send``: in another thread.

    Raises NotFound, Forbidden, Conflict (it has no console, or no consoles are owned here).
    """
    actor.need("console", "use consoles")
    found = _find(lab, machine)

    async def work(consoles: Consoles) -> Session:
        return (await consoles.of(found.id)).attach(actor, send, write, found)

    consoles = _owned(lab)
    return consoles.call(work(consoles))


def state(lab: Lab, actor: Actor, machine: str) -> ConsoleState:
    """Raises NotFound, Forbidden, Conflict."""
    actor.need("read", "see consoles")
    found = _find(lab, machine)

    async def work(consoles: Consoles) -> ConsoleState:
        return (await consoles.of(found.id)).state()

    consoles = _owned(lab)
    return consoles.call(work(consoles))


def states(lab: Lab, actor: Actor) -> list[ConsoleState]:
    """Of all consoles, by name of the machine.  Raises Forbidden, Conflict."""
    actor.need("read", "see consoles")
    return _owned(lab).states()


def reset(lab: Lab, actor: Actor, machine: str) -> ConsoleState:
    """The button: end whatever session holds the line, and open it again.  Raises as :func:`attach`."""
    actor.need("console", "reset a console")
    found = _find(lab, machine)
    touch.need_touch(actor, found, f"reset the console of {found.name}")

    async def work(consoles: Consoles) -> ConsoleState:
        console = await consoles.of(found.id)
        console.reset()
        return console.state()

    lab.store.write(lambda c: lab.store.event(c, actor.name, "console.reset", "machine", found.id, name=found.name))
    consoles = _owned(lab)
    return consoles.call(work(consoles))


def recordings(lab: Lab, actor: Actor, machine: str) -> list[Recorded]:
    """Newest first.  Raises NotFound, Forbidden."""
    actor.need("console", "read recordings of consoles")
    return recording.listing(folder_of(lab, _find(lab, machine).id))


def recording_file(lab: Lab, actor: Actor, machine: str, name: str) -> Path:
    """An asciicast 2 file.  Raises NotFound, Forbidden."""
    actor.need("console", "read recordings of consoles")
    path = folder_of(lab, _find(lab, machine).id) / name
    if not re.fullmatch(r"\d+\.cast", name) or not path.is_file():
        raise NotFound(f"no recording {name} of {machine}")
    return path


def text(lab: Lab, actor: Actor, machine: str, since_ns: int) -> str:
    """What the console printed from then on, at most its last MiB.  Raises NotFound, Forbidden."""
    actor.need("console", "read recordings of consoles")
    folder = folder_of(lab, _find(lab, machine).id)
    parts: list[str] = []
    size = 0
    for _, kind, said in recording.since(folder, since_ns):
        if kind == "o":
            parts.append(said)
            size += len(said)
            while size > 1 << 20:
                size -= len(parts.pop(0))
    return "".join(parts)


def prune(lab: Lab) -> int:
    """Delete recordings that are older than 90 days; returns how many."""
    before_ns = lab.now() - _KEPT_NS
    return sum(recording.prune(folder, before_ns) for folder in (lab.folder / "console").glob("*"))


def folder_of(lab: Lab, machine_id: str) -> Path:
    return lab.folder / "console" / re.sub(r"[^A-Za-z0-9._-]", "_", machine_id)


def _find(lab: Lab, machine: str) -> touch.Touched:
    with lab.store.read() as connection:
        return touch.find(connection, machine)


def _owned(lab: Lab) -> Consoles:
    if lab.consoles is None:
        raise Conflict("no consoles are owned by this process", hint="the lab's active service owns them")
    return lab.consoles


def _patterns(options: dict[str, Any]) -> dict[str, re.Pattern[str]]:
    """The usual ones, and those under ``watch`` in the endpoint's options; a wrong one is left out."""
    found = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}
    own = options.get("watch")
    for kind, pattern in (own if isinstance(own, dict) else {}).items():
        try:
            found[re.sub(r"[^a-z0-9-]", "-", str(kind).lower())] = re.compile(check_pattern(str(pattern)))
        except WrongInput:
            continue
    return found


def check_pattern(pattern: str) -> str:
    """Raises WrongInput when it cannot be looked for."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise WrongInput(f"{pattern!r} is no regular expression: {error}") from None
    return pattern
