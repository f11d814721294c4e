"""A site on hosts with facts: who stays, who goes where, and that the planner of each host says the same."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.facts import Facts, HugePages, Node
from evenkeel.documents.fleet import FleetPlan
from evenkeel.documents.plan import Plan
from evenkeel.documents.site import CellWish, FunctionWish, GuestWish, HostPlace, HostWish, PlaceWish, Placing, Site
from evenkeel.errors import WrongInput
from evenkeel.placement_check import check_placement
from evenkeel.plan import make_plan
from evenkeel.plan.fleet import site as fleet
from tests.plan.factories import GIB, MIB, guest, make_facts

HOSTS = ("a", "b", "c")


def site_of(guests: dict[str, GuestWish], places: dict[str, HostPlace] | None = None, **more: Any) -> Site:
    places = places or {}
    hosts = {name: HostWish(address=f"virtual:{name}", place=places.get(name, HostPlace())) for name in HOSTS}
    return Site(hosts=hosts, guests=guests, **more)


def facts_of(**shape: Any) -> dict[str, Facts]:
    shape = {"cores": 8, "node_bytes": 32 * GIB} | shape
    return {name: make_facts(**shape) for name in HOSTS}


def place(site: Site, facts: dict[str, Facts], keep: Plan | None = None) -> FleetPlan:
    found = fleet.place_all(fleet.board_of(site, facts, keep))
    assert check_placement(found.model_dump(mode="json")) == []
    return found


def plan_of(site: Site, facts: dict[str, Facts], keep: Plan | None = None) -> tuple[FleetPlan, Plan]:
    """Placed, and then planned host by host; both must say the same."""
    placed = place(site, facts, keep)
    made = make_plan(fleet.chosen_hosts(site, placed), facts, keep, fleet.seats_for_planner(placed))
    seats = {seat.name: seat for seat in placed.seats}
    for host in made.hosts:
        for one in host.guests:
            seat = seats[one.name]
            assert seat.host == host.name
            if seat.cpus:
                assert [min(vcpu.cpus) for vcpu in one.vcpus] == [cpu for cell in seat.cpus for cpu in cell]
                assert one.nodes == seat.nodes
            assert one.page_bytes == seat.page_bytes
        assert not [note for note in host.notes if "moves from" in note.text]
    return placed, made


def some_guest(rng: Random) -> GuestWish:
    goal = rng.choice(("realtime", "realtime", "performance", "performance", "balanced", "flexible"))
    wish: dict[str, Any] = {
        "goal": goal,
        "vcpus": rng.choice((1, 2, 3, 4, 6)),
        "memory": rng.choice((1, 2, 4, 12)) * GIB,
    }
    if goal in ("realtime", "performance"):
        kind = rng.random()
        if kind < 0.15:
            wish |= {"numa": "auto", "vcpus": rng.choice((4, 8, 12))}
        elif kind < 0.3:
            wish |= {"numa": 2, "vcpus": 4, "memory": 4 * GIB}
        elif kind < 0.4:
            cells = (CellWish(vcpus=3, memory=3 * GIB), CellWish(vcpus=1, memory=1 * GIB))
            wish |= {"cells": cells, "vcpus": 4, "memory": 4 * GIB}
        if rng.random() < 0.2:
            wish["page_size"] = rng.choice((2 * MIB, GIB))
    if rng.random() < 0.2:
        wish["near"] = rng.choice(("ens2", "ens3"))
    if rng.random() < 0.2:
        wish["host"] = rng.choice(HOSTS)
    where: dict[str, Any] = {}
    if rng.random() < 0.3:
        where[rng.choice(("apart", "together", "apart_racks"))] = ("x",)
    if rng.random() < 0.2:
        where["networks"] = (rng.choice(("blue", "red")),)
    return guest(**wish, place=PlaceWish(**where))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_fits_the_fleet_is_planned_on_its_hosts(seed: int) -> None:
    rng = Random(seed)
    facts = {
        name: make_facts(
            sockets=rng.choice((1, 2)),
            nodes_per_socket=rng.choice((1, 1, 2)),
            cores=rng.choice((4, 6, 8)),
            threads=rng.choice((1, 2, 2)),
            l3_cores=rng.choice((None, 2)),
            node_bytes=rng.choice((8, 16, 48)) * GIB,
        )
        for name in HOSTS
    }
    places = {"a": HostPlace(networks=("blue",), rack="1"), "b": HostPlace(networks=("blue", "red"), rack="1")}
    guests = {f"g{number}": some_guest(rng) for number in range(rng.randint(1, 8))}
    placed = place(site_of(guests, places), facts)
    there = {seat.name for seat in placed.seats}
    plan_of(site_of({name: wish for name, wish in guests.items() if name in there}, places), facts)


def test_a_second_plan_moves_nothing() -> None:
    guests = {f"g{n}": guest(goal="realtime", vcpus=2, memory=GIB) for n in range(5)}
    guests |= {"hmi": guest(vcpus=1, memory=GIB), "bal": guest(goal="balanced", vcpus=2, memory=GIB)}
    site, facts = site_of(guests), facts_of()
    placed, made = plan_of(site, facts)
    more = {"new": guest(goal="performance", vcpus=6, memory=GIB), **guests}
    again, _ = plan_of(site_of(more), facts, made)
    assert not again.moves
    before = {seat.name: seat for seat in placed.seats}
    assert {seat.name: (seat.host, seat.cpus) for seat in again.seats if seat.name != "new"} == {
        name: (seat.host, seat.cpus) for name, seat in before.items()
    }
    # A guest that grows stays on its host, with other CPUs if it must.
    grown = more | {"g0": guest(goal="realtime", vcpus=3, memory=GIB)}
    third = place(site_of(grown), facts, made)
    assert next(seat.host for seat in third.seats if seat.name == "g0") == before["g0"].host


def test_a_drained_host_is_left_and_the_moves_are_told() -> None:
    guests = {f"g{n}": guest(goal="realtime", vcpus=2, memory=GIB) for n in range(5)}
    _, made = plan_of(site_of(guests), facts_of())
    on = {one.name: host.name for host in made.hosts for one in host.guests}
    host = on["g0"]
    away = place(site_of(guests, {host: HostPlace(drain=True)}), facts_of(), made)
    assert host not in {seat.host for seat in away.seats}
    assert {move.name for move in away.moves} == {name for name, where in on.items() if where == host}
    assert all(move.memory_bytes == GIB and not move.repin for move in away.moves)
    stays = {name: wish.model_copy(update={"place": PlaceWish(stay=True)}) for name, wish in guests.items()}
    assert place(site_of(stays), facts_of(), made).moves == ()


def test_cpus_that_an_owner_names_are_theirs() -> None:
    guests = {
        "mine": guest(goal="realtime", vcpus=2, memory=GIB, host="b", cpus=frozenset({4, 6})),
        **{f"g{n}": guest(goal="performance", vcpus=12, memory=GIB) for n in range(3)},
    }
    placed, _ = plan_of(site_of(guests), facts_of())
    seat = next(seat for seat in placed.seats if seat.name == "mine")
    assert (seat.host, seat.cpus, set(seat.idle)) == ("b", ((4, 6),), {5, 7})
    assert len(placed.seats) == 4


def test_functions_come_from_the_pools_and_wires_of_the_site() -> None:
    facts = facts_of()
    card = facts["b"].nics[1]
    assert card.pci is not None
    places = {
        "b": HostPlace(pools={"fast": (card.pci,)}, wires={card.name: "blue"}),
        "c": HostPlace(pools={"slow": (card.pci.removeprefix("0000:"),)}),
    }
    where = PlaceWish(functions=(FunctionWish(pool="fast", network="blue"),))
    wish = guest(goal="realtime", vcpus=2, memory=GIB, place=where)
    placed = place(site_of({"one": wish, "two": wish}, places), facts)
    (seat,) = placed.seats
    assert (seat.name, seat.host, seat.functions) == ("one", "b", (card.pci,))
    assert "PCI function (fast on blue) near it, and no host has one free" in placed.refused[0].reasons[0]


def test_realtime_goes_to_realtime_kernels_and_every_guest_to_hosts_with_libvirt() -> None:
    facts = facts_of()
    facts["a"] = make_facts(cores=8, node_bytes=32 * GIB, preempt_rt=False)
    facts["b"] = make_facts(cores=8, node_bytes=32 * GIB, programs={})
    guests = {f"g{n}": guest(goal="realtime", vcpus=7, memory=GIB) for n in range(4)}
    placed = place(site_of(guests), facts)
    assert {seat.host for seat in placed.seats} == {"c"}
    assert len(placed.refused) == 2
    reasons = " ".join(placed.refused[0].reasons)
    assert "a PREEMPT_RT kernel" in " ".join(cut.reason for cut in placed.refused[0].cuts)
    assert "whole cores" in reasons


def test_limits_of_the_site_are_kept() -> None:
    guests = {f"g{n}": guest(goal="realtime", vcpus=5, memory=GIB) for n in range(4)}
    one = place(site_of(guests, placing=Placing(max_hosts=1)), facts_of())
    assert len({seat.host for seat in one.seats}) == 1
    assert any("1 host may be used (max_hosts)" in reason for reason in one.refused[0].reasons)
    power = {name: HostPlace(power_watts=100) for name in HOSTS}
    two = place(site_of(guests, power, placing=Placing(power_watts=250)), facts_of())
    assert len({seat.host for seat in two.seats}) == 2
    assert not two.refused


def test_one_guest_is_placed_beside_all_others() -> None:
    guests = {f"g{n}": guest(goal="realtime", vcpus=7, memory=GIB) for n in range(5)}
    site = site_of(guests | {"one": guest(goal="realtime", vcpus=7, memory=GIB)})
    placed = fleet.place_one(fleet.board_of(site, facts_of()), "one")
    assert check_placement(placed.model_dump(mode="json")) == []
    assert len(placed.seats) == 6
    full = site_of(guests | {"one": guest(goal="realtime", vcpus=8, memory=GIB)})
    refused = fleet.place_one(fleet.board_of(full, facts_of()), "one").refused
    assert [one.name for one in refused] == ["one"]
    assert "7 whole cores" in refused[0].reasons[0]
    with pytest.raises(WrongInput, match="the site has no guest onn"):
        fleet.place_one(fleet.board_of(site, facts_of()), "onn")


def test_the_same_site_gives_the_same_bytes() -> None:
    guests = {f"g{n}": some_guest(Random(n)) for n in range(8)}
    one = place(site_of(guests), facts_of()).to_json()
    other = place(site_of(dict(reversed(guests.items()))), dict(reversed(facts_of().items()))).to_json()
    assert one == other


def test_idle_pools_of_pages_are_counted_as_the_planner_counts_them() -> None:
    """30 GiB in 1 GiB pages that nobody uses: pages of 2 MiB get what is beside them, until somebody asks for 1 GiB."""
    base = make_facts(cores=8, node_bytes=48 * GIB, nodes_per_socket=1)
    pools = (HugePages(page_bytes=2 * MIB, total=0, free=0), HugePages(page_bytes=GIB, total=30, free=30))
    nodes = tuple(Node(**(node.model_dump() | {"huge_pages": pools})) for node in base.nodes)
    facts = dict.fromkeys(HOSTS, base.model_copy(update={"nodes": nodes}))
    small = {f"s{n}": guest(goal="realtime", vcpus=1, memory=6 * GIB, page_size=2 * MIB) for n in range(6)}
    placed, _ = plan_of(
        site_of({**small, "big": guest(goal="realtime", vcpus=1, memory=20 * GIB, page_size=GIB)}), facts
    )
    assert not placed.refused
