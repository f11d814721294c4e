"""What is still free on one host, counted: whole cores, threads, memory, functions.  CPUs get names only at the end.

Two numbers a node are enough for SMT: ``full``, cores of which every thread is free, and ``threads``, free threads of
whatever core.  A guest that isolates takes ``full`` and all threads of those; one that prefers takes threads only, and
whether its threads then break up cores that others need shows in ``threads`` alone.  That this is exact is held by
tests against brute force; where cores of a node differ in size it is on the safe side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from evenkeel.documents.fleet import CellRequest, FleetFunction, FleetHost, FunctionRequest, Request, Seat
from evenkeel.plan.matching import match

HUGE = 2 << 20
ORDINARY = 4096
MIB = 1 << 20
#: As the number of a cell: one that is not the first, so that no emulator is counted with it.
ELSEWHERE = -1


@dataclass(frozen=True)
class Spot:
    """Where a guest fits on a host.  ``groups``: for each cell the L3 domain it is kept in, -1 where none.

    ``nodes`` empty: it floats over the whole host.  ``functions``: addresses, in the order of the wishes.
    """

    nodes: tuple[int, ...]
    cells: tuple[CellRequest, ...]
    groups: tuple[int, ...] = ()
    page_bytes: int | None = None
    functions: tuple[str, ...] = ()


class NodeRoom:
    """One node.  ``l3``: free whole cores of each L3 domain, of which guests that insist on one take."""

    __slots__ = ("full", "id", "l3", "least", "memory", "pages", "threads", "width")

    def __init__(self, host: FleetHost, index: int, taken: frozenset[int]) -> None:
        node = host.nodes[index]
        free = node.free - taken if taken else node.free
        whole = [core for core in node.cores if core <= free]
        self.id = node.id
        self.full = len(whole)
        self.threads = len(free)
        self.width = max((len(core) for core in node.cores), default=1)  # threads of a core
        self.least = min((len(core) for core in whole), default=self.width)
        self.memory = node.memory_bytes
        self.pages = {size.page_bytes: size.free_bytes for size in node.pages}
        self.l3 = [sum(core <= group for core in whole) for group in node.l3] or [self.full]

    def copy(self) -> NodeRoom:
        made = NodeRoom.__new__(NodeRoom)
        made.id, made.full, made.threads, made.width, made.least = (
            self.id,
            self.full,
            self.threads,
            self.width,
            self.least,
        )
        made.memory, made.pages, made.l3 = self.memory, dict(self.pages), list(self.l3)
        return made


class Room:
    """One host.  ``loose_*``: of guests that float over all of it."""

    __slots__ = ("apart", "functions", "host", "index", "loose_memory", "loose_vcpus", "nodes", "ordinary")

    def __init__(self, host: FleetHost, taken: frozenset[int] = frozenset()) -> None:
        self.host = host
        self.nodes = [NodeRoom(host, index, taken) for index in range(len(host.nodes))]
        self.index = {node.id: at for at, node in enumerate(self.nodes)}
        self.loose_vcpus = 0
        self.loose_memory = 0
        rooms = [one.free_bytes for node in host.nodes for one in node.pages if one.page_bytes == ORDINARY]
        self.ordinary = sum(rooms) if rooms else None
        self.functions = usable(host.functions)
        self.apart: set[str] = set()  # groups that are to be apart, of guests here

    def copy(self) -> Room:
        made = Room.__new__(Room)
        made.host, made.index, made.ordinary = self.host, self.index, self.ordinary
        made.nodes = [node.copy() for node in self.nodes]
        made.loose_vcpus, made.loose_memory = self.loose_vcpus, self.loose_memory
        made.functions, made.apart = self.functions, set(self.apart)
        return made

    # -- taking -------------------------------------------------------------------------------------------------------

    def take(self, request: Request, spot: Spot) -> None:
        """Count a guest in.  What is freed comes back only with a new Room."""
        if request.threads == "overcommit":
            self.loose_vcpus += sum(cell.vcpus for cell in spot.cells)
            self.loose_memory += sum(cell.memory_bytes for cell in spot.cells)
        for number, (cell, node_id) in enumerate(zip(spot.cells, spot.nodes, strict=False)):
            node = self.nodes[self.index[node_id]]
            full, threads = need(request, cell, number, node)
            node.full -= full
            node.threads -= threads
            node.memory -= cell.memory_bytes
            if spot.page_bytes is not None:
                node.pages[spot.page_bytes] = node.pages.get(spot.page_bytes, 0) - cell.memory_bytes
            group = spot.groups[number] if spot.groups else -1
            if group >= 0:
                node.l3[group] -= need(request, cell, ELSEWHERE, node)[0]
        self.apart.update(request.apart)
        if spot.functions:
            self.functions = without(self.functions, spot.functions)

    def take_seat(self, request: Request, seat: Seat) -> None:
        """Count in a guest whose CPUs were taken out by name when this room was made: memory, functions, groups."""
        cells = cells_of(request, max(1, len(seat.nodes)))
        if request.threads == "overcommit":
            self.loose_vcpus += sum(cell.vcpus for cell in cells)
            self.loose_memory += sum(cell.memory_bytes for cell in cells)
        for cell, node_id in zip(cells, seat.nodes, strict=False):
            node = self.nodes[self.index[node_id]]
            node.memory -= cell.memory_bytes
            if seat.page_bytes is not None:
                node.pages[seat.page_bytes] = node.pages.get(seat.page_bytes, 0) - cell.memory_bytes
            if request.threads == "float":
                node.threads -= cell.vcpus
        self.apart.update(request.apart)
        if seat.functions:
            self.functions = without(self.functions, seat.functions)


def need(request: Request, cell: CellRequest, number: int, node: NodeRoom) -> tuple[int, int]:
    """(whole cores, threads) that a cell takes on a node; an emulator of its own comes with cell 0."""
    vcpus, kind = cell.vcpus, request.threads
    own = request.emulator == "own" and number == 0
    if kind == "isolate":
        count = vcpus + own
        return count, count * node.width
    if kind == "whole":
        cores = -(-vcpus // node.least)
        return cores, cores * node.width + own
    if request.l3 == "require" or (kind == "require" and vcpus % node.least > 1):
        return -(-vcpus // node.least), vcpus + own
    if kind == "require":  # a last odd vCPU may be on a core that is broken up already
        return vcpus // node.least, vcpus + own
    return 0, vcpus + own


def cells_of(request: Request, count: int) -> tuple[CellRequest, ...]:
    """The cells of a guest on so many nodes; empty where it cannot be cut so."""
    if not request.cut or count == 1 or len(request.cells) != 1:
        return request.cells
    (cell,) = request.cells
    if cell.vcpus % count or cell.memory_bytes % (count * MIB):
        return ()
    return (CellRequest(vcpus=cell.vcpus // count, memory_bytes=cell.memory_bytes // count),) * count


def page_of(host: FleetHost, request: Request, cells: Sequence[CellRequest]) -> tuple[bool, int | None]:
    """(whether there is one, the size of its pages; None: ordinary ones)."""
    if request.pages in ("ordinary", "any"):
        return True, None
    sizes = [request.pages] if isinstance(request.pages, int) else offered(host)
    fitting = [size for size in sizes if not any(cell.memory_bytes % size for cell in cells)]
    if not fitting:
        return False, None
    return True, fitting[-1] if request.pages == "huge-largest" else fitting[0]


def offered(host: FleetHost) -> list[int]:
    """Sizes of huge pages, sorted."""
    return sorted({size.page_bytes for node in host.nodes for size in node.pages if size.page_bytes >= HUGE})


# -- functions --------------------------------------------------------------------------------------------------------


def usable(functions: Iterable[FleetFunction]) -> tuple[FleetFunction, ...]:
    """Functions that can be given away: free, of a wholly free IOMMU group, and not split into others that count."""
    functions = tuple(functions)
    parents = {one.physical_function for one in functions}
    mixed = {one.iommu_group for one in functions if one.busy and one.iommu_group is not None}
    return tuple(
        one for one in functions if not one.busy and one.iommu_group not in mixed and one.address not in parents
    )


def without(functions: Sequence[FleetFunction], taken: Iterable[str]) -> tuple[FleetFunction, ...]:
    """What is left for others: an IOMMU group goes as a whole."""
    gone = set(taken)
    groups = {one.iommu_group for one in functions if one.address in gone and one.iommu_group is not None}
    return tuple(one for one in functions if one.address not in gone and one.iommu_group not in groups)


def slots(request: Request) -> tuple[FunctionRequest, ...]:
    """One wish for each function."""
    return tuple(wish for wish in request.functions for _ in range(wish.count))


def is_such(function: FleetFunction, wish: FunctionRequest) -> bool:
    return (
        (wish.pool is None or wish.pool == function.pool)
        and (wish.type is None or wish.type == function.type)
        and (wish.network is None or wish.network == function.network)
    )


def give_functions(
    functions: Sequence[FleetFunction], request: Request, nodes: Sequence[int] | None
) -> tuple[str, ...] | None:
    """Addresses for every wish, near ones first; None: there are not enough.  ``nodes`` None: wherever they are.

    Of functions that serve, those of the smallest IOMMU groups come first, then by address.
    """
    wishes = slots(request)
    if not wishes:
        return ()
    sizes: dict[int | None, int] = {}
    for one in functions:
        sizes[one.iommu_group] = sizes.get(one.iommu_group, 0) + 1
    order = sorted(
        functions, key=lambda one: (sizes[one.iommu_group] if one.iommu_group is not None else 1, one.address)
    )
    choices: list[list[int]] = []
    for wish in wishes:
        fitting = [at for at, one in enumerate(order) if is_such(one, wish)]
        if nodes is not None and wish.near == "required":
            fitting = [at for at in fitting if order[at].node in nodes]
        elif nodes is not None and wish.near == "preferred":
            fitting.sort(key=lambda at: order[at].node not in nodes)
        if not fitting:
            return None
        choices.append(fitting)
    # Those with the fewest choices first, so that later ones seldom push them away from what is near.
    given = match(choices, sorted(range(len(wishes)), key=lambda slot: (len(choices[slot]), slot)))
    return None if given is None else tuple(order[at].address for at in given)


# -- fitting one guest ------------------------------------------------------------------------------------------------


def admits(host: FleetHost, request: Request) -> bool:
    """Whether a host is one that the guest may be on at all, whatever is free there."""
    return not (
        host.drained
        or (request.hosts and host.name not in request.hosts)
        or request.architecture != host.architecture
        or not set(request.features) <= set(host.features)
        or not set(request.networks) <= set(host.networks)
        or (request.near is not None and request.near not in host.places)
    )


def fit(room: Room, request: Request) -> Spot | None:
    """Where on this host the guest fits; None: nowhere, which is certain.

    Sets of nodes are gone through, the nearest to each other first, with a matching of cells to nodes in each; never
    permutations.  Of equally near sets the emptiest is taken.
    """
    if not admits(room.host, request) or (request.apart and room.apart.intersection(request.apart)):
        return None
    if request.threads == "overcommit":
        return _loose(room, request)
    counts = range(1, len(room.nodes) + 1) if request.cut else (len(request.cells),)
    for count in counts:
        cells = cells_of(request, count)
        if cells and len(cells) <= len(room.nodes) and (spot := _fit_cells(room, request, cells)) is not None:
            return spot
    return None


def _loose(room: Room, request: Request) -> Spot | None:
    vcpus = sum(cell.vcpus for cell in request.cells)
    memory = sum(cell.memory_bytes for cell in request.cells) + room.loose_memory
    host = room.host
    if vcpus > sum(len(core) for node in host.nodes for core in node.cores):
        return None
    if room.loose_vcpus + vcpus > host.overcommit * sum(node.threads for node in room.nodes):
        return None
    if memory > sum(node.memory for node in room.nodes) or (room.ordinary is not None and memory > room.ordinary):
        return None
    functions = give_functions(room.functions, request, None)
    return None if functions is None else Spot((), request.cells, (), None, functions)


def _fit_cells(room: Room, request: Request, cells: tuple[CellRequest, ...]) -> Spot | None:
    there, page = page_of(room.host, request, cells)
    if not there:
        return None
    if request.functions and give_functions(room.functions, request, None) is None:
        return None
    nodes, count = room.nodes, len(cells)
    own = request.emulator == "own"
    fits: list[list[bool]] = []
    for number, cell in enumerate(cells):
        if number and cell == cells[number - 1] and not (own and number == 1):
            fits.append(fits[-1])
        else:
            fits.append([_fits(room, request, cell, number, node, page) for node in nodes])
    if not _match(fits, range(len(nodes))):
        return None
    if room.loose_vcpus or room.loose_memory:
        taken = sum(max(need(request, cell, number, node)[1] for node in nodes) for number, cell in enumerate(cells))
        if room.loose_vcpus > room.host.overcommit * (sum(node.threads for node in nodes) - taken):
            return None
        if room.loose_memory > sum(node.memory for node in nodes) - sum(cell.memory_bytes for cell in cells):
            return None
    must = room.host.places.get(request.near, -1) if request.near is not None else -1
    best: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[str, ...]] | None = None
    tier: tuple[int, int] | None = None
    seen = 0
    sorts = _sorts_of_nodes(room, fits)
    refused: set[tuple[int, ...]] = set()  # sets of such nodes that do not do, whichever they are
    for spread, farthest, chosen in node_sets(distances_of(room.host), count):
        if best is not None and (spread, farthest) != tier:
            break
        if request.max_distance is not None and farthest > request.max_distance:
            continue
        if must >= 0 and all(nodes[at].id != must for at in chosen):
            continue
        like = tuple(sorted(sorts[at] for at in chosen))
        if like in refused:
            continue
        matched = _match(fits, chosen)
        ids = [nodes[at].id for at in chosen]
        functions = None if matched is None else give_functions(room.functions, request, ids)
        if matched is None or functions is None:
            refused.add(like)
            continue
        seen += 1
        misses = far(room.functions, request, functions, ids)
        key = (misses, -sum(nodes[at].full for at in chosen), -sum(nodes[at].threads for at in chosen), *chosen)
        if best is None or key < best[0]:
            best, tier = (key, chosen, matched, functions), (spread, farthest)
        if seen >= MOST_SETS:
            break
    if best is None:
        return None
    _, _, matched, functions = best
    groups = tuple(_group(request, cell, nodes[at]) for cell, at in zip(cells, matched, strict=True))
    return Spot(tuple(nodes[at].id for at in matched), cells, groups, page, functions)


#: Equally near sets of nodes among which the emptiest is looked for.
MOST_SETS = 32


def _sorts_of_nodes(room: Room, fits: Sequence[Sequence[bool]]) -> list[int]:
    """A number for each node; nodes of one number carry the same cells and have the same functions."""
    functions: dict[int, list[tuple[str, str, str]]] = {node.id: [] for node in room.nodes}
    for one in room.functions:
        if one.node in functions:
            functions[one.node].append((one.pool, one.type, one.network or ""))
    known: dict[object, int] = {}
    return [
        known.setdefault((tuple(row[at] for row in fits), tuple(sorted(functions[node.id]))), len(known))
        for at, node in enumerate(room.nodes)
    ]


def far(functions: Iterable[FleetFunction], request: Request, given: Sequence[str], nodes: Sequence[int]) -> int:
    """How many of the functions given that are better near are not."""
    if all(wish.near != "preferred" for wish in request.functions):
        return 0
    where = {one.address: one.node for one in functions}
    return sum(
        wish.near == "preferred" and where[address] not in nodes
        for wish, address in zip(slots(request), given, strict=True)
    )


def _fits(room: Room, request: Request, cell: CellRequest, number: int, node: NodeRoom, page: int | None) -> bool:
    if cell.memory_bytes > node.memory or (page is not None and cell.memory_bytes > node.pages.get(page, 0)):
        return False
    full, threads = need(request, cell, number, node)
    if full > node.full or threads > node.threads:
        return False
    return request.l3 != "require" or _group(request, cell, node) >= 0


def _group(request: Request, cell: CellRequest, node: NodeRoom) -> int:
    """The fullest L3 domain that carries a cell which insists on one; -1: none, or it does not insist."""
    if request.l3 != "require":
        return -1
    full, _ = need(request, cell, ELSEWHERE, node)
    found = [(count, at) for at, count in enumerate(node.l3) if count >= full]
    return min(found)[1] if found else -1


def _match(fits: Sequence[Sequence[bool]], nodes: Sequence[int]) -> tuple[int, ...] | None:
    """A node (its place in the list) for each cell; equal cells take them in order.  None: there is no such way."""
    count = len(fits)
    if count == 1:
        return next(((at,) for at in nodes if fits[0][at]), None)
    if len(nodes) == count and all(row[at] for row in fits for at in nodes):
        return tuple(nodes)
    return match([[at for at in nodes if row[at]] for row in fits])


def distances_of(host: FleetHost) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(node.distances.get(other.id, 255) for other in host.nodes) for node in host.nodes)


@lru_cache(maxsize=256)
def node_sets(distances: tuple[tuple[int, ...], ...], count: int) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """Every set of ``count`` nodes: (sum of its distances, the largest of them, the nodes), the nearest first."""
    found = []
    for chosen in combinations(range(len(distances)), count):
        pairs = [max(distances[one][other], distances[other][one]) for one, other in combinations(chosen, 2)]
        found.append((sum(pairs), max(pairs, default=0), chosen))
    return tuple(sorted(found))
