"""CPUs that owners gave to guests by number: what is wrong with them, and the cores that they make.  Pure."""

from __future__ import annotations

from collections.abc import Mapping

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.site import GuestWish
from evenkeel.plan.cores import PINNED, capacity, enough, need
from evenkeel.plan.problems import Problems
from evenkeel.plan.topology import Core, Topology


def find_claims(topology: Topology, guests: Mapping[str, GuestWish], problems: Problems) -> dict[str, tuple[Core, ...]]:
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
        room = capacity(wish, cores)
        if room < wish.vcpus:
            problems.add(
                about,
                f"{wish.vcpus} vCPUs with goal {wish.goal} need {need(wish)}, "
                f"cpus {format_cpus(wish.cpus)} gives {room}",
                "name more CPUs, or leave `cpus` out and let the planner choose",
            )
        elif len(enough(wish, cores)) < len(cores):
            problems.add(
                about,
                f"cpus {format_cpus(wish.cpus)} names {len(cores)} cores, {wish.vcpus} vCPUs use "
                f"{len(enough(wish, cores))} of them",
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
