"""Which guest runs where: its node, its cores, its pages, its priority.  Pure; the ledger follows from it.

Greedy and predictable: guests that are tied to CPUs or to a device choose first, then the most urgent.  A guest that
does not fit is a Problem that says how much is free on which node.  Source: reference host-tuning §2.1, §2.2, §2.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Ledger, VcpuPlan
from evenkeel.documents.quantity import format_duration, format_size
from evenkeel.documents.site import GuestWish, HostWish
from evenkeel.plan.ledger import choose_housekeeping, make_ledger
from evenkeel.plan.levels import is_strict
from evenkeel.plan.problems import Problems, did_you_mean
from evenkeel.plan.topology import Core, Topology

#: FIFO priorities of vCPUs.  Never 1: on a PREEMPT_RT kernel ktimers, rcuc and irq_work run at FIFO 1, and equal
#: priorities never preempt each other.  Always below KERNEL_PRIORITY, so that a vCPU cannot starve those threads.
VCPU_PRIORITIES = range(2, 10)
#: K of host-tuning §2.2: rcuc, rcub, ktimers, ksoftirqd and irq_work of real-time CPUs.
KERNEL_PRIORITY = 11
MIB = 1 << 20
GIB = 1 << 30
PINNED = ("realtime", "performance")


@dataclass(frozen=True)
class Placement:
    """One guest on one host.  ``cpus``: what its vCPUs run on; ``idle``: the siblings kept empty beside them."""

    name: str
    wish: GuestWish
    node: int | None
    vcpus: tuple[VcpuPlan, ...]
    threads_per_core: int  # of the guest's own topology
    idle: frozenset[int]
    emulator: frozenset[int]
    page_bytes: int | None
    pages: int
    why: tuple[str, ...]

    @property
    def goal(self) -> str:
        return self.wish.goal

    @property
    def pinned(self) -> bool:
        return self.wish.goal in PINNED

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(cpu for vcpu in self.vcpus for cpu in vcpu.cpus)

    @property
    def fifo_cpus(self) -> frozenset[int]:
        """Host CPUs that carry a FIFO vCPU."""
        return frozenset(cpu for vcpu in self.vcpus if vcpu.policy == "fifo" for cpu in vcpu.cpus)

    @property
    def strict(self) -> bool:
        return is_strict(self.goal, self.wish.latency)


@dataclass(frozen=True)
class HostLayout:
    """The ledger and the guests of one host, in the order of their names."""

    ledger: Ledger
    placements: tuple[Placement, ...]


def memory_reserve(node_bytes: int) -> int:
    """What huge pages must leave to the host on a node: 8 %, at least 4 GiB, but never more than a quarter of the node.

    Asking the kernel for too much is silent and starves the node: 900 pages asked, 554 given, 6 MB left (measured,
    host-tuning H-HP-1).  8 % is SUSE's figure for SAP HANA hosts; the other two bounds are our judgement.
    """
    return max(node_bytes * 8 // 100, min(4 * GIB, node_bytes // 4))


def realtime_vcpus(wish: GuestWish) -> frozenset[int]:
    """vCPUs at real-time priority: the wish, else all but 0 (the guest's own house), else the only one."""
    if wish.goal != "realtime":
        return frozenset()
    if wish.realtime_vcpus is not None:
        return wish.realtime_vcpus
    return frozenset(range(1, wish.vcpus)) if wish.vcpus > 1 else frozenset({0})


def priorities(guests: Mapping[str, GuestWish]) -> dict[str, int]:
    """FIFO priority of the vCPUs of each realtime guest: 2 for the least urgent, one more for each tighter latency.

    At most 9.
    """
    wanted = {name: wish.latency for name, wish in guests.items() if wish.goal == "realtime"}
    # Least urgent first; a guest without a number is less urgent than any with one.
    levels = sorted({latency for latency in wanted.values()}, key=lambda ns: (ns is not None, -(ns or 0)))
    first, last = VCPU_PRIORITIES[0], VCPU_PRIORITIES[-1]
    return {name: min(first + levels.index(latency), last) for name, latency in wanted.items()}


@dataclass
class _Books:
    """What is still free while guests are placed, one after the other."""

    topology: Topology
    free: set[Core]
    memory: dict[int, int]  # node -> bytes that huge pages may still take
    problems: Problems
    taken: dict[Core, str] = field(default_factory=dict)

    def free_on(self, node: int) -> list[Core]:
        return [core for core in self.topology.cores_of(node) if core in self.free]

    def take(self, cores: Iterable[Core], name: str) -> None:
        for core in cores:
            self.free.discard(core)
            self.taken[core] = name


@dataclass(frozen=True)
class _Pinned:
    """A guest with cores of its own, before the shared set is known."""

    node: int
    cores: tuple[Core, ...]
    why: tuple[str, ...]


def lay_out(
    host: str, wish: HostWish, topology: Topology, guests: Mapping[str, GuestWish], problems: Problems
) -> HostLayout | None:
    """Place all guests of one host and close its ledger.  None when ``problems`` got an entry that prevents it."""
    before = len(problems.found)
    claims = _claims(topology, guests, problems)
    claimed = frozenset(cpu for cores in claims.values() for core in cores for cpu in core.threads)
    housekeeping = choose_housekeeping(topology, wish.housekeeping, claimed, host, problems)
    if len(problems.found) > before:
        return None
    floating_claims = frozenset(
        cpu for guest in guests.values() if guest.goal not in PINNED and guest.cpus for cpu in guest.cpus
    )
    kept = housekeeping.cpus | topology.whole(floating_claims & topology.online)
    books = _Books(
        topology=topology,
        free={core for core in topology.cores if not core.cpus & kept},
        memory={
            node.id: node.memory_bytes - memory_reserve(node.memory_bytes)
            for node in topology.facts.nodes
            if node.memory_bytes
        }
        or {0: topology.facts.memory_bytes - memory_reserve(topology.facts.memory_bytes)},
        problems=problems,
    )
    for name, cores in sorted(claims.items()):
        books.take(cores, name)
    pages = {name: page_size(name, guest, topology, problems) for name, guest in sorted(guests.items())}
    pinned: dict[str, _Pinned] = {}
    for name in sorted(guests, key=lambda name: _urgency(name, guests[name])):
        guest = guests[name]
        if guest.goal in PINNED:
            placed = _place_pinned(name, guest, claims.get(name), pages[name], books)
            if placed:
                pinned[name] = placed
    busy = {name: _threads(guests[name], placed.cores) for name, placed in pinned.items()}
    realtime = frozenset(cpu for cpus in busy.values() for cpu in cpus)
    idle = frozenset(cpu for placed in pinned.values() for core in placed.cores for cpu in core.threads) - realtime
    ledger = make_ledger(topology, housekeeping.cpus, realtime, idle, ())
    why = list(housekeeping.why)
    ranks = priorities(guests)
    placements: list[Placement] = []
    for name, guest in sorted(guests.items()):
        if guest.goal in PINNED:
            if name in pinned:
                placements.append(_finish(name, guest, pinned[name], busy[name], ledger, pages[name], ranks, topology))
        else:
            floating = _place_floating(name, guest, ledger, pages[name], books)
            if floating:
                placements.append(floating)
    _check_ordinary_memory(host, guests, books, problems)
    if len(problems.found) > before:
        return None
    why += [sentence for placement in placements if placement.pinned for sentence in placement.why[:1]]
    floaters = [name for name, guest in sorted(guests.items()) if guest.goal not in PINNED]
    if ledger.shared:
        users = f"guests {', '.join(floaters)} float there" if floaters else "no guest runs there yet"
        why.append(f"shared {format_cpus(ledger.shared)}: the rest; {users}")
    elif floaters:
        why.append(
            f"nothing is left to share, so guests {', '.join(floaters)} run on the housekeeping CPUs "
            f"{format_cpus(ledger.housekeeping)}, beside the host's own work"
        )
    return HostLayout(ledger.model_copy(update={"why": tuple(why)}), tuple(placements))


def _urgency(name: str, wish: GuestWish) -> tuple[bool, bool, bool, int, str]:
    return (wish.cpus is None, wish.near is None, wish.goal != "realtime", wish.latency or 1 << 62, name)


def _claims(topology: Topology, guests: Mapping[str, GuestWish], problems: Problems) -> dict[str, tuple[Core, ...]]:
    """Cores that the owner gave to pinned guests by number; each mistake in them is a problem."""
    claims: dict[str, tuple[Core, ...]] = {}
    for name, wish in sorted(guests.items()):
        if wish.cpus is None:
            continue
        about = f"guest {name}"
        if missing := wish.cpus - topology.online:
            problems.add(
                about,
                f"cpus names CPU {format_cpus(missing)}, which the host does not have online",
                f"online are {format_cpus(topology.online)}",
            )
            continue
        if not wish.cpus:
            problems.add(about, "cpus is empty", "name at least one CPU, or leave `cpus` out")
            continue
        if wish.goal not in PINNED:
            continue
        cores = tuple(sorted({topology.core_of[cpu] for cpu in wish.cpus}))
        nodes = sorted({core.node for core in cores})
        boot = topology.core_of[topology.boot_cpu]
        if boot in cores:
            problems.add(
                about,
                f"cpus {format_cpus(wish.cpus)} takes the core {format_cpus(boot.threads)} of CPU {topology.boot_cpu}, "
                "which the kernel never isolates",
                f"use CPUs other than {format_cpus(boot.threads)}",
            )
        if len(nodes) > 1:
            split = "; ".join(f"node {node} has {format_cpus(topology.node_cpus(node))}" for node in nodes)
            problems.add(about, f"cpus {format_cpus(wish.cpus)} lie on nodes {format_cpus(nodes)}", f"use one: {split}")
        room = _capacity(wish, cores)
        if room < wish.vcpus:
            problems.add(
                about,
                f"{wish.vcpus} vCPUs with goal {wish.goal} need {_need(wish)}, "
                f"cpus {format_cpus(wish.cpus)} gives {room}",
                "name more CPUs, or leave `cpus` out and let the planner choose",
            )
        elif len(_enough(wish, cores)) < len(cores):
            problems.add(
                about,
                f"cpus {format_cpus(wish.cpus)} names {len(cores)} cores, {wish.vcpus} vCPUs use "
                f"{len(_enough(wish, cores))} of them",
                "leave out the CPUs that would stand empty",
            )
        claims[name] = cores
    _check_overlap(topology, guests, claims, problems)
    return claims


def _check_overlap(
    topology: Topology,
    guests: Mapping[str, GuestWish],
    claims: Mapping[str, tuple[Core, ...]],
    problems: Problems,
) -> None:
    """No two guests on one core, unless both float."""
    for name, cores in sorted(claims.items()):
        mine = frozenset(cpu for core in cores for cpu in core.threads)
        for other, wish in sorted(guests.items()):
            if wish.cpus is None or other == name or (other in claims and other < name):
                continue
            both = mine & topology.whole(wish.cpus & topology.online)
            if both:
                problems.add(
                    f"guest {name}",
                    f"guests {name} and {other} both want the core of CPU {format_cpus(both)}",
                    f"goal {guests[name].goal} needs whole cores of its own; change `cpus` of one of the two",
                )


def _capacity(wish: GuestWish, cores: Iterable[Core]) -> int:
    """How many vCPUs these cores carry: one a core for realtime, one a thread for performance."""
    return sum(1 if wish.goal == "realtime" else len(core.threads) for core in cores)


def _need(wish: GuestWish) -> str:
    """``"2 whole cores"``."""
    plural = "s" if wish.vcpus > 1 else ""
    if wish.goal == "realtime":
        return f"{wish.vcpus} whole core{plural}"
    return f"{wish.vcpus} thread{plural} of whole cores"


def _enough(wish: GuestWish, cores: Iterable[Core]) -> tuple[Core, ...]:
    """The first of these cores that carry all vCPUs; fewer when they do not suffice."""
    chosen: list[Core] = []
    for core in cores:
        if _capacity(wish, chosen) >= wish.vcpus:
            break
        chosen.append(core)
    return tuple(chosen)


def _threads(wish: GuestWish, cores: tuple[Core, ...]) -> tuple[int, ...]:
    """Host CPU of each vCPU, in the order of the vCPUs."""
    if wish.goal == "realtime":
        # Of a core that the owner named by its second thread, that thread is used.
        named = wish.cpus or frozenset()
        return tuple(min(core.cpus & named, default=core.first) for core in cores)[: wish.vcpus]
    return tuple(cpu for core in cores for cpu in core.threads)[: wish.vcpus]


def _place_pinned(
    name: str, wish: GuestWish, claim: tuple[Core, ...] | None, page: int | None, books: _Books
) -> _Pinned | None:
    topology = books.topology
    near, where = (None, "") if wish.near is None else near_node(name, wish.near, topology, books.problems)
    if books.problems.about(f"guest {name}"):
        return None
    if claim is not None:
        node, cores = claim[0].node, claim
        if not _take_memory(name, wish, node, books):
            return None
        why = f"{topology.place(_threads(wish, cores))} carry guest {name}: its owner names them"
        return _Pinned(node, cores, (why, *_far(name, wish, near, node)))
    candidates = [near] if near is not None else list(topology.cpu_nodes)
    fitting = [
        node
        for node in candidates
        if _capacity(wish, books.free_on(node)) >= wish.vcpus and books.memory.get(node, 0) >= wish.memory
    ]
    if not fitting:
        _no_room(name, wish, candidates, where, books)
        return None
    # The emptiest node, so that guests spread.  Of equals one without the boot CPU, where the kernel's own memory and
    # most of its work is; then the first.
    boot = topology.node_of[topology.boot_cpu]
    node = max(fitting, key=lambda node: (len(books.free_on(node)), node != boot, -node))
    here = where or _here(topology, node, fitting, books)
    cores, reason = choose_cores(topology, books.free_on(node), wish)
    books.take(cores, name)
    _take_memory(name, wish, node, books)
    why = f"{topology.place(_threads(wish, cores))} carry guest {name}: {here}, {reason}"
    return _Pinned(node, cores, (why,))


def _here(topology: Topology, node: int, fitting: list[int], books: _Books) -> str:
    """Why this node, when nothing ties the guest to one."""
    if len(topology.cpu_nodes) == 1:
        return "the only node"
    if len(fitting) == 1:
        return "the only node with room for it"
    free = len(books.free_on(node))
    if any(len(books.free_on(other)) == free for other in fitting if other != node):
        return f"as many free cores as on any other node, and CPU {topology.boot_cpu} is elsewhere"
    return "the node with most free cores"


def choose_cores(topology: Topology, free: list[Core], wish: GuestWish) -> tuple[tuple[Core, ...], str]:
    """Cores for a guest out of the free ones of a node: the fastest class, in the fullest L3 domain that still fits."""
    domains: dict[frozenset[int], list[Core]] = {}
    for core in sorted(free, key=lambda core: (core.rank, core.first)):
        domains.setdefault(topology.l3_of(core), []).append(core)
    fitting = [(_enough(wish, cores), cores) for cores in domains.values() if _capacity(wish, cores) >= wish.vcpus]
    if fitting:
        chosen, _ = min(
            fitting,
            key=lambda fit: (sum(core.rank for core in fit[0]), len(fit[1]), fit[0][0].first),
        )
        return chosen, "whole cores that share one L3 cache"
    ordered = [core for cores in sorted(domains.values(), key=lambda cores: (-len(cores), cores[0])) for core in cores]
    return _enough(wish, ordered), "whole cores; no single L3 domain has room for all of them"


def _no_room(name: str, wish: GuestWish, nodes: list[int], where: str, books: _Books) -> None:
    """Say what is free on which node, and what is missing."""
    topology = books.topology
    parts = []
    for node in topology.cpu_nodes:
        free = books.free_on(node)
        cpus = format_cpus(cpu for core in free for cpu in core.threads)
        label = f"node {node}" if topology.numa else "the host"
        parts.append(
            f"{label} has {_capacity(wish, free)} free{f' (CPUs {cpus})' if cpus else ''} and "
            f"{format_size(max(0, books.memory.get(node, 0)) // MIB * MIB)} for huge pages"
        )
    place = "" if not topology.numa else f" on node {nodes[0]} ({where})" if where else " on one node"
    books.problems.add(
        f"guest {name}",
        f"goal {wish.goal} needs {_need(wish)} and {format_size(wish.memory)}{place}; {'; '.join(parts)}",
        "a core per node stays with the host; take a smaller guest, another host, or leave out `near`"
        if where
        else "a core per node and part of its memory stay with the host; take a smaller guest or another host",
    )


def _take_memory(name: str, wish: GuestWish, node: int, books: _Books) -> bool:
    free = books.memory.get(node, 0)
    if free < wish.memory:
        numa = books.topology.numa
        left = ", ".join(
            f"{f'node {other} has ' if numa else ''}{format_size(max(0, size) // MIB * MIB)}"
            for other, size in sorted(books.memory.items())
        )
        books.problems.add(
            f"guest {name}",
            f"{format_size(wish.memory)} of huge pages do not fit{f' on node {node}' if numa else ''}; "
            f"free for guests: {left}",
            "part of the memory stays with the host; take a smaller guest" + (" or another node" if numa else ""),
        )
        return False
    books.memory[node] = free - wish.memory
    return True


def _far(name: str, wish: GuestWish, near: int | None, node: int) -> tuple[str, ...]:
    if near is None or near == node:
        return ()
    return (f"guest {name} asks to be near {wish.near} (node {near}), but its `cpus` are on node {node}",)


def _finish(
    name: str,
    wish: GuestWish,
    placed: _Pinned,
    threads: tuple[int, ...],
    ledger: Ledger,
    page: int | None,
    ranks: Mapping[str, int],
    topology: Topology,
) -> Placement:
    fifo = realtime_vcpus(wish)
    why = list(placed.why)
    vcpus = tuple(
        VcpuPlan(
            index=index,
            cpus=frozenset({cpu}),
            policy="fifo" if index in fifo else "other",
            priority=ranks[name] if index in fifo else 0,
        )
        for index, cpu in enumerate(threads)
    )
    idle = frozenset(cpu for core in placed.cores for cpu in core.threads) - set(threads)
    if idle:
        why.append(
            f"their siblings {format_cpus(idle)} stay empty: a busy sibling shares caches and execution units"
            if wish.goal == "realtime"
            else f"{topology.place(idle)} stays empty: {wish.vcpus} vCPUs do not fill the last core"
        )
    if wish.goal == "realtime":
        why.append(
            f"vCPU {format_cpus(fifo)} runs at FIFO {ranks[name]}: above the kernel's FIFO 1 threads, below "
            f"{KERNEL_PRIORITY}; "
            + (
                f"more urgent guests rank higher (this one: {format_duration(wish.latency)})"
                if wish.latency
                else "no latency is stated, so it ranks below those that state one"
            )
        )
        if house := frozenset(range(wish.vcpus)) - fifo:
            why.append(f"vCPU {format_cpus(house)} is the guest's own housekeeping: a core of its own, ordinary policy")
        elif wish.vcpus == 1:
            why.append("its only vCPU is at real-time priority: the guest's own housekeeping competes with its work")
    emulator = ledger.housekeeping & topology.node_cpus(placed.node)
    why.append(f"emulator and I/O threads on housekeeping {format_cpus(emulator)} of the same node")
    threads_per_core = min(len(core.threads) for core in placed.cores) if wish.goal == "performance" else 1
    return Placement(
        name=name,
        wish=wish,
        node=placed.node if topology.numa else None,
        vcpus=vcpus,
        threads_per_core=threads_per_core if wish.vcpus % threads_per_core == 0 else 1,
        idle=idle,
        emulator=emulator,
        page_bytes=page,
        pages=wish.memory // page if page else 0,
        why=tuple(why),
    )


def _place_floating(name: str, wish: GuestWish, ledger: Ledger, page: int | None, books: _Books) -> Placement | None:
    """A balanced guest floats over the shared CPUs of one node, a flexible one over all of them."""
    topology, problems = books.topology, books.problems
    if wish.vcpus > len(topology.online):
        problems.add(
            f"guest {name}",
            f"{wish.vcpus} vCPUs, but the host has {len(topology.online)} CPUs online ({format_cpus(topology.online)})",
            "take fewer vCPUs or another host",
        )
        return None
    near = None
    why: list[str] = []
    if wish.near is not None:
        near, _ = near_node(name, wish.near, topology, problems)
    if problems.about(f"guest {name}"):
        return None
    node: int | None = None
    pool = ledger.shared or ledger.housekeeping
    if wish.goal == "balanced":
        # Shared CPUs count first, free memory second, so that a node full of real-time guests is left alone.
        candidates = [near] if near is not None else [n for n in topology.cpu_nodes if n in books.memory]
        if wish.cpus is not None:
            candidates = sorted({topology.node_of[cpu] for cpu in wish.cpus})
        fitting = [n for n in candidates if books.memory.get(n, 0) >= wish.memory]
        if not fitting:
            _take_memory(name, wish, candidates[0] if candidates else 0, books)
            return None
        node = max(fitting, key=lambda n: (len(pool & topology.node_cpus(n)), books.memory[n], -n))
        _take_memory(name, wish, node, books)
        pool = (pool & topology.node_cpus(node)) or (ledger.housekeeping & topology.node_cpus(node))
    if wish.cpus is not None:
        if stolen := wish.cpus & ledger.isolated:
            problems.add(
                f"guest {name}",
                f"cpus {format_cpus(wish.cpus)} includes CPU {format_cpus(stolen)}, which a real-time guest owns",
                f"free for it: {format_cpus(ledger.shared | ledger.housekeeping)}",
            )
            return None
        pool = wish.cpus
        why.append(f"guest {name} floats over {format_cpus(pool)}: its owner names them")
    else:
        why.append(
            f"guest {name} floats over the shared {topology.place(pool)}"
            if pool <= ledger.shared
            else f"guest {name} floats over housekeeping {topology.place(pool)}: no shared CPU is left for it"
        )
    if wish.vcpus > len(pool):
        why.append(f"its {wish.vcpus} vCPUs take turns on {len(pool)} CPUs")
    emulator = pool
    if wish.goal == "balanced" and node is not None:
        emulator = ledger.housekeeping & topology.node_cpus(node)
        why.append(f"emulator and I/O threads on housekeeping {format_cpus(emulator)} of the same node")
    return Placement(
        name=name,
        wish=wish,
        node=node if topology.numa else None,
        vcpus=tuple(VcpuPlan(index=index, cpus=pool) for index in range(wish.vcpus)),
        threads_per_core=1,
        idle=frozenset(),
        emulator=emulator,
        page_bytes=page,
        pages=wish.memory // page if page else 0,
        why=tuple(why),
    )


def _check_ordinary_memory(host: str, guests: Mapping[str, GuestWish], books: _Books, problems: Problems) -> None:
    """Guests on ordinary pages must fit beside the huge pages: an out-of-memory kill would not spare the others."""
    flexible = {name: wish.memory for name, wish in sorted(guests.items()) if wish.goal == "flexible"}
    free = sum(books.memory.values())
    if flexible and sum(flexible.values()) > free:
        sizes = ", ".join(f"{name} {format_size(size)}" for name, size in flexible.items())
        problems.add(
            f"guest {max(flexible, key=lambda name: (flexible[name], name))}",
            f"host {host} has {format_size(max(0, free) // MIB * MIB)} left for guests on ordinary pages ({sizes})",
            "take smaller guests or another host",
        )


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
            did_you_mean(near, [nic.name for nic in facts.nics] or [pci.address for pci in facts.pci]),
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
