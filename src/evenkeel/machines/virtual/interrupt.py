"""Ctrl-C and its like while a command makes and removes virtual hosts.  Main thread only; knows no host.

For the verbs that begin a process or a folder on this machine.  The others need none of it: what a probe began ends
with its connection, a master of ssh by itself, and a host that is being stopped or removed goes on doing so.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """A `kill`, or a terminal that is closed, cleans up as Ctrl-C does; without this a virtual host would stay.

    A signal that is ignored stays so: that is what `nohup` is for.
    """

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No second Ctrl-C while a host is removed: it takes a moment, and half of it would leave a process behind."""
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in held:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
