"""Power that machines draw while nobody uses them: readings, a report, and switching off by their owners' policy.

``auto_off`` in the policy of a machine: its owner lets the lab switch it off when it was idle so long.  It is switched
on again when somebody waits for a machine like it, before the claim gets it; what was learned of its boots says how
long that takes.  A machine without that policy is only ever a candidate in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Row, delete, func, insert, select

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import allowed, boots, claims, machines, power, power_budget, schema, touch
from evenkeel.lab.actor import SERVICE, Actor, Conflict
from evenkeel.lab.allowed import Asker
from evenkeel.lab.held import STATES as HELD
from evenkeel.lab.lab import Lab
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.touch import Touched

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
#: A reading says little that one of a quarter of an hour ago did not.
_READ_EVERY_NS = 15 * 60 * 10**9
_KEPT_NS = 30 * DAY_NS
#: Idle so long, a machine is proposed to be switched off.
CANDIDATE_NS = 7 * DAY_NS
#: Processes that run on average: above, somebody uses it without a claim.
_BUSY_LOAD = 0.5


class _AutoOff(BaseModel):
    """Under ``auto_off`` in the policy of a machine, as in ``{"after": "4h"}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Nanoseconds = Field(gt=0)


class Idle(Model):
    """One machine in the time that was asked for.

    ``idle``: share of it without a claim.  ``watts``: mean of the readings; None: nothing tells.  ``idle_kwh``: of the
    time without a claim, by that mean.  ``load``: at the last log-in.  ``candidate``: idle for a week, and not busy.
    """

    machine: str
    owner: str
    state: str
    idle: float
    idle_since_ns: int | None
    watts: float | None
    idle_kwh: float | None
    load: float | None
    candidate: bool
    auto_off_ns: int | None


class Report(Model):
    """``idle_kwh``: of those machines that tell what they draw; ``untold``: how many do not."""

    since_ns: int
    until_ns: int
    machines: tuple[Idle, ...]
    idle_kwh: float
    untold: int


def keep_reading(lab: Lab, connection: Connection, machine_id: str, watts: float, source: str) -> None:
    """Within a change.  At most one each quarter of an hour, and of the last 30 days, is kept."""
    table = schema.power_reading
    here = table.c.machine_id == machine_id
    last = connection.scalar(select(func.max(table.c.at_ns)).where(here))
    if last is not None and lab.now() - last < _READ_EVERY_NS:
        return
    connection.execute(delete(table).where(here, table.c.at_ns < lab.now() - _KEPT_NS))
    row = {"machine_id": machine_id, "at_ns": lab.now(), "watts": watts, "source": source}
    connection.execute(insert(table).values(row))
    power_budget.keep(connection, machine_id)


def report(lab: Lab, actor: Actor, length_ns: int = 30 * DAY_NS) -> Report:
    """What stood idle in the last so long, the most wasteful first.  Raises Forbidden, WrongInput."""
    actor.need("read", "read the report of power")
    if not 0 < length_ns <= 10 * 365 * DAY_NS:
        raise WrongInput("the report is about some time up to ten years")
    until_ns = lab.now()
    since_ns = max(0, until_ns - length_ns)
    table, reading = schema.machine, schema.power_reading
    with lab.store.read() as connection:
        rows = connection.execute(select(table).where(table.c.state != "retired")).all()
        used = _used(connection, since_ns, until_ns)
        mean = select(reading.c.machine_id, func.avg(reading.c.watts)).where(reading.c.at_ns >= since_ns)
        watts = {key: float(value) for key, value in connection.execute(mean.group_by(reading.c.machine_id))}
        loads = _loads(connection)
    found = [_idle(row, since_ns, until_ns, used.get(row.id), watts.get(row.id), loads.get(row.id)) for row in rows]
    found.sort(key=lambda one: (-(one.idle_kwh or 0), -one.idle, one.machine))
    return Report(
        since_ns=since_ns,
        until_ns=until_ns,
        machines=tuple(found),
        idle_kwh=round(sum(one.idle_kwh or 0 for one in found), 3),
        untold=sum(one.watts is None for one in found),
    )


def _used(connection: Connection, since_ns: int, until_ns: int) -> dict[str, tuple[int, int | None]]:
    """By machine: for how long it was claimed, and when the last claim ended (None: it is claimed now)."""
    claim = schema.claim
    end = func.coalesce(claim.c.ended_ns, until_ns)
    asked = select(claim.c.machine_id, claim.c.began_ns, end, claim.c.state).where(
        claim.c.machine_id.is_not(None), claim.c.began_ns.is_not(None), claim.c.began_ns < until_ns
    )
    found: dict[str, tuple[int, int | None]] = {}
    for machine_id, began, ended, state in connection.execute(asked):
        length, last = found.get(machine_id, (0, 0))
        length += max(0, min(ended, until_ns) - max(began, since_ns))
        now = state in HELD or last is None
        found[machine_id] = length, None if now else max(last or 0, ended)
    return found


