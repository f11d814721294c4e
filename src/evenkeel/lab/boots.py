"""How long machines take from being switched on until they answer, and which of them sleep until they are wanted.

Learned of what boots alike, in table ``duration``.  Says what is known and switches nothing: that is
:mod:`evenkeel.lab.power`'s, and :mod:`evenkeel.lab.energy`'s to ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import Connection, func, insert, select, update

from evenkeel.lab import held, schema
from evenkeel.lab.durations import quantile

#: The reason of the state ``off`` of a machine that sleeps.
ASLEEP = "switched off while idle, as its owner allows; it wakes when it is wanted"
#: In table ``duration``, beside kinds of steps; none of them has a space.
_KIND = "machine boot"
#: Of each type.
_KEPT = 30
#: So many boots are enough to know a type; a disk check may still take so many times as long.
_FEW, _SLOWER = 3, 3
_LEAST_S, _UNKNOWN_S = 60.0, 900.0
#: Of a type that nobody here has seen boot: what servers mostly take, only to foretell by.
_USUAL_NS = 300 * 10**9


@dataclass(frozen=True)
class Wake:
    """Of a machine that sleeps, nanoseconds from now.  ``likely``: until it answers, one for each boot that is known of
    its type, sorted, never empty; ``at_latest``: then it is given up; ``learned``: whether any boot is known."""

    likely: tuple[int, ...]
    at_latest: int
    learned: bool

    @property
    def median(self) -> int:
        return quantile(self.likely, 0.5)


#: How long a boot may be said to take, seconds.
BootSeconds = Annotated[float, Field(gt=0, le=7200)]


class _Given(BaseModel):
    """What is read here of ``power`` in a machine's policy, :class:`evenkeel.lab.power.Policy`."""

    boot_s: BootSeconds | None = None


def type_of(connection: Connection, machine_id: str, name: str) -> str:
    """What boots alike: its product, else itself."""
    fact = schema.fact.c
    asked = select(fact.text).where(fact.machine_id == machine_id, fact.key == "product").limit(1)
    return connection.scalar(asked) or f"machine {name}"


def learn(connection: Connection, type_: str, boot_s: float) -> None:
    """Within a change."""
    table = schema.duration
    here = (table.c.kind == _KIND) & (table.c.key == type_)
    row = connection.execute(select(table.c.latest, table.c["count"]).where(here)).first()
    latest = [*(row.latest if row else []), round(boot_s * 1e9)][-_KEPT:]
    values = {"latest": latest, "count": (row[1] if row else 0) + 1}
    if row:
        connection.execute(update(table).where(here).values(values))
    else:
        connection.execute(insert(table).values(values | {"kind": _KIND, "key": type_}))


def known(connection: Connection, type_: str) -> list[int]:
    """Nanoseconds that the latest boots took."""
    table = schema.duration.c
    return connection.scalar(select(table.latest).where(table.kind == _KIND, table.key == type_)) or []


def deadline_s(known_ns: Sequence[int]) -> float:
    """Seconds from a command until the machine answers again, at most: learned of its type, or 15 minutes."""
    return max(_LEAST_S, _SLOWER * max(known_ns) / 1e9) if len(known_ns) >= _FEW else _UNKNOWN_S


def wakes(connection: Connection, now: int) -> dict[str, Wake]:
    """By id, all machines that sleep, but for those in maintenance, which wake for nobody.  One that is being switched
    on already has less before it."""
    machine, power = schema.machine.c, schema.power_event.c
    asked = select(machine.id, machine.name, machine.policy).where(
        machine.state == "off", machine.state_reason == ASLEEP, machine.id.not_in(held.MACHINES)
    )
    asleep = connection.execute(asked).all()
    if not asleep:
        return {}
    waking = select(power.machine_id, func.max(power.at_ns)).where(power.result == "running", power.action == "on")
    began = {row[0]: row[1] for row in connection.execute(waking.group_by(power.machine_id))}
    found = {}
    for row in asleep:
        boots = known(connection, type_of(connection, row.id, row.name))
        gone = max(0, now - began.get(row.id, now))
        # Of boots that took longer than this one already does.
        left = sorted(took - gone for took in boots if took > gone) or [max(0, _USUAL_NS - gone)]
        latest = max(left[-1], round((_given_s(row.policy) or deadline_s(boots)) * 1e9) - gone)
        found[row.id] = Wake(tuple(left), latest, bool(boots))
    return found


def _given_s(policy: dict[str, Any] | None) -> float | None:
    """What cannot be read is as if nothing were given: it is told whoever switches the machine."""
    try:
        return _Given.model_validate((policy or {}).get("power", {})).boot_s
    except ValidationError:
        return None
