"""The programs that run in the kernel, as functions from maps to code: count, count by key.

A hook (:mod:`evenkeel.probe.trace.sources`) says how the event is told from others and where its fields are; a template
says what happens with it.  R6 holds the context from the first instruction on.  Additions are atomic, because a
program can be preempted or interrupted by itself on the same CPU.  Must not load or attach anything.
"""

from __future__ import annotations

import struct
from typing import Callable, NamedTuple, Union

from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R4, R6, R10, Assembler, Reg
from evenkeel.probe.trace.bpf import HELPERS, NOEXIST, PERCPU_ARRAY, PERCPU_HASH, Map, possible_cpus

Select = Callable[[Assembler], None]

#: Slots of the statistics that every program keeps.
EVENTS, LOST = 0, 1
_STATISTICS = 2
COMM_BYTES = 16
#: Memory that a table may take in the kernel, over all CPUs.
_TABLE_BYTES = 32 << 20
_MOST_ROWS, _FEWEST_ROWS = 16384, 1024


class Record(NamedTuple):
    """A field of the event's record: ``size`` bytes at ``offset`` from the context."""

    offset: int
    size: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        asm.load(self.size, dst, R6, self.offset)


class Pointed(NamedTuple):
    """A field of a structure that argument number ``argument`` points to; its type is checked by the verifier."""

    argument: int
    offset: int
    size: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        asm.load(8, dst, R6, 8 * self.argument)
        asm.load(self.size, dst, dst, self.offset)


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


_CURRENT = {
    "process": ("get_current_pid_tgid", 32),
    "thread": ("get_current_pid_tgid", 0),
    "user": ("get_current_uid_gid", 0),
    "cgroup": ("get_current_cgroup_id", 0),
    "cpu": ("get_smp_processor_id", 0),
}
Value = Union[Record, Pointed, Current]


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
    asm.mov(R0, 0)
    asm.exit()
    return asm.code()


def _lookup(asm: Assembler, table: Map, key: int) -> None:
    """R0 = address of the value whose key is on the stack at ``key``, or 0."""
    asm.map(R1, table.fd)
    asm.stack(R2, key)
    asm.call(HELPERS["map_lookup_elem"])


def _bump(asm: Assembler, numbers: Map, slot: int) -> None:
    """One more in a slot of the statistics.  Uses the stack at -4."""
    absent = asm.fresh("absent")
    asm.store(4, R10, -4, slot)
    _lookup(asm, numbers, -4)
    asm.jump_if(R0, "==", 0, absent)
    asm.mov(R1, 1)
    asm.add_atomic(8, R0, 0, R1)
    asm.label(absent)


def count(numbers: Map, select: Select) -> bytes:
    """Count the event."""
    asm = _begin(select)
    _bump(asm, numbers, EVENTS)
    return _end(asm)


# -- count by key -----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of a table: the key as bytes, how often, and the command that had it first."""

    key: bytes
    times: int
    command: str


def table(key_bytes: int) -> Map:
    """Key -> count (8 bytes) and the first command (16).  A value for each CPU: no two CPUs write the same line."""
    each = (8 + COMM_BYTES) * possible_cpus() + key_bytes + 64
    return Map(PERCPU_HASH, key_bytes, 8 + COMM_BYTES, max(_FEWEST_ROWS, min(_MOST_ROWS, _TABLE_BYTES // each)))


def top(numbers: Map, rows: Map, key: Value | None, select: Select) -> bytes:
    """Count by ``key`` (None: by the command's name).  A row that has no place any more is a lost event."""
    at_key, at_value = -32, -64
    asm = _begin(select)
    if key is None:
        _command(asm, at_key)
    else:
        key.emit(asm, R0)
        asm.store(8, R10, at_key, R0)
    _lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, "add")
    asm.store(8, R10, at_value, 1)
    _command(asm, at_value + 8)
    asm.map(R1, rows.fd)
    asm.stack(R2, at_key)
    asm.stack(R3, at_value)
    asm.mov(R4, NOEXIST)
    asm.call(HELPERS["map_update_elem"])
    asm.jump_if(R0, "==", 0, "out")
    _lookup(asm, rows, at_key)  # another CPU may have been faster
    asm.jump_if(R0, "!=", 0, "add")
    _bump(asm, numbers, LOST)
    asm.jump("out")
    asm.label("add")
    asm.mov(R1, 1)
    asm.add_atomic(8, R0, 0, R1)
    return _end(asm)


def _command(asm: Assembler, place: int) -> None:
    """The name of the running thread, 16 bytes, to the stack."""
    asm.stack(R1, place)
    asm.mov(R2, COMM_BYTES)
    asm.call(HELPERS["get_current_comm"])


def read_table(rows: Map) -> list[Row]:
    """Every row, the most frequent first."""
    found = []
    for key, values in rows.items():
        number = sum(struct.unpack_from("=Q", value)[0] for value in values)
        commands = (value[8:].split(b"\0")[0] for value in values)
        found.append(Row(key, number, next((one for one in commands if one), b"").decode("utf-8", "replace")))
    return sorted(found, key=lambda row: (-row.times, row.key))
