"""A lab's state in one file and back, while it is written to; and each way in which a backup can be wrong."""

from __future__ import annotations

import tarfile
import threading
from pathlib import Path

import pytest

from evenkeel.errors import WrongInput
from evenkeel.lab import backup, events, folder, people
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.settings import Settings
from evenkeel.lab.store import Store, sqlite_url
from tests.lab.service import evenkeel

ROOT = with_roles("root", ["admin"], via="socket")
READER = Actor("x", frozenset({"read"}))


@pytest.fixture
def kept(lab: Lab, tmp_path: Path) -> Path:
    """A lab with a row, an artifact, a key and what does not belong into a backup; gives its backup."""
    people.add_service(lab, ROOT, "ci", roles=["user"])
    (tmp_path / "artifacts" / "ab").mkdir(parents=True)
    (tmp_path / "artifacts" / "ab" / "cd").write_bytes(b"\0" * 3_000_000)
    (tmp_path / "artifacts" / "incoming").mkdir()
    (tmp_path / "artifacts" / "incoming" / "half").write_text("half")
    (tmp_path / "session.key").write_text("key")
    (tmp_path / "log").write_text("log")
    (tmp_path / "lock").write_text("x")
    file = tmp_path.parent / f"{tmp_path.name}.tar"
    backup.backup(tmp_path, Settings(), file)
    return file


def test_a_backup_is_whole_and_comes_back(kept: Path, tmp_path: Path) -> None:
    assert oct(kept.stat().st_mode)[-3:] == "600"
    assert sorted(backup.check(kept).files) == ["artifacts/ab/cd", "lab.db", "log"]
    there = tmp_path / "other"
    backup.restore(there, Settings(), kept)
    assert (there / "artifacts" / "ab" / "cd").stat().st_size == 3_000_000
    assert not (there / "session.key").exists()
    backup.backup(tmp_path, Settings(), tmp_path.parent / f"{tmp_path.name}-keys.tar", keys=True)
    assert "session.key" in backup.check(tmp_path.parent / f"{tmp_path.name}-keys.tar").files
    with Store(sqlite_url(there / "lab.db")) as store:
        assert people.principal(Lab(there, store), READER, "ci").kind == "service"
    with pytest.raises(WrongInput, match="a lab in"):
        backup.restore(there, Settings(), kept)


def test_it_is_taken_while_the_lab_is_written_to(lab: Lab, tmp_path: Path) -> None:
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            written = lab.store.write(lambda c: lab.store.event(c, "ann", "thing", "thing", 1))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while written < 20:
            pass
        before = written
        backup.backup(tmp_path, Settings(), tmp_path / "b.tar")
    finally:
        stop.set()
        thread.join()
    assert sorted(backup.check(tmp_path / "b.tar").files) == ["lab.db"], "not itself"
    backup.restore(tmp_path / "there", Settings(), tmp_path / "b.tar")
    with Store(sqlite_url(tmp_path / "there" / "lab.db")) as store:
        seq = events.last_seq(Lab(tmp_path, store))
    assert before <= seq <= written


@pytest.mark.parametrize("fault", ["byte", "cut", "member", "empty"])
def test_a_damaged_backup_is_refused_and_nothing_is_changed(kept: Path, tmp_path: Path, fault: str) -> None:
    if fault == "byte":
        with kept.open("r+b") as stream:
            stream.seek(kept.stat().st_size // 2)
            stream.write(b"x")
    elif fault == "cut":
        with kept.open("r+b") as stream:
            stream.truncate(kept.stat().st_size // 2)
    elif fault == "member":
        with tarfile.open(kept, "a") as tar:
            tar.add(__file__, "../outside")
    else:
        kept.write_bytes(b"")
    with pytest.raises(backup.WrongBackup):
        backup.restore(tmp_path / "there", Settings(), kept)
    assert not (tmp_path / "there").exists()


def test_no_backup_over_another_and_none_of_nothing(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="not overwritten"):
        backup.backup(tmp_path, Settings(), kept)
    with pytest.raises(WrongInput, match="no lab in"):
        backup.backup(tmp_path / "nothing", Settings(), tmp_path / "x.tar")
    with pytest.raises(WrongInput, match="a sqlite database"):
        backup.restore(tmp_path / "there", Settings(database="postgresql://x/y"), kept)


def test_a_lab_that_runs_is_not_restored_over(kept: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    folder.prepare(there)
    with folder.locked(there, ""):
        done = evenkeel("lab", "restore", str(kept), "--folder", str(there))
    assert done.returncode == 1 and "already" in done.stderr
    done = evenkeel("lab", "restore", str(kept), "--folder", str(there), "--json")
    assert done.returncode == 0 and '"lab.db"' in done.stdout
