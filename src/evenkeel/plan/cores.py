"""How many cores a guest needs, which ones it takes out of those that are free, and on which threads its vCPUs run.

Pure arithmetic over :class:`~evenkeel.plan.topology.Core`; which node, and who comes first, is
:mod:`evenkeel.plan.seating`.  Source: reference host-tuning §2.1, §2.6.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.site import CellWish, GuestWish
from evenkeel.plan.seats import Seat
from evenkeel.plan.topology import Core, Topology

#: Goals whose vCPUs have CPUs of their own.
PINNED = ("realtime", "performance")


def capacity(wish: GuestWish, cores: Iterable[Core]) -> int:
    """How many vCPUs these cores carry: one a core for realtime, one a thread for performance."""
    return sum(1 if wish.goal == "realtime" else len(core.threads) for core in cores)


def need(wish: GuestWish) -> str:
    """``"2 whole cores"``."""
    plural = "s" if wish.vcpus > 1 else ""
    if wish.goal == "realtime":
        return f"{wish.vcpus} whole core{plural}"
    return f"{wish.vcpus} thread{plural} of whole cores"


def enough(wish: GuestWish, cores: Iterable[Core]) -> tuple[Core, ...]:
    """The first of these cores that carry all vCPUs; fewer when they do not suffice."""
    chosen: list[Core] = []
    for core in cores:
        if capacity(wish, chosen) >= wish.vcpus:
            break
        chosen.append(core)
    return tuple(chosen)


def with_vcpus(wish: GuestWish, vcpus: int) -> GuestWish:
    """The same guest with another number of vCPUs."""
    return wish.model_copy(update={"vcpus": vcpus})


def threads(wish: GuestWish, cores: tuple[Core, ...], seat: Seat | None = None) -> tuple[int, ...]:
    """Host CPU of each vCPU, in the order of the vCPUs."""
    if wish.goal == "realtime":
        # Of a core that the owner named by its second thread, or whose second thread the guest is on, that is used.
        named = wish.cpus or frozenset(seat.cpus if seat else ())
        return tuple(min(core.cpus & named, default=core.first) for core in cores)[: wish.vcpus]
    return tuple(cpu for core in cores for cpu in core.threads)[: wish.vcpus]


def threads_per_core(wish: GuestWish, cells: Iterable[CellWish], cores: tuple[Core, ...]) -> int:
    """How many siblings the guest may believe in: as many as each of its cores has, or 1 where cores differ.

    Cores differ where some of their threads are offline, and on hybrid machines.  A guest that takes threads of two
    cores for siblings puts two busy tasks on one core and none on the other.
    """
    if wish.goal != "performance":
        return 1
    sizes = {len(core.threads) for core in cores}
    size = min(sizes)
    return size if len(sizes) == 1 and all(cell.vcpus % size == 0 for cell in cells) else 1


def choose_cores(topology: Topology, free: list[Core], wish: GuestWish) -> tuple[tuple[Core, ...], str]:
    """Cores for a guest out of the free ones of a node: the fastest class, in the fullest L3 domain that still fits."""
    domains: dict[frozenset[int], list[Core]] = {}
    for core in sorted(free, key=lambda core: (core.rank, core.first)):
        domains.setdefault(topology.l3_of(core), []).append(core)
    fitting = [(enough(wish, cores), cores) for cores in domains.values() if capacity(wish, cores) >= wish.vcpus]
    if fitting:
        chosen, _ = min(
            fitting,
            key=lambda fit: (sum(core.rank for core in fit[0]), len(fit[1]), fit[0][0].first),
        )
        return chosen, "whole cores that share one L3 cache"
    ordered = [core for cores in sorted(domains.values(), key=lambda cores: (-len(cores), cores[0])) for core in cores]
    return enough(wish, ordered), "whole cores; no single L3 domain has room for all of them"
