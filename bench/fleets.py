"""Fleets and guests made from numbers, for tests and benchmarks of placement.  Same seed, same bytes.

``small()`` gives hosts and guests of a size that brute force can settle; ``fleet()`` and ``demand()`` the mixed fleet
of the benchmarks: nine types of guests (isolate, require, prefer; virtual functions, a GPU, two cells) on hosts of two
nodes, wired by rack.
"""

from __future__ import annotations

from random import Random

from evenkeel.documents.fleet import (
    CellRequest,
    FleetFunction,
    FleetHost,
    FleetNode,
    FunctionRequest,
    PageRoom,
    Request,
)

MIB, GIB = 1 << 20, 1 << 30
ORDINARY, HUGE, GIANT = 4096, 2 * MIB, GIB


def node(
    number: int,
    *,
    first: int,
    cores: int,
    threads: int = 2,
    stride: int | None = None,
    l3_cores: int | None = None,
    memory_bytes: int = 256 * GIB,
    pages: dict[int, int] | None = None,
    nodes: int = 2,
    housekeeping: int = 1,
    busy: frozenset[int] = frozenset(),
    sockets: int | None = None,
) -> FleetNode:
    """A node whose cores are ``first``... with siblings ``stride`` further on; its first cores are housekeeping.

    ``pages``: size -> bytes; None: all memory in pages of 1 GiB or 2 MiB.  ``l3_cores``: cores that share an L3.
    """
    step = cores * nodes if stride is None else stride
    made = [frozenset(first + core + thread * step for thread in range(threads)) for core in range(cores)]
    per_socket = max(1, nodes // (sockets or nodes))
    groups = [made[at : at + l3_cores] for at in range(0, cores, l3_cores)] if l3_cores else []
    rooms = {ORDINARY: memory_bytes, HUGE: memory_bytes, GIANT: memory_bytes} if pages is None else pages
    return FleetNode(
        id=number,
        socket=number // per_socket,
        cores=tuple(made),
        l3=tuple(frozenset().union(*group) for group in groups) if len(groups) > 1 else (),
        housekeeping=frozenset().union(*made[:housekeeping]),
        busy=busy & frozenset().union(*made),
        memory_bytes=memory_bytes,
        pages=tuple(PageRoom(page_bytes=size, free_bytes=room) for size, room in sorted(rooms.items())),
        distances={
            other: 10 if other == number else 12 if other // per_socket == number // per_socket else 21
            for other in range(nodes)
        },
    )


# -- the mixed fleet --------------------------------------------------------------------------------------------------


def host(index: int, *, hosts_per_rack: int = 20, cores: int = 32) -> FleetHost:
    """Two nodes of ``cores`` cores with two threads, 16 virtual functions on node 0; every fourth host has two GPUs."""
    rack = index // hosts_per_rack
    functions = [
        FleetFunction(
            address=f"0000:3b:{vf // 8 + 2:02x}.{vf % 8}",
            node=0,
            pool="vf",
            type="vf",
            network="blue" if vf < 8 else "red",
            iommu_group=100 + vf,
            physical_function="0000:3b:00.0",
        )
        for vf in range(16)
    ]
    if index % 4 == 0:
        functions += [
            FleetFunction(address=f"0000:{0xAF + gpu:02x}:00.0", node=1, pool="gpu", iommu_group=50 + gpu)
            for gpu in range(2)
        ]
    return FleetHost(
        name=f"h{index:05}",
        features=("kvm", "libvirt", "preempt-rt", "qemu", "smt"),
        rack=f"r{rack:03}",
        networks=("blue", "green") if rack % 2 else ("blue", "red"),
        nodes=tuple(
            node(
                number,
                first=number * cores,
                cores=cores,
                memory_bytes=192 * GIB,
                pages={HUGE: 64 * GIB, GIANT: 128 * GIB},
                housekeeping=2,
            )
            for number in range(2)
        ),
        functions=tuple(sorted(functions, key=lambda one: one.address)),
        power_watts=600,
    )


def fleet(hosts: int) -> tuple[FleetHost, ...]:
    return tuple(host(index) for index in range(hosts))


def types() -> tuple[tuple[Request, int], ...]:
    """(a guest of the type, how often of 100).  ``value``: its threads, isolated cores twice, devices on top."""

    def guest(name: str, vcpus: int, gib: int, **more: object) -> Request:
        page = more.pop("page", GIANT)
        cells = more.pop("cells", (CellRequest(vcpus=vcpus, memory_bytes=gib * GIB),))
        return Request.model_validate({"name": name, "goal": "performance", "cells": cells, "pages": page, **more})

    two = tuple(CellRequest(vcpus=8, memory_bytes=16 * GIB) for _ in range(2))
    blue = FunctionRequest(pool="vf", network="blue", count=1)
    return (
        (guest("plc", 2, 2, goal="realtime", threads="isolate", page=HUGE, value=4, features=("preempt-rt",)), 18),
        (guest("relay", 4, 4, goal="realtime", threads="isolate", value=8), 12),
        (guest("ran", 8, 16, goal="realtime", threads="isolate", functions=(blue,), value=18), 10),
        (guest("db", 8, 32, threads="whole", value=8), 14),
        (guest("db-large", 16, 64, threads="whole", value=16), 6),
        (guest("web", 4, 8, threads="prefer", page=HUGE, value=4), 20),
        (guest("odd", 3, 6, threads="prefer", page=HUGE, value=3, networks=("red",)), 8),
        (guest("gpu", 8, 32, threads="whole", functions=(FunctionRequest(pool="gpu"),), value=24), 4),
        (guest("wide", 16, 32, threads="whole", cells=two, functions=(blue,), value=20), 8),
    )


#: Mixes beside that of :func:`types`: how often each type comes.
MIXES = {
    "real-time": {"plc": 30, "relay": 30, "ran": 25, "wide": 15},
    "large": {"db": 30, "db-large": 40, "wide": 30},
    "small": {"plc": 30, "web": 40, "odd": 20, "db": 10},
}


def demand(count: int, seed: int, mix: str = "mixed") -> tuple[Request, ...]:
    """So many guests of the nine types, in the order in which they come."""
    rng = Random(seed)
    weights = MIXES.get(mix) or {kind.name: weight for kind, weight in types()}
    kinds = [kind for kind, _ in types() if kind.name in weights]
    drawn = rng.choices(kinds, [weights[kind.name] for kind in kinds], k=count)
    return tuple(kind.model_copy(update={"name": f"g{index:06}-{kind.name}"}) for index, kind in enumerate(drawn))


def part_filled(index: int, seed: int, share: float = 0.5) -> FleetHost:
    """A host of the mixed fleet on which others have about ``share`` of the cores, memory and functions."""
    rng = Random(f"{seed}-{index}")
    empty = host(index)
    nodes = []
    for one in empty.nodes:
        busy: set[int] = set()
        for core in one.cores:
            draw = rng.random()
            if draw < share * 0.8:
                busy |= core
            elif draw < share:
                busy.add(min(core))
        left = 1 - share * rng.uniform(0.6, 1.4)
        pages = tuple(
            PageRoom(
                page_bytes=size.page_bytes, free_bytes=int(size.free_bytes * left) // size.page_bytes * size.page_bytes
            )
            for size in one.pages
        )
        nodes.append(one.model_copy(update={"busy": frozenset(busy) - one.housekeeping, "pages": pages}))
    functions = tuple(f.model_copy(update={"busy": rng.random() < share}) for f in empty.functions)
    return empty.model_copy(update={"nodes": tuple(nodes), "functions": functions})


# -- small enough for brute force -------------------------------------------------------------------------------------


def small_host(rng: Random, name: str = "h") -> FleetHost:
    """One to four nodes of one to four cores, part of them taken, a few functions, odd memory."""
    nodes, threads = rng.choice((1, 2, 2, 3, 4)), rng.choice((1, 2, 2, 2))
    cores = rng.randint(1, 4)
    made = []
    for number in range(nodes):
        one = node(
            number,
            first=number * cores,
            cores=cores,
            threads=threads,
            nodes=nodes,
            sockets=1 if nodes < 3 else 2,
            l3_cores=2 if cores == 4 and rng.random() < 0.5 else None,
            memory_bytes=rng.choice((2, 4, 6)) * GIB,
            pages={HUGE: rng.choice((1, 2, 4)) * GIB, GIANT: rng.choice((0, 1, 2, 4)) * GIB},
            housekeeping=1 if cores > 1 and rng.random() < 0.6 else 0,
        )
        busy = frozenset(cpu for cpu in one.cpus - one.housekeeping if rng.random() < 0.2)
        made.append(one.model_copy(update={"busy": busy}))
    functions = tuple(
        FleetFunction(
            address=f"0000:{index + 1:02x}:00.0",
            node=rng.choice((None, *range(nodes))),
            pool=rng.choice(("a", "b")),
            network=rng.choice((None, "blue", "red")),
            iommu_group=rng.choice((None, 1, 2, 3)),
            busy=rng.random() < 0.15,
        )
        for index in range(rng.choice((0, 1, 2, 3)))
    )
    return FleetHost(name=name, features=("smt",) if threads > 1 else (), nodes=tuple(made), functions=functions)


def part_of(host: FleetHost, rng: Random, name: str) -> FleetHost:
    """The same host with more of it taken."""
    nodes = tuple(
        node.model_copy(update={"busy": node.busy | {cpu for cpu in node.free if rng.random() < 0.3}})
        for node in host.nodes
    )
    functions = tuple(one.model_copy(update={"busy": one.busy or rng.random() < 0.6}) for one in host.functions)
    return host.model_copy(update={"name": name, "nodes": nodes, "functions": functions})


def small_guest(rng: Random, name: str) -> Request:
    cells = tuple(
        CellRequest(vcpus=rng.choice((1, 1, 2, 2, 3)), memory_bytes=rng.choice((1, 1, 2, 3)) * GIB)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))
    )
    threads = rng.choice(("isolate", "whole", "require", "prefer", "prefer", "float", "overcommit"))
    functions = tuple(
        FunctionRequest(
            pool=rng.choice((None, "a", "b")),
            network=rng.choice((None, None, "blue", "red")),
            near=rng.choice(("required", "required", "preferred", "any")),
        )
        for _ in range(rng.choice((0, 0, 1, 1, 2)))
    )
    pinned = threads not in ("float", "overcommit")
    return Request.model_validate(
        {
            "name": name,
            "threads": threads,
            "cells": cells if threads != "overcommit" else cells[:1],
            "pages": "ordinary"
            if threads == "overcommit"
            else rng.choice(("huge-largest", "huge-smallest", HUGE, GIANT)),
            "emulator": "own" if pinned and rng.random() < 0.2 else "housekeeping",
            "l3": rng.choice(("any", "prefer", "require")) if threads in ("isolate", "whole") else "prefer",
            "max_distance": rng.choice((None, None, None, 12, 21)),
            "functions": functions,
            "value": rng.randint(1, 5),
        }
    )
