"""What guests would rather have decides between placements of the same guests, and never costs one its place."""

from __future__ import annotations

from random import Random
from typing import Any

from bench import fleets
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.fleet import FleetFunction, FleetHost, FleetPlan, Refusal, Request
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet import pack as pack_module
from evenkeel.plan.fleet.model import Packing
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import pack
from evenkeel.plan.fleet.room import Room
from tests.plan.fleet import brute

GIB = 1 << 30


def host(name: str, nodes: int, near: tuple[int, ...], cores: int = 4, l3_cores: int = 2) -> FleetHost:
    """Nodes of ``cores`` cores with one thread, ``l3_cores`` of which share a cache; functions near nodes ``near``."""
    return FleetHost(
        name=name,
        nodes=tuple(
            fleets.node(
                number, first=number * cores, cores=cores, threads=1, nodes=nodes, l3_cores=l3_cores, housekeeping=0
            )
            for number in range(nodes)
        ),
        functions=tuple(
            FleetFunction(address=f"0000:{at + 1:02x}:00.0", node=node, pool="nic") for at, node in enumerate(near)
        ),
    )


def guest(name: str, vcpus: int, near: str | None = None, **more: Any) -> Request:
    functions = ({"pool": "nic", "near": near},) if near else ()
    cells = ({"vcpus": vcpus, "memory_bytes": GIB},)
    wish = {"name": name, "threads": "isolate", "pages": GIB, "cells": cells, "functions": functions, **more}
    return Request.model_validate(wish)


def placed(hosts: list[FleetHost], guests: list[Request]) -> tuple[Packing, list[dict[str, Any]]]:
    """What is packed, and its seats, which the checker accepts."""
    packing = pack([Room(one) for one in hosts], guests)
    on: list[list[Any]] = [[] for _ in hosts]
    for one in guests:
        if one.name in packing.placed:
            at, spot = packing.placed[one.name]
            on[at].append((one, spot))
    seats = tuple(seat for at, here in enumerate(on) for seat in seats_on(hosts[at], here))
    refused = tuple(Refusal(name=one.name, reasons=("-",)) for one in guests if one.name not in packing.placed)
    plan = FleetPlan(hosts=tuple(hosts), guests=tuple(guests), seats=seats, refused=refused).model_dump(mode="json")
    assert check_placement(plan) == []
    return packing, plan["seats"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32))
def test_as_little_is_missed_as_brute_force_can_miss(seed: int) -> None:
    rng = Random(seed)
    nodes = rng.choice((1, 2))
    hosts = [
        host(
            f"h{at}",
            nodes,
            tuple(rng.randrange(nodes) for _ in range(rng.choice((1, 2)))),
            rng.choice((3, 4)),
            rng.choice((2, 3)),
        )
        for at in range(1 if nodes == 2 else 2)
    ]
    guests = [
        guest(
            f"g{at}",
            rng.choice((1, 2, 2, 3)),
            rng.choice((None, "preferred", "preferred", "any")),
            l3=rng.choice(("prefer", "prefer", "any")),
        )
        for at in range(3)
    ]
    packing, seats = placed(hosts, guests)
    there = [one for one in guests if one.name in packing.placed]
    assert brute.misses(hosts, there, seats) == brute.fewest_misses(hosts, there)


def test_a_guest_is_near_its_function_where_another_may_as_well_be_elsewhere() -> None:
    """One after the other, the first would be on node 0 too."""
    hosts, guests = [host("h", 2, (0, 0))], [guest("a", 4, "any"), guest("b", 4, "preferred")]
    _, seats = placed(hosts, guests)
    assert {seat["name"]: seat["nodes"] for seat in seats} == {"a": [1], "b": [0]}


def test_cells_are_kept_in_one_l3_domain_where_there_is_a_host_for_that() -> None:
    """Guests of three cores: domains of two on the first host, of three on the second."""
    hosts = [host("a", 1, (), 6, 2), host("b", 1, (), 6, 3)]
    guests = [guest("g1", 3), guest("g2", 3), guest("h1", 2), guest("h2", 2), guest("h3", 2)]
    _, seats = placed(hosts, guests)
    assert brute.misses(hosts, guests, seats) == 0


def test_no_wish_costs_a_guest_its_place() -> None:
    """Six cores in domains of two: both guests fit, and neither can be in one domain."""
    hosts, guests = [host("a", 1, (), 6)], [guest("a", 3), guest("b", 3)]
    packing, seats = placed(hosts, guests)
    assert len(packing.placed) == 2
    assert brute.misses(hosts, guests, seats) == 2


def test_a_program_that_is_too_large_is_left_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(pack_module, "MOST_COLUMNS", 0)
    packing, _ = placed([host("h", 2, (0,))], [guest("a", 4), guest("b", 4, "preferred")])
    assert len(packing.placed) == 2
