"""One guest on one host: it fits if and only if brute force finds a seat, and the checker accepts every seat."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from bench import fleets
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.fleet import FleetFunction, FleetHost, FleetPlan, Refusal, Request
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet import room as room_module
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.room import Room, Spot, fit, give_functions
from tests.plan.fleet import brute

GIB = 1 << 30


def checked(host: FleetHost, placed: list[tuple[Request, Spot]]) -> list[str]:
    plan = FleetPlan(hosts=(host,), guests=tuple(request for request, _ in placed), seats=seats_on(host, placed))
    return check_placement(plan.model_dump(mode="json"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_guest_fits_if_and_only_if_brute_force_finds_a_seat(seed: int) -> None:
    rng = Random(seed)
    host, guest = fleets.small_host(rng), fleets.small_guest(rng, "g")
    spot = fit(Room(host), guest)
    assert (spot is not None) == brute.fits(host, [guest])
    if spot is not None:
        assert checked(host, [(guest, spot)]) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_guests_one_after_the_other_are_accepted_by_the_checker(seed: int) -> None:
    rng = Random(seed)
    host, placed = fleets.small_host(rng), []
    room = Room(host)
    for number in range(6):
        guest = fleets.small_guest(rng, f"g{number}")
        if (spot := fit(room, guest)) is not None:
            room.take(guest, spot)
            placed.append((guest, spot))
    assert checked(host, placed) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_is_left_after_one_guest_is_what_brute_force_finds_left(seed: int) -> None:
    """Counting is exact: with the CPUs of the first guest free to choose, the second fits iff some choice lets it."""
    rng = Random(seed)
    host = fleets.small_host(rng)
    if sum(len(node.cores) for node in host.nodes) > 6:
        host = host.model_copy(update={"nodes": host.nodes[:1]})
    plain: dict[str, Any] = {"functions": (), "pages": fleets.HUGE, "emulator": "housekeeping"}
    one, other = (
        fleets.small_guest(rng, name).model_copy(update=plain | {"l3": "any", "max_distance": None})
        for name in ("a", "b")
    )
    if len(host.nodes) > 1 or len(one.cells) > 1 or "overcommit" in (one.threads, other.threads):
        host = host.model_copy(update={"nodes": host.nodes[:1]})
        one, other = (
            guest.model_copy(update={"cells": guest.cells[:1]})
            if guest.threads != "overcommit"
            else guest.model_copy(update={"cells": guest.cells[:1], "threads": "prefer"})
            for guest in (one, other)
        )
    room = Room(host)
    spot = fit(room, one)
    if spot is None:
        assert not brute.fits(host, [one])
        return
    room.take(one, spot)
    assert (fit(room, other) is not None) == brute.fits(host, [one, other])


@pytest.mark.parametrize("cells", range(1, 9))
def test_a_guest_that_lacks_one_function_is_refused_at_once(cells: int) -> None:
    """The case that takes Nova seconds to minutes: all cells fit anywhere, one virtual function is missing."""
    host = FleetHost(
        name="h",
        nodes=tuple(
            fleets.node(number, first=number * 8, cores=8, nodes=8, sockets=2, housekeeping=0) for number in range(8)
        ),
        functions=fleets.host(0).functions[:3],
    )
    request = Request.model_validate(
        {
            "name": "g",
            "threads": "isolate",
            "cells": [{"vcpus": 2, "memory_bytes": GIB}] * cells,
            "functions": [{"pool": "vf", "count": 4, "near": "any"}],
        }
    )
    assert fit(Room(host), request) is None
    fewer = request.model_copy(update={"functions": (request.functions[0].model_copy(update={"count": 3}),)})
    spot = fit(Room(host), fewer)
    assert spot is not None
    assert len(set(spot.nodes)) == cells


def test_cells_take_the_nodes_nearest_to_each_other_and_to_the_device() -> None:
    nodes = tuple(fleets.node(n, first=n * 4, cores=4, nodes=4, sockets=2, housekeeping=0) for n in range(4))
    host = FleetHost(name="h", nodes=nodes, functions=fleets.host(0).functions[8:10], places={"eth1": 3})
    base: dict[str, Any] = {"name": "g", "threads": "isolate", "cells": [{"vcpus": 2, "memory_bytes": GIB}] * 2}

    def nodes_of(**more: Any) -> tuple[int, ...] | None:
        spot = fit(Room(host), Request.model_validate(base | more))
        return None if spot is None else spot.nodes

    assert nodes_of() == (0, 1)
    assert nodes_of(near="eth1") == (2, 3)
    assert nodes_of(functions=[{"network": "red"}]) == (0, 1)
    assert nodes_of(near="eth1", functions=[{"network": "red"}], max_distance=12) is None
    assert nodes_of(near="eth1", functions=[{"network": "red"}]) == (0, 3)
    assert nodes_of(near="eth1", functions=[{"network": "red", "near": "preferred"}]) == (2, 3)
    assert nodes_of(cells=[{"vcpus": 4, "memory_bytes": GIB}], cut=True) == (0,)
    assert nodes_of(cells=[{"vcpus": 8, "memory_bytes": 2 * GIB}], cut=True) == (0, 1)


def test_an_iommu_group_goes_to_one_guest_as_a_whole() -> None:
    functions = tuple(f.model_copy(update={"iommu_group": 9}) for f in fleets.host(0).functions[-2:])
    host = FleetHost(name="h", nodes=(fleets.node(0, first=0, cores=4, nodes=1),), functions=functions)
    guest = Request.model_validate(
        {"name": "g", "cells": [{"vcpus": 1, "memory_bytes": GIB}], "functions": [{"near": "any"}]}
    )
    room = Room(host)
    spot = fit(room, guest)
    assert spot is not None
    room.take(guest, spot)
    assert fit(room, guest) is None
    two = guest.model_copy(update={"functions": (guest.functions[0].model_copy(update={"count": 2}),)})
    assert fit(Room(host), two) is not None


def test_names_are_the_same_in_whatever_order_guests_come() -> None:
    rng = Random(7)
    host, placed = fleets.host(0), []
    room = Room(host)
    for guest in fleets.demand(12, 3):
        if (spot := fit(room, guest)) is not None:
            room.take(guest, spot)
            placed.append((guest, spot))
    shuffled = list(placed)
    rng.shuffle(shuffled)
    assert seats_on(host, placed) == seats_on(host, shuffled)
    assert len(placed) > 6


def test_a_defect_of_counting_would_be_seen() -> None:
    host, guest = fleets.host(0), fleets.types()[0][0]
    spot = Spot((0,), guest.cells, (-1,), fleets.HUGE)
    with pytest.raises(AssertionError, match="no cores carry them"):
        seats_on(host, [(guest.model_copy(update={"name": f"g{n}"}), spot) for n in range(16)])
    plan = FleetPlan(hosts=(host,), guests=(guest,), seats=(), refused=(Refusal(name="plc", reasons=()),))
    assert check_placement(plan.model_dump(mode="json")) == []


def test_sets_of_nodes_that_are_alike_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 nodes with one function each, 8 cells that want 9 near: 12,870 sets of nodes, one answer."""
    nodes = tuple(fleets.node(n, first=n * 4, cores=4, nodes=16, sockets=2, housekeeping=0) for n in range(16))
    functions = tuple(FleetFunction(address=f"0000:{n + 1:02x}:00.0", node=n, pool="nic") for n in range(16))
    request = Request.model_validate(
        {
            "name": "g",
            "cells": [{"vcpus": 2, "memory_bytes": GIB}] * 8,
            "functions": [{"pool": "nic", "count": 9}],
        }
    )
    looks = []

    def counted(*arguments: Any) -> tuple[str, ...] | None:
        looks.append(1)
        return give_functions(*arguments)

    monkeypatch.setattr(room_module, "give_functions", counted)
    assert fit(Room(FleetHost(name="h", nodes=nodes, functions=functions)), request) is None
    assert len(looks) == 2  # wherever they are; then on the one sort of set that there is
