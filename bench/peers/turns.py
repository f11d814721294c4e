"""What something adds to a loop, on a machine that others disturb: taken without it and with it in turns.

What disturbs can only make a chunk slower, and what disturbs for longer disturbs both; so the quickest few of all
chunks that were taken each way are compared, as in the calibration.  How well that is known is told by resampling.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from evenkeel.probe.trace.calibrate import quickest

_RESAMPLED = 200


class Turn(NamedTuple):
    """Nanoseconds of chunks, one after the other: without it, and with it."""

    without: list[float]
    with_it: list[float]


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
) -> list[float]:
    """Nanoseconds of one of ``per_chunk``, of each chunk in so many seconds; three chunks at least."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        start = clock()
        loop()
        found.append((clock() - start) / per_chunk)
        if after is not None:
            after()
    return found


def without(turns: Sequence[Turn]) -> float:
    return quickest([one for turn in turns for one in turn.without])


def with_it(turns: Sequence[Turn]) -> float:
    return quickest([one for turn in turns for one in turn.with_it])


def added(turns: Sequence[Turn]) -> float:
    return with_it(turns) - without(turns)


def share(turns: Sequence[Turn]) -> float:
    """The speed with it, as a share of that without."""
    return without(turns) / with_it(turns)


def known(turns: Sequence[Turn], what: Callable[[Sequence[Turn]], float]) -> Known:
    draw = random.Random(1)
    again = sorted(what(draw.choices(turns, k=len(turns))) for _ in range(_RESAMPLED))
    cut = _RESAMPLED // 40
    return Known(what(turns), again[cut], again[-cut - 1])
