"""What pictures of latencies share: the frame, the style, the logarithmic axis of latencies, how a duration is said.

Pure.  Knows nothing of what is drawn in the frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from evenkeel.report.markup import Content, Markup, el, trusted

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 40, 38
#: Decades up to which 2 and 5 are written on an axis besides 1.
_FEW_DECADES = 2.5

#: The variables of page.css that a picture needs; one that stands alone brings them along.
_VARIABLES = """
svg.chart{--bg:#fff;--text:#1b1f27;--muted:#5b6472;--line:#dfe3e8;--old:#6b7280;--new:#2f5bd0;--goal:#b42318;
background:var(--bg)}
@media(prefers-color-scheme:dark){svg.chart{--bg:#14171c;--text:#e8eaee;--muted:#a3abb8;--line:#343a45;--old:#a3abb8;
--new:#8fb0ff;--goal:#ff9b8f}}
"""


def style() -> str:
    """The rules of all charts, for a page, which has the variables already."""
    return files("evenkeel.report").joinpath("chart.css").read_text(encoding="utf-8")


def chart(*parts: Content, title: str, about: str, words: str, standalone: bool, height: int = HEIGHT) -> Markup:
    """The picture around ``parts``.  ``title`` and ``words``, what it shows in figures, are read out by a screen
    reader; ``about`` says how to read it.
    """
    return el(
        "svg",
        el("style", trusted(_VARIABLES + style())) if standalone else None,
        el("title", title),
        el("desc", f"{about} {words}."),
        *parts,
        class_="chart",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label=f"{title}. {words}.",
        xmlns="http://www.w3.org/2000/svg" if standalone else None,
    )


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


def format_count(count: int) -> str:
    """A power of ten, short: ``100``, ``10k``."""
    power = len(str(count)) - 1
    return f"{count:,}" if power < 4 else f"{10 ** (power % 3)}{'kMGTPEZY'[power // 3 - 1]}"


@dataclass(frozen=True)
class Log:
    """From values to places on a logarithmic axis.  ``low``, ``high``: decimal logarithms of its ends, which lie at
    ``begin`` and ``end`` of the picture; what is beyond an end is drawn there.
    """

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        place = math.log10(value) if value > 0 else self.low
        share = min(max((place - self.low) / (self.high - self.low), 0.0), 1.0)
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self) -> Iterator[int]:
        """Values that are written on the axis: 1, 2, 5 of each decade, or 1 of each where there are many."""
        factors = (1, 2, 5) if self.high - self.low < _FEW_DECADES else (1,)
        for power in range(max(0, math.floor(self.low)), math.ceil(self.high) + 1):
            for factor in factors:
                if self.low <= math.log10(factor * 10**power) <= self.high:
                    yield factor * 10**power


def latency_axis(scale: Log) -> Iterator[Markup]:
    """Grid and labels of latencies upwards, in nanoseconds."""
    for nanoseconds in scale.ticks():
        y = scale(nanoseconds)
        yield el("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=str(y), y2=str(y))
        yield el("text", format_ns(nanoseconds), x=LEFT - 6, y=str(y + 3.5), text_anchor="end")


def goal_line(scale: Log, goal_ns: int, name: str = "deadline") -> Iterator[Markup]:
    """Where the deadline is on such an axis."""
    y = scale(goal_ns)
    # Above its line, and below it where the frame ends.
    label = y - 4 if y > TOP + 12 else y + 12
    yield el("line", class_="goal", x1=LEFT, x2=WIDTH - RIGHT, y1=str(y), y2=str(y))
    yield el("text", f"{name} {format_ns(goal_ns)}", class_="name", x=LEFT + 4, y=str(round(label, 1)))
