"""Switch a machine, and know that it was: a ladder of ways, each with a deadline, and a look of our own after each.

A command that was accepted proves nothing.  A restart counts when the boot id changed (or, where no ssh is, when the
console showed a boot); on and off count when two readings, one after the other, say so.  Silence is ``unknown``, never
``off``.  Each attempt is kept in ``power_event``, and the order of the ways follows from what worked on that machine.
Drivers are in :mod:`evenkeel.lab.power_drivers`; who decides *when* a machine is switched is not here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import Connection, Row, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import boots, events, machines, paging, schema, secrets, touch
from evenkeel.lab.actor import SERVICE, Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Action, Driver, Method, PowerFailed, Reading, Way, driver_for
from evenkeel.lab.power_drivers.ssh import Boot, Ssh
from evenkeel.lab.touch import Touched

#: Gentlest first: the operating system, the chassis, the mains.
METHODS: tuple[Method, ...] = ("ssh", "hypervisor", "bmc", "pdu")
#: How much worse than the next a way must have done to lose its place to it.
_PLACE = 0.15
#: Events that count, newest first, and for how long: a way that was mended would never be tried again otherwise, as the
#: one in its place does it all.
_REMEMBERED = 20
_REMEMBERED_NS = 30 * 86400 * 10**9
_LIED_BEFORE = "not believed: it lied before"
#: Two readings are equal only when time has passed between them.
_AGAIN_S = 0.5
_POLL_S = 0.4

Outcome = Literal["done", "failed", "silent", "lied", "unverified"]
Result = Literal["running", "done", "failed", "unknown"]


class Policy(Model):
    """Of one machine, under ``power`` in its policy.  Seconds; what is left out is learned or usual.

    ``order``: ways, instead of the learned order.  ``down_s``: how long a machine may go on as before after a command
    that a chassis obeys at once; ``shutdown_s``: the same for its operating system.  ``boot_s``: until it answers
    again; None: three times the slowest of the last boots of its type.
    """

    order: tuple[Method, ...] | None = None
    ssh_s: float = Field(10.0, gt=0, le=120)
    bmc_s: float = Field(5.0, gt=0, le=120)
    pdu_s: float = Field(20.0, gt=0, le=300)
    down_s: float = Field(20.0, gt=0, le=600)
    shutdown_s: float = Field(120.0, gt=0, le=1800)
    boot_s: boots.BootSeconds | None = None

    def deadline_s(self, method: Method) -> float:
        return {"ssh": self.ssh_s, "hypervisor": self.pdu_s, "bmc": self.bmc_s, "pdu": self.pdu_s}[method]


class Attempt(Model):
    """One rung: what was done and what came of it.  ``lied``: it said done, and the machine shows that it was not."""

    method: Method
    driver: str
    outcome: Outcome
    detail: str
    took_ns: int


class PowerEvent(Model):
    """One request, with every attempt.  ``verified_by``: what proved it."""

    id: int
    machine: str
    action: Action
    actor: str
    at_ns: int
    took_ns: int | None
    tried: tuple[Attempt, ...]
    result: Result
    verified_by: str


class Said(Model):
    """What one source said when asked twice; ``reading`` is unknown when the two differed or it was silent."""

    method: Method
    driver: str
    reading: Reading
    detail: str = ""


class PowerStatus(Model):
    """``power``: what is certain.  ``lies``: sources that contradict a host that answers."""

    machine: str
    power: Reading
    boot_id: str | None
    uptime_ns: int | None
    said: tuple[Said, ...]
    lies: tuple[str, ...]
    at_ns: int


class Plan(Model):
    """How it would be done now: the order of ways and how each did lately."""

    machine: str
    order: tuple[Method, ...]
    success: dict[str, tuple[int, int]]
    boot_ns: int


@dataclass(frozen=True)
class _Rung:
    method: Method
    name: str
    driver: Driver


# -- asking ---------------------------------------------------------------------------------------------------------


def status(lab: Lab, actor: Actor, machine: str) -> PowerStatus:
    """Ask every source twice, now.  Takes up to about 10 s when a BMC is slow.  Raises NotFound, Forbidden."""
    actor.need("read", "read the power of a machine")
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
    return _status(lab, found, policy_of(found))


def plan(lab: Lab, actor: Actor, machine: str) -> Plan:
    """Which way would be tried first, and why.  Raises NotFound, Forbidden."""
    actor.need("read", "read the power of a machine")
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
        ways = [row.kind for row in _endpoints(connection, found)]
    success = _success(lab, found.id)
    order = order_of(policy_of(found).order, success, [method for method in METHODS if method in ways])
    boot_ns = round(boot_deadline_s(lab, found, policy_of(found)) * 1e9)
    return Plan(machine=found.name, order=order, success=success, boot_ns=boot_ns)


def event(lab: Lab, actor: Actor, number: int) -> PowerEvent:
    """Raises NotFound, Forbidden."""
    actor.need("read", "read the power of a machine")
    with lab.store.read() as connection:
        row = connection.execute(_events().where(schema.power_event.c.id == number)).first()
    if row is None:
        raise NotFound(f"no power event {number}")
    return _event(row)


def history(
    lab: Lab, actor: Actor, machine: str, *, after: str | None = None, limit: int = paging.DEFAULT
) -> paging.Page[PowerEvent]:
    """What was done to a machine, newest first.  Raises NotFound, Forbidden, WrongInput."""
    actor.need("read", "read the power of a machine")
    table = schema.power_event
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
        asked = _events().where(table.c.machine_id == found.id).order_by(table.c.id.desc()).limit(limit + 1)
        if (key := paging.key_of(after, int)) is not None:
            asked = asked.where(table.c.id < key[0])
        rows = connection.execute(asked).all()
    return paging.page([_event(row) for row in rows], limit, lambda event: [event.id])


def order_of(
    wanted: Iterable[Method] | None, success: Mapping[str, tuple[int, int]], have: Iterable[Method]
) -> tuple[Method, ...]:
    """Ways in the order to try them.  ``success``: worked and tried, by way.  Pure.

    A way starts as good as its place; it falls behind another when its share of successes, with one assumed before
    anything is known, is worse by more than the places between them.  So only its own failures move it: another way
    that was used because this one cannot do everything (ssh switches nothing on) does not pass it.
    """
    ways = list(have)
    if wanted is not None:
        return tuple(method for method in wanted if method in ways)

    def worth(method: Method) -> float:
        worked, tried = success.get(method, (0, 0))
        return (worked + 1) / (tried + 1) - _PLACE * METHODS.index(method)

    return tuple(sorted(ways, key=worth, reverse=True))


# -- switching ------------------------------------------------------------------------------------------------------


def request(lab: Lab, actor: Actor, machine: str, action: Action, *, method: Method | None = None) -> PowerEvent:
    """Begin, in a thread; :func:`event` follows it.  ``method``: this way only.

    Raises NotFound, Forbidden (somebody else holds it), Conflict (it is being switched), WrongInput (no such way).
    """
    begun = _begin(lab, actor, machine, action, method)
    threading.Thread(target=_run, args=(lab, begun), name=f"power {begun.event_id}", daemon=True).start()
    return event(lab, SERVICE, begun.event_id)


def switch(
    lab: Lab,
    actor: Actor,
    machine: str,
    action: Action,
    *,
    method: Method | None = None,
    first: Callable[[Connection, Touched], None] | None = None,
    answering: bool = False,
    boot_s: float | None = None,
    acting: Callable[[], None] = lambda: None,
) -> PowerEvent:
    """The same, and wait for the end: minutes, when it boots.  Its ``result`` says what came of it.

    ``first``: run within the change that begins it; what it raises keeps the machine from being switched.
    ``answering``: it is not on before its system answers, where the lab has ssh to ask.
    ``boot_s``: for a boot that is no usual one, as of an installer; nothing is learned of its length, and that it does
    not come up says nothing of the machine: the result is ``unknown`` then.
    ``acting``: called each time right before a way is told to do it.
    """
    begun = _begin(lab, actor, machine, action, method, first)
    _run(lab, replace(begun, answering=answering, boot_s=boot_s, acting=acting))
    return event(lab, SERVICE, begun.event_id)


def tidy(lab: Lab) -> int:
    """When a service starts: what the last one was in the middle of ended unknown.  Returns how many."""
    table = schema.power_event

    def change(connection: Connection) -> int:
        rows = connection.execute(select(table.c.id, table.c.machine_id).where(table.c.result == "running")).all()
        for number, machine_id in rows:
            connection.execute(update(table).where(table.c.id == number).values(result="unknown"))
            lab.store.event(connection, SERVICE.name, "power.unknown", "machine", machine_id, why="service restarted")
        return len(rows)

    return lab.store.write(change)


@dataclass(frozen=True)
class _Begun:
    event_id: int
    machine: Touched
    action: Action
    actor: str
    method: Method | None
    at_ns: int
    answering: bool = False
    boot_s: float | None = None
    acting: Callable[[], None] = lambda: None


def _begin(
    lab: Lab,
    actor: Actor,
    machine: str,
    action: Action,
    method: Method | None,
    first: Callable[[Connection, Touched], None] | None = None,
) -> _Begun:
    actor.need("power", f"switch {machine}")
    table = schema.power_event
    at_ns = lab.now()

    def change(connection: Connection) -> _Begun:
        found = touch.find(connection, machine)
        touch.need_touch(actor, found, f"switch {found.name}")
        policy_of(found)
        ways = {row.kind for row in _endpoints(connection, found)}
        if method is not None and method not in ways:
            raise WrongInput(f"{found.name} has no way {method}", hint=f"it has {', '.join(sorted(ways)) or 'none'}")
        if not ways & {*METHODS}:
            raise WrongInput(f"{found.name} has neither ssh nor BMC nor PDU", hint="give it an endpoint")
        running = select(table.c.id, table.c.action, table.c.actor).where(
            table.c.machine_id == found.id, table.c.result == "running"
        )
        if (other := connection.execute(running).first()) is not None:
            raise Conflict(
                f"{found.name} is being switched ({other.action}, by {other.actor})", hint="wait for its end"
            )
        if first is not None:
            first(connection, found)
        row = {"machine_id": found.id, "action": action, "actor": actor.name, "at_ns": at_ns}
        done = connection.execute(insert(table).values(row | {"tried": [], "result": "running"}))
        number = int(done.inserted_primary_key[0])  # type: ignore[index]
        lab.store.event(
            connection, actor.name, "power.asked", "machine", found.id, name=found.name, action=action, event=number
        )
        return _Begun(number, found, action, actor.name, method, at_ns)

    return lab.store.write(change)


def _run(lab: Lab, begun: _Begun) -> None:
    """Climb, and write down what came of it, whatever happens."""
    start = time.monotonic()
    tried: list[Attempt] = []
    result: Result = "unknown"
    verified_by = ""
    boot_s: float | None = None
    try:
        result, verified_by, boot_s = _climb(lab, begun, tried)
        if begun.answering and result == "done":
            result, boot_s = _until_it_answers(lab, begun, tried, start, boot_s)
    except EvenkeelError as error:
        result, verified_by = "failed", error.message
    finally:
        _end(lab, begun, tried, result, verified_by, round((time.monotonic() - start) * 1e9), boot_s)


def _climb(lab: Lab, begun: _Begun, tried: list[Attempt]) -> tuple[Result, str, float | None]:
    machine, action = begun.machine, begun.action
    policy = policy_of(machine)
    if begun.boot_s is not None:
        policy = policy.model_copy(update={"boot_s": begun.boot_s})
    rungs = _rungs(lab, machine)
    ssh = next((rung.driver for rung in rungs if isinstance(rung.driver, Ssh)), None)
    console = _has_console(lab, machine)
    before = _boot(ssh, policy.ssh_s)
    if action in ("on", "off"):
        now = _status(lab, machine, policy, rungs)
        if now.power == action:
            return "done", f"was {action} before", None
    able = {rung.method: rung for rung in rungs if action in rung.driver.actions}
    success = _success(lab, machine.id)
    order = (begun.method,) if begun.method else order_of(policy.order, success, able)
    doubtful = False
    for method in order:
        rung = able.get(method)
        if rung is None:
            raise WrongInput(f"{method} cannot {action} a machine")
        if method == "ssh" and before is None:
            continue  # not its fault: there is nobody to ask
        start = time.monotonic()
        before_seq = events.last_seq(lab)
        how, late = "", None
        try:
            _forget_prompt(lab, machine)
            begun.acting()
            try:
                how = rung.driver.act(action, policy.deadline_s(method))
            except PowerFailed as error:
                if not error.late:
                    raise
                how, late = error.message, error  # it may be obeyed yet, so look before the next way is tried
            _forget_prompt(lab, machine)  # it may have been answered a moment before
            if action in ("on", "off"):
                outcome, why = _see_power(lab, machine, policy, rungs, rung, action, time.monotonic())
            else:
                seen = _see_boot(lab, machine, policy, ssh, console, rung, before, start, before_seq)
                outcome, why = seen or _never_back(begun)
            if late is not None and outcome == "lied":
                outcome = "silent"  # it has never said that it would
        except PowerFailed as error:
            outcome, why = ("silent" if error.silent else "failed"), error.message
        detail = f"{how}: {why}" if how else why
        took_s = time.monotonic() - start
        tried.append(
            Attempt(method=method, driver=rung.name, outcome=outcome, detail=detail, took_ns=round(took_s * 1e9))
        )
        _note(lab, begun, tried)
        if outcome == "done":
            usual = why.startswith("boot id") and begun.boot_s is None
            return "done", why, took_s if usual else None
        doubtful = doubtful or outcome == "unverified"
    return ("unknown" if doubtful else "failed"), "", None


def _until_it_answers(
    lab: Lab, begun: _Begun, tried: list[Attempt], start: float, boot_s: float | None
) -> tuple[Result, float | None]:
    """Of a machine that is on.  With the seconds that its boot took, if it booted."""
    policy = policy_of(begun.machine)
    ssh = next((rung.driver for rung in _rungs(lab, begun.machine) if isinstance(rung.driver, Ssh)), None)
    if ssh is None:
        return "done", boot_s
    end = start + boot_deadline_s(lab, begun.machine, policy)
    while _boot(ssh, policy.ssh_s) is None:
        if time.monotonic() > end:
            took_ns = round((time.monotonic() - start) * 1e9)
            why = "it is on, and its system does not answer"
            tried.append(Attempt(method="ssh", driver="ssh", outcome="silent", detail=why, took_ns=took_ns))
            return "failed", None
        time.sleep(_POLL_S)
    return "done", time.monotonic() - start if tried else boot_s


def _forget_prompt(lab: Lab, machine: Touched) -> None:
    if lab.consoles is not None:
        lab.consoles.forget_prompt(machine.id)


def _see_boot(
    lab: Lab,
    machine: Touched,
    policy: Policy,
    ssh: Ssh | None,
    console: bool,
    rung: _Rung,
    before: Boot | None,
    start: float,
    before_seq: int,
) -> tuple[Outcome, str] | None:
    """Wait for another boot id than ``before``; for a younger boot than the command where that was not known.

    None: it went down, and did not come back in time."""
    if ssh is None and not console:
        return "unverified", "there is neither ssh nor a console to see it by"
    down_s = policy.shutdown_s if rung.method == "ssh" else policy.down_s
    end = start + boot_deadline_s(lab, machine, policy)
    went_down = before is None
    while (now := time.monotonic()) < end:
        boot = _boot(ssh, policy.ssh_s)
        if boot is not None:
            passed_s = time.monotonic() - start
            if before is not None and boot.id != before.id:
                return "done", f"boot id {before.id[:8]} became {boot.id[:8]}"
            if before is None and boot.uptime_s < passed_s:
                return "done", f"boot id {boot.id[:8]}, up for {boot.uptime_s:.0f} s"
            if passed_s > down_s:
                outcome: Outcome = "failed" if rung.method == "ssh" else "lied"
                return outcome, f"still in boot {boot.id[:8]} after {passed_s:.0f} s"
        elif ssh is not None:
            went_down = True
        # Where ssh told the boot before, it tells it again; a console's words are for where it does not.
        if console and (ssh is None or before is None) and _booted_on_console(lab, machine, before_seq):
            return "done", "the console showed a boot"
        if ssh is None and now - start > down_s and not console:
            break
        time.sleep(_POLL_S)
    if console and _booted_on_console(lab, machine, before_seq):
        return "done", "the console showed a boot, ssh does not answer"
    if before is None:
        return "failed", "nothing answered in time"
    return None if went_down else ("failed", "nothing happened in time")


def _never_back(begun: _Begun) -> tuple[Outcome, str]:
    """A boot that is no usual one may not come up whatever its way did, which is not held against that."""
    return ("failed" if begun.boot_s is None else "unverified"), "it went down and did not come back in time"


def _see_power(
    lab: Lab, machine: Touched, policy: Policy, rungs: list[_Rung], rung: _Rung, wanted: Action, start: float
) -> tuple[Outcome, str]:
    """Wait until the machine is certainly ``wanted``, or until that should have been."""
    end = start + (policy.shutdown_s if rung.method == "ssh" else policy.down_s)
    if wanted == "on" and not any(other.driver.reads_machine and other.method != "ssh" for other in rungs):
        end = start + boot_deadline_s(lab, machine, policy)
    while True:
        now = _status(lab, machine, policy, rungs)
        if now.power == wanted:
            by = [said.method for said in now.said if said.reading == wanted]
            return "done", f"boot id {now.boot_id[:8]}" if now.boot_id else f"two readings of {', '.join(by)}"
        if time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    if wanted == "off" and now.lies:
        return "lied", f"{', '.join(now.lies)} says off, and the host answers"
    if now.power == "unknown":
        return "unverified", f"nobody can say for certain that it is {wanted}"
    return ("failed" if rung.method == "ssh" else "lied"), f"it is still {now.power}"


def _status(lab: Lab, machine: Touched, policy: Policy, rungs: list[_Rung] | None = None) -> PowerStatus:
    rungs = _rungs(lab, machine) if rungs is None else rungs
    ssh = next((rung.driver for rung in rungs if isinstance(rung.driver, Ssh)), None)
    others = [rung for rung in rungs if rung.method != "ssh"]
    # All at once: a dead one does not make the others wait.
    with ThreadPoolExecutor(len(others) + 1) as pool:
        asked = pool.submit(_boot, ssh, policy.ssh_s)
        said = list(pool.map(lambda rung: _twice(rung, policy), others))
        boot = asked.result()
    with lab.store.read() as connection:
        liars = caught(connection, machine.id)
    believed = [(rung, words) for rung, words in zip(others, said, strict=True) if rung.method not in liars]
    says_off = [rung for rung, words in believed if words.reading == "off"]
    says_on = [rung for rung, words in believed if words.reading == "on" and rung.driver.reads_machine]
    power: Reading = "unknown"
    if boot is not None:
        power = "on"
    elif says_off and not says_on:
        power = "off"
    elif says_on and not says_off:
        power = "on"
    return PowerStatus(
        machine=machine.name,
        power=power,
        boot_id=boot.id if boot else None,
        uptime_ns=round(boot.uptime_s * 1e9) if boot else None,
        said=tuple(
            words if words.method not in liars else words.model_copy(update={"detail": words.detail or _LIED_BEFORE})
            for words in said
        ),
        lies=tuple(words.method for words in said if words.reading == "off") if boot else (),
        at_ns=lab.now(),
    )


def caught(connection: Connection, machine_id: str) -> frozenset[str]:
    """Ways that were caught in a lie on this machine, and were not seen to be right since.

    What such a way says of a machine that nobody can log in to tells nothing.
    """
    table = schema.event
    here = (table.c.object == "machine") & (table.c.object_id == machine_id)
    kinds = table.c.type.in_(("power.lied", "power.honest"))
    last: dict[str, str] = {}
    for type_, data in connection.execute(select(table.c.type, table.c.data).where(here, kinds).order_by(table.c.seq)):
        last[data.get("method", "bmc")] = type_
    return frozenset(method for method, type_ in last.items() if type_ == "power.lied")


def _twice(rung: _Rung, policy: Policy) -> Said:
    deadline_s = policy.deadline_s(rung.method)
    try:
        first = rung.driver.status(deadline_s)
        if first == "unknown":
            return Said(method=rung.method, driver=rung.name, reading="unknown", detail="it does not say")
        time.sleep(_AGAIN_S)
        second = rung.driver.status(deadline_s)
    except EvenkeelError as error:
        return Said(method=rung.method, driver=rung.name, reading="unknown", detail=error.message)
    if first != second:
        return Said(method=rung.method, driver=rung.name, reading="unknown", detail=f"first {first}, then {second}")
    return Said(method=rung.method, driver=rung.name, reading=first)


def _boot(ssh: Ssh | None, deadline_s: float) -> Boot | None:
    if ssh is None:
        return None
    try:
        return ssh.boot(deadline_s)
    except EvenkeelError:
        return None


# -- what is written down -------------------------------------------------------------------------------------------


def _note(lab: Lab, begun: _Begun, tried: list[Attempt]) -> None:
    """After each rung, so that a killed service leaves what it did."""
    rows = [attempt.model_dump(mode="json") for attempt in tried]
    table = schema.power_event
    lab.store.write(lambda c: c.execute(update(table).where(table.c.id == begun.event_id).values(tried=rows)))


def _end(
    lab: Lab,
    begun: _Begun,
    tried: list[Attempt],
    result: Result,
    verified_by: str,
    took_ns: int,
    boot_s: float | None,
) -> None:
    table = schema.power_event
    values = {"result": result, "verified_by": verified_by, "took_ns": took_ns}
    values["tried"] = [attempt.model_dump(mode="json") for attempt in tried]

    def change(connection: Connection) -> None:
        connection.execute(update(table).where(table.c.id == begun.event_id).values(values))
        machine = touch.find(connection, begun.machine.id)
        told = {"name": machine.name, "action": begun.action, "event": begun.event_id, "by": verified_by}
        told["tried"] = [f"{a.method} {a.outcome}" for a in tried]
        lab.store.event(connection, begun.actor, f"power.{result}", "machine", machine.id, **told)
        liars = caught(connection, machine.id)
        for attempt in tried:
            what = {"name": machine.name, "method": attempt.method, "detail": attempt.detail}
            if attempt.outcome == "lied":
                lab.store.event(connection, SERVICE.name, "power.lied", "machine", machine.id, **what)
            elif attempt.outcome == "done" and begun.action in ("reset", "cycle") and attempt.method in liars:
                lab.store.event(connection, SERVICE.name, "power.honest", "machine", machine.id, **what)
        if boot_s is not None:
            boots.learn(connection, boots.type_of(connection, machine.id, machine.name), boot_s)
        if why := _suspicious(connection, machine, result, tried, begun.action):
            _suspect(connection, lab, machine, why)
        elif result == "done":
            _follow(connection, lab, machine, begun.action)

    lab.store.write(change)


def _suspicious(
    connection: Connection, machine: Touched, result: Result, tried: list[Attempt], action: Action
) -> str | None:
    """Why a machine should not be offered now; None: no reason.

    Beaker's rules (broken-system-detection): one power command that failed for good is enough; what may be chance
    must happen twice in a row, so a BMC that lied is forgiven once.
    """
    if result == "failed":
        ways = ", ".join(f"{attempt.method} {attempt.outcome}" for attempt in tried)
        return f"power {action} failed: {ways or 'no way to try'}"
    if not any(attempt.outcome == "lied" for attempt in tried):
        return None
    table = schema.power_event
    last = connection.scalars(
        select(table.c.tried)
        .where(table.c.machine_id == machine.id, table.c.result != "running")
        .order_by(table.c.id.desc())
        .limit(2)
    ).all()
    twice = len(last) == 2 and all(any(attempt["outcome"] == "lied" for attempt in tries) for tries in last)
    return "its BMC or PDU lied twice in a row" if twice else None


def _suspect(connection: Connection, lab: Lab, machine: Touched, why: str) -> None:
    """A machine that somebody holds stays theirs, with an event; one in the pool is not offered any more."""
    held = machine.state in ("claimed", "preparing")
    told = {"name": machine.name, "why": why, "held": held}
    lab.store.event(connection, SERVICE.name, "machine.suspect", "machine", machine.id, **told)
    if machine.state in ("ready", "off"):
        machines.set_state(lab, connection, SERVICE.name, machine.id, "suspect", why)


def _follow(connection: Connection, lab: Lab, machine: Touched, action: Action) -> None:
    """A pool machine that was switched off is ``off``, one that was switched on again is not."""
    if action == "off" and machine.state == "ready":
        machines.set_state(lab, connection, SERVICE.name, machine.id, "off", "switched off")
    elif action != "off" and machine.state == "off":
        machines.set_state(lab, connection, SERVICE.name, machine.id, "ready")


# -- what was learned -----------------------------------------------------------------------------------------------


def _success(lab: Lab, machine_id: str) -> dict[str, tuple[int, int]]:
    """Worked and tried, by way, of the last attempts on this machine."""
    table = schema.power_event
    lately = (table.c.machine_id == machine_id) & (table.c.at_ns > lab.now() - _REMEMBERED_NS)
    asked = select(table.c.tried).where(lately).order_by(table.c.id.desc()).limit(_REMEMBERED)
    found: dict[str, tuple[int, int]] = {}
    with lab.store.read() as connection:
        for tries in connection.scalars(asked):
            for attempt in tries:
                if attempt["outcome"] == "unverified":
                    continue
                worked, tried = found.get(attempt["method"], (0, 0))
                found[attempt["method"]] = worked + (attempt["outcome"] == "done"), tried + 1
    return found


def boot_deadline_s(lab: Lab, machine: Touched, policy: Policy) -> float:
    """Seconds from a command until the machine answers again, at most: set, or :func:`boots.deadline_s`."""
    if policy.boot_s is not None:
        return policy.boot_s
    with lab.store.read() as connection:
        return boots.deadline_s(boots.known(connection, boots.type_of(connection, machine.id, machine.name)))


# -- ways -----------------------------------------------------------------------------------------------------------


def policy_of(machine: Touched) -> Policy:
    """Raises WrongInput."""
    try:
        return Policy.model_validate(machine.policy.get("power", {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise WrongInput(f"policy of {machine.name}: power.{place}: {first['msg']}") from None


def _endpoints(connection: Connection, machine: Touched) -> list[Row[Any]]:
    table = schema.endpoint
    return list(connection.execute(select(table).where(table.c.machine_id == machine.id).order_by(table.c.id)))


def way_of(lab: Lab, endpoint: Row[Any]) -> Way:
    """An endpoint with its password.  Raises NotFound when that is gone."""

    def learned(key: str, value: Any) -> None:
        table = schema.endpoint

        def change(connection: Connection) -> None:
            options = connection.scalar(select(table.c.options).where(table.c.id == endpoint.id))
            if options is not None:
                done = update(table).where(table.c.id == endpoint.id).values(options={**options, key: value})
                connection.execute(done)

        lab.store.write(change)

    return Way(
        method=endpoint.kind,
        driver=endpoint.driver,
        address=endpoint.address,
        options=dict(endpoint.options),
        credentials=secrets.credentials(lab, endpoint.secret),
        learned=learned,
    )


def _rungs(lab: Lab, machine: Touched) -> list[_Rung]:
    with lab.store.read() as connection:
        rows = [row for row in _endpoints(connection, machine) if row.kind in METHODS]
    return [_Rung(row.kind, row.driver, driver_for(way_of(lab, row))) for row in rows]


def driver(lab: Lab, machine: Touched, *methods: Method) -> Driver | None:
    """The first driver of these ways that the machine has, in this order."""
    rungs = _rungs(lab, machine)
    found = (rung.driver for method in methods for rung in rungs if rung.method == method)
    return next(found, None)


def _has_console(lab: Lab, machine: Touched) -> bool:
    with lab.store.read() as connection:
        return any(row.kind == "console" or row.driver == "virtual" for row in _endpoints(connection, machine))


def _booted_on_console(lab: Lab, machine: Touched, after: int) -> bool:
    """Whether the console's recorder saw a kernel begin (:mod:`evenkeel.lab.console`), after the event ``after``.

    By number: by date, a clock that was set back would make an old boot a new one."""
    table = schema.event
    asked = select(table.c.seq).where(
        table.c.object == "machine",
        table.c.object_id == machine.id,
        table.c.type == "console.boot",
        table.c.seq > after,
    )
    with lab.store.read() as connection:
        return connection.execute(asked.limit(1)).first() is not None


def _events() -> Any:
    table = schema.power_event
    return select(table, schema.machine.c.name.label("machine")).join(
        schema.machine, schema.machine.c.id == table.c.machine_id
    )


def _event(row: Row[Any]) -> PowerEvent:
    return PowerEvent(
        id=row.id,
        machine=row.machine,
        action=row.action,
        actor=row.actor,
        at_ns=row.at_ns,
        took_ns=row.took_ns,
        tried=tuple(Attempt.model_validate(attempt) for attempt in row.tried),
        result=row.result,
        verified_by=row.verified_by,
    )


#: For the pages and the command line.
ACTIONS: tuple[Action, ...] = ("on", "off", "reset", "cycle")
