"""Machines as the dispatcher sees them: which fit what steps want, and which are free.  In memory, from the database.

Only so that a freed slot needs no search: who really gets a machine is :mod:`evenkeel.lab.claims`' to say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from evenkeel.lab import allowed, schema
from evenkeel.lab.allowed import Asker
from evenkeel.lab.energy import OFF_REASON
from evenkeel.lab.lab import Lab
from evenkeel.lab.predicate import Predicate

_machine, _claim = schema.machine.c, schema.claim.c


class _Want(NamedTuple):
    """What the steps of a group want, and whose they are: owners let some have what they do not let others."""

    predicate: str
    person: str
    team: str


class StepMachines:
    """``group``: number of what steps want, as in the Ready index."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._wants: dict[int, _Want] = {}
        self._predicates: dict[str, Predicate] = {}
        #: By predicate the machines that are so, whoever may have them; by group those that its steps may have.
        self._like: dict[str, frozenset[str]] = {}
        self._fitting: dict[int, frozenset[str]] = {}
        #: Machines that not everybody's steps may have; None: to be read anew, as who is who.
        self._kept: dict[str, Any] | None = None
        self._askers: dict[tuple[str, str], Asker] = {}
        self._free: set[str] = set()
        self._down: frozenset[str] = frozenset()
        self._retired: frozenset[str] = frozenset()
        #: Machines that were switched off while idle.
        self.asleep: frozenset[str] = frozenset()
        #: Bits of the groups that want a machine and could have one now.
        self.available = 0

    def want(self, group: int, predicate: str, person: str, team: str) -> None:
        """Steps of this group want a machine, for this person or team."""
        self._wants[group] = _Want(predicate, person, team)
        with self._lab.store.read() as connection:
            if predicate not in self._predicates:
                self._predicates[predicate] = Predicate.parse(predicate)
                self._look_for(connection, predicate)
            self._let(connection, group)
        self._count()

    @property
    def wanting(self) -> int:
        """Bits of the groups that want a machine at all."""
        return sum(1 << group for group in self._wants)

    @property
    def possible(self) -> int:
        """Bits of those for which the pool has a machine that could be given, now or when it is free."""
        return sum(1 << group for group, ids in self._fitting.items() if ids - self._down)

    def like(self, group: int) -> frozenset[str]:
        """Ids of all machines that are as the steps of the group want."""
        return self._like[self._wants[group].predicate]

    def fits(self, group: int) -> frozenset[str]:
        """Ids of those that the steps of the group may ever have: their owners let them."""
        return self._fitting[group]

    @property
    def free(self) -> frozenset[str]:
        return frozenset(self._free)

    @property
    def down(self) -> frozenset[str]:
        """Ids of machines that are broken, suspect or off, but for those that sleep: they wake when they are wanted."""
        return self._down

    def look(self, *, facts: bool, people: bool = False) -> None:
        """Read anew who is free; with ``facts``, also who fits what and may have it; with ``people``, who they are."""
        held = select(_claim.machine_id).where(
            _claim.state.in_(("preparing", "active")), _claim.machine_id.is_not(None)
        )
        with self._lab.store.read() as connection:
            ready = select(_machine.id).where(_machine.state == "ready", _machine.id.not_in(held))
            self._free = set(connection.scalars(ready))
            unfit = select(_machine.id, _machine.state, _machine.state_reason)
            rows = connection.execute(unfit.where(_machine.state.in_(("suspect", "broken", "off", "retired")))).all()
            self.asleep = frozenset(row.id for row in rows if (row.state, row.state_reason) == ("off", OFF_REASON))
            retired = frozenset(row.id for row in rows if row.state == "retired")
            self._down = frozenset(row.id for row in rows) - self.asleep - retired
            # One that goes, or comes back, is told by its state alone.
            facts, self._retired = facts or retired != self._retired, retired
            if facts:
                self._kept = None
            if facts or people:
                self._askers = {}
            # A predicate may ask for the state, which is no fact and changes with every claim.
            stale = {
                text
                for text, predicate in self._predicates.items()
                if facts or any(term.key == "state" for term in predicate.terms())
            }
            for text in stale:
                self._look_for(connection, text)
            for group, want in self._wants.items():
                if people or want.predicate in stale:
                    self._let(connection, group)
        self._count()

    def _look_for(self, connection: Connection, predicate: str) -> None:
        fits = select(_machine.id).where(self._predicates[predicate].where(), _machine.state != "retired")
        self._like[predicate] = frozenset(connection.scalars(fits))

    def _let(self, connection: Connection, group: int) -> None:
        """Which machines the steps of a group may have."""
        want = self._wants[group]
        if self._kept is None:
            asked = select(_machine.id, _machine.owner, _machine.team, _machine.policy)
            rows = connection.execute(asked.where(_machine.state != "retired"))
            self._kept = {row.id: row for row in rows if not allowed.lets_all_steps(row)}
        whose = want.person, want.team
        if whose not in self._askers:
            self._askers[whose] = allowed.of_name(connection, *whose)
        like, who = self._like[want.predicate], self._askers[whose]
        barred = {one for one in like & self._kept.keys() if not allowed.lets_steps(self._kept[one], who)}
        self._fitting[group] = like - barred

    def use(self, group: int) -> None:
        """One of those that fit goes, whichever it will be: for what is chosen until :meth:`look`."""
        self._free.discard(min(self._fitting[group] & self._free))
        self._count()

    def _count(self) -> None:
        self.available = sum(1 << group for group, ids in self._fitting.items() if not ids.isdisjoint(self._free))
