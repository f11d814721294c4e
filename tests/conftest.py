"""For all tests: Ctrl-C works, also where the one who started us ignores it; no example has a time limit; lanes.

A build server, or a shell that runs us in the background, hands SIGINT down as ignored, and nohup SIGHUP; Python then
installs no handler, and every test that presses Ctrl-C or closes a terminal would fail for a reason that is not ours.

`make test` runs two processes (pytest-xdist).  First, file by file, what minds no neighbour; then, in one of the two,
what does: it measures this machine, loads it or counts what runs on it, and none of the other has a test running
meanwhile; last what boots hosts.  To boot them beside the first was tried: on two cores it took as long, and tests that
had to wait for a core failed.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

settings.register_profile("any machine", deadline=None)  # a busy machine is not a defect
settings.load_profile("any machine")

#: What boots hosts.
VIRTUAL = "tests/virtual/"
#: What wants the machine for itself: beginnings of the names of files.
ALONE = (
    "tests/measure/test_host",
    "tests/measure/test_live",
    "tests/measure/test_verb",
    "tests/measure/trace/test_calibration",
    "tests/measure/trace/test_verb",
    "tests/probe/test_canary",
    "tests/probe/test_facts_live",
    "tests/probe/test_recording.py",
    "tests/probe/test_sample",
    "tests/probe/trace/",
    "tests/watch/test_events",
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Also inherited by children: a handler becomes the default action in the program that they run.

    The second process is told a width of 80; our tables then have that instead of the width of a pipe.
    """
    os.environ.pop("COLUMNS", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _turn(item.nodeid))


def _turn(nodeid: str) -> int:
    return 2 if nodeid.startswith(VIRTUAL) else 1 if nodeid.startswith(ALONE) else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that wants to be alone waits for the one that runs in the other process, and that process for it."""
    if not hasattr(item.config, "workerinput") or item.nodeid.startswith(VIRTUAL):
        return (yield)
    with Path(__file__).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX if _turn(item.nodeid) else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)  # also for children that were forked meanwhile


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Files in the order of the collection, the same every time; what measures and boots is one piece, the last."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return "measures and boots" if _turn(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Lanes(config, log)
