"""What the tracing benchmarks share: a loop of system calls in machine code, and other tools that watch meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Self

#: tracefs for the peers, in a mount namespace of their own.
MOUNTED = 'test -d /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing; exec "$@"'
#: Until a tool has attached; perf and bpftrace say nothing when they have.
ATTACH_S = 3.0
_CHILD = """
import os, sys, time
sys.path[:] = sys.argv[3:]
from evenkeel.probe.trace.loops import getuid_loop
loop, calls = getuid_loop(), int(sys.argv[1])
os.sched_setaffinity(0, {int(sys.argv[2])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
loop(calls)
print(time.perf_counter() - start, flush=True)
sys.stdin.readline()
"""


class CallLoop:
    """A process that waits, makes its calls of getuid on the last CPU at FIFO 1, says how long they took, and stays."""

    def __init__(self, calls: int) -> None:
        cpu = os.cpu_count() or 1
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _CHILD, str(calls), str(cpu - 1), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout and self._process.stdout.readline() == "ready\n"
        self.pid = self._process.pid

    def start(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def done(self) -> bool:
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def seconds(self) -> float:
        assert self._process.stdout
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("end\n")


@contextlib.contextmanager
def seen_by(*argv: str, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """A tool that watches meanwhile; it is given time to attach, and ended by Ctrl-C.  Raises OSError."""
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(variables or {})},
    )
    time.sleep(ATTACH_S)
    try:
        if process.poll() is not None:
            raise OSError(f"{argv[0]} ended with {process.returncode}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(2)
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
