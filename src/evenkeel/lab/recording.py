"""Recordings of consoles: asciicast 2 files with time stamps, an index beside each, and marks where something happened.

``asciinema play FILE`` replays one.  Written line by line, so that a killed service loses nothing that was shown; what
people type is not recorded, for it may be a password.  Knows bytes and files; knows no machines and no permissions.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from evenkeel.documents.base import Model

COLUMNS, ROWS = 80, 24
#: A file that is longer or older than this is ended, and another begun.
_LONGEST = 16 << 20
_OLDEST_NS = 24 * 3600 * 10**9
#: Bytes of a recording between two lines of its index.
_INDEX_EVERY = 1 << 16


class Recorded(Model):
    """One file.  ``name`` is enough to fetch it; ``marks``: what was seen in it, and when."""

    name: str
    begin_ns: int
    size: int
    marks: tuple[tuple[int, str], ...] = ()


class Recorder:
    """Appends to the newest recording in ``folder``, which is made when the first byte comes."""

    def __init__(self, folder: Path, title: str, clock: Callable[[], int]) -> None:
        self._folder = folder
        self._title = title
        self._clock = clock
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._out: IO[bytes] | None = None
        self._index: IO[str] | None = None
        self._begin_ns = self._last_ns = 0
        self._size = self._indexed = 0

    def output(self, data: bytes) -> None:
        if text := self._decoder.decode(data):
            self._write("o", text)

    def mark(self, label: str) -> None:
        """Something that was seen or done: ``panic``, ``writer ann``."""
        self._write("m", label)
        assert self._index
        self._index.write(f"{self._last_ns} {self._size} {label}\n")
        self._index.flush()

    def resize(self, columns: int, rows: int) -> None:
        self._write("r", f"{columns}x{rows}")

    def close(self) -> None:
        for file in (self._out, self._index):
            if file is not None:
                file.close()
        self._out = self._index = None

    def _write(self, kind: str, text: str) -> None:
        now_ns = max(self._clock(), self._last_ns)  # a clock that is set back does not turn a recording round
        if self._out is None or self._size > _LONGEST or now_ns - self._begin_ns > _OLDEST_NS:
            self._begin(now_ns)
        self._last_ns = now_ns
        assert self._out and self._index
        if self._size - self._indexed > _INDEX_EVERY:
            self._indexed = self._size
            self._index.write(f"{now_ns} {self._size}\n")
            self._index.flush()
        line = json.dumps([round((now_ns - self._begin_ns) / 1e9, 6), kind, text], ensure_ascii=False).encode() + b"\n"
        self._out.write(line)
        self._size += len(line)

    def _begin(self, now_ns: int) -> None:
        self.close()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while (path := self._folder / f"{now_ns}.cast").exists():
            now_ns += 1
        header = {"version": 2, "width": COLUMNS, "height": ROWS, "timestamp": now_ns // 10**9, "title": self._title}
        first = json.dumps(header).encode() + b"\n"
        self._out = path.open("xb", buffering=0)
        self._out.write(first)
        self._index = path.with_suffix(".idx").open("x", encoding="utf-8")
        self._begin_ns = self._last_ns = now_ns
        self._size, self._indexed = len(first), 0


def listing(folder: Path) -> list[Recorded]:
    """Newest first."""
    found = []
    for path in folder.glob("*.cast"):
        if path.stem.isdecimal():
            marks = tuple((at, label) for at, _, label in _indexed(path) if label)
            found.append(Recorded(name=path.name, begin_ns=int(path.stem), size=path.stat().st_size, marks=marks))
    return sorted(found, key=lambda recorded: recorded.begin_ns, reverse=True)


def since(folder: Path, from_ns: int) -> Iterator[tuple[int, str, str]]:
    """Time (ns), kind (``o``, ``m``, ``r``) and text of all that was recorded from then on, oldest first."""
    begins = sorted(int(path.stem) for path in folder.glob("*.cast") if path.stem.isdecimal())
    first = max((begin for begin in begins if begin <= from_ns), default=0)
    for begin in (begin for begin in begins if begin >= first):
        path = folder / f"{begin}.cast"
        with path.open("rb") as lines:
            lines.seek(max((offset for at, offset, _ in _indexed(path) if at < from_ns), default=0))
            for line in lines:
                event = _event(line)
                if event is not None and (at_ns := begin + round(event[0] * 1e9)) >= from_ns:
                    yield at_ns, str(event[1]), str(event[2])


def prune(folder: Path, before_ns: int) -> int:
    """Delete recordings that ended before then; returns how many.  The newest is always kept."""
    gone = [one for later, one in pairwise(listing(folder)) if later.begin_ns < before_ns]
    for one in gone:
        (folder / one.name).unlink(missing_ok=True)
        (folder / one.name).with_suffix(".idx").unlink(missing_ok=True)
    return len(gone)


def _event(line: bytes) -> list[Any] | None:
    """None for the header, and for a line that a crash cut off."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, list) and len(event) == 3 else None


def _indexed(path: Path) -> Iterator[tuple[int, int, str]]:
    try:
        text = path.with_suffix(".idx").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        at, _, rest = line.partition(" ")
        offset, _, label = rest.partition(" ")
        if at.isdecimal() and offset.isdecimal():
            yield int(at), int(offset), label
