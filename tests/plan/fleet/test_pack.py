"""Many guests on many hosts: as much as brute force can place, accepted by the checker, the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from bench import fleets
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.fleet import FleetHost, FleetPlan, Refusal, Request
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet import pack as pack_module
from evenkeel.plan.fleet import pods
from evenkeel.plan.fleet.bound import Estimate, bound_of, whole_bound_of
from evenkeel.plan.fleet.model import Limits, Model, Packing, kinds_of
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import fewest_hosts, pack
from evenkeel.plan.fleet.room import Room, fit
from evenkeel.plan.fleet.table import Table
from tests.plan.fleet import brute

GIB = 1 << 30


def document(hosts: Sequence[FleetHost], guests: Sequence[Request], packing: Packing, **more: Any) -> FleetPlan:
    by_host: dict[int, list[Any]] = {}
    for guest in guests:
        if guest.name in packing.placed:
            at, spot = packing.placed[guest.name]
            by_host.setdefault(at, []).append((guest, spot))
    seats = [seat for at, placed in sorted(by_host.items()) for seat in seats_on(hosts[at], placed)]
    refused = [Refusal(name=guest.name, reasons=("-",)) for guest in guests if guest.name not in packing.placed]
    return FleetPlan(hosts=tuple(hosts), guests=tuple(guests), seats=tuple(seats), refused=tuple(refused), **more)


def packed(hosts: Sequence[FleetHost], guests: Sequence[Request], limits: Limits = Limits()) -> Packing:  # noqa: B008
    packing = pack([Room(host) for host in hosts], guests, limits)
    plan = document(hosts, guests, packing, max_hosts=limits.max_hosts, power_watts=limits.power_watts)
    assert check_placement(plan.model_dump(mode="json")) == []
    return packing


def plain(rng: Random, name: str) -> Request:
    """A guest that brute force can settle beside two others."""
    guest = fleets.small_guest(rng, name)
    cells = guest.cells[: 1 if rng.random() < 0.7 else 2]
    return guest.model_copy(update={"cells": cells, "emulator": "housekeeping", "functions": guest.functions[:1]})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_all_are_placed_on_a_host_if_and_only_if_brute_force_places_them(seed: int) -> None:
    rng = Random(seed)
    host = fleets.small_host(rng)
    host = host.model_copy(update={"nodes": tuple(n.model_copy(update={"cores": n.cores[:3]}) for n in host.nodes[:2])})
    guests = [plain(rng, f"g{number}") for number in range(rng.choice((2, 3)))]
    everybody = len(packed([host], guests).placed) == len(guests)
    assert everybody == brute.fits(host, guests)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_fleet_is_accepted_by_the_checker_and_below_its_bound(seed: int) -> None:
    rng = Random(seed)
    hosts = [
        fleets.small_host(rng, f"h{number}").model_copy(update={"rack": f"r{number // 2}"})
        for number in range(rng.randint(1, 4))
    ]
    guests = []
    for number in range(rng.randint(1, 8)):
        guest = fleets.small_guest(rng, f"g{number}")
        group: dict[str, Any] = {rng.choice(("apart", "apart_racks", "together")): ("a",)} if rng.random() < 0.4 else {}
        guests.append(guest.model_copy(update={"priority": rng.choice((0, 0, 1)), **group}))
    limits = Limits(max_hosts=rng.choice((None, None, 1, 2)))
    packing = packed(hosts, guests, limits)
    assert packing.bound is None or packing.value <= packing.bound + 1e-6 or len({g.priority for g in guests}) > 1
    assert packing.placed == packed(hosts, guests, limits).placed
    # Whoever is left out has no room in what is left (without limits of the fleet, which a single guest cannot see).
    if limits.max_hosts is None:
        rooms = [Room(host) for host in hosts]
        for guest in guests:
            if guest.name in packing.placed:
                rooms[packing.placed[guest.name][0]].take(guest, packing.placed[guest.name][1])
        for guest in guests:
            if guest.name not in packing.placed and not guest.apart_racks and not guest.together:
                assert all(fit(room, guest) is None for room in rooms), guest.name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_table_finds_a_host_if_and_only_if_one_has_room(seed: int) -> None:
    rng = Random(seed)
    hosts = [fleets.small_host(rng, f"h{number}") for number in range(4)]
    table = Table(hosts)
    placed: dict[str, tuple[int, Any]] = {}
    kinds = [fleets.small_guest(rng, f"k{number}") for number in range(3)]
    guests = [rng.choice(kinds).model_copy(update={"name": f"g{number}"}) for number in range(8)]
    for guest in guests:
        wanted = [at for at, room in enumerate(table.rooms) if fit(room, guest) is not None]
        found = table.place(guest)
        assert (found is None) == (not wanted)
        if found is not None:
            assert found[0] == wanted[0], "first fit, as there are no prices"
            placed[guest.name] = found
    plan = document(hosts, guests, Packing(placed))
    assert check_placement(plan.model_dump(mode="json")) == []


def test_a_mixed_fleet_is_packed_to_the_bound() -> None:
    hosts, guests = fleets.fleet(8), fleets.demand(128, 4)
    packing = packed(hosts, guests)
    assert packing.bound is not None
    assert packing.value >= 0.997 * packing.bound
    assert len(packing.placed) < len(guests), "more is asked for than there is room"
    bound = Estimate([Room(host) for host in hosts], kinds_of(guests)).bound
    assert bound is not None
    assert packing.value <= packing.bound + 1e-6 <= bound + 1e-3


def test_a_large_fleet_is_packed_in_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "LARGE", 10)
    monkeypatch.setattr(pods, "POD", 6)
    hosts, guests = [fleets.host(index, cores=12) for index in range(16)], fleets.demand(96, 4)
    packing = packed(hosts, guests)
    assert "3 pods" in packing.method
    assert packing.bound is not None
    assert packing.value >= 0.97 * packing.bound
    again = packed(hosts, guests)
    assert (again.placed, again.method) == (packing.placed, packing.method), "the same every time"
    racks = [guest.model_copy(update={"apart_racks": ("x",)}) if n < 20 else guest for n, guest in enumerate(guests)]
    assert "one after the other" in packed(hosts, racks).method


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_no_packing_is_worth_more_than_a_bound(seed: int) -> None:
    """Hosts of few sorts that are filled in different ways; bounds out of all hosts, and out of a sample."""
    rng = Random(seed)
    bases = [fleets.small_host(rng) for _ in range(2)]
    rooms = [Room(fleets.part_of(rng.choice(bases), rng, f"h{number}")) for number in range(8)]
    guests = [fleets.small_guest(rng, f"g{number:02}") for number in range(4)]
    many = [one.model_copy(update={"name": f"{one.name}-{n}"}) for one in guests for n in range(rng.choice((1, 4)))]
    kinds = kinds_of(many)
    worth = pack(rooms, many).value
    estimate = Estimate(rooms, kinds).bound
    assert estimate is None or worth <= estimate + 1e-6
    whole, sampled = bound_of(rooms, kinds), bound_of(rooms, kinds, whole=3)
    assert whole is None or worth <= whole + 1e-6
    assert whole is None or (sampled is not None and whole <= sampled + 1e-6), "a sample prices worse than all"
    filled = whole_bound_of(rooms, kinds)
    assert filled is None or worth <= filled + 1e-6, "whole guests on every host"
    assert whole is None or estimate is None or whole <= estimate + 1e-6, "adding hosts up forgets where one ends"


def test_a_bound_in_whole_guests_is_nearer_than_one_in_parts() -> None:
    hosts, guests = [fleets.part_filled(index, 1) for index in range(24)], fleets.demand(24 * 9, 1)
    rooms, kinds = [Room(host) for host in hosts], kinds_of(guests)
    value, parts, whole = packed(hosts, guests).value, bound_of(rooms, kinds), whole_bound_of(rooms, kinds)
    assert parts is not None and whole is not None
    assert value <= whole + 1e-6
    assert whole - value < 0.3 * (parts - value)


def test_groups_of_hosts_are_packed_again_for_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod with the largest host takes the largest guest, which would go elsewhere, and so two others cannot."""
    monkeypatch.setattr(pack_module, "LARGE", 1)
    monkeypatch.setattr(pods, "POD", 2)
    hosts = [fleets.host(1, cores=cores).model_copy(update={"name": f"h{cores}"}) for cores in (10, 8, 9)]
    hosts = [host.model_copy(update={"nodes": host.nodes[:1]}) for host in hosts]  # 8, 6 and 7 cores free
    busy = frozenset().union(*hosts[2].nodes[0].cores[2:8])
    hosts[2] = hosts[2].model_copy(update={"nodes": (hosts[2].nodes[0].model_copy(update={"busy": busy}),)})
    many = [guest("six", 6, value=9), guest("five", 5, value=5), guest("three", 3, value=3)]
    found = packed(hosts, many)
    assert {name: at for name, (at, _) in found.placed.items()} == {"six": 1, "five": 0, "three": 0}
    assert "packed again" in found.method


