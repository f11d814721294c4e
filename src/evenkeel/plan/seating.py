"""Who sits where: a node and cores for each guest of a host, in one attempt.  Pure.

First those whose owner names CPUs, then those who sit somewhere already (:mod:`evenkeel.plan.seats`), then the others:
tied to a device, then the most urgent, each on the emptiest node.  Where that leaves somebody out, every way to spread
them over the nodes is tried.  A guest that does not fit is a Problem that says how much is free on which node.
Whether somebody who sits is to move is :mod:`evenkeel.plan.placement`'s question.  A guest of several cells takes that
many nodes at once, the nearest to each other that have room (:mod:`evenkeel.plan.cells`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.quantity import format_size
from evenkeel.documents.site import CellWish, GuestWish
from evenkeel.plan import cells
from evenkeel.plan.books import Books
from evenkeel.plan.cells import MOST_WAYS, Shape, carries, deal, part
from evenkeel.plan.claims import cells_of
from evenkeel.plan.cores import PINNED, capacity, choose_cores, enough, need, threads, with_vcpus
from evenkeel.plan.ledger import Housekeeping
from evenkeel.plan.passthrough import pci_address
from evenkeel.plan.problems import Problems, did_you_mean
from evenkeel.plan.seats import Seat, Seats
from evenkeel.plan.topology import Core, Topology

MIB = 1 << 20
#: Ways to spread guests over nodes that are tried before the planner says that they do not fit.
MOST_TRIES = 3000
MOST_SEARCHED = 200  # guests; each is a level of the search


@dataclass(frozen=True)
class Desk:
    """What all attempts to place the guests of a host have in common."""

    host: str
    topology: Topology
    guests: Mapping[str, GuestWish]
    claims: Mapping[str, tuple[Core, ...]]  # cores that owners gave to pinned guests by number
    shapes: Mapping[str, Shape]
    housekeeping: Housekeeping
    polling: frozenset[int]  # cores of the data plane
    books: Books  # nothing placed yet but the claims


@dataclass(frozen=True)
class Part:
    """What one cell of a guest has.  ``cores``: none for a balanced guest."""

    node: int
    cores: tuple[Core, ...]


@dataclass(frozen=True)
class Seated:
    """Where a guest is, before the shared set is known: its cells in their order."""

    parts: tuple[Part, ...]
    why: str
    more: tuple[str, ...] = ()

    @property
    def node(self) -> int:
        """Of its first cell, most often the only one."""
        return self.parts[0].node

    @property
    def cores(self) -> tuple[Core, ...]:
        return tuple(core for one in self.parts for core in one.cores)


@dataclass
class Attempt:
    """One try.  ``crowded``: guests for which there was no room, as opposed to those that are wrong in themselves."""

    books: Books
    problems: Problems
    pages: dict[str, int | None]
    near: dict[str, tuple[int | None, str]]
    seated: dict[str, Seated]
    crowded: list[str]

    def copy(self) -> Attempt:
        problems = Problems(list(self.problems.found))
        return Attempt(self.books.copy(), problems, self.pages, self.near, dict(self.seated), list(self.crowded))


def seat_guests(desk: Desk, seats: Seats) -> Attempt:
    """Place everybody, as far as possible.  What does not fit is in ``problems`` and in ``crowded``."""
    problems = Problems()
    guests = sorted(desk.guests.items())
    start = Attempt(
        books=desk.books.copy(),
        problems=problems,
        pages={name: page_size(name, guest, desk.shapes[name], desk.topology, problems) for name, guest in guests},
        near={
            name: (None, "") if guest.near is None else near_node(f"guest {name}", guest.near, desk.topology, problems)
            for name, guest in guests
        },
        seated={},
        crowded=[],
    )
    # Guests without CPUs of their own come last: the shared set is what the others leave.
    order = sorted(
        desk.guests, key=lambda name: (desk.guests[name].goal not in PINNED, urgency(name, desk.guests[name]))
    )
    for name in order:
        if name in desk.claims:
            _place_claim(desk, start, name)
    for name in order:
        if name in seats.guests and name not in desk.claims:
            _keep(desk, start, name, seats.guests[name])
    for name in order:
        if name in start.seated and name not in desk.claims:
            _grow(desk, start, name, seats.guests[name].because)
    rest = [name for name in order if name not in start.seated and desk.guests[name].goal != "flexible"]
    greedy = start.copy()
    for name in rest:
        _place(desk, greedy, name, None)
    if greedy.crowded:
        spread = _search(desk, start, [name for name in rest if not start.problems.about(f"guest {name}")])
        if spread is not None:
            found = start.copy()
            for name in rest:
                _place(desk, found, name, spread.get(name))
            return found
    return greedy


def urgency(name: str, wish: GuestWish) -> tuple[bool, bool, bool, int, str]:
    return (wish.cpus is None, wish.near is None, wish.goal != "realtime", wish.latency or 1 << 62, name)


def _place_claim(desk: Desk, attempt: Attempt, name: str) -> None:
    """A pinned guest whose owner names its CPUs."""
    topology, wish, shape = desk.topology, desk.guests[name], desk.shapes[name]
    if attempt.problems.about(f"guest {name}"):
        return
    near, _ = attempt.near[name]
    found = cells_of(wish, shape, desk.claims[name])
    assert found is not None, "find_claims() lets no others through"
    parts = tuple(Part(node, cores) for node, cores in found)
    if _take_memory(name, shape, [one.node for one in parts], attempt):
        cpus = _busy(wish, shape, parts)
        why = f"{topology.place(cpus)} carry guest {name}: its owner names them"
        attempt.seated[name] = Seated(parts, why, _far(name, wish, near, [one.node for one in parts]))


def _busy(wish: GuestWish, shape: Shape, parts: Sequence[Part], seat: Seat | None = None) -> tuple[int, ...]:
    """Host CPU of each vCPU."""
    return tuple(
        cpu for cell, one in zip(shape, parts, strict=True) for cpu in threads(part(wish, cell), one.cores, seat)
    )


def busy(desk: Desk, name: str, seated: Seated, seat: Seat | None) -> tuple[int, ...]:
    """Host CPU of each vCPU of a pinned guest, in the order of the vCPUs."""
    return _busy(desk.guests[name], desk.shapes[name], seated.parts, seat)


def _keep(desk: Desk, attempt: Attempt, name: str, seat: Seat) -> None:
    """Leave a guest where it is, as far as the site and the machine allow; its memory and cores are taken."""
    topology, wish, books, shape = desk.topology, desk.guests[name], attempt.books, desk.shapes[name]
    if attempt.problems.about(f"guest {name}") or wish.goal == "flexible":
        return
    page = attempt.pages[name]
    parts: tuple[Part, ...] = ()
    if wish.goal in PINNED:
        held = dict.fromkeys(topology.core_of[cpu] for cpu in seat.cpus if cpu in topology.online)
        nodes = list(dict.fromkeys(core.node for core in held))
        if len(shape) == 1:
            nodes = nodes[:1]
        if len(nodes) == len(shape):
            parts = tuple(
                Part(
                    node, enough(part(wish, cell), [core for core in held if core.node == node and core in books.free])
                )
                for cell, node in zip(shape, nodes, strict=True)
            )
        if not parts or not all(one.cores for one in parts):
            return
    elif (node := seat.node if topology.numa else 0) is not None:
        parts = (Part(node, ()),)
    nodes = [one.node for one in parts]
    if not nodes or not _allowed(desk, attempt, name, nodes):
        return
    if any(books.room(node, page) < cell.memory for cell, node in zip(shape, nodes, strict=True)):
        return
    _take(books, shape, parts, page)
    attempt.seated[name] = Seated(parts, "")


def _take(books: Books, shape: Shape, parts: Sequence[Part], page: int | None) -> None:
    for cell, one in zip(shape, parts, strict=True):
        books.take(one.cores)
        books.take_memory(one.node, page, cell.memory)


def _grow(desk: Desk, attempt: Attempt, name: str, because: str) -> None:
    """Give a guest that kept its cores those that it needs now and did not have; else take all of them back."""
    topology, wish, books, shape = desk.topology, desk.guests[name], attempt.books, desk.shapes[name]
    if wish.goal not in PINNED:
        return
    parts = attempt.seated[name].parts
    grown = [_more_cores(topology, books, part(wish, cell), one) for cell, one in zip(shape, parts, strict=True)]
    found = [one for one in grown if one is not None]
    if len(found) < len(grown):
        for cell, one in zip(shape, parts, strict=True):
            books.give_back(one.cores, one.node, attempt.pages[name], cell.memory)
        del attempt.seated[name]
        return
    for one in found:
        books.take(one.cores)
    why = f"{topology.place(_busy(wish, shape, found))} carry guest {name}: {because}"
    if any(len(after.cores) > len(before.cores) for after, before in zip(found, parts, strict=True)):
        why += ", and needs more now"
    attempt.seated[name] = Seated(tuple(found), why)


def _more_cores(topology: Topology, books: Books, wish: GuestWish, one: Part) -> Part | None:
    """A cell's cores with those that it lacks, of its node and best of the same L3; None: there are not so many."""
    missing = wish.vcpus - capacity(wish, one.cores)
    if missing <= 0:
        return one
    more, free = with_vcpus(wish, missing), books.free_on(one.node)
    if capacity(more, free) < missing:
        return None
    beside = frozenset().union(*(topology.l3_of(core) for core in one.cores))
    added, _ = choose_cores(topology, [core for core in free if core.cpus <= beside], more)
    if capacity(more, added) < missing:
        added, _ = choose_cores(topology, free, more)
    return Part(one.node, one.cores + added)


