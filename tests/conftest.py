"""For all tests: Ctrl-C works, also where the one who started us ignores it; no example has a time limit; lanes.

A build server, or a shell that runs us in the background, hands SIGINT down as ignored, and nohup SIGHUP; Python then
installs no handler, and every test that presses Ctrl-C or closes a terminal would fail for a reason that is not ours.

`make test` runs four processes (pytest-xdist) on two cores.  One boots virtual hosts, which is mostly waiting for one
core; the other three run, file by file and with what is left of the cores, what minds no neighbour.  The first goes on
with what does mind one: it measures this machine, loads it, or counts what runs on it, and none of the others has a
test running meanwhile.
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
    "tests/measure/trace/",
    "tests/probe/test_canary",
    "tests/probe/test_channels",
    "tests/probe/test_facts_live",
    "tests/probe/test_recording",
    "tests/probe/test_running",
    "tests/probe/test_sample",
    "tests/probe/test_services",
    "tests/probe/trace/",
    "tests/watch/test_events",
    "tests/watch/test_verb",
)

#: Niceness of those that mind no neighbour: a virtual host that has to wait takes longer, and as much of its core.
NICE = 10


def pytest_sessionstart(session: pytest.Session) -> None:
    """Also inherited by children: a handler becomes the default action in the program that they run.

    The others are told a width of 80; our tables then have that instead of the width of a pipe.
    """
    os.environ.pop("COLUMNS", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is quick comes first; of several processes the first takes what boots and measures: it takes longest."""
    several = hasattr(config, "workerinput")
    items.sort(key=lambda item: _turn(item.nodeid) * (-1 if several else 1))


def _turn(nodeid: str) -> int:
    return 2 if nodeid.startswith(VIRTUAL) else 1 if nodeid.startswith(ALONE) else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that wants to be alone waits for those of the other processes, and they for it."""
    if not hasattr(item.config, "workerinput") or item.nodeid.startswith(VIRTUAL):
        return (yield)
    if not _turn(item.nodeid) and os.getpriority(os.PRIO_PROCESS, 0) < NICE:
        os.nice(NICE)
    with Path(__file__).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX if _turn(item.nodeid) else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)  # also for children that were forked meanwhile


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Files in the order of the collection, the same every time; what boots and what measures are one piece."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return "boots and measures" if _turn(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Lanes(config, log)
