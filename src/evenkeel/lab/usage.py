"""How machines are used: how much of their time was claimed, which nobody wants, which are broken and since when.

Counted from the claim table; a claim that lies partly in the window counts with that part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy import func, or_, select

from evenkeel.documents.base import Model
from evenkeel.lab import search
from evenkeel.lab.actor import Actor
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import DAY
from evenkeel.lab.machines import State
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.schema import claim, machine

#: What is not green: somebody must do something.
NOT_GREEN = ("suspect", "broken", "off")
Order = Literal["name", "idle", "claimed", "broken"]


class Use(Model):
    """One machine within ``[start, end)``.

    ``claimed``: part of the window (or of its life in the lab, if shorter) that somebody had it.  ``idle_ns``: since
    when nobody had it; 0 while somebody has; since it was registered when nobody ever had.  ``not_green_ns``: how long
    it is suspect, broken or off; None: it is not.
    """

    machine: str
    owner: str
    team: str
    state: State
    state_reason: str
    claimed: float
    by_kind: dict[str, int]
    claims: int
    holders: int
    idle_ns: int
    not_green_ns: int | None


class Pool(Model):
    """All machines that were asked about.  ``claimed``: of the time of all of them; ``never``: nobody had them."""

    start_ns: int
    end_ns: int
    machines: tuple[Use, ...]
    claimed: float
    never: int
    not_green: int


def use(
    lab: Lab,
    actor: Actor,
    predicate: str = "",
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
    order: Order = "idle",
) -> Pool:
    """Within the last 30 days, if not told otherwise.  ``order``: those that stand idle longest first, or another."""
    actor.need("read", "see how machines are used")
    matches = search.condition(Predicate.parse(predicate))
    end = min(lab.now(), end_ns) if end_ns is not None else lab.now()
    start = min(end, end - 30 * DAY if start_ns is None else start_ns)
    with lab.store.read() as connection:
        rows = connection.execute(select(machine).where(matches).order_by(machine.c.name)).all()
        overlapping = [
            claim.c.began_ns < end,
            or_(claim.c.ended_ns.is_(None), claim.c.ended_ns > start),
            claim.c.machine_id.is_not(None),
        ]
        found: dict[str, list[Any]] = {}
        for row in connection.execute(select(claim).where(*overlapping)):
            found.setdefault(row.machine_id, []).append(row)
        last: dict[str, Any] = {
            row[0]: row
            for row in connection.execute(
                select(
                    claim.c.machine_id,
                    func.max(claim.c.ended_ns),
                    func.count().filter(claim.c.state == "active"),
                )
                .where(claim.c.began_ns.is_not(None))
                .group_by(claim.c.machine_id)
            )
        }
    uses = [_use(row, found.get(row.id, ()), last.get(row.id), start, end, lab.now()) for row in rows]
    keys: dict[str, Any] = {
        "name": lambda one: one.machine,
        "idle": lambda one: (-one.idle_ns, one.machine),
        "claimed": lambda one: (-one.claimed, one.machine),
        "broken": lambda one: (-(one.not_green_ns or 0), one.machine),
    }
    return Pool(
        start_ns=start,
        end_ns=end,
        machines=tuple(sorted(uses, key=keys[order])),
        claimed=sum(one.claimed for one in uses) / len(uses) if uses else 0.0,
        never=sum(row.id not in last for row in rows),
        not_green=sum(one.not_green_ns is not None for one in uses),
    )


def _use(row: Any, claims: Iterable[Any], last: Any, start: int, end: int, now: int) -> Use:
    claims = list(claims)
    begin = max(start, row.registered_ns)
    by_kind: dict[str, int] = {}
    for one in claims:
        part = min(end, one.ended_ns or end) - max(start, one.began_ns)
        by_kind[one.kind] = by_kind.get(one.kind, 0) + max(0, part)
    held = last is not None and last[2]
    idle_since = last[1] if last is not None and last[1] else row.registered_ns
    return Use(
        machine=row.name,
        owner=row.owner,
        team=row.team,
        state=row.state,
        state_reason=row.state_reason,
        claimed=min(1.0, sum(by_kind.values()) / (end - begin)) if end > begin else 0.0,
        by_kind=by_kind,
        claims=len(claims),
        holders=len({one.holder for one in claims}),
        idle_ns=0 if held else max(0, now - idle_since),
        not_green_ns=now - row.state_since_ns if row.state in NOT_GREEN else None,
    )


def mine_not_green(lab: Lab, actor: Actor) -> list[Use]:
    """Machines that the actor or a team of the actor owns and that are suspect, broken or off; the longest first."""
    actor.need("read", "see machines")
    owned = [machine.c.owner == actor.name]
    if actor.teams:
        owned.append(machine.c.team.in_(actor.teams))
    with lab.store.read() as connection:
        rows = connection.execute(select(machine).where(or_(*owned), machine.c.state.in_(NOT_GREEN))).all()
    uses = [_use(row, (), None, lab.now(), lab.now(), lab.now()) for row in rows]
    return sorted(uses, key=lambda one: (-(one.not_green_ns or 0), one.machine))
