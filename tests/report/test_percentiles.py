"""The picture of percentiles: every step where it belongs, the deadline as a line, nothing outside the frame."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.histogram import Histogram
from evenkeel.measure.percentile import percentile
from evenkeel.report.histogram import Series
from evenkeel.report.html import render_report
from evenkeel.report.percentiles import percentiles_svg, steps
from tests.report import factories
from tests.report.frame import inside

VALUES = st.dictionaries(st.integers(0, 10**7), st.integers(1, 10**6), max_size=40)


def series(values: dict[int, int], overflows: int = 0, name: str = "after") -> Series:
    run = factories.latency("host", Histogram(counts={1: 1}))
    histogram = Histogram.log_linear(values, overflows=overflows, limit=20_000)
    changes = {
        "histogram": histogram,
        "samples": histogram.samples,
        "max_ns": (max(values, default=0) + (20_001 if overflows else 0)) * 1000,
    }
    return Series("before" if name == "before" else "after", run.model_copy(update=changes))


@given(VALUES.filter(bool), st.floats(0.001, 1.0))
def test_a_step_is_at_the_percentile(values: dict[int, int], share: float) -> None:
    one = series(values)
    found = steps(one)
    assert found[0][0] == 0.0 and found[-1][1] == pytest.approx(1.0)
    assert all(a[1] == b[0] and a[2] <= b[2] for a, b in itertools.pairwise(found))
    edge = percentile(one.run.histogram, share)
    drawn = next(value for low, high, value in found if low < share <= high + 1e-9)
    assert edge is not None and drawn in (edge, one.run.max_ns)
    assert found[-1][2] == one.run.max_ns, "the largest sample is where it was, not at the edge of its bucket"


@settings(deadline=None)  # a busy machine is not a defect
@given(VALUES, VALUES, st.integers(0, 5), st.sampled_from([None, 1, 100_000, 10**12]))
def test_the_picture_is_well_formed_and_inside_its_frame(
    old: dict[int, int], new: dict[int, int], overflows: int, goal: int | None
) -> None:
    both = [series(old, name="before"), series(new, overflows)]
    inside(ET.fromstring(percentiles_svg(both, title="Guest <plc>", goal_ns=goal, standalone=True)))


def test_the_axis_has_a_nine_for_each_factor_of_ten() -> None:
    picture = percentiles_svg([series({5: 99_999, 80: 1})], title="x")
    labels = re.findall(r">([\d.]+ %)<", picture)
    assert labels == ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]


def test_the_deadline_is_a_line_with_its_name() -> None:
    assert "deadline 100 µs" in percentiles_svg([series({5: 9})], title="x", goal_ns=100_000)
    assert 'class="goal"' not in percentiles_svg([series({5: 9})], title="x")


def test_the_report_draws_the_goal_for_the_guest_that_has_one_and_not_for_the_host() -> None:
    page = render_report(factories.run(emulated=False))
    assert page.count("by percentile</title>") == 2
    assert page.count('class="goal"') == 3, "by percentile, and over time before and after"
    assert 'class="goal"' not in render_report(factories.run(emulated=True)), "there it would mean nothing"
