"""Six small hosts and guests for which Nova 34.0.0 gives a wrong answer; each the smallest of its kind.

``seat``: a place that keeps every promise, found by hand, so that "does not fit" is known to be wrong; None where none
exists, so that "fits" is.  :mod:`bench.openstack.record` asks Nova and keeps its answers for the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.openstack.adapter import Style

from evenkeel.documents.fleet import (
    CellRequest,
    FleetFunction,
    FleetHost,
    FleetNode,
    FunctionRequest,
    GuestSeat,
    PageRoom,
    Request,
)

GIB = 1 << 30
BIG, HUGE = GIB, 2 << 20


@dataclass(frozen=True)
class Case:
    """``before``: guests that Nova is given first, one after the other; ``after``: to the cloud that is recorded."""

    id: str
    what: str
    host: FleetHost
    guest: Request
    seat: GuestSeat | None
    before: tuple[Request, ...] = ()
    after: tuple[Request, ...] = ()
    style: Style = "legacy"


def node(number: int, cores: int = 8, pages: dict[int, int] | None = None) -> FleetNode:
    """A node of two-thread cores, numbered on and on: node 1 of 8 cores has CPUs 16 to 31, cores {16, 24}, ...

    ``pages``: page size -> bytes free in such; 64 GiB in pages of 1 GiB unless said otherwise.
    """
    first = number * 2 * cores
    rooms = {BIG: 64 * GIB} if pages is None else pages
    return FleetNode(
        id=number,
        socket=number,
        cores=tuple(frozenset({first + core, first + cores + core}) for core in range(cores)),
        memory_bytes=sum(rooms.values()) + 8 * GIB,
        pages=tuple(PageRoom(page_bytes=size, free_bytes=free) for size, free in rooms.items()),
    )


def function(number: int, where: int, pool: str, network: str | None = None) -> FleetFunction:
    kind = "vf" if network else "pci"
    return FleetFunction(address=f"0000:{number:02x}:00.0", node=where, pool=pool, type=kind, network=network)


def host(name: str, nodes: Iterable[FleetNode], functions: Iterable[FleetFunction] = ()) -> FleetHost:
    return FleetHost(name=name, nodes=tuple(nodes), functions=tuple(functions))


def guest(name: str, *vcpus: int, **words: object) -> Request:
    """A guest with a cell of 1 GiB for each number of vCPUs, in pages of 1 GiB."""
    cells = tuple(CellRequest(vcpus=count, memory_bytes=GIB) for count in vcpus)
    wanted: dict[str, object] = {"name": name, "cells": cells, "threads": "prefer", "pages": BIG, "l3": "any", **words}
    return Request.model_validate(wanted)


def cases() -> tuple[Case, ...]:
    return (_r1(), _r1_pages(), _r2(), _r2_isolate(), _r3(), _r4(), _r5(), _r5_near(), _r6())


def _r1() -> Case:
    return Case(
        "R1",
        "3 empty nodes of 16 threads, guest cells of 2, 2 and 17 vCPUs: no node has 17",
        host("r1", (node(0), node(1), node(2))),
        guest("00000000-0000-4000-8000-000000000001", 2, 2, 17),
        None,
    )


def _r1_pages() -> Case:
    cells = tuple(CellRequest(vcpus=2, memory_bytes=size * GIB) for size in (1, 1, 80))
    return Case(
        "R1-pages",
        "the same cause with memory: no node has 80 pages of 1 GiB",
        host("r1-pages", (node(0), node(1), node(2))),
        guest("00000000-0000-4000-8000-000000000011", 2, 2, 2, cells=cells),
        None,
    )


def _r2() -> Case:
    return Case(
        "R2",
        "4 nodes with a device each, a guest of two cells, the two that it must be near on nodes 1 and 3",
        host(
            "r2",
            (node(0), node(1), node(2), node(3)),
            (
                function(16, 0, "gpu"),
                function(18, 2, "gpu"),
                function(1, 1, "nic", "a"),
                function(3, 3, "nic", "b"),
            ),
        ),
        guest(
            "00000000-0000-4000-8000-000000000002",
            2,
            2,
            functions=(FunctionRequest(network="a"), FunctionRequest(network="b")),
        ),
        GuestSeat(
            name="00000000-0000-4000-8000-000000000002",
            host="r2",
            nodes=(1, 3),
            cpus=((16, 24), (48, 56)),
            page_bytes=BIG,
            functions=("0000:01:00.0", "0000:03:00.0"),
        ),
    )


def _r2_isolate() -> Case:
    """An isolate guest is claimed by the cores of its node that its CPUs are in; CPUs of another node are in none."""
    case, name = _r2(), "00000000-0000-4000-8000-000000000021"
    seat = case.seat
    assert seat is not None
    return Case(
        "R2-isolate",
        "the same with isolate: the claim goes through and pins nothing, so the next guest is given the same CPUs",
        case.host.model_copy(update={"name": "r2-isolate"}),
        case.guest.model_copy(update={"name": name, "threads": "isolate"}),
        seat.model_copy(
            update={
                "name": name,
                "host": "r2-isolate",
                "cpus": ((16, 17), (48, 49)),
                "idle": frozenset({24, 25, 56, 57}),
            }
        ),
        after=(guest("00000000-0000-4000-8000-000000000022", 2, 2, 2, 2, threads="isolate"),),
    )


def _r3() -> Case:
    return Case(
        "R3",
        "isolate with an emulator thread of its own, beside a core that is half used",
        host("r3", (node(0),)),
        guest("00000000-0000-4000-8000-000000000003", 2, threads="isolate", emulator="own"),
        GuestSeat(
            name="00000000-0000-4000-8000-000000000003",
            host="r3",
            nodes=(0,),
            cpus=((1, 2),),
            idle=frozenset({9, 10, 11}),
            emulator=frozenset({3}),
            page_bytes=BIG,
        ),
        before=(guest("00000000-0000-4000-8000-000000000031", 1),),
    )


def _r4() -> Case:
    return Case(
        "R4",
        "any page size; the node tried first has 1 GiB pages and too few CPUs, the other 2 MiB pages",
        host("r4", (node(0, cores=1), node(1, pages={HUGE: 16 * GIB})), (function(1, 1, "nic", "a"),)),
        guest("00000000-0000-4000-8000-000000000004", 4, pages="any"),
        GuestSeat(
            name="00000000-0000-4000-8000-000000000004",
            host="r4",
            nodes=(1,),
            cpus=((16, 24, 17, 25),),
            page_bytes=HUGE,
        ),
    )


def _r5() -> Case:
    return Case(
        "R5",
        "any function on network a, and one of pool x; the only x is on a too, and is taken for the first",
        host("r5", (node(0),), (function(1, 0, "x", "a"), function(2, 0, "y", "a"))),
        guest(
            "00000000-0000-4000-8000-000000000005",
            2,
            functions=(FunctionRequest(network="a"), FunctionRequest(pool="x")),
        ),
        GuestSeat(
            name="00000000-0000-4000-8000-000000000005",
            host="r5",
            nodes=(0,),
            cpus=((0, 8),),
            page_bytes=BIG,
            functions=("0000:01:00.0", "0000:02:00.0"),
        ),
    )


def _r5_near() -> Case:
    return Case(
        "R5-near",
        "a function that is better near, and one that must be; the only near one is taken for the first",
        host("r5-near", (node(0), node(1, cores=1)), (function(1, 0, "nic", "a"), function(2, 1, "nic", "a"))),
        guest(
            "00000000-0000-4000-8000-000000000051",
            4,
            functions=(FunctionRequest(network="a", near="preferred"), FunctionRequest(network="a")),
        ),
        GuestSeat(
            name="00000000-0000-4000-8000-000000000051",
            host="r5-near",
            nodes=(0,),
            cpus=((0, 8, 1, 9),),
            page_bytes=BIG,
            functions=("0000:01:00.0", "0000:02:00.0"),
        ),
    )


def _r6() -> Case:
    return Case(
        "R6",
        "isolate on an empty host with two threads a core, configured with cpu_dedicated_set",
        host("r6", (node(0),)),
        guest("00000000-0000-4000-8000-000000000006", 2, threads="isolate"),
        GuestSeat(
            name="00000000-0000-4000-8000-000000000006",
            host="r6",
            nodes=(0,),
            cpus=((0, 1),),
            idle=frozenset({8, 9}),
            page_bytes=BIG,
        ),
        style="new",
    )
