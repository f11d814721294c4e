"""`evenkeel facts`: tables for people, JSON for machines, pictures and recordings, and mistakes told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenkeel.cli.root import run
from evenkeel.documents.facts import Facts
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
