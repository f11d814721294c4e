"""The real service of a lab under a real systemd: installed on a virtual host, by the unit that `lab up` prints.

What the unit says is looked at where it counts: in processes, their users, cgroups, and the journal.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from tests.virtual.conftest import on_host

from evenkeel.machines.virtual import VirtualMachine, lifecycle

pytestmark = [
    pytest.mark.virtual,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="what is installed here is for another Python"),
]
SOURCE = Path(__file__).parents[2] / "src" / "evenkeel"
#: What the lab never loads without PostgreSQL and without plans.
LEFT_OUT = {"highspy", "setuptools", "psycopg", "psycopg-binary", "tzdata"}
HOME = "/opt/evenkeel-unit"
UNIT = "/etc/systemd/system/evenkeel-lab.service"
#: Steps of a graph that says who it is and in which cgroup, and then of one that takes a while.
GRAPH = """
version: 1
name: unit
steps:
  who:
    step: {kind: who, command: "id -un; cat /proc/self/cgroup", limits: {memory: 64MiB}}
  slow:
    needs: [who]
    step: {kind: slow, command: "sleep 150; echo slept"}
"""


def installed(name: str, extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """A distribution and all that it needs, by name."""
    found: dict[str, Distribution] = {}
    left = [(name, extras)]
    while left:
        one, of = left.pop()
        if one in found and not of:
            continue
        found[one] = distribution(one)
        for text in found[one].requires or ():
            need = Requirement(text)
            wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in of or {""})
            if wanted and need.name.lower() not in LEFT_OUT and (need.name not in found or need.extras):
                left.append((need.name, frozenset(need.extras)))
    return found


def stage(folder: Path) -> None:
    """The lab as pip would install it, with bytecode: an emulated host would compile for minutes."""
    for name, one in installed("evenkeel", frozenset({"lab"})).items():
        for file in one.files or ():
            source = Path(str(one.locate_file(file)))
            if {"..", "tests"} & set(file.parts) or file.suffix == ".pyc" or not source.is_file():
                continue  # programs, tests of numpy (a third of it), and what is made anew below
            if name == "evenkeel" and ".dist-info" not in str(file):
                continue  # of an editable installation
            to = folder / file
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(source.read_bytes())
    for source in SOURCE.rglob("*"):
        if source.is_file() and source.suffix != ".pyc":
            to = folder / "evenkeel" / source.relative_to(SOURCE)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(source.read_bytes())
    # By what they contain and not by date: nobody looks at the source again.
    words = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(folder)]
    subprocess.run(words, check=False, stdout=subprocess.DEVNULL)  # some packages carry templates that are no Python


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """By everybody, as what pip installs: the folder of a test is its owner's alone, and so would be the libraries."""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def packed(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname=".", filter=_readable)
    return out.getvalue()


