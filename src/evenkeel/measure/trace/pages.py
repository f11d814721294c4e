"""Raw pages of a trace buffer (``trace_pipe_raw``): every record of thousands of pages at once, by numpy.

A page is a chain: where a record begins is known only from the one before it.  So all pages are walked side by side,
the first record of each, then the second, and Python runs once a step and not once a record.
Layout: include/linux/ring_buffer.h and ``events/header_page`` of tracefs, for 64-bit little-endian kernels.
Must not know what is in a record; that is in the event's format file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = 4096
_HEAD = 16  # the time of the page, and how much of it is used
_USED, _MISSED = 0xFFFFF, 1 << 31
_PADDING, _EXTEND, _STAMP = 29, 30, 31


class Records(NamedTuple):
    """One entry a record: its time, and ``place``, where it begins in the pages that were given."""

    time_ns: NDArray[np.uint64]
    place: NDArray[np.int64]
    length: NDArray[np.int64]
    pages_with_loss: int

    def field(self, pages: bytes, offset: int, kind: str) -> NDArray[Any]:
        """Numbers (numpy's ``u4``, ``i4``, ``u8``) at ``offset`` of every record, as its format file says."""
        size = np.dtype(kind).itemsize
        raw = np.frombuffer(pages, np.uint8)
        where = (self.place + offset)[:, None] + np.arange(size)
        found: NDArray[Any] = raw[where].reshape(-1).view(kind)
        return found


def walk(pages: bytes) -> Records:
    """All records, page by page.  Raises ValueError for what is not whole pages."""
    if len(pages) % PAGE:
        raise ValueError(f"{len(pages)} bytes are not whole pages")
    count = len(pages) // PAGE
    words = np.frombuffer(pages, np.uint32).reshape(count, PAGE // 4)
    heads = np.frombuffer(pages, np.uint64).reshape(count, PAGE // 8)
    times = heads[:, 0].copy()
    used = np.minimum((heads[:, 1] & _USED).astype(np.int64), PAGE - _HEAD)
    cursor = np.zeros(count, np.int64)
    found: list[tuple[NDArray[Any], ...]] = []
    alive = np.flatnonzero(used > 0)
    while len(alive):
        at = (cursor[alive] + _HEAD) // 4
        word = words[alive, at]
        first = words[alive, np.minimum(at + 1, PAGE // 4 - 1)].astype(np.int64)
        kind, delta = word & 31, (word >> 5).astype(np.uint64)
        long = first.astype(np.uint64) << np.uint64(27)
        stamp = kind == _STAMP
        times[alive] = np.where(
            stamp, delta | long, times[alive] + delta + np.where(kind == _EXTEND, long, np.uint64(0))
        )
        is_data = kind < _PADDING
        large = kind == 0
        data = np.where(large, first - 4, kind.astype(np.int64) * 4)
        step = np.select([kind >= _EXTEND, kind == _PADDING, large], [8, first + 4, first + 4], data + 4)
        begin = alive * PAGE + _HEAD + cursor[alive] + np.where(large, 8, 4)
        found.append((times[alive][is_data], begin[is_data], data[is_data], alive[is_data]))
        cursor[alive] += np.maximum(step, 4) // 4 * 4
        over = (cursor[alive] >= used[alive]) | ((kind == _PADDING) & (delta == 0))  # nothing but padding follows
        alive = alive[~over]
    loss = int(np.count_nonzero(heads[:, 1] & _MISSED))
    if not found:
        nothing = np.zeros(0, np.int64)
        return Records(nothing.astype(np.uint64), nothing, nothing, loss)
    time_ns, place, length, page = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(page, kind="stable")  # within a page they are in order already
    return Records(time_ns[order], place[order], length[order], loss)


def read_pages(path: str, most: int = 2048) -> bytes:
    """What ``trace_pipe_raw`` has now, up to so many pages; a page that is not full yet is filled up with zeros.

    By read(2): Python's mmap refuses this file, whose size is 0.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found: list[bytes] = []
    try:
        while len(found) < most:
            try:
                page = os.read(descriptor, PAGE)
            except BlockingIOError:
                break
            if not page:
                break
            found.append(page.ljust(PAGE, b"\0"))
    finally:
        os.close(descriptor)
    return b"".join(found)
