"""Claims: who has which machine, and who waits for one.  The one table for people, steps and maintenance.

A reservation *now* gets a machine at once, prepared before it is offered, or waits with a position and an estimate.
One for *later* is booked: a machine is promised to it, and nothing else may overlap with that.  All decisions are made
in the writer, one after the other, so two claims never hold one machine (and the database refuses it too).

States: ``waiting`` (in the queue, or booked), ``preparing`` (a machine is checked for it), ``active``, ``ended``,
``cancelled``.  What takes time (preparing a machine) happens elsewhere: :mod:`evenkeel.lab.keeper`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.errors import WrongInput
from evenkeel.lab import allowed, boots, credits, held, machines, people, power_budget, search
from evenkeel.lab.actor import SERVICE, Actor, Conflict, Forbidden, NotFound, need_version
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import HOUR, Limits
from evenkeel.lab.machines import Happened, OpenUrl, Policy, policy_of
from evenkeel.lab.paging import Page, key_of, page
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.schema import claim, event, fact, machine, principal
from evenkeel.lab.waiting import Hold, Over, Place, Pool, Wish, forecast

Kind = Literal["reservation", "step", "maintenance", "permanent"]
State = Literal["waiting", "preparing", "active", "ended", "cancelled"]
HELD = held.STATES
#: Forms are filled in while time goes on; what was meant longer ago is a mistake.
_PAST_NS = 300 * 10**9
OPEN = ("waiting", *HELD)
#: What a step without a time limit is taken to need of a machine; once that is over as much again.  Only to foretell
#: and to book by: no step ends by it.
STEP_NS = HOUR
FOREVER = (1 << 63) - 1
Text = Annotated[str, Field(max_length=2000)]


class BootSource(Model):
    """What a machine is booted from, once, before it is given: in place of what its owner has it installed from."""

    image: OpenUrl | None = Field(default=None, description="http(s) URL, without a password, of an ISO")
    netboot: OpenUrl | None = Field(default=None, description="http(s) URL, without a password, of an iPXE script")

    @model_validator(mode="after")
    def _one(self) -> BootSource:
        if bool(self.image) == bool(self.netboot):
            raise ValueError("a machine is booted from an image or from a script, and from one of them")
        return self


class Claim(Model):
    """``until_ns``: None while it waits, and for permanent ones.  ``fencing`` grows with every change of hands.

    ``waits``: where a waiting claim stands, and when its turn comes.
    """

    id: int
    kind: Kind
    state: State
    holder: str
    team: str
    predicate: str
    machine: str | None
    machine_id: str | None
    step_id: int | None
    reason: str
    boot_source: dict[str, Any] | None  # a BootSource
    urgent: bool
    requested_ns: int
    not_before_ns: int
    length_ns: int | None
    until_ns: int | None
    began_ns: int | None
    ended_ns: int | None
    end_cause: str
    fencing: int
    version: int
    waits: Place | None = None


class Request(Model):
    """A machine for a person.  ``predicate``: a name, or what it must be like (docs/reference/lab-predicate.md)."""

    predicate: Annotated[str, Field(max_length=4000)]
    reason: Annotated[str, Field(min_length=1, max_length=2000, description="others see it while they wait")]
    length_ns: Nanoseconds | None = Field(default=None, gt=0, description="the lab's usual one if left out")
    not_before_ns: int | None = Field(default=None, ge=0, lt=FOREVER, description="now, if left out or past")
    kind: Literal["reservation", "maintenance", "permanent"] = "reservation"
    team: Annotated[str, Field(max_length=200)] = ""
    boot_source: BootSource | None = Field(
        default=None, description="of one's own; only machines whose owner allows that are given then"
    )
    urgent: bool = Field(default=False, description="before others, for a credit; without one it waits as any other")


@dataclass(frozen=True)
class Taken:
    """A machine for a step.  ``fencing``: of this claim; whoever shows a smaller one for this machine is late."""

    claim_id: int
    machine_id: str
    machine: str
    fencing: int


# -- for the queue: machines of steps ---------------------------------------------------------------------------------


def take_for_step(
    lab: Lab,
    connection: Connection,
    *,
    step_id: int,
    predicate: Predicate,
    holder: str,
    team: str = "",
    reason: str = "",
    length_ns: int | None = None,
    likely: str | None = None,
    rooms: power_budget.Rooms | None = None,
) -> Taken | None:
    """Within a change: give a step a machine that fits, or None.  ``likely``: id of the one that it will be if nothing
    changed meanwhile.  To look at that one is a tenth of the work of looking at all that fit.  ``rooms``: what power
    budgets leave, when many are taken within one change.

    Of several the smallest (memory, then name), so that large ones remain for those that need them.  People who wait
    come first: they were offered the machine when it became free.  The step is told its machine as it is: preparing
    it is a step of its own, if wanted.  Whoever sent it in holds the machine, with its power and console, so owners
    let their steps have what they let them have.
    """
    until = lab.now() + (STEP_NS if length_ns is None else length_ns)
    rooms = power_budget.rooms(connection) if rooms is None else rooms
    who = allowed.of_name(connection, holder, team)
    for found in _free_ones(connection, predicate, likely):
        if not (allowed.lets_steps(found, who) and rooms.lets(found.id)):
            continue
        if not _overlaps(connection, lab.now(), found.id, lab.now(), until):
            rooms.take(found.id)
            row = {
                "kind": "step",
                "state": "active",
                "holder": holder,
                "team": team,
                "predicate": predicate.text,
                "machine_id": found.id,
                "step_id": step_id,
                "reason": reason,
                "requested_ns": lab.now(),
                "not_before_ns": lab.now(),
                "length_ns": length_ns,
                "until_ns": until if length_ns is not None else None,
                "began_ns": lab.now(),
            }
            claim_id = int(connection.execute(insert(claim).values(row)).inserted_primary_key[0])  # type: ignore[index]
            fencing = _began(lab, connection, claim_id, found, step=step_id)
            return Taken(claim_id, found.id, found.name, fencing)
    return None


def release_step(lab: Lab, connection: Connection, step_id: int, cause: str) -> list[str]:
    """Within a change: give back all machines of a step; returns their ids.  Whoever waits gets them at once."""
    asked = select(claim).where(claim.c.step_id == step_id, claim.c.state.in_(HELD), claim.c.kind == "step")
    rows = connection.execute(asked).all()
    for row in rows:
        _end(lab, connection, row, "ended", cause, who="lab")
    if rows:
        offer(lab, connection)
    return [row.machine_id for row in rows]


# -- asking -----------------------------------------------------------------------------------------------------------


def request(lab: Lab, actor: Actor, wanted: Request) -> Claim:
    """Reserve a machine: now, later, or in turn.  Raises Forbidden, Conflict (booked, too many) and PredicateError."""
    actor.need("reserve", "reserve machines")
    limits = lab.settings.reservations
    predicate = Predicate.parse(wanted.predicate)
    if not wanted.reason.strip():
        raise WrongInput("what is it for?", hint="give a reason: others see it while they wait")
    if wanted.boot_source is not None and wanted.kind != "reservation":
        raise WrongInput(
            f"nothing is done with a machine before a {wanted.kind} claim, so it is booted from nothing",
            hint="reserve it without, and boot what you like once it is yours",
        )
    if wanted.team and wanted.team not in actor.teams and not actor.may("anything"):
        raise Forbidden(f"{actor.name} is not in team {wanted.team}", hint="reserve for yourself or a team of yours")

    def change(connection: Connection) -> int:
        rows = _matching(connection, predicate)
        if not rows:
            raise NotFound(f"no machine is {wanted.predicate!r}", hint=search.nearest(connection, predicate))
        length = _length(actor, wanted, limits, rows)
        if wanted.kind == "reservation":
            _need_few(connection, actor, limits)
        start = max(wanted.not_before_ns or 0, lab.now())
        if wanted.not_before_ns is not None and wanted.not_before_ns < lab.now() - _PAST_NS:
            raise WrongInput("that time is past", hint="leave it out to begin now")
        if start - lab.now() > limits.ahead and not actor.may("anything"):
            raise Conflict(f"that is more than {_days(limits.ahead)} ahead", hint="ask again when it is nearer")
        source = wanted.boot_source.model_dump(exclude_none=True) if wanted.boot_source else None
        who = allowed.of_actor(connection, actor, wanted.team, source)
        usable = [row for row in rows if allowed.lets(row, who, length)]
        if not usable:
            raise _why_not_allowed(rows, who, length)
        if predicate.machine_name and start <= lab.now() and wanted.kind == "reservation":
            _need_not_have(connection, actor, usable[0])
        row = {
            "kind": wanted.kind,
            "state": "waiting",
            "holder": actor.name,
            "team": wanted.team,
            "predicate": wanted.predicate,
            "reason": wanted.reason,
            "requested_ns": lab.now(),
            "not_before_ns": start,
            "length_ns": length,
            "boot_source": source,
        }
        if start > lab.now():
            row["machine_id"] = _book(connection, lab.now(), usable, start, length).id
        claim_id = int(connection.execute(insert(claim).values(row)).inserted_primary_key[0])  # type: ignore[index]
        told = {"predicate": wanted.predicate, "reason": wanted.reason, "claim_kind": wanted.kind, "start_ns": start}
        lab.store.event(connection, actor.name, "claim.requested", "claim", claim_id, length_ns=length, **told)
        if wanted.urgent and credits.spend(connection, lab, actor, "claim", claim_id, wanted.reason):
            connection.execute(update(claim).where(claim.c.id == claim_id).values(urgent=True))
        offer(lab, connection)
        return claim_id

    return _written(lab, change)


def _length(actor: Actor, wanted: Request, limits: Limits, rows: Sequence[Row[Any]]) -> int | None:
    """How long it may be, or None: for good.  Raises Forbidden."""
    if wanted.kind in ("permanent", "maintenance"):
        name = Predicate.parse(wanted.predicate).machine_name
        if name is None:
            raise WrongInput(f"a {wanted.kind} claim names one machine", hint="as in host1")
        row = rows[0]
        if not (actor.may("machines") or actor.owns(row.owner, row.team)):
            raise Forbidden(
                f"{row.name} belongs to {row.owner or row.team or 'nobody'}",
                hint=f"only its owner can claim it {'for good' if wanted.kind == 'permanent' else 'for maintenance'}",
            )
        if wanted.kind == "permanent":
            if wanted.length_ns is not None:
                raise WrongInput("a permanent claim has no length", hint="leave the length out")
            return None
        return wanted.length_ns or limits.usual
    length = wanted.length_ns or limits.usual
    longest = max(_longest(policy_of(row), limits) for row in rows)
    if length > longest and not actor.may("anything"):
        raise Forbidden(
            f"{_days(length)} is longer than {_days(longest)}, the longest reservation",
            hint="extend it when it nears its end, or ask the machine's owner",
        )
    return length


def _longest(policy: Policy, limits: Limits) -> int:
    return limits.longest if policy.longest_ns is None else policy.longest_ns


def _days(ns: int) -> str:
    hours = ns / HOUR
    return f"{hours / 24:.3g} days" if hours >= 48 else f"{hours:.3g} h"


def _need_few(connection: Connection, actor: Actor, limits: Limits) -> None:
    mine = and_(claim.c.holder == actor.name, claim.c.kind == "reservation", claim.c.state.in_(OPEN))
    count = connection.scalar(select(func.count()).where(mine)) or 0
    if count >= limits.most and not actor.may("anything"):
        raise Conflict(
            f"{actor.name} has {count} reservations, of {limits.most} at most", hint="release one that is not needed"
        )


def _need_not_have(connection: Connection, actor: Actor, row: Row[Any]) -> None:
    """Who has a machine and asks for it again would wait for themselves.  Raises Conflict."""
    mine = and_(claim.c.machine_id == row.id, claim.c.holder == actor.name, claim.c.state.in_(HELD))
    had = connection.execute(select(claim).where(mine)).first()
    if had is not None:
        raise Conflict(
            f"{row.name} is yours already: reservation {had.id}", hint=f"evenkeel lab extend {row.name} DURATION"
        )


def _why_not_allowed(rows: Sequence[Row[Any]], who: allowed.Asker, length: int | None) -> Forbidden:
    """``rows``: machines that they may not have, all of them."""
    said: dict[str, list[Row[Any]]] = {}
    for row in rows:
        said.setdefault(allowed.why_not(row, who, length), []).append(row)
    told = [f"{_listed([row.name for row in such])} {why}" for why, such in said.items()]
    nearest = [row for row in rows if not allowed.why_not_booted(row, who)]
    if not nearest:
        hint = "`evenkeel lab machines boot.own:yes` lists those that may be"
        if not any(policy_of(row).lends_boot for row in rows):
            hint = (
                "its owner can allow it, where it is installed for each who gets it: "
                f"evenkeel lab machine edit {rows[0].name} --own-boot --no-steps"
            )
        return Forbidden("; ".join(told), hint=hint)
    owners = sorted({row.owner or row.team for row in nearest} - {""})
    return Forbidden("; ".join(told), hint=f"ask {', '.join(owners)}" if owners else "ask an admin of the lab")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


# -- which machine ----------------------------------------------------------------------------------------------------


def _matching(connection: Connection, predicate: Predicate, *conditions: Any) -> Sequence[Row[Any]]:
    """Rows of machines that fit, the smallest first; retired ones never."""
    size = fact.alias()
    memory = and_(size.c.machine_id == machine.c.id, size.c.key == "mem")
    return connection.execute(
        select(machine)
        .select_from(machine.outerjoin(size, memory))
        .where(predicate.where(), machine.c.state != "retired", *conditions)
        .order_by(func.coalesce(size.c.num, 0), machine.c.name)
    ).all()


def _free(connection: Connection, predicate: Predicate, machine_id: str | None = None) -> Sequence[Row[Any]]:
    """Machines that are ready and that nobody holds."""
    conditions = [machine.c.state == "ready", machine.c.id.not_in(held.MACHINES)]
    if machine_id is not None:
        conditions.append(machine.c.id == machine_id)
    return _matching(connection, predicate, *conditions)


def _free_ones(connection: Connection, predicate: Predicate, first: str | None) -> Iterator[Row[Any]]:
    """Those of :func:`_free`; ``first``, if it is one of them, before the others are looked for."""
    if first is not None:
        yield from _free(connection, predicate, first)
    yield from _free(connection, predicate)


def _overlaps(
    connection: Connection, now: int, machine_id: str, start: int, end: int | None, but: int | None = None
) -> Row[Any] | None:
    """The first claim that holds or booked the machine within ``[start, end)``; ``end`` None: for good."""
    begin = func.coalesce(claim.c.began_ns, claim.c.not_before_ns)
    within = [claim.c.machine_id == machine_id, claim.c.state.in_(OPEN), _ends(now) > start]
    if end is not None:
        within.append(or_(begin < end, claim.c.state.in_(HELD)))
    if but is not None:
        within.append(claim.c.id != but)
    return connection.execute(_with_ends(now).where(*within).order_by(begin).limit(1)).first()


def is_free(connection: Connection, now: int, machine_id: str, end: int | None, but: int | None = None) -> bool:
    """Whether nobody holds or booked the machine from now to ``end``, other than the claim ``but``."""
    return _overlaps(connection, now, machine_id, now, end, but) is None


def _book(connection: Connection, now: int, rows: Sequence[Row[Any]], start: int, length: int | None) -> Row[Any]:
    """A machine that nobody has or booked then.  Raises Conflict that tells who does, and until when."""
    end = None if length is None else start + length
    sound = [row for row in rows if row.state not in ("broken", "off")] or list(rows)
    first: Row[Any] | None = None
    for row in sound:
        taken = _overlaps(connection, now, row.id, start, end)
        if taken is None:
            return row
        first = first or taken
    assert first is not None
    from evenkeel.lab.words import moment

    free = min((at for row in sound if (at := _free_from(connection, now, row.id, start, length))), default=None)
    probably = "probably " if free is not None and free[1] else ""
    what = f"{sound[0].name} is" if len(sound) == 1 else f"all {len(sound)} machines that fit are"
    raise Conflict(
        f"{what} taken then; {sound[0].name} by {first.holder} ({first.reason})",
        hint=f"{probably}free for so long from {moment(free[0])} UTC" if free else "nothing is free later either",
    )


def _free_from(
    connection: Connection, now: int, machine_id: str, start: int, length: int | None
) -> tuple[int, bool] | None:
    """When the machine is next free for so long, as far as it is known now, and whether that is an estimate."""
    at, guess = start, False
    while (taken := _overlaps(connection, now, machine_id, at, None if length is None else at + length)) is not None:
        until = _until(taken)
        if until is None:
            return None
        at, guess = max(until, at + 1), guess or _endless(taken)
    return at, guess


def _endless(row: Any) -> bool:
    """Whether it is a step that runs without a time limit: where its end is told, that is an estimate."""
    return row.kind == "step" and row.ended_ns is None and row.until_ns is None and row.length_ns is None


def _ends(now: int) -> ColumnElement[int]:
    """When each claim ends, or is expected to; for good: FOREVER."""
    # Not before now: a step without a limit that goes on for longer than was thought is given as much again.
    # The type of the nought is that of all that comes after it, and to PostgreSQL an hour is too long for an integer.
    gone = case((claim.c.began_ns > now, literal(0, BigInteger)), else_=now - claim.c.began_ns)
    step = case((claim.c.kind == "step", claim.c.began_ns + (gone // STEP_NS + 1) * STEP_NS))
    return func.coalesce(claim.c.until_ns, claim.c.not_before_ns + claim.c.length_ns, step, FOREVER)


def _with_ends(now: int) -> Select[Any]:
    """Claims, each with what :func:`_ends` says of it: for :func:`_until`."""
    return select(claim, _ends(now).label("ends_ns"))


def _until(row: Any) -> int | None:
    """When a claim ends; None: it is for good.  ``row``: of :func:`_with_ends`."""
    return None if row.ends_ns == FOREVER else int(row.ends_ns)


# -- giving -----------------------------------------------------------------------------------------------------------


def offer(lab: Lab, connection: Connection) -> int:
    """Within a change: give free machines to those who wait, in their order.  Returns how many got one.

    A claim that finds nothing does not keep those behind it from what they can use.
    """
    given = 0
    rooms: power_budget.Rooms | None = None
    nothing: set[tuple[Any, ...]] = set()
    some_free: bool | None = None
    for row in _queue(connection, lab.now()):
        rooms = power_budget.rooms(connection) if rooms is None else rooms
        if some_free is None:
            some_free = bool(_free(connection, Predicate.parse("")))
        if not some_free and row.kind != "maintenance" and row.machine_id is None:
            continue
        signature = (row.kind, row.predicate, row.machine_id, row.holder, row.team, row.length_ns, *_brings(row))
        if signature in nothing:
            continue
        if _offer_one(lab, connection, row, rooms):
            given += 1
            some_free = None
        else:
            nothing.add(signature)
    return given


def _queue(connection: Connection, now: int) -> Sequence[Row[Any]]:
    """Waiting claims whose time has come, in the order in which they are served."""
    return connection.execute(
        select(claim)
        .where(claim.c.state == "waiting", claim.c.not_before_ns <= now)
        .order_by(claim.c.urgent.desc(), claim.c.requested_ns, claim.c.id)
    ).all()


def _offer_one(lab: Lab, connection: Connection, row: Row[Any], rooms: power_budget.Rooms) -> bool:
    predicate = Predicate.parse(row.predicate)
    booked = row.machine_id is not None
    now = lab.now()
    until = None if row.length_ns is None else (row.not_before_ns if booked else now) + row.length_ns
    if booked and until is not None and until <= now:
        _end(lab, connection, row, "cancelled", "its time went by before the machine could be given", who="lab")
        return False
    who = allowed.of_name(connection, row.holder, row.team, row.boot_source)
    for found in _candidates(connection, predicate, row):
        if row.kind != "maintenance" and not rooms.lets(found.id):
            continue
        if why_not(connection, row.kind, found, who, row.length_ns):
            continue
        if not _overlaps(connection, now, found.id, now, until, but=row.id):
            _give(lab, connection, row, found, until)
            rooms.take(found.id)
            return True
    return False


def _candidates(connection: Connection, predicate: Predicate, row: Row[Any]) -> Sequence[Row[Any]]:
    if row.kind == "maintenance":
        # What is broken is what needs it.
        return _matching(connection, predicate, machine.c.id.not_in(held.MACHINES))
    found = list(_free(connection, predicate))
    # The machine that was promised first; another one when that is not fit to be given.
    return sorted(found, key=lambda one: one.id != row.machine_id)


def _give(lab: Lab, connection: Connection, row: Row[Any], found: Row[Any], until: int | None) -> None:
    method = how_prepared(connection, found)
    if row.kind != "reservation" or method == "none":
        new = {"state": "active", "machine_id": found.id, "began_ns": lab.now(), "until_ns": until}
        connection.execute(update(claim).where(claim.c.id == row.id).values(new))
        _began(lab, connection, row.id, found)
        return
    new = {"state": "preparing", "machine_id": found.id, "until_ns": until, "version": claim.c.version + 1}
    seq = lab.store.event(
        connection, "lab", "claim.preparing", "claim", row.id, machine=found.name, holder=row.holder, method=method
    )
    connection.execute(update(claim).where(claim.c.id == row.id).values({**new, "fencing": seq}))
    machines.set_state(lab, connection, "lab", found.id, "ready")  # which is: preparing


def _brings(row: Row[Any]) -> tuple[str, ...]:
    """Of which kind what the holder of a claim would have a machine booted from is; empty: they bring nothing."""
    return tuple(row.boot_source or ())


def why_not(connection: Connection, kind: str, found: Any, who: allowed.Asker, length: int | None) -> str:
    """What comes after a machine's name where no claim of this kind may be given it, whoever has it now; else empty."""
    if why := allowed.why_not(found, who, length):
        return why
    return why_not_installed(connection, found) if kind == "reservation" else ""


