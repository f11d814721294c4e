"""Dispatcher and agents killed at any moment: nothing acknowledged is lost, nothing runs twice at once.

Each step holds a lock of the kernel while any of its processes lives, and one of its machine, so an overlap is seen
whoever causes it.  Real processes, real SIGKILL; a killed disk is a small tmpfs that is full.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import OperationalError

from evenkeel.lab import dispatching, schema, steps, submissions
from evenkeel.lab.actor import with_roles
from evenkeel.lab.dispatcher import LOST_AT_MOST
from evenkeel.lab.lab import Lab
from evenkeel.lab.step import graph_of
from evenkeel.lab.store import Store, create, sqlite_url
from tests.lab.test_agent import agent_of, until

ROOT = Path(__file__).parents[2]
ANN = with_roles("ann", ["user"])
#: fd 9: of this step; fd 8: of its machine.  Children inherit both.
COMMAND = """
exec 9> "$SET_FOLDER/lock.$SET_ID"
flock -n 9 || echo "overlap step $SET_ID" >> "$SET_FOLDER/ledger"
if [ -n "${MACHINE_NAME:-}" ]; then
  exec 8> "$SET_FOLDER/machine.$MACHINE_NAME"
  flock -n 8 || echo "overlap machine $MACHINE_NAME" >> "$SET_FOLDER/ledger"
