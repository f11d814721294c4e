"""Waiting until something is so.

The deadline ends a test that would hang, and is no part of what is tested: a machine may be ten times slower than this
one, and have other tests to run.  How fast something is must not be tested by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(true: Callable[[], Any], seconds: float = 120.0, told: Callable[[], object] = lambda: "it never came") -> Any:
    """What ``true`` gives as soon as it is true; ``told``: what is said where it never is."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, told()
        time.sleep(0.01)
    return found