def why_not_installed(connection: Connection, found: Any) -> str:
    """The same, where somebody else's system is on it and stays; else empty."""
    if not found.system_of or _can_install(machines.address_of(connection, found.id), policy_of(found)):
        return ""
    return f"still has a system that {found.system_of} booted, and nothing to install it from"


def _can_install(address: str | None, policy: Policy) -> bool:
    """Whether the lab can put its owner's system on a machine."""
    return address is not None and bool(address.startswith("virtual:") or policy.image or policy.netboot)


def how_prepared(connection: Connection, row: Any) -> Literal["full", "check", "none"]:
    """What is done with a machine before it is offered: as its owner says, else the most that the lab can do.

    One that may have somebody else's system is installed, whatever its owner says meanwhile."""
    address, policy = machines.address_of(connection, row.id), policy_of(row)
    if address is None:
        return "none"
    able = _can_install(address, policy)
    if row.system_of and able:
        return "full"
    return policy.prepare or ("full" if able else "check")


def _began(lab: Lab, connection: Connection, claim_id: int, found: Row[Any], **told: Any) -> int:
    """The claim is active from now on: its event, whose number is the fencing number, and the machine's state."""
    row = connection.execute(select(claim).where(claim.c.id == claim_id)).one()
    seq = lab.store.event(
        connection,
        "lab",
        "claim.began",
        "claim",
        claim_id,
        machine=found.name,
        machine_id=found.id,
        holder=row.holder,
        until_ns=row.until_ns,
        **told,
    )
    connection.execute(update(claim).where(claim.c.id == claim_id).values(fencing=seq, version=claim.c.version + 1))
    if found.state in ("ready", "preparing", "claimed"):
        machines.set_state(lab, connection, "lab", found.id, "ready")  # which is: claimed
    return seq


