"""A whole set of guests on a whole fleet, worth as much as can be: who goes where, and how near to the bound that is.

Guests are counted by type and CPUs by number, so the integer program is small; it is exact all the same.  First comes a
greedy answer, then the program; more than :data:`LARGE` hosts are solved in pods, one after the other, and what is left
over then gets a last look at the whole fleet.  Whoever is of higher priority is placed first, whatever it costs the
others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evenkeel.documents.fleet import FleetFunction, Request
from evenkeel.plan.fleet.options import MOST_WAYS, Row, Way, give_by_sort, rows_of, told_apart, ways
from evenkeel.plan.fleet.program import OnGap, Program
from evenkeel.plan.fleet.room import Room, Spot, without
from evenkeel.plan.fleet.table import Costs, Table, rack_of, type_of

#: Hosts that are solved at once; more are solved in pods.
LARGE, POD = 250, 100
#: Rows counted in bytes are divided by this, so that all coefficients are of similar size.
GIB = 1 << 30
_BYTES = {"memory", "pages", "loose memory", "ordinary"}

Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """``max_hosts``, ``power_watts``: of hosts that are used.  ``gap``: how near to the bound is near enough."""

    max_hosts: int | None = None
    power_watts: int | None = None
    time_limit_s: float | None = 60.0
    gap: float = 1e-4


@dataclass
class Packing:
    """``placed``: guest -> (place of its host in the list, where on it)."""

    placed: dict[str, tuple[int, Spot]] = field(default_factory=dict)
    value: int = 0
    bound: float | None = None
    method: str = ""
    cut_short: bool = False


@dataclass(frozen=True)
class Kind:
    """Guests that are alike.  Whoever places some of them takes names from the front."""

    sample: Request
    guests: tuple[Request, ...]


def kinds_of(requests: Iterable[Request]) -> list[Kind]:
    """Guests by type: the highest priority first, then what is worth most, then by name."""
    groups: dict[object, list[Request]] = defaultdict(list)
    for request in sorted(requests, key=lambda one: one.name):
        groups[type_of(request)].append(request)
    found = [Kind(guests[0], tuple(guests)) for guests in groups.values()]
    return sorted(found, key=lambda kind: (-kind.sample.priority, -kind.sample.value, kind.sample.name))


def pack(
    rooms: Sequence[Room],
    requests: Sequence[Request],
    limits: Limits = Limits(),
    *,
    sitting: Sequence[tuple[int, Request]] = (),
    clock: Clock = lambda: 0.0,
    on_gap: OnGap | None = None,
) -> Packing:
    """Place as much as can be.  ``rooms``: what is free now; they are left as they are.

    ``sitting``: (place of the host, guest) of those that are counted into the rooms already, for what groups and limits
    make of them.  ``clock``: seconds, for the time limit of whatever is solved in parts.  Raises AssertionError for a
    solution that cannot be carried out, which is a defect.
    """
    hosts = [room.host for room in rooms]
    kinds = kinds_of(requests)
    started = clock()
    if len(rooms) > LARGE and limits.max_hosts is None and limits.power_watts is None:
        return _pack_pods(rooms, kinds, limits, sitting, clock, on_gap)
    best = Packing()
    levels = sorted({kind.sample.priority for kind in kinds}, reverse=True)
    fixed: dict[int, int] = {}  # kinds of levels that are settled -> how many of each
    for level in levels or [0]:
        known = [kind for kind in kinds if kind.sample.priority >= level]
        left = None if limits.time_limit_s is None else max(1.0, limits.time_limit_s - (clock() - started))
        model = Model(rooms, known, limits, fixed, sitting)
        start = None if fixed or model.capped else first_fit(rooms, known, sitting)
        found = model.solve(left, limits.gap, start, on_gap)
        best = replace(found, cut_short=found.cut_short or best.cut_short)
        fixed = {at: sum(1 for guest in kind.guests if guest.name in best.placed) for at, kind in enumerate(known)}
    _fill(rooms, kinds, best, limits, sitting)
    best.value = sum(kind.sample.value for kind in kinds for guest in kind.guests if guest.name in best.placed)
    best.method = f"integer program over {len(hosts)} hosts"
    return best


def fewest_hosts(
    rooms: Sequence[Room],
    requests: Sequence[Request],
    *,
    sitting: Sequence[tuple[int, Request]] = (),
    time_limit_s: float | None = 60.0,
    on_gap: OnGap | None = None,
) -> Packing:
    """Place everybody on as few hosts as can be; nobody, where not all fit.

    ``value`` is the number of hosts, ``bound`` how many are needed at least.
    """
    kinds = kinds_of(requests)
    everybody = {at: len(kind.guests) for at, kind in enumerate(kinds)}
    model = Model(rooms, kinds, Limits(max_hosts=len(rooms)), everybody, sitting)
    program = model.program
    program.gains = [0.0] * len(program.gains)
    for column in model.used.values():
        program.gains[column] = -1.0
    solution = program.solve(time_limit_s=time_limit_s, on_gap=on_gap)
    if not solution.feasible:
        return Packing(method=f"integer program over {len(rooms)} hosts", cut_short=solution.cut_short)
    placed = model.realise(model.counts(solution.values))
    count = len({at for at, _ in placed.values()} | {at for at, _ in sitting})
    bound = None if not model.complete else -solution.bound
    return Packing(placed, count, bound, f"fewest of {len(rooms)} hosts", solution.cut_short)


def _fill(
    rooms: Sequence[Room], kinds: Sequence[Kind], best: Packing, limits: Limits, sitting: Sequence[tuple[int, Request]]
) -> None:
    """Give guests that were left out a last look: a solver that stops near the bound leaves one or two."""
    left = [guest for kind in kinds for guest in kind.guests if guest.name not in best.placed]
    if not left or limits.max_hosts is not None or limits.power_watts is not None:
        return
    table = table_with(rooms, kinds, best, sitting)
    for guest in left:
        if (found := table.place(guest)) is not None:
            best.placed[guest.name] = found


def table_with(
    rooms: Sequence[Room], kinds: Iterable[Kind], packing: Packing, sitting: Sequence[tuple[int, Request]] = ()
) -> Table:
    """The fleet with all guests of a packing counted in."""
    copies = [room.copy() for room in rooms]
    joined = list(sitting)
    for kind in kinds:
        for guest in kind.guests:
            if guest.name in packing.placed:
                at, spot = packing.placed[guest.name]
                copies[at].take(guest, spot)
                joined.append((at, guest))
    table = Table([room.host for room in rooms], None, copies)
    for at, guest in joined:
        table.join(at, guest)
    return table


def first_fit(rooms: Sequence[Room], kinds: Sequence[Kind], sitting: Sequence[tuple[int, Request]] = ()) -> Packing:
    """Kind after kind, those with functions and many cells first, each on the first host with room."""
    table = Table([room.host for room in rooms], None, [room.copy() for room in rooms])
    for at, guest in sitting:
        table.join(at, guest)
    found = Packing()
    for kind in sorted(kinds, key=lambda kind: (-kind.sample.priority, *_size(kind.sample))):
        key = type_of(kind.sample)
        for guest in kind.guests:
            place = table.place(guest, key)
            if place is None:
                break
            found.placed[guest.name] = place
            found.value += guest.value
    return found


def _size(request: Request) -> tuple[int, int, int, str]:
    vcpus = sum(cell.vcpus for cell in request.cells)
    return -len(request.functions), -len(request.cells), -vcpus, request.name


class Model:
    """The integer program of some hosts and kinds, and the way back from its numbers to guests."""

    def __init__(
        self,
        rooms: Sequence[Room],
        kinds: Sequence[Kind],
        limits: Limits,
        fixed: Mapping[int, int],
        sitting: Sequence[tuple[int, Request]],
    ) -> None:
        self.rooms, self.kinds = rooms, kinds
        self.program = Program()
        self.columns: list[tuple[int, int, Way]] = []  # kind, host, way
        self.ids: list[int] = []  # of these columns in the program, which has others too
        self.rows: dict[tuple[int, Row], int] = {}
        self.complete = True  # every way of every guest is among the columns, so that the bound is one
        self.capped = limits.max_hosts is not None or limits.power_watts is not None
        self.sitting = sitting
        self.used: dict[int, int] = {}  # host -> the column that says whether it is used, where that is counted
        self._build(limits, fixed)

    def _build(self, limits: Limits, fixed: Mapping[int, int]) -> None:
        program = self.program
        loose = _loose(self.rooms, self.kinds)
        demand = []
        for at, kind in enumerate(self.kinds):
            count = float(len(kind.guests))
            demand.append(program.row(low=float(fixed.get(at, 0)), high=count))
        groups: dict[tuple[str, str], int] = {}
        capped = self.capped
        named = any(kind.sample.hosts for kind in self.kinds)
        used = self.used
        known: dict[object, tuple[dict[Row, int], list[list[Way]]]] = {}
        homes: dict[tuple[str, int], int] = {}
        occupied = {at for at, _ in self.sitting}
        for at, guest in self.sitting:
            for group in guest.apart_racks:
                program.settle(_once(program, groups, (group, f"rack {rack_of(self.rooms[at].host)}")))
        for at, room in enumerate(self.rooms):
            like = (room.host.name if named else "", _likeness(room))
            if like not in known:
                known[like] = (rows_of(room, loose), [ways(room, kind.sample, loose) for kind in self.kinds])
            capacity, choices = known[like]
            if capped:
                used[at] = program.column(0.0, 1.0)
                if at in occupied:
                    program.put(program.row(low=1.0, high=1.0), used[at], 1.0)
            for number, found in enumerate(choices):
                kind = self.kinds[number]
                self.complete &= len(found) < MOST_WAYS
                for way in found:
                    most = min(
                        (capacity[row] // amount for row, amount in way.takes if amount), default=len(kind.guests)
                    )
                    if most <= 0:
                        continue
                    column = program.column(float(kind.sample.value), float(min(most, len(kind.guests))))
                    self.columns.append((number, at, way))
                    self.ids.append(column)
                    program.put(demand[number], column, 1.0)
                    for row, amount in way.takes:
                        if not amount:
                            continue
                        unit = GIB if row[0] in _BYTES else 1
                        if (at, row) not in self.rows:
                            self.rows[at, row] = program.row(
                                high=0.0 if capped else capacity[row] / unit, low=float("-inf")
                            )
                            if capped:
                                program.put(self.rows[at, row], used[at], -capacity[row] / unit)
                        program.put(self.rows[at, row], column, amount / unit)
                    for group in kind.sample.apart:
                        program.put(_once(program, groups, (group, f"host {at}")), column, 1.0)
                    for group in kind.sample.apart_racks:
                        program.put(_once(program, groups, (group, f"rack {rack_of(room.host)}")), column, 1.0)
                    for group in kind.sample.together:
                        if (group, at) not in homes:
                            homes[group, at] = program.row(high=0.0)
                        program.put(homes[group, at], column, 1.0)
        at_home = {group: at for at, guest in self.sitting for group in guest.together}
        for (group, at), home_row in sorted(homes.items()):
            count = sum(len(kind.guests) for kind in self.kinds if group in kind.sample.together)
            home = program.column(0.0, 1.0 if at_home.get(group, at) == at else 0.0)
            program.put(home_row, home, -float(count))
            program.put(_once(program, groups, (group, "home")), home, 1.0)
        if limits.max_hosts is not None:
            most = program.row(high=float(limits.max_hosts))
            for column in used.values():
                program.put(most, column, 1.0)
        if limits.power_watts is not None:
            budget = program.row(high=float(limits.power_watts))
            for at, column in used.items():
                program.put(budget, column, float(self.rooms[at].host.power_watts or 0))

    def solve(self, time_limit_s: float | None, gap: float, start: Packing | None, on_gap: OnGap | None) -> Packing:
        values = None if start is None else self._as_columns(start)
        solution = self.program.solve(time_limit_s=time_limit_s, gap=gap, start=values, on_gap=on_gap)
        bound = solution.bound if self.complete else None
        counts = self.counts(solution.values)
        value = sum(self.kinds[number].sample.value * count for (number, _, _), count in counts)
        if start is not None and start.value > value:
            return replace(start, bound=bound, cut_short=solution.cut_short)
        return Packing(self.realise(counts), value, bound, "", solution.cut_short)

    def counts(self, values: Sequence[float]) -> list[tuple[tuple[int, int, Way], int]]:
        if not values:
            return []
        own = [round(values[at]) for at in self.ids]
        return [(column, count) for column, count in zip(self.columns, own, strict=True) if count]

    def _as_columns(self, start: Packing) -> list[float]:
        """A packing as values of the columns; a guest whose way is not among them is left out."""
        index: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], int] = {}
        for column, (number, at, way) in zip(self.ids, self.columns, strict=True):
            index.setdefault((number, at, way.spot.nodes, way.spot.groups), column)
        values = [0.0] * len(self.program.gains)
        for number, kind in enumerate(self.kinds):
            for guest in kind.guests:
                if guest.name in start.placed:
                    at, spot = start.placed[guest.name]
                    nodes = told_apart(kind.sample, spot.cells, spot.nodes)
                    found = index.get((number, at, nodes, spot.groups))
                    if found is not None:
                        values[found] += 1.0
        return values

    def realise(self, counts: Iterable[tuple[tuple[int, int, Way], int]]) -> dict[str, tuple[int, Spot]]:
        placed: dict[str, tuple[int, Spot]] = {}
        next_of = [0] * len(self.kinds)
        functions: dict[int, tuple[FleetFunction, ...]] = {}
        for (number, at, way), count in counts:
            kind = self.kinds[number]
            left = functions.get(at, self.rooms[at].functions)
            for _ in range(count):
                guest = kind.guests[next_of[number]]
                next_of[number] += 1
                addresses = give_by_sort(left, guest, way)
                assert addresses is not None, f"{guest.name}: its functions were counted, and are not there"
                if addresses:
                    left = without(left, addresses)
                placed[guest.name] = (at, replace(way.spot, functions=addresses))
            functions[at] = left
        return placed


def _once(program: Program, rows: dict[tuple[str, str], int], key: tuple[str, str]) -> int:
    if key not in rows:
        rows[key] = program.row(high=1.0)
    return rows[key]


def _loose(rooms: Iterable[Room], kinds: Iterable[Kind]) -> bool:
    """Whether guests that float over whole hosts are about."""
    return any(kind.sample.threads == "overcommit" for kind in kinds) or any(
        room.loose_vcpus or room.loose_memory for room in rooms
    )


def _likeness(room: Room) -> object:
    """Hosts of the same likeness have the same rows and the same ways."""
    host = room.host
    return (
        host.name if host.places else "",
        (host.architecture, host.features, host.networks, host.drained, host.overcommit),
        tuple(
            (
                node.id,
                node.full,
                node.threads,
                node.width,
                node.least,
                node.memory,
                *sorted(node.pages.items()),
                *node.l3,
            )
            for node in room.nodes
        ),
        tuple(tuple(sorted(node.distances.items())) for node in host.nodes),
        room.functions,
        tuple(sorted(room.apart)),
        (room.loose_vcpus, room.loose_memory, room.ordinary),
    )


# -- large fleets -----------------------------------------------------------------------------------------------------


def _pack_pods(
    rooms: Sequence[Room],
    kinds: Sequence[Kind],
    limits: Limits,
    sitting: Sequence[tuple[int, Request]],
    clock: Clock,
    on_gap: OnGap | None,
) -> Packing:
    """Pod after pod, each with its share of the guests that are left; what one does not place, the next ones may."""
    started = clock()
    bound = Estimate(rooms, kinds).bound
    best = Packing(bound=bound)
    if any(kind.sample.apart_racks or kind.sample.together for kind in kinds):
        # Groups reach over pods: guests one by one see all of the fleet.
        best = first_fit(rooms, kinds, sitting)
        best.bound, best.method = bound, f"one after the other over {len(rooms)} hosts, for groups of guests"
        return best
    pods = _pods(rooms)
    waiting = [list(kind.guests) for kind in kinds]
    for number, pod in enumerate(pods):
        offered = [guest for guests in waiting for guest in guests[: -(-len(guests) // (len(pods) - number))]]
        left = None
        if limits.time_limit_s is not None:
            left = max(0.5, (limits.time_limit_s - (clock() - started)) / (len(pods) - number))
        own = replace(limits, time_limit_s=left, gap=max(limits.gap, POD_GAP))
        found = pack([rooms[at] for at in pod], offered, own)
        waiting = [[guest for guest in guests if guest.name not in found.placed] for guests in waiting]
        best.placed.update((name, (pod[at], spot)) for name, (at, spot) in found.placed.items())
        best.cut_short |= found.cut_short
        best.value += found.value
        if on_gap is not None:
            on_gap(clock() - started, float(best.value), bound)
    _fill(rooms, kinds, best, limits, sitting)
    best.value = sum(kind.sample.value for kind in kinds for guest in kind.guests if guest.name in best.placed)
    best.method = f"integer programs over {len(pods)} pods of about {len(pods[0])} hosts"
    return best


#: How near to its bound a pod is solved: nearer costs much time for what the next pods make up.
POD_GAP = 1e-3


def _pods(rooms: Sequence[Room]) -> list[list[int]]:
    """Every pod with its share of each kind of host."""
    count = -(-len(rooms) // POD)
    order = sorted(range(len(rooms)), key=lambda at: (_sort_of(rooms[at]), at))
    return [sorted(order[number::count]) for number in range(count)]


def _sort_of(room: Room) -> str:
    """Hosts that differ only in how full they are have the same."""
    host = room.host
    pools = sorted({f"{one.pool}/{one.type}/{one.network}" for one in host.functions})
    widths = [(node.width, len(host.nodes[at].cores)) for at, node in enumerate(room.nodes)]
    return repr((host.architecture, host.features, host.networks, host.drained, pools, widths))


class Estimate:
    """A bound, and what everything is worth: the linear program of all hosts of a sort taken together.

    Adding hosts up forgets where one ends, so no placement whatever is worth more than ``bound``; and what is scarce on
    a sort of host has a price there.
    """

    def __init__(self, rooms: Sequence[Room], kinds: Sequence[Kind]) -> None:
        self._sorts: dict[str, int] = {}
        self._of = [self._sorts.setdefault(_sort_of(room), len(self._sorts)) for room in rooms]
        self._loose = _loose(rooms, kinds)
        self._samples: dict[int, list[Room]] = {}
        capacity: dict[tuple[int, Row], int] = defaultdict(int)
        most: dict[tuple[int, Row], int] = defaultdict(int)
        known: dict[object, dict[Row, int]] = {}
        seen: dict[int, set[object]] = defaultdict(set)
        for at, room in enumerate(rooms):
            like = _likeness(room)
            if like not in known:
                known[like] = rows_of(room, self._loose)
            for row, amount in known[like].items():
                capacity[self._of[at], row] += amount
                most[self._of[at], row] = max(most[self._of[at], row], amount)
            # A few examples stand for all hosts of a sort: of a full one some ways are not seen.
            if like not in seen[self._of[at]]:
                seen[self._of[at]].add(like)
                self._samples.setdefault(self._of[at], []).append(room)
        program = Program()
        demand = [program.row(high=float(len(kind.guests))) for kind in kinds]
        rows: dict[tuple[int, Row], int] = {}
        for sort, examples in sorted(self._samples.items()):
            for number, kind in enumerate(kinds):
                for way in self._ways(examples, kind.sample):
                    if any(amount > most[sort, row] for row, amount in way.takes):
                        continue
                    column = program.column(float(kind.sample.value), integral=False)
                    program.put(demand[number], column, 1.0)
                    for row, amount in way.takes:
                        unit = GIB if row[0] in _BYTES else 1
                        if (sort, row) not in rows:
                            rows[sort, row] = program.row(high=capacity[sort, row] / unit)
                        program.put(rows[sort, row], column, amount / unit)
        solution = program.solve(relaxed=True)
        self.bound = solution.bound
        self._prices = {key: solution.prices[row] / (GIB if key[1][0] in _BYTES else 1) for key, row in rows.items()}
        self._costs: dict[object, Costs] = {}

    def _ways(self, examples: Sequence[Room], sample: Request) -> list[Way]:
        free = sample.model_copy(update={"hosts": (), "near": None})
        found: dict[object, Way] = {}
        for room in examples[:MOST_EXAMPLES]:
            for way in ways(room, free, self._loose):
                found.setdefault((way.spot.nodes, way.spot.groups, way.sorts), way)
        return list(found.values())

    def price(self, request: Request) -> Costs:
        """For every host what a guest takes away from others there."""
        key = type_of(request)
        if key not in self._costs:
            by_sort = np.zeros(len(self._sorts))
            for sort, examples in self._samples.items():
                costs = [
                    sum(amount * self._prices.get((sort, row), 0.0) for row, amount in way.takes)
                    for way in self._ways(examples, request)
                ]
                by_sort[sort] = min(costs, default=0.0)
            self._costs[key] = np.round(by_sort[self._of], 9)
        return self._costs[key]


#: Hosts of a sort whose ways are looked at.
MOST_EXAMPLES = 4
