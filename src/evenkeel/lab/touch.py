"""Who may touch a machine: whoever holds it now, whoever owns it, and whoever keeps the pool.  Power and console ask.

To look is for all who may read; to touch a machine that somebody else works on is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select

from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, Forbidden, NotFound
from evenkeel.lab.held import STATES as HELD


@dataclass(frozen=True)
class Touched:
    """The row of a machine, and who holds it (``""``: nobody); ``system_of``, ``medium``: see
    :data:`evenkeel.lab.schema.machine`."""

    id: str
    name: str
    state: str
    owner: str
    team: str
    enclosure_id: str | None
    policy: dict[str, Any]
    holder: str
    holder_team: str
    system_of: str = ""
    medium: str = ""


def find(connection: Connection, machine: str) -> Touched:
    """By name or id.  Raises NotFound."""
    table, claim = schema.machine, schema.claim
    row = connection.execute(select(table).where(or_(table.c.name == machine, table.c.id == machine))).first()
    if row is None:
        raise NotFound(f"no machine {machine}", hint="evenkeel lab machines lists them")
    held = select(claim.c.holder, claim.c.team).where(claim.c.machine_id == row.id, claim.c.state.in_(HELD))
    holder, team = connection.execute(held).first() or ("", "")
    policy = dict(row.policy)
    theirs = row.system_of, row.medium
    return Touched(row.id, row.name, row.state, row.owner, row.team, row.enclosure_id, policy, holder, team, *theirs)


def may_touch(actor: Actor, machine: Touched) -> bool:
    return (
        actor.may("machines")
        or actor.owns(machine.owner, machine.team)
        or (bool(machine.holder) and actor.owns(machine.holder, machine.holder_team))
    )


def need_touch(actor: Actor, machine: Touched, what: str) -> None:
    """Raises Forbidden, which says who holds it."""
    if may_touch(actor, machine):
        return
    if machine.holder:
        raise Forbidden(f"{actor.name} may not {what}: {machine.holder} holds it", hint=f"ask {machine.holder}")
    raise Forbidden(f"{actor.name} may not {what}: it is not reserved", hint=f"evenkeel lab reserve {machine.name}")
