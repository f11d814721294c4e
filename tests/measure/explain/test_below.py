"""The machine under the host: bound to it by round trips, and what is said and done where nothing binds it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenkeel.documents.explanation import Alignment
from evenkeel.measure.explain.attribute import explanation, stage
from evenkeel.measure.explain.recording import Recording
from evenkeel.report.timeline import aligned_below
from tests.measure.explain.constructed import BEGIN, CPU, MS, VCPU, mark, pages, recording, switch

#: In nanoseconds of the machine below, whose first mark is at 7; the host's mark is 7 as well.
WIDE = (7 - 4 * MS, 7, 8 + 4 * MS)


def recorded(*trips: tuple[int, int, int], lost: int = 0) -> Recording:
    """CPU 3 of the host was away from 21 to 25 ms; in the host itself nothing happened on it from 20 to 26 ms."""
    thread, other = ("CPU 3/TCG", VCPU, 120), ("other", 7, 120)
    page = pages(
        mark(BEGIN, 7),
        switch(BEGIN + 21 * MS, thread, 0, other),
        switch(BEGIN + 25 * MS, other, 1, thread),
        mark(BEGIN + 100 * MS, 7 + 100 * MS),
    )
    below = replace(recording().host, pages={CPU: page}, overrun={CPU: lost} if lost else {})
    return replace(recording(), below=below, below_threads={"3": VCPU, "timer": 1}, trips=trips)


def below(*trips: tuple[int, int, int], lost: int = 0) -> Alignment | None:
    made = recorded(*trips, lost=lost)
    return explanation(stage(made), made, over_ns=MS).below


@pytest.mark.parametrize("trips", [(), ((7, 7, 8), (7 + 50 * MS, 7, 8 + 50 * MS))], ids=["none", "impossible ones"])
def test_recorded_but_bound_by_nothing_is_not_the_same_as_not_recorded(trips: tuple[tuple[int, int, int], ...]) -> None:
    found = below(*trips)
    assert found is not None and found.method == "none"
    assert aligned_below(found) != aligned_below(None) == "not recorded"


def test_a_clock_is_narrowed_by_absences_only_where_none_of_them_can_be_too_long() -> None:
    """An absence whose end was lost goes on, and what the CPU did in it would move the clock to a wrong place."""
    whole, lossy = below(WIDE), below(WIDE, lost=3)
    assert whole is not None and lossy is not None
    assert lossy.error_ns == pytest.approx(4 * MS, rel=0.01)
    assert whole.error_ns < lossy.error_ns / 2
