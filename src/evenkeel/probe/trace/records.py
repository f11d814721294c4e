"""Every event as a record, read while they come, without Python code for each: by slices of a ring, or by whole pages.

The ring is sized from the rate and the longest time for which the reader may be kept from its CPU; the reader sleeps
between its looks, at a real-time priority, so that it is not kept long.  What found no place is counted by the program
itself.  Must not decode: that is done where the answer is wanted (`evenkeel.measure.trace.records`).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import struct
from typing import Iterator, Sequence

from evenkeel.probe import recording
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.sample import numbers
from evenkeel.probe.trace import sources, tracefs
from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R4, R10
from evenkeel.probe.trace.bpf import HELPERS, RINGBUF, Map
from evenkeel.probe.trace.templates import LOST, Select, Value, begin, bump, end

#: Between two looks of the reader.  Each look at pages takes one of each CPU that has anything, full or not.
LOOK_S, LOOK_AT_PAGES_S = 0.002, 0.03
#: A reader on a busy machine was kept from its CPU for tens of milliseconds (measured); at FIFO for less.
GAP_S = 0.1
PRIORITY = 5
#: Memory of a ring.  The rate is counted beforehand, and what is watched may begin only later: hence the least.
LEAST, MOST = 16 << 20, 256 << 20
#: What is kept of an answer until it is fetched, unless the question says otherwise: 6.7 million records.
KEPT = 256 << 20
#: Offset of the byte of a record's length that has the kernel's flag "somebody is still writing it".
_FLAGS = 3
#: Nanoseconds of the monotonic clock, thread, process, the value that was asked for, CPU, nothing.
RECORD = struct.Struct("=QIIQII")
#: In the ring each record has eight bytes in front: its length with two flags, and where it is.
RECORD_STRIDE = RECORD.size + 8
_NO_WAKEUP = 1


def processes() -> dict[int, int]:
    """Thread -> process, of all that are there now.  The kernel's own records lack the process."""
    return {thread: process for process in numbers("/proc") for thread in numbers("/proc/%d/task" % process)}


def ring(size: int) -> Map:
    """``size``: bytes, a power of two and whole pages."""
    return Map(RINGBUF, 0, 0, size)


def record(numbers: Map, ring: Map, value: Value, select: Select) -> bytes:
    """Write the event to the ring; one that has no place there is a lost event.  Nobody is woken: the reader looks.

    What is written is not counted here: the ring's own position says it.
    """
    at = -40
    asm = begin(select)
    asm.call(HELPERS["get_current_pid_tgid"])
    asm.store(8, R10, at + 8, R0)
    asm.call(HELPERS["get_smp_processor_id"])
    asm.store(4, R10, at + 24, R0)
    asm.store(4, R10, at + 28, 0)
    value.emit(asm, R0)
    asm.store(8, R10, at + 16, R0)
    asm.call(HELPERS["ktime_get_ns"])
    asm.store(8, R10, at, R0)
    asm.map(R1, ring.fd)
    asm.stack(R2, at)
    asm.mov(R3, RECORD.size)
    asm.mov(R4, _NO_WAKEUP)
    asm.call(HELPERS["ringbuf_output"])
    asm.jump_if(R0, "==", 0, "out")
    bump(asm, numbers, LOST)
    return end(asm)


def ring_bytes(rate_per_s: float, least: int = LEAST) -> int:
    """The size of a ring that is not full after :data:`GAP_S` without a reader: a power of two."""
    size = least
    while size < min(rate_per_s * GAP_S * RECORD_STRIDE, MOST):
        size *= 2
    return size


@contextlib.contextmanager
def real_time() -> Iterator[int | None]:
    """Run this thread at FIFO, its children not.  Gives None, or the errno where it was refused: then as before."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    refused = None
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError as error:
        refused = error.errno
    try:
        yield refused
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, before[0], before[1])


class Ring:
    """A BPF ring buffer, mapped, and its reader.  Records are :data:`RECORD_STRIDE` bytes."""

    def __init__(self, size: int) -> None:
        """``size``: bytes, a power of two and whole pages.

        Raises OSError, and StepFailed where the order of memory is not that of x86.
        """
        if platform.machine() != "x86_64":
            raise StepFailed("Python has no load-acquire for %s" % platform.machine(), errno.EOPNOTSUPP)
        self.size = size
        self.map = ring(size)
        page = mmap.PAGESIZE
        try:
            # The consumer's position is ours to write; the producer's page and the data are not.  The data is there
            # twice, one behind the other, so that what runs over the end is read in one piece.
            self._ours = mmap.mmap(self.map.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
            self._theirs = mmap.mmap(self.map.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError:
            self.map.close()
            raise
        # A cast view loads and stores eight bytes at once, struct.pack_into() one after the other.
        self._consumer, self._producer = memoryview(self._ours).cast("Q"), memoryview(self._theirs).cast("Q")

    def read(self) -> bytes:
        """What came since the last time: whole records, in the order of the ring."""
        begin, end = self._consumer[0], self._producer[0]
        if begin == end:
            return b""
        at = mmap.PAGESIZE + (begin & (self.size - 1))
        # Flags first, then the data: what is written by now stays as it is.
        flags = self._theirs[at + _FLAGS : at + (end - begin) : RECORD_STRIDE]
        written = len(flags) - len(flags.lstrip(b"\0"))  # the rest is read when it is written
        found = self._theirs[at : at + written * RECORD_STRIDE]
        self._consumer[0] = begin + len(found)
        return found

    def written(self) -> int:
        """Records that found a place, also those that are not read yet."""
        return self._producer[0] // RECORD_STRIDE

    def close(self) -> None:
        self._consumer.release()
        self._producer.release()
        self._ours.close()
        self._theirs.close()
        self.map.close()


class Pages(sources.Ring):
    """Records of the kernel's own making, in a trace buffer of our own; pages of it are read whole."""

    def __init__(self, event: str, cpus: Sequence[int] | None, process: int | None, size: int, kept: int) -> None:
        """``size``: bytes of the buffers of all CPUs together.  Raises StepFailed."""
        super().__init__(
            event, cpus, process, buffer_kb=max(64, size // 1024 // len(os.sched_getaffinity(0))), clock="mono"
        )
        try:
            self.rings = recording.Rings(self.path, kept)
        except OSError as error:
            super().close()
            raise sources.refused(error, "cannot read a trace buffer") from None

    def enable(self) -> None:
        """Without this process: it reads, and to record its reads would never end.  Raises OSError, StepFailed."""
        place, condition = tracefs.event_folder(self.event) + "/filter", "common_pid != %d" % os.getpid()
        self._instance.set(place, condition)
        if self._instance.get(place).strip() != condition:
            raise StepFailed("the kernel did not take the filter %r" % condition, errno.EINVAL)
        super().enable()

    def mechanism(self) -> str:
        return super().mechanism() + ", without process %d, the reader" % os.getpid()

    def lost(self) -> int:
        """Overwritten before they were read, or without a place."""
        stats = self.stats()
        return stats["overrun"] + stats["dropped"]

    def total(self) -> int:
        return super().total() - self.lost()

    def close(self) -> None:
        self.rings.close()
        super().close()