PROGRAM = """#!{home}/bin/python3
import sys
from evenkeel.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def lab_host(virtual_host: VirtualMachine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    """A host with `evenkeel` in a virtual environment of its own, which is gone afterwards."""
    folder = tmp_path_factory.mktemp("stage")
    stage(folder)
    libraries = f"{HOME}/lib/python3.11/site-packages"
    try:
        on_host(virtual_host, f"python3 -m venv --without-pip {HOME}; useradd --system evenkeel-unit")
        target = virtual_host.ssh_target()
        sent = subprocess.run(
            lifecycle.ssh_command(target, "tar", "xzf", "-", "--no-same-owner", "-C", libraries),
            input=packed(folder),
            capture_output=True,
            timeout=600,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr.decode()
        put(virtual_host, f"{HOME}/bin/evenkeel", PROGRAM.format(home=HOME))
        put(virtual_host, f"{HOME}/graph.yaml", GRAPH)
        on_host(virtual_host, f"chmod 755 {HOME}/bin/evenkeel")
        yield virtual_host
    finally:
        on_host(
            virtual_host,
            f"systemctl disable --now evenkeel-lab 2>&1 || true; rm -rf {HOME} {UNIT} /var/lib/evenkeel/lab\n"
            "systemctl daemon-reload; systemctl reset-failed evenkeel-lab 2>/dev/null || true\n"
            "userdel evenkeel-unit 2>/dev/null || true",
        )


def put(host: VirtualMachine, file: str, text: str) -> None:
    on_host(host, f"echo {base64.b64encode(text.encode()).decode()} | base64 -d >{file}")


def evenkeel(host: VirtualMachine, words: str) -> str:
    return on_host(host, f"cd {HOME}; {HOME}/bin/evenkeel lab {words}")


def shown(host: VirtualMachine, what: str) -> str:
    return on_host(host, f"systemctl show -P {what} evenkeel-lab")


_UPS = "journalctl -t evenkeel-lab -o cat --no-pager | grep -c 'the lab is up' || true"


def ups(host: VirtualMachine) -> int:
    """How often the journal says that the lab is up."""
    return int(on_host(host, _UPS))


def wait_up(host: VirtualMachine, times: int) -> None:
    """Until the journal has said so often that the lab is up."""
    on_host(
        host,
        f"for i in $(seq 280); do test $({_UPS}) -ge {times} && exit; sleep 1; done\n"
        "systemctl status --no-pager evenkeel-lab >&2; journalctl -u evenkeel-lab --no-pager | tail -30 >&2; exit 1",
        timeout_s=400,
    )


def wait_for_step(host: VirtualMachine, number: int, name: str, state: str) -> dict[str, Any]:
    """Until it is so.  One look may take half a minute there."""
    end = time.monotonic() + 500
    while True:
        lines = json.loads(evenkeel(host, f"show {number} --json"))["lines"]
        found: dict[str, Any] = next(one for one in lines if one["name"] == name)
        if found["state"] == state:
            return found
        assert time.monotonic() < end, found
        time.sleep(3)


def test_the_unit_runs_the_lab_survives_its_death_and_stops_clean(lab_host: VirtualMachine) -> None:
    on_host(lab_host, f"{HOME}/bin/evenkeel lab up --print-unit >{UNIT}; systemctl daemon-reload")
    assert on_host(lab_host, f"systemd-analyze verify --man=no {UNIT} 2>&1") == ""
    on_host(lab_host, "systemctl enable --now evenkeel-lab 2>&1")
    wait_up(lab_host, 1)
    assert on_host(lab_host, "systemctl is-active evenkeel-lab") == "active"
    assert on_host(
        lab_host, "stat -c '%U %a' /var/lib/evenkeel/lab; stat -c %F /run/evenkeel/lab.sock"
    ).splitlines() == [
        "root 700",
        "socket",
    ]
    # A client without any option finds it, and its agent keeps limits by cgroups of a scope beside the unit.
    evenkeel(lab_host, "submit graph.yaml")
    wait_for_step(lab_host, 1, "slow", "running")
    who = evenkeel(lab_host, "log 1 who").split()
    assert who[0] == "root" and re.search(r"/system\.slice/run-\S+\.scope/step-", who[-1]), who

    first = shown(lab_host, "MainPID")
    agent = on_host(lab_host, "cat /var/lib/evenkeel/lab/agent/lock")
    on_host(lab_host, "systemctl kill --signal=KILL --kill-who=main evenkeel-lab")
    wait_up(lab_host, 2)
    assert shown(lab_host, "MainPID") != first and shown(lab_host, "NRestarts") == "1"
    assert on_host(lab_host, "cat /var/lib/evenkeel/lab/agent/lock") == agent, "the agent outlives the service"
    done = wait_for_step(lab_host, 1, "slow", "passed")
    assert done["attempts"] == 1, done

    on_host(lab_host, "systemctl stop evenkeel-lab")
    assert on_host(lab_host, "systemctl is-active evenkeel-lab || true") == "inactive"
    assert shown(lab_host, "Result") == "success"
    on_host(lab_host, f"for i in $(seq 50); do test -e /proc/{agent} || exit 0; sleep 0.2; done; exit 1")
    assert on_host(lab_host, "test -e /run/evenkeel/lab.sock || echo gone") == "gone"
    told = on_host(lab_host, "journalctl -t evenkeel-lab -o cat --no-pager")
    assert told.count("the lab is up") == 2 and told.splitlines()[-1] == "the lab is down", told
    assert "Traceback" not in told and "/login/link/" not in told, told


def test_with_a_user_of_its_own_neither_it_nor_its_steps_are_root(lab_host: VirtualMachine) -> None:
    """By the line that the unit has as a comment; the state of the test before, which was root's, goes along."""
    before = ups(lab_host)
    on_host(
        lab_host,
        f"{HOME}/bin/evenkeel lab up --print-unit | sed 's/^#User=.*/User=evenkeel-unit/' >{UNIT}\n"
        "systemctl daemon-reload; systemctl start evenkeel-lab",
    )
    wait_up(lab_host, before + 1)
    main = shown(lab_host, "MainPID")
    assert (
        on_host(lab_host, f"stat -c %U /proc/{main} /var/lib/evenkeel/lab /var/lib/evenkeel/lab/lab.db").split()
        == ["evenkeel-unit"] * 3
    )
    evenkeel(lab_host, "submit graph.yaml")
    number = json.loads(evenkeel(lab_host, "submissions --most 1 --json"))[0]["id"]  # 2, where the first test ran
    wait_for_step(lab_host, number, "who", "passed")
    assert evenkeel(lab_host, f"log {number} who").split()[0] == "evenkeel-unit"
    on_host(lab_host, "systemctl stop evenkeel-lab")
    assert shown(lab_host, "Result") == "success"


def test_settings_that_cannot_be_read_stop_the_unit_and_do_not_loop(lab_host: VirtualMachine) -> None:
    on_host(
        lab_host, f"{HOME}/bin/evenkeel lab up --print-unit >{UNIT}; systemctl daemon-reload; mkdir -p /etc/evenkeel"
    )
    put(lab_host, "/etc/evenkeel/lab.yaml", "agent_slots: many\n")
    try:
        on_host(
            lab_host,
            "systemctl start evenkeel-lab || true\n"
            "for i in $(seq 120); do systemctl is-failed -q evenkeel-lab && exit; sleep 1; done; exit 1",
        )
        assert (shown(lab_host, "NRestarts"), shown(lab_host, "ExecMainStatus")) == ("0", "2")
        told = on_host(lab_host, "journalctl -t evenkeel-lab -o cat --no-pager")
        assert "/etc/evenkeel/lab.yaml" in told and "agent_slots" in told
    finally:
        on_host(lab_host, "rm -rf /etc/evenkeel/lab.yaml; systemctl reset-failed evenkeel-lab")
