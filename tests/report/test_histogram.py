"""Histograms: no sample is lost on the way to the picture, and the picture stays inside its frame."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.histogram import Histogram
from evenkeel.report.chart import format_ns
from evenkeel.report.histogram import Series, bins, histogram_svg
from tests.report import factories
from tests.report.frame import inside

COUNTS = st.dictionaries(st.integers(0, 5_000_000), st.integers(1, 10**9), max_size=60)


@settings(deadline=None)  # a busy machine is not a defect
@given(COUNTS, st.sampled_from([1, 100, 1000]))
def test_bins_hold_every_sample_in_a_bin_around_it(counts: dict[int, int], bucket_ns: int) -> None:
    found = bins(Histogram(bucket_ns=bucket_ns, counts=counts))
    assert sum(count for _, _, count in found) == sum(counts.values())
    for (low, high, _), (following, _, _) in pairwise(found):
        assert low < high <= following
    for bucket in counts:
        assert any(low <= bucket * bucket_ns < high for low, high, _ in found)


@settings(deadline=None)  # a busy machine is not a defect
@given(COUNTS, COUNTS, st.integers(0, 5))
def test_the_picture_is_well_formed_and_inside_its_frame(
    old: dict[int, int], new: dict[int, int], overflows: int
) -> None:
    series = []
    for name, counts in (("before", old), ("after", new)):
        run = factories.latency("host", Histogram(counts={1: 1}))
        run = run.model_copy(
            update={
                "histogram": Histogram(counts=counts, overflows=overflows),
                "samples": sum(counts.values()),
                "max_ns": max(counts, default=0) * 1000,
            }
        )
        series.append(Series("before" if name == "before" else "after", run))
    inside(ET.fromstring(histogram_svg(series, title="Host <cyclictest>", standalone=True)))


def test_both_axes_are_logarithmic() -> None:
    """Decades are equally far apart, and the line stands at the places that the axes give."""
    run = factories.latency("host", Histogram(bucket_ns=1000, counts={1: 10_000, 10: 100, 30_000: 1}))
    picture = ET.fromstring(histogram_svg([Series("after", run)], title="Host", standalone=True))
    for axis, labels in (("x", ["1 µs", "10 µs", "100 µs", "1 ms"]), ("y", ["1", "10", "100", "1,000", "10k"])):
        at = {text.text: float(text.attrib[axis]) for text in picture.findall(".//{*}text") if text.text in labels}
        steps = [at[after] - at[before] for before, after in pairwise(labels)]
        assert min(map(abs, steps)) > 20 and max(steps) - min(steps) <= 0.21, "rounded to a tenth"
    across = {line.attrib["y1"] for line in picture.findall(".//{*}line") if line.attrib["y1"] == line.attrib["y2"]}
    (path,) = (one.attrib["d"] for one in picture.findall(".//{*}path"))
    heights = re.findall(r"V([\d.]+)H", path)
    assert len(heights) == 3 and set(heights) < across, "10,000, 100 and 1 are all powers of ten"


def test_identity_does_not_rest_on_colour() -> None:
    run = factories.run().hosts["plc"]
    assert run.evidence_before and run.evidence_after
    picture = histogram_svg(
        [Series("before", run.evidence_before.latencies[0]), Series("after", run.evidence_after.latencies[0])],
        title="Host",
    )
    assert "before max 31.2 ms" in re.sub(r"\s+", " ", picture)
    assert "after max 4.1 ms" in re.sub(r"\s+", " ", picture)
    assert picture.count('class="mark-before"') == picture.count('class="mark-after"') == 1
    assert "<circle" in picture and "<rect" in picture  # two shapes


def test_samples_beyond_the_last_bucket_are_said() -> None:
    run = factories.latency("host", Histogram(counts={5: 10}, overflows=3))
    assert "3 beyond 6 µs" in histogram_svg([Series("after", run)], title="Host")


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1 µs"),
        (57_300, "57.3 µs"),
        (999_900, "1 ms"),
        (2_892_000, "2.89 ms"),
        (100_000, "100 µs"),
        (16_996_000, "17 ms"),
        (1_230_000_000, "1.23 s"),
        (120_000_000_000, "120 s"),
    ],
)
def test_durations_are_said_in_three_digits(nanoseconds: int, said: str) -> None:
    assert format_ns(nanoseconds) == said
