"""Functions as events: of the kernel (``function:NAME``, ``function:NAME+0x10``), of programs (``uprobe:FILE:NAME``).

The kernel's ways are fentry, its function tracer, and a kprobe, which is one of two things: hung into the same place as
the function tracer, or a breakpoint (int3) that costs many times more.  Which one it became is read, not assumed.

Names are resolved before anything is switched on: two names can share an address and only one of them be known to the
tracer, and a filter that matches nothing traces every function.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from typing import Any, Sequence

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import bpf, perf, stacks, tracefs
from evenkeel.probe.trace.assembler import R0, R1, R6, Assembler
from evenkeel.probe.trace.sources import Buffer, Hook, call_number, refused, vmlinux

_FUNCTION = re.compile(r"function:([A-Za-z_][\w.]*)(?:\+(0x[0-9a-fA-F]+|\d+))?\Z")
_UPROBE = re.compile(r"uprobe:(/[^:]+):([A-Za-z_][\w.@]*|0x[0-9a-fA-F]+)\Z")
_KPROBES = "/sys/kernel/debug/kprobes/list"


def parse_function(event: str) -> tuple[str, int]:
    """(name, offset) of ``function:NAME+OFFSET``.  Raises StepFailed."""
    match = _FUNCTION.match(event)
    if match is None:
        raise StepFailed("%r is no function; write function:NAME or function:NAME+0x10" % event, errno.EINVAL)
    return match.group(1), int(match.group(2) or "0", 0)


def same_address(name: str) -> list[str]:
    """All names of the function, itself first, from /proc/kallsyms; only itself where addresses are hidden."""
    wanted, others = None, []
    with open("/proc/kallsyms") as file:
        text = file.read()
    match = re.search(r"^([0-9a-f]+) \w %s$" % re.escape(name), text, re.MULTILINE)
    if match:
        wanted = match.group(1)
        if wanted.strip("0"):
            others = re.findall(r"^%s \w (\S+)$" % wanted, text, re.MULTILINE)
    return [name, *sorted(one for one in set(others) if one != name)] if wanted is not None else []


def traceable(name: str) -> str:
    """The name by which the function tracer knows the function.  Raises StepFailed, also where it cannot be told."""
    names = same_address(name)
    if not names:
        raise StepFailed("the kernel has no function %s" % name, errno.ENOENT)
    try:
        known = {line.split()[0] for line in tracefs.read("available_filter_functions").splitlines() if line}
    except OSError as error:
        raise refused(error, "cannot read which functions can be traced") from None
    for one in names:
        if one in known:
            return one
    raise StepFailed("%s cannot be traced: it is inlined, or marked notrace" % name, errno.EOPNOTSUPP)


class Fentry(Hook):
    """A program called from the first instruction of a kernel function, by a trampoline.  Since Linux 5.5.

    Of a system call it is the function that the call ends in.  While a tracepoint of a system call is watched all calls
    take the kernel's slow path; with this none does.
    """

    name = "fentry"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        self._call: tuple[int, int] | None = None
        if event.startswith("syscalls:"):
            _check_fentry()
            self._call, names = _system_call(event)
        else:
            name, offset = parse_function(event)
            if offset:
                raise StepFailed("fentry is at the entry of a function only", errno.EOPNOTSUPP)
            names = same_address(name)
            if not names:
                raise StepFailed("the kernel has no function %s" % name, errno.ENOENT)
        found = ((one, vmlinux().function(one)) for one in names)
        self.function, self._id = next(((one, number) for one, number in found if number), ("", 0))
        if not self._id:
            raise StepFailed("the kernel's type information has no function %s" % names[0], errno.EOPNOTSUPP)

    def select(self, asm: Assembler) -> None:
        if self._call is not None:
            # A call without arguments has one function for 64-bit and for 32-bit programs, which have other numbers.
            number, place = self._call
            asm.load(8, R1, R6, 0)
            asm.load(8, R1, R1, place)
            asm.jump_if(R1, "!=", number, "out")
        super().select(asm)

    def load(self, code: bytes, purpose: str) -> None:
        self.program = bpf.Program(
            bpf.TRACING, code, name="ek_fentry", expected=bpf.TRACE_FENTRY, btf_id=self._id or 0, purpose=purpose
        )

    def attach(self) -> None:
        assert self.program is not None
        try:
            self._held.append(bpf.attach_raw(self.program, None))
        except OSError as error:
            raise refused(error, "cannot attach to the entry of %s" % self.function) from None

    def mechanism(self) -> str:
        call = ", call number %d" % self._call[0] if self._call is not None else ""
        return "BPF on the entry of %s, by a trampoline%s" % (self.function, call)


def _system_call(event: str) -> tuple[tuple[int, int], list[str]]:
    """Of ``syscalls:sys_enter_NAME``: (its number, where the registers of its caller have that); names of its function.

    Raises StepFailed.
    """
    tracefs.event_id(event)  # there is such an event at all
    number = call_number(event)
    if os.uname().machine != "x86_64":
        raise StepFailed("where the number of a call stands is known for x86 only", errno.EOPNOTSUPP)
    place = vmlinux().field("pt_regs", "orig_ax")
    if place is None:
        raise StepFailed("the kernel does not say where the number of a call stands", errno.EOPNOTSUPP)
    name = event.partition("sys_enter_")[2]
    # Of a call without arguments BTF knows the second only (arch/x86/include/asm/syscall_wrapper.h).
    return (number, place[0]), ["__x64_sys_" + name, "__do_sys_" + name]


def _check_fentry() -> None:
    """Raise the refusal of a kernel that takes no such program at all, before its types are searched for a function.

    Type 1 is none; who takes such programs looks at it and says EINVAL.
    """
    asm = Assembler()
    asm.mov(R0, 0)
    asm.exit()
    try:
        trial = bpf.Program(
            bpf.TRACING, asm.code(), name="ek_fentry", expected=bpf.TRACE_FENTRY, btf_id=1, purpose="any function"
        )
        trial.close()
    except StepFailed as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise


class _Probe(Hook):
    """A probe of perf: kprobe or uprobe."""

    _pmu = ""
    result = 1

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        try:
            with open("/sys/bus/event_source/devices/%s/type" % self._pmu) as file:
                self._type = int(file.read())
        except OSError as error:
            raise refused(error, "this kernel has no %ss" % self._pmu) from None
        self._text, self._offset = "", 0

    def load(self, code: bytes, purpose: str) -> None:
        self.program = bpf.Program(bpf.KPROBE, code, name="ek_probe", purpose=purpose)

    def attach(self) -> None:
        assert self.program is not None
        held = ctypes.create_string_buffer(self._text.encode())
        try:
            event = perf.Event(
                self._type, 0, perf.online_cpus()[0], config1=ctypes.addressof(held), config2=self._offset
            )
            self._held.append(event)
            event.attach(self.program)
            event.enable()
        except OSError as error:
            self.detach()
            raise refused(error, "cannot put a probe on %s" % self.event) from None


class Kprobe(_Probe):
    """A probe on any instruction of the kernel."""

    name = "kprobe"
    _pmu = "kprobe"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        self._text, self._offset = parse_function(event)
        if not same_address(self._text):
            raise StepFailed("the kernel has no function %s" % self._text, errno.ENOENT)

    def mechanism(self) -> str:
        return "BPF on a kprobe, which the kernel made %s" % probe_kind(self._text, self._offset)


def probe_kind(name: str, offset: int) -> str:
    """What a kprobe became, in the words of the kernel's own list: ``[FTRACE]``, ``[OPTIMIZED]``, or an int3."""
    text = None
    for place in (_KPROBES, None):
        with contextlib.suppress(OSError):
            with open(place or tracefs.detached("debugfs") + "/kprobes/list") as file:
                text = file.read()
            break
    if text is None:
        return "an ftrace or an int3 probe: its list cannot be read"
    names = same_address(name)
    for line in text.splitlines():
        words = line.split(None, 3)
        if len(words) < 3:
            continue
        symbol, _, place = words[2].partition("+")
        # At an entry with an endbr64 the probe is behind it, so its offset is not the one that was asked for.
        if symbol in names and (not offset or int(place or "0", 16) == offset):
            for word in ("FTRACE", "OPTIMIZED"):
                if "[%s]" % word in line:
                    return "%s [%s]" % (words[2], word)
            return "%s, a breakpoint (int3)" % words[2]
    return "something that is not in its list"


