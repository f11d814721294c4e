"""For all tests: Ctrl-C works, also where the one who started us ignores it; no example has a time limit.

A build server, or a shell that runs us in the background, hands SIGINT down as ignored; Python then installs no
handler, and every test that presses Ctrl-C would fail for a reason that is not ours.
"""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is not a defect
settings.load_profile("any machine")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Also inherited by children: a handler becomes the default action in the program that they run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
