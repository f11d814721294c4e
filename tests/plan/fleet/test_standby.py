"""Any one host may fail: the room is kept, each failure has its placement, and the checker goes through them."""

from __future__ import annotations

from random import Random

from bench import fleets
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet.site import place_all
from evenkeel.plan.fleet.standby import gaps_of, place_with_standby
from tests.plan.fleet.test_moves import board, checked, isolated, seated


def test_guests_that_are_spread_survive_without_an_empty_host() -> None:
    plan = checked(place_with_standby(board(list(fleets.fleet(3)), [isolated(f"g{n}", 6) for n in range(6)])))
    assert plan.standby
    assert {one.host for one in plan.failover} == {seat.host for seat in plan.seats}


def test_a_host_is_kept_empty_where_that_is_the_way() -> None:
    """Three hosts with room for two guests each: of eight guests four are placed, so that any host may fail."""
    hosts = list(fleets.fleet(3))
    plan = checked(place_with_standby(board(hosts, [isolated(f"g{n}", 30) for n in range(8)])))
    assert plan.standby
    assert len(plan.seats) == 4
    assert gaps_of(plan) == []


def test_what_would_be_lost_is_said() -> None:
    hosts = list(fleets.fleet(2))
    full = checked(place_all(board(hosts, [isolated(f"g{n}", 30) for n in range(4)])))
    plan = checked(place_with_standby(board(hosts, seated(full))))  # they sit, and do not move for it
    assert not plan.standby
    assert gaps_of(plan) == [
        "if h00000 fails, there is no room for g0, g1",
        "if h00001 fails, there is no room for g2, g3",
    ]


def test_who_sits_is_not_thrown_out_for_the_promise() -> None:
    """Two guests sit on each of two hosts, one of which is drained: with the third one left empty two had no place."""
    full = checked(place_all(board(list(fleets.fleet(2)), [isolated(f"g{n}", 30) for n in range(4)])))
    first, *others = fleets.fleet(3)
    hosts = [first.model_copy(update={"drained": True}), *others]
    plan = checked(place_with_standby(board(hosts, seated(full))))
    assert not plan.standby and len(plan.seats) == 4 and not plan.refused


def test_who_may_be_on_one_host_only_is_lost_with_it() -> None:
    plan = checked(place_with_standby(board(list(fleets.fleet(2)), [isolated("here", 2, hosts=("h00000",))])))
    assert (plan.standby, [seat.host for seat in plan.seats]) == (True, ["h00000"])


def test_the_checker_sees_a_failover_that_is_none() -> None:
    plan = checked(place_with_standby(board(list(fleets.fleet(3)), [isolated(f"g{n}", 6) for n in range(6)])))
    data = plan.model_dump(mode="json")
    taken = data["failover"][0]["seats"].pop()
    host = data["failover"][0]["host"]
    assert check_placement(data) == [f"if {host} fails, there is no room for {taken['name']}"]
    taken["host"] = host
    data["failover"][0]["seats"].append(taken)
    assert any(f"if {host} fails: {taken['name']}: {host} is drained" in text for text in check_placement(data))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_standby_that_is_found_holds(seed: int) -> None:
    rng = Random(seed)
    hosts = [fleets.small_host(rng, f"h{number}") for number in range(3)]
    plan = checked(place_with_standby(board(hosts, [fleets.small_guest(rng, f"g{number}") for number in range(4)])))
    assert plan.standby == (gaps_of(plan) == [])
    again = checked(place_with_standby(board(hosts, seated(plan))))
    assert again.value >= plan.value or again.standby
