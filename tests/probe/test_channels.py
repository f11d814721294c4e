"""Queues of a network interface, on a real one: a veth pair in a network of its own, which the kernel throws away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.probe.facts import facts_of
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps import channels
from tests.probe.trees import Link, Tree, cpus_tree, plant

PROBE = Path(channels.__file__).parents[2]
SCRIPT = """
import json, sys
from evenkeel.probe import ethtool, write
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps import channels

said = {"limits": ethtool.channels("v0"), "lo": ethtool.channels("lo"), "gone": ethtool.channels("v9")}
step = {"kind": "channels", "nic": "v0", "value": "rx=2 tx=2"}
said["before"] = before = channels.snapshot(step, "/")
said["satisfied"] = [channels.satisfied(step, before)]
said["dry"] = write.apply_step(step, dry_run=True)
channels.write(step, before, "/")
said["after"] = after = channels.snapshot(step, "/")
said["satisfied"].append(channels.satisfied(step, after))
said["shown"] = channels.shown(step, after)
for wrong in ("rx=9 tx=9", "rx=0 tx=2"):
    try:
        channels.write({**step, "value": wrong}, after, "/")
        said[wrong] = "taken"
    except StepFailed as failure:
        said[wrong] = failure.describe()
channels.undo(step, before, "/")
channels.undo(step, before, "/")
said["undone"] = channels.snapshot(step, "/")
try:
    channels.write({**step, "nic": "v9"}, channels.snapshot({**step, "nic": "v9"}, "/"), "/")
except StepFailed as failure:
    said["no interface"] = failure.describe()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    pair = "ip link add v0 numrxqueues 4 numtxqueues 4 type veth peer name v1 numrxqueues 4 numtxqueues 4"
    words = ["unshare", "--map-root-user", "--net", "sh", "-c", f'{pair} && exec "$@"', "sh"]
    try:
        done = subprocess.run(
            [*words, sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={"PYTHONPATH": str(PROBE.parent), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except FileNotFoundError:
        pytest.skip("needs unshare(1)")
    if "unshare" in done.stderr or "RTNETLINK" in done.stderr or "ip: not found" in done.stderr:
        pytest.skip(f"a network of its own cannot be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_driver_tells(said: dict[str, Any]) -> None:
    assert (said["limits"]["max_rx"], said["limits"]["max_tx"], said["limits"]["combined"]) == (4, 4, 0)
    assert said["lo"] is None and said["gone"] is None


def test_set_read_back_and_given_back(said: dict[str, Any]) -> None:
    assert json.loads(said["before"]) == {"combined": 0, "rx": 4, "tx": 4} == json.loads(said["undone"])
    assert said["dry"]["outcome"] == "would_change"
    assert json.loads(said["after"]) == {"combined": 0, "rx": 2, "tx": 2}
    assert said["satisfied"] == [False, True]
    assert said["shown"] == "rx=2 tx=2"


def test_what_the_driver_does_not_take_is_refused_with_its_word(said: dict[str, Any]) -> None:
    assert (
        said["rx=9 tx=9"]["errno"] == "EINVAL"
        and "cannot give v0 the channels rx=9 tx=9" in said["rx=9 tx=9"]["message"]
    )
    assert said["rx=0 tx=2"]["errno"] == "EINVAL"
    assert "there is no interface v9" in said["no interface"]["message"]


@pytest.mark.parametrize("value", ["", "4", "combined=", "combined=-1", "combined=4;reboot", "combined=0", "other=1"])
def test_nonsense_is_refused_before_anything_is_asked(value: str) -> None:
    with pytest.raises(StepFailed):
        channels.snapshot({"kind": "channels", "nic": "lo", "value": value}, "/")


# -- facts of a recorded tree -----------------------------------------------------------------------------------------

DEVICE = "/sys/devices/pci0000:00/0000:00:03.0"
TREE: Tree = {
    **cpus_tree(2),
    f"{DEVICE}/class": "0x020000",
    f"{DEVICE}/ptp/ptp1/clock_name": "00:11",
    f"{DEVICE}/net/eth0/operstate": "up",
    f"{DEVICE}/net/eth0/device": Link("../.."),
    "/sys/bus/pci/devices/0000:00:03.0": Link("../../../devices/pci0000:00/0000:00:03.0"),
    "/sys/class/net/eth0": Link("../../devices/pci0000:00/0000:00:03.0/net/eth0"),
    "/sys/devices/virtual/net/br0/operstate": "up",
    "/sys/class/net/br0": Link("../../devices/virtual/net/br0"),
}


def nics(folder: Path, asked: str | None) -> dict[str, Any]:
    tree: dict[str, Any] = dict(TREE)
    if asked is not None:
        tree["/evenkeel-asked.json"] = asked
    found = Facts.model_validate(facts_of(plant(folder, tree)))
    return {nic.name: nic for nic in found.nics}


def test_a_recording_keeps_what_the_driver_said(tmp_path: Path) -> None:
    told = {name: 0 for name in ("max_rx", "max_tx", "max_other", "rx", "tx", "other")} | {
        "max_combined": 8,
        "combined": 6,
    }
    found = nics(tmp_path, json.dumps({"channels eth0": json.dumps(told)}))
    assert (found["eth0"].channels.combined, found["eth0"].channels.most_combined) == (6, 8)
    assert found["eth0"].ptp_clock == 1
    assert found["br0"].channels is None and found["br0"].ptp_clock is None


@pytest.mark.parametrize(
    "asked", [None, "{}", '{"channels eth0": "[]"}', '{"channels eth0": "{"}', '{"channels eth0": 3}']
)
def test_without_an_answer_it_is_not_known(tmp_path: Path, asked: str | None) -> None:
    assert nics(tmp_path, asked)["eth0"].channels is None
