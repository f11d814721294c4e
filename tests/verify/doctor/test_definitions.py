"""Definitions: what the doctor says that libvirt refuses, the real parser of libvirt refuses, and the rest it takes.

virsh with libvirt's test driver parses as the daemon does; what only the QEMU driver knows is asked on a virtual
host (tests/virtual/test_doctor.py).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from evenkeel.verify.doctor import examine
from tests.verify.doctor.faults import FAULTS, Fault
from tests.verify.doctor.tree import ETC_GUEST, Tree

SCHEDULE = "<vcpusched vcpus='1' scheduler='fifo' priority='2'/>"
EMULATOR = "<emulatorpin cpuset='3'/>"
#: (what, text of the healthy definition, text instead, ailment); None: the doctor must not mind either.
CHANGES = [
    ("scheduled-twice", SCHEDULE, f"{SCHEDULE}<vcpusched vcpus='0-1' scheduler='rr' priority='3'/>", "D-XML-REFUSED"),
    ("no-priority", " priority='2'", "", "D-XML-REFUSED"),
    ("pinned-twice", "<vcpupin vcpu='1' cpuset='5'/>", "<vcpupin vcpu='0' cpuset='5'/>", "D-XML-REFUSED"),
    ("cell-too-large", "cpus='0-1'", "cpus='0-3'", "D-XML-REFUSED"),
    ("no-io-thread", EMULATOR, f"{EMULATOR}<iothreadpin iothread='1' cpuset='3'/>", "D-XML-REFUSED"),
    ("not-a-range", EMULATOR, "<emulatorpin cpuset='1-3,^1-2'/>", "D-XML-REFUSED"),
    ("kernel-syntax", EMULATOR, "<emulatorpin cpuset='3-N'/>", "D-XML-REFUSED"),
    ("empty-list", EMULATOR, "<emulatorpin cpuset=''/>", "D-XML-REFUSED"),
    ("priority-0", "priority='2'", "priority='0'", "D-XML-START"),
    ("no-such-node", "<memory mode='strict' nodeset='1'/>", "<memory mode='strict' nodeset='1,9'/>", "D-XML-START"),
    ("odd-pages", "size='2048'", "size='3072'", "D-XML-START"),
    ("pin-of-no-vcpu", EMULATOR, f"<vcpupin vcpu='7' cpuset='5'/>{EMULATOR}", "D-XML-MEANS"),
    ("not-this-cpu", EMULATOR, "<emulatorpin cpuset='1-3,^1,^2'/>", None),
    ("io-threads", EMULATOR, f"{EMULATOR}<iothreadpin iothread='1' cpuset='3'/></cputune><iothreads>1</iothreads>"
     "<cputune>", None),
    ("page-of-its-cell", "<page size='2048' unit='KiB'/>", "<page size='2' unit='M' nodeset='0'/>", None),
]  # fmt: skip

#: What the QEMU driver refuses, and the parser does not: (what, text, text instead).
QEMU_ONLY = [("topology", "cores='2'", "cores='4'")]


def libvirt_says(xml: str, folder: Path) -> tuple[bool, str]:
    """Whether libvirt's parser takes a definition, and its words."""
    file = folder / "guest.xml"
    file.write_text(xml.replace("type='kvm'", "type='test'"))
    done = subprocess.run(
        ["virsh", "-c", "test:///default", "define", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode == 0, done.stdout + done.stderr


def kinds(tree: Tree) -> set[str]:
    return {check.id.partition(":")[0] for check in examine(tree.facts(), "x").failed}


def test_libvirt_takes_the_healthy_definition(tmp_path: Path) -> None:
    taken, words = libvirt_says(Tree("guests").text(ETC_GUEST), tmp_path)
    assert taken, words


@pytest.mark.parametrize(("what", "old", "new", "ailment"), CHANGES, ids=[change[0] for change in CHANGES])
def test_libvirt_and_the_doctor_agree(what: str, old: str, new: str, ailment: str | None, tmp_path: Path) -> None:
    tree = Tree("guests")
    text = tree.text(ETC_GUEST)
    assert old in text
    tree.put(ETC_GUEST, text.replace(old, new, 1))
    taken, words = libvirt_says(tree.text(ETC_GUEST), tmp_path)
    assert taken == (ailment != "D-XML-REFUSED"), words
    assert {kind for kind in kinds(tree) if kind.startswith("D-XML")} == ({ailment} if ailment else set())


@pytest.mark.parametrize(("what", "old", "new"), QEMU_ONLY, ids=[change[0] for change in QEMU_ONLY])
def test_what_only_the_qemu_driver_refuses(what: str, old: str, new: str) -> None:
    tree = Tree("guests")
    tree.swap(ETC_GUEST, old, new)
    assert kinds(tree) == {"D-XML-REFUSED"}


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.finding.startswith("D-XML")], ids=lambda fault: fault.id
)
def test_the_faults_of_the_table_too(fault: Fault, tmp_path: Path) -> None:
    tree = Tree("guests")
    fault.make(tree)
    taken, words = libvirt_says(tree.text(ETC_GUEST), tmp_path)
    assert taken == (fault.finding != "D-XML-REFUSED"), words


@pytest.mark.parametrize(
    "xml",
    ["", "<", "<domain/>", "<domain><vcpu>many</vcpu></domain>",
     "<domain><vcpu>999999999999999999999</vcpu><cputune><vcpupin vcpu='0' cpuset='4'/></cputune></domain>",
     "<domain><memory unit='furlong'>1</memory></domain>",
     "<!DOCTYPE x [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>",
     "<domain><cputune><vcpusched vcpus='x' scheduler='fifo' priority='y'/></cputune></domain>",
     "<domain><memoryBacking><hugepages><page size='0'/></hugepages></memoryBacking><memory>1</memory></domain>"],
)  # fmt: skip
def test_no_text_breaks_the_doctor(xml: str) -> None:
    tree = Tree("guests")
    tree.put(ETC_GUEST, xml)
    examine(tree.facts(), "x")