@pytest.mark.parametrize("idle", [0, 3])
def test_priorities_reach_over_pods(monkeypatch: pytest.MonkeyPatch, idle: int) -> None:
    """The second pod cannot take the second urgent guest; the first can, before others fill it."""
    monkeypatch.setattr(pack_module, "LARGE", 1)
    monkeypatch.setattr(pods, "POD", 1)
    monkeypatch.setattr(pods, "MOST_IDLE", idle)
    hosts = [fleets.host(0, cores=6), fleets.host(1, cores=3)]
    small = [guest(f"s{number}", 1, value=9) for number in range(10)]
    found = packed(hosts, [*small, guest("u1", 4, priority=1), guest("u2", 4, priority=1)])
    assert {"u1", "u2"} <= set(found.placed)


def test_pods_that_are_alike_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "LARGE", 1)
    monkeypatch.setattr(pods, "POD", 2)
    hosts = [fleets.host(1).model_copy(update={"name": f"h{number}"}) for number in range(12)]
    solved: list[int] = []

    def counted(*given: Any) -> Any:
        solved.append(len(given[0]))
        return Model(*given)

    monkeypatch.setattr(pods, "Model", counted)
    found = packed(hosts, [guest(f"g{n:03}", 4, value=4) for n in range(12 * 14)])
    assert len(found.placed) == 12 * 14
    assert solved == [2]


