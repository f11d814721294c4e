"""The starvation canary: does an operation that needs a turn on every CPU still come to its end?

Writing /proc/sys/vm/stat_refresh queues work on each CPU and waits for all of it (schedule_on_each_cpu), as libvirt,
systemd and memory compaction do all day.  Measured on 6.12: 0.03-0.11 s with the fair server on, up to its period of a
second when it has slept, and as long as the spinner lives (11 s, 7 s) with the fair server off and one FIFO thread
spinning on one CPU.

This module must not know which setting is being tried, and it must never wait for the operation itself: it may hang
beyond the reach of SIGKILL, so a child does it and is left behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any, Callable

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.inside import inside

FILE = "/proc/sys/vm/stat_refresh"
#: A healthy host needs a twentieth of this.  Where a thread spins and the fair server is on, a CPU has its turn within
#: the server's period of a second, by default, and at the end of that when nothing has waited before: seen 1.1 to 1.3 s
#: in emulation.
LIMIT_S = 2.0
#: In emulation, or under load, plain slowness is no starvation: the limit is this many times what it took before.
FACTOR = 4.0
#: An operation that takes longer before anything was changed means that the host is starved already.
PATIENCE_S = 10.0
ETIMEDOUT = 110

_hanging: list[int] = []  # children that wait for a CPU; they end by themselves once it is given back


def takes_away(value: Any, old: str | None) -> bool:
    """Whether writing ``value`` leaves ordinary tasks less time than ``old``: 0 and -1 mean none and no limit."""
    try:
        wanted = int(str(value), 0)
        return wanted <= 0 or wanted < int(old or "", 0)
    except ValueError:
        return True


def host_wide(within_s: float, root: str = "/") -> float | None:
    """Seconds that the operation took; None: it was not done ``within_s`` seconds later, and goes on hanging.

    A machine without the file gives 0.0, see :func:`exists`.
    """
    _reap()
    start = time.monotonic()
    child = os.fork()
    if not child:
        _refresh(inside(root, FILE))
    pause = 0.001
    while True:
        done, _ = os.waitpid(child, os.WNOHANG)
        elapsed = time.monotonic() - start
        if done:
            return elapsed
        if elapsed > within_s:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # heard when it has its turn
            _hanging.append(child)
            return None
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def exists(root: str = "/") -> bool:
    """Whether this kernel has the operation (CONFIG_SMP and procfs)."""
    return os.path.exists(inside(root, FILE))


def calibrate(root: str = "/") -> tuple[float, float]:
    """(seconds that it takes now, limit in seconds for the time after the change).  Raises StepFailed."""
    took = host_wide(PATIENCE_S, root)
    if took is None:
        raise StepFailed(
            "a CPU of this host is starved already: an operation that needs a turn on every CPU did not end within "
            "%.0f s; find the thread that spins at a real-time priority, or give its CPU the fair server back"
            % PATIENCE_S,
            ETIMEDOUT,
            FILE,
        )
    return took, limit(took)


def limit(took: float) -> float:
    """Seconds within which the operation must end on a host where it took that long when all was well."""
    return max(LIMIT_S, FACTOR * took)


def watch(within_s: float, limit_s: float, root: str = "/") -> tuple[float | None, float]:
    """Try again and again for ``within_s`` seconds.  Returns (the slowest, seconds spent); None: one did not end."""
    start, slowest = time.monotonic(), 0.0
    while True:
        took = host_wide(limit_s, root)
        spent = time.monotonic() - start
        if took is None:
            return None, spent
        slowest = max(slowest, took)
        if spent >= within_s:
            return slowest, spent
        time.sleep(min(0.5, within_s / 4))


class DeadMansSwitch:
    """A child that takes a change back unless it is told in time to keep it: its parent may be killed or starved.

    The child inherits the lock of the journal, so that nobody else writes before it is done.
    """

    def __init__(self, take_back: Callable[[], None], within_s: float) -> None:
        listen, self._speak = os.pipe()
        self._child = os.fork()
        if not self._child:
            try:
                os.close(self._speak)
                _silence()
                ready, _, _ = select.select([listen], [], [], within_s)
                if not ready or os.read(listen, 1) != b"k":
                    take_back()
            finally:
                os._exit(0)
        os.close(listen)

    def release(self) -> None:
        """Keep what was done, or what was taken back by other means.  Waits until the child is gone."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._speak, b"k")
        os.close(self._speak)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)


def _refresh(path: str) -> None:
    """In the child.  Holds nothing of its parent: neither the lock nor the connection may hang with it."""
    try:
        _silence()
        os.closerange(3, 4096)
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, b"1\n")
    finally:
        os._exit(0)  # also when there is no such file, or a counter was found negative (EINVAL): it had its turn


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _reap() -> None:
    for child in list(_hanging):
        try:
            if os.waitpid(child, os.WNOHANG)[0]:
                _hanging.remove(child)
        except ChildProcessError:
            _hanging.remove(child)
