"""Whether steps get cgroups: only where systemd left one, and where not, an agent says why and goes on without.

With real cgroups: tests/virtual/test_lab_hold.py.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evenkeel.lab import agent_setup, hold
from evenkeel.lab.executor import Processes
from evenkeel.lab.hold import NoCgroup


def tree(folder: Path, own: str, *, v2: bool = True, controllers: str = "cpu memory pids") -> functools.partial[str]:
    """Where a process whose /proc/self/cgroup is ``own`` looks for its cgroup."""
    (folder / "own").write_text(own)
    here = folder / "cgroup/system.slice/agent.scope"
    here.mkdir(parents=True)
    (here / "cgroup.controllers").write_text(controllers)
    (here / "cgroup.procs").write_text("1\n2\n")
    if v2:
        (folder / "cgroup/cgroup.controllers").write_text("cpu memory pids")
    return functools.partial(hold.delegated_cgroup, str(folder / "cgroup"), str(folder / "own"))


SCOPE = "0::/system.slice/agent.scope\n"
NOT_OURS = "it was not started by systemd with Delegate=yes"
CASES = {
    "cgroup v1": ("4:memory:/a\n1:cpu:/a\n", False, "this machine has no cgroup v2 at "),
    "both, v2 elsewhere": ("4:memory:/a\n0::/\n", False, "this machine has no cgroup v2 at "),
    "a service's own": (SCOPE, True, NOT_OURS),
    "the whole machine's, as in a container": ("0::/\n", True, NOT_OURS),
    "outside of a container": ("0::/../../agent.scope\n", True, "agent.scope: No such file or directory"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cgroup_that_was_not_left_to_the_agent_is_not_touched_and_it_says_why(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, v2, why = CASES[case]
    look = tree(tmp_path, own, v2=v2)
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    monkeypatch.setattr(agent_setup, "delegated_cgroup", look)
    said: list[str] = []
    agent = agent_setup.agent(str(tmp_path), name="a", slots=1, labels=(), folder=tmp_path / "a", say=said.append)
    executor = agent.executor("identity")
    assert isinstance(executor, Processes) and executor.cgroup is None
    (line,) = said
    assert line.startswith("limits of steps are watched, not held by cgroups: ") and why in line
    assert before == {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}


def test_a_cgroup_without_the_controllers_is_of_no_use(tmp_path: Path) -> None:
    look = tree(tmp_path, SCOPE, controllers="pids")
    try:
        os.setxattr(tmp_path / "cgroup/system.slice/agent.scope", "user.delegate", b"1")
    except OSError:  # tmpfs before Linux 6.6: root's
        os.setxattr(tmp_path / "cgroup/system.slice/agent.scope", "trusted.delegate", b"1")
    with pytest.raises(NoCgroup, match="without the controllers cpu and memory"):
        look()


@pytest.mark.long
def test_an_agent_that_lab_up_started_leaves_when_its_lab_does_not_come_back(tmp_path: Path) -> None:
    words = ["lab", "agent", "--lab", str(tmp_path), "--folder", str(tmp_path / "a"), "--leave-after", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "evenkeel", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the lab is gone, and nothing is left to do" in done.stderr
