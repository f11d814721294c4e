"""Latencies over time: the probe, awk and the documents count the same, in as few slices as promised."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents import course as documents
from evenkeel.documents.histogram import bucket_of
from evenkeel.measure.course import course as of_answer
from evenkeel.probe.sample_course import BITS, MOST, SHORTEST_US, Course, Lines, awk, parse_awk

AWKS = [name for name in ("mawk", "gawk", "original-awk", "busybox") if shutil.which(name)]


def told(samples: dict[int, list[int]]) -> bytes:
    """As cyclictest writes them, with what else it writes to stdout."""
    rows = ["Max CPUs = 2\n", "Thread 0 Interval: 1000\n"]
    for number in range(max(map(len, samples.values()))):
        rows += [
            f"{thread:8d}:{number:8d}:{values[number]:8d}\n"
            for thread, values in samples.items()
            if number < len(values)
        ]
    return "".join([*rows, "000020 000021\n", " 0: x\n"]).encode()


def many(seed: int, number: int) -> list[int]:
    dice = random.Random(seed)
    return [int(dice.lognormvariate(3, 1.4)) + (9000 if dice.random() < 1e-3 else 0) for _ in range(number)]


def test_both_sides_mean_the_same_slices_and_buckets() -> None:
    assert (MOST, BITS, SHORTEST_US * 1000) == (documents.MOST, documents.BITS, documents.SHORTEST_NS)


def test_no_sample_is_lost_and_each_is_where_it_was_due() -> None:
    # Late by 2.5 periods: the next two have passed, so the fourth sample was due at 4 ms, not at 2 ms.
    lines = Lines(1000)
    for chunk in (told({0: [5, 2500, 7, 9]})[:30], told({0: [5, 2500, 7, 9]})[30:]):
        lines.feed(chunk)
    thread = lines.threads[0]
    assert thread._due == 6000 and thread.standing() == (4, 5, 9, 630, 2500)
    (only,) = lines.courses()["0"]["slices"]
    assert only == [2500, {5: 1, 2304: 1, 7: 1, 9: 1}]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**7)), min_size=1, max_size=200))
def test_the_number_of_slices_is_bounded_and_every_sample_counts(samples: list[tuple[int, int]]) -> None:
    counted = Course()
    for at, latency in samples:
        counted.add(at, latency)
    found = of_answer(counted.result(), bucket_ns=1000)
    assert found is not None and len(found.slices) <= MOST and found.samples == len(samples)
    last = max(at for at, _ in samples)
    assert found.slice_ns * (len(found.slices) - 1) <= last * 1000 < found.length_ns
    assert max(one.max_ns for one in found.slices) == 1000 * max(latency for _, latency in samples)
    for at, latency in samples:
        assert found.slices[at * 1000 // found.slice_ns].counts[bucket_of(latency, BITS)]
    # Counted at once, when all of it is known, it is the same but for the unit.
    whole = documents.Course.of([(1000 * at, latency) for at, latency in samples], length_ns=1000 * last + 1)
    assert [one.counts for one in whole.slices] == [one.counts for one in found.slices]


def test_a_course_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no bucket begins"):
        of_answer({"slice_us": 1, "slices": [[17, {17: 1}]]}, bucket_ns=1)
    with pytest.raises(ValueError, match="128"):
        of_answer({"slice_us": 1, "slices": [[1, {1: 1}]] * 129}, bucket_ns=1)
    assert of_answer(None, bucket_ns=1) is None


@pytest.mark.parametrize("name", AWKS)
def test_awk_in_a_guest_counts_as_the_probe_does(name: str, tmp_path: Path) -> None:
    """40 s of two threads: the slices are merged twice."""
    text = told({0: many(1, 40_000), 1: many(2, 39_000)})
    lines = Lines(1000)
    lines.feed(text)
    (tmp_path / "it's told").write_bytes(text)
    live = tmp_path / "live"
    program = awk(["cat", str(tmp_path / "it's told")], 1000, str(live))
    command = [name, *program] if name == "busybox" else [name, *program[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert parse_awk(done.stdout) == lines.courses()
    assert lines.courses()["0"]["slice_us"] == 4 * SHORTEST_US
    rows = [[int(word) for word in row.split()] for row in live.read_text().splitlines()]
    assert [row[0] for row in sorted(rows)] == [0, 1] and all(len(row) == 6 for row in rows)


def test_awk_says_nothing_of_what_says_nothing() -> None:
    done = subprocess.run(awk(["sh", "-c", "echo no; exit 3"], 1000), capture_output=True, text=True, check=True)
    assert done.stdout == "" and parse_awk("slice x\nslice 0 1 2 3 4\nslice 0 1 2 3 4:5:6\n") == {}
