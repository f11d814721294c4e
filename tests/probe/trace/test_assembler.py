"""The assembler: instructions as the kernel's document has them, labels, and what it refuses before the kernel does."""

from __future__ import annotations

import struct

import pytest

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import bpf, templates
from evenkeel.probe.trace.assembler import R0, R1, R6, R10, Assembler


def test_instructions_are_encoded_as_the_standard_says() -> None:
    asm = Assembler()
    asm.mov(R0, 7)  # b7 00
    asm.alu("add", R0, R1)  # 0f 10
    asm.load(8, R1, R6, 16)  # 79 61
    asm.store(4, R10, -4, 1)  # 62 0a
    asm.add_atomic(8, R0, 0, R1)  # db 10
    asm.call(5)  # 85
    asm.exit()  # 95
    assert [line.hex() for line in _lines(asm)] == [
        "b700000007000000",
        "0f10000000000000",
        "7961100000000000",
        "620afcff01000000",
        "db10000000000000",
        "8500000005000000",
        "9500000000000000",
    ]


def test_a_wide_constant_is_two_instructions() -> None:
    asm = Assembler()
    asm.constant(R0, 0xFFFFFFFF00000001)
    first, second = _lines(asm)
    assert struct.unpack("=BBhi", first)[3] == 1
    assert struct.unpack("=BBhi", second)[3] == -1


def test_jumps_count_from_the_next_instruction_both_ways() -> None:
    asm = Assembler()
    asm.label("top")
    asm.jump_if(R0, "==", 0, "end")
    asm.jump("top")
    asm.label("end")
    asm.exit()
    assert [struct.unpack("=BBhi", line)[2] for line in _lines(asm)] == [1, -2, 0]


def test_slips_are_refused_here_and_not_by_a_verifier() -> None:
    asm = Assembler()
    asm.jump("nowhere")
    with pytest.raises(ValueError, match="no label nowhere"):
        asm.code()
    with pytest.raises(ValueError, match="read only"):
        asm.mov(R10, 1)
    with pytest.raises(ValueError, match="does not fit"):
        asm.mov(R0, 1 << 31)
    with pytest.raises(ValueError, match="stack"):
        asm.stack(R1, -520)
    asm.label("twice")
    with pytest.raises(ValueError, match="two labels"):
        asm.label("twice")


def test_the_verifiers_words_are_in_the_error() -> None:
    asm = Assembler()
    asm.load(8, R0, R0, 0)  # R0 was never written
    asm.exit()
    with pytest.raises(StepFailed, match=r"the verifier says: .*R0 !read_ok") as caught:
        bpf.Program(bpf.RAW_TRACEPOINT, asm.code(), name="broken", purpose="a test")
    assert caught.value.code == 13, "EACCES"


def test_a_per_cpu_map_is_summed_over_every_possible_cpu() -> None:
    numbers = templates.statistics()
    try:
        values = numbers.lookup(struct.pack("=I", templates.EVENTS))
        assert values is not None
        assert len(values) == bpf.possible_cpus()
        assert templates.total(numbers, templates.EVENTS) == 0
    finally:
        numbers.close()


def _lines(asm: Assembler) -> list[bytes]:
    code = asm.code()
    return [code[place : place + 8] for place in range(0, len(code), 8)]
