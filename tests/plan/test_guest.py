"""The domain definition: what it says, and that libvirt's own schema and parser take it."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import GuestPlan
from evenkeel.documents.site import Boot, CellWish, Disk, GuestWish, Network
from evenkeel.plan import make_plan
from evenkeel.plan.guest import ELEMENTS, definition_digest, elements_of
from evenkeel.plan.placement import PINNED
from tests.plan.factories import GIB, MIB, guest, make_facts, make_site
from tests.plan.topologies import build

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
GOALS = ("flexible", "balanced", "performance", "realtime")
DISKS = (Disk(path="/dev/vg0/a"), Disk(path="/srv/b.qcow2", format="qcow2"))
NETWORKS = (Network(bridge="br0"), Network(network="default"), Network(user=True))


def define(wish: GuestWish, name: str = "plc", facts: Facts | None = None) -> GuestPlan:
    return make_plan(make_site({name: wish}), {"cell": facts or make_facts(cores=5)}).hosts[0].guests[0]


def tree(wish: GuestWish) -> ET.Element:
    return ET.fromstring(define(wish).xml)


def attributes(element: ET.Element | None) -> dict[str, str]:
    assert element is not None
    return dict(element.attrib)


def test_realtime_guest() -> None:
    domain = tree(guest())
    pins = {pin.get("vcpu"): pin.get("cpuset") for pin in domain.findall("cputune/vcpupin")}
    assert pins == {"0": "12", "1": "14"}
    assert attributes(domain.find("cputune/emulatorpin")) == {"cpuset": "10-11"}
    assert attributes(domain.find("cputune/vcpusched")) == {"vcpus": "1", "scheduler": "fifo", "priority": "2"}
    assert attributes(domain.find("numatune/memory")) == {"mode": "strict", "nodeset": "1"}
    assert attributes(domain.find("numatune/memnode")) == {"cellid": "0", "mode": "strict", "nodeset": "1"}
    assert attributes(domain.find("memoryBacking/hugepages/page")) == {"size": "2048", "unit": "KiB"}
    for path in ("memoryBacking/locked", "memoryBacking/nosharepages", "features/apic", "features/kvm/hint-dedicated"):
        assert domain.find(path) is not None, path
    assert attributes(domain.find("cpu")) == {"mode": "host-passthrough", "check": "none", "migratable": "off"}
    assert attributes(domain.find("cpu/topology")) == {"sockets": "1", "cores": "2", "threads": "1"}
    assert attributes(domain.find("devices/memballoon")) == {"model": "none"}
    assert attributes(domain.find("features/pmu")) == {"state": "off"}
    assert domain.find("devices/graphics") is None and domain.find("devices/video") is None
    assert attributes(domain.find("devices/channel/target"))["name"] == "org.qemu.guest_agent.0"


def test_the_emulator_can_allocate_on_the_memory_node() -> None:
    """QEMU prefaults from a CPU of the bound node; a pin elsewhere makes the start fail (measured)."""
    facts = make_facts(cores=5)
    for near in ("ens2", "ens3"):
        plan = make_plan(make_site({"plc": guest(near=near)}), {"cell": facts}).hosts[0].guests[0]
        assert plan.node is not None
        assert plan.emulator_cpus & facts.node(plan.node).cpus


def test_flexible_guest_is_plain() -> None:
    domain = tree(guest("flexible"))
    assert attributes(domain.find("vcpu")) == {"placement": "static", "cpuset": "2-9,12-19"}
    for path in ("cputune", "numatune", "memoryBacking", "cpu/numa", "features/pmu", "features/kvm", "iothreads"):
        assert domain.find(path) is None, path
    assert attributes(domain.find("devices/memballoon")) == {"model": "virtio"}


def test_balanced_guest_prefers_its_node() -> None:
    domain = tree(guest("balanced"))
    assert attributes(domain.find("numatune/memory"))["mode"] == "preferred"
    assert domain.find("memoryBacking/hugepages") is not None
    assert domain.find("memoryBacking/locked") is None
    assert domain.find("cputune/vcpupin") is None


def test_guest_arguments_are_added_behind_the_owners() -> None:
    plan = define(guest(vcpus=4, boot=Boot(kernel="/k", arguments="console=ttyS0 nohz_full=2-3")))
    line = ET.fromstring(plan.xml).findtext("os/cmdline")
    assert line == f"console=ttyS0 nohz_full=2-3 {plan.guest_arguments}"
    assert plan.guest_arguments.startswith("isolcpus=managed_irq,domain,1-3 rcu_nocbs=1-3 irqaffinity=0 ")
    assert "nohz_full" not in plan.guest_arguments
    assert define(guest("performance")).guest_arguments == ""
    assert define(guest(vcpus=1)).guest_arguments == ""


def test_disks_and_networks() -> None:
    domain = tree(guest(boot=None, disks=DISKS, networks=NETWORKS))
    assert attributes(domain.find("os/boot")) == {"dev": "hd"}
    assert [disk.get("type") for disk in domain.findall("devices/disk")] == ["block", "file"]
    assert [target.get("dev") for target in domain.findall("devices/disk/target")] == ["vda", "vdb"]
    assert attributes(domain.find("devices/disk/driver")) == {
        "name": "qemu",
        "type": "raw",
        "cache": "none",
        "io": "native",
        "iothread": "1",
    }
    assert attributes(domain.find("cputune/iothreadpin")) == {"iothread": "1", "cpuset": "10-11"}
    assert [one.get("type") for one in domain.findall("devices/interface")] == ["bridge", "network", "user"]
    macs = [str(mac.get("address")) for mac in domain.findall("devices/interface/mac")]
    assert len(set(macs)) == 3 and all(mac.startswith("52:54:00:") for mac in macs)
    assert tree(guest("flexible", disks=DISKS)).find("iothreads") is None


def test_a_guest_of_two_cells() -> None:
    plan = define(guest("performance", vcpus=8, memory=GIB, numa=2, boot=None, disks=DISKS))
    domain = ET.fromstring(plan.xml)
    pins = [pin.get("cpuset") for pin in domain.findall("cputune/vcpupin")]
    assert pins == ["2", "3", "4", "5", "12", "13", "14", "15"]
    assert [dict(cell.attrib) for cell in domain.findall("cpu/numa/cell")] == [
        {"id": "0", "cpus": "0-3", "memory": "524288", "unit": "KiB"},
        {"id": "1", "cpus": "4-7", "memory": "524288", "unit": "KiB"},
    ]
    # Emulator and I/O thread: housekeeping of both nodes, or memory could not be taken from one of them.
    assert attributes(domain.find("cputune/emulatorpin")) == {"cpuset": "0-1,10-11"}
    assert attributes(domain.find("cputune/iothreadpin"))["cpuset"] == "0-1,10-11"
    assert attributes(domain.find("numatune/memory")) == {"mode": "strict", "nodeset": "0-1"}
    assert [(one.get("cellid"), one.get("nodeset")) for one in domain.findall("numatune/memnode")] == [
        ("0", "0"),
        ("1", "1"),
    ]
    assert attributes(domain.find("memoryBacking/hugepages/page")) == {"size": "2048", "unit": "KiB"}
    assert attributes(domain.find("cpu/topology")) == {"sockets": "2", "cores": "2", "threads": "2"}
    setting = {node: plan.pages_on[node] for node in (0, 1)}
    assert setting == {0: 256, 1: 256}


def test_distances_are_those_of_the_host_renumbered() -> None:
    """Nodes 4 and 1 of four become cells 0 and 1 in the order of their numbers; firmware need not be symmetric."""
    machine = build(sockets=3, cores=4, node_numbers=(1, 4, 9))
    facts = machine.facts()
    far = {1: {1: 10, 4: 15, 9: 30}, 4: {1: 17, 4: 10, 9: 31}, 9: {1: 30, 4: 31, 9: 10}}
    facts = facts.model_copy(
        update={"nodes": tuple(node.model_copy(update={"distances": far[node.id]}) for node in facts.nodes)}
    )

    def told(facts: Facts) -> list[list[tuple[str | None, str | None]]]:
        domain = ET.fromstring(define(guest("performance", vcpus=4, memory=GIB, numa=2), facts=facts).xml)
        assert [one.get("nodeset") for one in domain.findall("numatune/memnode")] == ["1", "4"]
        return [
            [(one.get("id"), one.get("value")) for one in cell.findall("distances/sibling")]
            for cell in domain.findall("cpu/numa/cell")
        ]

    assert told(facts) == [[("0", "10"), ("1", "15")], [("0", "17"), ("1", "10")]]


@pytest.mark.parametrize("strange", [{0: 10, 1: 10}, {0: 10, 1: 255}, {0: 10}, {}])
def test_distances_that_libvirt_does_not_take_are_left_out(strange: dict[int, int]) -> None:
    """numa=fake makes nodes at a distance of 10, which libvirt takes for a cell itself only; and some tell nothing."""
    facts = make_facts(cores=5)
    first, second = facts.nodes
    facts = facts.model_copy(update={"nodes": (first.model_copy(update={"distances": strange}), second)})
    plan = define(guest("performance", vcpus=4, memory=GIB, numa=2), facts=facts)
    assert "<distances>" not in plan.xml and "<cell " in plan.xml
    assert any("distances between its cells are left to libvirt" in sentence for sentence in plan.why)


@pytest.mark.parametrize(
    ("cells", "numa", "topology"),
    [
        (None, 4, ("2", "4", "2")),  # two clusters of each socket stay in one
        (None, 2, ("1", "8", "2")),  # the two nearest are clusters of one socket
        ((6, 10), None, ("1", "8", "2")),
        ((6, 6, 4), None, ("8", "1", "2")),  # no socket holds a part of a cell
        ((5, 6, 5), None, ("16", "1", "1")),  # odd cells: nobody's siblings
    ],
)
def test_sockets_are_those_of_the_host_where_they_can_be(
    cells: tuple[int, ...] | None, numa: int | None, topology: tuple[str, str, str]
) -> None:
    wish = {"cells": tuple(CellWish(vcpus=vcpus, memory=GIB) for vcpus in cells)} if cells else {"numa": numa}
    memory = GIB * len(cells) if cells else 4 * GIB
    facts = build(sockets=2, nodes_per_socket=2, cores=16).facts()
    domain = ET.fromstring(define(guest("performance", vcpus=16, memory=memory, **wish), facts=facts).xml)
    found = attributes(domain.find("cpu/topology"))
    assert (found["sockets"], found["cores"], found["threads"]) == topology


def test_identity_is_stable_and_differs_by_guest() -> None:
    first, second = define(guest(), "a"), define(guest(), "b")
    assert define(guest(), "a").xml == first.xml
    assert ET.fromstring(first.xml).findtext("uuid") != ET.fromstring(second.xml).findtext("uuid")


def test_arm_guest() -> None:
    facts = make_facts()
    arm = facts.model_copy(update={"identity": facts.identity.model_copy(update={"architecture": "aarch64"})})
    plan = make_plan(make_site({"plc": guest(architecture="aarch64")}), {"cell": arm}).hosts[0].guests[0]
    domain = ET.fromstring(plan.xml)
    assert attributes(domain.find("os/type")) == {"arch": "aarch64", "machine": "virt"}
    assert domain.find("features/apic") is None and domain.find("features/gic") is not None
    assert "tsc" not in plan.guest_arguments


def test_every_element_is_explained() -> None:
    assert {rule.id for rule in ELEMENTS} == set(elements_of("realtime", cells=2, functions=1))
    assert set(elements_of("flexible")) < set(elements_of("balanced")) < set(elements_of("performance"))
    for rule in ELEMENTS:
        assert rule.title and rule.reason and rule.risk and rule.verification and rule.source


def test_the_setting_carries_the_digest() -> None:
    host = make_plan(make_site(), {"cell": make_facts()}).hosts[0]
    for one in host.guests:
        setting = host.setting(f"G-15:{one.name}")
        assert setting is not None and setting.new == definition_digest(one.xml)


def definitions() -> list[tuple[str, str]]:
    """Every goal; the pinned ones over several nodes too, four of which are sub-NUMA clusters of two sockets."""
    found = [
        (name, define(guest(goal, **extra), name).xml)
        for goal in GOALS
        for kind, extra in _KINDS.items()
        if (goal in PINNED or kind not in ("cells", "uneven")) and (name := f"{goal}-{kind}")
    ]
    four = build(sockets=2, nodes_per_socket=2, cores=8).facts()
    wide = guest("performance", vcpus=16, memory=16 * GIB, numa=4)
    return [*found, ("performance-four", define(wide, "performance-four", four).xml)]


_KINDS: dict[str, dict[str, object]] = {
    "kernel": {},
    "disk": {"boot": None, "disks": DISKS, "networks": NETWORKS},
    "one": {"vcpus": 1, "memory": 64 * MIB},
    "cells": {"numa": 2, "vcpus": 4, "memory": GIB, "boot": None, "disks": DISKS},
    "uneven": {
        "cells": (CellWish(vcpus=3, memory=GIB // 2), CellWish(vcpus=1, memory=GIB // 4)),
        "vcpus": 4,
        "memory": GIB // 4 * 3,
    },
    "odd": {"vcpus": 3, "memory": GIB // 2, "boot": None, "networks": NETWORKS},
}


@pytest.mark.skipif(not (SCHEMA.exists() and shutil.which("xmllint")), reason="needs libvirt's schema and xmllint")
def test_libvirts_schema_takes_every_definition(tmp_path: Path) -> None:
    files = []
    for name, text in definitions():
        files.append(tmp_path / f"{name}.xml")
        files[-1].write_text(text)
    done = subprocess.run(
        ["xmllint", "--noout", "--relaxng", SCHEMA, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("virsh"), reason="needs virsh")
def test_libvirts_parser_takes_every_definition(tmp_path: Path) -> None:
    for name, text in definitions():
        file = tmp_path / f"{name}.xml"
        file.write_text(text)
        done = subprocess.run(
            ["virsh", "-q", "-c", "test:///default", f"define {file}; dumpxml {name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (name, done.stderr)
        back = ET.fromstring(done.stdout[done.stdout.index("<domain") :])
        sent = ET.fromstring(text)
        for path in ("cputune", "numatune", "memoryBacking", "cpu/numa"):
            ours, theirs = sent.find(path), back.find(path)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert sorted((e.tag, sorted(e.attrib.items())) for e in ours.iter()) == sorted(
                    (e.tag, sorted(e.attrib.items())) for e in theirs.iter()
                )
