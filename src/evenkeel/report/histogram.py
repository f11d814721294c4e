"""Latency histograms as SVG, both axes logarithmic.  Series differ by line, mark and label, never by colour alone.

Pure.  Draws what it is given and judges nothing; the caller puts :data:`EMULATION_NOTE` beside it where it applies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.evidence import Latency
from evenkeel.documents.histogram import Histogram
from evenkeel.report.markup import Markup, el, join, trusted

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 40, 38
#: Twelve bins a decade: fine enough for the shape, wide enough to be seen on a phone.
BINS_A_DECADE = 12

#: For a picture that stands alone; a page brings its own rules for the same classes.
STYLE = """
svg.histogram{font:11px system-ui,sans-serif;--text:#1b1f27;--muted:#5b6472;--line:#dfe3e8;--old:#6b7280;--new:#2f5bd0;
--goal:#b42318;background:#fff}
@media(prefers-color-scheme:dark){svg.histogram{--text:#e8eaee;--muted:#a3abb8;--line:#343a45;--old:#a3abb8;
--new:#8fb0ff;--goal:#ff9b8f;background:#14171c}}
.histogram text{fill:var(--muted)}.histogram .grid{stroke:var(--line)}.histogram .axis{stroke:var(--muted)}
.histogram .before{fill:none;stroke:var(--old);stroke-width:1.5;stroke-dasharray:4 2.5}
.histogram .after{fill:var(--new);fill-opacity:.18;stroke:var(--new);stroke-width:1.75}
.histogram .mark-before{fill:none;stroke:var(--old);stroke-width:1.5}.histogram .mark-after{fill:var(--new)}
.histogram text.name{fill:var(--text);font-weight:600}
.histogram .line{fill:none}.histogram .goal{stroke:var(--goal);stroke-width:1.25;stroke-dasharray:1.5 3}
"""


@dataclass(frozen=True)
class Series:
    """One latency run under the name that stands in the picture."""

    name: Literal["before", "after"]
    run: Latency


def format_ns(nanoseconds: float) -> str:
    """Three significant digits in a unit that a person reads: 2892000 -> ``"2.89 ms"``."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        # 999.95 µs rounds to 1000 µs: such a value belongs to the larger unit.
        if nanoseconds >= factor * 0.9995:
            number = nanoseconds / factor
            digits = max(0, 2 - math.floor(math.log10(number) + 1e-9))
            plain = f"{number:.{digits}f}"
            return f"{plain.rstrip('0').rstrip('.') if '.' in plain else plain} {unit}"
    return f"{nanoseconds:.0f} ns"


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
    scale = _Scale(
        x_low=math.log10(x_low) - 0.04,
        x_high=math.log10(max(highs, default=bucket_ns * 1000)) + 0.04,
        y_high=math.log10(max(counts, default=10)) + 0.15,
    )
    words = "; ".join(f"{one.name}: {one.run.samples} samples, largest {format_ns(one.run.max_ns)}" for one in series)
    return el(
        "svg",
        el("style", trusted(STYLE)) if standalone else None,
        el("title", title),
        el("desc", f"Histogram of latencies, both axes logarithmic. {words}."),
        _axes(scale),
        # The first one is an outline: drawn last, it stays visible over the filled one.
        *reversed([_series(scale, one, found, row) for row, (one, found) in enumerate(drawn)]),
        class_="histogram",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}. {words}.",
        xmlns="http://www.w3.org/2000/svg" if standalone else None,
    )


@dataclass(frozen=True)
class _Scale:
    """From nanoseconds and samples to places.  Bounds are decimal logarithms; the y axis begins below one sample."""

    x_low: float
    x_high: float
    y_high: float
    y_low: float = -0.25

    def x(self, nanoseconds: float) -> float:
        value = math.log10(nanoseconds) if nanoseconds > 0 else self.x_low
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, samples: float) -> float:
        value = math.log10(samples) if samples > 0 else self.y_low
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(scale: _Scale) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts: list[Markup] = []
    for power in range(0, math.floor(scale.y_high) + 1):
        y = scale.y(10**power)
        parts.append(el("line", class_="grid", x1=LEFT, x2=right, y1=str(y), y2=str(y)))
        label = f"{10**power:,}" if power < 4 else f"{10 ** (power % 3)}{'kMGTPEZY'[power // 3 - 1]}"
        parts.append(el("text", label, x=LEFT - 6, y=str(y + 3.5), text_anchor="end"))
    decades = scale.x_high - scale.x_low
    factors = (1, 2, 5) if decades < 2.8 else (1,)
    for power in range(math.floor(scale.x_low), math.ceil(scale.x_high) + 1):
        for factor in factors:
            nanoseconds = factor * 10**power
            if not scale.x_low <= math.log10(nanoseconds) <= scale.x_high:
                continue
            x = scale.x(nanoseconds)
            parts.append(el("line", class_="grid", x1=str(x), x2=str(x), y1=TOP, y2=bottom))
            at_edge = x > right - 14
            label_x = WIDTH - 1 if at_edge else x
            anchor = "end" if at_edge else "middle"
            parts.append(el("text", format_ns(nanoseconds), x=str(label_x), y=bottom + 14, text_anchor=anchor))
    parts.append(el("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    parts.append(el("text", "latency", x=str((LEFT + right) / 2), y=HEIGHT - 6, text_anchor="middle"))
    parts.append(el("text", "samples", x=2, y=TOP - 8))
    return join(*parts)


def _series(scale: _Scale, one: Series, found: list[tuple[int, int, int]], row: int) -> Markup:
    bottom = HEIGHT - BOTTOM
    path: list[str] = []
    previous_high: int | None = None
    for low, high, count in found:
        if low != previous_high:
            path.append(f"{'V' + str(bottom) if path else ''}M{scale.x(low)} {bottom}")
        path.append(f"V{scale.y(count)}H{scale.x(high)}")
        previous_high = high
    if path:
        path.append(f"V{bottom}")
    label = f"{one.name}  max {format_ns(one.run.max_ns)}" if found or one.run.samples else f"{one.name}  no samples"
    overflows = one.run.histogram.overflows
    if overflows:
        label += f", {overflows:,} beyond {format_ns(largest_bucket_ns(one.run.histogram))}"
    y_label = 12 + 14 * row
    parts: list[Markup] = [el("path", d="".join(path), class_=one.name)] if path else []
    x_max = scale.x(one.run.max_ns)
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
