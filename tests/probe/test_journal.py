"""The journal on the host: synced, locked, whole after a kill."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.journal import JournalEntry
from evenkeel.probe import journal
from evenkeel.probe.failure import StepFailed

PLAN = "cd" * 32


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "var/lib").mkdir(parents=True)
    yield str(tmp_path)
    journal.release(str(tmp_path))


def file_of(root: str) -> Path:
    return Path(root + journal.FILE)


def holder(root: str) -> subprocess.Popen[str]:
    """Another process that holds the lock, as the probe of another controlling machine does."""
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from evenkeel.probe import journal;"
        f"journal.note('begin', {PLAN!r}, root=sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, root, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_only_root_can_read_it_and_every_line_is_an_entry_of_the_documents(root: str) -> None:
    number = journal.note("begin", PLAN, message="1 of 2 steps", root=root)
    journal.writer(root).append("intent", PLAN, setting="R-1", step={"kind": "file"}, old="1\n", wanted="2")
    journal.note("end", PLAN, root=root)
    assert stat.S_IMODE(file_of(root).stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of(root).parent.stat().st_mode) == 0o700
    answer = journal.read_journal(root)
    entries = [JournalEntry.model_validate(entry) for entry in answer["entries"]]
    assert [entry.sequence for entry in entries] == [number, number + 1, number + 2]
    assert [entry.event for entry in entries] == ["begin", "intent", "end"]
    assert entries[0].step == {"boot_id": answer["boot_id"]}
    assert answer["writer"] == os.getpid()


def test_each_line_is_on_disk_before_append_returns(root: str, monkeypatch: Any) -> None:
    calls: list[str] = []
    real_write, real_sync = os.write, os.fsync
    journal.writer(root)

    def write(descriptor: int, data: bytes) -> int:
        calls.append("write")
        return real_write(descriptor, data)

    def sync(descriptor: int) -> None:
        calls.append("fsync")
        real_sync(descriptor)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", sync)
    journal.note("begin", PLAN, root=root)
    assert calls == ["write", "fsync"]


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_line_cut_off_in_the_middle_is_dropped(root: str, cut: int) -> None:
    journal.note("begin", PLAN, root=root)
    journal.note("end", PLAN, root=root)
    journal.release(root)
    whole = file_of(root).read_bytes()
    file_of(root).write_bytes(whole[:-cut])
    assert [entry["event"] for entry in journal.read_journal(root)["entries"]] == ["begin"]
    assert journal.note("gate", PLAN, root=root) == 2
    assert [entry["event"] for entry in journal.read_journal(root)["entries"]] == ["begin", "gate"]
    assert file_of(root).read_bytes().endswith(b"}\n")


def test_damage_in_the_middle_is_told_with_its_line(root: str) -> None:
    journal.note("begin", PLAN, root=root)
    journal.release(root)
    file_of(root).write_bytes(file_of(root).read_bytes() + b"\0\0\0\n" + file_of(root).read_bytes())
    with pytest.raises(StepFailed, match="line 2 is damaged"):
        journal.read_journal(root)
    with pytest.raises(StepFailed, match="line 2 is damaged"):
        journal.note("begin", PLAN, root=root)


def test_a_second_applier_is_refused_by_name_and_a_killed_one_leaves_the_lock(root: str) -> None:
    other = holder(root)
    try:
        with pytest.raises(StepFailed, match=rf"another evenkeel is applying.*process {other.pid}"):
            journal.writer(root, wait_s=0.2)
        assert journal.read_journal(root)["writer"] == other.pid  # reading needs no lock
    finally:
        other.kill()
        other.communicate()
    assert journal.read_journal(root)["writer"] is None
    assert journal.note("begin", PLAN, root=root) == 2


def test_a_program_that_outlives_its_probe_keeps_the_lock(root: str) -> None:
    """update-grub goes on when the probe is killed, and nobody may write meanwhile."""
    journal.writer(root)
    child = subprocess.Popen(["sleep", "60"], pass_fds=journal.children_keep_lock())
    journal.release(root)
    try:
        with pytest.raises(StepFailed, match="another evenkeel"):
            journal.writer(root, wait_s=0.1)
    finally:
        child.kill()
        child.wait()
    journal.writer(root, wait_s=5.0)


def test_a_full_disk_stops_before_anything_is_written(root: str, monkeypatch: Any) -> None:
    journal.note("begin", PLAN, root=root)
    before = file_of(root).read_bytes()
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return real(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: full(fd, data) if fd != 1 else real(fd, data))
        patch.setattr(journal, "write_all", _twice(full))
        with pytest.raises(StepFailed, match=r"cannot write the journal, so nothing else was written.*make room"):
            journal.note("end", PLAN, root=root)
    assert file_of(root).read_bytes() == before
    assert journal.note("end", PLAN, root=root) == 2


def _twice(write: Any) -> Any:
    def write_all(descriptor: int, data: bytes) -> None:
        write(descriptor, data)
        raise OSError(28, "No space left on device")

    return write_all


def test_only_frame_events_can_be_noted(root: str) -> None:
    with pytest.raises(ValueError, match="'done' is not an event"):
        journal.note("done", PLAN, root=root)


def test_the_mark_of_a_host_that_is_not_ready(root: str) -> None:
    journal.set_not_ready("nohz_full: expected 2-3", root=root)
    assert journal.read_journal(root)["not_ready"] == "nohz_full: expected 2-3"
    journal.set_not_ready(None, root=root)
    journal.set_not_ready(None, root=root)
    assert journal.read_journal(root)["not_ready"] is None
