"""Work of a known size for the tracing tests: exactly so many system calls, by a process of a known name.

The process waits for a line on stdin before it begins, so that whoever counts is ready.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_GETUID = """
import os, sys
open("/proc/self/comm", "w").write(sys.argv[2])
call = os.getuid
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    call()
os.getppid()
print("done", flush=True)
sys.stdin.readline()
"""


class Caller:
    """A process that calls getuid(2) exactly ``times`` after :meth:`go`, then getppid(2), and stays until the end."""

    def __init__(self, times: int, name: str) -> None:
        self.times, self.name = times, name
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _GETUID, str(times), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def go(self) -> None:
        """Begin, and come back when the last call was made."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate("end\n", timeout=120)


@contextlib.contextmanager
def never_idle() -> Iterator[None]:
    """Keep every CPU busy with something that gives way to all else.

    Where a hypervisor's own kernel runs these tests, tracefs was seen to have no sched_switch out of idle on one of two
    CPUs (Linux 6.18 with cpuidle_haltpoll.force=1: 50 switches to a sleeper on CPU 0, none on CPU 1, all of those away
    from it); BPF had them all.
    """
    busy = [
        subprocess.Popen(["nice", "-n", "19", "taskset", "-c", str(cpu), "sh", "-c", "while :; do :; done"])
        for cpu in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def with_tracefs(*argv: str) -> list[str]:
    """The oracles want tracefs mounted: in a mount namespace of their own, so that there is nothing to put back."""
    script = 'test -d /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *argv]


@contextlib.contextmanager
def caller(times: int, name: str) -> Iterator[Caller]:
    one = Caller(times, name)
    try:
        yield one
    finally:
        one.close()
