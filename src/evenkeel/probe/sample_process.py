"""Start what makes or measures disturbance, so that nothing of it is left when the probe ends, however it ends.

Every child dies with the probe (PR_SET_PDEATHSIG), a program that forks dies whole (a PID namespace of its own).
Must not know what is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import time
from typing import Callable, NoReturn, Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A child that is under way.  ``pid``: the process that does the work, as seen from here."""

    def __init__(self, pid: int, ours: int) -> None:
        self.pid = pid
        self._ours = ours  # the process to wait for: the worker itself, or the one that waits for it
        self._ended = False

    def running(self) -> bool:
        if not self._ended:
            self._ended = os.waitpid(self._ours, os.WNOHANG)[0] != 0
        return not self._ended

    def kill(self) -> None:
        """Kill it with everything below it, and return when all of that is gone."""
        if not self.running():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self._ours, 0)
        self._ended = True


def start(name: str, setup: Callable[[], None], work: Callable[[], None]) -> Child:
    """Fork; the child calls ``setup()``, reports, and then ``work()``, which need not return.

    Raises the OSError that ``setup`` raised in the child.
    """

    def child(parent: int, report: int) -> None:
        _die_with_parent()
        if os.getppid() != parent:
            return  # it died before we could ask
        _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        setup()
        os.write(report, b"%d\n" % os.getpid())
        os.close(report)
        work()

    return _fork(child)


def start_tree(argv: Sequence[str]) -> Child:
    """Start a program that forks, as process 1 of a PID namespace: when that is killed the kernel kills all below it.

    Raises OSError: ENOENT when there is no such program, EPERM when not root.
    """
    program = shutil.which(argv[0])
    if not program:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])

    def child(parent: int, report: int) -> None:
        _die_with_parent()
        if os.getppid() != parent:
            return
        if _libc.unshare(_CLONE_NEWPID):  # for the next child, unshare(2): hence this process, which only waits
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        worker = os.fork()
        if worker:
            os.write(report, b"%d\n" % worker)
            os.close(report)
            os.waitpid(worker, 0)
            return
        _die_with_parent()
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        os.execv(program, list(argv))

    return _fork(child)


def _fork(child: Callable[[int, int], None]) -> Child:
    """Fork and wait for the child's report: its number, or the error that kept it from starting."""
    reader, writer = os.pipe()
    parent = os.getpid()
    ours = os.fork()
    if ours == 0:
        _in_child(child, parent, writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.readline().split()
    if len(said) == 1:
        return Child(int(said[0]), ours)
    os.waitpid(ours, 0)
    code = int(said[1]) if said else errno.ECHILD
    raise OSError(code, os.strerror(code))


def _in_child(child: Callable[[int, int], None], parent: int, report: int) -> NoReturn:
    """Run ``child`` and end: a forked copy of the probe must never answer requests."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        child(parent, report)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(report, b"error %d\n" % (error.errno or errno.EIO))
    finally:
        os._exit(1)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


#: How long one look into a pipe may take.
LOOK_S = 1.0


def drain(pipe: int, feed: Callable[[bytes], None], within_s: float = LOOK_S) -> bool:
    """Feed what waits in a pipe that does not block, piece by piece.  True: it is empty, or its writer is gone.

    False after ``within_s``: a writer that is faster than whoever reads here would keep it from its other work for
    ever.
    """
    end = time.monotonic() + within_s
    with contextlib.suppress(BlockingIOError):
        while time.monotonic() < end:
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return True
            feed(chunk)
        return False
    return True
