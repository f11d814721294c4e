"""Which guest runs where: its node, its cores, its pages, its priority.  Pure; the ledger follows from it.

Predictable, and it moves nothing that need not move: who sits somewhere stays there (:mod:`evenkeel.plan.seats`).  Of
the others, guests that are tied to CPUs or to a device choose first, then the most urgent; where they then do not all
fit, every way to spread them over the nodes is tried, and only then a guest that sits is moved.  A guest that does not
fit is a Problem that says how much is free on which node.  Source: reference host-tuning §2.1, §2.2, §2.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice, product

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Ledger, VcpuPlan
from evenkeel.documents.quantity import format_duration, format_size
from evenkeel.documents.site import GuestWish, HostWish
from evenkeel.plan.books import memory_reserve as memory_reserve
from evenkeel.plan.books import open_books
from evenkeel.plan.cells import Shape, numbers, shapes, sockets
from evenkeel.plan.claims import find_claims
from evenkeel.plan.cores import PINNED as PINNED
from evenkeel.plan.cores import threads_per_core
from evenkeel.plan.dataplane import NOTHING, Polling, choose_polling
from evenkeel.plan.ledger import choose_housekeeping, make_ledger
from evenkeel.plan.levels import is_strict
from evenkeel.plan.passthrough import NOTHING as NOT_PASSED
from evenkeel.plan.passthrough import Passed
from evenkeel.plan.problems import Problems
from evenkeel.plan.seating import Attempt, Desk, Seated, busy, give_back, seat_guests, urgency
from evenkeel.plan.seats import NONE, Seat, Seats
from evenkeel.plan.topology import Topology

#: FIFO priorities of vCPUs.  Never 1: on a PREEMPT_RT kernel ktimers, rcuc and irq_work run at FIFO 1, and equal
#: priorities never preempt each other.  Always below KERNEL_PRIORITY, so that a vCPU cannot starve those threads.
VCPU_PRIORITIES = range(2, 10)
#: K of host-tuning §2.2: rcuc, rcub, ktimers, ksoftirqd and irq_work of real-time CPUs.
KERNEL_PRIORITY = 11
MIB = 1 << 20
#: Numbers of cells of all guests together that are tried where ``numa: auto`` leaves them open: when nobody moves or
#: everybody may, and for each choice of guests that are to move.
MOST_SHAPES, FEW_SHAPES = 64, 8


@dataclass(frozen=True)
class Cell:
    """What a guest has on one node.  ``node`` None: the host has no nodes, or the guest floats over all of them.

    ``distances``: to each cell of the guest, itself included, in their order; empty where the facts do not tell.
    """

    node: int | None
    vcpus: frozenset[int]  # their numbers in the guest
    memory: int
    pages: int = 0
    distances: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """One guest on one host.  ``cpus``: what its vCPUs run on; ``idle``: the siblings kept empty beside them.

    ``cells``: at least one.  ``sockets``, ``threads_per_core``: of the guest's own topology.  ``passed``: its PCI
    functions, which are not chosen here.
    """

    name: str
    wish: GuestWish
    cells: tuple[Cell, ...]
    vcpus: tuple[VcpuPlan, ...]
    sockets: int
    threads_per_core: int
    idle: frozenset[int]
    emulator: frozenset[int]
    page_bytes: int | None
    why: tuple[str, ...]
    passed: Passed = NOT_PASSED

    @property
    def nodes(self) -> tuple[int, ...]:
        """Host nodes, in the order of the cells; empty where it floats over all of them or there are none."""
        return tuple(cell.node for cell in self.cells if cell.node is not None)

    @property
    def pages(self) -> int:
        return sum(cell.pages for cell in self.cells)

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
    """The ledger and the guests of one host, in the order of their names.

    ``moves``: one sentence for each guest that must leave the CPUs or the node that it has.
    """

    ledger: Ledger
    placements: tuple[Placement, ...]
    moves: tuple[str, ...] = ()
    data_plane: Polling = NOTHING


def realtime_vcpus(wish: GuestWish) -> frozenset[int]:
    """vCPUs at real-time priority: the wish, else all but 0 (the guest's own house), else the only one."""
    if wish.goal != "realtime":
        return frozenset()
    if wish.realtime_vcpus is not None:
        return wish.realtime_vcpus
    return frozenset(range(1, wish.vcpus)) if wish.vcpus > 1 else frozenset({0})


def priorities(guests: Mapping[str, GuestWish], seats: Seats = NONE) -> dict[str, int]:
    """FIFO priority of the vCPUs of each realtime guest: 2 for the least urgent, one more for each tighter latency.

    At most 9.  A guest that has one keeps it, and the others take what is in between, as long as no guest then ranks
    below a less urgent one: each vCPU has a core of its own, so equal ranks do no harm and a change does no good.
    """
    wanted = {name: wish.latency for name, wish in guests.items() if wish.goal == "realtime"}
    # Least urgent first; a guest without a number is less urgent than any with one.
    levels = sorted({latency for latency in wanted.values()}, key=lambda ns: (ns is not None, -(ns or 0)))
    urgency = {name: levels.index(latency) for name, latency in wanted.items()}
    first, last = VCPU_PRIORITIES[0], VCPU_PRIORITIES[-1]
    fresh = {name: min(first + level, last) for name, level in urgency.items()}
    kept = {
        name: seats.guests[name].priority
        for name in wanted
        if name in seats.guests and seats.guests[name].priority in VCPU_PRIORITIES
    }
    found: dict[str, int] = {}
    for name, level in urgency.items():
        low = max((rank for other, rank in kept.items() if urgency[other] <= level), default=first)
        high = min((rank for other, rank in kept.items() if urgency[other] >= level), default=last)
        if low > high:  # what they have is not in order any more
            return fresh
        found[name] = min(max(fresh[name], low), high)
    return found


def lay_out(
    host: str,
    wish: HostWish,
    topology: Topology,
    guests: Mapping[str, GuestWish],
    problems: Problems,
    seats: Seats = NONE,
) -> HostLayout | None:
    """Place all guests of one host and close its ledger.  None when ``problems`` got an entry that prevents it.

    ``seats``: where guests sit now, which they keep wherever site and machine allow.
    """
    before = len(problems.found)
    choices = {name: _shapes(name, guest, topology, seats.guests.get(name), problems) for name, guest in guests.items()}
    if not all(choices.values()):  # what is wrong is told already, here or by checks.check_guest()
        return None
    claims = find_claims(topology, guests, choices, problems)
    claimed = frozenset(cpu for cores in claims.values() for core in cores for cpu in core.threads)
    seats = seats.without(seats.guests.keys() - guests.keys())
    named = wish.data_plane.cpus if wish.data_plane else None
    theirs = topology.whole((named or frozenset()) & topology.online)
    housekeeping = choose_housekeeping(topology, wish.housekeeping, claimed | theirs, host, problems, seats)
    if len(problems.found) > before:
        return None
    floating_claims = frozenset(
        cpu for guest in guests.values() if guest.goal not in PINNED and guest.cpus for cpu in guest.cpus
    )
    floating_claims = topology.whole(floating_claims & topology.online)
    data_plane = choose_polling(
        topology, wish.data_plane, housekeeping.cpus, claimed | floating_claims, host, problems, seats
    )
    if len(problems.found) > before:
        return None
    books = open_books(topology, housekeeping.cpus | data_plane.cpus | floating_claims)
    for cores in claims.values():
        books.take(cores)
    for name, cores in claims.items():
        nodes = len({core.node for core in cores})
        choices[name] = tuple(shape for shape in choices[name] if len(shape) == nodes)
    ranks = priorities(guests, seats)
    crowded: list[str] = []
    for released in _releases(guests, seats):
        partial = bool(released) and len(released) < len(seats.guests)
        first: Attempt | None = None
        for chosen in islice(_choose(choices), FEW_SHAPES if partial else MOST_SHAPES):
            desk = Desk(host, topology, guests, claims, chosen, housekeeping, data_plane.cpus, books)
            attempt = seat_guests(desk, seats.without(released))
            layout = None if attempt.problems.found else _close(desk, attempt, seats, ranks)
            if layout is not None and not attempt.problems.found:
                ledger = layout.ledger.model_copy(update={"why": (*layout.ledger.why, *data_plane.why)})
                moves = tuple(_moves(desk, seats, layout, attempt, crowded))
                return HostLayout(ledger, layout.placements, moves, data_plane)
            first = first or attempt
        assert first is not None, "there is always one choice"
        refused, crowded = first.problems.found, crowded or first.crowded
        if not first.crowded:
            break
    for problem in refused:
        problems.add(problem.about, problem.message, problem.hint)
    return None


def _shapes(name: str, wish: GuestWish, topology: Topology, seat: Seat | None, problems: Problems) -> tuple[Shape, ...]:
    """The cells that a guest may have: as many as it has now first, then the fewest.  Empty, with a problem: none."""
    found = shapes(wish, topology, wish.page_size)
    nodes = len(topology.cpu_nodes) if topology.numa else 1
    fewest = min((len(shape) for shape in found), default=0)
    if fewest > nodes:
        problems.add(
            f"guest {name}",
            f"it is to have {fewest} cells, each on a node of its own, and the host has "
            f"{nodes} node{'s' * (nodes > 1)} with CPUs",
            f"write numa: {nodes}" if nodes > 1 else "leave `numa` and `cells` out",
        )
        return ()
    now = 0 if seat is None else len({topology.node_of[cpu] for cpu in seat.cpus if cpu in topology.online})
    return tuple(sorted(found, key=lambda shape: (len(shape) != now, len(shape))))


def _choose(choices: Mapping[str, tuple[Shape, ...]]) -> Iterator[dict[str, Shape]]:
    """The cells of every guest together: for each its first choice, then ever later ones."""
    names = sorted(choices)
    ranks = islice(product(*(range(len(choices[name])) for name in names)), 4096)
    for rank in sorted(ranks, key=lambda rank: (sum(rank), rank)):
        yield {name: choices[name][index] for name, index in zip(names, rank, strict=True)}


def _releases(guests: Mapping[str, GuestWish], seats: Seats) -> Iterator[frozenset[str]]:
    """Which seats to give up, the fewest first: none, one, two, then ever more, all.  The least urgent go first."""
    yield frozenset()
    order = sorted(seats.guests, key=lambda name: urgency(name, guests[name]), reverse=True)
    if len(order) <= 64:
        yield from (frozenset({name}) for name in order)
    if len(order) <= 8:
        yield from (frozenset(pair) for pair in combinations(order, 2))
    count = 4
    while count < len(order):
        yield frozenset(order[:count])
        count *= 2
    if order:
        yield frozenset(order)


def _close(desk: Desk, attempt: Attempt, seats: Seats, ranks: Mapping[str, int]) -> HostLayout | None:
    """The ledger, and all placements in it.  None, with a problem, when a floating guest does not fit."""
    topology, guests, problems = desk.topology, desk.guests, attempt.problems
    pinned = {name: seated for name, seated in attempt.seated.items() if seated.cores}
    carrying = {name: busy(desk, name, seated, seats.guests.get(name)) for name, seated in pinned.items()}
    realtime = frozenset(cpu for cpus in carrying.values() for cpu in cpus)
    idle = frozenset(cpu for seated in pinned.values() for core in seated.cores for cpu in core.threads) - realtime
    ledger = make_ledger(topology, desk.housekeeping.cpus, desk.polling, realtime, idle, ())
    why = list(desk.housekeeping.why)
    placements: list[Placement] = []
    for name, guest in sorted(guests.items()):
        page = attempt.pages[name]
        if name in pinned:
            shape = desk.shapes[name]
            placements.append(_finish(name, guest, shape, pinned[name], carrying[name], ledger, page, ranks, topology))
        elif floating := _float(name, guest, attempt.seated.get(name), ledger, page, attempt, topology):
            placements.append(floating)
    _check_ordinary_memory(desk.host, guests, attempt)
    if problems.found:
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


def _finish(
    name: str,
    wish: GuestWish,
    shape: Shape,
    placed: Seated,
    busy: tuple[int, ...],
    ledger: Ledger,
    page: int | None,
    ranks: Mapping[str, int],
    topology: Topology,
) -> Placement:
    fifo = realtime_vcpus(wish)
    why = [placed.why, *placed.more]
    vcpus = tuple(
        VcpuPlan(
            index=index,
            cpus=frozenset({cpu}),
            policy="fifo" if index in fifo else "other",
            priority=ranks[name] if index in fifo else 0,
        )
        for index, cpu in enumerate(busy)
    )
    idle = frozenset(cpu for core in placed.cores for cpu in core.threads) - set(busy)
    if idle:
        why.append(
            f"their siblings {format_cpus(idle)} stay empty: a busy sibling shares caches and execution units"
            if wish.goal == "realtime"
            else f"{topology.place(idle)} stays empty: {wish.vcpus} vCPUs do not fill the last core"
            + " of a cell" * (len(shape) > 1)
        )
    if wish.goal == "realtime":
        why.append(
            f"vCPU {format_cpus(fifo)} runs at FIFO {ranks[name]}: above the kernel's FIFO 1 threads, below "
            f"{KERNEL_PRIORITY}; "
            + (
                f"no less urgent guest ranks higher (this one: {format_duration(wish.latency)})"
                if wish.latency
                else "no latency is stated, so it ranks below those that state one"
            )
        )
        if house := frozenset(range(wish.vcpus)) - fifo:
            why.append(f"vCPU {format_cpus(house)} is the guest's own housekeeping: a core of its own, ordinary policy")
        elif wish.vcpus == 1:
            why.append("its only vCPU is at real-time priority: the guest's own housekeeping competes with its work")
    cells = _cells(shape, placed, page, topology)
    if len(cells) > 1:
        why += _why_cells(name, cells)
    emulator = ledger.housekeeping & frozenset().union(*(topology.node_cpus(one.node) for one in placed.parts))
    same = "the same node" if len(cells) == 1 else "its nodes, since each cell's memory is taken from a CPU beside it"
    why.append(f"emulator and I/O threads on housekeeping {format_cpus(emulator)} of {same}")
    return Placement(
        name=name,
        wish=wish,
        cells=cells,
        vcpus=vcpus,
        sockets=sockets(shape, [topology.package_of(one.node) for one in placed.parts]),
        threads_per_core=threads_per_core(wish, shape, placed.cores),
        idle=idle,
        emulator=emulator,
        page_bytes=page,
        why=tuple(why),
    )


def _cells(shape: Shape, placed: Seated, page: int | None, topology: Topology) -> tuple[Cell, ...]:
    nodes = [one.node for one in placed.parts]
    return tuple(
        Cell(
            node=node if topology.numa else None,
            vcpus=frozenset(vcpus),
            memory=cell.memory,
            pages=cell.memory // page if page else 0,
            distances=_distances(node, nodes, topology) if len(nodes) > 1 else (),
        )
        for cell, node, vcpus in zip(shape, nodes, numbers(shape), strict=True)
    )


def _distances(node: int, nodes: Iterable[int], topology: Topology) -> tuple[int, ...]:
    """From a node to each of ``nodes``; empty where one is not known or libvirt has no number for it.

    libvirt takes 10 for a cell itself and 11 to 254 for another; a made-up node (numa=fake) is at 10 to its neighbour.
    """
    found = [10 if other == node else topology.distance(node, other) or 0 for other in nodes]
    return (
        tuple(found) if sum(value == 10 for value in found) == 1 and all(10 <= value < 255 for value in found) else ()
    )


def _why_cells(name: str, cells: tuple[Cell, ...]) -> Iterator[str]:
    each = "; ".join(
        f"cell {number} vCPU {format_cpus(cell.vcpus)} and {format_size(cell.memory)} on node {cell.node}"
        for number, cell in enumerate(cells)
    )
    yield f"{len(cells)} NUMA cells, each on a node of its own, memory strictly there: {each}"
    if all(cell.distances for cell in cells):
        told = "; ".join(" ".join(map(str, cell.distances)) for cell in cells)
        yield f"distances between its cells are those between the nodes: {told}"
    else:
        yield "distances between its cells are left to libvirt (10 and 20): the host tells none that it takes"


def _float(
    name: str,
    wish: GuestWish,
    seated: Seated | None,
    ledger: Ledger,
    page: int | None,
    attempt: Attempt,
    topology: Topology,
) -> Placement | None:
    """A balanced guest floats over the shared CPUs of one node, a flexible one over all of them."""
    problems = attempt.problems
    if problems.about(f"guest {name}"):
        return None
    if wish.vcpus > len(topology.online):
        problems.add(
            f"guest {name}",
            f"{wish.vcpus} vCPUs, but the host has {len(topology.online)} CPUs online ({format_cpus(topology.online)})",
            "take fewer vCPUs or another host",
        )
        return None
    why: list[str] = []
    node = seated.node if seated else None
    pool = ledger.shared or ledger.housekeeping
    if node is not None:
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
    if node is not None:
        emulator = ledger.housekeeping & topology.node_cpus(node)
        why.append(f"emulator and I/O threads on housekeeping {format_cpus(emulator)} of the same node")
    return Placement(
        name=name,
        wish=wish,
        cells=(
            Cell(
                node=node if topology.numa else None,
                vcpus=frozenset(range(wish.vcpus)),
                memory=wish.memory,
                pages=wish.memory // page if page else 0,
            ),
        ),
        vcpus=tuple(VcpuPlan(index=index, cpus=pool) for index in range(wish.vcpus)),
        sockets=1,
        threads_per_core=1,
        idle=frozenset(),
        emulator=emulator,
        page_bytes=page,
        why=tuple(why),
    )


def _check_ordinary_memory(host: str, guests: Mapping[str, GuestWish], attempt: Attempt) -> None:
    """Guests on ordinary pages must fit beside the huge pages: an out-of-memory kill would not spare the others."""
    flexible = {name: wish.memory for name, wish in sorted(guests.items()) if wish.goal == "flexible"}
    free = attempt.books.ordinary()
    if flexible and sum(flexible.values()) > free:
        sizes = ", ".join(f"{name} {format_size(size)}" for name, size in flexible.items())
        attempt.problems.add(
            f"guest {max(flexible, key=lambda name: (flexible[name], name))}",
            f"host {host} has {format_size(free // MIB * MIB)} left for guests on ordinary pages ({sizes})",
            "take smaller guests or another host" + give_back(attempt.books),
        )


def _moves(desk: Desk, seats: Seats, layout: HostLayout, attempt: Attempt, crowded: Iterable[str]) -> Iterator[str]:
    """One sentence for each guest that does not stay where it sits, with what is in the way."""
    topology = desk.topology
    for placement in layout.placements:
        name, wish, seat = placement.name, placement.wish, seats.guests.get(placement.name)
        if seat is None or wish.goal == "flexible":
            continue
        kept = _kept(seat, placement, topology)
        if wish.goal in PINNED and kept and not kept <= placement.cpus:
            # A guest that turns from one CPU a core to both of each keeps its first cores, and that is no move.
            if kept & topology.online and topology.whole(placement.cpus) <= topology.whole(kept & topology.online):
                continue
            was, now = topology.place(kept), topology.place(placement.cpus)
        elif wish.goal == "balanced" and topology.numa and seat.node not in (None, *placement.nodes):
            was, now = f"node {seat.node}", f"node {format_cpus(placement.nodes)}"
        else:
            continue
        yield f"guest {name} moves from {was} to {now}: {_obstacle(desk, placement, seat, attempt, crowded)}"


def _kept(seat: Seat, placement: Placement, topology: Topology) -> frozenset[int]:
    """CPUs that a guest could have kept with as many vCPUs as it has now: the first ones of each cell."""
    on: dict[int | None, list[int]] = {}
    for cpu in seat.cpus:
        on.setdefault(topology.node_of.get(cpu), []).append(cpu)
    if len(placement.cells) == 1 or len(on) != len(placement.cells):
        return frozenset(seat.cpus[: placement.wish.vcpus])
    pairs = zip(placement.cells, on.values(), strict=True)
    return frozenset(cpu for cell, cpus in pairs for cpu in cpus[: len(cell.vcpus)])


def _obstacle(desk: Desk, placement: Placement, seat: Seat, attempt: Attempt, crowded: Iterable[str]) -> str:
    topology, wish = desk.topology, placement.wish
    cpus = frozenset(seat.cpus)
    if wish.cpus is not None:
        return "its owner names its CPUs now"
    if gone := cpus - topology.online:
        return f"CPU {format_cpus(gone)} is not online"
    if house := cpus & desk.housekeeping.cpus:
        return f"CPU {format_cpus(house)} is housekeeping"
    if polls := cpus & desk.polling:
        return f"CPU {format_cpus(polls)} polls for packets now"
    for other, guest in sorted(desk.guests.items()):
        if guest.cpus and (both := topology.whole(guest.cpus & topology.online) & cpus):
            return f"the owner of guest {other} gives it the core of CPU {format_cpus(both)}"
    near, _ = attempt.near[placement.name]
    nodes = {topology.node_of[cpu] for cpu in cpus} or ({seat.node} if seat.node is not None else set())
    count = len(placement.cells)
    if near is not None and (near not in nodes or (count == 1 and nodes != {near})):
        return f"it is to be near {wish.near}, which is on node {near}"
    if len(nodes) != count:
        must = "one must do" if count == 1 else f"it is to have {count} cells"
        return f"it sat on node{'s' * (len(nodes) > 1)} {format_cpus(nodes)}, and {must}"
    if others := [other for other in crowded if other != placement.name]:
        return f"there is no room for guest {', '.join(others)} otherwise"
    return "where it sits there is no room for what it needs now"
