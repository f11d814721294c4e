"""Samples of stacks: the program that takes them, and from addresses to names of functions, also of processes.

A process may end before its samples are read, so its mappings are read while it lives, as soon as it is seen.  Symbols
come from the files themselves (.symtab, else .dynsym); a stripped program's frames have its file name only.
Must not load programs.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
import struct
from typing import Any, NamedTuple

from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R6, R10, Assembler
from evenkeel.probe.trace.bpf import HASH, HELPERS, STACK_TRACE, Map
from evenkeel.probe.trace.tables import add_row
from evenkeel.probe.trace.templates import EVENTS, LOST, Select, begin, bump, command, end

_MOST_SYMBOL_BYTES = 64 << 20
_EXECUTABLE, _STT_FUNC = 1, 2
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
    asm = begin(select)
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
    command(asm, at_key + 16)
    asm.store(8, R10, at_one, 1)
    add_row(asm, numbers, counts, at_key, at_one, lost="out")
    bump(asm, numbers, EVENTS)
    asm.jump("out")
    asm.label("no place")
    bump(asm, numbers, LOST)
    return end(asm)


def _stack_number(asm: Assembler, traces: Map, flags: int) -> None:
    asm.mov(R1, R6)
    asm.map(R2, traces.fd)
    asm.mov(R3, flags)
    asm.call(HELPERS["get_stackid"])


class Mapping(NamedTuple):
    """Executable pages of a process: [start, end) shows a file from ``offset``."""

    start: int
    end: int
    offset: int
    path: str


class Table:
    """Addresses of functions, to be asked for what contains one."""

    def __init__(self, symbols: dict[int, tuple[int, str]]) -> None:
        """``symbols``: start -> (size, name); size 0: until the next one."""
        self._starts = sorted(symbols)
        self._symbols = symbols

    def address(self, name: str) -> int | None:
        return next((start for start in self._starts if self._symbols[start][1] == name), None)

    def find(self, address: int) -> str | None:
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        start = self._starts[place]
        size, name = self._symbols[start]
        return name if not size or address < start + size else None


class Maps:
    """The mappings of every process that was sampled, each read once, when it is first seen."""

    def __init__(self) -> None:
        self._known: dict[int, list[Mapping]] = {}

    def see(self, processes: set[int]) -> None:
        for process in processes - self._known.keys() - {0}:
            found = read_maps(process)
            if found:
                self._known[process] = found

    def frame(self, process: int, address: int) -> str:
        for mapping in self._known.get(process, ()):
            if mapping.start <= address < mapping.end:
                return self._name(process, mapping, address)
        return "[unknown]"

    def _name(self, process: int, mapping: Mapping, address: int) -> str:
        if not mapping.path.startswith("/"):
            return mapping.path or "[anonymous]"  # [vdso], code made at run time
        table, segments = elf_functions(_file(process, mapping.path))
        offset = address - mapping.start + mapping.offset
        for place, size, virtual in segments:
            if place <= offset < place + size:
                name = table.find(offset - place + virtual)
                if name:
                    return name
        return "[%s]" % os.path.basename(mapping.path)


def _file(process: int, path: str) -> str:
    """Through the root of the process while it lives: it may be in a container."""
    inside = "/proc/%d/root%s" % (process, path)
    return inside if os.path.exists(inside) else path


def read_maps(process: int) -> list[Mapping]:
    found = []
    with contextlib.suppress(OSError), open("/proc/%d/maps" % process, errors="replace") as file:
        for line in file:
            words = line.rstrip("\n").split(None, 5)
            if len(words) >= 5 and "x" in words[1]:
                start, _, end = words[0].partition("-")
                path = words[5] if len(words) > 5 else ""
                found.append(Mapping(int(start, 16), int(end, 16), int(words[2], 16), path))
    return found


@functools.lru_cache(maxsize=256)
def elf_functions(path: str) -> tuple[Table, list[tuple[int, int, int]]]:
    """Functions of a 64-bit ELF file by virtual address, and its executable segments: (file offset, size, address).

    Nothing of both for a file that cannot be read or is something else.
    """
    try:
        with open(path, "rb") as file:
            return _read_elf(file)
    except (OSError, struct.error, ValueError, IndexError):
        return Table({}), []


def _read_elf(file: Any) -> tuple[Table, list[tuple[int, int, int]]]:
    head = file.read(64)
    if head[:6] != b"\x7fELF\x02\x01":
        return Table({}), []
    program_at, section_at = struct.unpack_from("<QQ", head, 32)
    _, programs, section_size, sections = struct.unpack_from("<HHHH", head, 54)
    file.seek(program_at)
    raw = file.read(56 * programs)
    segments = []
    for place in range(0, len(raw) - 55, 56):
        kind, flags, offset, virtual, _, size = struct.unpack_from("<IIQQQQ", raw, place)
        if kind == 1 and flags & _EXECUTABLE:
            segments.append((offset, size, virtual))
    file.seek(section_at)
    raw = file.read(section_size * sections)
    found = {}
    for number in range(sections):
        kind, _, _, offset, size, link = struct.unpack_from("<IQQQQI", raw, number * section_size + 4)
        found[kind] = (offset, size, link)
    chosen = found.get(2) or found.get(11)  # SHT_SYMTAB, SHT_DYNSYM
    if chosen is None or chosen[1] > _MOST_SYMBOL_BYTES:
        return Table({}), segments
    _, _, _, text_at, text_size = struct.unpack_from("<IQQQQ", raw, chosen[2] * section_size + 4)
    file.seek(text_at)
    text = file.read(min(text_size, _MOST_SYMBOL_BYTES))
    file.seek(chosen[0])
    symbols: dict[int, tuple[int, str]] = {}
    for name, info, _, _, value, size in struct.iter_unpack("<IBBHQQ", file.read(chosen[1] // 24 * 24)):
        if info & 0xF == _STT_FUNC and value:
            symbols[value] = (size, text[name : text.index(b"\0", name)].decode("utf-8", "replace"))
    return Table(symbols), segments


def kernel_functions() -> Table:
    """From /proc/kallsyms, where its addresses are shown to us."""
    symbols = {}
    with contextlib.suppress(OSError), open("/proc/kallsyms") as file:
        for line in file:
            words = line.split(None, 3)
            if words[1] in "tTwW" and words[0].strip("0"):
                symbols[int(words[0], 16)] = (0, words[2])
    return Table(symbols)


class Sampled(NamedTuple):
    """One stack: process, command, addresses from the innermost outwards (kernel, user), how often."""

    process: int
    command: str
    kernel: tuple[int, ...]
    user: tuple[int, ...]
    times: int


def processes(counts: Map) -> set[int]:
    """Who was sampled so far."""
    return {STACK_KEY.unpack(key)[0] for key, _ in counts.items()}


def read_samples(traces: tuple[Map, Map], counts: Map) -> list[Sampled]:
    """Everything that was sampled.  ``traces``: the two maps of :func:`stacks`."""

    @functools.lru_cache(maxsize=None)
    def addresses(number: int) -> tuple[int, ...]:
        place = traces[bool(number & SECOND)]
        found = place.lookup(struct.pack("=i", number & ~SECOND)) if number >= 0 else None
        if found is None:
            return ()
        return tuple(one for one in struct.unpack("=%dQ" % STACK_DEPTH, found[0]) if one)

    found = []
    for key, values in counts.items():
        process, kernel, user, _, command = STACK_KEY.unpack(key)
        name = command.split(b"\0")[0].decode("utf-8", "replace")
        times = struct.unpack("=Q", values[0])[0]
        found.append(Sampled(process, name, addresses(kernel), addresses(user), times))
    return found


def fold(samples: list[Sampled], maps: Maps) -> list[dict[str, Any]]:
    """``[{"frames": [outermost, ..., innermost], "count"}]``: command first, ``_[k]`` behind a kernel function."""
    kernel = kernel_functions()
    folded: dict[tuple[str, ...], int] = {}
    for one in samples:
        frames = [one.command]
        frames += [maps.frame(one.process, address) for address in reversed(one.user)]
        frames += ["%s_[k]" % (kernel.find(address) or "[kernel]") for address in reversed(one.kernel)]
        key = tuple(frames)
        folded[key] = folded.get(key, 0) + one.times
    return [{"frames": list(frames), "count": count} for frames, count in sorted(folded.items())]
