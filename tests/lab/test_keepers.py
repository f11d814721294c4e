"""Keepers that are split off from a waiting one: they end with their agent, and outlive the one they came from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.lab.keepers import Mother
from tests.waiting import until


@pytest.fixture
def mother() -> Iterator[Mother]:
    made = Mother()
    yield made
    made.close()


def orders(folder: Path, script: str) -> str:
    asked: dict[str, Any] = {"argv": ["bash", "-c", script], "env": {"PATH": os.environ["PATH"]}, "cwd": str(folder)}
    asked |= {"log": str(folder / "log"), "folder": str(folder), "grace_s": 5.0}
    return json.dumps(asked | dict.fromkeys(("time_s", "memory", "disk", "cpus", "cgroup")))


def report(mother: Mother, folder: Path, script: str) -> dict[str, Any]:
    with mother.keep(orders(folder, script)) as (_, answer):
        found: dict[str, Any] = json.loads(answer.read())
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_one_waits_and_keeps_many(mother: Mother, tmp_path: Path) -> None:
    mother.ready()
    assert mother._process
    first = mother._process.pid
    found = [report(mother, tmp_path, f"cut -d' ' -f4 /proc/$PPID/stat; exit {code}") for code in range(3)]
    assert [one["exit"] for one in found] == [0, 1, 2]
    assert set((tmp_path / "log").read_text().split()) == {str(first)}, "each was split off from it"
    mother.close()
    assert not alive(first)
    with pytest.raises(OSError, match="ending"):
        report(mother, tmp_path, "true")


def test_long_orders_and_a_cancel_at_once(mother: Mother, tmp_path: Path) -> None:
    with mother.keep(orders(tmp_path, "sleep 1000 # " + "x" * 100_000)) as (order, answer):
        order.write(b"cancel\n")
        assert json.loads(answer.read())["cause"] == "cancelled"


def test_one_that_was_killed_takes_no_step_with_it_and_is_followed_by_another(mother: Mother, tmp_path: Path) -> None:
    with mother.keep(orders(tmp_path, "echo up; while ! test -e go; do sleep 0.02; done")) as (_, answer):
        until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text())
        assert mother._process
        mother._process.kill()
        assert report(mother, tmp_path, "exit 7")["exit"] == 7
        (tmp_path / "go").touch()
        assert json.loads(answer.read())["exit"] == 0


def test_a_killed_agent_takes_keepers_and_steps_with_it(tmp_path: Path) -> None:
    script = f"echo $$ $PPID > {tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids; sleep 1000"
    program = "import sys\nfrom evenkeel.lab.keepers import Mother\nmother = Mother()\n"
    program += "with mother.keep(sys.argv[1]) as (_, answer):\n    print(mother._process.pid, flush=True)\n"
    program += "    answer.read()\n"
    agent = subprocess.Popen([sys.executable, "-c", program, orders(tmp_path, script)], stdout=subprocess.PIPE)
    try:
        assert agent.stdout
        pids = [int(agent.stdout.readline())]
        pids += map(int, until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text()).split())
        assert all(map(alive, pids))
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.communicate()
    until(lambda: not any(map(alive, pids)), told=lambda: pids)
