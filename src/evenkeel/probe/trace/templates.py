"""What the programs that run in the kernel are made of, as functions from maps to code; and the smallest, a count.

What does more stands beside what reads its maps: ``tables``, ``spans``, ``stacks``, ``records``.

A hook (:mod:`evenkeel.probe.trace.sources`) says how the event is told from others and where its fields are; a template
says what happens with it.  R6 holds the context from the first instruction on.  Additions are atomic where a program
can be preempted or interrupted by itself on the same CPU.  Must not load or attach anything.
"""

from __future__ import annotations

import struct
from typing import Callable, NamedTuple, Union

from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R4, R6, R8, R9, R10, Assembler, Reg
from evenkeel.probe.trace.bpf import (
    HELPERS,
    NOEXIST,
    PERCPU_ARRAY,
    Map,
)

Select = Callable[[Assembler], None]

#: Slots of the statistics that every program keeps.
EVENTS, LOST, STARTS, UNMATCHED = 0, 1, 2, 3
_STATISTICS = 4
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


class OfTask(NamedTuple):
    """A field of the running task.  ``task``: the register in which its hook has left the address; None: nowhere."""

    task: Reg | None
    offset: int
    size: int

    def emit(self, asm: Assembler, dst: Reg) -> None:
        if self.task is None:
            asm.call(HELPERS["get_current_task_btf"])
        asm.load(self.size, dst, R0 if self.task is None else self.task, self.offset)


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
Value = Union[Record, Pointed, SwitchedOut, Current, OfTask, Constant, Packed]
Text = Union[Record, Pointed]


def most_rows(each: int) -> int:
    """How many rows of so many bytes a table may have."""
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _TABLE_BYTES // each))


def statistics() -> Map:
    """Events and lost events: one number of 8 bytes for each slot and CPU."""
    return Map(PERCPU_ARRAY, 4, 8, _STATISTICS)


def total(numbers: Map, slot: int) -> int:
    """The sum over the CPUs of one slot of :func:`statistics`."""
    return sum(struct.unpack("=Q", one)[0] for one in numbers.lookup(struct.pack("=I", slot)) or ())


def begin(select: Select) -> Assembler:
    asm = Assembler()
    asm.mov(R6, R1)
    select(asm)
    return asm


def end(asm: Assembler) -> bytes:
    asm.label("out")
    asm.mov(R0, asm.result)
    asm.exit()
    return asm.code()


def lookup(asm: Assembler, table: Map, key: int) -> None:
    """R0 = address of the value whose key is on the stack at ``key``, or 0."""
    asm.map(R1, table.fd)
    asm.stack(R2, key)
    asm.call(HELPERS["map_lookup_elem"])


def lookup_first(asm: Assembler, table: Map) -> None:
    """R0 = address of the only value of an array.  Uses the stack at -4."""
    asm.store(4, R10, -4, 0)
    lookup(asm, table, -4)


def insert(asm: Assembler, table: Map, key: int, value: int) -> None:
    """Put the value on the stack behind the key on the stack, unless it has one; R0 = 0 where that was done."""
    asm.map(R1, table.fd)
    asm.stack(R2, key)
    asm.stack(R3, value)
    asm.mov(R4, NOEXIST)
    asm.call(HELPERS["map_update_elem"])


def bump(asm: Assembler, numbers: Map, slot: int, at_amount: int | None = None) -> None:
    """One more (or as many as stand on the stack) in a slot of the statistics.  Uses the stack at -4."""
    absent = asm.fresh("absent")
    asm.store(4, R10, -4, slot)
    lookup(asm, numbers, -4)
    asm.jump_if(R0, "==", 0, absent)
    if at_amount is None:
        asm.mov(R1, 1)
    else:
        asm.load(8, R1, R10, at_amount)
    asm.add_atomic(8, R0, 0, R1)
    asm.label(absent)


def command(asm: Assembler, place: int) -> None:
    """The name of the running thread, 16 bytes, to the stack."""
    asm.stack(R1, place)
    asm.mov(R2, COMM_BYTES)
    asm.call(HELPERS["get_current_comm"])


def count(numbers: Map, select: Select, alone: bool = False) -> bytes:
    """Count the event.

    ``alone``: no other run of this program comes between on its CPU, so that it need not add atomically, which costs
    as much as all the rest of it.
    """
    asm = begin(select)
    if not alone:
        bump(asm, numbers, EVENTS)
        return end(asm)
    asm.store(4, R10, -4, EVENTS)
    lookup(asm, numbers, -4)
    asm.jump_if(R0, "==", 0, "out")  # it cannot be; the verifier wants to see it
    asm.load(8, R1, R0, 0)
    asm.alu("add", R1, 1)
    asm.store(8, R0, 0, R1)
    return end(asm)
