"""`evenkeel lab agent`: takes steps from a lab, has an executor do them, and keeps each result until the lab has it.

It outlives the lab's service: while that is away, steps go on, and results wait on disk.  What the lab said is on disk
before a step begins, so after a restart the agent knows what it had taken.  An agent elsewhere that has not heard of
its lab for the time of its lease (:mod:`evenkeel.lab.lease`) ends its steps: the lab gives them to somebody else then.

The folder: ``identity``, ``lock``, ``starts/N.json`` (taken), ``results/N.json`` (done, not acknowledged),
``run/IDENTITY-N/`` (of the step).  Knows no database.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab import protocol
from evenkeel.lab.clocks import since_boot_ns
from evenkeel.lab.executor import Executor, Job
from evenkeel.lab.lease import Lease
from evenkeel.lab.leftovers import folder_name
from evenkeel.lab.protocol import Ended, Start
from evenkeel.lab.set_within import set_within

log = logging.getLogger("evenkeel.lab.agent")
#: Between two tries to reach the lab: short, because a service restarts in a second.
_AGAIN_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_LOG_LOOK_S = 0.2
_LOG_PIECE = 64 << 10


@dataclass
class Line:
    """A connection to the lab.  ``messages`` ends when it ends."""

    send: Callable[[protocol.FromAgent], Awaitable[None]]
    messages: AsyncIterator[protocol.FromLab]


#: Opens a line; raises OSError or Unreachable when nobody answers.
Dial = Callable[[], AbstractAsyncContextManager[Line]]


@contextlib.asynccontextmanager
async def local_line(path: Path) -> AsyncIterator[Line]:
    """To the lab on this machine."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=protocol.MAX_MESSAGE)

    async def send(message: protocol.FromAgent) -> None:
        writer.write(protocol.encode(message))
        await writer.drain()

    async def messages() -> AsyncIterator[protocol.FromLab]:
        while line := await reader.readline():
            yield protocol.from_lab(line)

    try:
        yield Line(send, messages())
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def remote_line(url: str, token: str) -> AsyncIterator[Line]:
    """To a lab elsewhere.  ``url``: of its pages.  Raises Unreachable when it does not want this token."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    at = url.rstrip("/").replace("http", "ws", 1) + "/api/v1/agents/line"
    try:
        async with connect(
            at, additional_headers={"Authorization": f"Bearer {token}"}, max_size=protocol.MAX_MESSAGE
        ) as socket:

            async def send(message: protocol.FromAgent) -> None:
                await socket.send(protocol.encode(message).decode())

            async def messages() -> AsyncIterator[protocol.FromLab]:
                with contextlib.suppress(ConnectionClosed):
                    async for text in socket:
                        yield protocol.from_lab(text)

            try:
                yield Line(send, messages())
            except ConnectionClosed as error:
                raise ConnectionResetError(str(error)) from None
    except InvalidStatus as error:
        if error.response.status_code in (401, 403):
            raise Unreachable(
                f"the lab at {url} does not accept this token", hint="it needs the scope 'agent', and may have expired"
            ) from None
        raise OSError(f"{url} answers {error.response.status_code}") from None


@dataclass
class _Attempt:
    """``sent``: bytes of its log that the lab has.  ``ended_at_ns``: None: before this process began."""

    job: Job
    ended: Ended | None = None
    ended_at_ns: int | None = None
    sent: int | None = None
    waiting: bool = False  # a piece of the log is on its way
    told: bool = False  # the result is on its way


@dataclass
class Agent:
    """``dial``: to its lab; ``local``: whether that is on this machine, where it sees whether the agent lives."""

    folder: Path
    name: str
    slots: int
    labels: dict[str, list[str]]
    dial: Dial
    executor: Callable[[str], Executor]  # of the identity
    local: bool = True
    #: Without its lab and with nothing to do for so long it ends: whoever started it is not coming back.
    leave_after_s: float | None = None
    say: Callable[[str], None] = log.info
    clock: Callable[[], int] = since_boot_ns
    _attempts: dict[int, _Attempt] = field(default_factory=dict)
    _connected: bool = False
    _refused: str = ""

    def __post_init__(self) -> None:
        self.lease = Lease(None if self.local else protocol.LEASE_NS, self.clock)

    async def run(self) -> None:
        """Until it is cancelled.  Raises WrongInput when another agent uses the folder, Unreachable when refused."""
        with self._locked():
            self._loop = asyncio.get_running_loop()
            self.identity = self._identity()
            self._executor = self.executor(self.identity)
            self._left_s = time.monotonic()
            self._changed = asyncio.Event()
            self._adopt()
            tasks = {asyncio.create_task(work) for work in (self._watch(), self._poll(), self._stay_connected())}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._executor.close()

    # -- the folder -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        for name in ("starts", "results", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WrongInput(
                    f"another agent uses {self.folder}", hint="each agent needs a folder of its own: --folder"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))  # for who starts it, and wants to end it
            lock.flush()
            yield

    def _identity(self) -> str:
        path = self.folder / "identity"
        if not path.exists():
            _write(path, uuid.uuid4().hex)
        return path.read_text().strip()

    def _job(self, start: Start) -> Job:
        return Job(start, self.folder / "run" / folder_name(self.identity, start.attempt))

    def _adopt(self) -> None:
        """What was taken before this process began."""
        for kind in ("starts", "results"):
            for half in (self.folder / kind).glob("*.new"):  # killed while it wrote
                half.unlink()
        for path in sorted((self.folder / "starts").glob("*.json")):
            start = protocol.from_lab(path.read_bytes())
            assert isinstance(start, Start)
            attempt = self._attempts[start.attempt] = _Attempt(self._job(start))
            result = self.folder / "results" / path.name
            if result.exists():
                ended = protocol.from_agent(result.read_bytes())
                assert isinstance(ended, Ended)
                attempt.ended = ended
            elif not self._executor.adopt(attempt.job, self._on_end):
                self._end(Ended(attempt=start.attempt, state="lost", cause=f"agent {self.name} was killed"))

    # -- steps ----------------------------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        if start.attempt in self._attempts:  # it was said twice, because the line was cut
            return
        attempt = self._attempts[start.attempt] = _Attempt(self._job(start), sent=0)
        try:
            _write(self.folder / "starts" / f"{start.attempt}.json", protocol.encode(start).decode())
            self._executor.submit(attempt.job, self._on_end)
        except OSError as error:  # a full disk of this agent; another one may do it
            self._end(Ended(attempt=start.attempt, state="lost", cause=f"agent {self.name}: {error}"))
        except Exception as error:  # noqa: BLE001  a step of a newer lab: this one fails, others go on
            self._end(Ended(attempt=start.attempt, state="failed", cause=f"agent {self.name}: {error}"))

    def _on_end(self, ended: Ended) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the agent has ended; the next one finds the start
            self._loop.call_soon_threadsafe(self._end, ended)

    def _end(self, ended: Ended) -> None:
        attempt = self._attempts.get(ended.attempt)
        if attempt is None or attempt.ended is not None:
            return
        try:
            _write(self.folder / "results" / f"{ended.attempt}.json", protocol.encode(ended).decode())
        except OSError as error:
            # The lab may have it all the same; only an agent that dies before that has lost it, and says so.
            log.error("the result of attempt %d is kept in memory only: %s", ended.attempt, error)
        attempt.ended, attempt.ended_at_ns = ended, self.clock()
        self._changed.set()

    def _forget(self, number: int) -> None:
        attempt = self._attempts.pop(number, None)
        if attempt is not None:
            # Beside the line: the next start, which mostly comes right behind, does not wait for a folder to go.
            self._loop.run_in_executor(None, self._remove, attempt.job)

    def _remove(self, job: Job) -> None:
        """The start goes last: an agent that is killed meanwhile finds it, and is told again to forget it."""
        shutil.rmtree(job.folder, ignore_errors=True)
        for kind in ("results", "starts"):
            (self.folder / kind / f"{job.attempt}.json").unlink(missing_ok=True)

    async def _watch(self) -> None:
        """The lease.  Returns when it is time to leave."""
        while True:
            await asyncio.sleep(1)
            away_s = 0.0 if self._connected else time.monotonic() - self._left_s
            if self.leave_after_s is not None and away_s > self.leave_after_s and not self._attempts:
                self.say("the lab is gone, and nothing is left to do")
                return
            if not self.folder.exists():
                return
            if self.lease.over:
                await asyncio.to_thread(self._give_up, self._running())

    def _give_up(self, running: tuple[int, ...]) -> None:
        for number in running:
            self._executor.cancel(number, "lost", "the lab could not be reached for the time of a lease")

    async def _poll(self) -> None:
        """For executors that have to ask.  By itself: one whose cluster does not answer must not hold up the lease."""
        while True:
            await asyncio.sleep(1)
            await asyncio.to_thread(self._executor.poll)

    def _running(self) -> tuple[int, ...]:
        return tuple(number for number, attempt in self._attempts.items() if attempt.ended is None)

    # -- the line -------------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        tries = 0
        while True:
            try:
                async with self.dial() as line:
                    welcome = await self._greet(line)
                    if welcome is not None:
                        tries = 0
                        self.say(f"connected as {self.name}, {self.slots} slots")
                        await self._talk(line, welcome)
            except (OSError, protocol.ProtocolError) as error:
                log.debug("line to the lab: %s", error)
            if tries == len(_AGAIN_S):
                self.say("the lab does not answer; trying on")
            await asyncio.sleep(_AGAIN_S[min(tries, len(_AGAIN_S) - 1)])
            tries += 1

    async def _greet(self, line: Line) -> protocol.Welcome | None:
        done = tuple(number for number, attempt in self._attempts.items() if attempt.ended is not None)
        sent_ns = self.clock()
        await line.send(
            protocol.Hello(
                name=self.name,
                identity=self.identity,
                kind=self._executor.kind,
                slots=self.slots,
                labels=self.labels,
                running=self._running(),
                finished=done,
            )
        )
        first = await anext(line.messages, None)
        if isinstance(first, protocol.Refused):
            if not first.again:
                raise Unreachable(f"the lab refuses this agent: {first.why}")
            if first.why != self._refused:  # once, not each second
                self.say(f"the lab says: {first.why}; trying on")
            self._refused = first.why
            return None
        if not isinstance(first, protocol.Welcome):
            return None
        self.lease.begin(sent_ns, first.lease_ns)
        return first

    async def _talk(self, line: Line, welcome: protocol.Welcome) -> None:
        for number in welcome.stop:
            self._executor.cancel(number, "lost", "the lab gave it to another agent")
        for number, attempt in self._attempts.items():
            attempt.sent, attempt.waiting, attempt.told = welcome.logs.get(number, 0), False, False
        self._connected = True
        telling = asyncio.create_task(self._tell(line, welcome.beat_ns))
        hearing = asyncio.create_task(self._hear(line))
        try:
            await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connected = False
            self._left_s = time.monotonic()  # not the lease: the lab may have lost this line long before
            for task in (telling, hearing):
                task.cancel()
            ended = await asyncio.gather(telling, hearing, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, OSError):
                raise error

    async def _hear(self, line: Line) -> None:
        async for message in line.messages:
            if isinstance(message, Start):
                self._start(message)
            elif isinstance(message, protocol.Stop):
                self._executor.cancel(message.attempt, message.state, message.cause)
            elif isinstance(message, protocol.Taken):
                self._forget(message.attempt)
            elif isinstance(message, protocol.LogTaken) and (attempt := self._attempts.get(message.attempt)):
                attempt.sent, attempt.waiting = message.size, False
                self._changed.set()
            elif isinstance(message, protocol.Alive):
                self.lease.answered(message.number)
            elif isinstance(message, protocol.Refused):
                raise protocol.ProtocolError(message.why)

    async def _tell(self, line: Line, beat_ns: int) -> None:
        beat_at = self.clock() + beat_ns
        while True:
            self._changed.clear()
            for attempt in (*self._attempts.values(), None):
                if attempt is not None:
                    await self._tell_of(line, attempt)
                if self.clock() >= beat_at:  # between any two: a slow line takes long for the logs of many steps
                    await line.send(protocol.Beat(number=self.lease.ask()))
                    beat_at = self.clock() + beat_ns
            busy = any(attempt.ended is None for attempt in self._attempts.values())
            await set_within(self._changed, _LOG_LOOK_S if busy else 1.0)

    async def _tell_of(self, line: Line, attempt: _Attempt) -> None:
        """The next piece of its log; after the last one its result."""
        number = attempt.job.attempt
        if attempt.waiting or attempt.told or attempt.sent is None:
            return
        piece = b""
        with contextlib.suppress(OSError), attempt.job.log.open("rb") as stream:
            stream.seek(attempt.sent)
            piece = stream.read(_LOG_PIECE)
        if piece:
            attempt.waiting = True
            await line.send(protocol.Log(attempt=number, offset=attempt.sent, data=piece.decode("latin-1")))
        elif attempt.ended is not None:
            attempt.told = True
            ago_ns = 0 if attempt.ended_at_ns is None else self.clock() - attempt.ended_at_ns
            await line.send(attempt.ended.model_copy(update={"ago_ns": ago_ns}))


def _write(path: Path, text: str) -> None:
    """Whole or not at all.  A killed agent keeps it; after a power cut the step is gone as well."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)
