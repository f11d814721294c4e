"""Why a guest fits on no host, in words: the fewest reasons, how many hosts each rules out, what would make it fit.

A reason is one thing that the guest asks for, alone: a host is ruled out by it when the guest would not fit there even
if it asked for nothing else.  Where no single thing rules a host out, the smallest set of things that do so together is
one reason.  What would make it fit is :mod:`evenkeel.plan.fleet.cures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Limit:
    """A limit of the whole fleet.  ``closed``: hosts, by their place, that it keeps guests off; ``name``: as in the
    site; ``reason``: a sentence; ``cures``: by place, what would have to be written instead.
    """

    name: str
    closed: frozenset[int]
    reason: str
    cures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Around:
    """What beside the hosts themselves keeps a guest off them.

    ``barred``: groups over several hosts, which ``groups`` puts in a sentence.
    """

    barred: Barred | None = None
    groups: str = ""
    limits: tuple[Limit, ...] = ()

    def limit(self, name: str) -> Limit:
        return next(limit for limit in self.limits if limit.name == name)


ALONE = Around()


def refusal(rooms: Sequence[Room], request: Request, around: Around = ALONE) -> Refusal:
    """Why it has no place, and what would give it one."""
    from evenkeel.plan.fleet.cures import cures_of

    things = things_of(request, around)
    alone: list[frozenset[Thing]] = []
    conflicts: list[Reason] = []
    for at, room in enumerate(rooms):
        single = frozenset(thing for thing in things if not fits_with(at, room, request, {thing}, around))
        alone.append(single)
        conflicts.append(frozenset() if single else _conflict(at, room, request, things, around))
    each = [{frozenset({thing}) for thing in single} or {both} for single, both in zip(alone, conflicts, strict=True)]
    reasons = _cover(each)
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
        reasons=tuple(
            _sentence(
                reason, rooms, [room for room, mine in zip(rooms, each, strict=True) if reason in mine], request, around
            )
            for reason in reasons
        )
        or ("the site has no host for it",),
        cuts=tuple(cuts),
        cures=tuple(cures_of(rooms, request, around)),
    )


def things_of(request: Request, around: Around = ALONE) -> list[Thing]:
    """Everything that the guest asks for, in the order in which it is told."""
    found: list[Thing] = [("drain", ""), *(("limit", limit.name) for limit in around.limits)]
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


def fits_with(at: int, room: Room, request: Request, kept: Iterable[Thing], around: Around = ALONE) -> bool:
    """Whether it fits when only these things are asked for."""
    left = set(kept)
    if any(at in limit.closed for limit in around.limits if ("limit", limit.name) in left):
        return False
    if ("groups", "") in left and around.barred is not None and around.barred(at, request):
        return False
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
    if ("cells", "") not in left and len(request.cells) > 1:
        # That there are too few nodes is no fault of cores or memory; where neither is asked for, one node will do.
        measured = {("cores", ""), ("memory", ""), ("distance", "")} & left
        changes["cells"] = request.cells[: len(room.nodes) if measured else 1]
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


def _conflict(at: int, room: Room, request: Request, things: Sequence[Thing], around: Around) -> Reason:
    """A smallest set of things that rule a host out together: none of them can be left out.  Empty: it fits."""
    kept = set(things)
    if fits_with(at, room, request, kept, around):
        return frozenset()
    for thing in things:
        if not fits_with(at, room, request, kept - {thing}, around):
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


#: What facts say of a host under ``features``, in the words of a person.
_FEATURES = {
    "kvm": "KVM",
    "libvirt": "libvirt",
    "qemu": "QEMU",
    "preempt-rt": "a PREEMPT_RT kernel",
    "smt": "SMT",
}


def _thing(thing: Thing, request: Request) -> str:
    sort, which = thing
    cells = request.cells
    match sort:
        case "drain":
            return "drained"
        case "limit":
            return f"room within {which}"
        case "host":
            return f"host {', '.join(request.hosts)}"
        case "groups":
            apart = [f"a rack without {group}" for group in request.apart_racks]
            return ", ".join([*apart, *(f"the host of {group}" for group in request.together)])
        case "apart":
            return f"a host without {which}"
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
        case "feature":
            return _FEATURES.get(which, f"feature {which}")
        case "function":
            return function_words(request.functions[int(which)])
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
    if counts == "1":
        what = {"whole cores": "whole core", "threads": "thread"}.get(what, what)
    return f"{counts} {what}{own}"


def _pages(request: Request) -> str:
    if isinstance(request.pages, int):
        return f"pages of {format_size(request.pages)}"
    return {"ordinary": "ordinary pages", "any": "pages of any size"}.get(request.pages, "huge pages")


def function_words(wish: FunctionRequest) -> str:
    words = [wish.pool or "", wish.type or "", f"on {wish.network}" if wish.network else ""]
    text = " ".join(word for word in words if word) or "any kind"
    near = " near it" if wish.near == "required" else ""
    return f"{wish.count} PCI function{'s' * (wish.count > 1)} ({text}){near}"


def _sentence(
    reason: Reason, rooms: Sequence[Room], ruled_out: Sequence[Room], request: Request, around: Around
) -> str:
    """What is asked for, and how much of it there is at best on the hosts that this rules out."""
    of = "" if len(ruled_out) == len(rooms) else f" of {_list([room.host.name for room in ruled_out])}"
    if len(reason) > 1:
        return f"no host has {_name(reason, request)} at the same time, though each by itself can be had"
    ((sort, which),) = reason
    match sort:
        case "drain":
            gone = [room.host.name for room in rooms if room.host.drained]
            return f"{_list(gone)} {'is' if len(gone) == 1 else 'are'} drained"
        case "limit":
            return around.limit(which).reason
        case "host":
            return f"it may only be on {', '.join(request.hosts)}"
        case "architecture":
            return (
                f"its architecture is {which}, and the hosts are {_list(sorted({r.host.architecture for r in rooms}))}"
            )
        case "feature":
            have = [room.host.name for room in rooms if which in room.host.features]
            named = _FEATURES.get(which, which)
            verb = "has" if len(have) < 2 else "have"
            return f"it needs {named}, which {f'only {_list(have)}' if have else 'no host'} {verb}"
        case "network":
            have = [room.host.name for room in rooms if which in room.host.networks]
            verb = "is" if len(have) < 2 else "are"
            return f"it needs network {which}, to which {f'only {_list(have)}' if have else 'no host'} {verb} wired"
        case "apart":
            return f"a guest of group {which}, from which it is to be apart, is on every host that would do"
        case "groups":
            return around.groups or "the other guests of its groups leave no host that would do"
        case "near":
            have = [room.host.name for room in rooms if which in room.host.places]
            return f"it is to be near {which}, which is on {_list(have) or 'no host'}"
        case "cores":
            return _core_sentence(ruled_out, of, request)
        case "memory":
            return _memory_sentence(ruled_out, of, request)
        case "cells":
            most = max((len(room.nodes) for room in rooms), default=0)
            return f"it needs {len(request.cells)} nodes, and no host has more than {most}"
        case "distance":
            return f"its nodes are to be no more than {request.max_distance} apart, and no host has such"
        case "l3":
            return "its vCPUs are to share one L3 cache, and none is large enough"
        case _:
            return _function_sentence(rooms, request.functions[int(which)])


def _core_sentence(rooms: Sequence[Room], of: str, request: Request) -> str:
    """The fullest node that there is, and which part of its cores cannot be had whole, and why."""
    nodes = [(room.host.name, node) for room in rooms for node in room.nodes]
    wish = f"it needs {_cpu_wish(request)}"
    if request.threads == "overcommit":
        most = max(room.host.overcommit * sum(n.threads for n in room.nodes) - room.loose_vcpus for room in rooms)
        return f"{wish}, and no host has more than {max(0, most)} left"
    if request.threads in ("float", "prefer") or not nodes:
        host, node = max(nodes, key=lambda one: one[1].threads)
        return f"{wish}; the most on one node{of} are {node.threads} ({host}, node {node.id})"
    host, node = max(nodes, key=lambda one: (min(one[1].full, one[1].threads // one[1].width), one[1].full))
    most = min(node.full, node.threads // node.width)
    threads = "" if request.threads == "isolate" or node.width == 1 else f", {most * node.width} threads"
    text = f"{wish}; the most on one node{of} are {most} whole cores{threads} ({host}, node {node.id})"
    if most < node.full:
        taken = (node.full - most) * node.width
        text += f": {node.full} are whole, but {taken} of their threads are promised to guests that share CPUs"
    return text


def _memory_sentence(rooms: Sequence[Room], of: str, request: Request) -> str:
    nodes = [(room.host.name, node) for room in rooms for node in room.nodes]
    wish = f"it needs {_thing(('memory', ''), request)}"
    if request.threads == "overcommit":
        return f"{wish}, and no host has so much left"
    size = request.pages if isinstance(request.pages, int) else None
    if size is not None:
        host, node = max(nodes, key=lambda one: min(one[1].memory, one[1].pages.get(size, 0)))
        most = min(node.memory, node.pages.get(size, 0))
        if most <= 0:
            return f"{wish}, and no host has pages of that size left"
    else:
        host, node = max(nodes, key=lambda one: one[1].memory)
        most = node.memory
    return f"{wish}; the most on one node{of} is {_whole(most)} ({host}, node {node.id})"


def _function_sentence(rooms: Sequence[Room], wish: FunctionRequest) -> str:
    """How many there are at best, and what keeps those that are there from being given."""
    best, where = 0, ""
    for room in rooms:
        mine = [one for one in room.functions if is_such(one, wish)]
        near: Iterable[int | None] = {one.node for one in mine} if wish.near == "required" else {None}
        for node in sorted(near, key=lambda one: -1 if one is None else one):
            count = sum(node is None or one.node == node for one in mine)
            if count > best:
                best, where = count, room.host.name + (f", node {node}" if node is not None else "")
    text = f"it needs {function_words(wish)}, and "
    text += f"the most that are free are {best} ({where})" if best else "no host has one free"
    held = [
        f"{one.address} of {room.host.name} cannot be given: {one.why_busy}"
        for room in rooms
        for one in room.host.functions
        if one.why_busy and is_such(one, wish)
    ]
    more = f" (and {len(held) - 2} more such)" if len(held) > 2 else ""
    return "; ".join([text, *held[:2]]) + more


def _whole(size: int) -> str:
    unit = 1 << 30 if abs(size) >= 1 << 30 else 1 << 20
    return format_size(size // unit * unit)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown
