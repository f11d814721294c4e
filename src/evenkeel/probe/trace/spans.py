"""How long from one event to another: the two programs, their maps, and what comes out of them.

Must not load or attach anything.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R4, R7, R8, R9, R10, Assembler, Reg
from evenkeel.probe.trace.bpf import HASH, HELPERS, PERCPU_ARRAY, PERCPU_HASH, Map, possible_cpus
from evenkeel.probe.trace.templates import (
    COMM_BYTES,
    EVENTS,
    LOST,
    STARTS,
    UNMATCHED,
    Select,
    Text,
    Value,
    begin,
    bump,
    command,
    end,
    insert,
    lookup,
    lookup_first,
    most_rows,
)

#: Histograms are log-linear: 64 buckets for each power of two, so a bucket is at most 1/64 of its value wide.
SUB_BITS = 6
_TOP_BIT = 40
#: 36 minutes; what is as long or longer is only counted, behind the last bucket.
LIMIT_NS = 1 << (_TOP_BIT + 1)
BUCKETS = (_TOP_BIT - SUB_BITS + 2) << SUB_BITS
_OPEN = 16384


def histogram() -> Map:
    """One value a CPU: the sum in nanoseconds, :data:`BUCKETS` counts, and that of what is longer."""
    return Map(PERCPU_ARRAY, 4, 8 * (1 + BUCKETS + 1), 1)


def open_spans() -> Map:
    """Key -> when it began."""
    return Map(HASH, 8, 8, _OPEN)


def durations() -> Map:
    """Thread -> count, sum and longest in nanoseconds (8 bytes each), and its name (16)."""
    each = 8 * 3 + COMM_BYTES
    return Map(PERCPU_HASH, 8, each, most_rows(each * possible_cpus() + 72))


def bucket_edges(index: int) -> tuple[int, int]:
    """[low, high) in nanoseconds of a bucket."""
    if index < 1 << SUB_BITS:
        return index, index + 1
    shift = (index >> SUB_BITS) - 1
    low = ((index & (1 << SUB_BITS) - 1) | 1 << SUB_BITS) << shift
    return low, low + (1 << shift)


def begin_span(numbers: Map, spans: Map, key: Value, select: Select) -> bytes:
    """Remember when it began.  A second beginning of the same key takes the place of the first."""
    at_key, at_time = -16, -24
    asm = begin(select)
    key.emit(asm, R0)
    asm.store(8, R10, at_key, R0)
    asm.call(HELPERS["ktime_get_ns"])
    _stamp(asm, spans, at_key, at_time)
    asm.jump_if(R0, "==", 0, "began")
    bump(asm, numbers, LOST)
    asm.label("began")
    bump(asm, numbers, STARTS)
    return end(asm)


class Void(NamedTuple):
    """What ends a span without its counting: ``key`` of a thread that is left behind in ``state``, runnable.

    A thread that is woken just before it would have slept goes on running; its stamp would wait for the next time
    that it is pre-empted and comes back, and look like a wake-up of milliseconds.
    """

    key: Value
    state: Value


def end_span(
    numbers: Map,
    spans: Map,
    spread: Map,
    key: Value,
    select: Select,
    *,
    rows: Map | None = None,
    name: Text | None = None,
    void: Void | None = None,
    row_key: Value | None = None,
    restart: bool = False,
) -> bytes:
    """Put the time since the beginning of the same key into the histogram, and by ``row_key`` into ``rows``.

    ``restart``: the end of one is the beginning of the next.
    """
    at_key, at_void, at_time = -16, -24, -24
    asm = begin(select)
    if void is not None:
        void.state.emit(asm, R0)
        asm.alu("and", R0, 0xFF)
        asm.jump_if(R0, "!=", 0, "not void")
        void.key.emit(asm, R0)
        asm.store(8, R10, at_void, R0)
        asm.map(R1, spans.fd)
        asm.stack(R2, at_void)
        asm.call(HELPERS["map_delete_elem"])
        asm.label("not void")
    key.emit(asm, R0)
    asm.store(8, R10, at_key, R0)
    lookup(asm, spans, at_key)
    asm.jump_if(R0, "!=", 0, "known")
    bump(asm, numbers, UNMATCHED)
    if restart:
        asm.call(HELPERS["ktime_get_ns"])
        _stamp(asm, spans, at_key, at_time)
    asm.jump("out")
    asm.label("known")
    asm.load(8, R7, R0, 0)
    asm.call(HELPERS["ktime_get_ns"])
    if restart:
        asm.store(8, R10, at_time, R0)
    asm.alu("sub", R0, R7)
    asm.mov(R7, R0)
    asm.jump_if(R7, "s>=", 0, "forwards")
    asm.mov(R7, 0)
    asm.label("forwards")
    if restart:
        asm.load(8, R0, R10, at_time)
        _stamp(asm, spans, at_key, at_time)
    else:
        asm.map(R1, spans.fd)
        asm.stack(R2, at_key)
        asm.call(HELPERS["map_delete_elem"])
    _into_histogram(asm, spread, R7, R8)
    bump(asm, numbers, EVENTS)
    if rows is not None:
        if row_key is not None:
            row_key.emit(asm, R0)
            asm.store(8, R10, at_key, R0)
        _into_rows(asm, numbers, rows, at_key, R7, name)
    return end(asm)


def _stamp(asm: Assembler, spans: Map, at_key: int, at_time: int) -> None:
    """Remember R0 as the beginning of the key on the stack."""
    asm.store(8, R10, at_time, R0)
    asm.map(R1, spans.fd)
    asm.stack(R2, at_key)
    asm.stack(R3, at_time)
    asm.mov(R4, 0)
    asm.call(HELPERS["map_update_elem"])


def _into_histogram(asm: Assembler, spread: Map, value: Reg, scratch: Reg) -> None:
    """One more in the bucket of ``value``, and the value to the sum.  Uses R9 and the stack at -4."""
    lookup_first(asm, spread)
    asm.jump_if(R0, "==", 0, "out")
    asm.add_atomic(8, R0, 0, value)
    # The highest bit of the value, by halves.
    asm.mov(scratch, value)
    asm.mov(R9, 0)
    for bits in (32, 16, 8, 4, 2, 1):
        lower = asm.fresh("lower")
        asm.mov(R1, scratch)
        asm.alu("rsh", R1, bits)
        asm.jump_if(R1, "==", 0, lower)
        asm.mov(scratch, R1)
        asm.alu("add", R9, bits)
        asm.label(lower)
    small, beyond, found = asm.fresh("small"), asm.fresh("beyond"), asm.fresh("found")
    asm.jump_if(R9, "<", SUB_BITS, small)
    asm.jump_if(R9, ">", _TOP_BIT, beyond)
    asm.alu("sub", R9, SUB_BITS)
    asm.mov(R1, value)
    asm.alu("rsh", R1, R9)
    asm.alu("and", R1, (1 << SUB_BITS) - 1)
    asm.alu("add", R9, 1)
    asm.alu("lsh", R9, SUB_BITS)
    asm.alu("add", R1, R9)
    asm.jump(found)
    asm.label(beyond)
    asm.mov(R1, BUCKETS)
    asm.jump(found)
    asm.label(small)
    asm.mov(R1, value)
    asm.label(found)
    asm.jump_if(R1, ">", BUCKETS, "out")  # it cannot be; the verifier wants to see it
    asm.alu("lsh", R1, 3)
    asm.alu("add", R0, R1)
    asm.mov(R1, 1)
    asm.add_atomic(8, R0, 8, R1)


def _into_rows(asm: Assembler, numbers: Map, rows: Map, at_key: int, value: Reg, name: Text | None) -> None:
    """Count, sum and longest of one key.  The longest is compared and stored by this CPU alone, not atomically."""
    at_value = -72
    lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, "row")
    asm.store(8, R10, at_value, 1)
    asm.store(8, R10, at_value + 8, value)
    asm.store(8, R10, at_value + 16, value)
    asm.store(8, R10, at_value + 24, 0)
    asm.store(8, R10, at_value + 32, 0)
    if name is None:
        command(asm, at_value + 24)
    else:
        name.address(asm, R3)
        asm.stack(R1, at_value + 24)
        asm.mov(R2, COMM_BYTES)
        asm.call(HELPERS["probe_read_kernel_str"])
    insert(asm, rows, at_key, at_value)
    asm.jump_if(R0, "==", 0, "out")
    lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, "row")
    bump(asm, numbers, LOST)
    asm.jump("out")
    asm.label("row")
    asm.mov(R1, 1)
    asm.add_atomic(8, R0, 0, R1)
    asm.add_atomic(8, R0, 8, value)
    asm.load(8, R1, R0, 16)
    asm.jump_if(R1, ">=", value, "out")
    asm.store(8, R0, 16, value)


def read_histogram(spread: Map) -> tuple[int, list[tuple[int, int]], int]:
    """(sum in nanoseconds, [(bucket, count)] without the empty ones, how many were :data:`LIMIT_NS` or longer)."""
    total_ns, counts = 0, [0] * (BUCKETS + 1)
    for value in spread.lookup(struct.pack("=I", 0)) or ():
        numbers = struct.unpack("=%dQ" % (1 + len(counts)), value)
        total_ns += numbers[0]
        if any(numbers[1:]):
            counts = [old + new for old, new in zip(counts, numbers[1:])]  # noqa: B905
    longer = counts.pop()
    return total_ns, [(index, count) for index, count in enumerate(counts) if count], longer


class Duration(NamedTuple):
    """One row of :func:`durations`."""

    key: int
    times: int
    total_ns: int
    longest_ns: int
    name: str


def read_durations(rows: Map) -> list[Duration]:
    """Every row, the longest first."""
    found = []
    for key, values in rows.items():
        parts = [struct.unpack_from("=QQQ", value) for value in values]
        names = (value[24:].split(b"\0")[0] for value in values)
        name = next((one for one in names if one), b"").decode("utf-8", "replace")
        times, total_ns = sum(part[0] for part in parts), sum(part[1] for part in parts)
        found.append(Duration(struct.unpack("=Q", key)[0], times, total_ns, max(part[2] for part in parts), name))
    return sorted(found, key=lambda row: (-row.longest_ns, row.key))