def _end(lab: Lab, connection: Connection, row: Any, state: str, cause: str, *, who: str, refund: bool = True) -> None:
    new = {"state": state, "ended_ns": lab.now(), "end_cause": cause, "version": row.version + 1}
    if state == "cancelled" and row.state == "waiting":
        new["machine_id"] = None
    connection.execute(update(claim).where(claim.c.id == row.id).values(new))
    if state == "cancelled" and row.urgent and refund:
        credits.refund(connection, lab, SERVICE, "claim", row.id)
    name = row.machine_id and connection.scalar(select(machine.c.name).where(machine.c.id == row.machine_id))
    told = {"machine": name, "machine_id": row.machine_id, "holder": row.holder, "cause": cause}
    lab.store.event(connection, who, f"claim.{state}", "claim", row.id, **told)
    if row.state in HELD and row.machine_id:
        now = connection.scalar(select(machine.c.state).where(machine.c.id == row.machine_id))
        # While somebody may be installing it the machine is nobody's: the keeper lets it go (:func:`let_go`).
        if now in ("claimed", "preparing") and row.state != "preparing":
            machines.set_state(lab, connection, "lab", row.machine_id, "ready")


# -- while it is prepared: called by the keeper -----------------------------------------------------------------------


def preparing(connection: Connection) -> Sequence[Row[Any]]:
    """Claims whose machine is being prepared."""
    return connection.execute(select(claim).where(claim.c.state == "preparing").order_by(claim.c.id)).all()


