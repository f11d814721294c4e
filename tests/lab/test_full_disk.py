"""The lab's disk is full, or answers with errors: what is new is refused, nothing is lost, and it goes on by itself.

A disk that is full is a tmpfs of 3 MiB; errors of a disk (EIO) are put into the system calls of a real service by
strace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evenkeel.lab import agent as agents
from evenkeel.lab import dispatching, steps, submissions
from evenkeel.lab.actor import with_roles
from evenkeel.lab.api.app import create_app
from evenkeel.lab.contents import Contents
from evenkeel.lab.dispatching import socket_path
from evenkeel.lab.executor import Processes
from evenkeel.lab.lab import Lab
from evenkeel.lab.logs import Logs
from evenkeel.lab.step import graph_of
from evenkeel.lab.store import Away, Store, create, sqlite_url
from evenkeel.lab.transfer import Here as Bringing
from tests.lab.kills import Sender, faults, machines, team_of
from tests.lab.test_agent import Here, agent_of
from tests.waiting import until

ANN = with_roles("ann", ["user"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small disk needs root: {mount.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    with Store(sqlite_url(small_disk / "lab.db")) as store:
        create(store)
        lab = Lab(small_disk, store)
        with dispatching.running(lab), agent_of(lab, folder=tmp_path / "agent") as here:
            graph = {"kind": "k", "command": f"while ! test -e {tmp_path}/go; do sleep 0.05; done"}
            sent = submissions.submit(lab, ANN, graph_of({"name": "t", "steps": {"one": {"step": graph}}}))
            until(lambda: submissions.show(lab, ANN, sent.id).steps == {"running": 1})
            ballast = small_disk / "ballast"
            with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(4096))
            with pytest.raises(Away, match="full"):
                for _ in range(50):
                    submissions.submit(lab, ANN, graph_of({"name": "t", "steps": {"two": {"step": graph}}}))
            (tmp_path / "go").touch()
            until(lambda: list(here.folder.glob("results/*.json")))
            time.sleep(1.5)
            assert submissions.show(lab, ANN, sent.id).state == "open"
            assert list(here.folder.glob("results/*.json")), "the agent forgot a result that was not written"
            ballast.unlink()
            until(lambda: submissions.show(lab, ANN, sent.id).state == "passed")
            until(lambda: not list(here.folder.glob("results/*.json")))
    assert shutil.disk_usage(small_disk).free > 0


@contextlib.contextmanager
def full(disk: Path, but: int = 0) -> Iterator[None]:
    """Nothing goes on to it any more, but for so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    os.truncate(ballast, max(0, ballast.stat().st_size - but))
    try:
        yield
    finally:
        ballast.unlink(missing_ok=True)


@pytest.fixture
def lab(small_disk: Path, tmp_path: Path) -> Iterator[Lab]:
    """Logs and artifacts lie on the small disk, the database does not: as with a PostgreSQL of its own."""
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        create(store)
        yield Lab(small_disk, store)


def send(lab: Lab, command: str, **more: Any) -> int:
    graph = {"name": "t", "steps": {"one": {"step": {"kind": "k", "command": command, **more}}}}
    return submissions.submit(lab, ANN, graph_of(graph)).id


def attempts(lab: Lab, number: int) -> list[str]:
    return [one.state for one in steps.by_name(lab, ANN, number, "one").attempts]


@pytest.mark.parametrize(("last", "room"), [(60_000, 64 << 10), (5_000, 8 << 10)], ids=["many pieces", "one piece"])
def test_a_log_that_has_no_room_waits_with_its_result_and_is_whole_afterwards(
    lab: Lab, tmp_path: Path, last: int, room: int
) -> None:
    go, lines = tmp_path / "go", "".join(f"{number}\n" for number in range(1, last + 1)).encode()
    with dispatching.running(lab), agent_of(lab, folder=tmp_path / "agent") as here:
        number = send(lab, f"while ! test -e {go}; do sleep 0.05; done; seq 1 {last}")
        until(lambda: attempts(lab, number) == ["running"])
        with full(lab.folder, but=room):
            go.touch()
            until(lambda: list(here.folder.glob("results/*.json")))
            time.sleep(2.5)
            assert attempts(lab, number) == ["running"]
            attempt = steps.by_name(lab, ANN, number, "one").attempts[0].id
            had = lab.logs.read(attempt, most=1 << 20)
            assert 0 < len(had) < len(lines) and lines.startswith(had), "what there was room for, and no hole"
        until(lambda: submissions.show(lab, ANN, number).state == "passed")
        assert lab.logs.read(attempt, most=1 << 20) == lines


def test_a_write_that_the_disk_takes_in_part_leaves_no_hole(small_disk: Path) -> None:
    logs, data = Logs(small_disk / "logs"), os.urandom(256 << 10)
    logs.write(1, 0, b"")
    with full(small_disk, but=100 << 10):
        with pytest.raises(OSError, match="No space") as raised:
            logs.write(1, 0, data)
        assert raised.value.errno == errno.ENOSPC
        assert 0 < logs.size(1) < len(data)
    assert logs.write(1, 0, data) == len(data)
    assert logs.read(1) == data


