"""The graph of a submission's steps as SVG, drawn here: no script, and it can be read aloud.  Pure.

Steps stand in columns, each one column after the last step that it comes after; so every line goes to the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

from evenkeel.lab.submissions import StepLine

WIDE, HIGH = 150, 46
_ACROSS, _DOWN, _EDGE = 96, 18, 8
_LETTERS = 18
#: So that a state is not told by its colour alone.
SIGNS = {
    "blocked": "◌", "ready": "○", "running": "▶", "passed": "✓", "failed": "✗", "cancelled": "⊘", "skipped": "–",
}  # fmt: skip


def drawn(lines: Sequence[StepLine]) -> Markup:
    """An ``<svg>`` with a link for each step."""
    places = _places(lines)
    width = max((x for x, _ in places.values()), default=0) + WIDE + 2 * _EDGE
    height = max((y for _, y in places.values()), default=0) + HIGH + 2 * _EDGE
    parts = [
        Markup('<svg class="graph" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">').format(
            width, height, f"{len(lines)} steps, in the order in which they come after each other"
        )
    ]
    edges = [(places[before], places[line.name], text) for line in lines for before, text in _said(line, lines)]
    parts += [_edge(start, end) for start, end, _ in edges]
    parts += [_when(start, end, text) for start, end, text in edges if text]
    parts += [_box(line, *places[line.name]) for line in lines]
    return Markup("").join([*parts, Markup("</svg>")])


def _said(line: StepLine, lines: Sequence[StepLine]) -> Iterator[tuple[str, str]]:
    """What it comes after, without what follows from the rest: such lines would cross the boxes between."""
    after = {one.name: set(one.after) for one in lines}
    further: set[str] = set()
    waiting = [name for before in line.after for name in after.get(before, ())]
    while waiting:
        name = waiting.pop()
        if name not in further:
            further.add(name)
            waiting += after.get(name, ())
    return ((before, text) for before, text in line.after.items() if text or before not in further)


def _places(lines: Sequence[StepLine]) -> dict[str, tuple[int, int]]:
    columns: dict[str, int] = {}
    todo = list(lines)
    while todo:
        rest = []
        for line in todo:
            if all(before in columns for before in line.after):
                columns[line.name] = max((columns[before] + 1 for before in line.after), default=0)
            else:
                rest.append(line)
        if len(rest) == len(todo):  # a circle; refused when it was submitted
            break
        todo = rest
    rows: dict[int, int] = {}
    places = {}
    for line in lines:
        column = columns.get(line.name, 0)
        row = rows.get(column, 0)
        rows[column] = row + 1
        places[line.name] = (_EDGE + column * (WIDE + _ACROSS), _EDGE + row * (HIGH + _DOWN))
    return places


def _edge(start: tuple[int, int], end: tuple[int, int]) -> Markup:
    x1, y1, x2, y2 = start[0] + WIDE, start[1] + HIGH // 2, end[0], end[1] + HIGH // 2
    middle = (x1 + x2) // 2
    return Markup('<path d="M{0} {1}C{2} {1} {2} {3} {4} {3}"/>').format(x1, y1, middle, y2, x2)


def _when(start: tuple[int, int], end: tuple[int, int], condition: str) -> Markup:
    """In the middle of its line: there those of one step that lead to several, or from several, stand apart."""
    x, y = (start[0] + WIDE + end[0]) // 2, (start[1] + end[1] + HIGH) // 2
    return Markup('<text class="when" x="{}" y="{}">{}<title>{}</title></text>').format(
        x, y - 5 if start[1] == end[1] else y + 4, _short(condition, 16), condition
    )


def _box(line: StepLine, x: int, y: int) -> Markup:
    return Markup(
        '<a href="/steps/{id}" class="{state}" aria-label="{name}: {state}"><rect x="{x}" y="{y}" width="{w}" '
        'height="{h}" rx="6"/><text x="{tx}" y="{t1}">{short}</text><text class="state" x="{tx}" y="{t2}">{sign} '
        "{state}</text><title>{name}: {state}. {cause}</title></a>"
    ).format(
        id=line.id, state=line.state, name=line.name, x=x, y=y, w=WIDE, h=HIGH, tx=x + 10, t1=y + 19, t2=y + 36,
        short=_short(line.name, _LETTERS), sign=SIGNS[line.state], cause=line.cause,
    )  # fmt: skip


def _short(text: str, most: int) -> Markup:
    return escape(text if len(text) <= most else text[: most - 1] + "…")
