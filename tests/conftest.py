"""For all tests: Ctrl-C works, also where the one who started us ignores it; no example has a time limit; two lanes.

A build server, or a shell that runs us in the background, hands SIGINT down as ignored, and nohup SIGHUP; Python then
installs no handler, and every test that presses Ctrl-C or closes a terminal would fail for a reason that is not ours.

`make test` runs two processes (pytest-xdist).  First, file by file, what minds no neighbour; then, in one of the two,
what does: it measures this machine, loads it, counts what runs on it, or boots hosts on it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

settings.register_profile("any machine", deadline=None)  # a busy machine is not a defect
settings.load_profile("any machine")

#: Folders below tests/ of those who want the machine for themselves.
ALONE = ("measure", "probe", "watch", "virtual")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Also inherited by children: a handler becomes the default action in the program that they run.

    The second process is told a width of 80; our tables then have that instead of the width of a pipe.
    """
    os.environ.pop("COLUMNS", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _wants_to_be_alone(item.nodeid))


def _wants_to_be_alone(nodeid: str) -> bool:
    return nodeid.startswith(tuple(f"tests/{folder}/" for folder in ALONE))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Files in the order of the collection, the same every time; those who want to be alone are one piece, the last."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return "alone" if _wants_to_be_alone(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Lanes(config, log)
