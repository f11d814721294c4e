"""Events of the kernel: what it really sent (recorded on 6.12), damaged copies of it, and this kernel live."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import Unreachable
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import ProbeError
from evenkeel.probe import sample, watch_inotify, watch_netlink, watch_tick
from evenkeel.probe.sample_proc import parse_interrupts
from tests.watch.here import namespace

RECORDED_INTERRUPTS = Path(__file__).parents[1] / "verify" / "recorded" / "interrupts.txt"
RECORDED = json.loads((Path(__file__).parent / "recorded" / "events.json").read_text())


def recorded(kind: str, name: str) -> list[bytes]:
    return [base64.b64decode(text) for text in RECORDED[kind][name]]


def typed(messages: list[bytes]) -> list[dict[str, Any]]:
    parsed = [watch_netlink.parse_uevent(message) for message in messages]
    assert None not in parsed
    events = [watch_netlink.cpu_or_device(event) for event in parsed if event]
    return [event for event in events if event]


# -- recorded ---------------------------------------------------------------------------------------------------------


def test_a_cpu_goes_offline_and_comes_back() -> None:
    """With it come uevents of other subsystems (machinecheck), which say nothing more."""
    assert len(recorded("uevents", "cpu2-off")) == 2
    assert typed(recorded("uevents", "cpu2-off")) == [{"kind": "cpu", "cpu": 2, "online": False}]
    assert typed(recorded("uevents", "cpu2-on")) == [{"kind": "cpu", "cpu": 2, "online": True}]


def test_a_link_goes_down_and_comes_up() -> None:
    """The card is switched on first, and has a carrier a moment later: only then is it up."""
    down = [link for data in recorded("links", "link-down") for link in watch_netlink.parse_links(data)]
    assert down == [{"name": "ens2", "up": False, "gone": False}]
    up = [link for data in recorded("links", "link-up") for link in watch_netlink.parse_links(data)]
    assert [link["up"] for link in up] == [False, True]


def test_libvirt_replaces_its_file() -> None:
    """``virsh vcpupin``: written under another name first, then moved to its place."""
    events = list(watch_inotify.parse(recorded("inotify", "vcpupin")[0]))
    assert [(mask, name) for _, mask, name in events] == [
        (watch_inotify.CLOSE_WRITE, "hmi.xml.new"),
        (watch_inotify.MOVED_TO, "hmi.xml"),
    ]


def uevent(action: str, path: str, subsystem: str) -> bytes:
    return f"{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM={subsystem}\0SEQNUM=1\0".encode()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (uevent("add", "/devices/pci0000:00/0000:00:02.0/0000:01:10.0", "pci"), "0000:01:10.0"),
        (uevent("unbind", "/devices/pci0000:00/0000:00:03.0", "pci"), "0000:00:03.0"),
        (uevent("remove", "/devices/pci0000:00/0000:00:03.0/net/eth1", "net"), "eth1"),
        (uevent("add", "/devices/virtual/net/vnet0", "net"), None),
        (uevent("change", "/devices/system/cpu/cpu0", "cpu"), None),
        (uevent("change", "/devices/pci0000:00/0000:00:1f.2/ata1/block/sr0", "block"), None),
        (uevent("add", "/devices/system/machinecheck/machinecheck2", "machinecheck"), None),
    ],
)
def test_what_is_another_machine_afterwards_and_what_is_not(message: bytes, expected: str | None) -> None:
    assert [event["name"] for event in typed([message])] == ([expected] if expected else [])


def test_what_udev_repeats_is_not_taken_for_the_kernel() -> None:
    assert watch_netlink.parse_uevent(b"libudev\0\xfe\xed\xca\xfe\x28\0\0\0ACTION=offline\0") is None
    assert watch_netlink.parse_uevent(b"offline@/devices/system/cpu/cpu2\0ACTION=offline\0") is None, "cut short"


MESSAGES = [*recorded("uevents", "cpu2-off"), *recorded("links", "link-up"), *recorded("inotify", "vcpupin")]


@given(st.sampled_from(MESSAGES), st.integers(0, 2000), st.binary(max_size=4))
def test_damaged_messages_are_left_out_and_never_an_error(message: bytes, at: int, junk: bytes) -> None:
    for data in (message[:at], message[:at] + junk + message[at + len(junk) :], junk):
        event = watch_netlink.parse_uevent(data)
        if event:
            watch_netlink.cpu_or_device(event)
        for link in watch_netlink.parse_links(data):
            assert link["name"]
        list(watch_inotify.parse(data))


# -- this kernel ------------------------------------------------------------------------------------------------------


def test_inotify_here(tmp_path: Path) -> None:
    file, folder = tmp_path / "cpuset.cpus.partition", tmp_path / "folder"
    file.write_text("isolated\n")
    folder.mkdir()
    watching = watch_inotify.Inotify()
    try:
        wanted = {str(file): watch_inotify.MODIFY, str(folder): watch_inotify.FOLDER, str(tmp_path / "no"): 2}
        watching.keep(wanted)
        assert watching.watched == sorted([str(file), str(folder)]), "what is not there is left out"
        assert watching.receive() == []
        file.write_text("member\n")
        (folder / "a.xml").write_text("<domain/>")
        seen = watching.receive()
        assert {(event.path, event.name) for event in seen} == {(str(file), ""), (str(folder), "a.xml")}
        file.unlink()
        watching.receive()
        file.write_text("isolated\n")
        watching.keep(wanted)
        file.write_text("member\n")
        assert {event.path for event in watching.receive()} == {str(file)}, "made anew with its guest"
        watching.keep({})
        file.write_text("isolated\n")
        assert watching.receive() == [] and watching.watched == []
    finally:
        watching.close()


WATCH = """
import json, subprocess, sys
from evenkeel.probe import watch
def events(**wanted):
    return [event for event in watch.watch(**{"links": ["v0"], "within_s": 60.0, **wanted})["events"]]