def _loads(connection: Connection) -> dict[str, float]:
    """The load that the last log-in of each machine read."""
    table = schema.health
    newest = (
        select(table.c.machine_id, func.max(table.c.at_ns).label("at_ns"))
        .where(table.c.probe == "login", table.c.ok)
        .group_by(table.c.machine_id)
        .subquery()
    )
    same = (table.c.machine_id == newest.c.machine_id) & (table.c.at_ns == newest.c.at_ns)
    asked = select(table.c.machine_id, table.c.detail).join(newest, same).where(table.c.probe == "login")
    found = {}
    for machine_id, detail in connection.execute(asked):
        _, word, load = detail.rpartition("load ")
        if word and load.replace(".", "", 1).isdigit():
            found[machine_id] = float(load)
    return found


def _idle(
    row: Row[Any],
    since_ns: int,
    until_ns: int,
    used: tuple[int, int | None] | None,
    watts: float | None,
    load: float | None,
) -> Idle:
    begin = max(since_ns, row.registered_ns)
    length = max(1, until_ns - begin)
    used_ns, last = used or (0, row.registered_ns)
    idle = max(0.0, 1 - used_ns / length)
    since = None if last is None else max(last, row.registered_ns)
    calm = load is None or load < _BUSY_LOAD
    return Idle(
        machine=row.name,
        owner=row.owner,
        state=row.state,
        idle=round(idle, 4),
        idle_since_ns=since,
        watts=None if watts is None else round(watts, 1),
        idle_kwh=None if watts is None else round(watts * idle * length / HOUR_NS / 1000, 3),
        load=load,
        candidate=row.state == "ready" and calm and since is not None and until_ns - since >= CANDIDATE_NS,
        auto_off_ns=auto_off(row.policy),
    )


def auto_off(policy: dict[str, Any] | None) -> int | None:
    """After how long of idleness its owner lets the lab switch it off; None: never.  What cannot be read is never."""
    try:
        return _AutoOff.model_validate((policy or {})["auto_off"]).after
    except (KeyError, ValidationError):
        return None


# -- switching ------------------------------------------------------------------------------------------------------


def tend(lab: Lab, begin: Callable[[Callable[[Lab, str], object], Lab, str], object]) -> None:
    """Switch off what may be and on what is wanted, each by ``begin(work, lab, machine id)``, in other threads."""
    for machine_id in wanted(lab):
        begin(wake, lab, machine_id)
    for machine_id in spare(lab):
        begin(rest, lab, machine_id)


def spare(lab: Lab) -> list[str]:
    """Machines that may be switched off now: their owner allows it, and they were idle long enough."""
    with lab.store.read() as connection:
        return _spare(lab, connection)


def _spare(lab: Lab, connection: Connection, *only: Any) -> list[str]:
    """``only``: conditions on table machine."""
    table, claim = schema.machine, schema.claim
    rows = connection.execute(select(table).where(table.c.state == "ready", *only)).all()
    rows = [row for row in rows if auto_off(row.policy) is not None]
    if not rows:
        return []
    open_claims = select(claim.c.machine_id).where(claim.c.state.in_(claims.OPEN), claim.c.machine_id.is_not(None))
    taken = set(connection.scalars(open_claims))
    last = dict(
        connection.execute(select(claim.c.machine_id, func.max(claim.c.ended_ns)).group_by(claim.c.machine_id)).all()
    )
    loads = _loads(connection)
    now = lab.now()
    waiting = _waiting(connection, now)
    rooms = power_budget.rooms(connection)
    found = []
    for row in rows:
        since = max(row.state_since_ns, last.get(row.id) or 0)
        idle = now - since >= (auto_off(row.policy) or 0)
        calm = loads.get(row.id, 0.0) < _BUSY_LOAD
        if row.id in taken or not idle or not calm:
            continue
        if not any(one.could_have(connection, now, rooms, table.c.id == row.id) for one in waiting):
            found.append(row.id)
    return found


def wanted(lab: Lab) -> list[str]:
    """Machines that were switched off while idle, and that somebody waits for who could not have another one."""
    table = schema.machine
    with lab.store.read() as connection:
        sleeps = table.c.state == "off", table.c.state_reason == boots.ASLEEP
        asleep = list(connection.scalars(select(table.c.id).where(*sleeps).order_by(table.c.name)))
        if not asleep:
            return []
        now = lab.now()
        rooms = power_budget.rooms(connection)
        found: list[str] = []
        for one in _waiting(connection, now + _boot_ns(lab, connection, asleep[0])):
            more: list[str] = []
            if one.promised is not None and one.promised in asleep:
                more = [one.promised] if rooms.lets(one.promised) and one.promised not in found else []
            elif not one.could_have(connection, now, rooms, table.c.state == "ready"):
                more = one.could_have(connection, now, rooms, *sleeps, table.c.id.not_in(found))[:1]
            for machine_id in more:
                rooms.take(machine_id)
            found += more
    return found


