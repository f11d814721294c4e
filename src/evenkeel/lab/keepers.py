"""Starts keepers (:mod:`evenkeel.lab.hold`): one alone, or many from a process that waits with all of it loaded.

A new Python for each step takes longer than all else between a start and its command, so an agent has a
:class:`Mother`: a keeper that keeps nothing, and splits off one for each step.  What ends with whom stays the same,
because each keeper has its own line to the agent, whose end ends its step.  Knows no steps and no lab.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO

from evenkeel.lab import hold

#: Given orders, a keeper's two ends: what is written to it, and where its report comes from.
Keep = Callable[[str], AbstractContextManager[tuple[IO[bytes], IO[bytes]]]]
_COMMAND = (sys.executable, "-I", "-S", hold.__file__)


@contextlib.contextmanager
def alone(orders: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A process of its own, for who keeps one step."""
    with subprocess.Popen(
        [*_COMMAND, orders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/"
    ) as process:
        assert process.stdin and process.stdout
        yield process.stdin, process.stdout


class Mother:
    """For who keeps many.  From any thread; started with the first step, and anew when somebody killed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._closed = False

    def ready(self) -> None:
        """Start it, so that the first step does not wait for it.  Raises OSError."""
        with self._lock:
            if self._line is None:
                self._start()

    @contextlib.contextmanager
    def keep(self, orders: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """A keeper for one step.  Raises OSError."""
        said = orders.encode()
        for again in (True, False):
            order, report = self._hand_over()
            with contextlib.closing(order), report:
                begun = b""
                with contextlib.suppress(BrokenPipeError):
                    order.write(len(said).to_bytes(4, "big") + said)
                    begun = report.read(1)
                if begun:
                    yield order, report
                    return
            # The one that waits was killed with the pipes on their way; nothing of the step has begun.
            with self._lock:
                self._end()
            if not again:
                raise OSError("no keeper could be started")

    def _hand_over(self) -> tuple[IO[bytes], IO[bytes]]:
        its_in, order = os.pipe()
        report, its_out = os.pipe()
        made = os.fdopen(order, "wb", buffering=0), os.fdopen(report, "rb")
        try:
            with self._lock:
                if self._line is None:
                    self._start()
                assert self._line is not None
                with contextlib.suppress(OSError):  # it was killed: the pipes' ends say so
                    socket.send_fds(self._line, [b"k"], [its_in, its_out])
        except BaseException:
            for one in made:
                one.close()
            raise
        finally:
            os.close(its_in)
            os.close(its_out)
        return made

    def _start(self) -> None:
        if self._closed:
            raise OSError("this agent is ending")
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                _COMMAND, stdin=its.fileno(), stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
            )
        self._line = ours

    def _end(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.wait()  # the end of its line is its own
            self._process = None

    def close(self) -> None:
        """Its keepers go on; there are no more."""
        with self._lock:
            self._closed = True
            self._end()
