"""One axis for the clocks of two machines: nanoseconds from the begin of the host's recording.  Pure.

Both sides stamp with the time stamp counter.  KVM makes that of a guest by adding an offset (and scaling), which it
tells in debugfs: then nothing is measured and the error is nil.  Without it, round trips bound offset and drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evenkeel.documents.explanation import Alignment
from evenkeel.errors import EvenkeelError
from evenkeel.measure.explain.trace import Trace
from evenkeel.measure.pages import Ints

Floats = NDArray[np.float64]
_WRAP = 1 << 64
#: Of a CPU, the longest: more of them cost time and narrow no further.
_MOST_ABSENCES = 2000
#: Round trips that are looked at: so many of each part of the recording, those that took the least time.
_PARTS, _OF_PART = 16, 4
#: What is impossible is looked for in the first and in the last part of a recording that is so much of it, again and
#: again: what the drift leaves open within that part becomes so much less each time.
_WINDOW, _ROUNDS = 0.1, 5
#: A share of events that may be where none can be: a period of a timer off is nearly as possible as none.
_SPARE = 1e-3


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
    stamps = trace.marks
    return [(stamps[mark["before"]], mark["before"]) for mark in marks if mark["before"] in stamps]


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


def by_drifting_round_trips(
    host: Clock, trips: Iterable[tuple[int, int, int]], end: int
) -> tuple[Clock, Alignment] | None:
    """The same where the two counters have different rates, each steady; ``end`` of the recording, by the host's.

    Each line from the guest's to the host's time is possible that passes through all trips.  At the begin and at the
    end of the recording they leave a range, and the clock goes through the middle of both.  The distance of two lines
    is the largest at an end, so what half of the wider range has is the bound everywhere.  None where no line passes,
    or there is one trip only.
    """
    chosen = _quickest(list(trips))
    if len(chosen) < 2 or chosen[0][1] == chosen[-1][1]:
        return None
    zero, length = chosen[0][1], chosen[-1][1] - chosen[0][1]
    origin = chosen[0][0]
    at = np.array([(stamp - zero) / length for _, stamp, _ in chosen])
    # How far the host's time is from a counter of the guest's rate: numbers that a float has the digits for.
    low, high = (np.array([float(trip[n] - origin - (trip[1] - zero)) for trip in chosen]) for n in (0, 2))
    corners = _corners(at, low, high)
    if not len(corners):
        return None

    def reached(raw: int) -> float:
        """Where on the way from the first to the last trip the host's counter is ``raw``."""
        first, last = corners.mean(axis=0)
        return float((raw - origin - first) / (length + last - first))

    unsure = float((high - low).max()) / length
    begin, until = min(0.0, reached(host.base) - unsure), max(1.0, reached(end) + unsure)
    ranges = [(1 - x) * corners[:, 0] + x * corners[:, 1] for x in (begin, until)]
    middles = [(float(one.min()) + float(one.max())) / 2 for one in ranges]
    off = max(float(one.max() - one.min()) / 2 for one in ranges)
    slope = (middles[1] - middles[0]) / (until - begin)
    clock = Clock(host.base - origin - round(middles[0] - begin * slope), host.ns_per_tick, zero, 1 + slope / length)
    return clock, Alignment(method="round trips", error_ns=int((off + 2) * host.ns_per_tick) + 1)