def test_prices_keep_guests_without_functions_off_hosts_whose_cores_others_need() -> None:
    """First fit alone would fill host 0, which has the GPUs."""
    hosts = [host.model_copy(update={"nodes": host.nodes[1:]}) for host in fleets.fleet(4)]
    web = guest("web", 4, value=4)
    needy = [guest(f"gpu{n}", 16, value=100, functions=({"pool": "gpu"},)) for n in range(2)]
    many = [web.model_copy(update={"name": f"web{n}"}) for n in range(60)]
    estimate = Estimate([Room(host) for host in hosts], kinds_of([*needy, *many]))
    first, priced = Table(hosts).find(web), Table(hosts, estimate.price).find(web)
    assert first is not None and priced is not None
    assert (first[0], priced[0]) == (0, 1)


def test_the_higher_priority_is_placed_whatever_it_costs_the_others() -> None:
    host = fleets.host(0, cores=6)
    small = [guest(f"s{number}", 1, value=5) for number in range(4)]
    assert len(packed([host], [*small, guest("big", 4, value=1), guest("big2", 4, value=1)]).placed) == 5
    found = packed([host], [*small, guest("big", 4, value=1, priority=1), guest("big2", 4, value=1, priority=1)])
    assert sorted(found.placed) == ["big", "big2"]


def test_as_few_hosts_as_can_be() -> None:
    hosts = [fleets.host(index, cores=8) for index in range(5)]
    many = [guest(f"g{n}", vcpus) for n, vcpus in enumerate((4, 4, 4, 4, 2, 2, 2, 2))]  # 24 cores; a node has 6
    packing = fewest_hosts([Room(host) for host in hosts], many)
    assert (packing.value, packing.bound) == (2, 2.0)
    assert check_placement(document(hosts, many, packing).model_dump(mode="json")) == []
    assert fewest_hosts([Room(host) for host in hosts], [*many, guest("big", 7)]).placed == {}


def guest(name: str, vcpus: int, **more: Any) -> Request:
    cells = [{"vcpus": vcpus, "memory_bytes": GIB}]
    return Request.model_validate({"name": name, "threads": "isolate", "pages": fleets.GIANT, "cells": cells, **more})


def test_groups_are_kept_apart_and_together() -> None:
    hosts = [fleets.host(index, hosts_per_rack=2) for index in range(4)]
    many = [guest(f"g{n}", 2, apart=("x",)) for n in range(6)]
    assert len(packed(hosts, many).placed) == 4
    racks = [guest(f"g{n}", 2, apart_racks=("x",)) for n in range(6)]
    assert len(packed(hosts, racks).placed) == 2
    both = [guest(f"g{n}", 20, together=("x",)) for n in range(6)]
    assert len(packed(hosts, both).placed) == 2, "a host has room for two of them"


@pytest.mark.parametrize(("limits", "most"), [(Limits(max_hosts=1), 1), (Limits(power_watts=1300), 2)])
def test_limits_of_the_fleet_are_kept(limits: Limits, most: int) -> None:
    hosts = fleets.fleet(4)
    many = [guest(f"g{n}", 10) for n in range(30)]
    used = {at for at, _ in packed(hosts, many, limits).placed.values()}
    assert len(used) == most
    assert len({at for at, _ in packed(hosts, many).placed.values()}) == 4