def _candidates(desk: Desk, attempt: Attempt, name: str) -> list[int]:
    """Nodes that a guest may be on at all, whatever is free there."""
    wish, (near, _) = desk.guests[name], attempt.near[name]
    if near is not None and len(desk.shapes[name]) == 1:
        return [near]
    if wish.cpus is not None:
        return sorted({desk.topology.node_of[cpu] for cpu in wish.cpus})
    return [node for node in desk.topology.cpu_nodes if wish.goal in PINNED or node in attempt.books.capacity]


def _allowed(desk: Desk, attempt: Attempt, name: str, nodes: Iterable[int]) -> bool:
    """Whether a guest may be on these nodes, whatever is free there."""
    near, _ = attempt.near[name]
    chosen = set(nodes)
    return chosen <= set(_candidates(desk, attempt, name)) and (near is None or near in chosen)


def _fits(desk: Desk, attempt: Attempt, name: str, cell: CellWish, node: int) -> bool:
    wish, books = desk.guests[name], attempt.books
    if books.room(node, attempt.pages[name]) < cell.memory:
        return False
    return wish.goal not in PINNED or carries(wish, cell, books.free_on(node))


def _ways(
    desk: Desk, attempt: Attempt, name: str, order: Sequence[int], most: int = MOST_WAYS
) -> list[tuple[int, ...]]:
    """The ways to put the cells of a guest on nodes where they fit: a node for each, at most ``most``.

    ``order``: of the nodes, the best first.
    """
    shape = desk.shapes[name]
    near, _ = attempt.near[name]
    fits = {(cell, node): _fits(desk, attempt, name, cell, node) for cell in set(shape) for node in order}
    if near is not None:
        order = sorted(order, key=lambda node: node != near)
    found = (way for way in deal(shape, order, fits) if near is None or near in way)
    return [_tidy(shape, way) for way in islice(found, most)]


