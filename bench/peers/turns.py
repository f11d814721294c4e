"""What something adds to a loop, on a machine that others disturb: taken without it and with it in turns.

Compared is what was taken while the machine was as fast as it gets, as in the calibration.  How well that is known is
told by resampling.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from evenkeel.probe.trace import pace
from evenkeel.probe.trace.pace import Chunk

_RESAMPLED = 200


class Turn(NamedTuple):
    """Chunks, one after the other: without it, and with it."""

    without: list[Chunk]
    with_it: list[Chunk]


class Known(NamedTuple):
    """A number, and from which to which 95 of 100 such numbers would be."""

    value: float
    low: float
    high: float


def chunks(
    loop: Callable[[], object],
    per_chunk: int,
    seconds: float,
    clock: Callable[[], int] = time.thread_time_ns,
    after: Callable[[], object] | None = None,
) -> list[Chunk]:
    """Chunks of ``per_chunk`` turns, for so many seconds; three at least."""

    def measure() -> float:
        start = clock()
        loop()
        return (clock() - start) / per_chunk

    found: list[Chunk] = []
    end = time.perf_counter() + seconds
    for one in pace.beside(measure):
        found.append(one)
        if after is not None:
            after()
        if time.perf_counter() >= end and len(found) >= 3:
            break
    return found


def compared(turns: Sequence[Turn]) -> tuple[float, float]:
    """Nanoseconds of a turn of the loop without it, and with it."""
    without = [one for turn in turns for one in turn.without]
    with_it = [one for turn in turns for one in turn.with_it]
    best_ns = pace.best(without, with_it)
    return pace.typical(without, best_ns), pace.typical(with_it, best_ns)


def without(turns: Sequence[Turn]) -> float:
    return compared(turns)[0]


def added(turns: Sequence[Turn]) -> float:
    before, behind = compared(turns)
    return behind - before


def share(turns: Sequence[Turn]) -> float:
    """The speed with it, as a share of that without."""
    before, behind = compared(turns)
    return before / behind


def known(turns: Sequence[Turn], what: Callable[[Sequence[Turn]], float]) -> Known:
    draw = random.Random(1)
    again = sorted(what(draw.choices(turns, k=len(turns))) for _ in range(_RESAMPLED))
    cut = _RESAMPLED // 40
    return Known(what(turns), again[cut], again[-cut - 1])
