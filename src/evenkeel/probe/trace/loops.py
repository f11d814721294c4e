"""What makes events, as often as wanted and nothing else: loops whose every turn is known.

``call``: getuid(2), a system call that can be traced.  ``event``: this thread is renamed, which is a tracepoint that
has nothing to do with system calls.  ``fault``: a page of memory is touched that is not there yet, which the kernel
learns by an exception.  ``switch``: a byte goes to another process on this CPU and comes back.
``uprobe``: a function of our own is called, which begins as the one that is asked about.  ``profile``: it computes.
Must not measure and must not trace.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import mmap
import os
import platform
import subprocess
import sys
import time
from typing import Callable, Iterator, NamedTuple

from evenkeel.probe.trace import syscalls

#: Loop -> the event that its turn makes, and the one that ends it where durations are asked for.
EVENTS = {
    "call": ("syscalls:sys_enter_getuid", "syscalls:sys_exit_getuid"),
    "event": ("task:task_rename", "task:task_rename"),
    "fault": ("exceptions:page_fault_user", "exceptions:page_fault_user"),
    "switch": ("sched:sched_waking", "sched:sched_switch"),
    "uprobe": ("", ""),
    "profile": ("", ""),
}
GETUID = EVENTS["call"][0]
_PR_SET_NAME = 15
#: push rbx; mov ebx, edi; mov rdi, rsi; mov rsi, rdx; xor edx, edx;
#: again: mov eax, NUMBER; syscall; dec ebx; jnz again; pop rbx; ret
_X86_LOOP = "5389fb4889f74889d631d2b8%s0f05ffcb75f55bc3"
#: again: mov byte [rsi], 1; add rsi, 4096; dec edi; jnz again; ret
_X86_TOUCH = "c606014881c600100000ffcf75f2c3"
_PAGES = 300
#: The other process of ``switch``.
_ECHO = "import os\nwhile os.read(0, 1): os.write(1, b'x')"
#: First bytes of a function of ours, and what ends it: push rbp, which the kernel does in place of the processor, or
#: mov eax, 1, which it lets the processor do alone, with a second trap behind it.
_PUSH, _MOV, _PUSHED, _RETURN = b"\x55", b"\xb8\x01\x00\x00\x00", b"\x5d\xc3", b"\xc3"
#: What the kernel does itself (arch/x86/kernel/uprobes.c): push, nop, call, jumps.
_DONE_BY_KERNEL = (*range(0x50, 0x58), *range(0x70, 0x80), 0x90, 0xE8, 0xE9, 0xEB)

#: Makes so many turns.
Run = Callable[[int], None]


class Loop(NamedTuple):
    """``run`` makes so many turns.  ``events``: what a question about it names.  ``clock``: tells what they took."""

    run: Run
    events: tuple[str, str]
    clock: Callable[[], int] = time.process_time_ns


@contextlib.contextmanager
def loop(name: str, like: str = "") -> Iterator[Loop]:
    """``like``: a uprobe, for a loop of uprobes.  Raises OSError, KeyError for a name that is not in :data:`EVENTS`."""
    if name == "profile":
        yield Loop(compute, EVENTS[name], time.perf_counter_ns)  # an interrupt's time may be nobody's
    elif name == "switch":
        with _echo() as (run, clock):
            yield Loop(run, EVENTS[name], clock)
    elif name == "uprobe":
        with _function(like) as (run, event):
            yield Loop(run, (event, event))
    else:
        yield Loop(_MAKERS[name](), EVENTS[name])


def getuid_loop() -> Run:
    return call_loop("getuid")


def rename_loop() -> Run:
    """Gives this thread the name that it has."""
    with open("/proc/thread-self/comm", "rb") as file:
        name = ctypes.create_string_buffer(file.read().strip()[:15], 16)
    run = call_loop("prctl", _PR_SET_NAME, ctypes.addressof(name))

    def rename(calls: int) -> None:
        run(calls)
        assert name.value  # it lives as long as the loop

    return rename


def fault_loop() -> Run:
    """Touches one page after the other, and lets go of all before the first is touched again.

    Of shared memory, which goes on to exist meanwhile: nobody has to clear it.  A huge page would be there at once.
    """
    memory = mmap.mmap(-1, _PAGES * mmap.PAGESIZE)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # type: ignore[attr-defined,unused-ignore]
    begin, place = ctypes.addressof(ctypes.c_char.from_buffer(memory)), 0
    touch = _x86(_X86_TOUCH) if platform.machine() == "x86_64" else None

    def run(turns: int) -> None:
        nonlocal place
        while turns > 0:
            if place == _PAGES:
                memory.madvise(mmap.MADV_DONTNEED)
                place = 0
            these = min(turns, _PAGES - place)
            if touch is not None:
                touch(these, begin + place * mmap.PAGESIZE, 0)
            else:
                for number in range(place, place + these):
                    memory[number * mmap.PAGESIZE] = 1
            place, turns = place + these, turns - these

    return run


_MAKERS: dict[str, Callable[[], Run]] = {"call": getuid_loop, "event": rename_loop, "fault": fault_loop}


def call_loop(name: str, first: int = 0, second: int = 0) -> Run:
    """A function that makes so many of these system calls: on x86 in machine code, as a C program would."""
    number = syscalls.number(name)
    assert number is not None, name
    if platform.machine() == "x86_64":
        made = _x86(_X86_LOOP % number.to_bytes(4, "little").hex())
        return lambda calls: made(calls, first, second)
    call = ctypes.CDLL(None).syscall
    words = ctypes.c_long(number), ctypes.c_long(first), ctypes.c_long(second)

    def slow(calls: int) -> None:
        for _ in itertools.repeat(None, calls):
            call(*words)

    return slow


def _x86(code: str) -> Callable[[int, int, int], None]:
    """Machine code, as a function of an int and two longs."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex(code))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    made = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_long, ctypes.c_long)(address)

    def function(number: int, first: int, second: int) -> None:
        made(number, first, second)
        assert not page.closed  # it lives as long as the function

    return function


