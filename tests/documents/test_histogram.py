"""Log-linear histograms: no percentile below the exact one, and above it by no more than the stated bound."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evenkeel.documents.histogram import BITS, Histogram, bucket_of
from evenkeel.measure.percentile import percentile

#: From single units to a day in nanoseconds, small and large ones alike often.
VALUES = st.integers(0, 47).flatmap(lambda power: st.integers(0, 1 << power))
SAMPLES = st.lists(VALUES, min_size=1, max_size=200)


@given(SAMPLES, st.floats(0.001, 1.0), st.integers(1, 12), st.sampled_from([1, 1000]))
def test_a_percentile_is_bounded_by_the_exact_one(values: list[int], share: float, bits: int, unit: int) -> None:
    histogram = Histogram.log_linear(Counter(values), bucket_ns=unit, bits=bits)
    exact = sorted(values)[max(1, math.ceil(round(len(values) * share, 6))) - 1] * unit
    found = percentile(histogram, share)
    assert found is not None
    assert exact < found <= exact + max(unit, exact / 2**bits)


def test_new_evidence_is_within_the_bound_of_the_documentation() -> None:
    assert 2**-BITS < 0.0079


@given(SAMPLES)
def test_every_sample_is_in_the_bucket_that_begins_at_or_below_it(values: list[int]) -> None:
    histogram = Histogram.log_linear(Counter(values), bucket_ns=1)
    assert histogram.samples == len(values)
    for value in values:
        low = bucket_of(value, BITS)
        assert histogram.counts[low] and low <= value < histogram.upper_ns(low)


@given(st.integers(0, 1 << 50), st.integers(1, 12))
def test_buckets_join_without_a_gap(value: int, bits: int) -> None:
    low = bucket_of(value, bits)
    width = Histogram(bits=bits, counts={low: 1}).width(low)
    assert bucket_of(low + width - 1, bits) == low and bucket_of(low + width, bits) == low + width


def test_an_hour_of_samples_stays_small() -> None:
    values = {value: 1 for value in range(0, 3_600_000_000, 9973)}  # 360,000 different latencies up to an hour in us
    assert len(Histogram.log_linear(values).counts) < 3500


@given(SAMPLES, VALUES)
def test_late_samples_are_counted_exactly_or_between_two_numbers(values: list[int], limit: int) -> None:
    histogram = Histogram.log_linear(Counter(values), bucket_ns=1000)
    least, most = histogram.beyond(limit * 1000)
    late = sum(value > limit for value in values)
    assert least <= late <= most
    assert limit >= 2 << BITS or least == late == most
    linear = Histogram(counts=Counter(values))
    assert linear.beyond(limit * 1000) == (late, late)


def test_a_sample_beyond_the_last_bucket_is_late_where_that_is_certain() -> None:
    histogram = Histogram.log_linear({3: 5}, overflows=2, limit=20000)
    assert histogram.beyond(1_000_000) == (2, 2)
    assert histogram.beyond(30_000_000) == (0, 2), "the limit is 20 ms, the samples may be anywhere above"
    assert Histogram(counts={3: 5}, overflows=2).beyond(1_000_000) == (0, 2), "version 1 does not know the limit"


def test_a_bucket_that_does_not_exist_is_refused() -> None:
    assert bucket_of(1001, 7) == 1000
    with pytest.raises(ValidationError, match="no bucket begins at 1001"):
        Histogram(bits=7, counts={1001: 1})
    with pytest.raises(ValidationError):
        Histogram(counts={-1: 1})
