"""What the executor says to Slurm and when, with programs of a few lines in its place (test_slurm has a real one)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evenkeel.lab import agent_setup
from evenkeel.lab.executor import Job
from evenkeel.lab.protocol import Ended, Start
from evenkeel.lab.slurm import Slurm, reach_here
from tests.lab.test_runner import gone
from tests.waiting import until

#: Each writes down what it was told; sbatch waits while there is a file `wait`, and fails while there is one `fail`.
_PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >>{folder}/said
case "$0" in *sbatch)
  while test -e {folder}/wait; do sleep 0.02; done
  test ! -e {folder}/fail || {{ echo "Socket timed out" >&2; exit 1; }}
  echo 4711
esac
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Words that a program was called with, one line a call."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        program = tmp_path / "bin" / name
        program.write_text(_PROGRAM.format(folder=tmp_path))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    def lines(name: str) -> list[str]:
        file = tmp_path / "said"
        text = file.read_text() if file.exists() else ""
        return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]

    return lines


class Ends(list[Ended]):
    def __init__(self) -> None:
        self.told = threading.Event()

    def __call__(self, ended: Ended) -> None:
        self.append(ended)
        self.told.set()


def executor(folder: Path, identity: str = "a1b2") -> Slurm:
    return Slurm("cluster", identity, folder / f"slurm-{identity}", reach_here(folder / "artifacts"))


def job(folder: Path, attempt: int) -> Job:
    start = Start(attempt=attempt, submission=1, step="build", use={})
    return Job(start, folder / "run")


def test_a_job_is_named_after_its_lab_and_only_that_one_is_ended(
    said: Callable[[str], list[str]], tmp_path: Path
) -> None:
    ours, theirs = executor(tmp_path), executor(tmp_path, "c3d4")
    for one in (ours, theirs):
        one.submit(job(tmp_path, 17), Ends())
        one.close()  # waits for sbatch
    names = [word for line in said("sbatch") for word in line.split() if word.startswith("--job-name=")]
    assert sorted(names) == ["--job-name=evenkeel-a1b2-17", "--job-name=evenkeel-c3d4-17"]
    # Killed while it submitted: another agent's job with the same number is none of its business.
    again = executor(tmp_path, "e5f6")
    assert again.adopt(job(tmp_path, 17), Ends()) is False
    assert said("scancel") == ["--name=evenkeel-e5f6-17"]
    assert executor(tmp_path).adopt(job(tmp_path, 17), Ends()) is True


def test_one_that_is_ended_while_sbatch_works_is_ended_at_once(
    said: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    made, ends = executor(tmp_path), Ends()
    made.submit(job(tmp_path, 1), ends)
    until(lambda: said("sbatch"))
    made.cancel(1, "cancelled", "by ann")
    time.sleep(0.1)
    assert said("scancel") == [], "there is no job yet"
    (tmp_path / "wait").unlink()
    until(lambda: len(said("scancel")) == 2)
    assert all(line.endswith(" 4711") for line in said("scancel"))
    (tmp_path / "slurm-a1b2" / "1" / "result.json").write_text(
        Ended(attempt=1, state="lost", cause="Slurm ended the job").model_dump_json()
    )
    made.poll()
    assert [(one.state, one.cause) for one in ends] == [("cancelled", "by ann")]


def test_one_that_is_ended_before_its_turn_never_becomes_a_job(
    said: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    made, ends = executor(tmp_path), Ends()
    for attempt in range(1, 5):  # as many as are submitted at once
        made.submit(job(tmp_path, attempt), Ends())
    made.submit(job(tmp_path, 5), ends)
    until(lambda: len(said("sbatch")) == 4)
    made.cancel(5, "timed-out", "too long")
    (tmp_path / "wait").unlink()
    assert ends.told.wait(120)
    assert [(one.attempt, one.state, one.cause) for one in ends] == [(5, "timed-out", "too long")]
    made.close()
    assert len(said("sbatch")) == 4
    made.cancel(5, "cancelled", "again")  # it has ended: nothing happens
    assert said("scancel") == []


def test_a_job_that_may_have_come_through_without_an_answer_is_ended_before_another_try(
    said: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    made, ends = executor(tmp_path), Ends()
    made.submit(job(tmp_path, 3), ends)
    assert ends.told.wait(120)
    assert (ends[0].state, "Socket timed out" in ends[0].cause) == ("lost", True)
    assert said("scancel") == ["--name=evenkeel-a1b2-3"]


def test_a_job_whose_agent_gave_it_up_ends_itself(tmp_path: Path) -> None:
    folder, begun = tmp_path / "1", tmp_path / "begun"
    folder.mkdir()
    use = {"step": {"kind": "k", "command": f"echo $$ > {begun}; exec sleep 987654"}}
    start = Start(attempt=1, submission=1, step="build", use=use)
    orders = {"start": start.model_dump(mode="json"), "name": "cluster", "folder": str(tmp_path / "run")}
    (folder / "orders.json").write_text(json.dumps(orders | reach_here(tmp_path / "artifacts")))
    with subprocess.Popen([sys.executable, "-m", "evenkeel.lab.slurm_job", str(folder)]) as run:
        pid = int(until(lambda: begun.exists() and begun.read_text()))
        shutil.rmtree(folder)
        assert run.wait(120) == 0
    assert not folder.exists(), "a result that nobody waits for"
    assert gone(pid)


def test_the_token_of_jobs_is_for_one_user_only_whatever_lay_there(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old")
    (tmp_path / "token").chmod(0o644)
    made = agent_setup._slurm("cluster", tmp_path, ("--mem=1G",), "https://lab.example.org", "ekl_new")("id")
    assert isinstance(made, Slurm)
    assert made.reach == {"url": "https://lab.example.org", "token_file": str(tmp_path / "token")}
    assert (tmp_path / "token").read_text() == "ekl_new"
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["token"]
