"""End the processes of an attempt whose agent died together with the keeper of the step.

A keeper ends its step when the agent dies (:mod:`evenkeel.lab.hold`).  Should both be killed at once, the step's
processes still tell whose they are: their HOME lies in the attempt's folder, whose name no other attempt has.
Only on the agent's own machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

#: After SIGKILL; what is still there then hangs in the kernel.
_PATIENCE_S = 5.0


def folder_name(identity: str, attempt: int) -> str:
    """Of an attempt's folder in an agent's folder."""
    return f"{identity}-{attempt}"


def processes_of(name: str) -> list[int]:
    """Process ids with that folder name in their HOME, zombies not counted."""
    mark, found = f"/{name}/work".encode(), []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (path / "environ").read_bytes().split(b"\0")
            if any(word.startswith(b"HOME=") and word.endswith(mark) for word in words):
                found.append(int(path.name))
    return found


def end_attempt(identity: str, attempt: int) -> bool:
    """Kill whatever is left of it, and wait until it is gone.  False: something cannot be ended."""
    name = folder_name(identity, attempt)
    until = time.monotonic() + _PATIENCE_S
    while found := processes_of(name):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True