class Uprobe(_Probe):
    """A breakpoint in a program's file: every process that runs it stops there for microseconds."""

    name = "uprobe"
    _pmu = "uprobe"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        self._text, self._offset = place(event)
        self.symbol = event.rpartition(":")[2]

    def mechanism(self) -> str:
        return "BPF on a uprobe at %s of %s, a breakpoint (int3)" % (self.symbol, self._text)


def place(event: str) -> tuple[str, int]:
    """The file of a uprobe, and where in it the uprobe is.  Raises StepFailed."""
    match = _UPROBE.match(event)
    if match is None:
        raise StepFailed("%r is no uprobe; write uprobe:/FILE:FUNCTION" % event, errno.EINVAL)
    path, symbol = match.groups()
    if not os.path.isfile(path):
        raise StepFailed("there is no file %s" % path, errno.ENOENT)
    return path, int(symbol, 16) if symbol.startswith("0x") else _offset_in(path, symbol)


def _offset_in(path: str, name: str) -> int:
    """Where a function begins in its file.  Raises StepFailed."""
    table, segments = stacks.elf_functions(path)
    address = table.address(name)
    for place, size, virtual in segments:
        if address is not None and virtual <= address < virtual + size:
            return address - virtual + place
    raise StepFailed("%s has no function %s; is it stripped?" % (path, name), errno.ENOENT)


class FunctionTracer(Buffer):
    """The kernel's function tracer in an instance of our own: a record for each call, of which the number is taken."""

    name = "function"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        """Raises StepFailed."""
        name, offset = parse_function(event)
        if offset:
            raise StepFailed("the function tracer is at the entry of a function only", errno.EOPNOTSUPP)
        self.function = traceable(name)
        super().__init__(event, process)
        self.set_up(cpus)

    def enable(self) -> None:
        """The filter first: without one every function is traced."""
        set_filter(self._instance, self.function)
        self._instance.set("current_tracer", "function")

    def mechanism(self) -> str:
        return "function tracer on %s, %s" % (self.function, self._instance.name)


def set_filter(instance: Any, function: str) -> None:
    """Trace this function and no other, read back: an empty filter is "all functions".  Raises OSError, StepFailed."""
    instance.set("set_ftrace_filter", function)
    found = [line.split()[0] for line in instance.get("set_ftrace_filter").splitlines() if line.strip()]
    if found != [function]:
        raise StepFailed("the filter became %r and not %s" % (" ".join(found)[:80], function), errno.EINVAL)


HOOKS = {"fentry": Fentry, "kprobe": Kprobe, "uprobe": Uprobe}
COUNTERS = {"function": FunctionTracer}