fi
echo "start $SET_ID" >> "$SET_FOLDER/ledger"
sleep "$SET_TIME"
echo "end $SET_ID" >> "$SET_FOLDER/ledger"
echo "{\\"id\\": $SET_ID}" > "$OUT/output.json"
"""


class Team:
    """A service and its agents as processes; who was killed is started again."""

    def __init__(self, folder: Path, agents: int, slots: int) -> None:
        self.folder, self.slots = folder, slots
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.log: IO[bytes] = (folder / "log").open("ab")
        for name in ("service", *(f"a{number}" for number in range(agents))):
            self.start(name)

    def start(self, name: str) -> None:
        if name == "service":
            words = ["-m", "tests.lab.killed_service", str(self.folder)]
        else:
            words = ["-m", "evenkeel", "lab", "agent", "--lab", str(self.folder), "--name", name]
            words += ["--slots", str(self.slots), "--folder", str(self.folder / name)]
        self.processes[name] = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=self.log, stderr=self.log)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()
        self.start(name)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.log.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        create(store)
        yield Lab(tmp_path, store)


@contextlib.contextmanager
def team_of(lab: Lab, agents: int, slots: int) -> Iterator[Team]:
    team = Team(lab.folder, agents, slots)
    try:
        yield team
    finally:
        team.end()


def machines(lab: Lab, number: int) -> None:
    def change(connection: Any) -> None:
        for name in (f"m{one}" for one in range(number)):
            row = {"id": name, "name": name, "state": "ready", "state_since_ns": 0, "identity": {}, "registered_ns": 0}
            connection.execute(insert(schema.machine).values(row | {"policy": {"prepare": "none"}}))
            connection.execute(insert(schema.fact).values({"machine_id": name, "key": "arch", "text": "x86_64"}))

    lab.store.write(change)


def send(lab: Lab, number: int, rng: random.Random, longest_s: float = 0.4) -> int:
    """expand -> build, build -> boot on a machine; acknowledged when this returns."""

    def use(part: int, **more: Any) -> dict[str, Any]:
        machine = {"machine": "arch:x86_64"} if more.pop("machine", False) else {}
        parameters: dict[str, Any] = {name: {} for name in ("folder", "id", "time")}
        values = {"folder": str(lab.folder), "id": str(10 * number + part), "time": f"{rng.uniform(0, longest_s):.2f}"}
        return {"step": {"kind": "k", "command": COMMAND, "parameters": parameters, **machine}, "set": values, **more}

    steps = {
        "expand": use(0),
        "left": use(1, needs=["expand"]),
        "right": use(2, needs=[{"step": "expand", "when": f"id:{10 * number}"}]),
        "boot": use(3, needs=["left", "right"], machine=True),
    }
    return submissions.submit(lab, ANN, graph_of({"version": 1, "name": "kill", "steps": steps})).id


def check(lab: Lab, sent: list[int]) -> Counter[str]:
    """Raises AssertionError; otherwise how attempts ended."""
    ledger = (lab.folder / "ledger").read_text().splitlines()
    assert [line for line in ledger if line.startswith("overlap")] == []
    done = Counter(line.split()[1] for line in ledger if line.startswith("end"))
    whole = []
    for place, number in enumerate(sent):
        shown = submissions.show(lab, ANN, number)
        if shown.state == "passed":
            whole += [line.id for line in shown.lines]
            assert {str(10 * place + part) for part in range(4)} <= done.keys()
        else:
            # A step whose agents were killed so often is given up, and says so.
            failed = [line for line in shown.lines if line.state == "failed"]
            assert failed
            for line in failed:
                assert line.attempts == LOST_AT_MOST
                assert {one.state for one in steps.show(lab, ANN, line.id).attempts} == {"lost"}
    attempt, claim = schema.attempt.c, schema.claim.c
    with lab.store.read() as connection:
        attempts = connection.execute(select(attempt.step_id, attempt.state)).all()
        claims = connection.execute(
            select(claim.machine_id, claim.began_ns, claim.ended_ns).order_by(claim.machine_id, claim.began_ns)
        ).all()
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    passed = Counter(row.step_id for row in attempts if row.state == "passed")
    assert set(whole) <= passed.keys()
    assert set(passed.values()) == {1}
    for first, second in itertools.pairwise(claims):
        if first.machine_id == second.machine_id:
            assert first.ended_ns is not None and first.ended_ns <= second.began_ns
    return Counter(row.state for row in attempts)


def ended(lab: Lab, sent: list[int], seconds: float) -> None:
    until(lambda: all(submissions.show(lab, ANN, number).state != "open" for number in sent), seconds)


def test_a_killed_dispatcher_and_a_killed_agent_lose_nothing(lab: Lab) -> None:
    machines(lab, 1)
    rng = random.Random(6)
    with team_of(lab, 1, 3) as team:
        sent = [send(lab, number, rng) for number in range(2)]
        until(lambda: (lab.folder / "ledger").exists())
        team.kill("service")
        time.sleep(0.3)
        team.kill("a0")
        ended(lab, sent, 60)
        states = check(lab, sent)
    assert states["passed"] == 8
    assert states["lost"] <= 3


def test_the_check_sees_an_overlap_and_a_loss(lab: Lab) -> None:
    machines(lab, 1)
    with dispatching.running(lab), agent_of(lab, slots=4):
        sent = [send(lab, 0, random.Random(1))]
        ended(lab, sent, 30)
    check(lab, sent)
    ledger = lab.folder / "ledger"
    good = ledger.read_text()
    ledger.write_text(good + "overlap step 1\n")
    with pytest.raises(AssertionError):
        check(lab, sent)
    ledger.write_text(good.replace("end 2\n", ""))
    with pytest.raises(AssertionError):
        check(lab, sent)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_200_kills_of_dispatcher_and_agents(lab: Lab, seed: int) -> None:
    rng = random.Random(seed)
    machines(lab, 3)
    sent: list[int] = []
    kills = Counter[str]()
    with team_of(lab, 4, 2) as team:
        while sum(kills.values()) < 100:  # twice: 200 in all
            if sum(submissions.show(lab, ANN, number).state == "open" for number in sent) < 12:
                sent.append(send(lab, len(sent), rng, 3))
            # Whoever does nothing would only show that nothing is lost by doing nothing.
            busy = until(lambda: _running(lab), 60)
            name = "service" if rng.random() < 0.4 else rng.choice(sorted(set(busy.values())))
            seq = _last_event(lab)
            kills[name] += 1
            team.kill(name)
            if rng.random() < 0.7:  # else the next one is killed while this one is away
                _recovered(lab, busy, name, seq)
            time.sleep(rng.uniform(0, 0.5))
        ended(lab, sent, 300)
        states = check(lab, sent)
    print(f"\n{len(sent)} submissions, kills {dict(kills)}, attempts {dict(states)}")
    of_agents = sum(number for name, number in kills.items() if name != "service")
    assert of_agents // 3 <= states["lost"] <= 2 * of_agents


def _running(lab: Lab) -> dict[int, str]:
    """Attempts that run at this moment, as far as the lab knows, and on which agents."""
    attempt = schema.attempt.c
    with lab.store.read() as connection:
        query = select(attempt.id, attempt.agent).where(attempt.state == "running")
        return {row.id: row.agent for row in connection.execute(query)}


def _recovered(lab: Lab, busy: dict[int, str], name: str, seq: int) -> None:
    """Wait until what ``name`` ran is given up or taken, or until the service has said something new."""
    killed = {attempt for attempt, agent in busy.items() if agent == name}
    if name == "service":
        until(lambda: _last_event(lab) > seq, 60)
    else:
        until(lambda: killed.isdisjoint(_running(lab)), 60)


def _last_event(lab: Lab) -> int:
    with lab.store.read() as connection:
        return connection.scalar(select(func.max(schema.event.c.seq))) or 0


# -- a full disk --------------------------------------------------------------------------------------------------


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
            with pytest.raises(OperationalError, match="full"):
                for _ in range(50):
                    submissions.submit(lab, ANN, graph_of({"name": "t", "steps": {"two": {"step": graph}}}))
            (tmp_path / "go").touch()
            until(lambda: list(here.folder.glob("results/*.json")))
            time.sleep(1.5)
            assert submissions.show(lab, ANN, sent.id).state == "open"
            assert list(here.folder.glob("results/*.json")), "the agent forgot a result that was not written"
            ballast.unlink()
            until(lambda: submissions.show(lab, ANN, sent.id).state == "passed", 30)
            until(lambda: not list(here.folder.glob("results/*.json")))
    assert shutil.disk_usage(small_disk).free > 0
