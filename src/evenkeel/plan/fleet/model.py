"""The integer program of some guests on some hosts, and what goes into it and comes out.  Pure.

Guests are counted by type and CPUs by number, so the program is small; it is exact all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evenkeel.documents.fleet import FleetFunction, Request
from evenkeel.plan.fleet.options import MOST_WAYS, Row, Way, give_by_sort, rows_of, told_apart, ways
from evenkeel.plan.fleet.program import OnGap, Program
from evenkeel.plan.fleet.room import Room, Spot, without
from evenkeel.plan.fleet.table import Table, rack_of, type_of

#: Rows counted in bytes are divided by this, so that all coefficients are of similar size.
GIB = 1 << 30
_BYTES = {"memory", "pages", "loose memory", "ordinary"}
#: How many guests of a kind (its number) are on a host (its place in the list), and in which way.
Counts = list[tuple[tuple[int, int, Way], int]]


def unit_of(row: Row) -> int:
    return GIB if row[0] in _BYTES else 1


Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """``max_hosts``, ``power_watts``: of hosts that are used.  ``gap``: how near to the bound is near enough."""

    max_hosts: int | None = None
    power_watts: int | None = None
    time_limit_s: float | None = 60.0
    gap: float = 1e-4


DEFAULTS = Limits()


@dataclass
class Packing:
    """``placed``: guest -> (place of its host in the list, where on it)."""

    placed: dict[str, tuple[int, Spot]] = field(default_factory=dict)
    value: int = 0
    bound: float | None = None
    method: str = ""
    cut_short: bool = False
    counts: Counts | None = None  # the same as numbers; None: there are none


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


def fill(
    rooms: Sequence[Room], kinds: Sequence[Kind], best: Packing, sitting: Sequence[tuple[int, Request]] = ()
) -> None:
    """Give guests that were left out a last look: a solver that stops near the bound leaves one or two."""
    left = [guest for kind in kinds for guest in kind.guests if guest.name not in best.placed]
    if left:
        table = table_with(rooms, kinds, best, sitting)
        for guest in left:
            if (found := table.place(guest)) is not None:
                best.placed[guest.name] = found
    best.value = sum(kind.sample.value for kind in kinds for guest in kind.guests if guest.name in best.placed)


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
        kept: bool = False,
    ) -> None:
        """``fixed``: kinds of which so many are placed at least.  ``kept``: see :func:`options.ways`."""
        self.rooms, self.kinds, self.kept = rooms, kinds, kept
        self.program = Program()
        self.columns: list[tuple[int, int, Way]] = []  # kind, host, way
        self.ids: list[int] = []  # of these columns in the program, which has others too
        self.rows: dict[tuple[int, Row], int] = {}
        self.demand: list[int] = []  # of each kind the row that counts its guests
        self.complete = True  # every way of every guest is among the columns, so that the bound is one
        self.capped = limits.max_hosts is not None or limits.power_watts is not None
        self.sitting = sitting
        self.used: dict[int, int] = {}  # host -> the column that says whether it is used, where that is counted
        self._build(limits, fixed)

    def _build(self, limits: Limits, fixed: Mapping[int, int]) -> None:
        program = self.program
        loose = floats_about(self.rooms, self.kinds)
        for at, kind in enumerate(self.kinds):
            count = float(len(kind.guests))
            self.demand.append(program.row(low=float(fixed.get(at, 0)), high=count))
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
            like = (room.host.name if named else "", likeness(room))
            if like not in known:
                known[like] = (rows_of(room, loose), [ways(room, kind.sample, loose, self.kept) for kind in self.kinds])
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
                    program.put(self.demand[number], column, 1.0)
                    for row, amount in way.takes:
                        if not amount:
                            continue
                        unit = unit_of(row)
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
        return Packing(realise(self.rooms, self.kinds, counts), value, bound, "", solution.cut_short, counts)

    def counts(self, values: Sequence[float]) -> Counts:
        if not values:
            return []
        own = [round(values[at]) for at in self.ids]
        return [(column, count) for column, count in zip(self.columns, own, strict=True) if count]

    def as_columns(self, counts: Iterable[tuple[tuple[int, int, Way], int]]) -> list[float]:
        """Counts, of ways of these very hosts, as values of the columns."""
        index = {
            (number, at, way.spot.nodes, way.spot.groups, way.sorts): column
            for column, (number, at, way) in zip(self.ids, self.columns, strict=True)
        }
        values = [0.0] * len(self.program.gains)
        for (number, at, way), count in counts:
            values[index[number, at, way.spot.nodes, way.spot.groups, way.sorts]] += count
        return values

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


def realise(
    rooms: Sequence[Room], kinds: Sequence[Kind], counts: Iterable[tuple[tuple[int, int, Way], int]]
) -> dict[str, tuple[int, Spot]]:
    """Guests and functions for what was counted; guests of a kind go in their order."""
    placed: dict[str, tuple[int, Spot]] = {}
    next_of = [0] * len(kinds)
    functions: dict[int, tuple[FleetFunction, ...]] = {}
    for (number, at, way), count in counts:
        guests = kinds[number].guests[next_of[number] : next_of[number] + count]
        next_of[number] += count
        if not way.sorts:
            placed.update((guest.name, (at, way.spot)) for guest in guests)
            continue
        left = functions.get(at, rooms[at].functions)
        for guest in guests:
            addresses = give_by_sort(left, guest, way)
            assert addresses is not None, f"{guest.name}: its functions were counted, and are not there"
            left = without(left, addresses)
            placed[guest.name] = (at, replace(way.spot, functions=addresses))
        functions[at] = left
    return placed


def _once(program: Program, rows: dict[tuple[str, str], int], key: tuple[str, str]) -> int:
    if key not in rows:
        rows[key] = program.row(high=1.0)
    return rows[key]


def floats_about(rooms: Iterable[Room], kinds: Iterable[Kind]) -> bool:
    """Whether guests that float over whole hosts are about."""
    return any(kind.sample.threads == "overcommit" for kind in kinds) or any(
        room.loose_vcpus or room.loose_memory for room in rooms
    )


def likeness(room: Room) -> object:
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


def alike(rooms: Sequence[Room], kinds: Iterable[Kind]) -> list[int]:
    """A number for each host; what is true for these guests of one host is true of all of its number."""
    named = any(kind.sample.hosts for kind in kinds)
    known: dict[object, int] = {}
    return [known.setdefault((room.host.name if named else "", likeness(room)), len(known)) for room in rooms]
