"""Large fleets: pods of hosts one after the other, then groups of hosts anew as long as that gains enough.  Pure.

A pod gets its share of the guests that are left, and what it does not place the next ones may.  Pods that are alike are
solved once.  Then (a search in a large neighbourhood) the hosts with the most room left are emptied and packed again,
with all guests that have no place yet to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evenkeel.documents.fleet import Request
from evenkeel.plan.fleet.bound import bound_of, sort_of, whole_bound_of
from evenkeel.plan.fleet.model import Clock, Counts, Kind, Limits, Model, Packing, alike, fill, first_fit, realise
from evenkeel.plan.fleet.options import Way
from evenkeel.plan.fleet.program import OnGap
from evenkeel.plan.fleet.room import Room, Spot

#: Hosts of a pod, and of a group that is packed again.
POD = 100
#: How near to its bound a pod is solved: nearer costs much time for what the next pods make up.
POD_GAP = 1e-3
#: How near to the bound a large fleet is near enough.
NEAR = 1e-3
#: Seconds for each unlike host that a nearer bound may take.
BOUND_S = 5e-3
#: Groups packed again in a row that gained nothing, after which no more are.
MOST_IDLE = 3


def pack_pods(
    rooms: Sequence[Room],
    kinds: Sequence[Kind],
    limits: Limits,
    sitting: Sequence[tuple[int, Request]],
    clock: Clock,
    on_gap: OnGap | None,
) -> Packing:
    """As :func:`evenkeel.plan.fleet.pack.pack`.  The highest priority first, then the next on what that left."""
    started = clock()
    bound = bound_of(rooms, kinds)
    if any(kind.sample.apart_racks or kind.sample.together for kind in kinds):
        # Groups reach over pods: guests one by one see all of the fleet.
        method = f"one after the other over {len(rooms)} hosts, for groups of guests"
        return replace(first_fit(rooms, kinds, sitting), bound=bound, method=method)
    best = Packing(bound=bound)
    left = list(rooms)
    levels = sorted({kind.sample.priority for kind in kinds}, reverse=True)
    for level in levels:
        own = [kind for kind in kinds if kind.sample.priority == level]
        fleet = _Fleet(left, own, limits, clock, started, best.value, bound, on_gap)
        fleet.pods()
        if level == levels[-1] and bound is not None and fleet.worth_a_look():
            best.bound = fleet.bound = min(bound, whole_bound_of(rooms, kinds) or bound)
        fleet.again()
        found = Packing(realise(left, own, fleet.counts()))
        fill(left, own, found)
        best.placed.update(found.placed)
        best.value += found.value
        best.cut_short |= fleet.cut_short
        best.method = fleet.method
        if len(best.placed) < sum(len(kind.guests) for kind in kinds):
            left = _taken(left, own, found.placed)
    return best


def _taken(rooms: Sequence[Room], kinds: Iterable[Kind], placed: Mapping[str, tuple[int, Spot]]) -> list[Room]:
    """The hosts with these guests on them."""
    left = list(rooms)
    for kind in kinds:
        for guest in kind.guests:
            if guest.name in placed:
                at, spot = placed[guest.name]
                if left[at] is rooms[at]:
                    left[at] = rooms[at].copy()
                left[at].take(guest, spot)
    return left


@dataclass(frozen=True)
class _Answer:
    """Of one pod: (kind, place in the pod, way) and how many; how many of each kind that is."""

    counts: Counts
    used: tuple[int, ...]


class _Fleet:
    """Who is where, counted.  ``on``: of each host the guests on it."""

    def __init__(
        self,
        rooms: Sequence[Room],
        kinds: Sequence[Kind],
        limits: Limits,
        clock: Clock,
        started: float,
        before: int,
        bound: float | None,
        on_gap: OnGap | None,
    ) -> None:
        self.rooms, self.kinds = rooms, kinds
        self.numbers = alike(rooms, kinds)
        self.limits, self.clock, self.started = limits, clock, started
        self.before, self.bound, self.on_gap = before, bound, on_gap
        self.on: list[list[tuple[int, Way, int]]] = [[] for _ in rooms]
        self.waiting = [len(kind.guests) for kind in kinds]
        self.value = 0
        self.cut_short = False
        self.method = ""

    def counts(self) -> Counts:
        return [((number, at, way), count) for at, here in enumerate(self.on) for number, way, count in here]

    def pods(self) -> None:
        """Everybody is offered a place once."""
        pods = _pods(self.rooms)
        known: dict[tuple[int, ...], _Answer] = {}
        for number, pod in enumerate(pods):
            like = tuple(self.numbers[at] for at in pod)
            answer = known.get(like)
            if answer is None or any(used > left for used, left in zip(answer.used, self.waiting, strict=True)):
                offered = [-(-left // (len(pods) - number)) for left in self.waiting]
                answer = known[like] = self._solve(pod, offered, None, len(pods) - number)
            self._put(pod, answer)
        self.method = f"integer programs over {len(pods)} pods of about {len(pods[0])} hosts"

    def again(self) -> None:
        """Hosts with room left are packed anew, with whoever waits."""
        rounds = idle = 0
        tried: set[tuple[int, ...]] = set()
        while self._far() and any(self.waiting) and idle < MOST_IDLE:
            order = sorted(range(len(self.rooms)), key=lambda at: (-self._room_left(at), at))
            groups = [tuple(sorted(order[at : at + POD])) for at in range(0, len(order), POD)]
            group = next((group for group in groups if group not in tried), None)
            if group is None or self._seconds_left() == 0:
                break
            tried.add(group)
            rounds += 1
            idle = 0 if self._again(group) else idle + 1
        if rounds:
            self.method += f", {rounds} groups of them packed again"

    def _again(self, group: Sequence[int]) -> bool:
        """Whether packing these hosts anew gained something; otherwise all is as it was."""
        start: Counts = [
            ((number, place, way), count) for place, at in enumerate(group) for number, way, count in self.on[at]
        ]
        offered = list(self.waiting)
        for (number, _, _), count in start:
            offered[number] += count
        before = sum(self.kinds[number].sample.value * count for (number, _, _), count in start)
        answer = self._solve(group, offered, start, 1)
        after = sum(kind.sample.value * used for kind, used in zip(self.kinds, answer.used, strict=True))
        if after <= before:
            return False
        for at in group:
            for number, _, count in self.on[at]:
                self.waiting[number] += count
            self.on[at] = []
        self.value -= before
        self._put(group, answer)
        return True

    def _solve(self, group: Sequence[int], offered: Sequence[int], start: Counts | None, parts: int) -> _Answer:
        """Some hosts, with so many guests of each kind."""
        there = [number for number, count in enumerate(offered) if count]
        kinds = [Kind(self.kinds[number].sample, self.kinds[number].guests[: offered[number]]) for number in there]
        rooms = [self.rooms[at] for at in group]
        model = Model(rooms, kinds, Limits(), {}, ())
        given = None
        if start is not None:
            place = {number: at for at, number in enumerate(there)}
            given = model.as_columns(((place[number], at, way), count) for (number, at, way), count in start)
        left = self._seconds_left()
        limit = None if left is None else max(0.5, left / parts)
        solution = model.program.solve(time_limit_s=limit, gap=max(self.limits.gap, POD_GAP), start=given)
        self.cut_short |= solution.cut_short
        counts = model.counts(solution.values) if solution.feasible else []
        used = [0] * len(self.kinds)
        for (number, _, _), count in counts:
            used[there[number]] += count
        return _Answer([((there[number], at, way), count) for (number, at, way), count in counts], tuple(used))

    def _put(self, group: Sequence[int], answer: _Answer) -> None:
        for (number, place, way), count in answer.counts:
            self.on[group[place]].append((number, way, count))
            self.waiting[number] -= count
            self.value += self.kinds[number].sample.value * count
        if self.on_gap is not None:
            best = float(self.before + self.value)
            self.on_gap(self.clock() - self.started, best, best if self.bound is None else self.bound)

    def worth_a_look(self) -> bool:
        """Whether the bound is far, and there is time for a nearer one."""
        left = self._seconds_left()
        return self._far() and (left is None or left > BOUND_S * len(set(self.numbers)))

    def _far(self) -> bool:
        if self.bound is None:
            return True
        return self.before + self.value < (1 - max(NEAR, self.limits.gap)) * self.bound

    def _room_left(self, at: int) -> int:
        taken = sum(amount * count for _, way, count in self.on[at] for row, amount in way.takes if row[0] == "threads")
        return sum(node.threads for node in self.rooms[at].nodes) - taken

    def _seconds_left(self) -> float | None:
        if self.limits.time_limit_s is None:
            return None
        return max(0.0, self.limits.time_limit_s - (self.clock() - self.started))


def _pods(rooms: Sequence[Room]) -> list[list[int]]:
    """Every pod with its share of each kind of host."""
    count = -(-len(rooms) // POD)
    sorts = [sort_of(room) for room in rooms]
    order = sorted(range(len(rooms)), key=lambda at: (sorts[at], at))
    return [order[number::count] for number in range(count)]
