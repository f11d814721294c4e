"""The starvation canary on a constructed root: its file is a FIFO there.  Opening one that nobody reads blocks exactly
as the real file does on a starved host; tests/virtual starves a real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.probe import canary, journal, write
from evenkeel.probe.failure import StepFailed
from tests.probe import tree
from tests.probe.test_write import PLAN, die_at, in_child, lines, undo_all

#: The kernel's default, less the 50 ms that the server then runs (kernel/sched/fair.c, dl_server_params).
FAIR_SERVER_WAITS_S = 0.95
FAIR = "/sys/kernel/debug/sched/fair_server/cpu2/runtime"
OFF = {"kind": "file", "path": FAIR, "value": "0", "compare": "integer", "canary": True}
BACK = {**OFF, "value": "50000000"}


class Host:
    """A root whose host-wide operation ends only while ``answering``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fair = root / FAIR.lstrip("/")
        self.fair.parent.mkdir(parents=True)
        self.fair.write_text("50000000\n")
        self.file = root / canary.FILE.lstrip("/")
        os.mkfifo(self.file)
        self._reader: subprocess.Popen[bytes] | None = None

    def answer(self) -> None:
        """From here on somebody reads, in a process of its own: the operation ends at once."""
        self.starve()
        descriptor = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)
        self._reader = subprocess.Popen(["sleep", "600"], stdin=descriptor)
        os.close(descriptor)

    def starve(self) -> None:
        if self._reader is not None:
            self._reader.kill()
            self._reader.wait()
            self._reader = None

    def starve_when_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As a spinning FIFO thread does: the operation hangs from the moment on that the fair server is off."""
        from evenkeel.probe.steps import files

        real = files.write_value

        def write_value(path: str, content: str, where: str) -> None:
            real(path, content, where)
            if content == "0\n":
                self.starve()
            else:
                self.answer()

        monkeypatch.setattr(files, "write_value", write_value)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    root = tmp_path / "root"
    root.mkdir()
    tree.build(root)
    made = Host(root)
    made.answer()
    yield made
    made.starve()
    journal.release(str(root))


def test_it_ends_or_it_does_not(host: Host) -> None:
    took = canary.host_wide(5.0, str(host.root))
    assert took is not None
    host.starve()
    assert canary.host_wide(0.1, str(host.root)) is None
    host.answer()
    assert canary.host_wide(5.0, str(host.root)) is not None
    canary._reap()
    assert canary._hanging == []  # the child that hung is gone


def test_the_limit_is_two_seconds_unless_the_host_was_slower_before(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    took, limit = canary.calibrate(str(host.root))
    assert limit == max(2.0, 4 * took)
    monkeypatch.setattr(canary, "host_wide", lambda within_s, root: 0.9)  # a host of that speed is not to be had
    assert canary.calibrate(str(host.root)) == (0.9, 3.6)


@given(st.floats(0.0, 10.0))
def test_a_cpu_that_has_its_turn_from_the_fair_server_is_not_starved(took: float) -> None:
    """Seen: a watcher that gave a spinning guest's host its time back, and called it starved as before."""
    with mock.patch.object(canary, "host_wide", lambda within_s, root: took):
        _, limit = canary.calibrate("/")
    assert limit > took + FAIR_SERVER_WAITS_S


@pytest.mark.parametrize(
    ("value", "old", "expected"),
    [
        ("0", "50000000\n", True),
        ("-1", "950000\n", True),
        ("1000000", "50000000\n", True),
        ("50000000", "0\n", False),
        ("950000", "950000\n", False),
        ("max", "0\n", True),
        ("1", None, True),
    ],
)
def test_only_what_takes_time_away_is_watched(value: str, old: str | None, expected: bool) -> None:
    assert canary.takes_away(value, old) is expected


