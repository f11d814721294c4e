"""The agent on the lab's own machine, which `evenkeel lab up` starts: a process of its own, so that it outlives the
service when that is killed.  A service that ends in order ends it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI

from evenkeel.lab import scope
from evenkeel.lab.lab import Lab

log = logging.getLogger("evenkeel.lab")
_AGAIN_S = 1.0
#: A service that was killed and comes back within that finds its agent there; later it starts another.
LEAVE_AFTER_S = 60
#: A step may take its keeper's politeness, and a little more.
_PATIENCE_S = 10.0


def folder_of(lab_folder: Path) -> Path:
    return lab_folder / "agent"


def pid_of(folder: Path) -> int | None:
    """Of the agent that uses this folder now; None: none does."""
    try:
        with (folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


@contextlib.contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[None]:
    """For :mod:`evenkeel.lab.parts`.  One that outlived the service before is kept."""
    del app
    if lab.settings.agent_slots == 0:
        yield
        return
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(lab, stopping), name="local-agent")
    watcher.start()
    try:
        yield
    finally:
        stopping.set()
        watcher.join()
        _end(folder_of(lab.folder))


def _watch(lab: Lab, stopping: threading.Event) -> None:
    folder = folder_of(lab.folder)
    process: subprocess.Popen[bytes] | None = None
    while not stopping.is_set():
        if process is not None and process.poll() is not None:
            log.warning("the local agent ended with %d; starting another", process.returncode)
            process = None
        try:
            if process is None and pid_of(folder) is None:
                process = _start(lab, folder)
        except OSError as error:  # no process, no file, no room: for now
            log.error("the local agent could not be started, tried again in %g s: %s", _AGAIN_S, error)
        stopping.wait(_AGAIN_S)
    if process is not None:
        # By its process, not by its lock: one that just begins has none yet, and would be waited for without end.
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(lab: Lab, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        "lab",
        "agent",
        "--lab",
        str(lab.folder),
        "--folder",
        str(folder),
        "--name",
        "local",
        "--leave-after",
        str(LEAVE_AFTER_S),
    ]
    if lab.settings.agent_slots is not None:
        words += ["--slots", str(lab.settings.agent_slots)]
    with (folder / "agent.log").open("ab") as out:
        return subprocess.Popen(
            [*scope.words(), sys.executable, "-m", "evenkeel", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _end(folder: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
    while (pid := pid_of(folder)) is not None:
        late = time.monotonic() > until
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        if time.monotonic() > until + 1:
            log.error("the local agent %d cannot be ended", pid)
            return
        time.sleep(0.05)
