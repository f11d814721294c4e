"""Steps as jobs of a real Slurm: a controller and two nodes on this machine, nothing of it mocked.

Long, because Slurm takes seconds for everything.  Needs root and Debian's slurm-wlm.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from evenkeel.lab import agent as agents
from evenkeel.lab import agent_setup, dispatching, people, steps, submissions
from evenkeel.lab.actor import SCOPES, Actor
from evenkeel.lab.api.app import create_app
from evenkeel.lab.api.who import Identify
from evenkeel.lab.artifacts import of_attempt
from evenkeel.lab.lab import Lab
from evenkeel.lab.slurm import Slurm, reach_here
from evenkeel.lab.step import graph_of
from tests.lab import slurm_cluster
from tests.lab.serving import serving
from tests.lab.slurm_cluster import Cluster
from tests.lab.test_agent import ANN, Here, lab
from tests.waiting import until

__all__ = ["lab"]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not slurm_cluster.usable(), reason="needs root, and apt install slurm-wlm"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster.slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


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


def test_steps_run_as_jobs_with_log_output_and_files(lab: Lab, slurm: Cluster) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(
                lab, good="echo on a node; echo hi > $OUT/file; echo '{\"n\": 1}' > $OUT/output.json", bad="exit 3"
            )
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open")
            good, bad = (steps.by_name(lab, ANN, sent.id, name) for name in ("good", "bad"))
            assert (good.state, good.output) == ("passed", {"n": 1})
            assert steps.read_log(lab, ANN, good.attempts[0].id)[0] == b"on a node\n"
            assert [one.name for one in of_attempt(lab, ANN, good.attempts[0].id)] == ["file"]
            assert (bad.state, bad.attempts[0].exit) == ("failed", 3)
    finally:
        here.stop()


def test_cancelling_ends_the_job(lab: Lab, slurm: Cluster) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(lab, **{f"s{n}": f"echo on; sleep 100{n}" for n in range(6)})  # more than there are CPUs
            until(lambda: len(jobs()) == 6)
            until(lambda: any(steps.by_name(lab, ANN, sent.id, "s0").attempts[0].log_size for _ in "1"))
            submissions.cancel(lab, ANN, sent.id)
            until(lambda: submissions.show(lab, ANN, sent.id).steps == {"cancelled": 6})
            until(lambda: jobs() == [])
            assert subprocess.run(["pgrep", "-f", "sleep 100[0-5]"], check=False).returncode == 1
    finally:
        here.stop()


def test_jobs_outlive_their_agent_and_are_adopted(lab: Lab, slurm: Cluster) -> None:
    with dispatching.running(lab):
        here = agent(lab)
        here.start()
        sent = send(lab, long="while ! test -e $HOME/go; do sleep 0.1; done; echo done")
        until(lambda: list(here.folder.glob("run/*/work")))
        here.stop()
        assert len(jobs()) == 1
        second = agent(lab)
        second.start()
        try:
            until(lambda: second.agent._attempts)
            (home,) = here.folder.glob("run/*/work")
            (home / "go").touch()
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open")
            step = steps.by_name(lab, ANN, sent.id, "long")
            assert step.state == "passed"
            assert len(step.attempts) == 1
        finally:
            second.stop()


def test_a_job_that_somebody_killed_is_lost_and_given_out_again(lab: Lab, slurm: Cluster) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(lab, one=f"test -e {lab.folder}/again && exit 0; touch {lab.folder}/again; sleep 1000")
            until(lambda: (lab.folder / "again").exists())
            subprocess.run(["scancel", *jobs()], check=True)
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open", 120)
            attempts = steps.by_name(lab, ANN, sent.id, "one").attempts
            assert [one.state for one in attempts] == ["lost", "passed"]
    finally:
        here.stop()


# -- a lab elsewhere ----------------------------------------------------------------------------------------------


def test_files_come_from_a_lab_elsewhere_and_go_there(lab: Lab, slurm: Cluster) -> None:
    """As `evenkeel lab agent --lab https://... --slurm=` sets it up: nodes have the token, and REST."""
    app = create_app(lab, who=Identify(lab), key="k" * 43)
    root = Actor("root", frozenset({*SCOPES, "anything"}))
    people.add_service(lab, root, "cluster", roles=["agent"])
    token = people.make_token(lab, root, "cluster", scopes=["agent"], length_ns=10**13, of="cluster").secret
    with dispatching.running(lab), serving(app) as url:
        here = Here(lab, name="cluster", slots=4)
        here.agent.dial = lambda: agents.remote_line(url, token)
        here.agent.executor = agent_setup._slurm("cluster", here.folder, (), url, token)
        here.agent.local = False
        here.start()
        try:
            until(lambda: (here.folder / "token").exists())
            assert (here.folder / "token").stat().st_mode & 0o077 == 0
            made = {"kind": "make", "command": "echo far > $OUT/file", "artifacts": {"file": {"path": "file"}}}
            used = {"kind": "use", "command": "cat $IN/it", "inputs": {"it": {"artifact": "make/file"}}}
            graph = {"name": "test", "steps": {"make": {"step": made}, "use": {"step": used, "needs": ["make"]}}}
            sent = submissions.submit(lab, ANN, graph_of(graph))
            until(lambda: submissions.show(lab, ANN, sent.id).state != "open", 120)
            make, use = (steps.by_name(lab, ANN, sent.id, name) for name in ("make", "use"))
            assert (make.state, use.state) == ("passed", "passed"), (make.cause, use.cause)
            assert steps.read_log(lab, ANN, use.attempts[0].id)[0] == b"far\n"
            # Whoever reads what a job was told finds no token in it.
            assert token not in (slurm.folder / "slurmctld.log").read_text()
        finally:
            here.stop()


# -- killed in the middle of a step -------------------------------------------------------------------------------

#: Tells when it began, and whether it ever ran twice at once: its lock is the kernel's, held while any process lives.
_STEP = """
exec 9> {folder}/lock
flock -n 9 || echo overlap >> {folder}/ledger
echo start >> {folder}/ledger
while ! test -e {folder}/go; do sleep 0.1; done
echo end >> {folder}/ledger
"""


def ledger(lab: Lab) -> list[str]:
    file = lab.folder / "ledger"
    return file.read_text().split() if file.exists() else []


def nothing_is_lost_or_done_twice_at_once(lab: Lab, number: int) -> list[str]:
    """When the step may end now.  Returns the states of its attempts."""
    (lab.folder / "go").touch()
    until(lambda: submissions.show(lab, ANN, number).state != "open", 180)
    step = steps.by_name(lab, ANN, number, "one")
    assert step.state == "passed", step.cause
    assert "overlap" not in ledger(lab)
    assert ledger(lab).count("end") == 1
    until(lambda: jobs() == [])
    return [one.state for one in step.attempts]


@pytest.mark.parametrize("killed", [("slurmctld",), ("n1", "n2"), ("n1", "n2", "slurmctld")], ids="-".join)
def test_a_step_outlives_daemons_of_slurm_that_are_killed(lab: Lab, slurm: Cluster, killed: tuple[str, ...]) -> None:
    here = agent(lab)
    here.start()
    try:
        with dispatching.running(lab):
            sent = send(lab, one=_STEP.format(folder=lab.folder))
            until(lambda: ledger(lab) == ["start"])
            time.sleep(10)  # the controller saves what it knows of jobs within five seconds
            for name in killed:
                slurm.kill(name)
            time.sleep(8)  # longer than the executor looks at a job that is over, until it counts as lost
            assert submissions.show(lab, ANN, sent.id).steps == {"running": 1}
            for name in killed:
                slurm.start(name)
            slurm.until("idle|mix|alloc")
            states = nothing_is_lost_or_done_twice_at_once(lab, sent.id)
            # The controller had the job on its disk: it goes on, nobody has to try again.
            assert states == ["passed"]
    finally:
        (lab.folder / "go").touch()
        here.stop()
        for name in killed:  # whatever failed above: the next test needs them
            if slurm.daemons[name].poll() is not None:
                slurm.start(name)
        slurm.until("idle|mix|alloc")


def test_a_step_outlives_a_dispatcher_that_is_killed(lab: Lab, slurm: Cluster) -> None:
    def up() -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tests.lab.killed_service", str(lab.folder)]
        service = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert service.stdout and service.stdout.readline() == "up\n"
        return service

    service, here = up(), agent(lab)
    here.start()
    try:
        step = {"kind": "one", "command": _STEP.format(folder=lab.folder)}
        graph = {"version": 1, "name": "test", "steps": {"one": {"step": step}}}
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(lab.folder / "submit.sock"))
            line.sendall(json.dumps(graph).encode() + b"\n")
            number = int(line.makefile().readline())
        until(lambda: ledger(lab) == ["start"])
        service.send_signal(signal.SIGKILL)
        service.wait()
        service = up()
        until(lambda: here.agent._attempts)
        assert nothing_is_lost_or_done_twice_at_once(lab, number) == ["passed"]
    finally:
        (lab.folder / "go").touch()
        here.stop()
        service.kill()
        service.wait()
