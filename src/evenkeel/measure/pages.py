"""Turn raw pages of the kernel's ring buffer (``trace_pipe_raw``) into arrays, without Python code per event.

All pages of a batch are walked side by side: step n handles the n-th record of every page at once.  Pure: bytes and
format files in, arrays out.  Must not read tracefs; that is the probe's work.

The layout is that of ``events/header_page`` and ``events/header_event``, and of ``include/linux/ring_buffer.h``: a
record begins with 5 bits of type and 27 bits of time since the record before it.  Checked against the kernel's own
text of the same events, on 6.12 and 6.18.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evenkeel.errors import WrongInput

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_PADDING, _EXTEND, _STAMP = 29, 30, 31
#: Flags in the upper bits of ``commit``: events were lost before this page; how many stands after the data.
_MISSED, _MISSED_STORED = 1 << 31, 1 << 30
#: An absolute time stamp has 59 bits; those above are taken from the page.
_STAMP_BITS = (1 << 59) - 1
_REST = 64
#: Pages that are walked side by side.
_BATCH = 2048


@dataclass(frozen=True)
class Field:
    """One field of a record.  ``text``: an array of characters; ``located``: a ``__data_loc``, offset and length."""

    name: str
    offset: int
    size: int
    signed: bool
    text: bool = False
    located: bool = False


@dataclass(frozen=True)
class Format:
    """What a ``format`` file says: how the fields of one event lie in its record."""

    name: str
    id: int
    fields: Mapping[str, Field]


_FIELD = re.compile(r"\s*field:(?P<type>[^;]+);\s*offset:(\d+);\s*size:(\d+);(?:\s*signed:(\d);)?")


def parse_format(text: str) -> Format:
    """Read an event's ``format`` file.  Raises WrongInput for anything else."""
    name = re.search(r"^name: (\S+)$", text, re.MULTILINE)
    number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
    if not name or not number:
        raise WrongInput(f"not the format of a trace event: {text[:60]!r}")
    return Format(name[1], int(number[1]), _fields(text))


def _fields(text: str) -> dict[str, Field]:
    found = {}
    for match in _FIELD.finditer(text):
        declared, offset, size, signed = match.groups()
        kind, _, name = declared.strip().rpartition(" ")
        bare = name.partition("[")[0]
        located = kind.startswith("__data_loc")
        found[bare] = Field(
            bare,
            int(offset),
            int(size),
            signed == "1",
            text=not located and "[" in name and kind.split()[-1] == "char",
            located=located,
        )
    return found


@dataclass(frozen=True)
class PageLayout:
    """Where a page keeps its time, its fill and its records; ``size`` of the whole page in bytes."""

    commit: int
    commit_size: int
    data: int
    size: int


def parse_header_page(text: str) -> PageLayout:
    """Read ``events/header_page``.  Raises WrongInput for anything else."""
    fields = _fields(text)
    if "commit" not in fields or "data" not in fields:
        raise WrongInput(f"not the header of a trace page: {text[:60]!r}")
    data = fields["data"]
    return PageLayout(fields["commit"].offset, fields["commit"].size, data.offset, data.offset + data.size)


@dataclass(frozen=True)
class Loss:
    """Events that the ring buffer overwrote.  ``gaps``: pages before which something is missing, of ``unknown`` of
    them the kernel did not say how much.
    """

    events: int = 0
    gaps: int = 0
    unknown: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.events + other.events, self.gaps + other.gaps, self.unknown + other.unknown)


@dataclass(frozen=True)
class Records:
    """All records of one CPU in the order of time: parallel arrays.

    ``at``: time in units of the trace clock; ``kind``: the event's number; ``start``: where the record's fields begin
    in ``data``.
    """

    cpu: int
    data: Bytes
    at: Ints
    kind: Ints
    start: Ints
    loss: Loss

    def __len__(self) -> int:
        return len(self.at)

    def of(self, form: Format) -> Rows:
        """The records of one event."""
        return Rows(form, self, np.flatnonzero(self.kind == form.id))


@dataclass(frozen=True)
class Rows:
    """Records of one event.  ``index``: their places among all records of the CPU."""

    form: Format
    records: Records
    index: Ints

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def at(self) -> Ints:
        return self.records.at[self.index]

    def ints(self, name: str) -> Ints:
        """A field of whole numbers, of 1 to 8 bytes.  Raises KeyError when the event has no such field."""
        field = self.form.fields[name]
        return _ints(self.records.data, self.records.start[self.index] + field.offset, field.size, field.signed)

    def texts(self, name: str) -> list[str]:
        """A field of text.  The only thing here that costs Python code per event: ask for few rows."""
        field, start = self.form.fields[name], self.records.start[self.index]
        if field.located:
            place = _ints(self.records.data, start + field.offset, 4, False)
            begin, length = start + (place & 0xFFFF), place >> 16
        else:
            # A text of size 0 takes the rest of its record, as that of a mark does.
            begin, length = start + field.offset, np.full(len(start), field.size or _REST, np.int64)
        raw = self.records.data
        return [
            bytes(raw[at : at + size]).partition(b"\0")[0].decode(errors="replace")
            for at, size in zip(begin.tolist(), length.tolist(), strict=True)
        ]

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        return Rows(self.form, self.records, self.index[chosen])