def done_with(connection: Connection) -> Sequence[str]:
    """Ids of machines that have an image of a holder's in their drive who has them no more, and that nothing is done
    with now."""
    # As the index has it: SQLite takes it only where the statement says the same.
    asked = select(machine.c.id).where(literal_column("machine.medium != ''"), machine.c.state != "retired")
    full = connection.scalars(asked).all()
    if not full:
        return full
    held_now = select(claim).where(claim.c.machine_id.in_(full), claim.c.state.in_(HELD))
    busy = {row.machine_id for row in connection.execute(held_now) if row.state == "preparing" or row.boot_source}
    return [one for one in full if one not in busy]


def prepared(lab: Lab, claim_id: int, fencing: int, failed: str | None) -> State | None:
    """A machine was prepared for a claim, or why not.  Returns the claim's state; None: it is no longer about this.

    A machine that failed is suspect, with its reason, and the next one is tried at once.
    """

    def change(connection: Connection) -> State | None:
        row = _prepared_for(connection, claim_id, fencing)
        if row is None:
            return None
        found = connection.execute(select(machine).where(machine.c.id == row.machine_id)).one()
        if failed is None and found.state == "preparing":
            booked = row.not_before_ns > row.requested_ns
            until = row.until_ns
            if row.length_ns is not None and not booked:
                until = lab.now() + row.length_ns
                after = _overlaps(connection, lab.now(), found.id, lab.now(), until, but=row.id)
                until = min(until, after.not_before_ns) if after is not None else until
            new = {"state": "active", "began_ns": lab.now(), "until_ns": until}
            connection.execute(update(claim).where(claim.c.id == claim_id).values(new))
            _began(lab, connection, claim_id, found)
            return "active"
        reason = failed or f"it became {found.state} while it was prepared: {found.state_reason}"
        _wait_again(lab, connection, row, reason)
        if failed is not None:
            machines.set_state(lab, connection, "lab", found.id, "suspect", f"was prepared for {row.holder}: {failed}")
        offer(lab, connection)
        return connection.scalar(select(claim.c.state).where(claim.c.id == claim_id))

    return lab.store.write(change)


