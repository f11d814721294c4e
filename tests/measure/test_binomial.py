"""Intervals for rates and quantiles: against exact sums of fractions, and against what they promise."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.measure.binomial import at_most, quantile_ranks, rate_at_least, rate_at_most, samples_needed


def exact(events: int, samples: int, rate: Fraction) -> Fraction:
    return sum(
        (math.comb(samples, k) * rate**k * (1 - rate) ** (samples - k) for k in range(events + 1)), start=Fraction(0)
    )


@given(st.integers(1, 60), st.data())
def test_the_distribution_is_the_sum(samples: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, samples))
    rate = Fraction(data.draw(st.integers(0, 1000)), 1000)
    assert at_most(events, samples, float(rate)) == pytest.approx(float(exact(events, samples, rate)), abs=1e-12)


def test_no_miss_is_the_rule_of_three() -> None:
    for samples in (100, 60_000, 10**9):
        assert rate_at_most(0, samples) == pytest.approx(1 - 0.05 ** (1 / samples), rel=1e-6)
        assert 2.95 / samples < rate_at_most(0, samples) < 3 / samples
    assert rate_at_most(0, 1) == pytest.approx(0.95) and rate_at_most(5, 5) == 1.0 and rate_at_least(0, 9) == 0.0


@given(st.integers(1, 200), st.data())
def test_the_bounds_are_where_the_count_gets_unlikely(samples: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, samples))
    upper, lower = rate_at_most(events, samples), rate_at_least(events, samples)
    assert lower <= events / samples <= upper
    if events < samples:
        assert float(exact(events, samples, Fraction(upper))) == pytest.approx(0.05, abs=1e-9)
    if events:
        assert 1 - float(exact(events - 1, samples, Fraction(lower))) == pytest.approx(0.05, abs=1e-9)


def test_published_values() -> None:
    """Clopper-Pearson 95 %, two-sided, of 10 in 100: 0.0490 to 0.1762 (a textbook's example)."""
    assert rate_at_least(10, 100, 0.975) == pytest.approx(0.0490, abs=5e-5)
    assert rate_at_most(10, 100, 0.975) == pytest.approx(0.1762, abs=5e-5)


@pytest.mark.parametrize("rate", [0.5, 1e-2, 1e-4, 1e-6])
def test_so_many_samples_are_enough_and_one_less_is_not(rate: float) -> None:
    needed = samples_needed(rate)
    assert rate_at_most(0, needed) <= rate * (1 + 1e-12)
    assert rate_at_most(0, needed - 1) > rate if needed > 1 else True


@pytest.mark.parametrize(("events", "samples"), [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_count_is_refused(events: int, samples: int) -> None:
    with pytest.raises(ValueError, match="no count"):
        rate_at_most(events, samples)
    with pytest.raises(ValueError, match="no rate"):
        samples_needed(0.0)


@given(st.integers(1, 500), st.sampled_from([0.5, 0.9, 0.99, 0.999]), st.sampled_from([0.9, 0.95, 0.999]))
def test_ranks_of_a_quantile_are_as_near_as_they_may_be(samples: int, share: float, confidence: float) -> None:
    error = (1 - confidence) / 2 + 1e-12
    low, high = quantile_ranks(samples, share, confidence)
    assert 0 <= low < high <= samples + 1
    assert at_most(low - 1, samples, share) <= error < at_most(low, samples, share) + 2e-12
    assert 1 - at_most(high - 1, samples, share) <= error
    assert high == 1 or 1 - at_most(high - 2, samples, share) > error - 2e-12


def test_the_interval_of_a_quantile_covers_it_as_often_as_it_says() -> None:
    """2000 runs of 300 exponential samples: 95 % is promised, and ranks are whole, so that it is a little more."""
    source = random.Random(7)
    low, high = quantile_ranks(300, 0.9, 0.95)
    truth = -math.log(0.1)
    covered = 0
    for _ in range(2000):
        values = sorted(source.expovariate(1.0) for _ in range(300))
        covered += values[low - 1] <= truth <= values[high - 1]
    assert 0.94 <= covered / 2000 <= 0.98
