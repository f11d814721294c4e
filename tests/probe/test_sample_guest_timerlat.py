"""What awk counts in a guest of the text of timerlat is what the probe counts of it on a host."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.probe import sample_course
from evenkeel.probe.sample_guest_timerlat import _AWK, parse
from evenkeel.probe.sample_tracer import BITS, Counts
from tests.probe.test_sample_together import TEXT

RECORDED = Path(__file__).parents[1] / "measure" / "recorded" / "trace" / "6.12-rt-timerlat.tar.bz2"


def by_awk(text: bytes, slices: int = sample_course.MOST) -> dict[str, Any]:
    variables = {"interval": 1000, "slice": sample_course.SHORTEST_US, "slices": slices}
    variables |= {"edge": 2 << sample_course.BITS, "fine": 2 << BITS}
    words = [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
    done = subprocess.run(["awk", *words, _AWK], input=text, capture_output=True, check=True)
    assert done.stderr == b""
    return parse(done.stdout.decode())


def by_the_probe(text: bytes) -> dict[str, Any]:
    counts = Counts(1000)
    counts.feed(text)
    return counts.result()


def test_the_text_of_the_kernel_is_counted_alike() -> None:
    assert by_awk(TEXT) == by_the_probe(TEXT) != {}


def test_a_recorded_trace_is_counted_alike() -> None:
    with tarfile.open(RECORDED) as archive:
        stream = archive.extractfile("./cpu1.txt")
        assert stream
        text = stream.read()
    found = by_awk(text)
    assert found == by_the_probe(text)
    assert sum(one["thread"]["samples"] for one in found.values()) > 100


ROWS = st.tuples(st.integers(0, 3), st.integers(1, 10**7), st.sampled_from(["irq", "thread"]), st.integers(0, 10**11))


@given(st.lists(ROWS, min_size=1, max_size=40), st.sampled_from(["<idle>", "x", "#1 context", "[007]", "a ns"]))
@settings(max_examples=25)
def test_any_samples_are_counted_alike(rows: list[tuple[int, int, str, int]], task: str) -> None:
    """Numbers that no 32 bits hold, slices that are merged, and tasks with a strange name."""
    text = "".join(
        f"  {task}-1 [{cpu:03}] d.h1. 51.13: #{number:<5} context {kind:>6} timer_latency {latency:9} ns\n"
        for cpu, number, kind, latency in rows
    ).encode()
    found, true = by_awk(text), by_the_probe(text)
    assert found.keys() == true.keys() == {str(row[0]) for row in rows}
    for cpu, kinds in true.items():
        for kind, one in kinds.items():
            # In awk all have slices of one length, that of the longest run.
            assert {**found[cpu][kind], "course": None} == {**one, "course": None}
            assert sum(sum(counts.values()) for _, counts in found[cpu][kind]["course"]["slices"]) == one["samples"]
            assert max(top for top, _ in found[cpu][kind]["course"]["slices"]) == one["max"]


@pytest.mark.parametrize("text", ["run 1:irq", "bucket 1:irq 5 5", "run 1:irq 1 x 1 1 1", "run 1:irq 1 1 1 1 1", "\n"])
def test_what_awk_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(OSError, match="cannot be read"):
        parse(text)
