"""cyclictest's JSON: recorded runs on a host and in a guest, and documents of any other shape."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.evidence import EMULATION_NOTE, Latency
from evenkeel.documents.histogram import Histogram
from evenkeel.errors import EvenkeelError
from evenkeel.measure.cyclictest import latencies
from evenkeel.measure.percentile import percentile

RECORDED = Path(__file__).parent / "recorded"
HOST: dict[str, Any] = json.loads((RECORDED / "cyclictest-host.json").read_text())
GUEST: dict[str, Any] = json.loads((RECORDED / "cyclictest-guest.json").read_text())


def read(answer: dict[str, Any], cpus: list[int], guest: str | None = None) -> tuple[Latency, ...]:
    return latencies(answer, cpus, guest=guest, interval_us=1000, emulated=True)


def test_a_run_on_two_cpus_gives_two_latencies() -> None:
    found = read(HOST, [5, 0])
    assert [latency.cpus for latency in found] == [frozenset({5}), frozenset({0})]
    for number, latency in enumerate(found):
        thread = HOST["json"]["thread"][str(number)]
        assert (latency.min_ns, latency.max_ns) == (thread["min"] * 1000, thread["max"] * 1000)
        assert latency.samples == thread["cycles"] == latency.histogram.samples
        assert latency.where == "host" and latency.guest is None and latency.interval_ns == 1_000_000
        assert latency.label == EMULATION_NOTE and latency.tool_version == HOST["json"]["rt_test_version:"]
        assert latency.argv == tuple(HOST["argv"])


def test_a_run_in_a_guest() -> None:
    (latency,) = read(GUEST, [1], "plc")
    assert (latency.where, latency.guest, latency.cpus) == ("guest", "plc", frozenset({1}))


def test_hardware_has_no_label() -> None:
    (latency,) = latencies(GUEST, [1], guest="plc", interval_us=1000, emulated=False)
    assert latency.label == ""


def test_samples_beyond_the_last_bucket_are_counted() -> None:
    answer = copy.deepcopy(GUEST)
    thread = answer["json"]["thread"]["0"]
    thread.update({"histogram": {"3": 5, "19999": 1}, "cycles": 10, "min": 3, "avg": 8.5, "max": 70000})
    (latency,) = read(answer, [1])
    assert (latency.histogram.overflows, latency.samples, latency.avg_ns) == (4, 10, 8500)


def test_no_sample_at_all_is_said() -> None:
    answer = copy.deepcopy(GUEST)
    answer["json"]["thread"]["0"].update({"histogram": {}, "cycles": 0, "min": 1000000, "avg": 0, "max": 0})
    with pytest.raises(EvenkeelError, match="no sample on vCPU 1 of guest plc"):
        read(answer, [1], "plc")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "min", "cycles", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def spoilt(answer: dict[str, Any], path: tuple[str, ...], place: str, value: Any) -> dict[str, Any]:
    """A copy with ``value`` at ``place``: one of ``path``, or a key of where that leads."""
    made = copy.deepcopy(answer)
    holder: Any = made
    for key in path:
        if key == place:
            break
        holder = holder[key]
    holder[place] = value
    return made


@given(JSON, st.sampled_from(["json", "thread", "0", "histogram", "cycles", "min", "avg", "max"]))
def test_any_other_shape_is_told_and_never_a_traceback(value: Any, place: str) -> None:
    try:
        found = read(spoilt(GUEST, ("json", "thread", "0"), place, value), [1])
    except EvenkeelError:
        return
    assert all(latency.samples > 0 for latency in found)


# -- percentiles --------------------------------------------------------------------------------------------------


def test_percentiles_are_upper_edges_of_buckets() -> None:
    histogram = Histogram(bucket_ns=1000, counts={10: 989, 20: 10, 500: 1})
    assert percentile(histogram, 0.5) == 11_000
    assert percentile(histogram, 0.99) == 21_000
    assert percentile(histogram, 0.999) == 21_000, "999 of 1000 samples, although 0.999 * 1000 is no integer in binary"
    assert percentile(histogram, 1.0) == 501_000


def test_a_percentile_beyond_the_last_bucket_is_not_guessed() -> None:
    histogram = Histogram(counts={10: 99}, overflows=1)
    assert percentile(histogram, 0.99) == 11_000
    assert percentile(histogram, 0.999) is None
    assert percentile(Histogram(counts={}), 0.5) is None


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.01])
def test_what_is_no_share_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="no share"):
        percentile(Histogram(counts={1: 1}), fraction)


@given(st.dictionaries(st.integers(0, 300), st.integers(1, 50), min_size=1), st.floats(0.001, 1.0))
def test_a_percentile_covers_its_share_and_no_smaller_bucket_does(counts: dict[int, int], fraction: float) -> None:
    histogram = Histogram(bucket_ns=1000, counts=counts)
    edge = percentile(histogram, fraction)
    assert edge is not None
    bucket = edge // 1000 - 1
    covered = sum(count for key, count in counts.items() if key <= bucket)
    before = sum(count for key, count in counts.items() if key < bucket)
    wanted = fraction * histogram.samples
    assert before < wanted + 1e-5 and covered >= wanted - 1e-5
