"""The programs that run in the kernel, as functions from maps to code: count, count by key, latency, stacks.

A hook (:mod:`evenkeel.probe.trace.sources`) says how the event is told from others and where its fields are; a template
says what happens with it.  R6 holds the context from the first instruction on.  Additions are atomic where a program
can be preempted or interrupted by itself on the same CPU.  Must not load or attach anything.
"""

from __future__ import annotations

import struct
from typing import Callable, Iterator, NamedTuple, Union

from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Assembler, Reg
from evenkeel.probe.trace.bpf import (
    HASH,
    HELPERS,
    NOEXIST,
    PERCPU_ARRAY,
    PERCPU_HASH,
    RINGBUF,
    STACK_TRACE,
    Map,
    possible_cpus,
)

Select = Callable[[Assembler], None]

#: Slots of the statistics that every program keeps.
EVENTS, LOST, STARTS, UNMATCHED = 0, 1, 2, 3
_STATISTICS = 4
COMM_BYTES = 16
#: Memory that a table may take in the kernel, over all CPUs.
_TABLE_BYTES = 32 << 20
_MOST_ROWS, _FEWEST_ROWS = 16384, 1024
#: Keys that each CPU counts in front of the table: a power of two.
_SLOTS = 64
_SLOT = struct.Struct("=8sQ16s")


class Record(NamedTuple):
    """A field of the event's record: ``size`` bytes at ``offset`` from the context."""

    offset: int
    size: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        asm.load(self.size, dst, R6, self.offset)

    def address(self, asm: Assembler, dst: Reg) -> None:
        asm.mov(dst, R6)
        asm.alu("add", dst, self.offset)


class Pointed(NamedTuple):
    """A field of a structure that argument number ``argument`` points to; its type is checked by the verifier."""

    argument: int
    offset: int
    size: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        asm.load(8, dst, R6, 8 * self.argument)
        asm.load(self.size, dst, dst, self.offset)

    def address(self, asm: Assembler, dst: Reg) -> None:
        asm.load(8, dst, R6, 8 * self.argument)
        asm.alu("add", dst, self.offset)


class SwitchedOut(NamedTuple):
    """The state in which sched_switch leaves its thread behind, as the event's record has it: 0 in the lowest eight
    bits when it could go on running.  From the arguments, where a thread that was pre-empted may have any state.
    """

    preempt: int
    state: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        preempted = asm.fresh("preempted")
        asm.load(8, R1, R6, 8 * self.preempt)
        asm.alu("and", R1, 0xFF)
        asm.mov(dst, 0)
        asm.jump_if(R1, "!=", 0, preempted)
        asm.load(8, dst, R6, 8 * self.state)
        asm.label(preempted)


class Current(NamedTuple):
    """Something about whoever runs: ``process``, ``thread``, ``user``, ``cgroup``, ``cpu``."""

    what: str

    def emit(self, asm: Assembler, dst: Reg) -> None:
        helper, shift = _CURRENT[self.what]
        asm.call(HELPERS[helper])
        if shift:
            asm.alu("rsh", R0, shift)
        elif helper != "get_current_cgroup_id":
            asm.alu("mov", R0, R0, bits=32)
        asm.mov(dst, R0)


class Constant(NamedTuple):
    """A number that is known beforehand, below 2^31."""

    value: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        asm.mov(dst, self.value)


class Packed(NamedTuple):
    """Several small numbers in one: each value, and by how many bits it is shifted to the left.  Uses R8 and R9."""

    parts: tuple[tuple[Union[Record, Current, Constant], int], ...]

    def emit(self, asm: Assembler, dst: Reg) -> None:
        asm.mov(R8, 0)
        for value, shift in self.parts:
            value.emit(asm, R9)
            if shift:
                asm.alu("lsh", R9, shift)
            asm.alu("or", R8, R9)
        asm.mov(dst, R8)


_CURRENT = {
    "process": ("get_current_pid_tgid", 32),
    "thread": ("get_current_pid_tgid", 0),
    "user": ("get_current_uid_gid", 0),
    "cgroup": ("get_current_cgroup_id", 0),
    "cpu": ("get_smp_processor_id", 0),
}
Value = Union[Record, Pointed, SwitchedOut, Current, Constant, Packed]
Text = Union[Record, Pointed]


def statistics() -> Map:
    """Events and lost events: one number of 8 bytes for each slot and CPU."""
    return Map(PERCPU_ARRAY, 4, 8, _STATISTICS)


