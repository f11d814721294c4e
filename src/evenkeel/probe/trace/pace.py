"""What turns of a loop took, and how fast the machine was beside each.

A CPU that shares its core with another's work is slower while that lasts, by half or by twice, for milliseconds or for
minutes, and not everything by as much.  So beside each measurement a loop that only computes is timed, and what was
measured while the machine was as fast as it gets is compared with nothing else.  Must not trace.
"""

from __future__ import annotations

import itertools
import time
from typing import Callable, Iterator, NamedTuple, Sequence

from evenkeel.probe.trace import loops

#: As fast as at its best is what is slower by no more than this.  Seen: 1.0 to 1.1 alone, 1.4 to 2.7 beside another.
ALIKE = 1.1
#: Of so few chunks at least one is taken; where the machine was at its best for fewer, of the nearest to it.
FEWEST = 12
#: Which one: so many of them are quicker.
QUICK = 0.1


class Chunk(NamedTuple):
    """Nanoseconds of a turn, and of a turn that only computes, beside it."""

    ns: float
    pace_ns: float


def now() -> float:
    """Nanoseconds of one turn that only computes; the better of two, as the first may find nothing in the caches."""
    first, second, third = _look(), _look(), time.thread_time_ns()
    return float(min(second - first, third - second))


def _look() -> int:
    start = time.thread_time_ns()
    loops.compute(1)
    return start


def beside(measure: Callable[[], float]) -> Iterator[Chunk]:
    """What it returns, again and again, each time with the slower of the paces before and behind it."""
    before = now()
    while True:
        ns = measure()
        after = now()
        yield Chunk(ns, max(before, after))
        before = after


def best(*taken: Sequence[Chunk]) -> float:
    """How fast the machine was at its best."""
    return min(one.pace_ns for one in itertools.chain(*taken))


def settled(chunks: Sequence[Chunk], best_ns: float) -> int:
    """How many of them were taken while the machine was as fast as at its best."""
    return sum(one.pace_ns <= ALIKE * best_ns for one in chunks)


def typical(chunks: Sequence[Chunk], best_ns: float) -> float:
    """Nanoseconds of a turn in a quick one of those chunks that were taken while it was as fast as at its best.

    What disturbs a chunk in between its two paces only ever makes it longer, so the middle one is too long beside busy
    neighbours: of a count of 73 ns the middle of 24 turns had 58 to 113, the tenth part 66 to 80.
    """
    times = [one.ns for one in chunks if one.pace_ns <= ALIKE * best_ns]
    if len(times) < FEWEST:
        times = [one.ns for one in sorted(chunks, key=lambda one: one.pace_ns)[:FEWEST]]
    return sorted(times)[int(len(times) * QUICK)]
