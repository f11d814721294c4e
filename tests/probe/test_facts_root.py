"""The one door to files: nothing leaks in or out of a recorded tree, and a recording gives the same facts."""

from __future__ import annotations

import base64
import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.machines.tree import TreeMachine
from evenkeel.probe.facts import facts_of, read_facts
from evenkeel.probe.facts.record import Recording
from evenkeel.probe.facts.record import record as record_machine
from evenkeel.probe.facts.root import Files, Root
from tests.probe.trees import Folder, Link, Tree, cpus_tree, plant


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the machine that runs the test, which no recorded tree may show."""
    path = tmp_path / "secret"
    path.write_text("secret\n")
    return path


def test_links_stay_inside(tmp_path: Path, secret: Path) -> None:
    root = plant(
        tmp_path / "tree",
        {
            "/sys/a/value": "inside",
            "/sys/absolute": Link("/sys/a/value"),
            "/sys/relative": Link("a/value"),
            "/sys/folder": Link("/sys/a"),
            "/sys/up": Link("../../../../../../../../../../sys/a/value"),
            "/sys/out": Link(str(secret)),
            "/sys/a/out": Link("../../../secret"),
            "/sys/hosts": Link("/etc/passwd"),
        },
    )
    for path in ("/sys/absolute", "/sys/relative", "/sys/folder/value", "/sys/up"):
        assert root.read(path) == "inside", path
    for path in ("/sys/out", "/sys/a/out", "/sys/hosts"):
        assert root.read(path) is None, path
        assert not root.exists(path)
        assert root.mode(path) is None
        assert root.listdir(path) == []
    assert root.unreadable == {}


def test_an_absolute_link_finds_the_file_of_the_tree(tmp_path: Path) -> None:
    root = plant(tmp_path, {"/etc/passwd": "of the tree", "/sys/link": Link("/etc/passwd")})
    assert root.read("/sys/link") == "of the tree"


def test_a_ring_of_links_is_told_not_followed(tmp_path: Path) -> None:
    root = plant(tmp_path, {"/sys/a": Link("b"), "/sys/b": Link("/sys/a"), "/sys/self": Link("self/x")})
    assert root.read("/sys/a") is None
    assert root.read("/sys/self") is None
    assert root.unreadable == {"/sys/a": "ELOOP", "/sys/self": "ELOOP"}
    assert root.link_target("/sys/a") is None


def test_a_fifo_in_a_tree_does_not_hang(tmp_path: Path) -> None:
    root = plant(tmp_path, {"/proc/x": "y"})
    os.mkfifo(tmp_path / "proc/cpuinfo")
    assert root.read("/proc/cpuinfo") in ("", None)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO])
def test_what_cannot_be_read_is_named(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Files, path: str) -> bytes:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(Files, "read", refuse)
    root = Root("/")
    assert root.read("/proc/cmdline") is None
    assert root.unreadable == {"/proc/cmdline": errno.errorcode[number]}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP])
def test_what_a_device_does_not_have_is_absent(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Files, path: str) -> bytes:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(Files, "read", refuse)
    root = Root("/")
    assert root.read("/sys/class/net/eth0/speed") is None
    assert root.unreadable == {}


def test_an_empty_tree_has_no_machine_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the running system leaks in: no uname, no scheduler call, no program, no kernel log."""

    def forbidden(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError(f"the running system was asked: {arguments}")

    for name in ("uname", "sched_getaffinity", "sched_getscheduler", "sched_getparam", "cpu_count", "getuid"):
        monkeypatch.setattr(os, name, forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(subprocess, "run", forbidden)
    opened: list[str] = []
    real_open = os.open

    def watch(path: Any, *arguments: Any, **keywords: Any) -> int:
        opened.append(os.fspath(path))
        return real_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", watch)
    plant(tmp_path, {})
    facts = Facts.model_validate(read_facts(str(tmp_path)))
    assert [path for path in opened if not path.startswith(str(tmp_path))] == []
    assert facts.identity.architecture == "unknown"
    assert facts.identity.hostname is None
    assert facts.identity.hypervisor is None
    assert facts.kernel.release == ""
    assert facts.cpus == ()
    assert facts.programs == {}
    assert facts.kvm_usable is None
    assert facts.settings == {}


def test_progress_comes_in_steps(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    plant(tmp_path, {})
    read_facts(str(tmp_path), lambda done, total, what: seen.append((done, total, what)))
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)}


# -- recording --------------------------------------------------------------------------------------------------------


def test_a_recording_of_a_tree_gives_the_same_facts(tmp_path: Path) -> None:
    tree: Tree = {
        **cpus_tree(4),
        "/proc/cpuinfo": "processor\t: 0\nflags\t: lm\n",
        "/proc/irq/24/smp_affinity_list": "0-3",
        "/proc/irq/24/effective_affinity_list": "2",
        "/proc/sys/kernel/osrelease": "6.12.1-rt",
        "/sys/kernel/irq/24/actions": "nvme0q1",
        "/boot/vmlinuz-6.12.1-rt": "an image, not recorded",
        "/proc/self-made": "not read, so not recorded",
        "/sys/devices/pci0000:00/0000:00:01.0/virtio0/net/eth0/queues/rx-0": Folder(),
        "/sys/devices/pci0000:00/0000:00:01.0/virtio0/net/eth0/address": "02:00:00:00:00:01",
        "/sys/devices/pci0000:00/0000:00:01.0/class": "0x020000",
        "/sys/class/net/eth0": Link("../../devices/pci0000:00/0000:00:01.0/virtio0/net/eth0"),
        "/sys/bus/pci/devices/0000:00:01.0": Link("../../../devices/pci0000:00/0000:00:01.0"),
    }
    source = tmp_path / "source"
    source.mkdir()
    plant(source, tree)
    (source / "proc/irq/24/smp_affinity_list").chmod(0o444)
    (source / "etc").mkdir()
    (source / "etc/shadow").write_text("not read, so not recorded")
    answer = record_machine(str(source))
    path = tmp_path / "recorded.tar.bz2"
    path.write_bytes(base64.b64decode(answer["tarball"]))
    with TreeMachine(path).probe() as probe:
        facts = Facts.model_validate(probe.call("facts"))
    assert facts == Facts.model_validate(read_facts(str(source))) == Facts.model_validate(answer["facts"])
    assert facts.interrupts[0].managed is True
    assert facts.nics[0].rx_queues == 1
    assert facts.kernel.installed == ("6.12.1-rt",)
    assert b"not recorded" not in b"".join(content for content, _ in _recorded(str(source)).files.values())


def _recorded(root: str) -> Recording:
    recording = Recording()
    facts_of(Root(root, recording))
    return recording


def test_a_recording_is_the_same_bytes_for_the_same_machine(tmp_path: Path) -> None:
    plant(tmp_path, cpus_tree(2))
    assert _recorded(str(tmp_path)).tarball() == _recorded(str(tmp_path)).tarball()


def test_answers_of_programs_are_recorded(tmp_path: Path) -> None:
    recording = Recording()
    root = Root("/", recording)
    assert root.ask("how old", lambda: "forty") == "forty"
    path = tmp_path / "a.tar.bz2"
    path.write_bytes(_with_proc(recording).tarball())
    replay = Root(TreeMachine(path).files())
    assert replay.ask("how old", lambda: "younger") == "forty"
    assert replay.ask("never asked", lambda: "leak") is None


def _with_proc(recording: Recording) -> Recording:
    recording.add_folder("/proc")
    return recording
