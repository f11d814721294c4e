"""What one event costs at a source on this machine: the same loop without it and with it.

Two loops: getuid(2), which is a system call that can be traced, and renaming this thread, which is a tracepoint that
has nothing to do with system calls.  Rounds of a millisecond, each with it and without it, and the quieter ones
count: what disturbs can only make it slower, and what disturbs for longer slows both.  Everybody's system calls are
slower by as much meanwhile.  Must not decide when to calibrate, and keeps nothing.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

from evenkeel.probe.trace import question, syscalls

#: Loop -> (its event, the event that ends it where durations are asked for).
LOOPS = {
    "call": ("syscalls:sys_enter_getuid", "syscalls:sys_exit_getuid"),
    "event": ("task:task_rename", "task:task_rename"),
}
EVENT = LOOPS["call"][0]
#: A call that hardly anybody makes, and not this loop: what its watching costs is what all others pay.
SELDOM = "syscalls:sys_enter_sethostname"
#: In each round so many chunks with it, and as many without it.
ROUNDS, CHUNKS, CALLS = 10, 40, 150
_PR_SET_NAME = 15
#: push rbx; mov ebx, edi; mov rdi, rsi; mov rsi, rdx; xor edx, edx;
#: again: mov eax, NUMBER; syscall; dec ebx; jnz again; pop rbx; ret
_X86_LOOP = "5389fb4889f74889d631d2b8%s0f05ffcb75f55bc3"

Loop = Callable[[int], None]


def calibrate(source: str, kind: str = "count", loop: str = "call", by: str = "process") -> dict[str, Any]:
    """Operation: ``{"ns", "other_ns", "base_ns", "events"}``.  Raises StepFailed where the source does not work.

    ``ns``: what one event costs; ``other_ns``: what each other system call costs while one is watched, 0 for an event
    that is none.  Runs in a thread on the first CPU that it may use: a source may leave out the thread that reads.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_calibrate, source, kind, loop, by).result()


def _calibrate(source: str, kind: str, loop: str, by: str) -> dict[str, Any]:
    events = list(LOOPS[loop]) if kind in ("latency", "wakeups") else [LOOPS[loop][0]]
    asked = {"kind": kind, "events": events, "by": by, "ring_bytes": 1 << 20}
    run = getuid_loop() if loop == "call" else rename_loop()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone, which ends soon
    base, ns, seen = added(asked, source, run)
    other = added({**asked, "kind": "count", "events": [SELDOM]}, source, run)[1] if loop == "call" else 0.0
    return {
        "ns": round(ns / len(events), 1),
        "other_ns": round(other, 1),
        "base_ns": round(base, 1),
        "events": seen,
    }


def added(asked: dict[str, Any], source: str, run: Loop) -> tuple[float, float, int]:
    """(ns of one turn without it, ns that the question adds to it, events).

    Of the quieter half of the rounds the difference in the middle: one round may be quiet with it and not without it.
    """
    rounds, seen = [], 0
    for _ in range(ROUNDS):
        # From the beginning each time: a counter that is only switched off costs something, too.
        question.trace_start(asked, source)
        try:
            with_it = quickest(run)
            seen += question.trace_wait(0)["events"]
        finally:
            question.trace_close()
        rounds.append((quickest(run), with_it))
    quiet = sorted(rounds, key=sum)[: ROUNDS // 2]
    return quiet[0][0], max(0.0, statistics.median(with_it - base for base, with_it in quiet)), seen


def quickest(run: Loop, chunks: int = CHUNKS, calls: int = CALLS) -> float:
    """Nanoseconds of one turn, in the quickest chunk."""
    clock, best = time.perf_counter_ns, float("inf")
    for _ in range(chunks):
        start = clock()
        run(calls)
        best = min(best, (clock() - start) / calls)
    return best


def getuid_loop() -> Loop:
    return call_loop("getuid")


def rename_loop() -> Loop:
    """Gives this thread the name that it has."""
    with open("/proc/thread-self/comm", "rb") as file:
        name = ctypes.create_string_buffer(file.read().strip()[:15], 16)
    loop = call_loop("prctl", _PR_SET_NAME, ctypes.addressof(name))

    def rename(calls: int) -> None:
        loop(calls)
        assert name.value  # it lives as long as the loop

    return rename


def call_loop(name: str, first: int = 0, second: int = 0) -> Loop:
    """A function that makes so many of these system calls: on x86 in machine code, as a C program would."""
    number = syscalls.number(name)
    assert number is not None, name
    if platform.machine() == "x86_64":
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex(_X86_LOOP % number.to_bytes(4, "little").hex()))
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        made = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_long, ctypes.c_long)(address)

        def loop(calls: int) -> None:
            made(calls, first, second)
            assert not page.closed  # it lives as long as the loop

        return loop
    call = ctypes.CDLL(None).syscall
    words = ctypes.c_long(number), ctypes.c_long(first), ctypes.c_long(second)

    def slow(calls: int) -> None:
        for _ in itertools.repeat(None, calls):
            call(*words)

    return slow
