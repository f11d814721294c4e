"""Count by key: the program, its tables, and what comes out of them.

Must not load or attach anything.
"""

from __future__ import annotations

import struct
from typing import Iterator, NamedTuple

from evenkeel.probe.trace.assembler import R0, R1, R2, R7, R8, R9, R10, Assembler
from evenkeel.probe.trace.bpf import HELPERS, PERCPU_ARRAY, PERCPU_HASH, Map, possible_cpus
from evenkeel.probe.trace.templates import (
    COMM_BYTES,
    LOST,
    Select,
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

#: Keys that each CPU counts in front of the table: a power of two.
_SLOTS = 64
_SLOT = struct.Struct("=8sQ16s")
_SHIFT = _SLOT.size.bit_length() - 1
assert _SLOT.size == 1 << _SHIFT


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
    rows = Map(PERCPU_HASH, key_bytes, 8 + COMM_BYTES, most_rows(each))
    try:
        slots = Map(PERCPU_ARRAY, 4, 8 + _SLOTS * _SLOT.size, 1) if key_bytes == 8 else None
    except OSError:
        rows.close()
        raise
    return Table(rows, slots)


def top(numbers: Map, table: Table, key: Value | None, select: Select, alone: bool = False) -> bytes:
    """Count by ``key`` (None: by the command's name).  A row that has no place any more is a lost event.

    Each CPU counts its latest keys in slots of its own, which costs a third of finding a row of the hash; a key that
    needs a slot moves the one that is there to the hash.  A program that finds the slots in use was interrupted by the
    same event, and counts in the hash at once.  ``alone``: none comes between on its CPU, so nothing marks them.
    """
    at_key, at_old, at_value = -32, -16, -64
    asm = begin(select)
    if key is None:
        command(asm, at_key)
    else:
        key.emit(asm, R0)
        asm.store(8, R10, at_key, R0)
    if table.slots is not None:
        asm.mov(R8, R0)
        lookup_first(asm, table.slots)
        asm.jump_if(R0, "==", 0, "out")  # it cannot be; the verifier wants to see it
        asm.mov(R7, R0)
        if not alone:
            asm.load(8, R1, R7, 0)
            asm.jump_if(R1, "!=", 0, "in use")
            asm.store(8, R7, 0, 1)
        asm.mov(R9, R8)
        asm.alu("and", R9, _SLOTS - 1)
        asm.alu("lsh", R9, _SHIFT)
        asm.alu("add", R9, R7)
        asm.load(8, R2, R9, 8)
        asm.load(8, R1, R9, 16)
        asm.jump_if(R2, "!=", R8, "another")
        asm.alu("add", R1, 1)
        asm.store(8, R9, 16, R1)
        if not alone:
            asm.store(8, R7, 0, 0)
        asm.jump("out")
        asm.label("another")
        asm.jump_if(R1, "==", 0, "empty")
        asm.store(8, R10, at_old, R2)
        asm.store(8, R10, at_value, R1)
        for place in (8, 16):
            asm.load(8, R1, R9, 16 + place)
            asm.store(8, R10, at_value + place, R1)
        add_row(asm, numbers, table.rows, at_old, at_value)
        asm.label("empty")
        asm.store(8, R9, 8, R8)
        asm.store(8, R9, 16, 1)
        asm.mov(R1, R9)
        asm.alu("add", R1, 24)
        asm.mov(R2, COMM_BYTES)
        asm.call(HELPERS["get_current_comm"])
        if alone:
            return end(asm)
        asm.store(8, R7, 0, 0)
        asm.jump("out")
        asm.label("in use")
    asm.store(8, R10, at_value, 1)
    command(asm, at_value + 8)
    add_row(asm, numbers, table.rows, at_key, at_value)
    return end(asm)


def add_row(asm: Assembler, numbers: Map, rows: Map, at_key: int, at_value: int, *, lost: str | None = None) -> None:
    """Add the count on the stack to the row of the key on the stack; without a place its events are lost.

    ``lost``: where it goes on then.
    """
    add, done = asm.fresh("add"), asm.fresh("added")
    lookup(asm, rows, at_key)
    asm.jump_if(R0, "!=", 0, add)
    insert(asm, rows, at_key, at_value)
    asm.jump_if(R0, "==", 0, done)
    lookup(asm, rows, at_key)  # another CPU may have been faster
    asm.jump_if(R0, "!=", 0, add)
    bump(asm, numbers, LOST, at_value)
    asm.jump(lost or done)
    asm.label(add)
    asm.load(8, R1, R10, at_value)
    asm.add_atomic(8, R0, 0, R1)
    asm.label(done)


def read_table(table: Table) -> list[Row]:
    """Every row, the most frequent first."""
    times: dict[bytes, int] = {}
    commands: dict[bytes, bytes] = {}
    for key, count, name in _counts(table):
        if count:
            times[key] = times.get(key, 0) + count
            commands[key] = commands.get(key) or name.partition(b"\0")[0]
    found = [Row(key, count, commands[key].decode("utf-8", "replace")) for key, count in times.items()]
    return sorted(found, key=lambda row: (-row.times, row.key))


def _counts(table: Table) -> Iterator[tuple[bytes, int, bytes]]:
    """(key, count, command) of each row and CPU, and of each slot."""
    for key, values in table.rows.items():
        for value in values:
            yield key, struct.unpack_from("=Q", value)[0], value[8:]
    for value in (table.slots.lookup(struct.pack("=I", 0)) or ()) if table.slots is not None else ():
        yield from _SLOT.iter_unpack(value[8:])