def compute(turns: int) -> None:
    """No system call, no memory; some 10 us a turn."""
    number = 1
    for _ in itertools.repeat(None, turns * 200):
        number = number * 3 & 0xFFFF


def together(pid: int) -> Callable[[], int]:
    """A clock: nanoseconds of CPU that this thread and another process took."""
    other = ~pid << 3 | 2  # CPUCLOCK_SCHED of include/linux/posix-timers_types.h
    return lambda: time.thread_time_ns() + time.clock_gettime_ns(other)


@contextlib.contextmanager
def _echo() -> Iterator[tuple[Run, Callable[[], int]]]:
    """Each turn: the other is woken, this thread sleeps, it is woken, the other sleeps; all on one CPU."""
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin and other.stdout
        there, back = other.stdin.fileno(), other.stdout.fileno()

        def run(turns: int) -> None:
            for _ in itertools.repeat(None, turns):
                os.write(there, b"x")
                os.read(back, 1)

        run(1)  # until it has started
        yield run, together(other.pid)
        other.stdin.close()


@contextlib.contextmanager
def _function(like: str) -> Iterator[tuple[Run, str]]:
    """A function in a file in memory, and the uprobe that is on it.  Raises OSError on what is not x86."""
    if platform.machine() != "x86_64":
        raise OSError(95, "no function of ours for %s" % platform.machine())
    code = _PUSH + _PUSHED if _begins_with(like) in _DONE_BY_KERNEL else _MOV + _RETURN
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    descriptor = os.memfd_create("evenkeel-uprobe")
    try:
        os.write(descriptor, code.ljust(mmap.PAGESIZE, _RETURN))
        # Python's mmap has no address for pages that nobody may write to, and the kernel no uprobe for others.
        protection = mmap.PROT_READ | mmap.PROT_EXEC
        address = libc.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_PRIVATE, descriptor, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "no pages to run in")
        try:
            function = ctypes.CFUNCTYPE(None)(address)

            def run(turns: int) -> None:
                for _ in itertools.repeat(None, turns):
                    function()

            yield run, "uprobe:/proc/%d/fd/%d:0x0" % (os.getpid(), descriptor)
        finally:
            libc.munmap(address, mmap.PAGESIZE)
    finally:
        os.close(descriptor)


def _begins_with(event: str) -> int:
    """The first byte of the function behind a uprobe.  Raises StepFailed, OSError."""
    from evenkeel.probe.trace import functions

    path, offset = functions.place(event)
    with open(path, "rb") as file:
        file.seek(offset)
        return (file.read(1) or b"\0")[0]


# -- between the turns ------------------------------------------------------------------------------------------------

_THING = {"a": [1, 2.5, "x"] * 6, "b": {"c": list(range(20))}}


class Between:
    """Other work: ``bytes`` 0: a little of Python's; else also as many bytes of memory are moved."""

    def __init__(self, size: int) -> None:
        self._from, self._to = bytearray(size), bytearray(size)

    def __call__(self) -> None:
        if self._to:
            json.dumps(_THING)
            self._to[:] = self._from
