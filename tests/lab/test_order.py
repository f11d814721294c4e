"""Who goes next: urgent, then who used less, then final work, then age; the index agrees with a plain sort."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.lab import order
from evenkeel.lab.order import ANY, DAY_NS, MINUTE_NS, Ready, Shares, rank, team_of

HOUR_NS = 60 * MINUTE_NS


def _next(ready: Ready, mask: int = -1, now_ns: int = 0) -> int | None:
    step = ready.best(mask, now_ns)
    if step is not None:
        ready.drop(step)
    return step


def test_urgent_goes_before_light_users_before_final_before_age() -> None:
    ready = Ready()
    ready.charge("heavy", "", 10 * HOUR_NS, 0)
    assert ready.group("x86") == 0
    ready.add(1, 0, person="heavy", kind="final", submitted_ns=1)
    ready.add(2, 0, person="ann", kind="wip", submitted_ns=2)
    ready.add(3, 0, person="ben", kind="final", submitted_ns=3)
    ready.add(4, 0, person="heavy", kind="wip", submitted_ns=4, urgent=True)
    ready.add(5, 0, person="ben", kind="wip", submitted_ns=2)
    assert list(ready.in_order(0)) == [4, 3, 2, 5, 1]
    assert [_next(ready) for _ in range(6)] == [4, 3, 2, 5, 1, None]


def test_without_shares_the_heavy_user_would_go_first() -> None:
    """The negative of the test above: it is the charge that puts the heavy user last."""
    ready = Ready()
    group = ready.group("x86")
    ready.add(1, group, person="heavy", kind="final", submitted_ns=1)
    ready.add(3, group, person="ben", kind="final", submitted_ns=3)
    assert ready.best(-1, 0) == 1
    ready.charge("heavy", "", 10 * HOUR_NS, 0)
    assert ready.best(-1, 0) == 3


def test_teams_share_before_people_do() -> None:
    ready = Ready()
    group = ready.group("x86")
    ready.charge("ann", "big", 10 * HOUR_NS, 0)
    ready.add(1, group, person="bob", team="big", submitted_ns=1)  # used nothing, but his team did
    ready.add(2, group, person="ann", team="big", submitted_ns=0)
    ready.add(3, group, person="cid", team="small", submitted_ns=2)
    ready.add(4, group, person="dan", submitted_ns=3)  # without a team: a team of one
    assert list(ready.in_order(0)) == [3, 4, 1, 2]


def test_a_team_with_twice_the_weight_may_use_twice_as_much() -> None:
    shares = Shares(weights={"big": 2})
    shares.charge("ann", "big", 8 * HOUR_NS, 0)
    shares.charge("cid", "small", 4 * HOUR_NS, 0)
    assert shares.used("ann", "big", 0)[0] == shares.used("cid", "small", 0)[0]


def test_only_what_fits_is_given() -> None:
    ready = Ready()
    x86, arm = ready.group("x86"), ready.group("arm")
    ready.add(1, x86, person="ann", submitted_ns=1)
    assert ready.best(1 << arm, 0) is None
    assert ready.best(1 << x86, 0) == 1
    assert ready.waiting == 1 << x86
    ready.drop(1)
    assert (ready.waiting, len(ready), ready.drop(1)) == (0, 0, False)


def test_use_is_forgotten_by_half_and_levels_fall_without_anybody_asking() -> None:
    ready = Ready(Shares(half_life_ns=DAY_NS, quantum_ns=HOUR_NS))
    group = ready.group("x86")
    ready.charge("heavy", "", 16 * HOUR_NS, 0)
    ready.add(1, group, person="heavy", submitted_ns=1)
    ready.add(2, group, person="ann", submitted_ns=2)
    assert ready.shares.levels("heavy", "", 0) == (5, 5)
    assert ready.shares.levels("heavy", "", DAY_NS) == (4, 4)
    assert ready.best(-1, 4 * DAY_NS) == 2
    # After five half-lives less than one quantum is left: as light as anybody, and the older step goes first.
    assert ready.best(-1, 5 * DAY_NS) == 1


def test_a_start_is_charged_at_once_and_its_end_with_the_difference() -> None:
    shares = Shares(half_life_ns=DAY_NS)
    shares.charge("ann", "", 20 * MINUTE_NS, 0)
    shares.charge("ann", "", -20 * MINUTE_NS, 0)
    assert shares.used("ann", "", DAY_NS) == (0.0, 0.0)


def test_shares_of_centuries_do_not_overflow() -> None:
    shares = Shares(half_life_ns=DAY_NS)
    shares.charge("ann", "", HOUR_NS, 0)
    shares.charge("ann", "", HOUR_NS, 3000 * DAY_NS)
    assert shares.used("ann", "", 3001 * DAY_NS) == (HOUR_NS / 2, HOUR_NS / 2)


_action = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 30), st.integers(0, 4), st.sampled_from("abcd"), st.booleans()),
    st.tuples(st.just("drop"), st.integers(0, 30)),
    st.tuples(st.just("charge"), st.sampled_from("abcd"), st.integers(-60, 600)),
    st.tuples(st.just("charge directly"), st.sampled_from("abcd"), st.integers(0, 600)),
    st.tuples(st.just("pass"), st.integers(0, 3000)),
    st.tuples(st.just("best"), st.integers(0, 31)),
    st.tuples(st.just("settle")),
)
_TEAM = {"a": "t", "b": "t", "c": "u", "d": ""}


#: Heaps that are made anew each time; never, and always, by the order of all groups; into which all that moved is
#: merged, however little.
@pytest.mark.parametrize(
    "constants", [{}, {"_FEW": -1000}, {"_LOOK": 0}, {"_LOOK": 1000}, {"_LOOK": 1000, "_SORT": -1}], ids=str
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(_action, max_size=80))
def test_the_index_agrees_with_a_plain_sort(
    constants: dict[str, int], actions: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(order, name, value)
    ready = Ready()
    for number in range(5):
        assert ready.group(number) == number
    plain: dict[int, tuple[int, str, bool, int]] = {}
    now_ns = 0
    ages = itertools.count()

    def key(step: int) -> tuple[object, ...]:
        _, person, urgent, age = plain[step]
        levels = (-1, -1) if urgent else ready.shares.levels(person, _TEAM[person], now_ns)
        return levels, 0 if urgent else rank("wip"), age, step

    for action in actions:
        match action:
            case ("add", int(step), int(group), str(person), bool(urgent)):
                age = next(ages)
                ready.add(step, group, person=person, team=_TEAM[person], submitted_ns=age, urgent=urgent)
                plain[step] = (group, person, urgent, age)
            case ("drop", int(step)):
                assert ready.drop(step) == (plain.pop(step, None) is not None)
            case ("charge", str(person), int(minutes)):
                ready.charge(person, _TEAM[person], minutes * MINUTE_NS, now_ns)
            case ("charge directly", str(person), int(minutes)):
                ready.shares.charge(person, _TEAM[person], minutes * MINUTE_NS, now_ns)
            case ("pass", int(minutes)):
                now_ns += minutes * MINUTE_NS
            case ("settle",):
                ready.settle()
            case ("best", int(mask)):
                fitting = [step for step, (group, *_) in plain.items() if mask >> group & 1]
                assert ready.best(mask, now_ns) == min(fitting, key=key, default=None)
        assert len(ready) == len(plain)
    assert list(ready.in_order(now_ns)) == sorted(plain, key=key)


def test_what_is_stale_never_becomes_much() -> None:
    ready = Ready()
    people = [f"p{number}" for number in range(40)]
    for number, person in enumerate(people):
        ready.add(number, ready.group("x"), person=person, submitted_ns=number)
    for _ in range(20):  # all change their level again and again, and nobody looks
        for person in people:
            ready.charge(person, "", HOUR_NS, 0)
        for person in people:
            ready.charge(person, "", -HOUR_NS, 0)
    assert len(ready._heads[0]) <= 2 * len(people) + order._FEW + 1
    assert ready.best(ANY, 0) == 0


@pytest.mark.parametrize(("person", "team", "name"), [("ann", "", "~ann"), ("ann", "core", "core")])
def test_nobody_is_without_a_team(person: str, team: str, name: str) -> None:
    assert team_of(person, team) == name