ip = lambda *words: subprocess.run(["ip", *words], check=True)
ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
ip("link", "set", "v1", "up")
found = [events(within_s=0.0)]
ip("link", "set", "v0", "up")
found.append(events())
ip("link", "set", "v0", "mtu", "1400")
found.append(events(within_s=0.2))
ip("link", "set", "v1", "down")
found.append(events())
ip("link", "del", "v0")
found.append(events())
print(json.dumps(found))
"""


def test_links_here() -> None:
    """A pair of cards in a network namespace: up, something else about it, no carrier, gone."""
    with namespace() as enter:
        done = subprocess.run([*enter, sys.executable, "-c", WATCH], capture_output=True, text=True, check=True)
    first, up, other, down, gone = json.loads(done.stdout)
    links = [event for event in first if event["kind"] == "link"]
    assert [(link["name"], link["up"], link["first"]) for link in links] == [("v0", False, True)]
    assert [(event["kind"], event["up"]) for event in up] == [("link", True)]
    assert other == []
    assert [(event["kind"], event["up"]) for event in down] == [("link", False)]
    assert [(event["kind"], event["gone"]) for event in gone] == [("link", True)]
    assert all(abs(event["at"] - time.time()) < 60 for event in up + down)


@pytest.mark.parametrize("place", [RECORDED_INTERRUPTS, Path("/proc/interrupts")], ids=["recorded", "here"])
def test_some_columns_of_the_interrupts_are_those_of_all(place: Path) -> None:
    text = place.read_text()
    whole = parse_interrupts(text)
    every = {cpu for row in whole.values() for cpu in row["counts"]}
    assert watch_tick.parse_columns(text, every) == whole
    last = max(every)
    assert watch_tick.parse_columns(text, {last, 9999}) == {
        label: {**row, "counts": {last: row["counts"][last]}} for label, row in whole.items()
    }
    squeezed = "\n".join(re.sub(" +", " ", line) for line in text.splitlines())
    assert watch_tick.parse_columns(squeezed, every) == parse_interrupts(squeezed), "laid out in another way"


@given(st.text(alphabet="CPU01: \n\tx9", max_size=80))
def test_any_text_for_interrupts_is_no_error(text: str) -> None:
    watch_tick.parse_columns(text, {0, 1})


def test_a_cpu_that_comes_back_has_not_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is offline it has no column."""
    lines = {cpus: interrupts(cpus) for cpus in ((0, 1, 2), (0, 1))}
    looking = watch_tick.Interrupts()
    seen = []
    for text in (lines[0, 1, 2], lines[0, 1], lines[0, 1, 2], lines[0, 1, 2].replace("700", "703")):
        monkeypatch.setattr(sample, "read", lambda path, text=text: text)
        found = looking.look([1, 2])
        seen.append(found["rows"] if found else [])
    assert seen[:3] == [[], [], []]
    assert seen[3] == [{"label": "24", "action": "eth0-rx-0", "kind": "device", "counts": {2: 3}}]


