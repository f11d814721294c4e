"""Every way in which a guest may sit on one host, each with what it takes: the columns of the integer program.  Pure.

What a way takes is counted in rows of the host (whole cores of node 0, pages of 1 GiB on node 1, functions of a sort).
A function's sort is all that wishes can tell apart, and its node; an IOMMU group of several functions is a sort of its
own, of which there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice, permutations, product
from typing import Any

from evenkeel.documents.fleet import CellRequest, FleetFunction, FunctionRequest, Request
from evenkeel.plan.fleet.room import (
    ELSEWHERE,
    ORDINARY,
    Room,
    Spot,
    admits,
    cells_of,
    distances_of,
    far,
    give_functions,
    is_such,
    need,
    node_sets,
    page_of,
)

Row = tuple[Any, ...]
#: Ways that are looked at for one guest on one host.
MOST_WAYS = 512


@dataclass(frozen=True)
class Way:
    """``spot``: without addresses of functions.  ``sorts``: how many functions of which sort.

    ``misses``: how much of what the guest would rather have it has not: functions that are not near it, and cells that
    are not kept in one L3 domain.
    """

    spot: Spot
    takes: tuple[tuple[Row, int], ...]
    sorts: tuple[tuple[Row, int], ...] = ()
    misses: int = 0


def rows_of(room: Room, loose: bool) -> dict[Row, int]:
    """What the host has.  ``loose``: whether guests that float over all of it are about, which costs a row."""
    rows: dict[Row, int] = {}
    for node in room.nodes:
        rows["full", node.id] = node.full
        rows["threads", node.id] = node.threads
        rows["memory", node.id] = node.memory
        for size, bytes_free in node.pages.items():
            if size != ORDINARY:
                rows["pages", node.id, size] = bytes_free
        if len(node.l3) > 1:
            for group, full in enumerate(node.l3):
                rows["l3", node.id, group] = full
    for sort, functions in sorts_of(room.functions).items():
        rows[sort] = 1 if sort[0] == "group" else len(functions)
    if loose:
        rows["loose vcpus",] = room.host.overcommit * sum(node.threads for node in room.nodes) - room.loose_vcpus
        rows["loose memory",] = sum(node.memory for node in room.nodes) - room.loose_memory
        if room.ordinary is not None:
            rows["ordinary",] = room.ordinary - room.loose_memory
    return rows


def sorts_of(functions: Sequence[FleetFunction]) -> dict[Row, list[FleetFunction]]:
    """Functions that are alike, in the order of their addresses."""
    sizes = Counter(one.iommu_group for one in functions if one.iommu_group is not None)
    found: dict[Row, list[FleetFunction]] = {}
    for one in sorted(functions, key=lambda one: one.address):
        alone = one.iommu_group is None or sizes[one.iommu_group] == 1
        sort: Row = ("function", one.pool, one.type, one.network, one.node) if alone else ("group", one.iommu_group)
        found.setdefault(sort, []).append(one)
    return found


def ways(room: Room, request: Request, loose: bool, kept: bool = False) -> list[Way]:
    """At most :data:`MOST_WAYS`, those of fewest and nearest nodes first.

    ``kept``: also those that keep the cells of a guest in one L3 domain which would rather be in one, but need not.
    """
    if not admits(room.host, request) or room.apart.intersection(request.apart):
        return []
    return list(islice(_ways(room, request, loose, kept and rather_in_one_l3(request)), MOST_WAYS))


def rather_in_one_l3(request: Request) -> bool:
    """Whether it would rather be in one L3 domain, and has whole cores, which alone are counted by domain."""
    return request.l3 == "prefer" and request.threads in ("isolate", "whole")


def rather_near(request: Request) -> bool:
    return any(wish.near == "preferred" for wish in request.functions)


def _ways(room: Room, request: Request, loose: bool, kept: bool) -> Iterator[Way]:
    sorts = sorts_of(room.functions)
    if request.threads == "overcommit":
        vcpus = sum(cell.vcpus for cell in request.cells)
        memory = sum(cell.memory_bytes for cell in request.cells)
        takes: dict[Row, int] = {("loose vcpus",): vcpus, ("loose memory",): memory}
        if room.ordinary is not None:
            takes["ordinary",] = memory
        if vcpus <= sum(len(core) for node in room.host.nodes for core in node.cores):
            yield from _with_functions(Spot((), request.cells), takes, request, sorts, None)
        return
    for count in range(1, len(room.nodes) + 1) if request.cut else (len(request.cells),):
        cells = cells_of(request, count)
        if not cells or len(cells) > len(room.nodes):
            continue
        there, page = page_of(room.host, request, cells)
        if there:
            for nodes, groups in _places(room, request, cells, kept):
                takes = _takes(room, request, cells, nodes, groups, page, loose)
                spread = 0
                if kept:
                    spread = sum(
                        group < 0 and len(room.nodes[room.index[node]].l3) > 1
                        for node, group in zip(nodes, groups, strict=True)
                    )
                yield from _with_functions(Spot(nodes, cells, groups, page), takes, request, sorts, nodes, spread)


def _places(
    room: Room, request: Request, cells: tuple[CellRequest, ...], kept: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(node of each cell, its L3 domain or -1)."""
    must = room.host.places.get(request.near, -1) if request.near is not None else -1
    alike = len(set(cells)) == 1
    for _, farthest, chosen in node_sets(distances_of(room.host), len(cells)):
        if request.max_distance is not None and farthest > request.max_distance:
            continue
        ids = tuple(room.nodes[at].id for at in chosen)
        if must >= 0 and must not in ids:
            continue
        if alike and request.emulator != "own":
            orders: list[tuple[int, ...]] = [ids]
        elif alike:
            orders = [(first, *(other for other in ids if other != first)) for first in ids]
        else:
            orders = list(permutations(ids))
        for order in orders:
            domains: list[Sequence[int]] = []
            for node in order:
                each = range(len(room.nodes[room.index[node]].l3))
                domains.append(each if request.l3 == "require" else (*each, -1) if kept and len(each) > 1 else (-1,))
            for groups in product(*domains):
                yield order, groups


