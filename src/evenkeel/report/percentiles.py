"""Latencies by percentile as SVG: how rare a latency is (one in so many, logarithmic) against how large it is.

What a deadline is about lies at the right edge, which a histogram hides.  Pure: draws what it is given, judges nothing;
the caller puts :data:`EMULATION_NOTE` beside it where it applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from evenkeel.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Log,
    chart,
    format_ns,
    goal_line,
    latency_axis,
)
from evenkeel.report.histogram import Series, mark
from evenkeel.report.markup import Markup, el, join


def percentiles_svg(
    series: Sequence[Series], *, title: str, goal_ns: int | None = None, standalone: bool = False
) -> Markup:
    """The picture of one or two runs.  ``goal_ns``: a line for the deadline; ``title`` is read out by a screen reader.

    A run without samples is named, with no line.  Samples beyond the last bucket are drawn at the largest one.
    """
    drawn = [(one, steps(one)) for one in series]
    values = [value for _, found in drawn for _, _, value in found] + ([goal_ns] if goal_ns else [])
    lowest = min((value for value in values if value > 0), default=1000)
    highest = max((value for value in values if value > 0), default=10_000)
    rare = _Rare(max([10.0, *(float(one.run.histogram.samples) for one in series)]))
    y = Log(low=math.log10(lowest) - 0.1, high=math.log10(highest) + 0.1, begin=HEIGHT - BOTTOM, end=TOP)
    words = "; ".join(f"{one.name}: {one.run.samples} samples, largest {format_ns(one.run.max_ns)}" for one in series)
    if goal_ns:
        words += f"; deadline {format_ns(goal_ns)}"
    return chart(
        *latency_axis(y),
        *_axis(rare),
        *(goal_line(y, goal_ns) if goal_ns else ()),
        *reversed([_series(rare, y, one, found, row) for row, (one, found) in enumerate(drawn)]),
        title=title,
        about="Latency by percentile: to the right ever rarer samples, upwards ever larger ones.",
        words=words,
        standalone=standalone,
    )


def steps(one: Series) -> list[tuple[float, float, int]]:
    """(from share, to share, nanoseconds) of each bucket, ascending: so many samples were at most so late."""
    histogram = one.run.histogram
    total, seen = histogram.samples, 0
    found = []
    for low in sorted(histogram.counts):
        count = histogram.counts[low]
        if count:
            # A bucket is drawn at its upper edge, but no sample was later than the largest.
            value = min(histogram.upper_ns(low), max(one.run.max_ns, low * histogram.bucket_ns))
            found.append((seen / total, (seen + count) / total, value))
            seen += count
    if histogram.overflows:
        found.append((seen / total, 1.0, one.run.max_ns))
    return found


class _Rare:
    """From a share of samples to a place.  ``rarest``: one in so many ends the axis."""

    def __init__(self, rarest: float) -> None:
        self.rarest = rarest
        self._log = Log(low=0.0, high=math.log10(rarest), begin=LEFT, end=WIDTH - RIGHT)

    def __call__(self, share: float) -> float:
        return self._log(self.rarest if share >= 1 else 1 / (1 - share))


def _axis(rare: _Rare) -> Iterator[Markup]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for nines in range(0, math.floor(math.log10(rare.rarest) + 1e-9) + 1):
        x = rare(1 - 10.0**-nines)
        yield el("line", class_="grid", x1=str(x), x2=str(x), y1=TOP, y2=bottom)
        label_x, anchor = (WIDTH - 1, "end") if x > right - 20 else (x, "middle")
        yield el("text", _percent(nines), x=str(label_x), y=bottom + 14, text_anchor=anchor)
    yield el("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)
    middle = str((LEFT + right) / 2)
    yield el("text", "share of samples that came no later", x=middle, y=HEIGHT - 6, text_anchor="middle")


def _percent(nines: int) -> str:
    """2 -> ``99 %``, 5 -> ``99.999 %``."""
    return f"{100 - 10.0 ** (2 - nines):.{max(0, nines - 2)}f} %" if nines else "0 %"


def _series(rare: _Rare, y: Log, one: Series, found: list[tuple[float, float, int]], row: int) -> Markup:
    path = ""
    for low, high, value in found:
        left, place = rare(low), y(value)
        path += f"{'V' + str(place) if path else 'M' + str(left) + ' ' + str(place)}H{rare(high)}"
    label = f"{one.name}  max {format_ns(one.run.max_ns)}" if found else f"{one.name}  no samples"
    y_label = 12 + 14 * row
    return join(
        el("path", d=path, class_=f"line {one.name}") if path else None,
        mark(one.name, LEFT + 6, y_label - 4),
        el("text", label, class_="name", x=LEFT + 14, y=y_label),
    )