def _tidy(shape: Shape, way: tuple[int, ...]) -> tuple[int, ...]:
    """Cells that are alike are numbered as their nodes are."""
    tidied = list(way)
    for cell in set(shape):
        places = [place for place, other in enumerate(shape) if other == cell]
        for place, node in zip(places, sorted(way[place] for place in places), strict=True):
            tidied[place] = node
    return tuple(tidied)


def _place(desk: Desk, attempt: Attempt, name: str, only: tuple[int, ...] | None) -> None:
    """A guest that sits nowhere, on the best nodes, or on ``only`` those."""
    topology, wish, books, shape = desk.topology, desk.guests[name], attempt.books, desk.shapes[name]
    if attempt.problems.about(f"guest {name}"):
        return
    candidates = _candidates(desk, attempt, name)
    where = attempt.near[name][1]
    # The emptiest nodes, so that guests spread.  Of equals one without the boot CPU, where the kernel's own memory and
    # most of its work is; then the first.
    boot = topology.node_of[topology.boot_cpu]
    order = sorted(candidates, key=lambda node: (-len(books.free_on(node)), node == boot, node))
    ways = [only] if only is not None else _ways(desk, attempt, name, order)
    if only is not None and not _still_fits(desk, attempt, name, only):
        ways = []
    if not ways:
        attempt.crowded.append(name)
        if wish.goal in PINNED:
            _no_room(desk, name, candidates, where, attempt)
        elif not candidates:
            attempt.problems.add(
                f"guest {name}",
                "the host has no node with both CPUs and memory, and its memory is to be near its CPUs",
                "take goal flexible, or have memory plugged in beside the CPUs",
            )
        else:
            _take_memory(name, shape, candidates[:1], attempt)
        return
    if wish.goal not in PINNED:
        # Shared CPUs count first, free memory second, so that a node full of real-time guests is left alone.
        taken = frozenset(cpu for seated in attempt.seated.values() for core in seated.cores for cpu in core.threads)
        shared = topology.online - desk.housekeeping.cpus - desk.polling - taken
        node = max(
            (node for (node,) in ways),
            key=lambda n: (len(shared & topology.node_cpus(n)), books.room(n, attempt.pages[name]), -n),
        )
        books.take_memory(node, attempt.pages[name], wish.memory)
        attempt.seated[name] = Seated((Part(node, ()),), "")
        return
    if len(shape) > 1:
        if len(ways) == MOST_WAYS:  # there are more: at least those around each node are to be among them
            ways += [way for one in order for way in _ways(desk, attempt, name, _around(topology, one, order), most=1)]
        # The nearest to each other, of equals the emptiest, then those without the boot CPU.
        nodes = min(
            ways,
            key=lambda way: (_spread(topology, way), -sum(len(books.free_on(node)) for node in way), boot in way),
        )
        here = "the nodes nearest to each other with room for its cells" + (f", {where} among them" if where else "")
    else:
        nodes = ways[0]
        here = where or _here(topology, nodes[0], [node for (node,) in ways], books)
    if only is not None:
        here = where or "a node where all guests find room beside each other"
        if len(shape) > 1:
            here = "nodes where all guests find room beside each other"
    parts, reasons = [], []
    for cell, node in zip(shape, nodes, strict=True):
        chosen, reason = choose_cores(topology, books.free_on(node), part(wish, cell))
        parts.append(Part(node, chosen))
        reasons.append(reason)
    _take(books, shape, parts, attempt.pages[name])
    why = f"{topology.place(_busy(wish, shape, parts))} carry guest {name}: {here}, {'; '.join(dict.fromkeys(reasons))}"
    attempt.seated[name] = Seated(tuple(parts), why)


