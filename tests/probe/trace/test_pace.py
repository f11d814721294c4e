"""What a neighbour on the same core took is left out of what is compared."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from evenkeel.probe.trace import pace
from evenkeel.probe.trace.pace import Chunk


def test_what_was_measured_while_the_machine_was_slow_is_left_out() -> None:
    """Slow for most of the time, and more so while the source was on: the quickest few would tell another cost."""
    draw = random.Random(1)

    def taken(ns: float, slow: float, fast: int) -> list[Chunk]:
        at_best = [Chunk(ns * draw.uniform(0.9, 1.1), draw.uniform(100, 109)) for _ in range(fast)]
        return at_best + [Chunk(ns * draw.uniform(0.6, 0.8) * slow, draw.uniform(150, 200)) for _ in range(400)]

    without, with_it = taken(50, 1.1, 200), taken(75, 2.0, 100)
    best_ns = pace.best(without, with_it)
    assert pace.settled(without, best_ns) == 200 and pace.settled(with_it, best_ns) == 100
    added = pace.typical(with_it, best_ns) - pace.typical(without, best_ns)
    assert 22 < added < 28
    quickest = [min(one.ns for one in chunks) for chunks in (without, with_it)]
    assert not 22 < quickest[1] - quickest[0] < 28


def test_a_machine_that_was_hardly_at_its_best_is_taken_where_it_was_nearest_to_it() -> None:
    chunks = [Chunk(float(n), 100.0 + 10 * n) for n in range(100)]
    assert pace.settled(chunks, 100.0) == 2
    assert pace.typical(chunks, 100.0) == int(pace.FEWEST * pace.QUICK) == 1


def test_each_measurement_has_the_slower_of_the_paces_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paces, numbers = iter((10.0, 30.0, 20.0, 5.0)), itertools.count(1)
    monkeypatch.setattr(pace, "now", lambda: next(paces))
    found = list(itertools.islice(pace.beside(lambda: float(next(numbers))), 3))
    assert found == [Chunk(1.0, 30.0), Chunk(2.0, 30.0), Chunk(3.0, 20.0)]


def test_the_pace_is_that_of_work_and_not_of_waiting() -> None:
    before = time.perf_counter_ns()
    found = pace.now()
    assert 0 < found < time.perf_counter_ns() - before
