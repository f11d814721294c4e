"""One axis for the clocks of two machines: nanoseconds from the begin of the host's recording.  Pure.

Both sides stamp with the time stamp counter.  KVM makes that of a guest by adding an offset (and scaling), which it
tells in debugfs: then nothing is measured and the error is nil.  Without it, round trips bound the offset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evenkeel.documents.explanation import Alignment
from evenkeel.errors import EvenkeelError
from evenkeel.measure.explain.trace import Trace
from evenkeel.measure.pages import Ints

_WRAP = 1 << 64
#: Of a CPU, the longest: more of them cost time and narrow no further.
_MOST_ABSENCES = 2000


@dataclass(frozen=True)
class Clock:
    """ns = ((raw - offset) * unscale - base) * ns_per_tick; ``offset``, ``unscale`` make the host's of a guest's."""

    base: int
    ns_per_tick: float
    offset: int = 0
    unscale: float = 1.0

    def ns(self, raw: Ints) -> Ints:
        """Whole nanoseconds.  Differences are taken in integers first: a counter needs more digits than a float has."""
        # In numpy a signed 64-bit subtraction wraps, as the counter does.
        with np.errstate(over="ignore"):
            moved = raw - np.int64(_signed(self.offset))
        if self.unscale == 1.0:
            ns: Ints = np.rint((moved - self.base) * self.ns_per_tick).astype(np.int64)
        else:
            ns = np.rint((moved * self.unscale - self.base) * self.ns_per_tick).astype(np.int64)
        return ns


def _signed(number: int) -> int:
    number %= _WRAP
    return number - _WRAP if number >= _WRAP // 2 else number


def host_clock(trace: Trace, marks: Sequence[Mapping[str, int]]) -> Clock:
    """The rate of the counter from the first and the last mark of the recorder in the trace; zero is the first.

    Raises EvenkeelError when there are no two: then events at its begin or end were lost.
    """
    found = marked(trace, marks)
    if len(found) < 2 or found[-1][0] <= found[0][0]:
        raise EvenkeelError("the marks of the recorder are not in the trace", hint="a larger ring keeps them")
    (first, begun), (last, ended) = found[0], found[-1]
    return Clock(first, (ended - begun) / (last - first))


def marked(trace: Trace, marks: Sequence[Mapping[str, int]]) -> list[tuple[int, int]]:
    """Those of ``marks`` that are in the trace: raw time, and nanoseconds of the monotonic clock of that machine."""
    stamps = all_marks(trace)
    return [(stamps[mark["before"]], mark["before"]) for mark in marks if mark["before"] in stamps]


def all_marks(trace: Trace) -> dict[int, int]:
    """Text of each mark in the trace, whoever wrote it -> its raw time."""
    found = {}
    for at, text in zip(trace.table("ftrace/print")["at"].tolist(), trace.texts("ftrace/print", "buf"), strict=True):
        if match := re.match(r"evenkeel (\d+)", text):
            found[int(match[1])] = at
    return found


def guest_clock(host: Clock, told: Mapping[str, object]) -> tuple[Clock, Alignment] | None:
    """From what KVM tells (the probe's ``recording_guest.clock``); None when it tells nothing, or not one offset."""
    offsets = told.get("offsets")
    distinct = set(offsets.values()) if isinstance(offsets, Mapping) else set()
    if not distinct:
        return None
    spread = max(distinct) - min(distinct)
    ratio, bits = told.get("ratio"), told.get("fraction_bits")
    unscale = (1 << bits) / ratio if isinstance(ratio, int) and isinstance(bits, int) and ratio else 1.0
    clock = Clock(host.base, host.ns_per_tick, min(distinct), unscale)
    return clock, Alignment(method="tsc-offset", error_ns=round(spread * host.ns_per_tick))


def by_round_trips(host: Clock, trips: Iterable[tuple[int, int, int]]) -> tuple[Clock, Alignment] | None:
    """From (host before, guest, host after) in raw counters: the guest's stamp lies between the host's two.

    Every trip bounds the offset from both sides; together they bound it as tightly as the best of each.
    """
    low, high = None, None
    for before, stamp, after in trips:
        least, most = _signed(stamp - after), _signed(stamp - before)
        low = least if low is None else max(low, least)
        high = most if high is None else min(high, most)
    if low is None or high is None or low > high:
        return None
    clock = Clock(host.base, host.ns_per_tick, (low + high) // 2)
    return clock, Alignment(method="round trips", error_ns=int((high - low) / 2 * host.ns_per_tick) + 1)


def narrowed(
    host: Clock,
    bound: Alignment,
    clock: Clock,
    absent: Mapping[int, Sequence[tuple[int, int]]],
    stamps: Mapping[int, Ints],
) -> tuple[Clock, Alignment]:
    """Narrow an offset by what is impossible: a CPU that was taken away writes no event meanwhile.

    ``absent``: CPU -> stretches (raw, of the outer machine) in which it did not run; ``stamps``: CPU -> raw times of
    its events.  Of all offsets within the bound those are kept that put the fewest events into an absence.
    """
    reach = round(bound.error_ns / host.ns_per_tick)
    begins, ends = [], []
    for cpu, stretches in absent.items():
        if cpu not in stamps:
            continue
        moved = np.sort(stamps[cpu] - np.int64(_signed(clock.offset)))
        # An event at e is in the absence (a, b) when the offset is changed by a - e < d < b - e.
        for start, end in sorted(stretches, key=lambda one: one[0] - one[1])[:_MOST_ABSENCES]:
            near = moved[np.searchsorted(moved, start - reach) : np.searchsorted(moved, end + reach)]
            begins.append(start - near)
            ends.append(end - near)
    if reach <= 1 or not begins:
        return clock, bound
    begin, until = np.concatenate(begins), np.concatenate(ends)
    # Count for every change how many events it makes impossible: +1 where a range begins, -1 where it ends.
    edges = np.concatenate([[-reach, reach], np.clip(begin, -reach, reach), np.clip(until, -reach, reach)])
    step = np.concatenate([[0, 0], np.ones(len(begin), np.int64), -np.ones(len(until), np.int64)])
    order = np.argsort(edges, kind="stable")
    places, counts = edges[order], np.cumsum(step[order])[:-1]
    wide = np.diff(places) > 0
    kept = np.flatnonzero((counts == counts[wide].min()) & wide)
    low, high = int(places[kept[0]]), int(places[kept[-1] + 1])
    better = Clock(clock.base, clock.ns_per_tick, clock.offset - (low + high) // 2, clock.unscale)
    return better, Alignment(method=bound.method, error_ns=int((high - low) / 2 * host.ns_per_tick) + 1)
