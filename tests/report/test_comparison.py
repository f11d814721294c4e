"""Before and after: the right spins stand side by side, brought to the same length."""

from __future__ import annotations

import pytest

from evenkeel.documents.evidence import Spin
from evenkeel.report.comparison import Counted, Measure, measures, pairs
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
    assert timer.before is None and timer.after is not None
    assert (timer.after.count, timer.change) == (8, "")
    assert pairs(None, None) == ()


def test_counts_stay_as_counted_and_rates_are_compared() -> None:
    (pair,) = pairs(
        evidence("before", spins=(spin(seconds=8.0, timer_interrupts=1600),)), evidence("after", spins=(spin(),))
    )
    timer = measures(pair)[0]
    assert timer.before and timer.after
    assert (timer.before.count, timer.after.count, timer.change) == (1600, 8, "100 times fewer")
    assert pair.circumstances == ("before: 8.0 s", "after: 4.0 s")


def test_switches_by_the_guest_whose_cpu_it_is_are_told_apart() -> None:
    (pair,) = pairs(
        evidence("before", spins=(spin(involuntary_switches=116),)),
        evidence("after", spins=(spin(involuntary_switches=84, guest_switches=83),)),
    )
    switches = measures(pair)[1]
    assert switches.before and switches.after
    assert (switches.before.count, switches.after.count, switches.change) == (116, 1, "116 times fewer")
    assert (switches.before.detail, switches.after.detail) == ("", "83 more by the guest whose CPU it is")


def test_the_load_is_named() -> None:
    (pair,) = pairs(None, evidence("after", spins=(spin(load="hackbench -g 2 on 0-7"),)))
    assert pair.title == "CPU 3, busy host"
    assert pair.circumstances == ("after: 4.0 s beside hackbench -g 2 on 0-7",)


def test_device_interrupts_are_summed_and_named() -> None:
    noisy = spin(device_interrupts={"a": 1, "b": 5, "c": 2, "d": 1, "e": 1})
    (pair,) = pairs(evidence("before", spins=(noisy,)), evidence("after", spins=(spin(),)))
    device = measures(pair)[2]
    assert device.before and device.after
    assert (device.before.count, device.after.count, device.change) == (10, 0, "none left")
    assert device.before.detail == "b 5, c 2, a 1, d 1, ..."


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (5, 6, "more than before"),
        (0, 1, "more than before"),
        (100, 75, "25 % fewer"),
        (1012, 6, "169 times fewer"),
        (100, 100, "no change"),
        (0, 0, "none"),
        (3, 0, "none left"),
    ],
)
def test_the_change_in_words(before: int, after: int, said: str) -> None:
    assert Measure("x", Counted(before, 4.0), Counted(after, 4.0)).change == said
