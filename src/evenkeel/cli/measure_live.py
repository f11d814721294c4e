"""The live view of `evenkeel measure --live`: how each place on host and guests stands, redrawn as the probe tells it.

Draws on stderr, and is gone afterwards: stdout is for the result.  Decides nothing.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evenkeel.cli import output as screen

if TYPE_CHECKING:
    from rich.table import Table

    from evenkeel.machines.protocol import OnProgress

#: Lines of ``together`` of the probe: how a place stands, and which guest cannot be seen, and why.
_LINE = re.compile(r"(.+): (\d+) samples, min (\d+), now (\d+), mean (\d+), max (\d+) us\Z")
_UNSEEN = re.compile(r"(guest .+): not seen live: (.+)\Z")
_BARS = "▁▂▃▄▅▆▇█"
#: Seconds of the past that a row shows.
WIDTH = 40


class Standing:
    """What is shown: one row a place, with its last seconds as bars."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.what = ""
        self._rows: dict[str, tuple[str, ...]] = {}
        self._past: dict[str, deque[int]] = {}
        self._unseen: dict[str, str] = {}

    def hear(self, done: int, total: int, what: str) -> bool:
        """Take one message of the probe; True when there is something new to draw."""
        words, *lines = what.split(" | ")
        share = f" {100 * done // total} %" if total else ""
        changed = (told := f"{words}{share}") != self.what
        self.what = told
        for line in lines:
            if refused := _UNSEEN.match(line):
                changed |= self._unseen.get(refused[1]) != refused[2]
                self._unseen[refused[1]] = refused[2]
            match = _LINE.match(line)
            if not match:
                continue
            place, *numbers = match.groups()
            if self._rows.get(place) != tuple(numbers):
                self._rows[place] = tuple(numbers)
                self._past.setdefault(place, deque(maxlen=WIDTH)).append(int(numbers[2]))
                changed = True
        return changed

    def table(self) -> Table:
        columns = ("where", "samples", "min", "now", "mean", "max", "")
        rows = [
            (place, f"{int(row[0]):,}", *(f"{int(number):,} us" for number in row[1:]), bars(self._past[place]))
            for place, row in self._rows.items()
        ]
        shown = screen.table(columns, rows, title=f"{self.title}: {self.what}", right=columns[1:6])
        unseen = [f"{guest} cannot be seen live: {why}" for guest, why in sorted(self._unseen.items())]
        shown.caption = "\n".join(unseen) or None
        shown.caption_justify = "left"
        return shown


def bars(values: deque[int]) -> str:
    """The larger, the higher; the largest of those shown fills its line."""
    most = max(values, default=0)
    return "".join(_BARS[min(len(_BARS) - 1, value * len(_BARS) // (most + 1))] for value in values)


@contextmanager
def watching(title: str, *, live: bool) -> Iterator[OnProgress]:
    """A table that is redrawn, on a terminal when ``live``; otherwise the usual progress."""
    console = screen.err()
    if not (live and console.is_terminal):
        with screen.progress(title) as on_progress:
            yield on_progress
        return
    from rich.live import Live

    standing = Standing(title)
    with Live(standing.table(), console=console, transient=True, auto_refresh=False) as display:

        def on_progress(done: int, total: int, what: str) -> None:
            if standing.hear(done, total, what):
                display.update(standing.table(), refresh=True)

        yield on_progress
    screen.note(f"✓ {title}")
