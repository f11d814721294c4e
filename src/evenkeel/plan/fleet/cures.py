"""What would make a guest fit: changes of the site or of the guest, each tried, so that none is told in vain.  Pure.

First changes of one thing that the guest asks for or a host offers, those that open most hosts first; then how else the
guest could be cut, or how much smaller it would have to be; then what would have to be freed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evenkeel.documents.fleet import CellRequest, Request
from evenkeel.documents.quantity import format_size
from evenkeel.plan.cores import PINNED
from evenkeel.plan.fleet.explain import Around, Thing, fits_with, function_words, things_of
from evenkeel.plan.fleet.room import MIB, Room, is_such

MOST_CURES = 5
MOST_CELLS = 8
LEAST = 4  # a guest that would have to be smaller than a quarter is another guest
GIB = 1 << 30

_CURE: Mapping[str, str] = {
    "drain": "let guests onto {host} again",
    "host": "let it be on {host}",
    "architecture": "build it for {architecture}",
    "network": "wire {host} to {which}",
    "apart": "allow it beside the other guests of {which}, on {host}",
    "distance": "allow nodes that are farther apart, on {host}",
    "l3": "let its vCPUs be on several L3 caches, on {host}",
    "near": "without `near` it fits on {host}",
    "function": "have {function} free on {host}, which has {there}",
}
#: What facts find out by themselves cannot be written into the site.
_FEATURE: Mapping[str, str] = {
    "kvm": "switch virtualisation on in the firmware of {host}",
    "libvirt": "install libvirt on {host}",
    "qemu": "install QEMU on {host}",
    "preempt-rt": "boot a PREEMPT_RT kernel on {host}",
    "smt": "switch SMT on in the firmware of {host}",
}


def cures_of(rooms: Sequence[Room], request: Request, around: Around) -> list[str]:
    """Sentences, the cheapest change first; at most :data:`MOST_CURES`."""
    found = [
        *_one_thing_less(rooms, request, around),
        *_other_cells(rooms, request, around),
        *_other_goal(rooms, request, around),
        *_fewer_functions(rooms, request, around),
        *_smaller(rooms, request, around),
        *_more_cores(rooms, request, around),
    ]
    return list(dict.fromkeys(found))[:MOST_CURES]


def _where(rooms: Sequence[Room], request: Request, around: Around) -> str | None:
    """The first host that has room for it."""
    things = things_of(request, around)
    return next((room.host.name for at, room in enumerate(rooms) if fits_with(at, room, request, things, around)), None)


def _one_thing_less(rooms: Sequence[Room], request: Request, around: Around) -> Iterator[str]:
    """Changes of one thing, those that open most hosts first."""
    things = things_of(request, around)
    lacking = [(at, room) for at, room in enumerate(rooms) if not fits_with(at, room, request, things, around)]
    found: list[tuple[int, int, str]] = []
    for order, thing in enumerate(things):
        if thing[0] in ("cores", "memory", "cells"):
            continue
        left = set(things) - {thing}
        some = [(at, room) for at, room in lacking if fits_with(at, room, request, left, around)]
        if some:
            more = f" (or {len(some) - 1} other{'s' * (len(some) > 2)})" if len(some) > 1 else ""
            found.append((-len(some), order, _change(thing, some, request, around) + more))
    yield from (text for _, _, text in sorted(found))


def _change(thing: Thing, some: Sequence[tuple[int, Room]], request: Request, around: Around) -> str:
    sort, which = thing
    if sort == "limit":
        cures = around.limit(which).cures
        at, room = next((one for one in some if one[0] in cures), some[0])
        return f"with {cures.get(at, f'another {which}')} it fits on {room.host.name}"
    host = some[0][1].host
    if sort == "feature":
        text = _FEATURE.get(which, "write {which} under `features` of {host}, if it has that")
        return text.format(host=host.name, which=which)
    if sort == "groups":
        apart, together = (", ".join(groups) for groups in (request.apart_racks, request.together))
        ways = [f"in one rack with others of {apart}"] if apart else []
        ways += [f"apart from the guests of {together}"] if together else []
        return f"allow it {' and '.join(ways)}, on {host.name}"
    function, there = "", ""
    if sort == "function":
        wish = request.functions[int(which)]
        function, count = function_words(wish), sum(is_such(one, wish) for one in host.functions)
        there = str(count or "none")
    text = _CURE[sort].format(
        host=host.name, which=which, architecture=host.architecture, function=function, there=there
    )
    if sort == "function" and any("IOMMU group" in one.why_busy for one in host.functions):
        text += ", with all of its IOMMU group under `pools`, if the host can do without"
    return text


def _other_cells(rooms: Sequence[Room], request: Request, around: Around) -> Iterator[str]:
    """Over more or fewer nodes, in equal cells, the number nearest to what it asks for first."""
    if request.goal not in PINNED or request.cut:
        return
    vcpus, memory = (sum(getattr(cell, key) for cell in request.cells) for key in ("vcpus", "memory_bytes"))
    now = len(request.cells)
    for count in sorted(set(range(1, MOST_CELLS + 1)) - {now}, key=lambda one: (abs(one - now), one)):
        if vcpus % count or memory % (count * MIB):
            continue
        cell = CellRequest(vcpus=vcpus // count, memory_bytes=memory // count)
        host = _where(rooms, request.model_copy(update={"cells": (cell,) * count}), around)
        if host:
            each = f" ({_vcpus(cell.vcpus)} and {format_size(cell.memory_bytes)} on each of {count} nodes)"
            yield f"with numa: {count}{each * (count > 1)} it fits on {host}"
            return


def _other_goal(rooms: Sequence[Room], request: Request, around: Around) -> Iterator[str]:
    """With both threads of each core, where it wants one of them empty."""
    if request.threads != "isolate" or request.goal != "realtime":
        return
    features = tuple(one for one in request.features if one != "preempt-rt")
    softer = request.model_copy(update={"threads": "whole", "goal": "performance", "features": features})
    if host := _where(rooms, softer, around):
        yield f"with goal performance, on both threads of its cores and without a real-time promise, it fits on {host}"


def _fewer_functions(rooms: Sequence[Room], request: Request, around: Around) -> Iterator[str]:
    """Functions that are farther away, then fewer of them."""
    for at, wish in enumerate(request.functions):

        def with_wish(at: int = at, **change: object) -> Request:
            functions = list(request.functions)
            functions[at] = functions[at].model_copy(update=change)
            return request.model_copy(update={"functions": tuple(functions)})

        if wish.near == "required" and (host := _where(rooms, with_wish(near="any"), around)):
            yield f"with near: any for {function_words(wish.model_copy(update={'near': 'any'}))} it fits on {host}"
        for count in range(wish.count - 1, 0, -1):
            if host := _where(rooms, with_wish(count=count), around):
                yield f"with {count} instead of {function_words(wish)}, it fits on {host}"
                break


def _smaller(rooms: Sequence[Room], request: Request, around: Around) -> Iterator[str]:
    """The largest guest of one cell that fits: fewer vCPUs first, then less memory, by halves between."""
    if len(request.cells) != 1:
        return
    (cell,) = request.cells

    def where(vcpus: int, memory: int) -> str | None:
        smaller = cell.model_copy(update={"vcpus": vcpus, "memory_bytes": memory})
        return _where(rooms, request.model_copy(update={"cells": (smaller,)}), around)

    low, high = 0, cell.vcpus
    if request.cut:  # only some numbers can be cut, so there is nothing to halve
        low = next((one for one in range(cell.vcpus - 1, 0, -1) if where(one, cell.memory_bytes)), 0)
    while not request.cut and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if where(middle, cell.memory_bytes) else (low, middle)
    if low and (host := where(low, cell.memory_bytes)):
        if low * LEAST >= cell.vcpus:
            yield f"with {_vcpus(low)} instead of {cell.vcpus} it fits on {host}"
        return
    least, most = 0, -(-cell.memory_bytes // GIB)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if where(cell.vcpus, middle * GIB) else (least, middle)
    if least * LEAST * GIB >= cell.memory_bytes and (host := where(cell.vcpus, least * GIB)):
        yield f"with {format_size(least * GIB)} instead of {format_size(cell.memory_bytes)} it fits on {host}"


def _vcpus(count: int) -> str:
    return f"{count} vCPU{'s' * (count > 1)}"


def _more_cores(rooms: Sequence[Room], request: Request, around: Around) -> Iterator[str]:
    """The host on which the fewest cores would have to be freed, where cores are all that it lacks."""
    things = things_of(request, around)
    without = set(things) - {("cores", "")}
    some = [(at, room) for at, room in enumerate(rooms) if fits_with(at, room, request, without, around)]
    empty = {at: Room(room.host) for at, room in some}
    for missing in range(1, min(sum(cell.vcpus for cell in request.cells), 64) + 1):
        for at, room in some:
            copy, freed = room.copy(), []
            for node, whole in zip(copy.nodes, empty[at].nodes, strict=True):
                # No more than guests have: what stays with the host cannot be freed.
                more = min(missing, max(whole.full - node.full, (whole.threads - node.threads) // node.width))
                if more < missing:
                    continue
                freed.append(node.id)
                node.full = min(whole.full, node.full + more)
                node.threads = min(whole.threads, node.threads + more * node.width)
                node.l3 = [min(most, full + more) for most, full in zip(whole.l3, node.l3, strict=True)]
            if freed and fits_with(at, copy, request, things, around):
                nodes = f"node {freed[0]}" if len(freed) == 1 else "a node" if len(request.cells) == 1 else "its nodes"
                yield f"free {missing} more core{'s' * (missing > 1)} of {nodes} of {room.host.name}"
                return
