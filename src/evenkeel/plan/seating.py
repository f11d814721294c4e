"""Who sits where: a node and cores for each guest of a host, in one attempt.  Pure.

First those whose owner names CPUs, then those who sit somewhere already (:mod:`evenkeel.plan.seats`), then the others:
tied to a device, then the most urgent, each on the emptiest node.  Where that leaves somebody out, every way to spread
them over the nodes is tried.  A guest that does not fit is a Problem that says how much is free on which node.
Whether somebody who sits is to move is :mod:`evenkeel.plan.placement`'s question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.quantity import format_size
from evenkeel.documents.site import GuestWish
from evenkeel.plan.books import Books
from evenkeel.plan.cores import PINNED, capacity, choose_cores, enough, need, threads, with_vcpus
from evenkeel.plan.ledger import Housekeeping
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
    housekeeping: Housekeeping
    books: Books  # nothing placed yet but the claims


@dataclass(frozen=True)
class Seated:
    """Where a guest is, before the shared set is known.  ``cores``: none for a balanced guest."""

    node: int
    cores: tuple[Core, ...]
    why: str
    more: tuple[str, ...] = ()


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
        pages={name: page_size(name, guest, desk.topology, problems) for name, guest in guests},
        near={
            name: (None, "") if guest.near is None else near_node(name, guest.near, desk.topology, problems)
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
            _grow(desk, start, name)
    rest = [name for name in order if name not in start.seated and desk.guests[name].goal != "flexible"]
    greedy = start.copy()
    for name in rest:
        _place(desk, greedy, name, None)
    if greedy.crowded:
        nodes = _search(desk, start, [name for name in rest if not start.problems.about(f"guest {name}")])
        if nodes is not None:
            found = start.copy()
            for name in rest:
                _place(desk, found, name, nodes.get(name))
            return found
    return greedy


def urgency(name: str, wish: GuestWish) -> tuple[bool, bool, bool, int, str]:
    return (wish.cpus is None, wish.near is None, wish.goal != "realtime", wish.latency or 1 << 62, name)


def _place_claim(desk: Desk, attempt: Attempt, name: str) -> None:
    """A pinned guest whose owner names its CPUs."""
    topology, wish, cores = desk.topology, desk.guests[name], desk.claims[name]
    if attempt.problems.about(f"guest {name}"):
        return
    near, _ = attempt.near[name]
    node = cores[0].node
    if _take_memory(name, wish, node, attempt):
        why = f"{topology.place(threads(wish, cores))} carry guest {name}: its owner names them"
        attempt.seated[name] = Seated(node, cores, why, _far(name, wish, near, node))


def _keep(desk: Desk, attempt: Attempt, name: str, seat: Seat) -> None:
    """Leave a guest where it is, as far as the site and the machine allow; its memory and cores are taken."""
    topology, wish, books = desk.topology, desk.guests[name], attempt.books
    if attempt.problems.about(f"guest {name}") or wish.goal == "flexible":
        return
    page = attempt.pages[name]
    cores: tuple[Core, ...] = ()
    if wish.goal in PINNED:
        held = dict.fromkeys(topology.core_of[cpu] for cpu in seat.cpus if cpu in topology.online)
        node = next(iter(held)).node if held else None
        cores = enough(wish, [core for core in held if core.node == node and core in books.free])
        if not cores:
            return
    else:
        node = seat.node if topology.numa else 0
    if node is None or node not in _candidates(desk, attempt, name) or books.room(node, page) < wish.memory:
        return
    books.take(cores)
    books.take_memory(node, page, wish.memory)
    attempt.seated[name] = Seated(node, cores, "")


def _grow(desk: Desk, attempt: Attempt, name: str) -> None:
    """Give a guest that kept its cores those that it needs now and did not have; else take all of them back."""
    topology, wish, books = desk.topology, desk.guests[name], attempt.books
    if wish.goal not in PINNED:
        return
    seated = attempt.seated[name]
    missing = wish.vcpus - capacity(wish, seated.cores)
    cores = seated.cores
    if missing > 0:
        more = with_vcpus(wish, missing)
        free = books.free_on(seated.node)
        if capacity(more, free) < missing:
            books.give_back(cores, seated.node, attempt.pages[name], wish.memory)
            del attempt.seated[name]
            return
        beside = frozenset().union(*(topology.l3_of(core) for core in cores))
        added, _ = choose_cores(topology, [core for core in free if core.cpus <= beside], more)
        if capacity(more, added) < missing:
            added, _ = choose_cores(topology, free, more)
        books.take(added)
        cores += added
    why = f"{topology.place(threads(wish, cores))} carry guest {name}: it is there already"
    if missing > 0:
        why = f"{topology.place(threads(wish, cores))} carry guest {name}: it is there already, and needs more now"
    attempt.seated[name] = Seated(seated.node, cores, why)


def _candidates(desk: Desk, attempt: Attempt, name: str) -> list[int]:
    """Nodes that a guest may be on at all, whatever is free there."""
    wish, (near, _) = desk.guests[name], attempt.near[name]
    if near is not None:
        return [near]
    if wish.cpus is not None:
        return sorted({desk.topology.node_of[cpu] for cpu in wish.cpus})
    return [node for node in desk.topology.cpu_nodes if wish.goal in PINNED or node in attempt.books.capacity]


def _fits(desk: Desk, attempt: Attempt, name: str, node: int) -> bool:
    wish, books = desk.guests[name], attempt.books
    if books.room(node, attempt.pages[name]) < wish.memory:
        return False
    return wish.goal not in PINNED or capacity(wish, books.free_on(node)) >= wish.vcpus


def _place(desk: Desk, attempt: Attempt, name: str, only: int | None) -> None:
    """A guest that sits nowhere, on the best node, or on ``only`` that."""
    topology, wish, books = desk.topology, desk.guests[name], attempt.books
    if attempt.problems.about(f"guest {name}"):
        return
    candidates = _candidates(desk, attempt, name)
    fitting = [node for node in candidates if only in (None, node) and _fits(desk, attempt, name, node)]
    where = attempt.near[name][1]
    if not fitting:
        attempt.crowded.append(name)
        if wish.goal in PINNED:
            _no_room(name, wish, candidates, where, attempt)
        elif not candidates:
            attempt.problems.add(
                f"guest {name}",
                "the host has no node with both CPUs and memory, and its memory is to be near its CPUs",
                "take goal flexible, or have memory plugged in beside the CPUs",
            )
        else:
            _take_memory(name, wish, candidates[0], attempt)
        return
    if wish.goal not in PINNED:
        # Shared CPUs count first, free memory second, so that a node full of real-time guests is left alone.
        taken = frozenset(cpu for seated in attempt.seated.values() for core in seated.cores for cpu in core.threads)
        shared = topology.online - desk.housekeeping.cpus - taken
        node = max(fitting, key=lambda n: (len(shared & topology.node_cpus(n)), books.room(n, attempt.pages[name]), -n))
        books.take_memory(node, attempt.pages[name], wish.memory)
        attempt.seated[name] = Seated(node, (), "")
        return
    # The emptiest node, so that guests spread.  Of equals one without the boot CPU, where the kernel's own memory and
    # most of its work is; then the first.
    boot = topology.node_of[topology.boot_cpu]
    node = max(fitting, key=lambda node: (len(books.free_on(node)), node != boot, -node))
    here = where or (
        _here(topology, node, fitting, books) if only is None else "a node where all guests find room beside each other"
    )
    cores, reason = choose_cores(topology, books.free_on(node), wish)
    books.take(cores)
    books.take_memory(node, attempt.pages[name], wish.memory)
    why = f"{topology.place(threads(wish, cores))} carry guest {name}: {here}, {reason}"
    attempt.seated[name] = Seated(node, cores, why)


def _search(desk: Desk, start: Attempt, names: list[str]) -> dict[str, int] | None:
    """A node for each of these guests so that all fit; None when there is none, or none was found in MOST_TRIES.

    The largest first, each on the fullest node that still has room, which finds most answers without a detour.
    """
    wishes = desk.guests
    order = sorted(
        names, key=lambda name: (wishes[name].goal not in PINNED, -wishes[name].vcpus, -wishes[name].memory, name)
    )
    if len(order) > MOST_SEARCHED:
        return None
    tries = 0
    seen: set[object] = set()

    def visit(index: int, attempt: Attempt) -> dict[str, int] | None:
        nonlocal tries
        if index == len(order):
            return {}
        books = attempt.books
        state = (index, frozenset(books.free), tuple(sorted(books.promised.items())))
        if state in seen:
            return None
        seen.add(state)
        name = order[index]
        wish = wishes[name]
        nodes = [node for node in _candidates(desk, attempt, name) if _fits(desk, attempt, name, node)]
        nodes.sort(key=lambda node: (len(books.free_on(node)), books.room(node, attempt.pages[name]), node))
        for node in nodes:
            tries += 1
            if tries > MOST_TRIES:
                return None
            after = replace(attempt, books=books.copy())
            if wish.goal in PINNED:
                after.books.take(choose_cores(desk.topology, books.free_on(node), wish)[0])
            after.books.take_memory(node, attempt.pages[name], wish.memory)
            found = visit(index + 1, after)
            if found is not None:
                return {name: node} | found
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


def _no_room(name: str, wish: GuestWish, nodes: list[int], where: str, attempt: Attempt) -> None:
    """Say what is free on which node, and what is missing."""
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
    attempt.problems.add(
        f"guest {name}",
        f"goal {wish.goal} needs {need(wish)} and {format_size(wish.memory)}{place}; {'; '.join(parts)}",
        (
            "a core per node stays with the host; take a smaller guest, another host, or leave out `near`"
            if where
            else "a core per node and part of its memory stay with the host; take a smaller guest or another host"
        )
        + give_back(books),
    )


def _take_memory(name: str, wish: GuestWish, node: int, attempt: Attempt) -> bool:
    """Take the huge pages of a guest; False, with a problem, when they do not fit."""
    books, page = attempt.books, attempt.pages[name]
    if books.room(node, page) < wish.memory:
        numa = books.topology.numa
        left = ", ".join(
            f"{f'node {other} has ' if numa else ''}{format_size(books.room(other, page) // MIB * MIB)}"
            for other in sorted(books.capacity)
        )
        attempt.crowded.append(name)
        attempt.problems.add(
            f"guest {name}",
            f"{format_size(wish.memory)} of huge pages do not fit{f' on node {node}' if numa else ''}; "
            f"free for guests: {left or '0B'}",
            f"part of the memory stays with the host; take a smaller guest{' or another node' if numa else ''}"
            + give_back(books),
        )
        return False
    books.take_memory(node, page, wish.memory)
    return True


def give_back(books: Books) -> str:
    """The other cure where memory lies in free huge pages that nobody asked for."""
    pools = books.idle_pools()
    return f"; or give back what no guest uses: {pools}" if pools else ""


def _far(name: str, wish: GuestWish, near: int | None, node: int) -> tuple[str, ...]:
    if near is None or near == node:
        return ()
    return (f"guest {name} asks to be near {wish.near} (node {near}), but its `cpus` are on node {node}",)


def page_size(name: str, wish: GuestWish, topology: Topology, problems: Problems) -> int | None:
    """Huge page size of a guest in bytes; None: ordinary pages.

    performance and realtime: the largest that the host offers and that divides the memory.  balanced: the smallest of
    2 MiB or more, because larger ones cannot be had at run time once memory is fragmented.
    """
    about = f"guest {name}"
    if wish.goal == "flexible":
        if wish.page_size is not None:
            problems.add(about, "goal flexible uses ordinary pages", "leave out `page_size`, or take goal balanced")
        return None
    facts = topology.facts
    offered = sorted(
        {pages.page_bytes for pages in facts.huge_pages}
        | {pages.page_bytes for node in facts.nodes for pages in node.huge_pages}
    )
    sizes = ", ".join(format_size(size) for size in offered) or "none"
    if wish.page_size is not None:
        if wish.page_size not in offered:
            problems.add(about, f"the host has no huge pages of {format_size(wish.page_size)}", f"it offers {sizes}")
            return None
        fitting = [wish.page_size] if wish.memory % wish.page_size == 0 else []
    else:
        fitting = [size for size in offered if size >= 2 * MIB and wish.memory % size == 0]
    if not fitting:
        unit = wish.page_size or next((size for size in offered if size >= 2 * MIB), None)
        problems.add(
            about,
            f"memory {format_size(wish.memory)} is no whole number of huge pages (the host offers {sizes})",
            f"write {format_size(-(-wish.memory // unit) * unit)}" if unit else "enable huge pages on the host first",
        )
        return None
    return fitting[0] if wish.goal == "balanced" else fitting[-1]


def near_node(name: str, near: str, topology: Topology, problems: Problems) -> tuple[int | None, str]:
    """Node of a NIC or PCI function, and a phrase that says so.  None: the firmware does not tell."""
    facts = topology.facts
    address = near if near.count(":") == 2 else f"0000:{near}"
    nic = next((nic for nic in facts.nics if nic.name == near), None)
    pci = next((pci for pci in facts.pci if pci.address == (nic.pci if nic else address)), None)
    if nic is None and pci is None:
        problems.add(
            f"guest {name}",
            f"near: the host has no network interface or PCI function {near}",
            did_you_mean(near, [nic.name for nic in facts.nics] or [pci.address for pci in facts.pci])
            or "its facts know no device at all; leave `near` out",
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