def _ints(data: Bytes, begin: Ints, size: int, signed: bool) -> Ints:
    """Little-endian numbers that lie anywhere."""
    if not len(begin):
        return np.zeros(0, np.int64)
    raw = data[begin[:, None] + np.arange(size)]
    return np.ascontiguousarray(raw).view(f"<{'i' if signed else 'u'}{size}")[:, 0].astype(np.int64)


def decode(raw: bytes, layout: PageLayout, cpu: int = 0) -> Records:
    """Decode whole pages as ``trace_pipe_raw`` of one CPU gave them, one after the other.

    Raises WrongInput when a page is cut off, or a record reaches beyond its page.
    """
    if len(raw) % layout.size:
        raise WrongInput(f"CPU {cpu}: {len(raw)} bytes are no whole number of trace pages of {layout.size} bytes")
    data: Bytes = np.frombuffer(raw, np.uint8)
    parts = list(_walk(data, layout, cpu))
    at, kind, start = (
        np.concatenate([part[n] for part in parts]) if parts else np.zeros(0, np.int64) for n in range(3)
    )
    return Records(cpu, data, at, kind, start, _loss(data, layout))


def _commits(data: Bytes, layout: PageLayout) -> tuple[Ints, Ints]:
    """Begin of each page, and its commit field with the flags."""
    pages = np.arange(0, len(data), layout.size, dtype=np.int64)
    return pages, _ints(data, pages + layout.commit, min(4, layout.commit_size), False)


def _loss(data: Bytes, layout: PageLayout) -> Loss:
    pages, commit = _commits(data, layout)
    missed, stored = (commit & _MISSED) != 0, (commit & _MISSED_STORED) != 0
    fill = commit & (_MISSED_STORED - 1)
    both = missed & stored & (layout.data + fill + 8 <= layout.size)
    events = int(_ints(data, pages[both] + layout.data + fill[both], 8, False).sum())
    return Loss(events, int(missed.sum()), int((missed & ~both).sum()))


def _walk(data: Bytes, layout: PageLayout, cpu: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    pages, commit = _commits(data, layout)
    fill = commit & (_MISSED_STORED - 1)
    if (fill > layout.size - layout.data).any():
        raise WrongInput(f"CPU {cpu}: a trace page says that it holds more than a page")
    for first in range(0, len(pages), _BATCH):
        batch = slice(first, first + _BATCH)
        yield _walk_batch(data, pages[batch], fill[batch], layout, cpu)


def _walk_batch(data: Bytes, pages: Ints, fill: Ints, layout: PageLayout, cpu: int) -> tuple[Ints, Ints, Ints]:
    """Records of pages side by side, in the order of pages and, in a page, of records."""
    begin = pages + layout.data
    end = begin + fill
    now = _ints(data, pages, 8, False)
    high = now & ~np.int64(_STAMP_BITS)
    active = np.flatnonzero(begin < end)
    position = begin.copy()
    found: list[tuple[Ints, Ints, Ints]] = []  # page, time, begin of the fields
    while len(active):
        here = position[active]
        head = _ints(data, here, 4, False)
        kind, delta = head & 31, head >> 5
        # The second word: a length, or the upper bits of a time.  A record of one word may end the page.
        two = np.minimum(here + 4, len(data) - 4)
        word = _ints(data, two, 4, False)
        long = kind == 0
        length = np.where(long, 4 + word, 4 + 4 * kind)
        length[kind == _PADDING] = 4 + word[kind == _PADDING]
        length[kind >= _EXTEND] = 8
        finished = (kind == _PADDING) & (delta == 0)  # the rest of the page is empty
        time = now[active] + np.where(kind == _EXTEND, delta + (word << 27), delta)
        stamped = kind == _STAMP
        time[stamped] = high[active][stamped] | (delta + (word << 27))[stamped]
        now[active] = time
        event = kind < _PADDING
        found.append((active[event], time[event], (here + np.where(long, 8, 4))[event]))
        reached = here + length
        wrong = ~finished & ((reached > end[active]) | (length < 8))
        if wrong.any():
            raise WrongInput(f"CPU {cpu}: a trace page is damaged: a record reaches beyond its end")
        position[active] = reached
        active = active[~finished & (reached < end[active])]
    if not found:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    page, at, start = (np.concatenate([part[n] for part in found]) for n in range(3))
    order = np.lexsort((start, page))
    at, start = at[order], start[order]
    return at, _ints(data, start, 2, False), start
