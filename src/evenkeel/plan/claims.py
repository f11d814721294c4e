"""CPUs that owners gave to guests by number: what is wrong with them, and the cores that they make.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.site import GuestWish
from evenkeel.plan.cells import Shape, carries, deal, part
from evenkeel.plan.cores import PINNED, capacity, enough, need
from evenkeel.plan.problems import Problems
from evenkeel.plan.topology import Core, Topology


def find_claims(
    topology: Topology, guests: Mapping[str, GuestWish], shapes: Mapping[str, Sequence[Shape]], problems: Problems
) -> dict[str, tuple[Core, ...]]:
    """Cores that the owner gave to pinned guests by number; each mistake in them is a problem.

    ``shapes``: the cells that each guest may have.
    """
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
        shape = next((shape for shape in shapes[name] if len(shape) == len(nodes)), None)
        if shape is None:
            split = "; ".join(f"node {node} has {format_cpus(topology.node_cpus(node))}" for node in nodes)
            counts = sorted({len(shape) for shape in shapes[name]})
            problems.add(
                about,
                f"cpus {format_cpus(wish.cpus)} lie on node{'s' * (len(nodes) > 1)} {format_cpus(nodes)}",
                f"use one, or write numa: {len(nodes)}; {split}"
                if counts == [1]
                else f"it is to have {format_cpus(counts)} cells, each on a node of its own; {split}",
            )
        room = capacity(wish, cores)
        if room < wish.vcpus:
            problems.add(
                about,
                f"{wish.vcpus} vCPUs with goal {wish.goal} need {need(wish)}, "
                f"cpus {format_cpus(wish.cpus)} gives {room}",
                "name more CPUs, or leave `cpus` out and let the planner choose",
            )
        elif shape is not None and len(shape) > 1:
            _check_cells(name, wish, shape, cores, problems)
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


def cells_of(wish: GuestWish, shape: Shape, cores: Sequence[Core]) -> tuple[tuple[int, tuple[Core, ...]], ...] | None:
    """(node, cores) of each cell of a guest that is to have exactly these cores; None: they do not suffice."""
    on: dict[int, list[Core]] = {}
    for core in cores:
        on.setdefault(core.node, []).append(core)
    fits = {(cell, node): carries(wish, cell, here) for cell in shape for node, here in on.items()}
    nodes = next(deal(shape, sorted(on), fits), None)
    return None if nodes is None else tuple((node, tuple(on[node])) for node in nodes)


def _check_cells(name: str, wish: GuestWish, shape: Shape, cores: Sequence[Core], problems: Problems) -> None:
    assert wish.cpus is not None
    found = cells_of(wish, shape, cores)
    if found is None:
        gives = ", ".join(
            f"node {node} {capacity(wish, [core for core in cores if core.node == node])}"
            for node in sorted({core.node for core in cores})
        )
        problems.add(
            f"guest {name}",
            f"its cells have {', '.join(str(cell.vcpus) for cell in shape)} vCPUs, "
            f"cpus {format_cpus(wish.cpus)} gives {gives}",
            "name as many CPUs of each node as its cell needs, or leave `cpus` out",
        )
        return
    idle = [
        core
        for cell, (_, here) in zip(shape, found, strict=True)
        for core in here[len(enough(part(wish, cell), here)) :]
    ]
    if idle:
        problems.add(
            f"guest {name}",
            f"cpus {format_cpus(wish.cpus)} names cores that its cells do not use: "
            f"{format_cpus(cpu for core in idle for cpu in core.threads)}",
            "leave out the CPUs that would stand empty",
        )


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
