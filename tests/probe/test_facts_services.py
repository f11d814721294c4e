"""Services that ask firmware and devices by themselves, as facts."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.probe.facts.owners import POLLERS, read_services
from evenkeel.probe.facts.root import Root

UNITS = "etc/systemd/system"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / UNITS / "timers.target.wants").mkdir(parents=True)
    wants = tmp_path / UNITS / "timers.target.wants"
    (wants / "fwupd-refresh.timer").symlink_to("/lib/systemd/system/fwupd-refresh.timer")
    return tmp_path


def test_what_runs_and_what_starts_at_boot(tree: Path) -> None:
    assert read_services(Root(str(tree)), ["smartd", "tuned"]) == {
        "fwupd-refresh.timer": f"/{UNITS}/timers.target.wants/fwupd-refresh.timer: starts at boot",
        "smartd": "process smartd runs",
    }


def test_a_masked_timer_does_not_start(tree: Path) -> None:
    """Its enablement link is still there, below the mask."""
    (tree / UNITS / "fwupd-refresh.timer").symlink_to("/dev/null")
    assert read_services(Root(str(tree)), []) == {"fwupd-refresh.timer": f"/{UNITS}/fwupd-refresh.timer: masked"}


def test_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert read_services(Root(str(tmp_path)), []) == {}
    assert all(len(name) <= 15 for name in POLLERS)  # comm is cut there