@dataclass(frozen=True)
class _Waits:
    """Somebody, or a step of theirs, who waits for a machine.  ``promised``: the one that was booked for them;
    ``kind``: of their claim."""

    predicate: Predicate
    who: Asker
    length_ns: int | None
    promised: str | None = None
    claim_id: int | None = None
    kind: str = "step"

    def could_have(self, connection: Connection, now: int, rooms: power_budget.Rooms, *conditions: Any) -> list[str]:
        """Ids of the machines of which ``conditions`` are true that it could be given now, by name.

        One that its owner keeps for others, that is booked too soon, or that a power budget keeps back, helps nobody
        who waits.
        """
        table = schema.machine
        asked = select(table).where(self.predicate.where(), *conditions).order_by(table.c.name)
        rows = [row for row in connection.execute(asked).all() if self._lets(connection, row) and rooms.lets(row.id)]
        return [row.id for row in rows if self._in_time(connection, now, row)]

    def _lets(self, connection: Connection, row: Row[Any]) -> bool:
        if self.kind == "step":
            return allowed.lets_steps(row, self.who)
        return not claims.why_not(connection, self.kind, row, self.who, self.length_ns)

    def _in_time(self, connection: Connection, now: int, row: Row[Any]) -> bool:
        end = None if self.length_ns is None else now + self.length_ns
        return claims.is_free(connection, now, row.id, end, but=self.claim_id)


def _waiting(connection: Connection, before_ns: int) -> list[_Waits]:
    """Claims and steps that wait for a machine now, or are booked for before then; of equal steps one."""
    claim, step, sub = schema.claim.c, schema.step.c, schema.submission.c
    found = []
    asked = select(schema.claim).where(claim.state == "waiting", claim.not_before_ns <= before_ns)
    for row in connection.execute(asked.order_by(claim.requested_ns)):
        who = allowed.of_name(connection, row.holder, row.team, row.boot_source)
        predicate = Predicate.parse(row.predicate)
        found.append(_Waits(predicate, who, row.length_ns, row.machine_id, row.id, row.kind))
    ready = select(step.machine, step.timeout_ns, sub.submitter, sub.team).join(
        schema.submission, step.submission_id == sub.id
    )
    for text, limit, submitter, team in connection.execute(
        ready.where(step.state == "ready", step.machine != "").distinct()
    ):
        who = allowed.of_name(connection, submitter, team)
        found.append(_Waits(Predicate.parse(text), who, limit or claims.STEP_NS))
    return found


def _boot_ns(lab: Lab, connection: Connection, machine_id: str) -> int:
    machine = touch.find(connection, machine_id)
    try:
        policy = power.Policy.model_validate(machine.policy.get("power", {}))
    except ValidationError:
        policy = power.Policy()
    return round(power.boot_deadline_s(lab, machine, policy) * 1e9)


def rest(lab: Lab, machine_id: str) -> None:
    """Switch one off, and say that it wakes by itself.  A failure is in the machine's power events.

    It counts as off before it is: whoever were given it while it is switched off would lose what they run.
    """
    table = schema.machine
    kept = False

    def keep(connection: Connection, found: Touched) -> None:
        nonlocal kept
        if not _spare(lab, connection, table.c.id == found.id):
            raise Conflict(f"{found.name} is wanted again")
        kept = machines.set_state(lab, connection, SERVICE.name, found.id, "off", boots.ASLEEP)

    def back(connection: Connection) -> None:
        row = connection.execute(select(table.c.state, table.c.state_reason).where(table.c.id == machine_id)).one()
        if tuple(row) == ("off", boots.ASLEEP):
            machines.set_state(lab, connection, SERVICE.name, machine_id, "ready")
            claims.offer(lab, connection)

    result = ""
    try:
        result = power.switch(lab, SERVICE, machine_id, "off", first=keep).result
    except EvenkeelError:
        return
    finally:
        if kept and result != "done":
            lab.store.write(back)


def wake(lab: Lab, machine_id: str) -> None:
    """Switch one on, and offer it to who waits when it is proved that it is on, and that its system answers: steps take
    it as it is.  One that does not answer is suspect, so that another one is woken; but for one whose system a holder
    booted, which is installed before anybody has it, and may have none."""

    def need_room(connection: Connection, found: Touched) -> None:
        if not (rooms := power_budget.rooms(connection)).lets(found.id):
            raise Conflict(rooms.why(found.id))

    try:
        with lab.store.read() as connection:
            answering = not touch.find(connection, machine_id).system_of
        done = power.switch(lab, SERVICE, machine_id, "on", first=need_room, answering=answering)
    except EvenkeelError:
        return
    if done.result == "done":
        lab.store.write(lambda connection: claims.offer(lab, connection))
    elif done.result == "unknown" and not answering:
        # An outlet that was switched on, before a system that need not be there: its installation switches it again.
        def awake(connection: Connection) -> None:
            machines.set_state(lab, connection, SERVICE.name, machine_id, "ready")
            claims.offer(lab, connection)

        lab.store.write(awake)