def total(numbers: Map, slot: int) -> int:
    """The sum over the CPUs of one slot of :func:`statistics`."""
    return sum(struct.unpack("=Q", one)[0] for one in numbers.lookup(struct.pack("=I", slot)) or ())


def _begin(select: Select) -> Assembler:
    asm = Assembler()
    asm.mov(R6, R1)
    select(asm)
    return asm


def _end(asm: Assembler) -> bytes:
    asm.label("out")
    asm.mov(R0, asm.result)
    asm.exit()
    return asm.code()


def _lookup(asm: Assembler, table: Map, key: int) -> None:
    """R0 = address of the value whose key is on the stack at ``key``, or 0."""
    asm.map(R1, table.fd)
    asm.stack(R2, key)
    asm.call(HELPERS["map_lookup_elem"])


def _lookup_first(asm: Assembler, table: Map) -> None:
    """R0 = address of the only value of an array.  Uses the stack at -4."""
    asm.store(4, R10, -4, 0)
    _lookup(asm, table, -4)


def _insert(asm: Assembler, table: Map, key: int, value: int) -> None:
    """Put the value on the stack behind the key on the stack, unless it has one; R0 = 0 where that was done."""
    asm.map(R1, table.fd)
    asm.stack(R2, key)
    asm.stack(R3, value)
    asm.mov(R4, NOEXIST)
    asm.call(HELPERS["map_update_elem"])


def _bump(asm: Assembler, numbers: Map, slot: int, at_amount: int | None = None) -> None:
    """One more (or as many as stand on the stack) in a slot of the statistics.  Uses the stack at -4."""
    absent = asm.fresh("absent")
    asm.store(4, R10, -4, slot)
    _lookup(asm, numbers, -4)
    asm.jump_if(R0, "==", 0, absent)
    if at_amount is None:
        asm.mov(R1, 1)
    else:
        asm.load(8, R1, R10, at_amount)
    asm.add_atomic(8, R0, 0, R1)
    asm.label(absent)


def count(numbers: Map, select: Select, alone: bool = False) -> bytes:
    """Count the event.

    ``alone``: no other run of this program comes between on its CPU, so that it need not add atomically, which costs
    as much as all the rest of it.
    """
    asm = _begin(select)
    if not alone:
        _bump(asm, numbers, EVENTS)
        return _end(asm)
    asm.store(4, R10, -4, EVENTS)
    _lookup(asm, numbers, -4)
    asm.jump_if(R0, "==", 0, "out")  # it cannot be; the verifier wants to see it
    asm.load(8, R1, R0, 0)
    asm.alu("add", R1, 1)
    asm.store(8, R0, 0, R1)
    return _end(asm)


# -- count by key -----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of a table: the key as bytes, how often, and the command that had it first."""

    key: bytes
    times: int
    command: str


class Table(NamedTuple):
    """``rows``: key -> count (8 bytes) and the first command (16), a value for each CPU, so that no two write the same
    line.  ``slots``: in front of it, for keys of 8 bytes; see :func:`top`.
    """

    rows: Map
    slots: Map | None

    def close(self) -> None:
        self.rows.close()
        if self.slots is not None:
            self.slots.close()


