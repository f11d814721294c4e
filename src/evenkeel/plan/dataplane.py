"""CPUs that poll network cards for packets (the data plane: Open vSwitch with DPDK and its like).  Pure.

They are whole cores on the node of their card, the host's own and nobody else's; each core polls with one thread and
its sibling stays empty, since a thread that never sleeps shares its execution units with whoever is beside it.  What
polls is not started or set up here: the plan says with which masks its owner does that.  Source: reference host-tuning
§2.1 (S2).
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import DataPlanePlan
from evenkeel.documents.site import DataPlane
from evenkeel.plan.problems import Problems
from evenkeel.plan.seating import near_node
from evenkeel.plan.seats import Seats
from evenkeel.plan.topology import Core, Topology


@dataclass(frozen=True)
class Polling:
    """``cpus``: whole cores; ``polling``: the threads of them that poll."""

    cpus: frozenset[int] = frozenset()
    polling: frozenset[int] = frozenset()
    why: tuple[str, ...] = ()


NOTHING = Polling()


def choose_polling(
    topology: Topology,
    wish: DataPlane | None,
    housekeeping: frozenset[int],
    claimed: frozenset[int],
    host: str,
    problems: Problems,
    seats: Seats,
) -> Polling:
    """The CPUs that poll, out of what is not housekeeping and no guest's by number; each mistake is a problem.

    Cores that polled in the plan that is kept stay, then such as no guest sits on are taken.
    """
    if wish is None:
        return NOTHING
    if wish.cpus is not None:
        return _named(topology, wish.cpus, housekeeping, claimed, host, problems)
    about = f"host {host}"
    sat_on = frozenset(cpu for seat in seats.guests.values() for cpu in seat.cpus)
    taken: list[Core] = []
    why: list[str] = []
    for name in wish.near:
        before = len(problems.found)
        node, where = near_node(about, name, topology, problems, key="data_plane")
        if len(problems.found) > before:
            continue
        if node is None:
            problems.add(
                about,
                f"data_plane: the firmware does not tell on which node {name} is",
                "name the CPUs instead: data_plane: { cpus: ... }",
            )
            continue
        free = [
            core for core in topology.cores_of(node) if core not in taken and not core.cpus & (housekeeping | claimed)
        ]
        if len(free) < wish.cores:
            cpus = format_cpus(cpu for core in free for cpu in core.threads)
            problems.add(
                about,
                f"data_plane wants {wish.cores} core{'s' * (wish.cores > 1)} of node {node} ({where}), and "
                f"{len(free)} {'is' if len(free) == 1 else 'are'} left{f' (CPUs {cpus})' if cpus else ''}",
                "a core of each node stays with the host; take fewer, or leave CPUs out of the guests' `cpus`",
            )
            continue
        # Slower cores last (hybrid): polling is bound by the clock.
        free.sort(key=lambda core: (not core.cpus <= seats.data_plane, bool(core.cpus & sat_on), core.rank, core.first))
        chosen = sorted(free[: wish.cores])
        taken += chosen
        cpus = format_cpus(cpu for core in chosen for cpu in core.threads)
        why.append(
            f"data plane {cpus} polls for {name}: {wish.cores} whole core{'s' * (wish.cores > 1)} of "
            + (where if topology.numa else "the host")
        )
    return _polling(topology, frozenset(core.first for core in taken), tuple(why))


def _named(
    topology: Topology,
    wish: frozenset[int],
    housekeeping: frozenset[int],
    claimed: frozenset[int],
    host: str,
    problems: Problems,
) -> Polling:
    about = f"host {host}"
    if missing := wish - topology.online:
        problems.add(
            about,
            f"data_plane names CPU {format_cpus(missing)}, which the host does not have online",
            f"online are {format_cpus(topology.online)}",
        )
    cpus = topology.whole(wish & topology.online)
    for other, what in ((housekeeping, "housekeeping"), (claimed, "a guest's by number")):
        if both := cpus & other:
            problems.add(
                about,
                f"data_plane {format_cpus(wish)} takes the core of CPU {format_cpus(both)}, which is {what}",
                "each core has one owner; name others",
            )
    return _polling(
        topology, wish & topology.online, (f"data plane {format_cpus(cpus)}: as the owner of host {host} wishes",)
    )


def _polling(topology: Topology, polling: frozenset[int], why: tuple[str, ...]) -> Polling:
    cpus = topology.whole(polling)
    if empty := cpus - polling:
        why += (f"their siblings {format_cpus(empty)} stay empty: a thread that polls never leaves them anything",)
    return Polling(cpus, polling, why)


def export(polling: Polling, housekeeping: frozenset[int]) -> DataPlanePlan | None:
    """What the owner of the process that polls tells it; None: there is no data plane."""
    if not polling.polling:
        return None
    return DataPlanePlan(
        polling=polling.polling,
        options={
            "other_config:pmd-cpu-mask": _mask(polling.polling),
            "other_config:dpdk-lcore-mask": _mask(housekeeping),
        },
    )


def _mask(cpus: frozenset[int]) -> str:
    """As Open vSwitch reads it: hexadecimal, without the commas of the kernel's masks."""
    return hex(sum(1 << cpu for cpu in cpus))