def _prepared_for(connection: Connection, claim_id: int, fencing: int) -> Row[Any] | None:
    """The claim, if its machine is prepared for it yet, and the same one."""
    row = connection.execute(select(claim).where(claim.c.id == claim_id)).first()
    return row if row is not None and row.state == "preparing" and row.fencing == fencing else None


def _wait_again(lab: Lab, connection: Connection, row: Row[Any], reason: str) -> None:
    """Of a claim whose machine was not the one: it waits for the next."""
    new = {"state": "waiting", "until_ns": None, "machine_id": None, "version": row.version + 1}
    connection.execute(update(claim).where(claim.c.id == row.id).values(new))
    name = connection.scalar(select(machine.c.name).where(machine.c.id == row.machine_id))
    lab.store.event(connection, "lab", "claim.next", "claim", row.id, machine=name, holder=row.holder, reason=reason)


def passed_over(lab: Lab, claim_id: int, fencing: int, why: str) -> State | None:
    """A machine may not be given any more for what the claim asks: the next one is tried, and where there is none that
    it could ever have it ends.  Returns as :func:`prepared` does."""

    def change(connection: Connection) -> State | None:
        row = _prepared_for(connection, claim_id, fencing)
        if row is None:
            return None
        may, _ = _fitting(connection, row)
        if not may or row.machine_id in may:  # it would be given again, and passed over again
            _end(lab, connection, row, "cancelled", why, who="lab")
            return "cancelled"
        _wait_again(lab, connection, row, why)
        offer(lab, connection)  # the keeper lets the machine go
        return connection.scalar(select(claim.c.state).where(claim.c.id == claim_id))

    return lab.store.write(change)


