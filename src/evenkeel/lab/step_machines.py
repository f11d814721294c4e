"""Machines as the dispatcher sees them: which fit what steps want, and which are free.  In memory, from the database.

Only so that a freed slot needs no search: who really gets a machine is :mod:`evenkeel.lab.claims`' to say.
"""

from __future__ import annotations

from sqlalchemy import select

from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from evenkeel.lab.predicate import Predicate

_machine, _claim = schema.machine.c, schema.claim.c


class StepMachines:
    """``group``: number of what steps want, as in the Ready index."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._predicates: dict[int, Predicate] = {}
        self._fitting: dict[int, frozenset[str]] = {}
        self._free: set[str] = set()
        #: Bits of the groups that want a machine and could have one now.
        self.available = 0

    def want(self, group: int, predicate: str) -> None:
        """Steps of this group want a machine."""
        self._predicates[group] = Predicate.parse(predicate)
        self._look_for(group)
        self._count()

    @property
    def wanting(self) -> int:
        """Bits of the groups that want a machine at all."""
        return sum(1 << group for group in self._predicates)

    @property
    def possible(self) -> int:
        """Bits of those for which the pool has a machine at all."""
        return sum(1 << group for group, ids in self._fitting.items() if ids)

    def fits(self, group: int) -> frozenset[str]:
        """Ids of all machines that the steps of the group may ever have."""
        return self._fitting[group]

    @property
    def free(self) -> frozenset[str]:
        return frozenset(self._free)

    def look(self, *, facts: bool) -> None:
        """Read anew who is free; with ``facts``, also who fits what."""
        held = select(_claim.machine_id).where(
            _claim.state.in_(("preparing", "active")), _claim.machine_id.is_not(None)
        )
        with self._lab.store.read() as connection:
            rows = connection.execute(
                select(_machine.id, _machine.policy).where(_machine.state == "ready", _machine.id.not_in(held))
            )
            self._free = {row.id for row in rows if row.policy.get("steps", True)}
        if facts:
            for group in self._predicates:
                self._look_for(group)
        self._count()

    def _look_for(self, group: int) -> None:
        with self._lab.store.read() as connection:
            ids = connection.scalars(
                select(_machine.id).where(self._predicates[group].where(), _machine.state != "retired")
            )
            self._fitting[group] = frozenset(ids)

    def use(self, group: int) -> None:
        """One of those that fit goes, whichever it will be: for what is chosen until :meth:`look`."""
        self._free.discard(min(self._fitting[group] & self._free))
        self._count()

    def _count(self) -> None:
        self.available = sum(1 << group for group, ids in self._fitting.items() if not ids.isdisjoint(self._free))