def told_apart(request: Request, cells: Sequence[CellRequest], nodes: Sequence[int]) -> tuple[int, ...]:
    """The nodes of a seat as a way names them: equal cells may be exchanged, but for one with an emulator of its own.

    Cells that differ may not: exchanged, they take another amount of each node.
    """
    if len(set(cells)) != 1:
        return tuple(nodes)
    own = 1 if request.emulator == "own" else 0
    return (*nodes[:own], *sorted(nodes[own:]))


def _takes(
    room: Room,
    request: Request,
    cells: tuple[CellRequest, ...],
    nodes: tuple[int, ...],
    groups: tuple[int, ...],
    page: int | None,
    loose: bool,
) -> dict[Row, int]:
    takes: dict[Row, int] = {}
    for number, (cell, node_id, group) in enumerate(zip(cells, nodes, groups, strict=True)):
        node = room.nodes[room.index[node_id]]
        full, threads = need(request, cell, number, node)
        if full:
            takes["full", node_id] = full
        takes["threads", node_id] = threads
        takes["memory", node_id] = cell.memory_bytes
        if page is not None:
            takes["pages", node_id, page] = cell.memory_bytes
        if group >= 0 and len(node.l3) > 1:
            takes["l3", node_id, group] = need(request, cell, ELSEWHERE, node)[0]
    if loose:
        takes["loose vcpus",] = room.host.overcommit * sum(
            amount for row, amount in takes.items() if row[0] == "threads"
        )
        takes["loose memory",] = sum(cell.memory_bytes for cell in cells)
    return takes


def _with_functions(
    spot: Spot,
    takes: dict[Row, int],
    request: Request,
    sorts: dict[Row, list[FleetFunction]],
    nodes: tuple[int, ...] | None,
    spread: int = 0,
) -> Iterator[Way]:
    """Every choice of sorts for the wishes; of choices that take the same, one."""
    if not request.functions:
        yield Way(spot, tuple(sorted(takes.items(), key=repr)), (), spread)
        return
    choices = [
        combinations_with_replacement(_serving(wish, sorts, nodes), min(wish.count, sum(map(len, sorts.values())) + 1))
        for wish in request.functions
    ]
    seen: set[object] = set()
    for chosen in product(*choices):
        amounts = Counter(sort for wish in chosen for sort in wish)
        key = frozenset(amounts.items())
        if key in seen:
            continue
        seen.add(key)
        if any(amount > len(sorts[sort]) for sort, amount in amounts.items()):
            continue
        pool = [one for sort, amount in amounts.items() for one in _part(sort, sorts[sort], amount)]
        given = give_functions(pool, request, nodes)
        if given is not None:
            all_of_it = takes | {sort: 1 if sort[0] == "group" else amount for sort, amount in amounts.items()}
            own = tuple(sorted(amounts.items(), key=repr))
            misses = spread if nodes is None else spread + far(pool, request, given, nodes)
            yield Way(spot, tuple(sorted(all_of_it.items(), key=repr)), own, misses)


def _part(sort: Row, functions: Sequence[FleetFunction], amount: int) -> Sequence[FleetFunction]:
    """So many functions of a sort; a group goes as a whole."""
    return functions if sort[0] == "group" else functions[:amount]


def _serving(wish: FunctionRequest, sorts: dict[Row, list[FleetFunction]], nodes: tuple[int, ...] | None) -> list[Row]:
    """Sorts that serve a wish, those near first."""
    found = []
    for sort, functions in sorts.items():
        fitting = [
            one
            for one in functions
            if is_such(one, wish) and (nodes is None or wish.near != "required" or one.node in nodes)
        ]
        if fitting:
            far = nodes is not None and wish.near == "preferred" and all(one.node not in nodes for one in fitting)
            found.append((far, sort))
    return [sort for _, sort in sorted(found, key=lambda one: (one[0], repr(one[1])))]


def give_by_sort(functions: Sequence[FleetFunction], request: Request, way: Way) -> tuple[str, ...] | None:
    """Addresses for a way, in the order of the wishes, out of what is left; None: it is not there any more."""
    if not way.sorts:
        return ()
    sorts = sorts_of(functions)
    pool = [one for sort, amount in way.sorts for one in _part(sort, sorts.get(sort, ()), amount)]
    return give_functions(pool, request, way.spot.nodes or None)
