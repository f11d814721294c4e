"""Machines as the dispatcher sees them: which fit what steps want, and which are free.  In memory, from the database.

Only so that a freed slot needs no search: who really gets a machine is :mod:`evenkeel.lab.claims`' to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, select

from evenkeel.lab import allowed, boots, held, power_budget, schema
from evenkeel.lab.allowed import Asker
from evenkeel.lab.boots import Wake
from evenkeel.lab.forecast_power import Power
from evenkeel.lab.lab import Lab
from evenkeel.lab.predicate import Predicate

_machine, _memory = schema.machine.c, schema.fact.alias()
_READY = select(_machine.id).where(_machine.state == "ready", _machine.id.not_in(held.MACHINES))
_UNFIT = select(_machine.id, _machine.state, _machine.state_reason).where(
    _machine.state.in_(("suspect", "broken", "off", "retired"))
)
#: The smallest first, as :func:`evenkeel.lab.claims.take_for_step` gives them.
_SMALLEST_FIRST = (
    select(_machine.id)
    .select_from(schema.machine.outerjoin(_memory, and_(_memory.c.machine_id == _machine.id, _memory.c.key == "mem")))
    .order_by(func.coalesce(_memory.c.num, 0), _machine.name)
)


class _Want(NamedTuple):
    """What the steps of a group want.  ``whose``: see :meth:`StepMachines.whose`."""

    predicate: str
    whose: int


class StepMachines:
    """``group``: number of what steps want, as in the Ready index.

    Sets of machines are numbers, one bit a machine, the smallest machine first; sets of groups as well.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._wants: dict[int, _Want] = {}
        self._predicates: dict[str, Predicate] = {}
        self._of_state: set[str] = set()  # those that ask for the state, which is no fact and changes with every claim
        self._looked = False  # the first look reads all at once
        self._ids: list[str] = []
        self._place: dict[str, int] = {}
        #: By predicate the machines that are so, whoever may have them; by group those that its steps may have.
        self._like: dict[str, int] = {}
        self._fitting: dict[int, int] = {}
        #: By place of a machine the groups whose steps may have it.
        self._groups: list[int] = []
        #: Machines that not everybody's steps may have; None: to be read anew.
        self._kept: list[Any] | None = None
        #: Of those, the ones that may have what a holder booted for a system.
        self.lent: frozenset[str] = frozenset()
        #: By person and team, which of those theirs may not have; and the numbers of such sets.
        self._barred: dict[tuple[str, str], int] = {}
        self._sets: list[frozenset[str]] = []
        self._free: dict[int, int] = {}  # place of a machine: its groups
        self._free_bits = 0
        self._down: frozenset[str] = frozenset()
        self._retired: frozenset[str] = frozenset()
        #: Machines that were switched off while idle, with how long each takes to wake.
        self.wakes: Mapping[str, Wake] = {}
        #: Machines that could be had but for the power budget of their site, with why.
        self.over: dict[str, str] = {}
        self._rooms = power_budget.Rooms({}, {})
        #: Bits of the groups that want a machine at all; of those that could have one now (None: to be counted).
        self.wanting = 0
        self._available: int | None = 0

    def whose(self, person: str, team: str) -> int:
        """A number that is the same for all from whose steps owners keep the same machines; most often for everybody.

        :meth:`look` says when it may be another.  It depends on no predicate, so that steps of many people that want
        the same are one group."""
        number = self._barred.get((person, team))
        if number is None:
            with self._lab.store.read() as connection:
                number = self._bar(connection, person, team)
        return number

    def _bar(self, connection: Connection, person: str, team: str) -> int:
        if self._kept is None:
            asked = select(_machine.id, _machine.owner, _machine.team, _machine.policy, _machine.system_of)
            self._kept = [row for row in connection.execute(asked) if not allowed.lets_all_steps(row)]
            self.lent = frozenset(row.id for row in self._kept if row.system_of)
        who: Asker = allowed.of_name(connection, person, team)
        barred = frozenset(row.id for row in self._kept if not allowed.lets_steps(row, who))
        if barred not in self._sets:
            self._sets.append(barred)
        number = self._barred[person, team] = self._sets.index(barred)
        return number

    def want(self, group: int, predicate: str, whose: int) -> None:
        """Steps of this group want a machine, for such people."""
        self._wants[group] = _Want(predicate, whose)
        self.wanting |= 1 << group
        if predicate not in self._predicates:
            parsed = self._predicates[predicate] = Predicate.parse(predicate)
            if any(term.key == "state" for term in parsed.terms()):
                self._of_state.add(predicate)
            self._like[predicate] = 0
            if self._looked:
                with self._lab.store.read() as connection:
                    self._look_for(connection, predicate)
        self._let(group)

    @property
    def available(self) -> int:
        """Bits of the groups that want a machine and could have one now."""
        if self._available is None:
            self._available = reduce(or_, self._free.values(), 0)
        return self._available

    @property
    def possible(self) -> int:
        """Bits of those for which the pool has a machine that could be given, now or when it is free."""
        down = self._bits(self._down)
        return reduce(or_, (groups for place, groups in enumerate(self._groups) if not down >> place & 1), 0)

    def like(self, group: int) -> frozenset[str]:
        """Ids of all machines that are as the steps of the group want."""
        return self._named(self._like[self._wants[group].predicate])

    def fits(self, group: int) -> frozenset[str]:
        """Ids of those that the steps of the group may ever have: their owners let them."""
        return self._named(self._fitting[group])

    @property
    def fit_any(self) -> int:
        """Bits of the groups whose steps may ever have a machine."""
        return reduce(or_, self._groups, 0)

    @property
    def free(self) -> frozenset[str]:
        """Ids of machines that steps could get now."""
        return self._named(self._free_bits)

    @property
    def power(self) -> Power:
        """What machines count for at sites that have a power budget."""
        return self._rooms.foreseen()

    @property
    def masks(self) -> dict[str, int]:
        """Of each machine the bits of the groups whose steps may have it, whoever has it now."""
        return dict(zip(self._ids, self._groups, strict=True))

    @property
    def down(self) -> frozenset[str]:
        """Ids of machines that are broken, suspect or off, but for those that sleep: they wake when they are wanted."""
        return self._down

    def look(self, *, facts: bool, people: bool = False) -> bool:
        """Read anew who is free; with ``facts``, also who fits what and may have it; with ``people``, who they are.

        True: somebody's :meth:`whose` is another, so their steps belong to other groups."""
        moved = False
        with self._lab.store.read() as connection:
            ready = connection.scalars(_READY).all()
            rows = connection.execute(_UNFIT).all()
            asleep = any((row.state, row.state_reason) == ("off", boots.ASLEEP) for row in rows)
            self.wakes = boots.wakes(connection, self._lab.now()) if asleep else {}
            self._rooms = power_budget.rooms(connection)
            self.over = self._rooms.over((*ready, *self.wakes))
            self._rooms.watch(one for one in ready if one not in self.over)
            retired = frozenset(row.id for row in rows if row.state == "retired")
            self._down = frozenset(row.id for row in rows) - self.wakes.keys() - retired
            # One that goes, or comes back, is told by its state alone.
            facts, self._retired = facts or retired != self._retired, retired
            if facts:
                self._ids = list(connection.scalars(_SMALLEST_FIRST))
                self._place = {one: place for place, one in enumerate(self._ids)}
            if (facts and self._looked) or people:  # before the first look it was read a moment ago
                self._kept = None
                before, self._barred = self._barred, {}
                for whose in before:
                    moved |= self._bar(connection, *whose) != before[whose]
            self._looked = True
            stale = self._predicates.keys() if facts else self._of_state
            for text in stale:
                self._look_for(connection, text)
        self._set_free(0)
        if stale:
            again = [group for group, want in self._wants.items() if want.predicate in stale]
            others = ~reduce(or_, (1 << group for group in again), 0)
            self._groups = [0] * len(self._ids) if facts else [groups & others for groups in self._groups]
            for group in again:
                self._let(group)
        elif facts:
            self._groups = [0] * len(self._ids)
        self._set_free(self._bits(one for one in ready if one not in self.over))
        return moved

    def _look_for(self, connection: Connection, predicate: str) -> None:
        fits = select(_machine.id).where(self._predicates[predicate].where(), _machine.state != "retired")
        self._like[predicate] = self._bits(connection.scalars(fits))

    def _let(self, group: int) -> None:
        """Which machines the steps of a group may have."""
        want = self._wants[group]
        found = self._fitting[group] = self._like[want.predicate] & ~self._bits(self._sets[want.whose])
        bit = 1 << group
        for place in _places(found):
            self._groups[place] |= bit
            if place in self._free:
                self._free[place] |= bit
        self._available = None

    def use(self, group: int) -> str | None:
        """The machine that a step of the group would be given now; for what is chosen until :meth:`look` it is not free
        any more."""
        fits = self._fitting[group] & self._free_bits
        if not fits:
            return None
        found = self._ids[(fits & -fits).bit_length() - 1]
        beyond = self._rooms.take(found)
        self.over.update((one, self._rooms.why(one)) for one in beyond)
        for one in (found, *beyond):
            place = self._place[one]
            if self._free.pop(place, None) is not None:
                self._free_bits ^= 1 << place
        self._available = None
        return found

    def _set_free(self, bits: int) -> None:
        self._free_bits = bits
        self._free = {place: self._groups[place] for place in _places(bits)}
        self._available = None

    def _bits(self, ids: Any) -> int:
        packed = bytearray(len(self._ids) // 8 + 1)
        for one in ids:
            place = self._place.get(one)
            if place is not None:
                packed[place >> 3] |= 1 << (place & 7)
        return int.from_bytes(packed, "little")

    def _named(self, bits: int) -> frozenset[str]:
        return frozenset(self._ids[place] for place in _places(bits))


def _places(bits: int) -> Iterator[int]:
    """Numbers of the bits that are set, from the lowest."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
