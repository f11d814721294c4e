"""Which waiting step goes next.  Pure: no database, no clock; the dispatcher, forecasts and the simulation share it.

The order, first difference decides:

1. urgent, within credit (:mod:`evenkeel.lab.credits` says what is within);
2. the team that used less, then the person that used less: slot time, decayed with a half-life, compared by level
   (powers of two), so that about equal counts as equal;
3. a final submission before work in progress;
4. the older submission, then the lower number of the step.

A level falls by one with each half-life in which nothing is used, so nobody starves: whoever used 2**n quanta is back
among the lightest after n half-lives.  A person without a team counts as a team of one.

:class:`Ready` is an index for a hundred thousand steps.  Steps that want the same of an agent and of a machine are one
*group*; who offers something says which groups it fits by a bit mask, worked out once.  Choosing looks at one step of
each group, so it costs the same with ten waiting steps as with a hundred thousand.  Who fits many groups would have as
many to look at, so the first steps of all are kept in order too: of many, one that fits is found soon.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

MINUTE_NS = 60 * 10**9
DAY_NS = 24 * 60 * MINUTE_NS
#: Half of what was used is forgotten after so long.
HALF_LIFE_NS = 2 * DAY_NS
#: Use below this is no difference: about one build.
QUANTUM_NS = 30 * MINUTE_NS
#: Kind of submission -> rank; what is not named here ranks as work in progress.
KINDS = {"final": 0, "wip": 1}
ANY = -1


def rank(kind: str) -> int:
    return KINDS.get(kind, KINDS["wip"])


class Shares:
    """Decayed use of slots (nanoseconds) by team and person.  ``weights``: team -> its share, 1 when not named.

    Kept as if all of it had been used at one time: what is used ``t`` later counts 2**(t / half-life) times.  So
    nothing has to be touched for decay, and it is forgotten at the same pace for all.
    """

    def __init__(
        self,
        *,
        half_life_ns: int = HALF_LIFE_NS,
        quantum_ns: int = QUANTUM_NS,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.half_life_ns = half_life_ns
        self.quantum_ns = quantum_ns
        self.weights = dict(weights or {})
        self.version = 0
        #: Of the latest charge.
        self.latest_ns = 0
        self._epoch_ns: int | None = None
        self._teams: dict[str, float] = {}
        self._people: dict[tuple[str, str], float] = {}

    def copy(self) -> Shares:
        """An independent one, for looking ahead."""
        twin = Shares(half_life_ns=self.half_life_ns, quantum_ns=self.quantum_ns, weights=self.weights)
        twin._epoch_ns, twin.latest_ns = self._epoch_ns, self.latest_ns
        twin._teams, twin._people = dict(self._teams), dict(self._people)
        return twin

    def charge(self, person: str, team: str, used_ns: int, at_ns: int) -> None:
        """``used_ns`` of a slot, used at ``at_ns``.  A start is charged with what it will probably take; its end with
        the difference (may be negative), again with the time of the start."""
        if self._epoch_ns is None:
            self._epoch_ns = at_ns
        self.latest_ns = max(self.latest_ns, at_ns)
        halvings = (at_ns - self._epoch_ns) / self.half_life_ns
        if halvings > 500:  # a float ends at 2**1024
            self._rebase(at_ns)
            halvings = 0.0
        amount = used_ns * 2.0**halvings
        name = team_of(person, team)
        self._teams[name] = max(0.0, self._teams.get(name, 0.0) + amount)
        who = (name, person)
        self._people[who] = max(0.0, self._people.get(who, 0.0) + amount)
        self.version += 1

    def _rebase(self, at_ns: int) -> None:
        factor = self._now(at_ns)
        self._teams = {name: use * factor for name, use in self._teams.items()}
        self._people = {who: use * factor for who, use in self._people.items()}
        self._epoch_ns = at_ns

    def _now(self, now_ns: int) -> float:
        if self._epoch_ns is None:
            return 1.0
        # Before its latest charge there is nothing to ask for.
        return float(2.0 ** -((max(now_ns, self.latest_ns) - self._epoch_ns) / self.half_life_ns))

    def used(self, person: str, team: str, now_ns: int) -> tuple[float, float]:
        """Decayed use of the team (by its weight) and of the person in it, nanoseconds."""
        name, factor = team_of(person, team), self._now(now_ns)
        team_use = self._teams.get(name, 0.0) * factor / self.weights.get(name, 1.0)
        return team_use, self._people.get((name, person), 0.0) * factor

    def levels(self, person: str, team: str, now_ns: int) -> tuple[int, int]:
        """What is compared: 0 below one quantum, then one more for each doubling."""
        team_use, person_use = self.used(person, team, now_ns)
        return _level(team_use / self.quantum_ns), _level(person_use / self.quantum_ns)

    def falls_ns(self, person: str, team: str, now_ns: int) -> int | None:
        """When the next of both levels falls if nothing is used until then.  None: both are 0."""
        levels = zip(self.used(person, team, now_ns), self.levels(person, team, now_ns), strict=True)
        left = [math.log2(use / self.quantum_ns) - (level - 1) for use, level in levels if level]
        return now_ns + int(min(left) * self.half_life_ns) + 1 if left else None

    def all(self, now_ns: int) -> dict[tuple[str, str], float]:
        """(team, person) -> decayed use in nanoseconds; a person without a team has the team ``~person``."""
        factor = self._now(now_ns)
        return {who: use * factor for who, use in self._people.items()}


def team_of(person: str, team: str) -> str:
    return team or f"~{person}"


def _level(quanta: float) -> int:
    return int(math.log2(quanta)) + 1 if quanta >= 1 else 0


_Entry = tuple[int, int, int]
_Head = tuple[tuple[int, int], _Entry, int]
_URGENT = (-1, -1)
_FEW = 8
#: To look at the head of one group takes about so many times as long as to pass one in the order of all.
_LOOK = 8
#: More groups than this that have another first step are not put into the order one by one.
_SORT = 64


@dataclass(eq=False, slots=True)
class _Owner:
    """What one person has waiting: by group a heap of (rank, submitted, step)."""

    person: str
    team: str
    number: int
    levels: tuple[int, int]
    falls_ns: int = 0
    heaps: dict[int, list[_Entry]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    owner: _Owner
    group: int
    entry: _Entry


class Ready:
    """All steps that could start, by group and person.  Whoever starts and ends steps charges them by :meth:`charge`
    (charging ``shares`` directly is seen too, and costs a look at everybody).  Not for two threads at once.
    """

    def __init__(self, shares: Shares | None = None) -> None:
        self.shares = shares or Shares()
        self._groups: dict[Hashable, int] = {}
        self._signatures: list[Hashable] = []
        self._counts: list[int] = []
        #: By group a heap of (levels, head of an owner's heap, number of the owner); stale ones go when they come up.
        self._heads: list[list[_Head]] = []
        #: By group, who has something in it.
        self._within: list[set[_Owner]] = []
        #: By group its first step, None: nothing waits there; the same in order; and groups where that may be untrue.
        self._firsts: list[_Head | None] = []
        self._order: list[tuple[_Head, int]] = []
        self._moved: set[int] = set()
        self._places: dict[int, _Place] = {}
        # Urgent work has no fair share: one owner for all of it.
        self._urgent = _Owner("", "", 0, _URGENT)
        self._numbered = [self._urgent]
        self._owners: dict[tuple[str, str], _Owner] = {}
        self._teams: dict[str, list[_Owner]] = {}
        self._falls: list[tuple[int, int]] = []
        self._now_ns = self.shares.latest_ns
        self._version = self.shares.version
        #: Bits of the groups in which something waits.
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, step: int) -> bool:
        return step in self._places

    # -- groups ---------------------------------------------------------------------------------------------------

    def group(self, signature: Hashable) -> int:
        """Number of the group of all steps that want ``signature``; bit ``1 << number`` in a mask."""
        number = self._groups.get(signature)
        if number is None:
            number = self._groups[signature] = len(self._signatures)
            self._signatures.append(signature)
            self._counts.append(0)
            self._heads.append([])
            self._within.append(set())
            self._firsts.append(None)
        return number

    @property
    def signatures(self) -> list[Hashable]:
        """By number of the group.  Grows; masks are worked out anew for the new ones only."""
        return self._signatures

    def count(self, group: int) -> int:
        """Steps that wait in it."""
        return self._counts[group]

    # -- coming and going -----------------------------------------------------------------------------------------

    def add(
        self,
        step: int,
        group: int,
        *,
        person: str,
        team: str = "",
        kind: str = "wip",
        submitted_ns: int,
        urgent: bool = False,
    ) -> None:
        """``urgent``: and within credit.  A step that is in already is moved to what is said now."""
        if step in self._places:
            self.drop(step)
        owner = self._urgent if urgent else self._owner(person, team)
        entry = (0 if urgent else rank(kind), submitted_ns, step)
        self._places[step] = _Place(owner, group, entry)
        self._counts[group] += 1
        self.waiting |= 1 << group
        heap = owner.heaps.get(group)
        if heap is None:
            heap = owner.heaps[group] = []
            self._within[group].add(owner)
        heapq.heappush(heap, entry)
        if heap[0] is entry:
            self._head(group, owner, entry)

    def drop(self, step: int) -> bool:
        """It started, or was cancelled.  False when it was not in."""
        place = self._places.pop(step, None)
        if place is None:
            return False
        group, owner = place.group, place.owner
        self._counts[group] -= 1
        if not self._counts[group]:
            self.waiting &= ~(1 << group)
        heap = owner.heaps[group]
        if heap[0] == place.entry:
            while heap and not self._is_true(owner, group, heap[0]):
                heapq.heappop(heap)
            if heap:
                self._head(group, owner, heap[0])
            else:
                del owner.heaps[group]
                self._within[group].discard(owner)
                self._moved.add(group)
        return True

    def _head(self, group: int, owner: _Owner, entry: _Entry) -> None:
        """This is what the owner has first in the group now.  Before more of the heap is stale than true, it is made
        anew: whoever chooses must not meet hundreds of stale ones at once."""
        self._moved.add(group)
        heads, within = self._heads[group], self._within[group]
        if len(heads) <= 2 * len(within) + _FEW:
            heapq.heappush(heads, (owner.levels, entry, owner.number))
            return
        heads[:] = [(one.levels, one.heaps[group][0], one.number) for one in within]
        heapq.heapify(heads)

    def _is_true(self, owner: _Owner, group: int, entry: _Entry) -> bool:
        """Whether an entry of a heap still says where its step is."""
        place = self._places.get(entry[2])
        return place is not None and place.owner is owner and place.group == group and place.entry == entry

    def _owner(self, person: str, team: str) -> _Owner:
        name = team_of(person, team)
        owner = self._owners.get((name, person))
        if owner is None:
            owner = _Owner(person, team, len(self._numbered), (0, 0))
            self._owners[name, person] = owner
            self._numbered.append(owner)
            self._teams.setdefault(name, []).append(owner)
            self._weigh(owner)
        return owner

    # -- who used how much ----------------------------------------------------------------------------------------

    def charge(self, person: str, team: str, used_ns: int, at_ns: int) -> None:
        """:meth:`Shares.charge`; who changes level by it is sorted in anew."""
        self._advance(at_ns)
        before = self.shares.levels(person, team, self._now_ns)
        self.shares.charge(person, team, used_ns, at_ns)
        self._version += 1
        after = self.shares.levels(person, team, self._now_ns)
        if before[0] != after[0]:
            for owner in self._teams.get(team_of(person, team), ()):
                self._weigh(owner)
        elif before != after:
            owner_ = self._owners.get((team_of(person, team), person))
            if owner_ is not None:
                self._weigh(owner_)

    def _weigh(self, owner: _Owner) -> None:
        levels = self.shares.levels(owner.person, owner.team, self._now_ns)
        falls_ns = self.shares.falls_ns(owner.person, owner.team, self._now_ns)
        if falls_ns is not None and falls_ns != owner.falls_ns:
            owner.falls_ns = falls_ns
            heapq.heappush(self._falls, (falls_ns, owner.number))
        if levels != owner.levels:
            owner.levels = levels
            for group, heap in owner.heaps.items():
                self._head(group, owner, heap[0])

    def _advance(self, now_ns: int) -> None:
        """Levels fall as time passes."""
        self._now_ns = max(self._now_ns, now_ns)
        if self._version != self.shares.version:
            self._version = self.shares.version
            for owner in self._owners.values():
                self._weigh(owner)
        while self._falls and self._falls[0][0] <= self._now_ns:
            falls_ns, number = heapq.heappop(self._falls)
            owner = self._numbered[number]
            if owner.falls_ns == falls_ns:
                self._weigh(owner)

    # -- choosing -------------------------------------------------------------------------------------------------

    def best(self, mask: int, now_ns: int) -> int | None:
        """The step that goes next among those of the groups in ``mask``; it stays in until dropped."""
        if self._version != self.shares.version or (self._falls and self._falls[0][0] <= now_ns):
            self._advance(now_ns)
        mask &= self.waiting
        many = mask.bit_count()
        if _LOOK * many * many > len(self._order):
            self._settle()
            for first, group in self._order:
                if mask >> group & 1:
                    return first[1][2]
        found: _Head | None = None
        while mask:
            low = mask & -mask
            mask ^= low
            first_ = self._first(low.bit_length() - 1)
            if first_ is not None and (found is None or first_ < found):
                found = first_
        return found[1][2] if found else None

    def _first(self, group: int) -> _Head | None:
        """What goes first in a group; heads that are no longer true are thrown away."""
        heads, numbered = self._heads[group], self._numbered
        while heads:
            head = heads[0]
            owner = numbered[head[2]]
            if owner.levels == head[0] and (heap := owner.heaps.get(group)) and heap[0] == head[1]:
                return head
            heapq.heappop(heads)
        return None

    def settle(self) -> None:
        """Do now what the next choice would do first: for who waits for something anyway.  What is chosen is the same.

        Nothing where no choice has needed the order of all groups yet."""
        if self._order:
            self._settle()

    def _settle(self) -> None:
        """The order of all groups is true again."""
        moved, self._moved = self._moved, set()
        firsts, order = self._firsts, self._order
        others: list[tuple[int, _Head | None]] = []
        for group in moved:
            now = self._first(group)
            if now != firsts[group]:
                others.append((group, now))
        if len(others) > _SORT:
            gone = {group for group, _ in others}
            kept = [one for one in order if one[1] not in gone]
            # Two lists in order, one behind the other: to sort these is to merge them.
            kept += sorted((now, group) for group, now in others if now is not None)
            kept.sort()
            self._order = kept
        for group, now in others:
            before, firsts[group] = firsts[group], now
            if len(others) > _SORT:
                continue
            if before is not None:
                del order[bisect.bisect_left(order, (before, group))]
            if now is not None:
                bisect.insort(order, (now, group))

    def group_of(self, step: int) -> int:
        return self._places[step].group

    def is_urgent(self, step: int) -> bool:
        return self._places[step].owner is self._urgent

    def in_order(self, now_ns: int, mask: int = ANY) -> Iterator[int]:
        """All waiting steps as they would go if nobody's use changed meanwhile: for lists that people read."""
        self._advance(now_ns)
        waiting = [(place.owner.levels, place.entry) for place in self._places.values() if mask >> place.group & 1]
        yield from (entry[2] for _, entry in sorted(waiting))
