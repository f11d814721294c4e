"""Why a guest fits nowhere: the reasons are true, as few as can be, and every cure that is told is one."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from bench import fleets
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.fleet import FleetHost, Refusal, Request
from evenkeel.plan.fleet.capacity import how_many_more
from evenkeel.plan.fleet.explain import refusal
from evenkeel.plan.fleet.pack import Limits, pack
from evenkeel.plan.fleet.room import Room, fit
from tests.plan.fleet.test_pack import document, packed

GIB = 1 << 30
HOSTS = [fleets.host(index, hosts_per_rack=2, cores=8) for index in range(4)]


def ask(on: list[FleetHost] | None = None, **more: Any) -> Refusal:
    base: dict[str, Any] = {
        "name": "g",
        "threads": "isolate",
        "pages": GIB,
        "cells": [{"vcpus": 2, "memory_bytes": GIB}],
    }
    request = Request.model_validate(base | more)
    rooms = [Room(host) for host in (HOSTS if on is None else on)]
    assert all(fit(room, request) is None for room in rooms)
    return refusal(rooms, request)


@pytest.mark.parametrize(
    ("more", "reasons", "cure"),
    [
        ({"networks": ("white",)}, ["it needs network white, to which no host is wired"], "wire h00000 to white"),
        ({"features": ("avx512f",)}, ["it needs avx512f, which no host has"], "write avx512f under `features` of"),
        ({"architecture": "aarch64"}, ["its architecture is aarch64, and the hosts are x86_64"], "build it for x86_64"),
        (
            {"cells": [{"vcpus": 7, "memory_bytes": GIB}]},
            ["it needs 7 whole cores; the most on one node are 6 whole cores (h00000, node 0)"],
            "with 6 vCPUs instead of 7 it fits on h00000",
        ),
        (
            {"cells": [{"vcpus": 2, "memory_bytes": 500 * GIB}]},
            ["it needs 500GiB in pages of 1GiB; the most on one node is 128GiB (h00000, node 0)"],
            "with 128GiB instead of 500GiB it fits on h00000",
        ),
        ({"pages": 16 * GIB}, ["it needs 1GiB in pages of 16GiB, and no host has pages of that size left"], None),
        (
            {"functions": ({"pool": "gpu", "count": 3},)},
            ["it needs 3 PCI functions (gpu) near it, and the most that are free are 2 (h00000, node 1)"],
            "have 3 PCI functions (gpu) near it free on h00000",
        ),
        ({"near": "eth9"}, ["it is to be near eth9, which is on no host"], "without `near` it fits on h00000"),
        ({"hosts": ("nowhere",)}, ["it may only be on nowhere"], "let it be on h00000 (or 3 others)"),
        (
            {"cells": [{"vcpus": 1, "memory_bytes": GIB}] * 3},
            ["it needs 3 nodes, and no host has more than 2"],
            None,
        ),
        (
            {"cells": [{"vcpus": 1, "memory_bytes": GIB}] * 2, "max_distance": 12},
            ["its nodes are to be no more than 12 apart, and no host has such"],
            "allow nodes that are farther apart",
        ),
        # red and blue are both there, and each GPU is on a host of its own
        (
            {"networks": ("red", "green")},
            ["it needs network green, to which only h00002, h00003 are wired", "it needs network red, to which"],
            "wire h00002 to red (or 1 other)",
        ),
        (
            {"functions": ({"pool": "gpu"}, {"pool": "vf"})},
            ["no host has 1 PCI function (gpu) near it and 1 PCI function (vf) near it at the same time", "vf"],
            None,
        ),
        (
            {"functions": ({"pool": "gpu"},), "networks": ("green",)},
            ["it needs 1 PCI function (gpu)", "it needs network green"],
            "wire h00000 to green",
        ),
    ],
)
def test_ten_and_more_ways_not_to_fit(more: dict[str, Any], reasons: list[str], cure: str | None) -> None:
    found = ask(**more)
    for reason in reasons:
        assert any(reason in one for one in found.reasons), found.reasons
    assert len(found.reasons) <= 2
    if cure is not None:
        assert any(cure in one for one in found.cures), found.cures
    else:
        assert not any("wire" in one for one in found.cures)


def test_hosts_are_counted_for_every_constraint() -> None:
    found = ask(networks=("green",), functions=({"pool": "gpu"},))
    assert {(cut.reason, cut.hosts) for cut in found.cuts} == {
        ("network green", 2),
        ("1 PCI function (gpu) near it", 3),
    }


def test_a_drained_host_is_a_reason() -> None:
    hosts = [host.model_copy(update={"drained": True}) for host in HOSTS[:2]]
    assert ask(hosts).reasons == ("h00000, h00001 are drained",)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_reasons_are_there_if_and_only_if_it_fits_nowhere(seed: int) -> None:
    rng = Random(seed)
    rooms = [Room(fleets.small_host(rng, f"h{number}")) for number in range(3)]
    guest = fleets.small_guest(rng, "g")
    nowhere = all(fit(room, guest) is None for room in rooms)
    found = refusal(rooms, guest)
    assert bool(found.cuts) == (nowhere or any(fit(room, guest) is None for room in rooms))
    if nowhere:
        assert found.reasons and found.reasons != ("the site has no host for it",)
        assert len(found.reasons) <= 3, "one for each host at most"


# -- how many more ----------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1 << 32))
def test_capacity_is_what_packing_until_full_gives(seed: int) -> None:
    rng = Random(seed)
    hosts = [fleets.small_host(rng, f"h{number}") for number in range(3)]
    guests = [fleets.small_guest(rng, f"g{number}") for number in range(2)]
    rooms = [Room(host) for host in hosts]
    for more in how_many_more(rooms, guests, Limits()):
        kind = next(guest for guest in guests if guest.name == more.like)
        copies = [kind.model_copy(update={"name": f"c{number:03}"}) for number in range(more.count + 1)]
        placed = packed(hosts, copies)  # the checker accepts it
        assert len(placed.placed) == more.count
        assert more.bound is None or more.bound >= more.count
        full = [room.copy() for room in rooms]
        for name, (at, spot) in placed.placed.items():
            full[at].take(next(copy for copy in copies if copy.name == name), spot)
        assert all(fit(room, kind) is None for room in full)


def test_capacity_says_what_runs_out_first() -> None:
    hosts = fleets.fleet(4)
    kinds = {kind.name: kind for kind, _ in fleets.types()}
    found = {
        more.like: more
        for more in how_many_more([Room(host) for host in hosts], [kinds["gpu"], kinds["ran"], kinds["plc"]], Limits())
    }
    assert (found["gpu"].count, found["gpu"].exact, found["gpu"].short[0]) == (
        2,
        True,
        ("1 PCI function (gpu) near it", 4),
    )
    # 30 cores of node 0 carry three guests of 8, and node 1 has no virtual functions.
    assert (found["ran"].count, found["ran"].short[0][0]) == (
        12,
        "8 whole cores and 1 PCI function (vf on blue) near it",
    )
    assert found["plc"].count == 4 * 2 * 15


def test_limits_bind_what_is_more() -> None:
    hosts = fleets.fleet(3)
    kind = fleets.types()[0][0]
    more = how_many_more([Room(host) for host in hosts], [kind], Limits(max_hosts=1))
    assert more[0].count == 30
    packing = pack([Room(host) for host in hosts], [], Limits())
    assert document(hosts, [], packing).seats == ()
