"""A small assembler for BPF: instructions with labels in, bytes for the kernel out.

Only what our programs use.  A register is an enum and a width a letter, so that a slip is a ValueError here and not a
verifier's log on somebody's machine.  Encoding: Documentation/bpf/standardization/instruction-set.rst.
Must not know maps, helpers' meanings or the kernel.
"""

from __future__ import annotations

import enum
import struct
from typing import Union

#: Bytes -> the size bits of a load or store.
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_ALU = {
    **{"add": 0x00, "sub": 0x10, "mul": 0x20, "div": 0x30, "or": 0x40, "and": 0x50, "lsh": 0x60, "rsh": 0x70},
    **{"mod": 0x90, "xor": 0xA0, "mov": 0xB0, "arsh": 0xC0},
}
_JUMP = {
    **{"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "s>=": 0x70},
    **{"<": 0xA0, "<=": 0xB0, "s<": 0xC0, "s<=": 0xD0},
}
_LDX, _ST, _STX, _ALU32, _JMP, _ALU64 = 0x61, 0x62, 0x63, 0x04, 0x05, 0x07
_PSEUDO_MAP_FD = 1


class Reg(enum.IntEnum):
    """R0: results; R1 to R5: arguments, lost in a call; R6 to R9: kept; R10: end of the stack, read only."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg
Operand = Union[Reg, int]


class Assembler:
    """Collects instructions; :meth:`code` has them as the kernel takes them.  ValueError: BPF has no such thing."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []  # opcode, dst, src, offset, immediate
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._fresh = 0
        #: What the program shall give back in the end; whoever ends it puts it into R0.
        self.result = 0

    def _emit(self, opcode: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> None:
        if not -0x8000 <= offset <= 0x7FFF:
            raise ValueError("an offset of %d does not fit" % offset)
        if not -0x80000000 <= immediate <= 0x7FFFFFFF:
            raise ValueError("a constant of %d does not fit; load it with constant()" % immediate)
        self._code.append((opcode, dst, src, offset, immediate))

    def alu(self, operation: str, dst: Reg, operand: Operand, *, bits: int = 64) -> None:
        """``dst = dst OPERATION operand``; "mov" is assignment.  With 32 bits the upper half becomes zero."""
        if dst == R10:
            raise ValueError("R10 is read only")
        kind = {64: _ALU64, 32: _ALU32}[bits] | _ALU[operation]
        if isinstance(operand, Reg):
            self._emit(kind | 0x08, dst, operand)
        else:
            self._emit(kind, dst, 0, 0, operand)

    def mov(self, dst: Reg, operand: Operand) -> None:
        self.alu("mov", dst, operand)

    def stack(self, dst: Reg, offset: int) -> None:
        """``dst`` = the address ``offset`` (negative) from the end of the stack."""
        if not -512 <= offset < 0:
            raise ValueError("the stack is 512 bytes, an offset of %d is not on it" % offset)
        self.mov(dst, R10)
        self.alu("add", dst, offset)

    def constant(self, dst: Reg, value: int) -> None:
        """Any 64 bits."""
        value &= 0xFFFFFFFFFFFFFFFF
        self._wide(dst, 0, _signed(value), _signed(value >> 32))

    def map(self, dst: Reg, descriptor: int) -> None:
        """``dst`` = the map behind a file descriptor of this process."""
        self._wide(dst, _PSEUDO_MAP_FD, descriptor, 0)

    def _wide(self, dst: Reg, src: int, low: int, high: int) -> None:
        self._emit(0x18, dst, src, 0, low)
        self._emit(0, 0, 0, 0, high)

    def load(self, size: int, dst: Reg, src: Reg, offset: int = 0) -> None:
        """``dst = *(SIZE *)(src + offset)``, filled up with zeros."""
        self._emit(_LDX | _SIZES[size], dst, src, offset)

    def store(self, size: int, dst: Reg, offset: int, value: Operand) -> None:
        """``*(SIZE *)(dst + offset) = value``."""
        if isinstance(value, Reg):
            self._emit(_STX | _SIZES[size], dst, value, offset)
        else:
            self._emit(_ST | _SIZES[size], dst, 0, offset, value)

    def add_atomic(self, size: int, dst: Reg, offset: int, src: Reg) -> None:
        """``*(SIZE *)(dst + offset) += src``, whoever else does the same; SIZE is 4 or 8."""
        if size not in (4, 8):
            raise ValueError("atomic addition is for 4 or 8 bytes")
        self._emit(0xC3 | _SIZES[size], dst, src, offset, 0)

    def call(self, helper: int) -> None:
        """R0 = helper(R1 to R5), which are lost."""
        self._emit(_JMP | 0x80, 0, 0, 0, helper)

    def exit(self) -> None:
        self._emit(_JMP | 0x90)

    def label(self, name: str) -> None:
        if name in self._labels:
            raise ValueError("there are two labels %s" % name)
        self._labels[name] = len(self._code)

    def fresh(self, stem: str) -> str:
        """A label's name that nobody else has."""
        self._fresh += 1
        return "%s %d" % (stem, self._fresh)

    def jump(self, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._emit(_JMP)

    def jump_if(self, left: Reg, relation: str, right: Operand, label: str, *, bits: int = 64) -> None:
        """``if left RELATION right: goto label``; ``s<`` and the like compare with sign; ``&`` is "has a bit of"."""
        self._jumps.append((len(self._code), label))
        kind = {64: _JMP, 32: 0x06}[bits] | _JUMP[relation]
        if isinstance(right, Reg):
            self._emit(kind | 0x08, left, right)
        else:
            self._emit(kind, left, 0, 0, right)

    def __len__(self) -> int:
        return len(self._code)

    def code(self) -> bytes:
        """Eight bytes an instruction.  Raises ValueError for a label that is nowhere."""
        lines = list(self._code)
        for place, label in self._jumps:
            if label not in self._labels:
                raise ValueError("there is no label %s" % label)
            opcode, dst, src, _, immediate = lines[place]
            lines[place] = (opcode, dst, src, self._labels[label] - place - 1, immediate)
        return b"".join(
            struct.pack("=BBhi", opcode, dst | src << 4, offset, immediate)
            for opcode, dst, src, offset, immediate in lines
        )


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
