"""Flat facts: all keys are in the vocabulary, and what recorded machines are comes out as a person would say it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.lab import flat
from evenkeel.lab.predicate import Predicate
from evenkeel.machines.address import resolve
from tests.probe.trees import Link, cpus_tree, plant

RECORDED = sorted((Path(__file__).parents[1] / "machines" / "recorded").glob("*.tar.*"))
#: What no probe tells: the row of the machine, its owner's words, and what agents say of themselves.
NOT_PROBED = {"name", "site", "state", "owner", "team", "enclosure", "tag", "boot.own", "agent", "tool"}
GIB = 1 << 30


def read(address: str) -> tuple[Facts, Inventory]:
    machine = resolve(address)
    with machine.probe() as probe:
        facts, inventory = probe.call("facts"), probe.call("inventory")
    machine.close()
    return Facts.model_validate(facts), Inventory.model_validate(inventory)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_a_recorded_virtual_host_is_found_by_what_it_is(path: Path) -> None:
    facts, inventory = read(str(path))
    told = flat.flatten(facts, inventory)
    assert all(flat.key(key) and key in flat.KEYS for key in told)
    for text in (
        "arch:x86_64 virtual:yes cpu.sockets:2 numa.nodes>=2 kernel.rt:yes",
        "nic.driver:virtio* OR nic.driver:igb*",
        "kernel.version>=6.1 kernel.version<7 disk.count>=1",
        "cpu.flag:sse2 cpu.vendor:authenticamd",
        "pci.class:020000 NOT nic.driver:mlx5_core",
    ):
        assert Predicate.parse(text).matches(told), (text, told)


def test_every_key_of_the_vocabulary_is_told_by_some_machine() -> None:
    """A key that nothing ever sets would be a promise that is not kept."""
    whole = Facts.model_validate(WHOLE)
    told = set(flat.flatten(whole, Inventory.model_validate(WHOLE_INVENTORY)))
    for path in RECORDED:
        told |= set(flat.flatten(*read(str(path))))
    assert set(flat.KEYS) - told == NOT_PROBED


WHOLE = {
    "identity": {
        "architecture": "x86_64", "hypervisor": "none", "system_vendor": "Dell Inc.", "product": "R760", "board": "0X",
        "firmware_vendor": "Dell Inc.", "firmware_version": "1.2", "firmware_date": "03/01/2024",
        "os_release": "Debian 12",
    },
    "kernel": {
        "release": "6.12.3-rt5", "preempt_rt": True, "config": {"CONFIG_PREEMPT_RT": "y", "CONFIG_HZ": "250"},
        "installed": ["6.12.3-rt5"], "boot_loader": "grub",
    },
    "cpus": [
        {"id": n, "package": 0, "core": n // 2, "siblings": f"{n & ~1}-{n | 1}", "kind": "performance",
         "max_khz": 4000000, "base_khz": 2000000, "model": "Intel(R)  Xeon(R)"} for n in range(4)
    ],
    "caches": [
        {"level": 2, "type": "unified", "size_bytes": 2 << 20, "cpus": "0-1"},
        {"level": 3, "type": "unified", "size_bytes": 32 << 20, "cpus": "0-3"},
    ],
    "resctrl": {
        "mounted": True, "caches": [{"name": "L3CODE", "closids": 8, "mask": "f"}], "bandwidth": {"closids": 8},
    },
    "nodes": [{"id": 0, "cpus": "0-3", "memory_bytes": 1}],
    "memory_bytes": 251 * GIB,
    "huge_pages": [{"page_bytes": 2 << 20, "total": 0}],
    "pci": [
        {"address": "0000:01:00.0", "class_code": "020000", "vendor": "15b3", "device": "101d", "driver": "mlx5_core",
         "iommu_group": 1, "sriov_total_vfs": 8},
        {"address": "0000:01:00.2", "class_code": "020000", "vendor": "15b3", "device": "101e",
         "physical_function": "0000:01:00.0"},
    ],
    "nics": [
        {"name": "eth0", "pci": "0000:01:00.0", "driver": "mlx5_core", "mac": "00:1b:21:00:00:01", "ptp_clock": 0},
        {"name": "eth0v0", "pci": "0000:01:00.2", "driver": "mlx5_core", "mac": "00:1b:21:00:00:02"},
        {"name": "br0"},
    ],
    "blocks": [
        {"name": "nvme0n1", "driver": "nvme", "size_bytes": 10**12, "rotational": False},
        {"name": "sda", "driver": "ahci", "size_bytes": 4 * 10**12, "rotational": True},
        {"name": "sdb", "driver": "ahci", "size_bytes": 10**11, "rotational": False},
    ],
    "clocksource": "tsc", "kvm_usable": True, "cgroup_version": 2, "programs": {"qemu": "7.2.15"},
    "vulnerabilities": {"meltdown": "Mitigation: PTI", "mmio_stale_data": "Vulnerable: no microcode"},
}  # fmt: skip
WHOLE_INVENTORY = {
    "serials": {"system": "S1", "board": "B1"},
    "cpu_vendor": "GenuineIntel",
    "cpu_flags": ["sse2", "avx512f"],
    "link_mbps": {"eth0": 25_000},
}


def test_a_machine_as_a_person_would_say_it() -> None:
    told = flat.flatten(Facts.model_validate(WHOLE), Inventory.model_validate(WHOLE_INVENTORY))
    assert {key: told[key] for key in ("cpu.threads", "cpu.cores", "cpu.smt", "cpu.max", "mem", "mem.usable")} == {
        "cpu.threads": (4,),
        "cpu.cores": (2,),
        "cpu.smt": ("yes",),
        "cpu.max": (4_000_000_000,),
        "mem": (256 * GIB,),
        "mem.usable": (251 * GIB,),
    }
    # A virtual function is no card of its own.
    assert (told["nic.count"], told["mac"], told["nic.speed"]) == ((1,), ("00:1b:21:00:00:01",), (25_000_000_000,))
    assert (told["disk.kind"], told["disk.count"]) == (("hdd", "nvme", "ssd"), (3,))
    assert told["firmware.date"] == ("2024-03-01",)
    assert told["cpu.model"] == ("intel(r) xeon(r)",)
    assert told["vulnerable"] == ("mmio_stale_data",)
    assert told["kernel.config"] == ("preempt_rt",)
    assert told["resctrl"] == ("l3", "mb")


@pytest.mark.parametrize(
    ("usable", "built_in"),
    [
        (64 * GIB, 64 * GIB),
        (int(118.25 * GIB), 128 * GIB),  # a recorded PowerEdge C6145
        (int(490.5 * GIB), 512 * GIB),  # a recorded IBM 9179-MHB
        (int(31.3 * GIB), 32 * GIB),
        (int(188 * GIB), 192 * GIB),
        (int(376 * GIB), 384 * GIB),
        (int(35.2 * GIB), int(35.2 * GIB)),  # near nothing that modules add up to
        (1000, 1000),
    ],
)
def test_memory_as_it_is_built_in(usable: int, built_in: int) -> None:
    assert flat.built_in(usable) == built_in


def test_nothing_is_told_of_what_is_not_known() -> None:
    bare = Facts.model_validate({"identity": {"architecture": "x86_64"}, "kernel": {"release": ""}, "cpus": []})
    assert flat.flatten(bare) == {"arch": ("x86_64",)}


# -- the probe's inventory ------------------------------------------------------------------------------------------


def test_the_inventory_of_a_tree(tmp_path: Path) -> None:
    tree = cpus_tree(1) | {
        "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: sse2 avx512f sse2",
        "/sys/class/dmi/id/product_serial": "  ABC123 ",
        "/sys/class/dmi/id/board_serial": "",
        "/sys/class/dmi/id/product_uuid": "4c4c4544-0042",
        "/sys/class/net/eth0": Link("../../devices/eth0"),
        "/sys/devices/eth0/speed": "25000",
        "/sys/devices/eth0/device": Link("../pci"),
        "/sys/class/net/eth1": Link("../../devices/eth1"),
        "/sys/devices/eth1/speed": "-1",
        "/sys/devices/eth1/device": Link("../pci"),
        "/sys/class/net/bond0": Link("../../devices/bond0"),
        "/sys/devices/bond0/speed": "50000",
    }
    plant(tmp_path, tree)
    _, inventory = read(str(tmp_path))
    assert inventory.serials == {"system": "ABC123"}
    assert inventory.uuid == "4c4c4544-0042"
    assert (inventory.cpu_vendor, inventory.cpu_flags) == ("GenuineIntel", ("avx512f", "sse2"))
    assert inventory.link_mbps == {"eth0": 25_000}


def test_the_inventory_of_an_arm_machine_in_a_tarball(tmp_path: Path) -> None:
    text = "processor\t: 0\nFeatures\t: fp asimd sve2\nCPU implementer\t: 0x41\n\n"
    with tarfile.open(tmp_path / "arm.tar", "w") as tar:
        for name, content in (("m/proc/cpuinfo", text), ("m/sys/devices/system/cpu/present", "0\n")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    _, inventory = read(str(tmp_path / "arm.tar"))
    assert (inventory.cpu_vendor, inventory.cpu_flags, inventory.serials) == ("ARM", ("asimd", "fp", "sve2"), {})


def test_this_machine_has_an_inventory() -> None:
    _, inventory = read("local")
    assert inventory.cpu_flags
