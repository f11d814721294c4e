"""`evenkeel lab demo` on real virtual hosts: from a fresh lab to its end, and stopped at any point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.service import Running
from tests.virtual.conftest import on_host

from evenkeel.lab.demo import hosts
from evenkeel.machines.virtual import VirtualMachine, booted, image, lifecycle, qemu
from evenkeel.machines.virtual.places import hosts_dir

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(2400)]
NAME = "lab-demo-1"


def begin(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evenkeel", "lab", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*words: str) -> Any:
    process = begin(*words, "--json")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def machines(lab: Running) -> dict[str, str]:
    with lab.client() as client:
        found = client.pages("/machines", q="tag:demo", facets=False)
        return {one["name"]: one["state"] for one in found}


def left() -> list[str]:
    """Files and processes of virtual hosts of this lab, and what an interrupted keeping of a boot would leave."""
    place = os.fsencode(hosts_dir())
    found = [str(path) for path in hosts_dir().rglob("*")] if hosts_dir().exists() else []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place in process.read_bytes():
                found.append(str(process))
        except OSError:
            continue
    picture = image.find()
    assert picture is not None
    return found + [str(path) for path in (picture.folder / "booted").glob(".*")]


def until(true: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 900
    while not true() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_demo_fills_a_fresh_lab_and_the_second_one_goes_on_from_its_boot(lab_up: Running) -> None:
    done = run("demo", "--hosts", "1")
    assert done["machines"][0] == NAME
    with lab_up.client() as client:
        end = time.monotonic() + 120
        while (found := client.get(f"/submissions/{done['submission']}"))["state"] == "open":
            assert time.monotonic() < end, found
            time.sleep(0.2)
        assert found["state"] == "passed", found
        assert client.get(f"/machines/{NAME}/facts")["virtual"] == ["yes"]
    log = begin("log", str(done["submission"]), "look")
    assert f"I have {NAME} for myself" in log.communicate(timeout=60)[0]

    boot = lifecycle.read_boot_id(lifecycle.ssh_target(NAME))
    assert run("demo", "--hosts", "1")["machines"] == done["machines"]
    assert lifecycle.read_boot_id(lifecycle.ssh_target(NAME)) == boot  # it goes on where it was
    on_host(VirtualMachine(NAME), "echo mine >/root/left-behind; sync")

    assert run("demo", "--rm") == {"removed": done["machines"]}
    assert (left(), machines(lab_up)) == ([], {})

    assert run("demo", "--hosts", "1")["machines"] == done["machines"]
    assert machines(lab_up)[NAME] in ("ready", "claimed")
    on_host(VirtualMachine(NAME), "test ! -e /root/left-behind")
    running = lifecycle.read_run(NAME)
    assert running is not None
    if booted.works_with(qemu.find(None), running.kvm):
        assert "went on from a kept boot" in running.notes
    run("demo", "--rm")


MOMENTS: dict[str, Callable[[Running], object]] = {
    "at once": lambda lab: True,
    "its folder is there": lambda lab: lifecycle.folder_of(NAME).exists(),
    "QEMU runs": lambda lab: (lifecycle.folder_of(NAME) / "qemu.pid").exists(),
    "it is known to run": lambda lab: lifecycle.exists(NAME) and lifecycle.read_run(NAME),
    "it is in the pool": machines,
}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_demo_that_is_stopped_leaves_nothing(lab_up: Running, moment: str, how: signal.Signals) -> None:
    assert (left(), machines(lab_up)) == ([], {})
    process = begin("demo", "--hosts", "2")  # the second one boots while the first one is in the pool
    assert process.stderr is not None
    if moment == "at once":
        process.stderr.readline()  # "booting": before that there is nothing to clean up
    until(lambda: MOMENTS[moment](lab_up), process)
    process.send_signal(how)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert (left(), machines(lab_up)) == ([], {})


def test_a_demo_that_is_stopped_leaves_the_hosts_of_an_earlier_one(lab_up: Running) -> None:
    run("demo", "--hosts", "1")
    process = begin("demo", "--hosts", "2")
    until(lambda: (lifecycle.folder_of("lab-demo-2") / "qemu.pid").exists(), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert (process.returncode, hosts()) == (130, [NAME])
    assert lifecycle.read_run(NAME) is not None and list(machines(lab_up)) == [NAME]
    run("demo", "--rm")
    assert left() == []
