"""Limits of a lab's steps on a machine with cgroup v2 and systemd, which keep them by the kernel and not by looking."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.virtual.conftest import on_host

from evenkeel.apply.unit import quoted
from evenkeel.lab import hold, scope, unit
from evenkeel.machines.virtual import VirtualMachine

pytestmark = [pytest.mark.virtual, pytest.mark.long]

#: In a unit with Delegate=yes: find its cgroup, hold one command in it, say what came of that and what is left.
PROGRAM = """
import json, os, subprocess, sys
sys.path.insert(0, "/tmp/lab-hold")
import hold
try:
    cgroup, why = hold.delegated_cgroup(), ""
except hold.NoCgroup as error:
    cgroup, why = None, str(error)
orders = json.loads(sys.argv[1]) | {"cgroup": cgroup}
os.makedirs("/tmp/lab-hold/work", exist_ok=True)
keeper = subprocess.Popen([sys.executable, "-I", "-S", hold.__file__, json.dumps(orders)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE)
answer = json.loads(keeper.stdout.read())
keeper.wait()
answer |= {"cgroup": cgroup, "why": why}
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
    inner = "mkdir /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/inner"  # as a step that is a manager of others may
    fine = held(virtual_host, f"cat /proc/self/cgroup; {inner}; setsid sleep 1000 & exit 0", memory=64 << 20)
    assert (fine["cause"], fine["exit"], fine["left"]) == ("", 0, 1)
    assert "/step-" in fine["log"]
    assert fine["left_folders"] == []
    assert on_host(virtual_host, "pgrep -fc 'sleep 1000' || true") == "0"


def test_without_delegation_nobody_s_cgroup_is_touched(virtual_host: VirtualMachine) -> None:
    found = held(virtual_host, "python3 -c 'import time; x = b\"x\" * (200 << 20); time.sleep(90)'", delegate=False,
                 memory=64 << 20)  # fmt: skip
    assert (found["cgroup"], found["why"]) == (None, "it was not started by systemd with Delegate=yes")
    assert found["limits"] == ["memory: watched", "time: clock"]
    assert found["cause"] == "memory"


#: What a killed service leaves behind and finds again: an agent, which holds a step in its delegated cgroup.
AGENT = """
import json, os, subprocess, sys
sys.path.insert(0, "/tmp/lab-hold")
import hold
orders = json.loads(sys.argv[1]) | {"cgroup": hold.delegated_cgroup()}
keeper = subprocess.Popen([sys.executable, "-I", "-S", hold.__file__, json.dumps(orders)], stdin=subprocess.PIPE)
with open("/tmp/lab-hold/agent.new", "w") as stream:
    json.dump({"pid": os.getpid(), "cgroup": orders["cgroup"]}, stream)
os.rename("/tmp/lab-hold/agent.new", "/tmp/lab-hold/agent.json")
keeper.wait()
"""
#: As `evenkeel lab up` does it: an agent, unless there is one; then it goes on.
SERVICE = """
import os, subprocess, sys, time
sys.path.insert(0, "/tmp/lab-hold")
import scope
if not os.path.exists("/tmp/lab-hold/agent.json"):
    words = scope.words() if sys.argv[1] == "scope" else []
    with open("/tmp/lab-hold/agent.log", "wb") as log:
        subprocess.Popen([*words, sys.executable, "/tmp/lab-hold/agent.py", sys.argv[2]], start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=log, stderr=log)
time.sleep(1000)
"""
UNIT = "/run/systemd/system/evenkeel-lab.service"
PID = "systemctl show -P MainPID evenkeel-lab"


def lab_service(host: VirtualMachine, how: str, more: str = "") -> None:
    """Start the unit that `evenkeel lab up --print-unit` gives, with a service of a few lines in place of ours."""
    orders = {"argv": ["sleep", "500"], "env": {"PATH": "/usr/bin:/bin"}, "cwd": "/tmp", "log": "/tmp/lab-hold/log",
              "folder": "/tmp/lab-hold", "grace_s": 1.0, "time_s": None, "memory": 64 << 20, "disk": None,
              "cpus": None}  # fmt: skip
    (command,) = [line for line in unit.unit([]).splitlines() if line.startswith("ExecStart=")]
    words = ["/usr/bin/python3", "/tmp/lab-hold/service.py", how, json.dumps(orders)]
    text = unit.unit([]).replace(command, "ExecStart=" + " ".join(map(quoted, words)) + more)
    files = {"hold.py": Path(hold.__file__).read_text(), "scope.py": Path(scope.__file__).read_text(),
             "agent.py": AGENT, "service.py": SERVICE}  # fmt: skip
    script = "rm -rf /tmp/lab-hold; mkdir -p /tmp/lab-hold\n"
    for name, content in {**{f"/tmp/lab-hold/{name}": each for name, each in files.items()}, UNIT: text}.items():
        script += f"echo {base64.b64encode(content.encode()).decode()} | base64 -d >{name}\n"
    script += "systemctl daemon-reload; systemctl start evenkeel-lab\n"
    on_host(host, script + "for i in $(seq 150); do test -e /tmp/lab-hold/agent.json && exit; sleep 0.2; done; exit 1")


def end(host: VirtualMachine) -> None:
    on_host(
        host,
        "systemctl stop evenkeel-lab; pkill -9 -f /tmp/lab-hold/agent.py || true\n"
        f"rm -f {UNIT}; systemctl daemon-reload; systemctl reset-failed evenkeel-lab 2>/dev/null || true",
    )


def test_a_service_that_was_killed_comes_back_and_its_agent_goes_on_with_the_step(virtual_host: VirtualMachine) -> None:
    try:
        lab_service(virtual_host, "scope")
        agent = json.loads(on_host(virtual_host, "cat /tmp/lab-hold/agent.json"))
        assert agent["cgroup"].startswith("/sys/fs/cgroup/system.slice/run-") and agent["cgroup"].endswith(".scope")
        step = f"cat {agent['cgroup']}/step-*/memory.max {agent['cgroup']}/step-*/cgroup.procs"
        before = on_host(virtual_host, step).split()
        assert before[0] == str(64 << 20) and len(before) == 2
        first = on_host(virtual_host, PID)
        on_host(virtual_host, "systemctl kill --signal=KILL --kill-who=main evenkeel-lab")
        on_host(virtual_host, f"for i in $(seq 100); do p=$({PID}); test $p != 0 && test $p != {first} && exit; "
                "sleep 0.2; done; systemctl status evenkeel-lab >&2; exit 1")  # fmt: skip
        assert on_host(virtual_host, "sleep 3; systemctl is-active evenkeel-lab") == "active"
        assert on_host(virtual_host, step).split() == before
        on_host(virtual_host, f"kill -9 {agent['pid']}")
        gone = f"for i in $(seq 100); do test -e {agent['cgroup']} || exit 0; sleep 0.1; done; exit 1"
        on_host(virtual_host, gone)
        assert on_host(virtual_host, "pgrep -fc 'sleep 500' || true") == "0"
    finally:
        end(virtual_host)


def test_in_the_cgroup_of_its_service_an_agent_would_keep_that_from_coming_back(virtual_host: VirtualMachine) -> None:
    """Why there is a scope: the shorter way, with Delegate= in the unit of the service, breaks it."""
    try:
        lab_service(virtual_host, "none", "\nDelegate=yes")
        agent = json.loads(on_host(virtual_host, "cat /tmp/lab-hold/agent.json"))
        assert agent["cgroup"] == "/sys/fs/cgroup/system.slice/evenkeel-lab.service"
        on_host(virtual_host, "systemctl kill --signal=KILL --kill-who=main evenkeel-lab; sleep 6")
        assert on_host(virtual_host, "systemctl is-active evenkeel-lab || true") != "active"
        assert "status=219/CGROUP" in on_host(virtual_host, "journalctl -u evenkeel-lab -o cat --no-pager | tail -20")
    finally:
        end(virtual_host)