def _quickest(trips: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Of each part of the recording a few, in their order."""
    stamps = [stamp for _, stamp, _ in trips]
    parts: dict[int, list[tuple[int, int, int]]] = {}
    for trip in trips:
        part = (trip[1] - min(stamps)) * _PARTS // (max(stamps) - min(stamps) + 1)
        parts.setdefault(part, []).append(trip)
    kept = [one for part in parts.values() for one in sorted(part, key=lambda trip: trip[2] - trip[0])[:_OF_PART]]
    return sorted(kept, key=lambda trip: trip[1])


def _corners(at: Floats, low: Floats, high: Floats) -> Floats:
    """Corners of the area of all (a, b) for which (1 - at) * a + at * b lies from ``low`` to ``high``; rows of two."""
    x, edge = np.concatenate([at, at]), np.concatenate([low, high])
    one, other = np.triu_indices(len(x), 1)
    crossing = x[one] != x[other]
    one, other = one[crossing], other[crossing]
    across = x[other] - x[one]
    a = (edge[one] * x[other] - edge[other] * x[one]) / across
    b = ((1 - x[one]) * edge[other] - (1 - x[other]) * edge[one]) / across
    value = np.outer(a, 1 - at) + np.outer(b, at)
    # A tick: what rounding may take.
    within = ((value >= low - 1) & (value <= high + 1)).all(axis=1)
    return np.stack([a[within], b[within]], axis=1)


def narrowed_with_drift(
    host: Clock,
    trips: Sequence[tuple[int, int, int]],
    end: int,
    absent: Mapping[int, Sequence[tuple[int, int]]],
    stamps: Mapping[int, Ints],
) -> tuple[Clock, Alignment] | None:
    """:func:`by_drifting_round_trips`, and then what is impossible, as of :func:`narrowed`.

    At the begin and at the end what is possible makes one more trip each.
    """
    found = by_drifting_round_trips(host, trips, end)
    for _ in range(_ROUNDS):
        if found is None:
            return None
        clock, bound = found
        length = round((end - host.base) * _WINDOW)
        reach = round(bound.error_ns / host.ns_per_tick)
        # Two lines that are within the bound at both ends: how far apart their offsets can grow in half a window.
        slack = round(reach * _WINDOW)
        # The host's counter at each stamp, as far as it is known.
        moved = {vcpu: np.sort(host.base + _ticks(clock, raw)) for vcpu, raw in stamps.items()}
        more = []
        for begin in (host.base, end - length):
            until = begin + length
            near = {vcpu: at[np.searchsorted(at, begin) : np.searchsorted(at, until)] for vcpu, at in moved.items()}
            shrunk = {
                vcpu: [(a + slack, b - slack) for a, b in stretches if begin < a and b < until and b - a > 2 * slack]
                for vcpu, stretches in absent.items()
            }
            possible = _fewest(reach, near, shrunk, _SPARE)
            if possible:
                middle = begin + length // 2
                stamp = clock.offset + round((middle - host.base + clock.base) / clock.unscale)
                more.append((middle + possible[0] - 1, stamp, middle + possible[1] + 1))
        again = by_drifting_round_trips(host, [*trips, *more], end)
        if again is None or again[1].error_ns >= bound.error_ns:
            break
        found = again
    return found


def _ticks(clock: Clock, raw: Ints) -> Ints:
    """Ticks of the host since its zero."""
    ticks: Ints = np.rint((raw - np.int64(_signed(clock.offset))) * clock.unscale).astype(np.int64) - clock.base
    return ticks


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
    moved = {cpu: np.sort(raw - np.int64(_signed(clock.offset))) for cpu, raw in stamps.items()}
    possible = _fewest(reach, moved, absent)
    if possible is None:
        return clock, bound
    low, high = possible
    better = Clock(clock.base, clock.ns_per_tick, clock.offset - (low + high) // 2, clock.unscale)
    return better, Alignment(method=bound.method, error_ns=int((high - low) / 2 * host.ns_per_tick) + 1)


def _fewest(
    reach: int, stamps: Mapping[int, Ints], absent: Mapping[int, Sequence[tuple[int, int]]], spare: float = 0.0
) -> tuple[int, int] | None:
    """From where to where a change of up to ``reach`` of all ``stamps`` (sorted) puts the fewest into an absence.

    ``spare``: of all of them so large a share more than the fewest.  None where nothing is told by that: where more
    than this share is in an absence by every change, they are not events of what was absent.
    """
    begins, ends = [], []
    for cpu, stretches in absent.items():
        if cpu not in stamps:
            continue
        moved = stamps[cpu]
        # An event at e is in the absence (a, b) when the offset is changed by a - e < d < b - e.
        for start, end in sorted(stretches, key=lambda one: one[0] - one[1])[:_MOST_ABSENCES]:
            near = moved[np.searchsorted(moved, start - reach) : np.searchsorted(moved, end + reach)]
            begins.append(start - near)
            ends.append(end - near)
    if reach <= 1 or not begins:
        return None
    begin, until = np.concatenate(begins), np.concatenate(ends)
    # Count for every change how many events it makes impossible: +1 where a range begins, -1 where it ends.
    edges = np.concatenate([[-reach, reach], np.clip(begin, -reach, reach), np.clip(until, -reach, reach)])
    step = np.concatenate([[0, 0], np.ones(len(begin), np.int64), -np.ones(len(until), np.int64)])
    order = np.argsort(edges, kind="stable")
    places, counts = edges[order], np.cumsum(step[order])[:-1]
    wide = np.diff(places) > 0
    fewest, spared = int(counts[wide].min()), int(spare * sum(map(len, stamps.values())))
    if spare and fewest > spared:
        return None
    kept = np.flatnonzero((counts <= fewest + spared) & wide)
    return int(places[kept[0]]), int(places[kept[-1] + 1])
