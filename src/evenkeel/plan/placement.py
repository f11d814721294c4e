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
from evenkeel.plan.books import Books, open_books
from evenkeel.plan.books import memory_reserve as memory_reserve
from evenkeel.plan.ledger import Housekeeping, choose_housekeeping, make_ledger
from evenkeel.plan.levels import is_strict
from evenkeel.plan.problems import Problems, did_you_mean
from evenkeel.plan.seats import NONE, Seat, Seats
from evenkeel.plan.topology import Core, Topology

#: FIFO priorities of vCPUs.  Never 1: on a PREEMPT_RT kernel ktimers, rcuc and irq_work run at FIFO 1, and equal
#: priorities never preempt each other.  Always below KERNEL_PRIORITY, so that a vCPU cannot starve those threads.
VCPU_PRIORITIES = range(2, 10)
#: K of host-tuning §2.2: rcuc, rcub, ktimers, ksoftirqd and irq_work of real-time CPUs.
KERNEL_PRIORITY = 11
MIB = 1 << 20
#: Ways to spread guests over nodes that are tried before the planner says that they do not fit.
MOST_TRIES = 3000
MOST_SEARCHED = 200  # guests; each is a level of the search
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


@dataclass(frozen=True)
class _Desk:
    """What all attempts to place the guests of a host have in common."""

    host: str
    topology: Topology
    guests: Mapping[str, GuestWish]
    claims: Mapping[str, tuple[Core, ...]]  # cores that owners gave to pinned guests by number
    housekeeping: Housekeeping
    books: Books  # nothing placed yet but the claims


@dataclass(frozen=True)
class _Seated:
    """Where a guest is, before the shared set is known.  ``cores``: none for a balanced guest."""

    node: int
    cores: tuple[Core, ...]
    why: str
    more: tuple[str, ...] = ()


@dataclass
class _Attempt:
    """One try.  ``crowded``: guests for which there was no room, as opposed to those that are wrong in themselves."""

    books: Books
    problems: Problems
    pages: dict[str, int | None]
    near: dict[str, tuple[int | None, str]]
    seated: dict[str, _Seated]
    crowded: list[str]

    def copy(self) -> _Attempt:
        problems = Problems(list(self.problems.found))
        return _Attempt(self.books.copy(), problems, self.pages, self.near, dict(self.seated), list(self.crowded))


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
    claims = _claims(topology, guests, problems)
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
    desk = _Desk(host, topology, guests, claims, housekeeping, books)
    ranks = priorities(guests, seats)
    crowded: list[str] = []
    for released in _releases(guests, seats):
        attempt = _attempt(desk, seats.without(released))
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
    order = sorted(seats.guests, key=lambda name: _urgency(name, guests[name]), reverse=True)
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