def refused(lab: Lab, claim_id: int, fencing: int, why: str, *, refund: bool) -> State | None:
    """A claim asks for what can be had of no machine: it ends, and the machine is as good as before.

    ``refund``: whether a credit is given back.  Returns as :func:`prepared` does.
    """

    def change(connection: Connection) -> State | None:
        row = _prepared_for(connection, claim_id, fencing)
        if row is None:
            return None
        _end(lab, connection, row, "cancelled", why, who="lab", refund=refund)  # the keeper lets the machine go
        return "cancelled"

    return lab.store.write(change)


def let_go(lab: Lab, busy: Collection[str]) -> None:
    """Machines whose claim ended while they were prepared are free again, but for those that are still worked on."""
    left = select(machine.c.id).where(machine.c.state == "preparing", machine.c.id.not_in(held.MACHINES))

    def change(connection: Connection) -> None:
        free = [number for number in connection.scalars(left).all() if number not in busy]
        for number in free:
            machines.set_state(lab, connection, "lab", number, "ready")
        if free:
            offer(lab, connection)

    with lab.store.read() as connection:
        if not set(connection.scalars(left)) - set(busy):
            return
    lab.store.write(change)


# -- time -------------------------------------------------------------------------------------------------------------


def tick(lab: Lab) -> int | None:
    """End what is over, begin what was booked, offer what is free, remind.  Returns when it is next needed, or None."""
    limits = lab.settings.reservations

    def change(connection: Connection) -> int | None:
        now = lab.now()
        over = and_(claim.c.state.in_(HELD), claim.c.until_ns <= now, claim.c.kind != "step")
        for row in connection.execute(select(claim).where(over)).all():
            _end(lab, connection, row, "ended", "its time is over", who="lab")
        offer(lab, connection)
        _remind(lab, connection, limits)
        return _next(connection, now, limits)

    return lab.store.write(change)


def _remind(lab: Lab, connection: Connection, limits: Limits) -> None:
    now = lab.now()
    active = select(claim).where(claim.c.state == "active", claim.c.kind.in_(("reservation", "permanent")))
    waiting = [row for row in _queue(connection, now) if now - row.requested_ns >= limits.waited]
    wanted = {row.id: _fitting(connection, row)[0] for row in waiting}
    for row in connection.execute(active).all():
        told: dict[str, Any] | None = None
        at = _remind_at(row, limits)
        if at is not None and at <= now and (row.reminded_ns is None or row.reminded_ns < at):
            told = {"kind": "claim.ends-soon", "until_ns": row.until_ns}
        elif now - row.began_ns >= limits.unused_after and now - (row.reminded_ns or 0) >= limits.ask_again:
            waits = [one.holder for one in waiting if row.machine_id in wanted[one.id] and one.holder != row.holder]
            if waits:
                told = {"kind": "claim.wanted", "waits": sorted(set(waits))}
        if told:
            kind = told.pop("kind")
            connection.execute(update(claim).where(claim.c.id == row.id).values(reminded_ns=now))
            name = connection.scalar(select(machine.c.name).where(machine.c.id == row.machine_id))
            lab.store.event(connection, "lab", kind, "claim", row.id, to=row.holder, machine=name, **told)


