"""Which guest runs where: its node, its cores, its pages, its priority.  Pure; the ledger follows from it.

Predictable, and it moves nothing that need not move: who sits somewhere stays there (:mod:`evenkeel.plan.seats`).  Of
the others, guests that are tied to CPUs or to a device choose first, then the most urgent; where they then do not all
fit, every way to spread them over the nodes is tried, and only then a guest that sits is moved.  A guest that does not
fit is a Problem that says how much is free on which node.  Source: reference host-tuning §2.1, §2.2, §2.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Ledger, VcpuPlan
from evenkeel.documents.quantity import format_duration, format_size
from evenkeel.documents.site import GuestWish, HostWish
from evenkeel.plan.books import memory_reserve as memory_reserve
from evenkeel.plan.books import open_books
from evenkeel.plan.claims import find_claims
from evenkeel.plan.cores import PINNED as PINNED
from evenkeel.plan.cores import threads, threads_per_core
from evenkeel.plan.ledger import choose_housekeeping, make_ledger
from evenkeel.plan.levels import is_strict
from evenkeel.plan.problems import Problems
from evenkeel.plan.seating import Attempt, Desk, Seated, give_back, seat_guests, urgency
from evenkeel.plan.seats import NONE, Seat, Seats
from evenkeel.plan.topology import Topology

#: FIFO priorities of vCPUs.  Never 1: on a PREEMPT_RT kernel ktimers, rcuc and irq_work run at FIFO 1, and equal
#: priorities never preempt each other.  Always below KERNEL_PRIORITY, so that a vCPU cannot starve those threads.
VCPU_PRIORITIES = range(2, 10)
#: K of host-tuning §2.2: rcuc, rcub, ktimers, ksoftirqd and irq_work of real-time CPUs.
KERNEL_PRIORITY = 11
MIB = 1 << 20


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
    """The ledger and the guests of one host, in the order of their names.

    ``moves``: one sentence for each guest that must leave the CPUs or the node that it has.
    """

    ledger: Ledger
    placements: tuple[Placement, ...]
    moves: tuple[str, ...] = ()


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
    claims = find_claims(topology, guests, problems)
    claimed = frozenset(cpu for cores in claims.values() for core in cores for cpu in core.threads)
    seats = Seats({name: seat for name, seat in seats.guests.items() if name in guests}, seats.housekeeping)
    housekeeping = choose_housekeeping(topology, wish.housekeeping, claimed, host, problems, seats)
    if len(problems.found) > before:
        return None
    floating_claims = frozenset(
        cpu for guest in guests.values() if guest.goal not in PINNED and guest.cpus for cpu in guest.cpus
    )
    books = open_books(topology, housekeeping.cpus | topology.whole(floating_claims & topology.online))
    for cores in claims.values():
        books.take(cores)
    desk = Desk(host, topology, guests, claims, housekeeping, books)
    ranks = priorities(guests, seats)
    crowded: list[str] = []
    for released in _releases(guests, seats):
        attempt = seat_guests(desk, seats.without(released))
        layout = None if attempt.problems.found else _close(desk, attempt, seats, ranks)
        if layout is not None and not attempt.problems.found:
            return replace(layout, moves=tuple(_moves(desk, seats, layout, attempt, crowded)))
        crowded = crowded or attempt.crowded
        if not attempt.crowded:
            break
    for problem in attempt.problems.found:
        problems.add(problem.about, problem.message, problem.hint)
    return None


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
    busy = {name: threads(guests[name], seated.cores, seats.guests.get(name)) for name, seated in pinned.items()}
    realtime = frozenset(cpu for cpus in busy.values() for cpu in cpus)
    idle = frozenset(cpu for seated in pinned.values() for core in seated.cores for cpu in core.threads) - realtime
    ledger = make_ledger(topology, desk.housekeeping.cpus, realtime, idle, ())
    why = list(desk.housekeeping.why)
    placements: list[Placement] = []
    for name, guest in sorted(guests.items()):
        page = attempt.pages[name]
        if name in pinned:
            placements.append(_finish(name, guest, pinned[name], busy[name], ledger, page, ranks, topology))
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
    emulator = ledger.housekeeping & topology.node_cpus(placed.node)
    why.append(f"emulator and I/O threads on housekeeping {format_cpus(emulator)} of the same node")
    return Placement(
        name=name,
        wish=wish,
        node=placed.node if topology.numa else None,
        vcpus=vcpus,
        threads_per_core=threads_per_core(wish, placed.cores),
        idle=idle,
        emulator=emulator,
        page_bytes=page,
        pages=wish.memory // page if page else 0,
        why=tuple(why),
    )


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
        node=node if topology.numa else None,
        vcpus=tuple(VcpuPlan(index=index, cpus=pool) for index in range(wish.vcpus)),
        threads_per_core=1,
        idle=frozenset(),
        emulator=emulator,
        page_bytes=page,
        pages=wish.memory // page if page else 0,
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
        kept = frozenset(seat.cpus[: wish.vcpus])
        if wish.goal in PINNED and kept and not kept <= placement.cpus:
            # A guest that turns from one CPU a core to both of each keeps its first cores, and that is no move.
            if kept & topology.online and topology.whole(placement.cpus) <= topology.whole(kept & topology.online):
                continue
            was, now = topology.place(kept), topology.place(placement.cpus)
        elif wish.goal == "balanced" and topology.numa and seat.node not in (None, placement.node):
            was, now = f"node {seat.node}", f"node {placement.node}"
        else:
            continue
        yield f"guest {name} moves from {was} to {now}: {_obstacle(desk, placement, seat, attempt, crowded)}"


def _obstacle(desk: Desk, placement: Placement, seat: Seat, attempt: Attempt, crowded: Iterable[str]) -> str:
    topology, wish = desk.topology, placement.wish
    cpus = frozenset(seat.cpus)
    if wish.cpus is not None:
        return "its owner names its CPUs now"
    if gone := cpus - topology.online:
        return f"CPU {format_cpus(gone)} is not online"
    if house := cpus & desk.housekeeping.cpus:
        return f"CPU {format_cpus(house)} is housekeeping"
    for other, guest in sorted(desk.guests.items()):
        if guest.cpus and (both := topology.whole(guest.cpus & topology.online) & cpus):
            return f"the owner of guest {other} gives it the core of CPU {format_cpus(both)}"
    near, _ = attempt.near[placement.name]
    nodes = {topology.node_of[cpu] for cpu in cpus} or ({seat.node} if seat.node is not None else set())
    if near is not None and nodes != {near}:
        return f"it is to be near {wish.near}, which is on node {near}"
    if len(nodes) > 1:
        return f"it sat on nodes {format_cpus(nodes)}, and one must do"
    if others := [other for other in crowded if other != placement.name]:
        return f"there is no room for guest {', '.join(others)} otherwise"
    return "where it sits there is no room for what it needs now"
