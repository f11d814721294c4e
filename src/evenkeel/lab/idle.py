"""How long slots of agents stood idle while a step waited that some agent could take, and why: the number that the
batch lock hides.

Causes: ``machine`` (the step wants a machine of the pool and none is free), ``fit`` (what waits fits other agents
only), ``drained`` (the agent takes nothing, because somebody said so), ``dispatch`` (it could have started: our fault).
Steps that wait for other steps wait for no agent and do not count.
"""

from __future__ import annotations

from sqlalchemy import func, select

from evenkeel.documents.base import Model
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor
from evenkeel.lab.lab import Lab

HOUR_NS = 3600 * 10**9
#: Looked at so often, written so often.
_LOOK_NS = 100 * 10**6
_WRITE_NS = 10 * 10**9
#: The row of an hour that has the time of all slots.
ALL = "all"


class IdleMeter:
    """Adds up slot time by cause, between two looks as it was at the earlier one.

    ``at_ns``: by the steady clock, for how long; ``now_ns``: by the wall clock, for which hour it is."""

    def __init__(self) -> None:
        self._looked_ns: int | None = None
        self._written_ns: int | None = None
        self._slots = 0
        self._idle: dict[str, int] = {}
        self._sums: dict[tuple[int, str], int] = {}

    def due(self, at_ns: int) -> bool:
        return self._looked_ns is None or at_ns - self._looked_ns >= _LOOK_NS

    def note(self, at_ns: int, now_ns: int, slots: int, idle: dict[str, int]) -> None:
        """From now on there are so many slots, and so many of them idle by cause."""
        if self._looked_ns is not None and at_ns > self._looked_ns and self._slots:
            took, hour = at_ns - self._looked_ns, now_ns - now_ns % HOUR_NS
            for cause, number in ((ALL, self._slots), *self._idle.items()):
                self._sums[hour, cause] = self._sums.get((hour, cause), 0) + number * took
        self._looked_ns, self._slots, self._idle = at_ns, slots, dict(idle)

    def rows(self, at_ns: int) -> list[dict[str, int | str]]:
        """What to add to table ``idle``, now and then; nothing in between."""
        if not self._sums or (self._written_ns is not None and at_ns - self._written_ns < _WRITE_NS):
            return []
        self._written_ns = at_ns
        rows: list[dict[str, int | str]] = [
            {
                "hour_ns": hour,
                "cause": cause,
                "idle_ns": 0 if cause == ALL else took,
                "slots_ns": took if cause == ALL else 0,
            }
            for (hour, cause), took in self._sums.items()
        ]
        self._sums = {}
        return rows


class Idle(Model):
    """``share``: of all slot time, idle while something waited; None before there was any slot."""

    since_ns: int
    slots_ns: int
    idle_ns: int
    by_cause: dict[str, int]
    share: float | None


def idle_while_waiting(lab: Lab, actor: Actor, *, since_ns: int) -> Idle:
    """Since an hour's begin at or before ``since_ns``."""
    actor.need("read", "see statistics")
    table = schema.idle.c
    since_ns -= since_ns % HOUR_NS
    with lab.store.read() as connection:
        rows = connection.execute(
            select(table.cause, func.sum(table.idle_ns), func.sum(table.slots_ns))
            .where(table.hour_ns >= since_ns)
            .group_by(table.cause)
        ).all()
    slots = sum(int(row[2]) for row in rows)
    by_cause = {row[0]: int(row[1]) for row in rows if row[0] != ALL}
    idle = sum(by_cause.values())
    return Idle(
        since_ns=since_ns, slots_ns=slots, idle_ns=idle, by_cause=by_cause, share=idle / slots if slots else None
    )
