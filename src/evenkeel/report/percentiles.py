"""Latencies by percentile as SVG: how rare a latency is (one in so many, logarithmic) against how large it is.

What a deadline is about lies at the right edge, which a histogram hides.  Pure: draws what it is given, judges nothing;
the caller puts :data:`EMULATION_NOTE` beside it where it applies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evenkeel.report.histogram import BOTTOM, HEIGHT, LEFT, RIGHT, STYLE, TOP, WIDTH, Series, format_ns, mark
from evenkeel.report.markup import Markup, el, join, trusted


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
    scale = _Scale(
        rarest=max([10.0, *(float(one.run.histogram.samples) for one in series)]),
        y_low=math.log10(lowest) - 0.1,
        y_high=math.log10(highest) + 0.1,
    )
    words = "; ".join(f"{one.name}: {one.run.samples} samples, largest {format_ns(one.run.max_ns)}" for one in series)
    if goal_ns:
        words += f"; deadline {format_ns(goal_ns)}"
    return el(
        "svg",
        el("style", trusted(STYLE)) if standalone else None,
        el("title", title),
        el("desc", f"Latency by percentile: to the right ever rarer samples, upwards ever larger ones. {words}."),
        _axes(scale),
        _goal(scale, goal_ns) if goal_ns else None,
        *reversed([_series(scale, one, found, row) for row, (one, found) in enumerate(drawn)]),
        class_="histogram",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}. {words}.",
        xmlns="http://www.w3.org/2000/svg" if standalone else None,
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


@dataclass(frozen=True)
class _Scale:
    """From a share of samples, and nanoseconds, to places.  ``rarest``: one in so many ends the axis."""

    rarest: float
    y_low: float
    y_high: float

    def x(self, share: float) -> float:
        one_in = self.rarest if share >= 1 else min(self.rarest, 1 / (1 - share))
        return round(LEFT + math.log10(one_in) / math.log10(self.rarest) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, nanoseconds: float) -> float:
        value = math.log10(nanoseconds) if nanoseconds > 0 else self.y_low
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(scale: _Scale) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts: list[Markup] = []
    factors = (1, 2, 5) if scale.y_high - scale.y_low < 2.2 else (1,)
    for power in range(math.floor(scale.y_low), math.ceil(scale.y_high) + 1):
        for factor in factors:
            nanoseconds = factor * 10**power
            if scale.y_low <= math.log10(nanoseconds) <= scale.y_high:
                y = scale.y(nanoseconds)
                parts.append(el("line", class_="grid", x1=LEFT, x2=right, y1=str(y), y2=str(y)))
                parts.append(el("text", format_ns(nanoseconds), x=LEFT - 6, y=str(y + 3.5), text_anchor="end"))
    for nines in range(0, math.floor(math.log10(scale.rarest) + 1e-9) + 1):
        x = scale.x(1 - 10.0**-nines)
        parts.append(el("line", class_="grid", x1=str(x), x2=str(x), y1=TOP, y2=bottom))
        at_edge = x > right - 20
        parts.append(
            el(
                "text",
                _percent(nines),
                x=str(WIDTH - 1 if at_edge else x),
                y=bottom + 14,
                text_anchor="end" if at_edge else "middle",
            )
        )
    parts.append(el("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    middle = str((LEFT + right) / 2)
    parts.append(el("text", "share of samples that came no later", x=middle, y=HEIGHT - 6, text_anchor="middle"))
    return join(*parts)


def _percent(nines: int) -> str:
    """2 -> ``99 %``, 5 -> ``99.999 %``."""
    return f"{100 - 10.0 ** (2 - nines):.{max(0, nines - 2)}f} %" if nines else "0 %"


def _goal(scale: _Scale, goal_ns: int) -> Markup:
    y = scale.y(goal_ns)
    # Above its line, and below it where the frame ends.
    label = y - 4 if y > TOP + 12 else y + 12
    return join(
        el("line", class_="goal", x1=LEFT, x2=WIDTH - RIGHT, y1=str(y), y2=str(y)),
        el("text", f"deadline {format_ns(goal_ns)}", class_="name", x=LEFT + 4, y=str(round(label, 1))),
    )


def _series(scale: _Scale, one: Series, found: list[tuple[float, float, int]], row: int) -> Markup:
    path = ""
    for low, high, value in found:
        x, y = scale.x(low), scale.y(value)
        path += f"{'V' + str(y) if path else 'M' + str(x) + ' ' + str(y)}H{scale.x(high)}"
    label = f"{one.name}  max {format_ns(one.run.max_ns)}" if found else f"{one.name}  no samples"
    y_label = 12 + 14 * row
    return join(
        el("path", d=path, class_=f"line {one.name}") if path else None,
        mark(one.name, LEFT + 6, y_label - 4),
        el("text", label, class_="name", x=LEFT + 14, y=y_label),
    )
