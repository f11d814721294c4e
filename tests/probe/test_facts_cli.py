"""`evenkeel facts`: tables for people, JSON for machines, pictures and recordings, and mistakes told in one line."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.cli.root import run
from evenkeel.documents.facts import Facts
from tests.plan.factories import make_facts
from tests.probe.trees import Link, cpus_tree, plant

CPU = "/sys/devices/system/cpu"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages of two cores, a NIC and a disk at the second, one managed interrupt."""
    folder = tmp_path / "tree"
    files: dict[str, str] = cpus_tree(4)
    for cpu in range(4):
        topology = f"{CPU}/cpu{cpu}/topology"
        files |= {f"{topology}/physical_package_id": str(cpu // 2), f"{topology}/core_id": str(cpu % 2)}
        files[f"{topology}/thread_siblings"] = f"{1 << cpu:x}"
    for node in (0, 1):
        files[f"/sys/devices/system/node/node{node}/cpulist"] = f"{2 * node}-{2 * node + 1}"
        files[f"/sys/devices/system/node/node{node}/meminfo"] = f"Node {node} MemTotal: 33554432 kB"
    function = "/sys/devices/pci0000:40/0000:40:00.0"
    files |= {
        f"{function}/class": "0x020000",
        f"{function}/numa_node": "1",
        f"{function}/msi_irqs/24": "msix",
        f"{function}/net/eth7/operstate": "up",
        "/sys/class/net/eth7": Link("../../devices/pci0000:40/0000:40:00.0/net/eth7"),
        f"{function}/driver": Link("../../../bus/pci/drivers/ice"),
        f"{function}/net/eth7/device": Link("../../../0000:40:00.0"),
        "/sys/bus/pci/devices/0000:40:00.0": Link("../../../devices/pci0000:40/0000:40:00.0"),
        "/proc/irq/24/smp_affinity_list": "2-3",
        "/sys/kernel/irq/24/actions": "ice-eth7-TxRx-0",
        "/proc/sys/kernel/osrelease": "6.12.1-rt",
        "/sys/kernel/realtime": "1",
    }
    plant(folder, files)
    (folder / "proc/irq/24/smp_affinity_list").chmod(0o444)
    return folder


def test_tables(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["facts", str(tree)]) == 0
    shown = capsys.readouterr()
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "kernel 6.12.1-rt, PREEMPT_RT" in lines
    assert "1 1 2-3 2 2" in lines  # package, node, CPUs, threads, cores
    assert "1 2-3 32 GiB" in lines
    assert "1 eth7 0000:40:00.0 ice" in lines
    assert "eth7 1 1 2-3" in lines  # interrupts of eth7: one, fixed by the kernel
    assert "facts of" in shown.err


def test_json_is_the_document_and_nothing_else(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["facts", str(tree), "--json"]) == 0
    text = capsys.readouterr().out
    assert Facts.from_json(text, file="stdout").to_json() == text


def test_files(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, picture = tmp_path / "facts.json", tmp_path / "machine.svg"
    assert run(["facts", str(tree), "-o", str(facts), "--picture", str(picture)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"wrote {facts}" in shown.err
    assert Facts.from_json(facts.read_text(), file=str(facts)).nics[0].name == "eth7"
    assert picture.read_text().startswith("<svg")


def test_a_saved_document_is_shown_as_the_machine_was(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "facts.json"
    assert run(["facts", str(tree), "-o", str(saved)]) == 0
    assert run(["facts", str(tree)]) == 0
    tables = capsys.readouterr().out
    assert run(["facts", str(saved)]) == 0
    assert capsys.readouterr().out == tables


def test_record_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "self.tar.bz2"
    assert run(["facts", "--record", str(target), "--json"]) == 0
    live = json.loads(capsys.readouterr().out)
    assert run(["facts", str(target), "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert replayed["cpus"] == live["cpus"]
    assert replayed["settings"] == live["settings"]
    assert [path.name for path in tmp_path.iterdir()] == ["self.tar.bz2"]


class _Recording:
    """A machine whose recording is there already; the real one takes seconds."""

    address = "local"

    @contextlib.contextmanager
    def probe(self) -> Iterator[_Recording]:
        yield self

    def call(self, op: str, **arguments: object) -> object:
        known = json.loads(make_facts().to_json())
        return {"tarball": base64.b64encode(b"BZh").decode(), "facts": known} if op == "record" else known

    def close(self) -> None:
        pass


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: _Recording())


def _device(path: Path, minor: int) -> Path:
    """A device node of our own: a defect that replaces it must not take /dev/null from the machine."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("rb").close()
    except PermissionError:
        pytest.skip("making a device node needs root and a file system that has them")
    return path


@pytest.mark.usefixtures("recording")
def test_a_recording_goes_into_a_device_and_does_not_replace_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    null, full = _device(tmp_path / "null", 3), _device(tmp_path / "full", 7)
    assert run(["facts", "--record", str(null)]) == 0
    assert run(["facts", "--record", str(full)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert all(stat.S_ISCHR(path.stat().st_mode) for path in (null, full))
    assert sorted(tmp_path.iterdir()) == [full, null]


@pytest.mark.usefixtures("recording")
def test_a_recording_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["facts", "--record", "-"]) == 0
    assert capsysbinary.readouterr().out == b"BZh"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["facts", "{tmp}/gone.json"], "there is no file"),
        (["facts", "no-such-thing"], "neither a machine nor a recorded tree"),
        (["facts", "{tree}", "--record", "{tmp}/x.tar.bz2"], "recorded tree, it cannot be written"),
        (["facts", "{tree}", "-o", "{tmp}/no/such/folder/x"], "cannot write"),
        (["facts", "local", "--record", "{tmp}/no/such/folder/x"], "cannot write"),
        (["facts", "--recrod", "x"], "no such option"),
    ],
)
def test_mistakes(
    arguments: list[str], words: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([one.format(tree=tree, tmp=tmp_path) for one in arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