def table(key_bytes: int) -> Table:
    """Raises OSError."""
    each = (8 + COMM_BYTES) * possible_cpus() + key_bytes + 64
    rows = Map(PERCPU_HASH, key_bytes, 8 + COMM_BYTES, max(_FEWEST_ROWS, min(_MOST_ROWS, _TABLE_BYTES // each)))
    try:
        slots = Map(PERCPU_ARRAY, 4, 8 + _SLOTS * _SLOT.size, 1) if key_bytes == 8 else None
    except OSError:
        rows.close()
        raise
    return Table(rows, slots)


def top(numbers: Map, table: Table, key: Value | None, select: Select) -> bytes:
    """Count by ``key`` (None: by the command's name).  A row that has no place any more is a lost event.

    Each CPU counts its latest keys in slots of its own, which costs a third of finding a row of the hash; a key that
    needs a slot moves the one that is there to the hash.  A program that finds the slots in use was interrupted by the
    same event, and counts in the hash at once.
    """
    at_key, at_old, at_value = -32, -16, -64
    asm = _begin(select)
    if key is None:
        _command(asm, at_key)
    else:
        key.emit(asm, R0)
        asm.store(8, R10, at_key, R0)
    if table.slots is not None:
        asm.mov(R8, R0)
        _lookup_first(asm, table.slots)
        asm.jump_if(R0, "==", 0, "out")  # it cannot be; the verifier wants to see it
        asm.mov(R7, R0)
        asm.load(8, R1, R7, 0)
        asm.jump_if(R1, "!=", 0, "in use")
        asm.store(8, R7, 0, 1)
        asm.mov(R9, R8)
        asm.alu("and", R9, _SLOTS - 1)
        asm.alu("mul", R9, _SLOT.size)
        asm.alu("add", R9, R7)
        asm.load(8, R2, R9, 8)
        asm.load(8, R1, R9, 16)
        asm.jump_if(R2, "!=", R8, "another")
        asm.alu("add", R1, 1)
        asm.store(8, R9, 16, R1)
        asm.store(8, R7, 0, 0)
        asm.jump("out")
        asm.label("another")
        asm.jump_if(R1, "==", 0, "empty")
        asm.store(8, R10, at_old, R2)
        asm.store(8, R10, at_value, R1)
        for place in (8, 16):
            asm.load(8, R1, R9, 16 + place)
            asm.store(8, R10, at_value + place, R1)
        _add_row(asm, numbers, table.rows, at_old, at_value)
        asm.label("empty")
        asm.store(8, R9, 8, R8)
        asm.store(8, R9, 16, 1)
        asm.mov(R1, R9)
        asm.alu("add", R1, 24)
        asm.mov(R2, COMM_BYTES)
        asm.call(HELPERS["get_current_comm"])
        asm.store(8, R7, 0, 0)
        asm.jump("out")
        asm.label("in use")
    asm.store(8, R10, at_value, 1)
    _command(asm, at_value + 8)
    _add_row(asm, numbers, table.rows, at_key, at_value)
    return _end(asm)


def _add_row(asm: Assembler, numbers: Map, rows: Map, at_key: int, at_value: int, *, lost: str | None = None) -> None:
    """Add the count on the stack to the row of the key on the stack; without a place its events are lost.

    ``lost``: where it goes on then.
    """
    add, done = asm.fresh("add"), asm.fresh("added")
    _lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, add)
    _insert(asm, rows, at_key, at_value)
    asm.jump_if(R0, "==", 0, done)
    _lookup(asm, rows, at_key)  # another CPU may have been faster
    asm.jump_if(R0, "!=", 0, add)
    _bump(asm, numbers, LOST, at_value)
    asm.jump(lost or done)
    asm.label(add)
    asm.load(8, R1, R10, at_value)
    asm.add_atomic(8, R0, 0, R1)
    asm.label(done)


def _command(asm: Assembler, place: int) -> None:
    """The name of the running thread, 16 bytes, to the stack."""
    asm.stack(R1, place)
    asm.mov(R2, COMM_BYTES)
    asm.call(HELPERS["get_current_comm"])


def read_table(table: Table) -> list[Row]:
    """Every row, the most frequent first."""
    times: dict[bytes, int] = {}
    commands: dict[bytes, bytes] = {}
    for key, count, command in _counts(table):
        if count:
            times[key] = times.get(key, 0) + count
            commands[key] = commands.get(key) or command.partition(b"\0")[0]
    found = [Row(key, count, commands[key].decode("utf-8", "replace")) for key, count in times.items()]
    return sorted(found, key=lambda row: (-row.times, row.key))


def _counts(table: Table) -> Iterator[tuple[bytes, int, bytes]]:
    """(key, count, command) of each row and CPU, and of each slot."""
    for key, values in table.rows.items():
        for value in values:
            yield key, struct.unpack_from("=Q", value)[0], value[8:]
    for value in (table.slots.lookup(struct.pack("=I", 0)) or ()) if table.slots is not None else ():
        yield from _SLOT.iter_unpack(value[8:])


# -- latency ----------------------------------------------------------------------------------------------------------

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
    entries = max(_FEWEST_ROWS, min(_MOST_ROWS, _TABLE_BYTES // (each * possible_cpus() + 72)))
    return Map(PERCPU_HASH, 8, each, entries)


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
    asm = _begin(select)
    key.emit(asm, R0)
    asm.store(8, R10, at_key, R0)
    asm.call(HELPERS["ktime_get_ns"])
    _stamp(asm, spans, at_key, at_time)
    asm.jump_if(R0, "==", 0, "began")
    _bump(asm, numbers, LOST)
    asm.label("began")
    _bump(asm, numbers, STARTS)
    return _end(asm)


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
    asm = _begin(select)
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
    _lookup(asm, spans, at_key)
    asm.jump_if(R0, "!=", 0, "known")
    _bump(asm, numbers, UNMATCHED)
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
    _bump(asm, numbers, EVENTS)
    if rows is not None:
        if row_key is not None:
            row_key.emit(asm, R0)
            asm.store(8, R10, at_key, R0)
        _into_rows(asm, numbers, rows, at_key, R7, name)
    return _end(asm)


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
    _lookup_first(asm, spread)
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
    _lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, "row")
    asm.store(8, R10, at_value, 1)
    asm.store(8, R10, at_value + 8, value)
    asm.store(8, R10, at_value + 16, value)
    asm.store(8, R10, at_value + 24, 0)
    asm.store(8, R10, at_value + 32, 0)
    if name is None:
        _command(asm, at_value + 24)
    else:
        name.address(asm, R3)
        asm.stack(R1, at_value + 24)
        asm.mov(R2, COMM_BYTES)
        asm.call(HELPERS["probe_read_kernel_str"])
    _insert(asm, rows, at_key, at_value)
    asm.jump_if(R0, "==", 0, "out")
    _lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, "row")
    _bump(asm, numbers, LOST)
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


# -- stacks -----------------------------------------------------------------------------------------------------------

STACK_DEPTH = 127
_STACK_KEYS = 16384
_STACK_SLOTS = 16384
#: In the number of a stack that is in the second map.
SECOND = 1 << 24
_USER_STACK = 256
#: pid, id of the kernel's stack and of the user's (negative: none), nothing; the command's name.
STACK_KEY = struct.Struct("=Iiii16s")
_EEXIST = -17


def stack_traces() -> Map:
    """Stacks by a number that the kernel makes of them; 16 MiB."""
    return Map(STACK_TRACE, 4, 8 * STACK_DEPTH, _STACK_SLOTS)


def stack_counts() -> Map:
    return Map(HASH, STACK_KEY.size, 8, _STACK_KEYS)


def stacks(numbers: Map, traces: Map, second: Map, counts: Map, select: Select) -> bytes:
    """Count the stack of whatever runs.

    Two stacks can get the same number; the later one goes to the ``second`` map.  A third is a lost event.
    """
    at_key, at_one = -48, -56
    asm = _begin(select)
    asm.call(HELPERS["get_current_pid_tgid"])
    asm.alu("rsh", R0, 32)
    asm.store(4, R10, at_key, R0)
    asm.store(4, R10, at_key + 12, 0)
    for place, flags in ((at_key + 4, 0), (at_key + 8, _USER_STACK)):
        kept = asm.fresh("kept")
        _stack_number(asm, traces, flags)
        asm.jump_if(R0, "!=", _EEXIST, kept)
        _stack_number(asm, second, flags)
        asm.jump_if(R0, "s<", 0, "no place")
        asm.alu("or", R0, SECOND)
        asm.label(kept)
        asm.store(4, R10, place, R0)
    _command(asm, at_key + 16)
    asm.store(8, R10, at_one, 1)
    _add_row(asm, numbers, counts, at_key, at_one, lost="out")
    _bump(asm, numbers, EVENTS)
    asm.jump("out")
    asm.label("no place")
    _bump(asm, numbers, LOST)
    return _end(asm)


def _stack_number(asm: Assembler, traces: Map, flags: int) -> None:
    asm.mov(R1, R6)
    asm.map(R2, traces.fd)
    asm.mov(R3, flags)
    asm.call(HELPERS["get_stackid"])


# -- every event as a record ------------------------------------------------------------------------------------------

#: Nanoseconds of the monotonic clock, thread, process, the value that was asked for, CPU, nothing.
RECORD = struct.Struct("=QIIQII")
#: In the ring each record has eight bytes in front: its length with two flags, and where it is.
RECORD_STRIDE = RECORD.size + 8
_NO_WAKEUP = 1


def ring(size: int) -> Map:
    """``size``: bytes, a power of two and whole pages."""
    return Map(RINGBUF, 0, 0, size)


def record(numbers: Map, ring: Map, value: Value, select: Select) -> bytes:
    """Write the event to the ring; one that has no place there is a lost event.  Nobody is woken: the reader looks.

    What is written is not counted here: the ring's own position says it.
    """
    at = -40
    asm = _begin(select)
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
    _bump(asm, numbers, LOST)
    return _end(asm)
