"""Work of a known size for the tracing tests: exactly so many system calls, by a process of a known name.

The process waits for a line on stdin before it begins, so that whoever counts is ready.
"""

from __future__ import annotations

import contextlib
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
        self._process.communicate("end\n", timeout=30)


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