def test_a_change_that_starves_the_host_is_taken_back_and_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "LIMIT_S", 0.3)
    before = host.fair.read_bytes()
    host.starve_when_off(monkeypatch)
    answer = write.apply_step(dict(OFF), PLAN, "R-RT-2:cpu2", "throttle", root=str(host.root))
    assert (answer["outcome"], answer["errno"], answer["read_back"]) == ("taken_back", "ETIMEDOUT", "50000000")
    assert "stat_refresh" in answer["message"] and "before the change it took 0." in answer["message"]
    assert host.fair.read_bytes() == before
    assert [line["event"] for line in lines(host.root)] == ["intent", "refused", "undone"]
    assert journal.writer(str(host.root)).outstanding() == []


def test_a_change_that_does_not_starve_it_stays(host: Host) -> None:
    answer = write.apply_step(dict(OFF), PLAN, "R-RT-2:cpu2", "throttle", root=str(host.root))
    assert answer["outcome"] == "done"
    assert answer["canary_limit_s"] >= canary.LIMIT_S
    assert host.fair.read_text() == "0\n"
    undo_all(host.root)
    assert host.fair.read_text() == "50000000\n"


def test_a_host_that_is_starved_already_is_not_touched_but_can_be_cured(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "PATIENCE_S", 0.2)
    host.starve()
    with pytest.raises(StepFailed, match="starved already"):
        write.apply_step(dict(OFF), PLAN, root=str(host.root))
    assert lines(host.root) == []
    host.fair.write_text("0\n")
    assert write.apply_step(dict(BACK), PLAN, root=str(host.root))["outcome"] == "done"


def test_killed_between_the_write_and_the_canary_the_change_is_taken_back_all_the_same(host: Host) -> None:
    def killed() -> None:
        real = canary.host_wide

        def die(within_s: float, root: str = "/") -> float | None:
            if host.fair.read_text() != "0\n":
                return real(within_s, root)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        canary.host_wide = die
        write.apply_step(dict(OFF), PLAN, "R-RT-2:cpu2", "throttle", root=str(host.root))

    assert in_child(killed) == -signal.SIGKILL
    journal.writer(str(host.root), wait_s=20.0)  # the child that takes it back holds the lock until it is done
    assert host.fair.read_text() == "50000000\n"
    assert [line["event"] for line in lines(host.root)] == ["intent"]
    undo_all(host.root)
    assert host.fair.read_text() == "50000000\n"


def test_a_guest_that_starts_to_spin_later_is_seen_by_the_watch(host: Host) -> None:
    root = str(host.root)
    write.apply_step(dict(OFF), PLAN, "R-RT-2:cpu2", "throttle", root=root)
    number = journal.writer(root).outstanding()[0]["sequence"]
    quiet = write.watch_canary([number], within_s=0.3, limit_s=60.0, root=root)
    assert quiet["slowest_s"] is not None and quiet["undone"] == []
    assert host.fair.read_text() == "0\n"
    host.starve()
    found = write.watch_canary([number], within_s=0.3, limit_s=0.2, root=root)
    assert (found["slowest_s"], found["undone"], found["problems"]) == (None, [number], [])
    assert host.fair.read_text() == "50000000\n"


def test_a_machine_without_the_file_has_no_canary(host: Host) -> None:
    host.file.unlink()
    answer = write.apply_step(dict(OFF), PLAN, root=str(host.root))
    assert answer["outcome"] == "done"
    assert "canary_limit_s" not in answer
    assert write.watch_canary([], root=str(host.root))["message"] == f"no {canary.FILE} here"


def test_killed_at_every_call_with_or_without_the_child_that_watches_it(host: Host) -> None:
    """Both run the same patched calls, so at some points both die; then the journal alone has to be enough."""
    point = kills = changed = 0
    while True:
        shutil.rmtree(host.root / "var/lib/evenkeel", ignore_errors=True)

        def killed(point: int = point) -> None:
            die_at(point)
            write.apply_step(dict(OFF), PLAN, "R-RT-2:cpu2", "throttle", root=str(host.root))

        ended = in_child(killed)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        kills += 1
        changed += host.fair.read_text() != "50000000\n"

        def undo() -> None:
            journal.writer(str(host.root), wait_s=20.0)
            undo_all(host.root)

        assert in_child(undo) == 0
        assert host.fair.read_text() == "50000000\n", f"killed at call {point}"
        point += 1
    assert kills > 10
    assert changed > 0  # at some point nobody was left to take it back but the rollback
