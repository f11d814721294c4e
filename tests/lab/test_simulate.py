"""A small replay in simulated time: what ours must reach, and that each threshold breaks without what it stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from evenkeel.lab.durations import quantile
from evenkeel.lab.forecast import covered
from evenkeel.lab.order import MINUTE_NS
from evenkeel.lab.simulate import ARCHES, Branch, Came, Outcome, Park, Policy, batch_lock, generate, work_conserving

BOUND = Park(builders=tuple((arch, 2) for arch in ARCHES))


@pytest.fixture(scope="module")
def trace() -> list[Branch]:
    return generate(3, days=10)


def _p95(outcome: Outcome, which: Callable[[Came], bool]) -> float:
    """Minutes."""
    return quantile(outcome.waits(which), 0.95) / MINUTE_NS


def _light(came: Came) -> bool:
    """Of people who send in little, and whose team does too: not that of p00, who sends in most."""
    return not came.branch.urgent and came.branch.person >= "p10" and came.branch.team != "team0"


def _urgent(came: Came) -> bool:
    return came.branch.urgent


def test_no_builder_idles_while_a_branch_waits_and_under_the_lock_a_quarter_does(trace: list[Branch]) -> None:
    assert work_conserving(trace).idle_share() <= 0.01
    assert batch_lock(trace).idle_share() >= 0.15
    assert batch_lock(trace, stages=False).idle_share() >= 0.1


def test_urgent_work_waits_for_one_build_at_most_and_without_urgency_it_does_not(trace: list[Branch]) -> None:
    unlimited = Policy(credits=10**6)
    assert _p95(work_conserving(trace, policy=unlimited), _urgent) <= 15
    assert _p95(work_conserving(trace, policy=replace(unlimited, urgent=False)), _urgent) > 15
    assert _p95(batch_lock(trace), _urgent) > 100


def test_a_heavy_users_burst_does_not_touch_light_users_and_without_fair_share_it_does(trace: list[Branch]) -> None:
    fair = work_conserving(trace)
    assert _p95(fair, _light) <= 40
    blind = work_conserving(trace, policy=Policy(fair=False))
    assert _p95(blind, _light) > 100
    alone = [branch for branch in trace if branch.person != "p00"]
    renumbered = [replace(branch, number=number) for number, branch in enumerate(alone)]
    assert _p95(fair, _light) <= 1.5 * _p95(work_conserving(renumbered), _light)


def test_urgent_beyond_credit_is_as_any_other(trace: list[Branch]) -> None:
    outcome = work_conserving(trace, policy=Policy(credits=1))
    assert {came.urgent for came in outcome.came if came.branch.urgent} == {True, False}
    spent = [came.branch.person for came in outcome.came if came.urgent]
    assert len(spent) == len(set(spent)), "one each, in the ten days of this trace"
    assert not any(came.urgent for came in outcome.came if not came.branch.urgent)


def test_a_hanging_build_holds_its_slot_until_the_learned_time_out(trace: list[Branch]) -> None:
    steps = tuple(
        replace(step, took_ns=6 * 60 * MINUTE_NS, hangs=True) if step.name == "build-arm64" else step
        for step in trace[200].steps
    )
    hung = [replace(branch, steps=steps) if branch.number == 200 else branch for branch in trace[:260]]
    learned = work_conserving(hung).came[200]
    patient = work_conserving(hung, policy=Policy(learned_timeouts=False)).came[200]
    assert learned.ended_ns is not None and patient.ended_ns is not None
    assert learned.ended_ns - learned.branch.at_ns < 4 * 60 * MINUTE_NS < patient.ended_ns - patient.branch.at_ns


def test_builders_bound_to_an_architecture_idle_and_the_cause_is_said(trace: list[Branch]) -> None:
    outcome = work_conserving(trace, BOUND)
    assert outcome.idle_share("fit") > 0.05
    assert outcome.idle_share() <= 0.01, "none of it is the dispatcher's"


def test_everything_sent_in_ends_under_both_schedulers(trace: list[Branch]) -> None:
    for outcome in (work_conserving(trace), work_conserving(trace, BOUND), batch_lock(trace), batch_lock(trace, BOUND)):
        assert all(came.ended_ns is not None for came in outcome.came)


def test_the_same_trace_gives_the_same_month() -> None:
    first, second = (work_conserving(generate(5, days=3)) for _ in range(2))
    assert first.came == second.came and first.idle == second.idle


@pytest.mark.long
def test_the_band_covers_what_it_says_once_it_is_calibrated() -> None:
    outcome = work_conserving(generate(3, days=20, per_day=25), policy=Policy(forecast_every=1))
    came = [one for one in outcome.came if one.end and one.ended_ns]
    shown = covered((one.end[0], one.ended_ns) for one in came if one.end and one.ended_ns)
    drawn = covered((one.end[1], one.ended_ns) for one in came if one.end and one.ended_ns)
    assert shown is not None and drawn is not None
    assert drawn < 0.7 and 0.75 <= shown <= 0.85
