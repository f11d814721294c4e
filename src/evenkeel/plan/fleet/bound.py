"""What no placement can exceed, and what everything is worth: linear programs over a whole fleet.  Pure.

A bound that is said is one: where not every way of a guest was looked at, there is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evenkeel.documents.fleet import FleetFunction, Request
from evenkeel.plan.fleet.model import Kind, Limits, Model, alike, floats_about, unit_of
from evenkeel.plan.fleet.options import MOST_WAYS, Row, Way, rows_of, sorts_of, ways
from evenkeel.plan.fleet.program import Program
from evenkeel.plan.fleet.room import Room
from evenkeel.plan.fleet.table import Costs, type_of

#: Unlike hosts whose linear program is solved as a whole; of more, so many give the prices that bound all of them.
WHOLE = 300
#: Unlike hosts that are priced at once.
PART = 100
#: Of whole guests: hosts of the sample that prices are looked for on, hosts of one program, nodes of its search tree.
SAMPLE, FEW, MOST_NODES = 48, 8, 200
#: Planes that are cut at most, and how near to the least bound the prices are near enough.
MOST_PLANES, NEAR_ENOUGH = 40, 5e-4
#: Prices see no order: that those who come first fill the node of a scarce function costs nothing there.  So much of
#: what the functions of a host are worth is added for a guest that wants none of them; among equals, it decides.
BESIDE = 1e-3


def sort_of(room: Room) -> str:
    """Hosts that differ only in how full they are have the same."""
    host = room.host
    pools = sorted({f"{one.pool}/{one.type}/{one.network}/{one.node}" for one in host.functions})
    nodes = [
        (
            room_node.id,
            room_node.width,
            len(node.cores),
            len(room_node.l3),
            sorted(room_node.pages),
            sorted(node.distances.items()),
        )
        for room_node, node in zip(room.nodes, host.nodes, strict=True)
    ]
    return repr((host.architecture, host.features, host.networks, host.drained, host.overcommit, pools, nodes))


class Estimate:
    """A bound, and what everything is worth: the linear program of all hosts of a sort taken together.

    Adding hosts up forgets where one ends, so no placement whatever is worth more than ``bound`` (None: some guest has
    more ways than are looked at); and what is scarce on a sort of host has a price there.  ``times``: of a demand that
    is so many times as large, so that what will be scarce has a price before it is.
    """

    def __init__(self, rooms: Sequence[Room], kinds: Sequence[Kind], times: int = 1) -> None:
        sorts: dict[str, int] = {}
        self._of = [sorts.setdefault(sort_of(room), len(sorts)) for room in rooms]
        self._loose = floats_about(rooms, kinds)
        self._samples = _samples(rooms, self._of, len(sorts))
        complete = True
        capacity: dict[tuple[int, Row], int] = defaultdict(int)
        most: dict[tuple[int, Row], int] = defaultdict(int)
        known: dict[int, dict[Row, int]] = {}
        for sort, room, like in zip(self._of, rooms, alike(rooms, ()), strict=True):
            if like not in known:
                known[like] = rows_of(_ungrouped(room), self._loose)
            for row, amount in known[like].items():
                capacity[sort, row] += amount
                most[sort, row] = max(most[sort, row], amount)
        program = Program()
        demand = [program.row(high=float(len(kind.guests) * times)) for kind in kinds]
        rows: dict[tuple[int, Row], int] = {}
        for sort, example in enumerate(self._samples):
            for number, kind in enumerate(kinds):
                found = self._ways(example, kind.sample)
                complete &= len(found) < MOST_WAYS
                for way in found:
                    if any(amount > most[sort, row] for row, amount in way.takes):
                        continue
                    column = program.column(float(kind.sample.value), integral=False)
                    program.put(demand[number], column, 1.0)
                    for row, amount in way.takes:
                        if (sort, row) not in rows:
                            rows[sort, row] = program.row(high=capacity[sort, row] / unit_of(row))
                        program.put(rows[sort, row], column, amount / unit_of(row))
        solution = program.solve(relaxed=True)
        self.bound = solution.bound if complete else None
        self._prices = {key: solution.prices[row] / unit_of(key[1]) for key, row in rows.items()}
        hosts = Counter(self._of)
        #: Of each sort what the functions of one host are worth.
        self._functions: list[dict[Row, float]] = [{} for _ in self._samples]
        for (sort, row), price in self._prices.items():
            if row[0] == "function":
                self._functions[sort][row] = price * capacity[sort, row] / hosts[sort]
        self._costs: dict[object, Costs] = {}

    def _ways(self, example: Room, sample: Request) -> list[Way]:
        return ways(example, sample.model_copy(update={"hosts": (), "near": None}), self._loose)

    def price(self, request: Request) -> Costs:
        """For every host what a guest takes away from others there."""
        key = type_of(request)
        if key not in self._costs:
            by_sort = np.zeros(len(self._samples))
            for sort, example in enumerate(self._samples):
                found = self._ways(example, request)
                costs = [sum(amount * self._prices.get((sort, row), 0.0) for row, amount in way.takes) for way in found]
                wanted = {row for way in found for row, _ in way.sorts}
                beside = sum(worth for row, worth in self._functions[sort].items() if row not in wanted)
                by_sort[sort] = min(costs, default=0.0) + BESIDE * beside
            self._costs[key] = np.round(by_sort[self._of], 9)
        return self._costs[key]


def _samples(rooms: Sequence[Room], sorts: Sequence[int], count: int) -> list[Room]:
    """For each sort a host that could do all that any of them can, were it empty, and no functions in groups."""
    examples: dict[int, Room] = {}
    functions: dict[int, dict[Row, list[FleetFunction]]] = {sort: {} for sort in range(count)}
    for room, sort in zip(rooms, sorts, strict=True):
        if sort not in examples:
            examples[sort] = room.copy()
        best = functions[sort]
        for row, found in sorts_of(_ungrouped(room).functions).items():
            if len(found) > len(best.get(row, ())):
                best[row] = found
    for sort, example in examples.items():
        example.apart = set()
        for node in example.nodes:
            node.least = node.width
        numbered = (one for found in functions[sort].values() for one in found)
        # Hosts may call unlike functions by one address.
        example.functions = tuple(
            one.model_copy(update={"address": f"{at}", "iommu_group": None}) for at, one in enumerate(numbered)
        )
    return [examples[sort] for sort in range(count)]


def _ungrouped(room: Room) -> Room:
    """The host as if each of its functions could be given away alone."""
    groups = Counter(one.iommu_group for one in room.functions if one.iommu_group is not None)
    if all(size == 1 for size in groups.values()):
        return room
    made = room.copy()
    made.functions = tuple(one.model_copy(update={"iommu_group": None}) for one in room.functions)
    return made


# -- host by host -----------------------------------------------------------------------------------------------------


def bound_of(rooms: Sequence[Room], kinds: Sequence[Kind], *, whole: int = WHOLE) -> float | None:
    """What no placement exceeds: the linear program of all hosts, each for itself; None: not every way was looked at.

    Of more than ``whole`` unlike hosts, a sample says what a guest of each kind is worth; any such prices give a bound,
    and these a good one.
    """
    free, each = _alone(kinds), _unlike(rooms, kinds)
    sample, part = _sample(each, whole, len(rooms))
    linear = _Linear(sample, free)
    bound, prices = linear.bound([len(kind.guests) * part for kind in free])
    complete = linear.complete
    if len(sample) < len(each):
        bound = sum(price * len(kind.guests) for kind, price in zip(free, prices, strict=True))
        for some in _parts(each, PART):
            linear = _Linear(some, free)
            complete &= linear.complete
            bound += linear.beyond(prices)
    return bound if complete else None


def whole_bound_of(rooms: Sequence[Room], kinds: Sequence[Kind]) -> float | None:
    """As :func:`bound_of`, and no host has parts of guests: nearer to what can be where hosts are filled unlike.

    Prices are looked for on a sample, by cutting planes; then every host is filled as well as it can be at these.
    Takes some milliseconds for each unlike host.
    """
    free, each = _alone(kinds), _unlike(rooms, kinds)
    sample, part = _sample(each, SAMPLE, len(rooms))
    demand = [len(kind.guests) * part for kind in free]
    _, prices = _Linear(sample, free).bound(demand)
    some = [_Linear(hosts, free) for hosts in _parts(sample, FEW)]
    best, chosen = float("inf"), prices
    planes: list[tuple[float, list[float]]] = []
    for _ in range(MOST_PLANES):
        filled = [linear.whole(prices) for linear in some]
        used = [sum(one.used[number] for one in filled) for number in range(len(free))]
        paid = sum(price * count for price, count in zip(prices, demand, strict=True))
        if sum(one.bound for one in filled) + paid < best:
            best, chosen = sum(one.bound for one in filled) + paid, prices
        own = sum(price * count for price, count in zip(prices, used, strict=True))
        planes.append((sum(one.value for one in filled) + own, used))
        below, prices = _cheapest(planes, demand, free)
        if best - below < NEAR_ENOUGH * best:
            break
    bound = sum(price * len(kind.guests) for kind, price in zip(free, chosen, strict=True))
    for hosts in _parts(each, FEW):
        linear = _Linear(hosts, free)
        if not linear.complete:
            return None
        bound += linear.whole(chosen).bound
    return bound


def _cheapest(
    planes: Sequence[tuple[float, list[float]]], demand: Sequence[float], kinds: Sequence[Kind]
) -> tuple[float, list[float]]:
    """(the least that the bound can be by all planes so far, the prices there)."""
    program = Program()
    least = program.column(-1.0, integral=False)
    prices = [
        program.column(-count, float(kind.sample.value), integral=False)
        for count, kind in zip(demand, kinds, strict=True)
    ]
    for value, used in planes:
        row = program.row(low=value)
        program.put(row, least, 1.0)
        for price, count in zip(prices, used, strict=True):
            if count:
                program.put(row, price, count)
    solution = program.solve(relaxed=True)
    return -solution.value, [max(0.0, solution.values[price]) for price in prices]


def _alone(kinds: Iterable[Kind]) -> list[Kind]:
    """Kinds that are offered, without what reaches over hosts."""
    return [
        Kind(kind.sample.model_copy(update={"apart_racks": (), "together": ()}), kind.guests)
        for kind in kinds
        if kind.guests
    ]


def _unlike(rooms: Sequence[Room], kinds: Sequence[Kind]) -> list[tuple[Room, int]]:
    """One host of each likeness, and how many there are of it; those of a sort beside each other."""
    numbers = alike(rooms, kinds)
    counts = Counter(numbers)
    first: dict[int, Room] = {}
    for room, number in zip(rooms, numbers, strict=True):
        first.setdefault(number, room)
    found = [(room, counts[number]) for number, room in first.items()]
    return sorted(found, key=lambda one: sort_of(one[0]))


def _sample(each: Sequence[tuple[Room, int]], most: int, hosts: int) -> tuple[Sequence[tuple[Room, int]], float]:
    """(some of each sort, the share of all hosts that they stand for)."""
    found = each[:: -(-len(each) // most)]
    return found, sum(count for _, count in found) / hosts


def _parts(hosts: Sequence[tuple[Room, int]], size: int) -> Iterator[Sequence[tuple[Room, int]]]:
    for at in range(0, len(hosts), size):
        yield hosts[at : at + size]


@dataclass(frozen=True)
class _Filled:
    """Hosts filled at some prices: what nothing exceeds, what was found, and how many of each kind that takes."""

    bound: float
    value: float
    used: list[float]


class _Linear:
    """The linear program of some hosts, each standing for a number of such."""

    def __init__(self, hosts: Sequence[tuple[Room, int]], kinds: Sequence[Kind]) -> None:
        model = Model([room for room, _ in hosts], kinds, Limits(), {}, ())
        self.complete, self.kinds = model.complete, kinds
        self._program = model.program
        for row in model.demand:  # it is the demand of all hosts that counts
            self._program.highs[row] = float("inf")
        self._columns = [
            (column, number, float(hosts[at][1]))
            for column, (number, at, _) in zip(model.ids, model.columns, strict=True)
        ]

    def bound(self, demand: Sequence[float]) -> tuple[float, list[float]]:
        """(the most that so many guests are worth here, the price of one of each kind)."""
        rows = [self._program.row(high=count) for count in demand]
        for column, number, count in self._columns:
            self._program.gains[column] = self.kinds[number].sample.value * count
            self._program.put(rows[number], column, count)
        solution = self._program.solve(relaxed=True)
        prices = [max(0.0, solution.prices[row]) for row in rows] if solution.prices else [0.0] * len(rows)
        return solution.bound, prices

    def beyond(self, prices: Sequence[float]) -> float:
        """The most that guests are worth here beyond their prices, were there any number of them."""
        self._price(prices)
        return self._program.solve(relaxed=True).bound

    def whole(self, prices: Sequence[float]) -> _Filled:
        """The same, in whole guests."""
        self._price(prices)
        solution = self._program.solve(gap=1e-4, most_nodes=MOST_NODES)
        used = [0.0] * len(self.kinds)
        if not solution.feasible:
            return _Filled(solution.bound, 0.0, used)
        for column, number, count in self._columns:
            used[number] += round(solution.values[column]) * count
        return _Filled(solution.bound, solution.value, used)

    def _price(self, prices: Sequence[float]) -> None:
        for column, number, count in self._columns:
            self._program.gains[column] = max(0.0, self.kinds[number].sample.value - prices[number]) * count
