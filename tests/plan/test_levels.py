"""The table of goal levels: what a deadline needs, and what is too weak for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.site import GoalLevel, Site
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from evenkeel.plan.levels import LEVELS, implied_goal, is_strict, needed, rules_of, too_weak
from evenkeel.plan.placement import Placement
from evenkeel.plan.rules import CATALOGUE
from evenkeel.plan.sitefile import parse_site
from tests.plan.factories import guest, make_facts, make_site

ORDER = ("flexible", "balanced", "performance", "realtime")


def site(lines: str) -> Site:
    text = "version: 1\nhosts:\n  cell: {address: local}\nguests:\n  g:\n    vcpus: 2\n    memory: 1GiB\n"
    return parse_site(text + "".join(f"    {line}\n" for line in lines.split("; ")), file="site.yaml")


@pytest.mark.parametrize(
    ("latency", "goal", "strict"),
    [
        (None, "flexible", False),
        (5_000_000, "balanced", False),
        (1_000_000, "balanced", False),
        (200_001, "balanced", False),
        (200_000, "performance", False),
        (100_001, "performance", False),
        (100_000, "realtime", False),
        (50_001, "realtime", False),
        (50_000, "realtime", True),
        (1, "realtime", True),
    ],
)
def test_what_a_deadline_needs(latency: int | None, goal: str, strict: bool) -> None:
    assert (needed(latency).goal, needed(latency).strict) == (goal, strict)


@given(st.integers(1, 10_000_000), st.integers(1, 10_000_000))
@settings(max_examples=200)
def test_a_tighter_deadline_never_needs_less(one: int, other: int) -> None:
    tight, loose = sorted((one, other))
    assert LEVELS.index(needed(tight)) >= LEVELS.index(needed(loose))


def test_the_table_is_in_order() -> None:
    assert [goal for goal in dict.fromkeys(level.goal for level in LEVELS)] == list(ORDER)
    limits = [level.within_ns for level in LEVELS[1:]]
    assert limits == sorted(limits, key=lambda ns: -(ns or 0))
    assert LEVELS[0].within_ns is None and all(limits)


def test_a_deadline_without_a_goal_implies_its_level() -> None:
    for latency, goal in (("1ms", "balanced"), ("150us", "performance"), ("30us", "realtime")):
        assert site(f"latency: {latency}").guests["g"].goal == goal
    assert site("trust: yields").guests["g"].goal == "flexible"


def test_a_stricter_goal_than_needed_is_the_owners_to_choose() -> None:
    assert site("latency: 1ms; goal: realtime").guests["g"].goal == "realtime"


@pytest.mark.parametrize("goal", ORDER)
@pytest.mark.parametrize("latency", ["1ms", "200us", "100us", "50us"])
def test_a_goal_weaker_than_the_deadline_needs_is_refused(goal: GoalLevel, latency: str) -> None:
    implied = site(f"latency: {latency}").guests["g"].goal
    if ORDER.index(goal) >= ORDER.index(implied):
        assert site(f"latency: {latency}; goal: {goal}").guests["g"].goal == goal
        return
    with pytest.raises(WrongInput) as refused:
        site(f"latency: {latency}; goal: {goal}")
    assert refused.value.where and refused.value.where.line == 8
    assert f"write goal: {implied}" in str(refused.value.hint)


def test_the_planner_refuses_it_too() -> None:
    """A site that was not read from a file passes no site-file check."""
    facts = {"cell": make_facts()}
    assert make_plan(make_site({"g": guest("performance", latency=150_000)}), facts)
    with pytest.raises(WrongInput, match="performance is meant for deadlines longer than 100us"):
        make_plan(make_site({"g": guest("performance", latency=100_000)}), facts)


def test_the_table_decides_who_is_strict() -> None:
    def strict(goal: str, latency: int | None) -> bool:
        wish = guest(goal, latency=latency)
        empty: frozenset[int] = frozenset()
        return Placement("g", wish, (), (), 1, 1, empty, empty, None, ()).strict

    assert strict("realtime", 50_000) and is_strict("realtime", 50_000)
    assert not strict("realtime", 50_001)
    assert not strict("realtime", None)
    assert not strict("performance", 50_000)


def test_each_goal_has_all_rules_of_the_weaker_ones() -> None:
    sets = [set(rules_of(level.goal, CATALOGUE)) for level in LEVELS]
    for weaker, stricter in pairwise(sets):
        assert weaker <= stricter
    assert sets[-1]


def test_too_weak_says_nothing_where_there_is_nothing_to_say() -> None:
    assert too_weak(guest("flexible")) is None
    assert implied_goal(None) == "flexible"