class Bringer(Here):
    """An agent that brings artifacts into the lab's own store, as that of `lab up` does."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        super().__init__(lab, folder=folder)
        bring = Bringing(Contents(lab.folder / "artifacts")).bring
        self.agent = agents.Agent(
            *(folder, "a1", 2, {}),
            lambda: agents.local_line(socket_path(lab.folder)),
            lambda identity: Processes("a1", identity, bring=bring),
        )


@contextlib.contextmanager
def bringer(lab: Lab, folder: Path) -> Iterator[Bringer]:
    made = Bringer(lab, folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()


MAKES = "head -c 1000000 /dev/zero | tr '\\0' x > $OUT/file"
WISHED = {"artifacts": {"file": {"path": "file"}}}


def test_an_artifact_that_has_no_room_is_brought_when_there_is_some(lab: Lab, tmp_path: Path) -> None:
    with dispatching.running(lab), bringer(lab, tmp_path / "agent"), full(lab.folder, but=200 << 10):
        number = send(lab, MAKES, **WISHED)
        cancelled = send(lab, MAKES, **WISHED)
        until(lambda: len(list((tmp_path / "agent").glob("run/*/artifacts/file"))) == 2)
        time.sleep(1.5)
        assert attempts(lab, number) == attempts(lab, cancelled) == ["running"], "it is done, and must not run again"
        # But for the instants in which it is tried again.
        incoming = lab.folder / "artifacts" / "incoming"
        until(lambda: not list(incoming.iterdir()), told=lambda: "half of it takes up what room there is")
        submissions.cancel(lab, ANN, cancelled)
        until(lambda: attempts(lab, cancelled) == ["cancelled"])
        (lab.folder / "ballast").unlink()
        until(lambda: submissions.show(lab, ANN, number).state == "passed")
        sha256 = hashlib.sha256(b"x" * 1_000_000).hexdigest()
        assert Contents(lab.folder / "artifacts").has(sha256) and attempts(lab, number) == ["passed"]


def test_an_upload_that_has_no_room_is_refused_with_a_cure(lab: Lab) -> None:
    data = os.urandom(1 << 20)
    path = f"/api/v1/contents/{hashlib.sha256(data).hexdigest()}"
    client = TestClient(create_app(lab, who=lambda _: ANN))
    with full(lab.folder, but=200 << 10):
        for _ in range(2):
            answer = client.put(path, content=data)
            assert answer.status_code == 507 and "full" in answer.json()["detail"], answer.text
            assert "make room" in answer.json()["hint"] and answer.headers["Retry-After"]
        assert not list(lab.folder.glob("artifacts/incoming/*"))
    assert client.put(path, content=data).status_code == 201
    assert client.get(path).content == data


def test_the_agents_own_disk_is_full(tmp_path: Path, small_disk: Path) -> None:
    """It takes nothing, says why, and another agent does the step."""
    (tmp_path / "lab").mkdir()
    with Store(sqlite_url(tmp_path / "lab" / "lab.db")) as store:
        create(store)
        lab = Lab(tmp_path / "lab", store)
        with dispatching.running(lab) as part, agent_of(lab, name="a1", slots=1, folder=small_disk):
            until(lambda: "a1" in part.dispatcher.agents)
            with full(small_disk):
                number = send(lab, "echo x")
                until(lambda: "lost" in attempts(lab, number))
                (first, *_) = steps.by_name(lab, ANN, number, "one").attempts
                assert "No space" in first.cause, first.cause


# -- errors of the disk -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(pid: int, *files: Path) -> Iterator[None]:
    """Of the writes and syncs of a process to these files, some answer EIO."""
    where = [word for file in files for word in ("-P", str(file))]
    faulty = [
        *("-e", "inject=fdatasync,fsync:error=EIO:when=2+3"),
        *("-e", "inject=pwrite64:error=EIO:when=40+150"),
    ]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync,pwrite64", *where, *faulty]
    tracer = subprocess.Popen([*command, "-p", str(pid)])
    try:
        until(lambda: f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{pid}/status").read_text())
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(120)


def _changes(what: Callable[[], int]) -> None:
    before = what()
    until(lambda: what() != before)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_errors_of_the_disk_lose_nothing(tmp_path: Path) -> None:
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        create(store)
        lab = Lab(tmp_path, store)
        machines(lab, 2)
        with team_of(lab, 2, 2) as team:
            with Sender(team, random.Random(3), 1.0, 6) as sender:
                until(team.busy)
                for _ in range(3):
                    with failing(team.processes["service"].pid, lab.folder / "lab.db", lab.folder / "lab.db-wal"):
                        _changes(lambda: sender.unanswered)
                        time.sleep(3)
                    _changes(lambda: len(team.history.acknowledged))
            team.ended(120)
            history = team.history.read(lab)
            assert team.processes["service"].poll() is None, "it ended, instead of waiting"
        print(f"\n{len(history.acknowledged)} acknowledged, {sender.unanswered} refused by a disk with errors")
        assert faults(history) == []
        with store.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
