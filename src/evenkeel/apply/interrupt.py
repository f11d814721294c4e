"""Ctrl-C, and SIGTERM: the first asks to stop after the step under way, the second leaves at once.

Without this a KeyboardInterrupt would hit between a write and its answer, and the engine would not know what it did.
A terminal that is closed ends the command where it is: nobody could be told how the rollback goes, the journal on the
host knows what was written, and the next apply or rollback goes on from there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from evenkeel.machines.protocol import OnProgress


class Interrupted(Exception):
    """The user asked to stop; raised by :meth:`Stop.check` where stopping is safe."""


class Stop:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        if self.requested:
            raise Interrupted

    def watching(self, on_progress: OnProgress | None) -> OnProgress:
        """A progress callback for waits that may be left at any moment, such as the wait for a reboot."""

        def report(done: int, total: int, what: str) -> None:
            if on_progress:
                on_progress(done, total, what)
            self.check()

        return report


@contextmanager
def stop_on_interrupt(on_request: Callable[[], None] | None = None) -> Iterator[Stop]:
    """``on_request()`` is called in the signal handler at the first Ctrl-C or SIGTERM.  In other threads: no effect."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        if on_request:
            on_request()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
