"""Why a guest fits on no host, in words: the fewest reasons, how many hosts each rules out, what would make it fit.

A reason is one thing that the guest asks for, alone: a host is ruled out by it when the guest would not fit there even
if it asked for nothing else.  Where no single thing rules a host out, the smallest set of things that do so together is
one reason.  Every sentence is tried: a cure is told only when the guest fits with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from evenkeel.documents.fleet import Cut, FunctionRequest, Refusal, Request
from evenkeel.documents.quantity import format_size
from evenkeel.plan.fleet.room import Room, fit, is_such

Thing = tuple[str, str]  # sort, and which: ("network", "blue")
Reason = frozenset[Thing]
#: Whether groups of guests keep one from a host: (room, the things that still count).
Barred = Callable[[int, Request], bool]
MANY = 1 << 40
#: Hosts of which a sentence names the first.
MOST_NAMED = 3
MOST_CURES = 5


def refusal(rooms: Sequence[Room], request: Request, barred: Barred | None = None) -> Refusal:
    """Why it has no place.  ``barred``: hosts that groups over several hosts keep it from, by their place."""
    things = _things(request)
    alone: list[frozenset[Thing]] = []
    conflicts: list[Reason] = []
    for at, room in enumerate(rooms):
        single = frozenset(thing for thing in things if not _fits(at, room, request, {thing}, barred))
        alone.append(single)
        conflicts.append(frozenset() if single else _conflict(at, room, request, things, barred))
    reasons = _cover(
        [{frozenset({thing}) for thing in single} or {both} for single, both in zip(alone, conflicts, strict=True)]
    )
    cuts = []
    for reason in {frozenset({thing}) for single in alone for thing in single} | {both for both in conflicts if both}:
        out = [
            room.host.name
            for room, single, both in zip(rooms, alone, conflicts, strict=True)
            if reason <= single or reason == both
        ]
        cuts.append(Cut(reason=_name(reason, request), hosts=len(out), example=out[0]))
    cuts.sort(key=lambda cut: (-cut.hosts, cut.reason))
    return Refusal(
        name=request.name,
        reasons=tuple(_sentence(reason, rooms, request) for reason in reasons) or ("the site has no host for it",),
        cuts=tuple(cuts),
        cures=tuple(_cures(rooms, request, things, barred)),
    )


def _things(request: Request) -> list[Thing]:
    """Everything that the guest asks for, in the order in which it is told."""
    found: list[Thing] = [("drain", "")]
    if request.hosts:
        found.append(("host", ""))
    found.append(("architecture", request.architecture))
    found += [("feature", feature) for feature in request.features]
    found += [("network", network) for network in request.networks]
    found += [("apart", group) for group in request.apart]
    if request.apart_racks or request.together:
        found.append(("groups", ""))
    found.append(("cores", ""))
    found.append(("memory", ""))
    if len(request.cells) > 1:
        found.append(("cells", ""))
    if request.max_distance is not None:
        found.append(("distance", ""))
    if request.l3 == "require":
        found.append(("l3", ""))
    if request.near is not None:
        found.append(("near", request.near))
    return found + [("function", str(number)) for number in range(len(request.functions))]


def _fits(at: int, room: Room, request: Request, kept: Iterable[Thing], barred: Barred | None) -> bool:
    """Whether it fits when only these things are asked for."""
    left = set(kept)
    changes: dict[str, object] = {
        "architecture": request.architecture
        if ("architecture", request.architecture) in left
        else room.host.architecture,
        "features": tuple(one for one in request.features if ("feature", one) in left),
        "networks": tuple(one for one in request.networks if ("network", one) in left),
        "apart": tuple(one for one in request.apart if ("apart", one) in left),
        "functions": tuple(one for at, one in enumerate(request.functions) if ("function", str(at)) in left),
    }
    for sort, key, nothing in (
        ("host", "hosts", ()),
        ("distance", "max_distance", None),
        ("l3", "l3", "prefer"),
    ):
        if (sort, "") not in left:
            changes[key] = nothing
    if request.near is not None and ("near", request.near) not in left:
        changes["near"] = None
    if (
        ("cells", "") not in left
        and len(request.cells) > 1
        and not {("cores", ""), ("memory", ""), ("distance", "")} & left
    ):
        changes["cells"] = request.cells[:1]  # one node will do, for all that is asked
    if ("groups", "") in left and barred is not None and barred(at, request):
        return False
    copy = room.copy()
    if ("drain", "") not in left and room.host.drained:
        copy.host = room.host.model_copy(update={"drained": False})
    for node in copy.nodes:
        if ("cores", "") not in left:
            node.full = node.threads = MANY
            node.l3 = [MANY] * len(node.l3) if ("l3", "") not in left else node.l3
        if ("memory", "") not in left:
            node.memory = MANY << 10
            node.pages = dict.fromkeys(node.pages, MANY << 10)
    if ("memory", "") not in left:
        changes["pages"] = "any" if request.threads != "overcommit" else "ordinary"
        copy.ordinary = None
    return fit(copy, request.model_copy(update=changes)) is not None


def _conflict(at: int, room: Room, request: Request, things: Sequence[Thing], barred: Barred | None) -> Reason:
    """A smallest set of things that rule a host out together: none of them can be left out.  Empty: it fits."""
    kept = set(things)
    if _fits(at, room, request, kept, barred):
        return frozenset()
    for thing in things:
        if not _fits(at, room, request, kept - {thing}, barred):
            kept.discard(thing)
    return frozenset(kept)


def _cover(hosts: Sequence[set[Reason]]) -> list[Reason]:
    """The fewest reasons that rule out every host; of as few, the simplest."""
    wanted = [reasons - {frozenset()} for reasons in hosts]
    wanted = [reasons for reasons in wanted if reasons]
    known = sorted(set().union(*wanted), key=lambda reason: (len(reason), sorted(reason)))
    different = {frozenset(reasons) for reasons in wanted}
    for count in range(1, min(4, len(known)) + 1):
        if len(known) > 24 and count > 2:
            break
        for chosen in combinations(known, count):
            if all(reasons.intersection(chosen) for reasons in different):
                return list(chosen)
    found: list[Reason] = []
    left = set(different)
    while left:
        best = max(known, key=lambda reason: (sum(reason in reasons for reasons in left), -len(reason), sorted(reason)))
        found.append(best)
        left = {reasons for reasons in left if best not in reasons}
    return found


# -- words ------------------------------------------------------------------------------------------------------------


def _name(reason: Reason, request: Request) -> str:
    return " and ".join(_thing(thing, request) for thing in sorted(reason))


def _thing(thing: Thing, request: Request) -> str:
    sort, which = thing
    cells = request.cells
    match sort:
        case "drain":
            return "drained"
        case "host":
            return f"host {', '.join(request.hosts)}"
        case "groups":
            return f"groups {', '.join((*request.apart_racks, *request.together))}"
        case "apart":
            return f"apart {which}"
        case "cores":
            return _cpu_wish(request)
        case "memory":
            sizes = " + ".join(format_size(cell.memory_bytes) for cell in cells)
            return f"{sizes} in {_pages(request)}"
        case "cells":
            return f"{len(cells)} nodes"
        case "distance":
            return f"nodes no more than {request.max_distance} apart"
        case "l3":
            return "one L3 cache"
        case "near":
            return f"near {which}"
        case "function":
            return _function(request.functions[int(which)])
    return f"{sort} {which}"


def _cpu_wish(request: Request) -> str:
    counts = " + ".join(str(cell.vcpus) for cell in request.cells)
    what = {
        "isolate": "whole cores",
        "whole": "threads of whole cores",
        "require": "threads of whole cores",
        "prefer": "threads",
        "float": "CPUs to share on a node",
        "overcommit": "vCPUs on shared CPUs",
    }[request.threads]
    own = " and one for the emulator" if request.emulator == "own" else ""
    return f"{counts} {what}{own}"


def _pages(request: Request) -> str:
    if isinstance(request.pages, int):
        return f"pages of {format_size(request.pages)}"
    return {"ordinary": "ordinary pages", "any": "pages of any size"}.get(request.pages, "huge pages")


def _function(wish: FunctionRequest) -> str:
    words = [wish.pool or "", wish.type or "", f"on {wish.network}" if wish.network else ""]
    text = " ".join(word for word in words if word) or "any kind"
    near = " near it" if wish.near == "required" else ""
    return f"{wish.count} PCI function{'s' * (wish.count > 1)} ({text}){near}"


def _sentence(reason: Reason, rooms: Sequence[Room], request: Request) -> str:
    """What is asked for, and how much of it there is at best."""
    if len(reason) > 1:
        return f"no host has {_name(reason, request)} at the same time, though each by itself can be had"
    ((sort, which),) = reason
    match sort:
        case "drain":
            gone = [room.host.name for room in rooms if room.host.drained]
            return f"{_list(gone)} {'is' if len(gone) == 1 else 'are'} drained"
        case "host":
            return f"it may only be on {', '.join(request.hosts)}"
        case "architecture":
            return (
                f"its architecture is {which}, and the hosts are {_list(sorted({r.host.architecture for r in rooms}))}"
            )
        case "feature":
            have = [room.host.name for room in rooms if which in room.host.features]
            return f"it needs hosts with {which}: {_list(have) or 'there is none'}"
        case "network":
            have = [room.host.name for room in rooms if which in room.host.networks]
            verb = "is" if len(have) < 2 else "are"
            return f"it needs network {which}, to which {_list(have) or 'no host'} {verb} wired"
        case "apart":
            return f"a guest of group {which}, from which it is to be apart, is on every host that would do"
        case "groups":
            return (
                f"where its groups {', '.join((*request.apart_racks, *request.together))} let it be, there is no room"
            )
        case "near":
            have = [room.host.name for room in rooms if which in room.host.places]
            return f"it is to be near {which}, which is on {_list(have) or 'no host'}"
        case "cores":
            best = max(rooms, key=lambda room: max((node.full for node in room.nodes), default=0))
            node = max(best.nodes, key=lambda node: node.full)
            most = max((node.threads for room in rooms for node in room.nodes), default=0)
            return (
                f"it needs {_cpu_wish(request)}; the most on one node are {node.full} whole cores "
                f"({best.host.name}, node {node.id}), and {most} threads"
            )
        case "memory":
            most = max((node.memory for room in rooms for node in room.nodes), default=0)
            pages = ""
            if isinstance(request.pages, int):
                left = max((node.pages.get(request.pages, 0) for room in rooms for node in room.nodes), default=0)
                pages = f", and {_whole(left)} in pages of {format_size(request.pages)}"
            return f"it needs {_thing((sort, which), request)}; the most on one node is {_whole(most)}{pages}"
        case "cells":
            most = max((len(room.nodes) for room in rooms), default=0)
            return f"it needs {len(request.cells)} nodes, and no host has more than {most}"
        case "distance":
            return f"its nodes are to be no more than {request.max_distance} apart, and no host has such"
        case "l3":
            return "its vCPUs are to share one L3 cache, and none is large enough"
        case _:
            wish = request.functions[int(which)]
            held = [
                f"{one.address} of {room.host.name} cannot be given: {one.why_busy}"
                for room in rooms
                for one in room.host.functions
                if one.why_busy and is_such(one, wish)
            ]
            more = f" (and {len(held) - 2} more such)" if len(held) > 2 else ""
            return "; ".join([f"it needs {_function(wish)}, and no host has so many free", *held[:2]]) + more


def _whole(size: int) -> str:
    unit = 1 << 30 if abs(size) >= 1 << 30 else 1 << 20
    return format_size(size // unit * unit)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown


# -- cures ------------------------------------------------------------------------------------------------------------

_CURE: Mapping[str, str] = {
    "drain": "let guests onto {host} again",
    "host": "let it be on {host}",
    "architecture": "build it for {architecture}",
    "feature": "give {host} {which}",
    "network": "wire {host} to {which}",
    "apart": "allow it beside the other guests of {which}, on {host}",
    "groups": "loosen its groups: it would fit on {host}",
    "distance": "allow nodes that are farther apart: it would fit on {host}",
    "l3": "let its vCPUs be on several L3 caches: it would fit on {host}",
    "near": "leave out `near`: it would fit on {host}",
    "function": "have {function} free on {host}",
}


def _cures(rooms: Sequence[Room], request: Request, things: Sequence[Thing], barred: Barred | None) -> list[str]:
    """Changes of one thing that make it fit, those on most hosts first; then how much smaller it would have to be."""
    found: list[tuple[int, int, str]] = []
    lacking = [(at, room) for at, room in enumerate(rooms) if not _fits(at, room, request, things, barred)]
    for order, thing in enumerate(things):
        sort, which = thing
        if sort in ("cores", "memory", "cells"):
            continue
        some = [room.host for at, room in lacking if _fits(at, room, request, set(things) - {thing}, barred)]
        if some:
            function = _function(request.functions[int(which)]) if sort == "function" else ""
            text = _CURE[sort].format(
                host=some[0].name, which=which, architecture=some[0].architecture, function=function
            )
            more = f" (or {len(some) - 1} other{'s' * (len(some) > 2)})" if len(some) > 1 else ""
            found.append((-len(some), order, text + more))
    cures = [text for _, _, text in sorted(found)]
    if (smaller := _smaller(rooms, request, barred)) is not None:
        cures.append(smaller)
    if (room_made := _more_cores(rooms, request, things, barred)) is not None:
        cures.append(room_made)
    return cures[:MOST_CURES]


def _smaller(rooms: Sequence[Room], request: Request, barred: Barred | None) -> str | None:
    """The largest guest of one cell that fits: fewer vCPUs first, then less memory, by halves between."""
    if len(request.cells) != 1:
        return None
    (cell,) = request.cells
    things = _things(request)

    def where(vcpus: int, memory: int) -> str | None:
        one = request.model_copy(update={"cells": (cell.model_copy(update={"vcpus": vcpus, "memory_bytes": memory}),)})
        return next((room.host.name for at, room in enumerate(rooms) if _fits(at, room, one, things, barred)), None)

    low, high = 0, cell.vcpus
    if request.cut:  # only some numbers can be cut, so there is nothing to halve
        low = next((one for one in range(cell.vcpus - 1, 0, -1) if where(one, cell.memory_bytes)), 0)
    while not request.cut and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if where(middle, cell.memory_bytes) else (low, middle)
    if low and (host := where(low, cell.memory_bytes)):
        return f"with {low} vCPU{'s' * (low > 1)} instead of {cell.vcpus} it fits on {host}"
    unit = 1 << 30
    least, most = 0, -(-cell.memory_bytes // unit)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if where(cell.vcpus, middle * unit) else (least, middle)
    if least and (host := where(cell.vcpus, least * unit)):
        return f"with {format_size(least * unit)} instead of {format_size(cell.memory_bytes)} it fits on {host}"
    return None


def _more_cores(rooms: Sequence[Room], request: Request, things: Sequence[Thing], barred: Barred | None) -> str | None:
    """The host that lacks the fewest cores, where cores are all that it lacks."""
    some = [
        (at, room) for at, room in enumerate(rooms) if _fits(at, room, request, set(things) - {("cores", "")}, barred)
    ]
    wanted = sum(cell.vcpus for cell in request.cells)
    for missing in range(1, min(wanted, 64) + 1):
        for at, room in some:
            copy = room.copy()
            for node in copy.nodes:
                node.full += missing
                node.threads += missing * node.width
                node.l3 = [full + missing for full in node.l3]
            if _fits(at, copy, request, things, barred):
                nodes = "a node" if len(request.cells) == 1 else "its nodes"
                return f"free {missing} more core{'s' * (missing > 1)} of {nodes} of {room.host.name}"
    return None
