"""Before and after: the right spins stand side by side, brought to the same length."""

from __future__ import annotations

from evenkeel.documents.evidence import Spin
from evenkeel.report.comparison import Measure, measures, pairs
from tests.report.factories import evidence


def spin(**changes: object) -> Spin:
    values = {
        "where": "host",
        "cpu": 3,
        "seconds": 4.0,
        "timer_interrupts": 8,
        "involuntary_switches": 2,
        "voluntary_switches": 0,
        "cpu_seconds": 3.0,
    }
    return Spin.model_validate(values | changes)


def test_pairs_match_by_cpu_and_kind_of_load_whatever_the_order() -> None:
    before = evidence("before", spins=(spin(load="hackbench on 0-7"), spin(), spin(cpu=5)))
    after = evidence("after", spins=(spin(), spin(load="hackbench on 0-1")))
    found = pairs(before, after)
    assert [(pair.before and pair.before.load, pair.after and pair.after.load) for pair in found] == [
        ("idle", "idle"),
        ("hackbench on 0-7", "hackbench on 0-1"),
        ("idle", None),
    ]
    assert found[2].spin.cpu == 5


def test_one_side_only() -> None:
    (pair,) = pairs(None, evidence("after", spins=(spin(),)))
    timer = measures(pair)[0]
    assert (timer.before, timer.after, timer.change) == (None, 8, "")
    assert pairs(None, None) == ()


def test_runs_of_different_length_are_brought_to_the_newer_one() -> None:
    (pair,) = pairs(
        evidence("before", spins=(spin(seconds=8.0, timer_interrupts=2000),)), evidence("after", spins=(spin(),))
    )
    timer = measures(pair)[0]
    assert (timer.before, timer.after, timer.unit) == (1000, 8, "in 4 s")


def test_device_interrupts_are_summed_and_named() -> None:
    noisy = spin(device_interrupts={"a": 1, "b": 5, "c": 2, "d": 1, "e": 1})
    (pair,) = pairs(evidence("before", spins=(noisy,)), evidence("after", spins=(spin(),)))
    device = measures(pair)[2]
    assert (device.before, device.after, device.change) == (10, 0, "none left")
    assert device.before_detail == "b 5, c 2, a 1, d 1, ..."


def test_a_change_for_the_worse_is_said() -> None:
    assert Measure("x", "", 5, 6).change == "more than before"
    assert Measure("x", "", 100, 75).change == "25 % fewer"
    assert Measure("x", "", 1012, 6).change == "169 times fewer"
    assert Measure("x", "", 6, 6).change == "no change"
    assert Measure("x", "", 97.0, 80.0, less_is_better=False).change == "less"