def _attempt(desk: _Desk, seats: Seats) -> _Attempt:
    """Place everybody, as far as possible.  What does not fit is in ``problems`` and in ``crowded``."""
    problems = Problems()
    guests = sorted(desk.guests.items())
    start = _Attempt(
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
        desk.guests, key=lambda name: (desk.guests[name].goal not in PINNED, _urgency(name, desk.guests[name]))
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


def _close(desk: _Desk, attempt: _Attempt, seats: Seats, ranks: Mapping[str, int]) -> HostLayout | None:
    """The ledger, and all placements in it.  None, with a problem, when a floating guest does not fit."""
    topology, guests, problems = desk.topology, desk.guests, attempt.problems
    pinned = {name: seated for name, seated in attempt.seated.items() if seated.cores}
    busy = {name: _threads(guests[name], seated.cores, seats.guests.get(name)) for name, seated in pinned.items()}
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


def _threads(wish: GuestWish, cores: tuple[Core, ...], seat: Seat | None = None) -> tuple[int, ...]:
    """Host CPU of each vCPU, in the order of the vCPUs."""
    if wish.goal == "realtime":
        # Of a core that the owner named by its second thread, or whose second thread the guest is on, that is used.
        named = wish.cpus or frozenset(seat.cpus if seat else ())
        return tuple(min(core.cpus & named, default=core.first) for core in cores)[: wish.vcpus]
    return tuple(cpu for core in cores for cpu in core.threads)[: wish.vcpus]


def _place_claim(desk: _Desk, attempt: _Attempt, name: str) -> None:
    """A pinned guest whose owner names its CPUs."""
    topology, wish, cores = desk.topology, desk.guests[name], desk.claims[name]
    if attempt.problems.about(f"guest {name}"):
        return
    near, _ = attempt.near[name]
    node = cores[0].node
    if _take_memory(name, wish, node, attempt):
        why = f"{topology.place(_threads(wish, cores))} carry guest {name}: its owner names them"
        attempt.seated[name] = _Seated(node, cores, why, _far(name, wish, near, node))


def _keep(desk: _Desk, attempt: _Attempt, name: str, seat: Seat) -> None:
    """Leave a guest where it is, as far as the site and the machine allow; its memory and cores are taken."""
    topology, wish, books = desk.topology, desk.guests[name], attempt.books
    if attempt.problems.about(f"guest {name}") or wish.goal == "flexible":
        return
    page = attempt.pages[name]
    cores: tuple[Core, ...] = ()
    if wish.goal in PINNED:
        held = dict.fromkeys(topology.core_of[cpu] for cpu in seat.cpus if cpu in topology.online)
        node = next(iter(held)).node if held else None
        cores = _enough(wish, [core for core in held if core.node == node and core in books.free])
        if not cores:
            return
    else:
        node = seat.node if topology.numa else 0
    if node is None or node not in _candidates(desk, attempt, name) or books.room(node, page) < wish.memory:
        return
    books.take(cores)
    books.take_memory(node, page, wish.memory)
    attempt.seated[name] = _Seated(node, cores, "")


def _grow(desk: _Desk, attempt: _Attempt, name: str) -> None:
    """Give a guest that kept its cores those that it needs now and did not have; else take all of them back."""
    topology, wish, books = desk.topology, desk.guests[name], attempt.books
    if wish.goal not in PINNED:
        return
    seated = attempt.seated[name]
    missing = wish.vcpus - _capacity(wish, seated.cores)
    cores = seated.cores
    if missing > 0:
        more = _with_vcpus(wish, missing)
        free = books.free_on(seated.node)
        if _capacity(more, free) < missing:
            books.give_back(cores, seated.node, attempt.pages[name], wish.memory)
            del attempt.seated[name]
            return
        beside = frozenset().union(*(topology.l3_of(core) for core in cores))
        added, _ = choose_cores(topology, [core for core in free if core.cpus <= beside], more)
        if _capacity(more, added) < missing:
            added, _ = choose_cores(topology, free, more)
        books.take(added)
        cores += added
    why = f"{topology.place(_threads(wish, cores))} carry guest {name}: it is there already"
    if missing > 0:
        why = f"{topology.place(_threads(wish, cores))} carry guest {name}: it is there already, and needs more now"
    attempt.seated[name] = _Seated(seated.node, cores, why)


def _with_vcpus(wish: GuestWish, vcpus: int) -> GuestWish:
    """The same guest with another number of vCPUs."""
    return wish.model_copy(update={"vcpus": vcpus})


def _candidates(desk: _Desk, attempt: _Attempt, name: str) -> list[int]:
    """Nodes that a guest may be on at all, whatever is free there."""
    wish, (near, _) = desk.guests[name], attempt.near[name]
    if near is not None:
        return [near]
    if wish.cpus is not None:
        return sorted({desk.topology.node_of[cpu] for cpu in wish.cpus})
    return [node for node in desk.topology.cpu_nodes if wish.goal in PINNED or node in attempt.books.capacity]


def _fits(desk: _Desk, attempt: _Attempt, name: str, node: int) -> bool:
    wish, books = desk.guests[name], attempt.books
    if books.room(node, attempt.pages[name]) < wish.memory:
        return False
    return wish.goal not in PINNED or _capacity(wish, books.free_on(node)) >= wish.vcpus


def _place(desk: _Desk, attempt: _Attempt, name: str, only: int | None) -> None:
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
        attempt.seated[name] = _Seated(node, (), "")
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
    why = f"{topology.place(_threads(wish, cores))} carry guest {name}: {here}, {reason}"
    attempt.seated[name] = _Seated(node, cores, why)


def _search(desk: _Desk, start: _Attempt, names: list[str]) -> dict[str, int] | None:
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

    def visit(index: int, attempt: _Attempt) -> dict[str, int] | None:
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


def _no_room(name: str, wish: GuestWish, nodes: list[int], where: str, attempt: _Attempt) -> None:
    """Say what is free on which node, and what is missing."""
    books, page = attempt.books, attempt.pages[name]
    topology = books.topology
    parts = []
    for node in topology.cpu_nodes:
        free = books.free_on(node)
        cpus = format_cpus(cpu for core in free for cpu in core.threads)
        label = f"node {node}" if topology.numa else "the host"
        parts.append(
            f"{label} has {_capacity(wish, free)} free{f' (CPUs {cpus})' if cpus else ''} and "
            f"{format_size(books.room(node, page) // MIB * MIB)} for huge pages"
        )
    place = "" if not topology.numa else f" on node {nodes[0]} ({where})" if where else " on one node"
    attempt.problems.add(
        f"guest {name}",
        f"goal {wish.goal} needs {_need(wish)} and {format_size(wish.memory)}{place}; {'; '.join(parts)}",
        (
            "a core per node stays with the host; take a smaller guest, another host, or leave out `near`"
            if where
            else "a core per node and part of its memory stay with the host; take a smaller guest or another host"
        )
        + _give_back(books),
    )


def _take_memory(name: str, wish: GuestWish, node: int, attempt: _Attempt) -> bool:
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
            + _give_back(books),
        )
        return False
    books.take_memory(node, page, wish.memory)
    return True


