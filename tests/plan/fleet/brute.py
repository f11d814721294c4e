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
    for node in data["nodes"]:
        node["distances"] = {int(key): value for key, value in node["distances"].items()}
    wishes = [guest.model_dump(mode="json") for guest in guests]

    def go(index: int, seats: list[dict[str, Any]]) -> bool:
        if index == len(wishes):
            return True
        taken = {cpu for seat in seats for cell in seat["cpus"] for cpu in cell}
        taken |= {int(cpu) for seat in seats for cpu in (seat["idle"] + "," + seat["own"]).split(",") if cpu}
        gone = {address for seat in seats for address in seat["functions"]}
        for seat in _seats(host, wishes[index], taken, gone):
            plan = {"hosts": [data], "guests": wishes[: index + 1], "seats": [*seats, seat]}
            if not check_placement(plan) and go(index + 1, [*seats, seat]):
                return True
        return False

    return go(0, [])


def _seats(host: FleetHost, guest: dict[str, Any], taken: set[int], gone: set[str]) -> Iterator[dict[str, Any]]:
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
