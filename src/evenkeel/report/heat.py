"""Heat maps as SVG: to the right the time of a run, upwards latency, in colour how many samples.

Colours are steps of ten, named in the legend; the same is told in words by a slider over the slices, where a page has
its script.  Pure: draws what it is given and judges nothing; the caller puts :data:`EMULATION_NOTE` beside it where it
applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evenkeel.documents.course import Course
from evenkeel.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Log,
    chart,
    format_count,
    format_ns,
    goal_line,
    latency_axis,
)
from evenkeel.report.histogram import bins
from evenkeel.report.markup import Markup, el, join

#: Colours: 1 sample, 2 to 9, 10 to 99, and so on; the last one is all that is more.
LEVELS = 6
#: Seconds between two labels of the time axis, at most seven of them.
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400)
_MOST_LABELS = 7
_CAPTION = 18


@dataclass(frozen=True)
class Panel:
    """One heat map of a picture that stands alone."""

    caption: str
    course: Course
    goal_ns: int | None = None


#: Lowest and highest latency of a picture, in ns.
Extent = tuple[int, int]


def extent(courses: Iterable[Course], goal_ns: int | None = None) -> Extent:
    """What all of ``courses`` need, so that their pictures have one scale."""
    found = [
        one for course in courses for number in range(len(course.slices)) for one in bins(course.histogram(number))
    ]
    goal = [goal_ns] if goal_ns else []
    lows, highs = [low for low, _, _ in found if low > 0], [high for _, high, _ in found]
    return min(lows + goal, default=1000), max(highs + goal, default=1_000_000)


def heat_svg(
    course: Course,
    *,
    title: str,
    goal_ns: int | None = None,
    goal_name: str = "deadline",
    within: Extent | None = None,
    standalone: bool = False,
) -> Markup:
    """The picture of one run.  ``goal_ns``: a line for the deadline; ``title`` is read out by a screen reader;
    ``within``: as :func:`extent` gives it, None: of this run alone.
    """
    rows = [bins(course.histogram(number)) for number in range(len(course.slices))]
    low, high = within or extent([course], goal_ns)
    y = Log(low=math.log10(low) - 0.06, high=math.log10(high) + 0.06, begin=HEIGHT - BOTTOM, end=TOP)
    return chart(
        *latency_axis(y),
        *_time_axis(course),
        el("g", *_cells(course, rows, y), class_="cells"),
        *(goal_line(y, goal_ns, goal_name) if goal_ns else ()),
        *_legend(rows),
        el("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM, visibility="hidden"),
        title=title,
        about="Latencies over time: to the right the time of the run, upwards latency, in colour how many samples.",
        words=in_words(course, goal_ns, goal_name),
        standalone=standalone,
    )


def in_words(course: Course, goal_ns: int | None = None, goal_name: str = "deadline") -> str:
    """What the picture shows, in a sentence without its full stop."""
    worst = max(range(len(course.slices)), key=lambda number: course.slices[number].max_ns, default=None)
    if worst is None or not course.samples:
        return "no samples"
    words = (
        f"{course.samples:,} samples in {len(course.slices)} slices of {format_ns(course.slice_ns)}; the largest, "
        f"{format_ns(course.slices[worst].max_ns)}, {format_ns(worst * course.slice_ns)} after the begin"
    )
    if goal_ns:
        late = sum(one.max_ns > goal_ns for one in course.slices)
        words += f"; {goal_name} {format_ns(goal_ns)}, with later samples in {late} of the slices"
    return words


def _x(course: Course, at_ns: float) -> float:
    return round(LEFT + at_ns / course.length_ns * (WIDTH - LEFT - RIGHT), 1) if course.slices else LEFT


def level(samples: int) -> int:
    """Which colour: 0 for one sample, 1 from two on, then one more at each power of ten."""
    return 0 if samples == 1 else min(LEVELS - 1, len(str(samples)))


def _cells(course: Course, rows: Sequence[Sequence[tuple[int, int, int]]], y: Log) -> Iterator[Markup]:
    """A path a colour.  Neighbours of the same colour are one rectangle, which keeps the page small."""
    paths = [""] * LEVELS
    pending: dict[tuple[int, int], tuple[int, int]] = {}  # bin -> since which slice it is open, with which colour

    def close(edges: tuple[int, int], until: int) -> None:
        since, colour = pending.pop(edges)
        left, right = _x(course, since * course.slice_ns), _x(course, until * course.slice_ns)
        top, bottom = y(edges[1]), y(edges[0])
        paths[colour] += f"M{left:g} {top:g}h{right - left:.4g}v{bottom - top:.3g}H{left:g}z"

    for number, found in enumerate((*rows, ())):
        now = {(low, high): level(count) for low, high, count in found}
        for edges in [edges for edges, (_, colour) in pending.items() if now.get(edges) != colour]:
            close(edges, number)
        for edges, colour in now.items():
            pending.setdefault(edges, (number, colour))
    for colour, path in enumerate(paths):
        if path:
            yield el("path", class_=f"h{colour}", d=path)


def _time_axis(course: Course) -> Iterator[Markup]:
    bottom, seconds = HEIGHT - BOTTOM, course.length_ns / 1e9
    step = next((step for step in _STEPS_S if seconds / step < _MOST_LABELS), 86_400 * math.ceil(seconds / 604_800))
    for number in range(int(seconds / step + 1e-9) + 1):
        x = _x(course, number * step * 1e9)
        yield el("line", class_="grid", x1=str(x), x2=str(x), y1=TOP, y2=bottom)
        label_x, anchor = (WIDTH - 1, "end") if x > WIDTH - RIGHT - 14 else (x, "middle")
        yield el("text", _time(number * step, step), x=str(label_x), y=bottom + 14, text_anchor=anchor)
    yield el("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom)
    yield el("text", "time", x=str((LEFT + WIDTH - RIGHT) / 2), y=HEIGHT - 6, text_anchor="middle")


def _time(seconds: float, step: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if step >= length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _legend(rows: Sequence[Sequence[tuple[int, int, int]]]) -> Iterator[Markup]:
    top = max((level(count) for found in rows for _, _, count in found), default=0)
    yield el("text", "latency", x=2, y=TOP - 10)
    yield el("text", "samples", x=LEFT + 40, y=TOP - 22, text_anchor="end")
    for number in range(top + 1):
        x = LEFT + 48 + 52 * number
        words = "1" if number == 0 else f"{format_count(10 ** (number - 1)) if number > 1 else 2}+"
        yield el("rect", class_=f"h{number}", x=x, y=TOP - 31, width=10, height=10)
        yield el("text", words, x=x + 14, y=TOP - 22)


def heat_figure(
    course: Course,
    *,
    title: str,
    goal_ns: int | None = None,
    goal_name: str = "deadline",
    within: Extent | None = None,
) -> Markup:
    """The picture for a page, with a slider that says each slice in words; ``heat.js`` uncovers it."""
    facts = " ".join(f"{one.samples} {one.max_ns}" for one in course.slices)
    slider = el(
        "input",
        type="range",
        min=0,
        max=max(0, len(course.slices) - 1),
        value=0,
        aria_label=f"{title}: slice of time",
    )
    return el(
        "div",
        heat_svg(course, title=title, goal_ns=goal_ns, goal_name=goal_name, within=within),
        el("div", slider, el("output", "Move along the time with the slider or the arrow keys."), hidden=True),
        class_="heat",
        data_slices=facts,
        data_slice_ns=course.slice_ns,
    )


def heat_picture(panels: Sequence[Panel], *, note: str = "", goal_name: str = "deadline") -> str:
    """A file of its own: the heat maps of several places, one below the other.  ``note``: what must stand with it."""
    parts: list[Markup] = []
    top = 0
    for panel in panels:
        parts.append(el("text", panel.caption, class_="name", x=4, y=top + 14))
        drawn = heat_svg(panel.course, title=panel.caption, goal_ns=panel.goal_ns, goal_name=goal_name)
        parts.append(el("svg", drawn, y=top + _CAPTION, width=WIDTH, height=HEIGHT))
        top += HEIGHT + _CAPTION
    if note:
        parts.append(el("text", note, class_="name", x=4, y=top + 14))
        top += _CAPTION
    whole = chart(
        join(*parts),
        title="Latencies over time",
        about="One heat map a place.",
        words="; ".join(f"{panel.caption}: {in_words(panel.course, panel.goal_ns, goal_name)}" for panel in panels),
        standalone=True,
        height=max(top, _CAPTION),
    )
    return f"{whole}\n"