def _around(topology: Topology, node: int, order: Sequence[int]) -> list[int]:
    """These nodes, the nearest to one of them first."""
    return sorted(order, key=lambda other: topology.distance(node, other) or 255)


def _spread(topology: Topology, nodes: Sequence[int]) -> tuple[int, int]:
    """How far apart these nodes are: the sum of their distances, then the number of their sockets."""
    far = sum(topology.distance(one, other) or 255 for one, other in combinations(sorted(nodes), 2))
    return far, len({topology.package_of(node) for node in nodes})


def _still_fits(desk: Desk, attempt: Attempt, name: str, nodes: Sequence[int]) -> bool:
    return _allowed(desk, attempt, name, nodes) and all(
        _fits(desk, attempt, name, cell, node) for cell, node in zip(desk.shapes[name], nodes, strict=True)
    )


def _search(desk: Desk, start: Attempt, names: list[str]) -> dict[str, tuple[int, ...]] | None:
    """Nodes for each of these guests so that all fit; None when there are none, or none were found in MOST_TRIES.

    The largest first, each on the fullest nodes that still have room, which finds most answers without a detour.
    """
    wishes = desk.guests
    order = sorted(
        names, key=lambda name: (wishes[name].goal not in PINNED, -wishes[name].vcpus, -wishes[name].memory, name)
    )
    if len(order) > MOST_SEARCHED:
        return None
    tries = 0
    seen: set[object] = set()

    def visit(index: int, attempt: Attempt) -> dict[str, tuple[int, ...]] | None:
        nonlocal tries
        if index == len(order):
            return {}
        books = attempt.books
        state = (index, frozenset(books.free), tuple(sorted(books.promised.items())))
        if state in seen:
            return None
        seen.add(state)
        name = order[index]
        wish, shape = wishes[name], desk.shapes[name]
        fullest = sorted(
            _candidates(desk, attempt, name),
            key=lambda node: (len(books.free_on(node)), books.room(node, attempt.pages[name]), node),
        )
        for nodes in _ways(desk, attempt, name, fullest):
            tries += 1
            if tries > MOST_TRIES:
                return None
            after = replace(attempt, books=books.copy())
            parts = [
                Part(
                    node,
                    choose_cores(desk.topology, books.free_on(node), part(wish, cell))[0]
                    if wish.goal in PINNED
                    else (),
                )
                for cell, node in zip(shape, nodes, strict=True)
            ]
            _take(after.books, shape, parts, attempt.pages[name])
            found = visit(index + 1, after)
            if found is not None:
                return {name: nodes} | found
        return None

    return visit(0, start)


