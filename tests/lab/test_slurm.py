"""Steps as jobs of a real Slurm: a controller and two nodes on this machine, nothing of it mocked.

Long, because Slurm takes seconds for everything.  Needs root and Debian's slurm-wlm.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.lab import dispatching, steps, submissions
from evenkeel.lab.artifacts import of_attempt
from evenkeel.lab.lab import Lab
from evenkeel.lab.slurm import Slurm, reach_here
from evenkeel.lab.step import graph_of
from tests.lab import slurm_cluster
from tests.lab.test_agent import ANN, Here, lab, until

__all__ = ["lab"]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not slurm_cluster.usable(), reason="needs root, and apt install slurm-wlm"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster.slurm(folder):
        yield folder


def agent(lab: Lab) -> Here:
    here = Here(lab, name="cluster", slots=10)
    made = Slurm("cluster", "id", here.folder / "slurm", reach_here(lab.folder / "artifacts"))
    here.agent.executor = lambda identity: made
    return here


def send(lab: Lab, **commands: str) -> submissions.SubmissionInFull:
    uses = {
        name: {"step": {"kind": name, "command": command, "artifacts": {"file": {"path": "file", "optional": True}}}}
        for name, command in commands.items()
    }
    return submissions.submit(lab, ANN, graph_of({"name": "test", "steps": uses}))


def jobs() -> list[str]:
    done = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_steps_run_as_jobs_with_log_output_and_files(lab: Lab, slurm: Path) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(
                lab, good="echo on a node; echo hi > $OUT/file; echo '{\"n\": 1}' > $OUT/output.json", bad="exit 3"
            )
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open", 60)
            good, bad = (steps.by_name(lab, ANN, sent.id, name) for name in ("good", "bad"))
            assert (good.state, good.output) == ("passed", {"n": 1})
            assert steps.read_log(lab, ANN, good.attempts[0].id)[0] == b"on a node\n"
            assert [one.name for one in of_attempt(lab, ANN, good.attempts[0].id)] == ["file"]
            assert (bad.state, bad.attempts[0].exit) == ("failed", 3)
    finally:
        here.stop()


def test_cancelling_ends_the_job(lab: Lab, slurm: Path) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(lab, **{f"s{n}": f"echo on; sleep 100{n}" for n in range(6)})  # more than there are CPUs
            until(lambda: len(jobs()) == 6, 60)
            until(lambda: any(steps.by_name(lab, ANN, sent.id, "s0").attempts[0].log_size for _ in "1"), 60)
            submissions.cancel(lab, ANN, sent.id)
            until(lambda: submissions.show(lab, ANN, sent.id).steps == {"cancelled": 6}, 60)
            until(lambda: jobs() == [], 60)
            assert subprocess.run(["pgrep", "-f", "sleep 100[0-5]"], check=False).returncode == 1
    finally:
        here.stop()


def test_jobs_outlive_their_agent_and_are_adopted(lab: Lab, slurm: Path) -> None:
    with dispatching.running(lab):
        here = agent(lab)
        here.start()
        sent = send(lab, long="while ! test -e $HOME/go; do sleep 0.1; done; echo done")
        until(lambda: list(here.folder.glob("run/*/work")), 60)
        here.stop()
        assert len(jobs()) == 1
        second = agent(lab)
        second.start()
        try:
            until(lambda: second.agent._attempts, 20)
            (home,) = here.folder.glob("run/*/work")
            (home / "go").touch()
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open", 60)
            step = steps.by_name(lab, ANN, sent.id, "long")
            assert step.state == "passed"
            assert len(step.attempts) == 1
        finally:
            second.stop()


def test_a_job_that_somebody_killed_is_lost_and_given_out_again(lab: Lab, slurm: Path) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(lab, one=f"test -e {lab.folder}/again && exit 0; touch {lab.folder}/again; sleep 1000")
            until(lambda: (lab.folder / "again").exists(), 60)
            subprocess.run(["scancel", *jobs()], check=True)
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open", 120)
            attempts = steps.by_name(lab, ANN, sent.id, "one").attempts
            assert [one.state for one in attempts] == ["lost", "passed"]
    finally:
        here.stop()
