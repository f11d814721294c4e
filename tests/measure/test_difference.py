"""Two runs compared: equal ones show a difference as rarely as is said, different ones show it."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.cli import main
from evenkeel.documents.comparison import Comparison
from evenkeel.documents.evidence import EMULATION_NOTE, Evidence
from evenkeel.documents.histogram import Histogram
from evenkeel.measure.binomial import at_most
from evenkeel.measure.difference import compare, fisher, precedence
from tests.measure.test_verb import saved
from tests.measure.test_verdict import evidence, run

GOAL = 100_000


def judged(values: list[int], **changes: Any) -> Evidence:
    found = evidence(run(dict(Counter(values)), **changes))
    deadline = {"host": "plc", "guest": "plc-runtime", "wanted_ns": GOAL, "state": "missed", "why": "x"}
    return Evidence.model_validate(found.model_dump() | {"deadlines": [deadline]})


def drawn(source: random.Random, number: int, *, scale: float = 1.0, spikes: float = 0.002) -> list[int]:
    """Latencies in microseconds: a skewed body, and rare spikes of milliseconds."""
    return [
        int(source.uniform(200, 8000)) if source.random() < spikes else int(scale * source.lognormvariate(2.5, 0.4))
        for _ in range(number)
    ]


# -- the promise --------------------------------------------------------------------------------------------------


def test_equal_runs_show_a_difference_as_rarely_as_is_said() -> None:
    """400 pairs of runs from one distribution: at most 5 % may show anything, chance of more than 31 of 400: 1 %."""
    assert 1 - at_most(31, 400, 0.05) < 0.01
    source = random.Random(20)
    pairs = [(judged(drawn(source, 1500)), judged(drawn(source, 1500))) for _ in range(400)]
    alarms = sum(compare(one, other).shown != "no difference shown" for one, other in pairs)
    assert alarms <= 31


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"scale": 1.15}, "50 %"), ({"spikes": 0.02}, "99 %"), ({"spikes": 0.02}, "misses of 100us")],
    ids=["everything 15 % later", "ten times the spikes", "ten times the misses"],
)
def test_a_run_that_is_worse_is_shown_as_worse_and_the_other_way_round_as_better(
    changes: dict[str, float], where: str
) -> None:
    source = random.Random(21)
    shown = back = 0
    for _ in range(50):
        old, new = judged(drawn(source, 5000)), judged(drawn(source, 5000, **changes))
        there, again = compare(old, new), compare(new, old)
        shown += next(one.shown for one in there.differences if one.of == where) == "worse"
        back += next(one.shown for one in again.differences if one.of == where) == "better"
    assert shown >= 45 and back >= 45


def test_a_new_kind_of_spike_is_shown_by_the_largest_samples() -> None:
    source = random.Random(22)
    quiet = [int(source.lognormvariate(2.5, 0.4)) for _ in range(60_000)]
    found = compare(judged(quiet), judged([*quiet[:-20], *[5000] * 20]))
    (largest,) = [one for one in found.differences if one.of == "largest"]
    assert largest.shown == "worse" and largest.why == "20 samples are beyond the largest one earlier"
    one_spike = compare(judged(quiet), judged([*quiet[:-1], 5000]))
    assert one_spike.shown == "no difference shown", "a single new maximum is what chance does half of the time"


@pytest.mark.parametrize(
    ("tool", "asked"), [("timerlat", True), ("timerlat irq", False), ("oslat", False), ("osnoise", False)]
)
def test_misses_are_compared_of_what_decides_about_the_deadline(tool: str, asked: bool) -> None:
    source = random.Random(23)
    old, new = (judged(drawn(source, 1500), tool=tool) for _ in range(2))
    assert asked == any(one.of.startswith("misses") for one in compare(old, new).differences)


def test_an_interval_holds_the_true_difference() -> None:
    """The true median moves from 12 to 22: the interval must hold 10 in at least 95 % of 200 pairs."""
    source = random.Random(23)
    held = 0
    for _ in range(200):
        old = [max(0, int(source.gauss(12.5, 3))) for _ in range(800)]
        new = [max(0, int(source.gauss(22.5, 3))) for _ in range(800)]
        (median,) = [one for one in compare(judged(old), judged(new)).differences if one.of == "50 %"]
        assert median.low is not None and median.high is not None
        held += median.low <= 10_000 <= median.high
    assert held >= 190


# -- its parts ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_fisher_counts_tables(samples: int, other: int, data: st.DataObject) -> None:
    events, others = data.draw(st.integers(0, samples)), data.draw(st.integers(0, other))
    tables = {
        k: math.comb(samples, k) * math.comb(other, events + others - k)
        for k in range(samples + 1)
        if 0 <= events + others - k <= other
    }
    wanted = sum(count for k, count in tables.items() if k >= events) / sum(tables.values())
    assert fisher(events, samples, others, other) == pytest.approx(wanted, abs=1e-9)


@given(st.integers(1, 5), st.integers(1, 5))
def test_precedence_counts_orders(first: int, second: int) -> None:
    """By going through all orders of so many samples: how often the largest ones are all of the first kind."""
    orders = list(itertools.combinations(range(first + second), first))
    for leading in range(1, first + 1):
        top = set(range(first + second - leading, first + second))
        wanted = sum(top <= set(order) for order in orders) / len(orders)
        one = Histogram(counts={5: first - leading, 20: leading})
        found, chance = precedence(one, Histogram(counts={10: second}))
        assert found == leading and chance == pytest.approx(wanted)


def test_samples_that_cannot_be_told_apart_do_not_lead() -> None:
    same = Histogram.log_linear({1000: 9, 1003: 1})
    assert precedence(same, Histogram.log_linear({1001: 10})) == (0, 1.0), "one bucket holds 1000 to 1003"
    assert precedence(same, Histogram(counts={1: 10}, overflows=1)) == (0, 1.0), "nobody knows how late that one was"


def test_a_run_against_itself_shows_nothing() -> None:
    values = drawn(random.Random(24), 3000)
    found = compare(judged(values), judged(values))
    assert found.shown == "no difference shown" and not found.changed and not found.unpaired
    assert {one.of for one in found.differences} == {"50 %", "90 %", "99 %", "largest", "misses of 100us"}


def test_what_was_not_the_same_is_named() -> None:
    old = evidence(run(), run(cpus=frozenset({7})))
    new = evidence(run(), conditions={"kernel": "6.13", "load": "idle", "dma_latency_holders": ("tuned (pid 1)",)})
    found = compare(old, new)
    assert {one.name for one in found.changed} == {"kernel", "load", "holders of /dev/cpu_dma_latency"}
    assert found.unpaired == ("guest plc-runtime, vCPU 7, cyclictest: only earlier",)
    slower = evidence(run(interval_ns=10_000_000))
    assert compare(old, slower).differences == (), "another interval is another question"


def test_emulation_is_written_on_it() -> None:
    assert compare(evidence(), evidence(conditions={"emulated": True})).label == EMULATION_NOTE


def test_the_verb_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = random.Random(25)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    before = saved(old, evidence(run(dict(Counter(min(90, value) for value in drawn(source, 40_000))))))
    worse = [min(90, value) for value in drawn(source, 40_000, scale=1.3)]
    after = saved(new, evidence(run(dict(Counter(worse)))))
    assert main(["measure", before, "--against", before]) == 0
    assert "no difference shown: all intervals together hold with 95 %" in capsys.readouterr().out
    assert main(["measure", after, "--against", before]) == 1, "met, and worse all the same"
    printed = capsys.readouterr().out
    assert "\nworse: " in printed and "another boot may differ" in printed
    assert main(["measure", after, "--against", before, "--json"]) == 1
    document = Comparison.from_json(json.dumps(json.loads(capsys.readouterr().out)), file="x")
    assert document.shown == "worse" and document.host == "plc"
    assert main(["measure", after, "--against", str(tmp_path / "none.json")]) == 2


def test_in_emulation_worse_is_no_reason_to_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emulated = {"emulated": True}
    (tmp_path / "old").mkdir()
    old = saved(
        tmp_path / "old", evidence(run({5: 40_000}), conditions=emulated).model_copy(update={"moment": "before"})
    )
    new = saved(tmp_path, evidence(run({50: 40_000}), conditions=emulated).model_copy(update={"moment": "before"}))
    assert main(["measure", new, "--against", old]) == 0
    printed = capsys.readouterr().out
    assert "\nworse: " in printed and EMULATION_NOTE in printed
