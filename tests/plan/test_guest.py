"""The domain definition: what it says, and that libvirt's own schema and parser take it."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from evenkeel.documents.plan import GuestPlan
from evenkeel.documents.site import Boot, Disk, GuestWish, Network
from evenkeel.plan import make_plan
from evenkeel.plan.guest import ELEMENTS, definition_digest, elements_of
from tests.plan.factories import GIB, MIB, guest, make_facts, make_site

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
GOALS = ("flexible", "balanced", "performance", "realtime")
DISKS = (Disk(path="/dev/vg0/a"), Disk(path="/srv/b.qcow2", format="qcow2"))
NETWORKS = (Network(bridge="br0"), Network(network="default"), Network(user=True))


def define(wish: GuestWish, name: str = "plc") -> GuestPlan:
    return make_plan(make_site({name: wish}), {"cell": make_facts(cores=5)}).hosts[0].guests[0]


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
    assert {rule.id for rule in ELEMENTS} == set(elements_of("realtime", cells=2))
    assert set(elements_of("flexible")) < set(elements_of("balanced")) < set(elements_of("performance"))
    for rule in ELEMENTS:
        assert rule.title and rule.reason and rule.risk and rule.verification and rule.source


def test_the_setting_carries_the_digest() -> None:
    host = make_plan(make_site(), {"cell": make_facts()}).hosts[0]
    for one in host.guests:
        setting = host.setting(f"G-15:{one.name}")
        assert setting is not None and setting.new == definition_digest(one.xml)


def definitions() -> list[tuple[str, str]]:
    wishes = {f"{goal}-{kind}": guest(goal, **extra) for goal in GOALS for kind, extra in _KINDS.items()}
    return [(name, define(wish, name).xml) for name, wish in wishes.items()]


_KINDS: dict[str, dict[str, object]] = {
    "kernel": {},
    "disk": {"boot": None, "disks": DISKS, "networks": NETWORKS},
    "one": {"vcpus": 1, "memory": 64 * MIB},
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
        for path in ("cputune", "numatune", "memoryBacking"):
            ours, theirs = sent.find(path), back.find(path)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert sorted((e.tag, sorted(e.attrib.items())) for e in ours.iter()) == sorted(
                    (e.tag, sorted(e.attrib.items())) for e in theirs.iter()
                )