def _here(topology: Topology, node: int, fitting: list[int], books: Books) -> str:
    """Why this node, when nothing ties the guest to one."""
    if len(topology.cpu_nodes) == 1:
        return "the only node"
    if len(fitting) == 1:
        return "the only node with room for it"
    free = len(books.free_on(node))
    if any(len(books.free_on(other)) == free for other in fitting if other != node):
        return f"as many free cores as on any other node, and CPU {topology.boot_cpu} is elsewhere"
    return "the node with most free cores"


def _no_room(desk: Desk, name: str, nodes: list[int], where: str, attempt: Attempt) -> None:
    """Say what is free on which node, and what is missing."""
    wish, shape = desk.guests[name], desk.shapes[name]
    books, page = attempt.books, attempt.pages[name]
    topology = books.topology
    parts = []
    for node in topology.cpu_nodes:
        free = books.free_on(node)
        cpus = format_cpus(cpu for core in free for cpu in core.threads)
        label = f"node {node}" if topology.numa else "the host"
        parts.append(
            f"{label} has {capacity(wish, free)} free{f' (CPUs {cpus})' if cpus else ''} and "
            f"{format_size(books.room(node, page) // MIB * MIB)} for huge pages"
        )
    place = "" if not topology.numa else f" on node {nodes[0]} ({where})" if where else " on one node"
    needs = f"{need(wish)} and {format_size(wish.memory)}{place}"
    if wish.numa == "auto":
        needs = f"{need(wish)} and {format_size(wish.memory)}, over as many nodes as it takes"
    elif len(shape) > 1:
        each = [f"{need(part(wish, cell))} and {format_size(cell.memory)}" for cell in shape]
        needs = f"{len(shape)} nodes with {each[0]} each" if len(set(each)) == 1 else "; ".join(each)
        needs += f", {where} among them" if where else ""
    cure = (
        "a core per node stays with the host; take a smaller guest, another host, or leave out `near`"
        if where
        else "a core per node and part of its memory stay with the host; take a smaller guest or another host"
    )
    if wish.numa is None and not wish.cells and (count := _nodes_needed(desk, name)):
        cure = f"it is larger than a node of this host; spread it over {count} with  numa: {count}"
    attempt.problems.add(
        f"guest {name}", f"goal {wish.goal} needs {needs}; {'; '.join(parts)}", cure + give_back(books)
    )


def _nodes_needed(desk: Desk, name: str) -> int | None:
    """The fewest nodes, more than one, over which a guest would fit on the empty host; None: one is enough, or none."""
    wish = desk.guests[name].model_copy(update={"numa": "auto"})
    books, topology = desk.books, desk.topology
    for shape in cells.shapes(wish, topology, wish.page_size):
        page = page_size(name, wish, shape, topology, Problems())
        fits = {
            (cell, node): books.room(node, page) >= cell.memory and carries(wish, cell, books.free_on(node))
            for cell in shape
            for node in topology.cpu_nodes
        }
        if next(deal(shape, topology.cpu_nodes, fits), None) is not None:
            return len(shape) if len(shape) > 1 else None
    return None


def _take_memory(name: str, shape: Shape, nodes: Sequence[int], attempt: Attempt) -> bool:
    """Take the huge pages of a guest; False, with a problem, when they do not fit."""
    books, page = attempt.books, attempt.pages[name]
    short = [(cell, node) for cell, node in zip(shape, nodes, strict=True) if books.room(node, page) < cell.memory]
    if short:
        cell, node = short[0]
        numa = books.topology.numa
        left = ", ".join(
            f"{f'node {other} has ' if numa else ''}{format_size(books.room(other, page) // MIB * MIB)}"
            for other in sorted(books.capacity)
        )
        attempt.crowded.append(name)
        attempt.problems.add(
            f"guest {name}",
            f"{format_size(cell.memory)} of huge pages do not fit{f' on node {node}' if numa else ''}; "
            f"free for guests: {left or '0B'}",
            f"part of the memory stays with the host; take a smaller guest{' or another node' if numa else ''}"
            + give_back(books),
        )
        return False
    for cell, node in zip(shape, nodes, strict=True):
        books.take_memory(node, page, cell.memory)
    return True