def _give_back(books: Books) -> str:
    """The other cure where memory lies in free huge pages that nobody asked for."""
    pools = books.idle_pools()
    return f"; or give back what no guest uses: {pools}" if pools else ""


def _far(name: str, wish: GuestWish, near: int | None, node: int) -> tuple[str, ...]:
    if near is None or near == node:
        return ()
    return (f"guest {name} asks to be near {wish.near} (node {near}), but its `cpus` are on node {node}",)


def _finish(
    name: str,
    wish: GuestWish,
    placed: _Seated,
    threads: tuple[int, ...],
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
    threads_per_core = _threads_per_core(wish, placed.cores)
    return Placement(
        name=name,
        wish=wish,
        node=placed.node if topology.numa else None,
        vcpus=vcpus,
        threads_per_core=threads_per_core,
        idle=idle,
        emulator=emulator,
        page_bytes=page,
        pages=wish.memory // page if page else 0,
        why=tuple(why),
    )


def _threads_per_core(wish: GuestWish, cores: tuple[Core, ...]) -> int:
    """How many siblings the guest may believe in: as many as each of its cores has, or 1 where cores differ.

    Cores differ where some of their threads are offline, and on hybrid machines.  A guest that takes threads of two
    cores for siblings puts two busy tasks on one core and none on the other.
    """
    if wish.goal != "performance":
        return 1
    sizes = {len(core.threads) for core in cores}
    threads = min(sizes)
    return threads if len(sizes) == 1 and wish.vcpus % threads == 0 else 1


def _float(
    name: str,
    wish: GuestWish,
    seated: _Seated | None,
    ledger: Ledger,
    page: int | None,
    attempt: _Attempt,
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


def _check_ordinary_memory(host: str, guests: Mapping[str, GuestWish], attempt: _Attempt) -> None:
    """Guests on ordinary pages must fit beside the huge pages: an out-of-memory kill would not spare the others."""
    flexible = {name: wish.memory for name, wish in sorted(guests.items()) if wish.goal == "flexible"}
    free = attempt.books.ordinary()
    if flexible and sum(flexible.values()) > free:
        sizes = ", ".join(f"{name} {format_size(size)}" for name, size in flexible.items())
        attempt.problems.add(
            f"guest {max(flexible, key=lambda name: (flexible[name], name))}",
            f"host {host} has {format_size(free // MIB * MIB)} left for guests on ordinary pages ({sizes})",
            "take smaller guests or another host" + _give_back(attempt.books),
        )


def _moves(desk: _Desk, seats: Seats, layout: HostLayout, attempt: _Attempt, crowded: Iterable[str]) -> Iterator[str]:
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


def _obstacle(desk: _Desk, placement: Placement, seat: Seat, attempt: _Attempt, crowded: Iterable[str]) -> str:
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