def interrupts(cpus: tuple[int, ...]) -> str:
    header = " " * 12 + "".join(f"CPU{cpu:<8}" for cpu in cpus)
    counts = "".join(f" {700 if cpu == 2 else 5:>10}" for cpu in cpus)
    return f"{header}\n  24:{counts}  PCI-MSIX-0000:00:03.0   1-edge      eth0-rx-0\n ERR:          0\n"


def test_a_daemon_that_starts_and_ends_is_seen_by_its_name(tmp_path: Path) -> None:
    owners = watch_tick.Owners()
    assert "numad" not in owners.running
    owners.look()
    program = tmp_path / "numad"
    program.symlink_to("/bin/sleep")
    daemon = subprocess.Popen([str(program), "600"])
    try:
        # Popen returns before the kernel has given the process the name of its program.
        until = time.monotonic() + 30
        while Path(f"/proc/{daemon.pid}/comm").read_text() != "numad\n" and time.monotonic() < until:
            time.sleep(0.01)
        assert {"kind": "owner", "name": "numad", "running": True} in owners.look()
        assert [event for event in owners.look() if event["name"] == "numad"] == []
    finally:
        daemon.kill()
        daemon.wait()
    assert {"kind": "owner", "name": "numad", "running": False} in owners.look()


def test_another_profile_of_tuned(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "etc" / "tuned").mkdir(parents=True)
    profile = tmp_path / "etc" / "tuned" / "active_profile"
    profile.write_text("realtime-virtual-host\n")
    owners = watch_tick.Owners(str(tmp_path))
    assert owners.look() == [] and owners.profile == "realtime-virtual-host"
    profile.write_text("powersave\n")
    assert owners.look() == [{"kind": "profile", "profile": "powersave", "before": "realtime-virtual-host"}]
    assert owners.look() == []


def test_the_probe_waits_and_answers_other_questions_in_between() -> None:
    with LocalMachine().probe() as probe:
        first = probe.call("watch", within_s=0.0)
        assert [event["kind"] for event in first["events"]] == ["start"] and abs(first["at"] - time.time()) < 60
        begun = time.monotonic()
        assert probe.call("watch", within_s=0.3)["events"] == []
        assert time.monotonic() - begun >= 0.3
        assert probe.call("hello")["pid"]
        assert probe.call("watch", within_s=0.0)["events"] == []
        with pytest.raises(ProbeError, match="not the folder of a cgroup"):
            probe.call("watch", partitions=["/etc"], within_s=0.0)
        with pytest.raises(ProbeError, match="not the folder of a cgroup"):
            probe.call("watch", partitions=["/sys/fs/cgroup/../../../etc"], within_s=0.0)


def test_a_probe_that_waits_ends_with_its_connection() -> None:
    """It must not go on for the rest of its wait: nobody is there to tell."""
    probe = LocalMachine().probe()
    number = probe.call("hello")["pid"]
    probe.call("watch", within_s=0.0)
    with pytest.raises(Unreachable, match="no answer to 'watch'"):
        probe.call("watch", within_s=600.0, timeout_s=0.5)
    # Only our end of its pipes; close() would kill it after 5 s and prove nothing.
    process = probe._process  # type: ignore[attr-defined]
    process.stdin.close()
    process.stdout.close()
    assert process.wait(120) is not None and not Path(f"/proc/{number}").exists()
    probe.close()
