"""Latency histograms as SVG, both axes logarithmic.  Series differ by line, mark and label, never by colour alone.

Pure.  Draws what it is given and judges nothing; the caller puts :data:`EMULATION_NOTE` beside it where it applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.evidence import Latency
from evenkeel.documents.histogram import Histogram
from evenkeel.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Log, chart, format_count, format_ns
from evenkeel.report.markup import Markup, el, join

#: Twelve bins a decade: fine enough for the shape, wide enough to be seen on a phone.
BINS_A_DECADE = 12


@dataclass(frozen=True)
class Series:
    """One latency run under the name that stands in the picture."""

    name: Literal["before", "after"]
    run: Latency


def largest_bucket_ns(histogram: Histogram) -> int:
    """Upper edge of the last bucket that holds a sample: later samples are only counted."""
    last = max(histogram.counts, default=None)
    return 0 if last is None else histogram.upper_ns(last)


def bins(histogram: Histogram) -> list[tuple[int, int, int]]:
    """(from_ns, to_ns, samples) in bins that widen with latency.  None is empty.

    A bucket counts where it begins: it is much narrower than a bin, or as narrow as a bucket can be.
    """
    found: dict[tuple[int, int], int] = {}
    for bucket, count in histogram.counts.items():
        if count <= 0:
            continue
        if bucket <= 0:
            edges = (0, 1)
        else:
            step = math.floor(math.log10(bucket) * BINS_A_DECADE + 1e-9)
            low, high = _edge(step), _edge(step + 1)
            # Rounded edges may coincide or miss the bucket at the low end, where buckets are wider than bins.
            while high <= bucket:
                step += 1
                low, high = high, _edge(step + 1)
            while low > bucket:
                step -= 1
                low, high = _edge(step), low
            edges = (low, high)
        found[edges] = found.get(edges, 0) + count
    return [(low * histogram.bucket_ns, high * histogram.bucket_ns, found[low, high]) for low, high in sorted(found)]


def _edge(step: int) -> int:
    return round(10 ** (step / BINS_A_DECADE))


def histogram_svg(series: Sequence[Series], *, title: str, standalone: bool = False) -> Markup:
    """The picture of one or two runs.  ``title`` is read out by a screen reader.

    A run without samples is named, with no line.  Samples beyond the last bucket are written at the right edge.
    """
    drawn = [(one, bins(one.run.histogram)) for one in series]
    lows = [low for _, found in drawn for low, _, _ in found]
    highs = [one.run.max_ns for one, found in drawn if found] + [high for _, found in drawn for _, high, _ in found]
    counts = [count for _, found in drawn for _, _, count in found]
    bucket_ns = min((one.run.histogram.bucket_ns for one in series), default=1000)
    x_low = max(min(lows, default=bucket_ns), bucket_ns / 2)
    x = Log(
        low=math.log10(x_low) - 0.04,
        high=math.log10(max(highs, default=bucket_ns * 1000)) + 0.04,
        begin=LEFT,
        end=WIDTH - RIGHT,
    )
    # The axis of counts begins below one sample.
    y = Log(low=-0.25, high=math.log10(max(counts, default=10)) + 0.15, begin=HEIGHT - BOTTOM, end=TOP)
    words = "; ".join(f"{one.name}: {one.run.samples} samples, largest {format_ns(one.run.max_ns)}" for one in series)
    return chart(
        *_axes(x, y),
        # The first one is an outline: drawn last, it stays visible over the filled one.
        *reversed([_series(x, y, one, found, row) for row, (one, found) in enumerate(drawn)]),
        title=title,
        about="Histogram of latencies, both axes logarithmic.",
        words=words,
        standalone=standalone,
    )


def _axes(x: Log, y: Log) -> Iterator[Markup]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for power in range(0, math.floor(y.high) + 1):
        place = y(10**power)
        yield el("line", class_="grid", x1=LEFT, x2=right, y1=str(place), y2=str(place))
        yield el("text", format_count(10**power), x=LEFT - 6, y=str(place + 3.5), text_anchor="end")
    for nanoseconds in x.ticks():
        place = x(nanoseconds)
        yield el("line", class_="grid", x1=str(place), x2=str(place), y1=TOP, y2=bottom)
        at_edge = place > right - 14
        label_x, anchor = (WIDTH - 1, "end") if at_edge else (place, "middle")
        yield el("text", format_ns(nanoseconds), x=str(label_x), y=bottom + 14, text_anchor=anchor)
    yield el("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)
    yield el("text", "latency", x=str((LEFT + right) / 2), y=HEIGHT - 6, text_anchor="middle")
    yield el("text", "samples", x=2, y=TOP - 8)


def _series(x: Log, y: Log, one: Series, found: list[tuple[int, int, int]], row: int) -> Markup:
    bottom = HEIGHT - BOTTOM
    path: list[str] = []
    previous_high: int | None = None
    for low, high, count in found:
        if low != previous_high:
            path.append(f"{'V' + str(bottom) if path else ''}M{x(low)} {bottom}")
        path.append(f"V{y(count)}H{x(high)}")
        previous_high = high
    if path:
        path.append(f"V{bottom}")
    label = f"{one.name}  max {format_ns(one.run.max_ns)}" if found or one.run.samples else f"{one.name}  no samples"
    overflows = one.run.histogram.overflows
    if overflows:
        label += f", {overflows:,} beyond {format_ns(largest_bucket_ns(one.run.histogram))}"
    y_label = 12 + 14 * row
    parts: list[Markup] = [el("path", d="".join(path), class_=one.name)] if path else []
    x_max = x(one.run.max_ns)
    if found:
        parts.append(el("line", class_=one.name, x1=str(x_max), x2=str(x_max), y1=TOP - 6, y2=bottom))
    # The label ends at its mark, so it stays inside the picture wherever the maximum lies right of the middle.
    right_half = x_max > WIDTH / 2
    parts.append(mark(one.name, x_max, y_label - 4))
    parts.append(
        el(
            "text",
            label,
            class_="name",
            x=str(x_max + (-8 if right_half else 8)),
            y=y_label,
            text_anchor="end" if right_half else "start",
        )
    )
    return join(*parts)


def mark(name: str, x: float, y: float) -> Markup:
    if name == "before":
        return el("circle", class_="mark-before", cx=str(x), cy=str(y), r="3.2")
    return el(
        "rect", class_="mark-after", x=str(round(x - 3.2, 1)), y=str(round(y - 3.2, 1)), width="6.4", height="6.4"
    )
