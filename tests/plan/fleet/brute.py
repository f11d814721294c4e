"""Whether a guest fits on a host, by trying every node, thread and function: for small ones, and as the oracle only.

Nothing of :mod:`evenkeel.plan.fleet` is used.  A seat counts when the checker accepts it, beside the guests that sit
there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product
from typing import Any

from evenkeel.documents.fleet import FleetHost, Request
from evenkeel.placement_check import check_placement

HUGE = 2 << 20


def fits(host: FleetHost, guests: Sequence[Request]) -> bool:
    """Whether all these guests fit on the host together."""
    data = host.model_dump(mode="json")
    wishes = [guest.model_dump(mode="json") for guest in guests]

    def go(index: int, sitting: list[dict[str, Any]]) -> bool:
        if index == len(wishes):
            return True
        for seat in seats(host, wishes[index], taken_by(sitting), gone_to(sitting)):
            plan = {"hosts": [data], "guests": wishes[: index + 1], "seats": [*sitting, seat]}
            if not check_placement(plan) and go(index + 1, [*sitting, seat]):
                return True
        return False

    return go(0, [])


def taken_by(sitting: Sequence[dict[str, Any]]) -> set[int]:
    taken = {cpu for seat in sitting for cell in seat["cpus"] for cpu in cell}
    return taken | {int(cpu) for seat in sitting for cpu in (seat["idle"] + "," + seat["own"]).split(",") if cpu}


def gone_to(sitting: Sequence[dict[str, Any]]) -> set[str]:
    return {address for seat in sitting for address in seat["functions"]}


def misses(hosts: Sequence[FleetHost], guests: Sequence[Request], sitting: Sequence[dict[str, Any]]) -> int:
    """Functions that are better near and are not, and cells that are better in one L3 domain and are not.

    For guests with one wish for functions at most.
    """
    by_name = {guest.name: guest for guest in guests}
    on = {host.name: host for host in hosts}
    count = 0
    for seat in sitting:
        guest, host = by_name[seat["name"]], on[seat["host"]]
        if any(wish.near == "preferred" for wish in guest.functions):
            where = {one.address: one.node for one in host.functions}
            count += sum(where[address] not in seat["nodes"] for address in seat["functions"])
        if guest.l3 == "prefer":
            domains = [group for node in host.nodes for group in node.l3 or (node.cpus,)]
            count += sum(not any(set(cell) <= group for group in domains) for cell in seat["cpus"])
    return count


def fewest_misses(hosts: Sequence[FleetHost], guests: Sequence[Request]) -> int | None:
    """Of all placements of all these guests; None: they do not all fit."""
    data = [host.model_dump(mode="json") for host in hosts]
    wishes = [guest.model_dump(mode="json") for guest in guests]
    best: int | None = None

    def go(index: int, sitting: list[dict[str, Any]]) -> None:
        nonlocal best
        if best == 0 or (best is not None and misses(hosts, guests, sitting) >= best):
            return
        if index == len(wishes):
            if not check_placement({"hosts": data, "guests": wishes, "seats": sitting}):
                best = misses(hosts, guests, sitting)
            return
        for host in hosts:
            here = [seat for seat in sitting if seat["host"] == host.name]
            for seat in seats(host, wishes[index], taken_by(here), gone_to(here)):
                go(index + 1, [*sitting, seat])

    go(0, [])
    return best


def seats(host: FleetHost, guest: dict[str, Any], taken: set[int], gone: set[str]) -> Iterator[dict[str, Any]]:
    """Every seat of a guest on CPUs and functions that nobody has; not all of them hold."""
    count = sum(wish["count"] for wish in guest["functions"])
    free = [one.address for one in host.functions if not one.busy and one.address not in gone]
    pages: list[int | None] = [None]
    if guest["pages"] != "ordinary":
        pages = [size.page_bytes for size in host.nodes[0].pages if size.page_bytes >= HUGE]
    loose = guest["threads"] == "overcommit"
    ways = [()] if loose else list(permutations([node.id for node in host.nodes], len(guest["cells"])))
    given = list(combinations(sorted(free), count))
    for nodes, page in product(ways, pages):
        for seat in _cpus(host, guest, nodes, taken):
            for functions in given:
                yield {
                    "name": guest["name"],
                    "host": host.name,
                    "nodes": list(nodes),
                    "page_bytes": page,
                    "functions": list(functions),
                    **seat,
                }


def _cpus(host: FleetHost, guest: dict[str, Any], nodes: tuple[int, ...], taken: set[int]) -> Iterator[dict[str, Any]]:
    kind = guest["threads"]
    if kind in ("float", "overcommit"):
        yield {"cpus": [], "idle": "", "own": "", "emulator": ""}
        return
    by_id = {node.id: node for node in host.nodes}
    core_of = {cpu: core for node in host.nodes for core in node.cores for cpu in core}
    choices = []
    for cell, number in zip(guest["cells"], nodes, strict=True):
        node = by_id[number]
        choices.append(list(combinations(sorted(node.free - taken), cell["vcpus"])))
    first = sorted(by_id[nodes[0]].free - taken)
    for chosen in product(*choices):
        mine = {cpu for cell in chosen for cpu in cell}
        # A cell that breaks its own rule is left out here, since the checker takes long.
        if any(not _sound(kind, cell, core_of) for cell in chosen):
            continue
        for own in [cpu for cpu in first if cpu not in mine] if guest["emulator"] == "own" else [None]:
            idle: set[int] = set()
            if kind in ("isolate", "whole"):
                idle = {cpu for one in mine for cpu in core_of[one]} - mine
            if kind == "isolate" and own is not None:
                idle |= core_of[own] - {own}
            text = ",".join(map(str, sorted(idle)))
            emulator = "" if own is None else str(own)
            yield {"cpus": [list(cell) for cell in chosen], "idle": text, "own": emulator, "emulator": emulator}


def _sound(kind: str, cell: tuple[int, ...], core_of: dict[int, frozenset[int]]) -> bool:
    cores = {core_of[cpu] for cpu in cell}
    if kind == "isolate":
        return len(cores) == len(cell)
    return kind == "prefer" or sum(not core <= set(cell) for core in cores) <= 1