def give_back(books: Books) -> str:
    """The other cure where memory lies in free huge pages that nobody asked for."""
    pools = books.idle_pools()
    return f"; or give back what no guest uses: {pools}" if pools else ""


def _far(name: str, wish: GuestWish, near: int | None, nodes: Sequence[int]) -> tuple[str, ...]:
    if near is None or near in nodes:
        return ()
    there = f"node{'s' * (len(nodes) > 1)} {format_cpus(nodes)}"
    return (f"guest {name} asks to be near {wish.near} (node {near}), but its `cpus` are on {there}",)


def page_size(name: str, wish: GuestWish, shape: Shape, topology: Topology, problems: Problems) -> int | None:
    """Huge page size of a guest in bytes; None: ordinary pages.

    performance and realtime: the largest that the host offers and that divides the memory of each cell.  balanced: the
    smallest of 2 MiB or more, because larger ones cannot be had at run time once memory is fragmented.
    """
    about = f"guest {name}"
    if wish.goal == "flexible":
        if wish.page_size is not None:
            problems.add(about, "goal flexible uses ordinary pages", "leave out `page_size`, or take goal balanced")
        return None
    facts, every = topology.facts, cells.unit_of(shape)
    offered = sorted(
        {pages.page_bytes for pages in facts.huge_pages}
        | {pages.page_bytes for node in facts.nodes for pages in node.huge_pages}
    )
    sizes = ", ".join(format_size(size) for size in offered) or "none"
    if wish.page_size is not None:
        if wish.page_size not in offered:
            problems.add(about, f"the host has no huge pages of {format_size(wish.page_size)}", f"it offers {sizes}")
            return None
        fitting = [wish.page_size] if every % wish.page_size == 0 else []
    else:
        fitting = [size for size in offered if size >= 2 * MIB and every % size == 0]
    if not fitting:
        unit = wish.page_size or next((size for size in offered if size >= 2 * MIB), None)
        odd = next((cell.memory for cell in shape if not unit or cell.memory % unit), wish.memory)
        what = "memory" if len(shape) == 1 else "the memory of a cell,"
        problems.add(
            about,
            f"{what} {format_size(odd)} is no whole number of huge pages (the host offers {sizes})",
            f"write {format_size(-(-odd // unit) * unit * (1 if wish.cells else len(shape)))}"
            if unit
            else "enable huge pages on the host first",
        )
        return None
    return fitting[0] if wish.goal == "balanced" else fitting[-1]


def near_node(
    about: str, near: str, topology: Topology, problems: Problems, key: str = "near"
) -> tuple[int | None, str]:
    """Node of a NIC or PCI function, and a phrase that says so.  None: the firmware does not tell."""
    facts = topology.facts
    address = pci_address(near)
    nic = next((nic for nic in facts.nics if nic.name == near), None)
    pci = next((pci for pci in facts.pci if pci.address == (nic.pci if nic else address)), None)
    if nic is None and pci is None:
        problems.add(
            about,
            f"{key}: the host has no network interface or PCI function {near}",
            did_you_mean(near, [nic.name for nic in facts.nics] or [pci.address for pci in facts.pci])
            or f"its facts know no device at all; leave `{key}` out",
        )
        return None, ""
    node = nic.node if nic and nic.node is not None else pci.node if pci else None
    if node is None and pci and pci.local_cpus & topology.online:
        nodes = {topology.node_of[cpu] for cpu in pci.local_cpus & topology.online}
        node = nodes.pop() if len(nodes) == 1 else None
    if node is None or node < 0:
        return None, ""
    if node in topology.cpu_nodes:
        return node, f"the node of {near}"
    distances = facts.node(node).distances if any(n.id == node for n in facts.nodes) else {}
    nearest = min(topology.cpu_nodes, key=lambda other: (distances.get(other, 255), other))
    return nearest, f"the nearest node with CPUs to {near}"
