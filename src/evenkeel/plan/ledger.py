"""The CPU ledger of a host: who owns which CPU.  Everything else (masks, command line, pins) is derived from it.

Here are the choice of housekeeping CPUs and the invariants; which guest gets which core is
:mod:`evenkeel.plan.placement`.  Source: reference host-tuning §2.1 (S1 to S6).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import Ledger
from evenkeel.plan.problems import Problems
from evenkeel.plan.seats import NONE, Seats
from evenkeel.plan.topology import Core, Topology

CORES_PER_HOUSEKEEPER = 32  # [P] host-tuning S1: one housekeeping core for every 32 cores of a node


@dataclass(frozen=True)
class Housekeeping:
    cpus: frozenset[int]
    why: tuple[str, ...]


def choose_housekeeping(
    topology: Topology,
    wish: frozenset[int] | None,
    claimed: frozenset[int],
    host: str,
    problems: Problems,
    seats: Seats = NONE,
) -> Housekeeping:
    """The CPUs that stay with the host: whole cores, CPU 0 among them, at least one core of each node with CPUs.

    ``wish``: what the owner asked for, checked and taken.  ``claimed``: CPUs that the owner gave to guests by number,
    which are avoided.  ``seats``: as it is now, which stays where it can; CPUs that guests sit on are avoided too.
    """
    if wish is not None:
        _check_wish(topology, wish, claimed, host, problems)
        return Housekeeping(
            wish & topology.online, (f"housekeeping {format_cpus(wish)}: as the owner of host {host} wishes",)
        )
    chosen: list[Core] = []
    why: list[str] = []
    for node in topology.cpu_nodes:
        cores = topology.cores_of(node)
        count = max(1, ceil(len(cores) / CORES_PER_HOUSEKEEPER))
        picked, reason = _pick(topology, cores, count, claimed, seats)
        if len(picked) < count:
            problems.add(
                f"host {host}",
                f"node {node} has no core left for housekeeping: guests claim {format_cpus(claimed)} by number",
                f"leave at least {count} whole core{'s' * (count > 1)} of node {node} out of the guests' `cpus`",
            )
        chosen += picked
        cpus = format_cpus(cpu for core in picked for cpu in core.threads)
        where = f" of node {node}" if topology.numa else ""
        why.append(f"housekeeping {cpus}{where}: {count} of {len(cores)} cores, {reason}")
    return Housekeeping(frozenset(cpu for core in chosen for cpu in core.threads), tuple(why))


def _pick(
    topology: Topology, cores: tuple[Core, ...], count: int, claimed: frozenset[int], seats: Seats
) -> tuple[list[Core], str]:
    """``count`` cores of one node, in one L3 domain if they fit; and why these."""
    boot = topology.core_of[topology.boot_cpu]
    free = [core for core in cores if not core.cpus & claimed or core == boot]
    sat_on = frozenset(cpu for seat in seats.guests.values() for cpu in seat.cpus)
    now = {core for core in free if core.cpus <= seats.housekeeping}
    if boot in free:
        home, reason = topology.l3_of(boot), f"with CPU {topology.boot_cpu}, which the kernel never isolates"
    else:
        domains = sorted({topology.l3_of(core) for core in free}, key=min)
        if not domains:
            return [], ""
        home = max(domains, key=lambda cpus: (topology.device_score(cpus), -min(cpus)))
        reason = (
            "in the L3 domain that most network and storage devices call local"
            if len({topology.device_score(cpus) for cpus in domains}) > 1
            else "the first of the node: every node needs one for its own interrupts and emulator threads"
        )

    def unfit(core: Core) -> tuple[bool, bool, bool, bool, int, int]:
        # Within the home slower cores before faster ones (hybrid), so that guests get the fast ones.
        return core != boot, core not in now, bool(core.cpus & sat_on), not core.cpus <= home, -core.rank, core.first

    chosen = sorted(free, key=unfit)[:count]
    if any(core in now and not core.cpus <= home for core in chosen):
        reason = "as it is now"
    return chosen, reason


def _check_wish(
    topology: Topology, wish: frozenset[int], claimed: frozenset[int], host: str, problems: Problems
) -> None:
    about = f"host {host}"
    if missing := wish - topology.online:
        problems.add(
            about,
            f"housekeeping names CPU {format_cpus(missing)}, which the host does not have online",
            f"online are {format_cpus(topology.online)}",
        )
    if topology.boot_cpu not in wish:
        problems.add(
            about,
            f"housekeeping {format_cpus(wish)} lacks CPU {topology.boot_cpu}, which the kernel never isolates",
            f"add the core {format_cpus(topology.core_of[topology.boot_cpu].threads)}",
        )
    for core in topology.split_cores(wish & topology.online):
        problems.add(
            about,
            f"housekeeping {format_cpus(wish)} splits the core {format_cpus(core.threads)}",
            "threads of one core share its execution units; name all of them or none",
        )
    for node in topology.cpu_nodes:
        if not topology.node_cpus(node) & wish:
            problems.add(
                about,
                f"housekeeping {format_cpus(wish)} has no CPU on node {node}",
                f"add a whole core of {format_cpus(topology.node_cpus(node))}: its interrupts and emulator threads "
                "need a CPU there",
            )
    if both := wish & claimed:
        problems.add(
            about,
            f"CPU {format_cpus(both)} is wished for housekeeping and for a guest",
            "each CPU has one owner; change `housekeeping` or the guest's `cpus`",
        )


def make_ledger(
    topology: Topology,
    housekeeping: frozenset[int],
    data_plane: frozenset[int],
    realtime: frozenset[int],
    idle: frozenset[int],
    why: tuple[str, ...],
) -> Ledger:
    """All CPUs accounted for: what nobody else owns is shared."""
    shared = topology.online - housekeeping - data_plane - realtime - idle
    return Ledger(
        housekeeping=housekeeping, data_plane=data_plane, realtime=realtime, idle=idle, shared=shared, why=why
    )


def check_ledger(ledger: Ledger, facts: Facts) -> list[str]:
    """Broken invariants of a ledger, as sentences; empty when it holds.

    Disjoint and complete over the online CPUs; whole cores; housekeeping contains the boot CPU and a CPU of every node
    that has CPUs; idle CPUs are siblings of busy real-time ones.
    """
    topology = Topology(facts)
    sets = {
        "housekeeping": ledger.housekeeping,
        "data plane": ledger.data_plane,
        "realtime": ledger.realtime,
        "idle": ledger.idle,
        "shared": ledger.shared,
    }
    broken: list[str] = []
    seen: dict[int, str] = {}
    for name, cpus in sets.items():
        for cpu in sorted(cpus):
            if cpu in seen:
                broken.append(f"CPU {cpu} is in {seen[cpu]} and in {name}")
            seen[cpu] = name
    if extra := seen.keys() - topology.online:
        broken.append(f"CPU {format_cpus(extra)} is not online")
    if missing := topology.online - seen.keys():
        broken.append(f"CPU {format_cpus(missing)} has no owner")
    if topology.boot_cpu not in ledger.housekeeping:
        broken.append(f"CPU {topology.boot_cpu}, which the kernel boots on, is not housekeeping")
    for name, cpus in [
        ("housekeeping", ledger.housekeeping),
        ("shared", ledger.shared),
        ("data plane", ledger.data_plane),
        ("realtime with its idle siblings", ledger.realtime | ledger.idle),
    ]:
        for core in topology.split_cores(cpus & topology.online):
            broken.append(f"{name} splits the core {format_cpus(core.threads)}")
    for node in topology.cpu_nodes:
        if not topology.node_cpus(node) & ledger.housekeeping:
            broken.append(f"node {node} has no housekeeping CPU")
    for cpu in sorted(ledger.idle & topology.online):
        if not topology.core_of[cpu].cpus & ledger.realtime:
            broken.append(f"idle CPU {cpu} is no sibling of a realtime CPU")
    return broken
