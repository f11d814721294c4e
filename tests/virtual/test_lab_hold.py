"""Limits of a lab's steps on a machine with cgroup v2 and systemd, which keep them by the kernel and not by looking."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.virtual.conftest import on_host

from evenkeel.lab import hold
from evenkeel.machines.virtual import VirtualMachine

pytestmark = [pytest.mark.virtual, pytest.mark.long]

#: In a unit with Delegate=yes: find its cgroup, hold one command in it, say what came of that and what is left.
PROGRAM = """
import json, os, subprocess, sys
sys.path.insert(0, "/tmp/lab-hold")
import hold
cgroup = hold.delegated_cgroup()
orders = json.loads(sys.argv[1]) | {"cgroup": cgroup}
os.makedirs("/tmp/lab-hold/work", exist_ok=True)
keeper = subprocess.Popen([sys.executable, "-I", "-S", hold.__file__, json.dumps(orders)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE)
answer = json.loads(keeper.stdout.read())
keeper.wait()
answer["cgroup"] = cgroup
answer["left_folders"] = [name for name in os.listdir(cgroup) if name.startswith("step-")] if cgroup else None
answer["log"] = open(orders["log"]).read()
print(json.dumps(answer))
"""


def held(host: VirtualMachine, command: str, *, delegate: bool = True, **limits: Any) -> dict[str, Any]:
    orders = {"argv": ["sh", "-c", command], "env": {"PATH": "/usr/bin:/bin"}, "cwd": "/tmp/lab-hold/work",
              "log": "/tmp/lab-hold/log", "folder": "/tmp/lab-hold/work", "grace_s": 1.0, "time_s": 100,
              "memory": None, "disk": None, "cpus": None, **limits}  # fmt: skip
    encoded = base64.b64encode(Path(hold.__file__).read_bytes()).decode()
    program = base64.b64encode(PROGRAM.encode()).decode()
    unit = f"systemd-run --quiet --wait --pipe --collect -p Delegate={'yes' if delegate else 'no'}"
    answer = on_host(
        host,
        f"rm -rf /tmp/lab-hold; mkdir -p /tmp/lab-hold/work\n"
        f"echo {encoded} | base64 -d >/tmp/lab-hold/hold.py\necho {program} | base64 -d >/tmp/lab-hold/program.py\n"
        f"{unit} python3 /tmp/lab-hold/program.py {shlex.quote(json.dumps(orders))}",
    )
    found: dict[str, Any] = json.loads(answer)
    return found


def test_memory_and_cpus_are_kept_by_a_cgroup_of_the_step(virtual_host: VirtualMachine) -> None:
    hog = held(virtual_host, "python3 -c 'x = b\"x\" * (200 << 20)'", memory=64 << 20, cpus=0.5)
    assert hog["cgroup"].startswith("/sys/fs/cgroup/system.slice/run-")
    assert hog["limits"] == ["memory: cgroup", "cpus: cgroup", "time: clock"]
    assert (hog["cause"], hog["exit"]) == ("memory", -9)
    assert hog["left_folders"] == []
    fine = held(virtual_host, "cat /proc/self/cgroup; setsid sleep 1000 & exit 0", memory=64 << 20)
    assert (fine["cause"], fine["exit"], fine["left"]) == ("", 0, 1)
    assert "/step-" in fine["log"]
    assert fine["left_folders"] == []
    assert on_host(virtual_host, "pgrep -fc 'sleep 1000' || true") == "0"


def test_without_delegation_nobody_s_cgroup_is_touched(virtual_host: VirtualMachine) -> None:
    found = held(virtual_host, "python3 -c 'import time; x = b\"x\" * (200 << 20); time.sleep(90)'", delegate=False,
                 memory=64 << 20)  # fmt: skip
    assert found["cgroup"] is None
    assert found["limits"] == ["memory: watched", "time: clock"]
    assert found["cause"] == "memory"
