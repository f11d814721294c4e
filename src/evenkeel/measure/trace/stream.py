"""Every event of this machine as an array: a BPF ring buffer that is read by numpy, with no Python code an event.

The ring is sized from the rate and the longest time for which the reader may be kept from its CPU; the reader sleeps
between its looks, at a real-time priority, so that it is not kept long.  What found no place is counted by the program
itself.  Only for the machine that this runs on: what comes from far away is aggregated there, by the probe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.probe.trace import templates
from evenkeel.probe.trace.sources import Hook

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: As :data:`templates.RECORD`, with the eight bytes in front of it in the ring.
STRIDE = np.dtype(
    [
        ("length", "u4"),
        ("page", "u4"),
        ("time_ns", "u8"),
        ("thread", "u4"),
        ("process", "u4"),
        ("value", "u8"),
        ("cpu", "u4"),
        ("nothing", "u4"),
    ]
)
FIELDS = ["time_ns", "thread", "process", "value", "cpu"]
#: Bits of the length: somebody is still writing it; it was given up.
_BUSY, _DISCARDED = 1 << 31, 1 << 30
#: Between two looks of the reader.
LOOK_S = 0.002
#: A reader on a busy machine was kept from its CPU for tens of milliseconds (measured); at FIFO for less.
GAP_S = 0.1
PRIORITY = 5
_LEAST, _MOST = 1 << 16, 1 << 28


def ring_bytes(rate_per_s: float, gap_s: float = GAP_S) -> int:
    """The size of a ring that is not full after ``gap_s`` without a reader: a power of two, 64 KiB to 256 MiB."""
    wanted = rate_per_s * gap_s * templates.RECORD_STRIDE
    size = _LEAST
    while size < min(wanted, _MOST):
        size *= 2
    return size


class Stream:
    """A ring, the program that fills it, and the reader.  Close it."""

    def __init__(self, hook: Hook, value: templates.Value, size: int) -> None:
        """``hook``: where it happens, not loaded yet; ``value``: one number of each event.

        Raises StepFailed with the verifier's words, WrongInput where the order of memory is not that of x86.
        """
        if platform.machine() != "x86_64":
            raise WrongInput("a ring is read on x86 only: Python has no load-acquire for other processors")
        self._stack = contextlib.ExitStack()
        self._size = size
        try:
            self._numbers = templates.statistics()
            self._stack.callback(self._numbers.close)
            ring = templates.ring(size)
            self._stack.callback(ring.close)
            # The consumer's position is ours to write; the producer's page and the data are not.  The data is there
            # twice, one behind the other, so that what runs over the end can be read in one piece.
            page = mmap.PAGESIZE
            self._ours = mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
            self._theirs = mmap.mmap(ring.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
            self._consumer: NDArray[np.uint64] = np.frombuffer(self._ours, np.uint64, 1)
            self._producer: NDArray[np.uint64] = np.frombuffer(self._theirs, np.uint64, 1)
            self._page = page
            self._hook = hook
            self._stack.callback(hook.close)
            hook.load(templates.record(self._numbers, ring, value, hook.select), f"the stream of {hook.event}")
        except BaseException:
            self._stack.close()
            raise

    def start(self) -> None:
        self._hook.attach()

    def stop(self) -> None:
        """No more events; what is in the ring can still be read."""
        self._hook.detach()

    def read(self) -> NDArray[Any]:
        """What came since the last time, as a structured array of :data:`FIELDS`; a copy, in the order of the ring."""
        begin, end = int(self._consumer[0]), int(self._producer[0])
        count = (end - begin) // STRIDE.itemsize
        if not count:
            return np.empty(0, STRIDE)[FIELDS]
        view = np.frombuffer(self._theirs, STRIDE, count, self._page + (begin & (self._size - 1)))
        busy = np.flatnonzero(view["length"] & _BUSY)
        if len(busy):
            count = int(busy[0])  # the rest is read when it is written
        found: NDArray[Any] = view[:count].copy()
        self._consumer[0] = begin + count * STRIDE.itemsize
        kept: NDArray[Any] = found[(found["length"] & _DISCARDED) == 0][FIELDS]
        return kept

    def events(self) -> int:
        """Written to the ring, as the program counted them."""
        return templates.total(self._numbers, templates.EVENTS)

    def lost(self) -> int:
        """Without a place in the ring, or left out because the program ran already on that CPU."""
        missed = self._hook.program.runs()[2] if self._hook.program else 0
        return templates.total(self._numbers, templates.LOST) + missed

    def close(self) -> None:
        del self._consumer, self._producer
        self._stack.close()
        with contextlib.suppress(BufferError):  # an array of the caller still looks into it
            self._ours.close()
            self._theirs.close()


@contextlib.contextmanager
def real_time() -> Iterator[None]:
    """Run this thread at FIFO, its children not; as before where that is refused, which makes losses likelier."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, before[0], before[1])


def consume(stream: Stream, take: Callable[[NDArray[Any]], None], seconds: float) -> None:
    """Give everything that comes within ``seconds`` to ``take``, batch by batch, and then what is left in the ring.

    Raises EvenkeelError when the ring is not empty after its program was taken off: somebody else writes to it.
    """
    with real_time():
        stream.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            batch = stream.read()
            if len(batch):
                take(batch)
            time.sleep(LOOK_S)
        stream.stop()
    deadline = time.monotonic() + 5.0
    while len(batch := stream.read()):
        take(batch)
        if time.monotonic() > deadline:
            raise EvenkeelError("the ring does not become empty")