def _remind_at(row: Any, limits: Limits) -> int | None:
    if row.until_ns is None:
        return None
    return int(row.until_ns - min(limits.remind, (row.until_ns - row.began_ns) // 4))


def _next(connection: Connection, now: int, limits: Limits) -> int | None:
    """When something is due by itself."""
    due = []
    for row in connection.execute(select(claim).where(claim.c.state.in_(OPEN))):
        if row.state == "waiting":
            due += [row.not_before_ns, row.requested_ns + limits.waited]
        elif row.kind != "step" and row.until_ns is not None:
            due.append(row.until_ns)
            if row.state == "active" and (at := _remind_at(row, limits)) is not None:
                due.append(at)
        if row.state == "active" and row.began_ns is not None:
            due += [row.began_ns + limits.unused_after, (row.reminded_ns or 0) + limits.ask_again]
    return min((at for at in due if at > now), default=None)


def _fitting(connection: Connection, row: Row[Any]) -> tuple[frozenset[str], Mapping[str, str]]:
    """Ids of the machines that a waiting claim could have, and of those like them that it may not have, with why."""
    who = allowed.of_name(connection, row.holder, row.team, row.boot_source)
    columns = machine.c.id, machine.c.owner, machine.c.team, machine.c.policy, machine.c.system_of
    like = Predicate.parse(row.predicate).where(), machine.c.state != "retired"
    told = {
        found.id: why_not(connection, row.kind, found, who, row.length_ns)
        for found in connection.execute(select(*columns).where(*like)).all()
    }
    return frozenset(one for one, why in told.items() if not why), {one: why for one, why in told.items() if why}


# -- changing ---------------------------------------------------------------------------------------------------------


def extend(lab: Lab, actor: Actor, claim_id: int, by_ns: int, version: int | None = None) -> Claim:
    """Raises Conflict when somebody waits for the machine or booked it, Forbidden beyond the longest."""
    limits = lab.settings.reservations

    def change(connection: Connection) -> int:
        row, found = _mine(connection, actor, claim_id, version)
        if row.state != "active" or row.until_ns is None or found is None:
            what = "has no end" if row.state == "active" else f"is {row.state}"
            raise Conflict(f"reservation {claim_id} {what}", hint="only what ends can be extended")
        if by_ns <= 0:
            raise WrongInput("extend it by how long?", hint="as in 4h")
        until = row.until_ns + by_ns
        longest = _longest(policy_of(found), limits)
        boss = actor.may("anything") or actor.owns(found.owner, found.team)
        if until - row.began_ns > longest and not boss:
            raise Forbidden(
                f"that would make {_days(until - row.began_ns)}, the longest is {_days(longest)}",
                hint=f"ask {found.owner or found.team or 'an admin of the lab'}",
            )
        taken = _overlaps(connection, lab.now(), found.id, row.until_ns, until, but=row.id)
        if taken is not None:
            raise Conflict(f"{found.name} is booked by {taken.holder} then ({taken.reason})", hint="extend it by less")
        waits = [
            one.holder
            for one in _queue(connection, lab.now())
            if one.holder != row.holder and found.id in _fitting(connection, one)[0]
        ]
        if waits and not boss:
            raise Conflict(
                f"{', '.join(sorted(set(waits)))} {'waits' if len(set(waits)) == 1 else 'wait'} for {found.name}",
                hint="talk to each other, or let it end and get in line",
            )
        new = {"until_ns": until, "version": row.version + 1, "reminded_ns": None}
        connection.execute(update(claim).where(claim.c.id == claim_id).values(new))
        lab.store.event(connection, actor.name, "claim.extended", "claim", claim_id, until_ns=until, by_ns=by_ns)
        return claim_id

    return _written(lab, change)


def release(lab: Lab, actor: Actor, claim_id: int, reason: str = "", version: int | None = None) -> Claim:
    """Give a machine back, or stop waiting.  The machine's owner may take it back too, with a reason."""

    def change(connection: Connection) -> int:
        row, _ = _mine(connection, actor, claim_id, version, owner_too=True)
        if row.state not in OPEN:
            raise Conflict(f"reservation {claim_id} is {row.state} already")
        if row.kind == "step":
            raise Conflict("a step has it", hint="cancel the step")
        if not actor.owns(row.holder, row.team) and not reason.strip():
            raise WrongInput(f"it is {row.holder}'s; why is it taken away?", hint="give a reason, which they will read")
        state = "ended" if row.state == "active" else "cancelled"
        cause = reason.strip() or ("given back" if state == "ended" else "no longer wanted")
        _end(lab, connection, row, state, cause, who=actor.name)
        offer(lab, connection)
        return claim_id

    return _written(lab, change)


def hand_over(lab: Lab, actor: Actor, claim_id: int, to: str, version: int | None = None) -> Claim:
    """Give a reservation to somebody else, with what is left of it."""

    def change(connection: Connection) -> int:
        row, found = _mine(connection, actor, claim_id, version)
        if row.state not in OPEN or row.kind == "step":
            raise Conflict(f"reservation {claim_id} is {row.state if row.kind != 'step' else 'of a step'}")
        known = connection.execute(select(principal.c.name).where(principal.c.name == to)).first()
        if known is None and not people.is_local(to):
            raise NotFound(f"nobody here is called {to!r}", hint="people are known after their first log-in")
        # It is no longer for a team, so what that may have is not what counts; nor what booted it, once it has.
        who = allowed.of_name(connection, to, boot_source=row.boot_source if row.state != "active" else None)
        if found is not None and (why := allowed.why_not(found, who, row.length_ns)):
            raise Forbidden(f"{found.name} {why}", hint=f"ask {found.owner or found.team}")
        new = {"holder": to, "team": "", "version": row.version + 1, "reminded_ns": None}
        connection.execute(update(claim).where(claim.c.id == claim_id).values(new))
        lab.store.event(connection, actor.name, "claim.handed-over", "claim", claim_id, old=row.holder, to=to)
        return claim_id

    return _written(lab, change)


def _mine(
    connection: Connection, actor: Actor, claim_id: int, version: int | None, *, owner_too: bool = False
) -> tuple[Row[Any], Row[Any] | None]:
    """The claim and its machine.  Raises NotFound, Forbidden and Stale."""
    actor.need("reserve", "change reservations")
    row = connection.execute(select(claim).where(claim.c.id == claim_id)).first()
    if row is None:
        raise NotFound(f"there is no reservation {claim_id}", hint="`evenkeel lab waiting` lists them")
    found = connection.execute(select(machine).where(machine.c.id == row.machine_id)).first()
    owns = owner_too and found is not None and (actor.may("machines") or actor.owns(found.owner, found.team))
    if not owns:
        actor.need_own(f"reservation {claim_id}", row.holder, row.team)
    need_version(f"reservation {claim_id}", version, row.version)
    return row, found


# -- reading ----------------------------------------------------------------------------------------------------------


def get(lab: Lab, actor: Actor, claim_id: int) -> Claim:
    actor.need("read", "see reservations")
    with lab.store.read() as connection:
        return _one(lab, connection, claim_id)


def _written(lab: Lab, change: Callable[[Connection], int]) -> Claim:
    """What a claim is after a change.  Read afterwards: positions of all who wait are not the writer's work."""
    claim_id = lab.store.write(change)
    with lab.store.read() as connection:
        return _one(lab, connection, claim_id)


def _one(lab: Lab, connection: Connection, claim_id: int) -> Claim:
    row = connection.execute(select(claim).where(claim.c.id == claim_id)).first()
    if row is None:
        raise NotFound(f"there is no reservation {claim_id}")
    return _models(lab, connection, [row])[0]


def listing(
    lab: Lab,
    actor: Actor,
    *,
    state: State | Literal["open", "held"] | None = "open",
    holder: str | None = None,
    kind: Kind | None = None,
    of_machine: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Claim]:
    """Newest first.  ``state``: one, ``open`` (waiting, preparing, active), ``held``, or None for all."""
    actor.need("read", "see reservations")
    seen = key_of(after, int)
    wanted: list[Any] = []
    if state:
        states: Collection[str] = {"open": OPEN, "held": HELD}.get(state, (state,))
        wanted.append(claim.c.state.in_(states))
    if holder:
        wanted.append(claim.c.holder == holder)
    if kind:
        wanted.append(claim.c.kind == kind)
    if seen:
        wanted.append(claim.c.id < seen[0])
    with lab.store.read() as connection:
        if of_machine:
            wanted.append(claim.c.machine_id == machines.find(connection, of_machine).id)
        rows = connection.execute(select(claim).where(*wanted).order_by(claim.c.id.desc()).limit(limit + 1)).all()
        return page(_models(lab, connection, rows), limit, lambda one: (one.id,))


def history(lab: Lab, actor: Actor, claim_id: int) -> list[Happened]:
    """What happened to a reservation, the newest first."""
    actor.need("read", "see reservations")
    of_claim = and_(event.c.object == "claim", event.c.object_id == str(claim_id))
    with lab.store.read() as connection:
        rows = connection.execute(select(event).where(of_claim).order_by(event.c.seq.desc()).limit(50)).all()
    return [Happened(seq=r.seq, at_ns=r.at_ns, actor=r.actor, type=r.type, data=r.data) for r in rows]


def waiting(lab: Lab, actor: Actor) -> list[Claim]:
    """Who waits for a machine, in the order in which they are served, with position and estimate."""
    actor.need("read", "see reservations")
    with lab.store.read() as connection:
        return _models(lab, connection, _queue(connection, lab.now()))


def _models(lab: Lab, connection: Connection, rows: Iterable[Row[Any]]) -> list[Claim]:
    rows = list(rows)
    ids = {row.machine_id for row in rows if row.machine_id}
    names = machines.names(connection, ids) if ids else {}
    places = _places(lab, connection) if any(row.state == "waiting" for row in rows) else {}
    return [
        Claim(
            **{name: getattr(row, name) for name in Claim.model_fields if name not in ("machine", "waits")},
            machine=names.get(row.machine_id),
            waits=places.get(row.id) if row.state == "waiting" else None,
        )
        for row in rows
    ]


def _places(lab: Lab, connection: Connection) -> dict[int, Place]:
    """Where each waiting claim stands: see :mod:`evenkeel.lab.waiting`."""
    now = lab.now()
    fitting: dict[tuple[Any, ...], tuple[frozenset[str], Mapping[str, str]]] = {}
    wishes = []
    rows = list(_queue(connection, now))
    later = _with_ends(now).where(claim.c.state == "waiting", claim.c.not_before_ns > now)
    booked = connection.execute(later.order_by(claim.c.not_before_ns)).all()
    for row in rows:
        signature = (row.kind, row.predicate, row.holder, row.team, row.length_ns, *_brings(row))
        if signature not in fitting:
            fitting[signature] = _fitting(connection, row)
        wishes.append(Wish(row.id, row.holder, row.length_ns, *fitting[signature]))
    holding = connection.execute(_with_ends(now).where(claim.c.state.in_(HELD))).all()
    known = {
        row.id: (row.name, row.state, row.state_reason)
        for row in connection.execute(select(machine).where(machine.c.state != "retired"))
    }
    wakes = boots.wakes(connection, now)
    rooms = power_budget.rooms(connection)
    may_be = [one for one, (_, state, _) in known.items() if state == "ready" or one in wakes]
    pool = Pool(
        now=now,
        machines=known,
        held={row.machine_id: Hold(row.holder, row.began_ns or now, _until(row), _endless(row)) for row in holding},
        booked=[(row.machine_id, row.holder, row.not_before_ns, _until(row)) for row in booked if row.machine_id],
        used=_used(connection),
        wakes=wakes,
        over={one: Over(why, rooms.excess(one), rooms.gives(one)) for one, why in rooms.over(may_be).items()},
    )
    places = forecast(wishes, pool)
    for row in booked:
        places[row.id] = Place(position=0, likely_ns=row.not_before_ns, at_latest_ns=row.not_before_ns, why=())
    return places


def _used(connection: Connection) -> list[float]:
    """Which part of its time each of the latest reservations was really kept."""
    ended = select(claim.c.began_ns, claim.c.ended_ns, claim.c.length_ns).where(
        claim.c.kind == "reservation", claim.c.state == "ended", claim.c.length_ns > 0, claim.c.began_ns.is_not(None)
    )
    rows = connection.execute(ended.order_by(claim.c.id.desc()).limit(200)).all()
    return [min(1.0, (row.ended_ns - row.began_ns) / row.length_ns) for row in rows]


# -- calendar ---------------------------------------------------------------------------------------------------------


class Span(Model):
    """One claim in the calendar; ``end_ns`` None: without end; ``about``: an estimate, of a step without a limit."""

    claim_id: int
    kind: Kind
    state: State
    holder: str
    reason: str
    start_ns: int
    end_ns: int | None
    about: bool


class Lane(Model):
    """A machine and what is in its calendar, in order."""

    machine: str
    state: str
    spans: tuple[Span, ...]


def calendar(
    lab: Lab, actor: Actor, predicate: str = "", start_ns: int | None = None, end_ns: int | None = None
) -> list[Lane]:
    """All claims that touch ``[start, end)`` (two weeks from now), by machine; machines by name."""
    actor.need("read", "see reservations")
    wanted = Predicate.parse(predicate)
    now = lab.now()
    start = now if start_ns is None else start_ns
    end = start + 14 * 24 * HOUR if end_ns is None else end_ns
    begin = func.coalesce(claim.c.began_ns, claim.c.not_before_ns)
    until = func.coalesce(claim.c.ended_ns, _ends(now))
    with lab.store.read() as connection:
        rows = connection.execute(
            select(machine.c.id, machine.c.name, machine.c.state)
            .where(wanted.where(), machine.c.state != "retired")
            .order_by(machine.c.name)
        ).all()
        inside = [claim.c.machine_id.is_not(None), claim.c.state != "cancelled", begin < end, until > start]
        found: dict[str, list[Span]] = {}
        for row in connection.execute(_with_ends(now).where(*inside).order_by(begin)):
            span = Span(
                claim_id=row.id,
                kind=row.kind,
                state=row.state,
                holder=row.holder,
                reason=row.reason,
                start_ns=row.began_ns or row.not_before_ns,
                end_ns=row.ended_ns or _until(row),
                about=_endless(row),
            )
            found.setdefault(row.machine_id, []).append(span)
    return [Lane(machine=row.name, state=row.state, spans=tuple(found.get(row.id, ()))) for row in rows]
