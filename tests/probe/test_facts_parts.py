"""Each subject of the facts on a small tree that shows one thing: what firmware, kernels and drivers really do."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.probe.facts import facts_of
from evenkeel.probe.facts.interrupts import kernel_version
from evenkeel.probe.facts.root import Root
from evenkeel.probe.facts.threads import parse_stat
from tests.probe.trees import Folder, Link, Tree, cpus_tree, plant

CPU = "/sys/devices/system/cpu"
NODE = "/sys/devices/system/node"


def facts(folder: Path, tree: Tree) -> Facts:
    return Facts.model_validate(facts_of(plant(folder, tree)))


# -- CPUs, caches, kinds ----------------------------------------------------------------------------------------------


def test_an_offline_cpu_has_no_topology(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            f"{CPU}/present": "0-1",
            f"{CPU}/online": "0",
            f"{CPU}/cpu0/topology/physical_package_id": "0",
            f"{CPU}/cpu0/topology/core_id": "3",
            f"{CPU}/cpu0/topology/thread_siblings": "1",
            f"{CPU}/cpu1/online": "0",
        },
    )
    assert found.online == {0}
    assert (found.cpu(0).package, found.cpu(0).core, found.cpu(0).siblings) == (0, 3, frozenset({0}))
    assert (found.cpu(1).online, found.cpu(1).package, found.cpu(1).siblings) == (False, None, frozenset())


def test_sparse_numbers_stay_sparse(tmp_path: Path) -> None:
    found = facts(tmp_path, {f"{CPU}/present": "0,8,16", f"{CPU}/online": "0,16", f"{CPU}/possible": "0-31"})
    assert [cpu.id for cpu in found.cpus] == [0, 8, 16]
    assert found.possible == frozenset(range(32))


@pytest.mark.parametrize("value", ["-1", "65535"])
def test_numbers_that_mean_not_known(tmp_path: Path, value: str) -> None:
    topology = f"{CPU}/cpu0/topology"
    found = facts(
        tmp_path,
        {**cpus_tree(1), f"{topology}/die_id": value, f"{topology}/cluster_id": value, f"{topology}/core_id": "0"},
    )
    assert (found.cpu(0).die, found.cpu(0).cluster, found.cpu(0).core) == (None, None, 0)


def test_dies_and_clusters_are_the_kernels_numbers(tmp_path: Path) -> None:
    """Two packages of two dies of two clusters; each number counts within what is around it, as firmware does."""
    tree: dict[str, Any] = cpus_tree(8)
    for cpu in range(8):
        topology = f"{CPU}/cpu{cpu}/topology"
        tree |= {f"{topology}/physical_package_id": str(cpu // 4), f"{topology}/die_id": str(cpu // 2 % 2)}
        tree |= {f"{topology}/cluster_id": str(8 * (cpu % 2)), f"{topology}/core_id": str(cpu % 2)}
    found = [(cpu.package, cpu.die, cpu.cluster) for cpu in facts(tmp_path, tree).cpus]
    assert found == [(0, 0, 0), (0, 0, 8), (0, 1, 0), (0, 1, 8), (1, 0, 0), (1, 0, 8), (1, 1, 0), (1, 1, 8)]


def test_unnumbered_packages_are_counted(tmp_path: Path) -> None:
    tree: dict[str, Any] = cpus_tree(4)
    for cpu, mask in ((0, "5"), (1, "a"), (2, "5"), (3, "a")):
        tree[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = "-1"
        tree[f"{CPU}/cpu{cpu}/topology/core_siblings"] = mask
    assert [cpu.package for cpu in facts(tmp_path, tree).cpus] == [0, 1, 0, 1]


def test_the_map_of_a_cache_wins_over_its_list(tmp_path: Path) -> None:
    index = f"{CPU}/cpu0/cache/index1"
    found = facts(
        tmp_path,
        {
            **cpus_tree(2),
            f"{index}/level": "1",
            f"{index}/type": "Instruction",
            f"{index}/size": "64K",
            f"{index}/shared_cpu_map": "00000000,00000003",
            f"{index}/shared_cpu_list": "0",
        },
    )
    assert [(cache.cpus, cache.size_bytes) for cache in found.caches] == [(frozenset({0, 1}), 65536)]


@pytest.mark.parametrize(("size", "expected"), [("32K", 32768), ("30M", 30 << 20), ("0K", None), ("", None)])
def test_cache_sizes(tmp_path: Path, size: str, expected: int | None) -> None:
    index = f"{CPU}/cpu0/cache/index0"
    tree = {**cpus_tree(1), f"{index}/level": "2", f"{index}/type": "Unified", f"{index}/size": size}
    assert facts(tmp_path, tree).caches[0].size_bytes == expected


def test_kinds_by_core_pmu(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            **cpus_tree(4),
            "/sys/devices/cpu_core/cpus": "0-1",
            "/sys/devices/cpu_atom/cpus": "2",
            "/sys/devices/cpu_lowpower/cpus": "3",
        },
    )
    assert [cpu.kind for cpu in found.cpus] == ["performance", "performance", "efficiency", "low-power"]


def test_one_core_pmu_is_no_hybrid(tmp_path: Path) -> None:
    found = facts(tmp_path, {**cpus_tree(2), "/sys/devices/cpu_core/cpus": "0-1"})
    assert {cpu.kind for cpu in found.cpus} == {None}


def test_an_unknown_arm_core_keeps_its_numbers(tmp_path: Path) -> None:
    cpuinfo = "\n\n".join(
        f"processor\t: {cpu}\nCPU implementer\t: 0x41\nCPU part\t: {part}" for cpu, part in ((0, "0xd4e"), (1, "0xfff"))
    )
    found = facts(tmp_path, {**cpus_tree(2), "/proc/cpuinfo": cpuinfo})
    assert [cpu.kind for cpu in found.cpus] == ["Cortex-X3", "implementer 0x41 part 0xfff"]


def test_unequal_frequencies_alone_are_no_hybrid(tmp_path: Path) -> None:
    """Intel SST-BF raises the base frequency of some cores of a kind."""
    tree: dict[str, Any] = {**cpus_tree(2), "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel"}
    for cpu, base in ((0, "2700000"), (1, "2100000")):
        tree[f"{CPU}/cpu{cpu}/cpufreq/base_frequency"] = base
        index = f"{CPU}/cpu{cpu}/cache/index0"
        tree |= {f"{index}/level": "1", f"{index}/type": "Data", f"{index}/size": "48K"}
        tree[f"{index}/shared_cpu_map"] = str(1 << cpu)
    assert {cpu.kind for cpu in facts(tmp_path, tree).cpus} == {None}


# -- memory -----------------------------------------------------------------------------------------------------------


def test_nodes_without_cpus_and_without_memory(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            **cpus_tree(2),
            f"{NODE}/node0/cpulist": "0-1",
            f"{NODE}/node0/meminfo": "Node 0 MemTotal:        2048 kB",
            f"{NODE}/node0/distance": "10 17 21",
            f"{NODE}/node2/cpulist": "",
            f"{NODE}/node2/meminfo": "Node 2 MemTotal:        4096 kB",
            f"{NODE}/node2/distance": "17 10 28",
            f"{NODE}/node5/cpulist": "",
            f"{NODE}/node5/meminfo": "Node 5 MemTotal:        0 kB",
            f"{NODE}/node5/distance": "21 28 10",
        },
    )
    assert [(node.id, node.cpus, node.memory_bytes) for node in found.nodes] == [
        (0, {0, 1}, 2 << 20),
        (2, frozenset(), 4 << 20),
        (5, frozenset(), 0),
    ]
    assert found.node(2).distances == {0: 17, 2: 10, 5: 28}
    assert found.memory_bytes == 6 << 20


def test_a_cpu_with_two_homes_keeps_the_first(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            **cpus_tree(4),
            f"{NODE}/node0/cpulist": "0-2",
            f"{NODE}/node0/distance": "10 20 20",
            f"{NODE}/node1/cpulist": "2-3",
            f"{NODE}/node1/distance": "20 10 20",
            f"{NODE}/node2/cpulist": "3",
            f"{NODE}/node2/distance": "20 20 10",
        },
    )
    assert [(node.id, node.cpus) for node in found.nodes] == [(0, frozenset({0, 1, 2})), (2, frozenset({3}))]
    assert found.node(0).distances == {0: 10, 2: 20}
    assert found.remarks == ("node 1 is left out: firmware gives it CPUs 2, which node 0 already has",)
    assert [cpu.node for cpu in found.cpus] == [0, 0, 0, 2]


def test_huge_pages_of_each_size(tmp_path: Path) -> None:
    pools = "/sys/devices/system/node/node0/hugepages"
    found = facts(
        tmp_path,
        {
            **cpus_tree(1),
            f"{pools}/hugepages-1048576kB/nr_hugepages": "4",
            f"{pools}/hugepages-1048576kB/free_hugepages": "1",
            f"{pools}/hugepages-2048kB/nr_hugepages": "512",
            f"{pools}/hugepages-2048kB/free_hugepages": "512",
        },
    )
    assert [(pool.page_bytes, pool.total, pool.free) for pool in found.node(0).huge_pages] == [
        (2 << 20, 512, 512),
        (1 << 30, 4, 1),
    ]
    assert found.settings[f"{pools}/hugepages-1048576kB/nr_hugepages"] == "4"


# -- devices ----------------------------------------------------------------------------------------------------------

BRIDGE = "/sys/devices/pci0000:40/0000:40:00.0"


def function(path: str, **files: str) -> dict[str, Any]:
    """A PCI function at ``path`` with its entry on the bus."""
    address = path.rpartition("/")[2]
    tree: dict[str, Any] = {f"{path}/{name}": content for name, content in files.items()}
    tree[f"/sys/bus/pci/devices/{address}"] = Link(path.replace("/sys/", "../../../"))
    return tree


def two_nodes() -> dict[str, Any]:
    return {**cpus_tree(4), f"{NODE}/node0/cpulist": "0-1", f"{NODE}/node1/cpulist": "2-3"}


def test_a_virtio_nic_is_where_its_pci_function_is(tmp_path: Path) -> None:
    """The trap: the virtio device between the two has no numa_node, and its own MSI vectors are one level up."""
    path = f"{BRIDGE}/0000:41:00.0"
    tree = {
        **two_nodes(),
        **function(path, numa_node="1", local_cpus="c"),
        f"{path}/driver": Link("../../../../bus/pci/drivers/virtio-pci"),
        f"{path}/msi_irqs/30": "msix",
        f"{path}/msi_irqs/31": "msix",
        f"{path}/iommu_group": Link("../../../../kernel/iommu_groups/7"),
        f"{path}/virtio2/driver": Link("../../../../../bus/virtio/drivers/virtio_net"),
        f"{path}/virtio2/net/eth1/device": Link("../../../virtio2"),
        f"{path}/virtio2/net/eth1/address": "52:54:00:00:00:01",
        f"{path}/virtio2/net/eth1/operstate": "up",
        f"{path}/virtio2/net/eth1/queues/rx-0": Folder(),
        f"{path}/virtio2/net/eth1/queues/rx-1": Folder(),
        f"{path}/virtio2/net/eth1/queues/tx-0/xps_cpus": "f",
        "/sys/class/net/eth1": Link(f"../..{path.removeprefix('/sys')}/virtio2/net/eth1"),
        "/proc/irq/30/smp_affinity_list": "0-3",
        "/proc/irq/31/smp_affinity_list": "0-3",
        "/sys/kernel/irq/30/actions": "virtio2-config",
        "/sys/kernel/irq/31/actions": "virtio2-input.0",
    }
    found = facts(tmp_path, tree)
    (nic,) = found.nics
    assert (nic.pci, nic.node, nic.driver, nic.mac) == ("0000:41:00.0", 1, "virtio_net", "52:54:00:00:00:01")
    assert (nic.rx_queues, nic.tx_queues, nic.operstate) == (2, 1, "up")
    assert nic.interrupts == ("virtio2-config", "virtio2-input.0")
    assert (found.pci[0].driver, found.pci[0].iommu_group, found.pci[0].local_cpus) == (
        "virtio-pci",
        7,
        frozenset({2, 3}),
    )
    assert found.settings["/sys/class/net/eth1/queues/tx-0/xps_cpus"] == "f"


def test_a_function_without_a_node_takes_it_from_its_cpus(tmp_path: Path) -> None:
    tree = {
        **two_nodes(),
        **function(f"{BRIDGE}/0000:41:00.0", numa_node="-1", local_cpulist="2-3"),
        **function(f"{BRIDGE}/0000:42:00.0", numa_node="-1", local_cpulist="0-3"),
    }
    assert [one.node for one in facts(tmp_path, tree).pci] == [1, None]


def test_virtual_functions(tmp_path: Path) -> None:
    tree = {
        **function(f"{BRIDGE}/0000:41:00.0", sriov_totalvfs="7", sriov_numvfs="2", reset_method="flr bus"),
        **function(f"{BRIDGE}/0000:41:10.0"),
        f"{BRIDGE}/0000:41:10.0/physfn": Link("../0000:41:00.0"),
    }
    physical, virtual = facts(tmp_path, tree).pci
    assert (physical.sriov_total_vfs, physical.sriov_vfs, physical.reset_methods) == (7, 2, ("flr", "bus"))
    assert (virtual.physical_function, virtual.sriov_total_vfs) == ("0000:41:00.0", None)


def test_a_multipath_nvme_disk_is_at_its_controller(tmp_path: Path) -> None:
    controller = f"{BRIDGE}/0000:42:00.0/nvme/nvme0"
    subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    tree = {
        **two_nodes(),
        **function(f"{BRIDGE}/0000:42:00.0", numa_node="1", local_cpulist="2-3"),
        f"{BRIDGE}/0000:42:00.0/driver": Link("../../../bus/pci/drivers/nvme"),
        f"{BRIDGE}/0000:42:00.0/msi_irqs/60": "msix",
        f"{controller}/nvme0c0n1/mq/0": Folder(),
        f"{controller}/nvme0c0n1/mq/1": Folder(),
        f"{controller}/nvme0c0n1/hidden": "1",
        f"{controller}/nvme0c0n1/device": Link("../../nvme0"),
        f"{subsystem}/nvme0n1/size": "1000",
        f"{subsystem}/nvme0n1/queue/rotational": "0",
        f"{subsystem}/nvme0n1/device": Link("../../nvme-subsys0"),
        f"{subsystem}/nvme0": Link(
            f"../../../..{controller.removeprefix('/sys/devices')}".replace("../../../..", "../../..")
        ),
        "/sys/class/block/nvme0n1": Link(f"../..{subsystem.removeprefix('/sys')}/nvme0n1"),
        "/sys/class/block/nvme0c0n1": Link(f"../..{controller.removeprefix('/sys')}/nvme0c0n1"),
        "/proc/irq/60/smp_affinity_list": "0-3",
        "/sys/kernel/irq/60/actions": "nvme0q0",
    }
    (disk,) = facts(tmp_path, tree).blocks
    assert (disk.name, disk.pci, disk.node, disk.driver) == ("nvme0n1", "0000:42:00.0", 1, "nvme")
    assert (disk.queues, disk.size_bytes, disk.rotational, disk.interrupts) == (2, 512000, False, ("nvme0q0",))


def test_virtual_disks_and_loopback_are_left_out_bridges_are_not(tmp_path: Path) -> None:
    tree: Tree = {
        "/sys/devices/virtual/net/lo/operstate": "unknown",
        "/sys/devices/virtual/net/br0/address": "00:00:00:00:00:00",
        "/sys/class/net/lo": Link("../../devices/virtual/net/lo"),
        "/sys/class/net/br0": Link("../../devices/virtual/net/br0"),
        "/sys/class/net/bonding_masters": "",
        "/sys/devices/virtual/block/loop0/size": "0",
        "/sys/class/block/loop0": Link("../../devices/virtual/block/loop0"),
    }
    found = facts(tmp_path, tree)
    assert [(nic.name, nic.pci, nic.mac) for nic in found.nics] == [("br0", None, None)]
    assert found.blocks == ()


# -- interrupts -------------------------------------------------------------------------------------------------------


def interrupt(number: int, action: str, mode: int, tmp_path: Path) -> None:
    folder = tmp_path / f"proc/irq/{number}"
    folder.mkdir(parents=True)
    (folder / "smp_affinity_list").write_text("0-3\n")
    (folder / "effective_affinity_list").write_text("2\n")
    (folder / "smp_affinity_list").chmod(mode)
    (folder / action).mkdir()


def managed(tmp_path: Path, release: str) -> dict[str, bool | None]:
    interrupt(0, "timer", 0o444, tmp_path)
    interrupt(30, "nvme0q0", 0o644, tmp_path)
    interrupt(31, "nvme0q1", 0o444, tmp_path)
    interrupt(32, "eth0-rx-0", 0o644, tmp_path)
    found = facts(tmp_path, {"/proc/sys/kernel/osrelease": release})
    assert {one.affinity for one in found.interrupts} == {frozenset(range(4))}
    assert {one.effective for one in found.interrupts} == {frozenset({2})}
    return {one.action: one.managed for one in found.interrupts}


def test_a_read_only_affinity_is_managed(tmp_path: Path) -> None:
    assert managed(tmp_path, "6.12.100+deb12-rt-amd64") == {
        "timer": True,
        "nvme0q0": False,
        "nvme0q1": True,
        "eth0-rx-0": False,
    }


def test_before_6_12_a_writable_file_tells_nothing(tmp_path: Path) -> None:
    for number, action in ((40, "nvme1q0"), (41, "nvme1q7"), (42, "virtio0-config"), (43, "virtio0-req.3")):
        interrupt(number, action, 0o644, tmp_path)
    found = managed(tmp_path, "6.1.0-13-amd64")
    assert found["nvme1q7"] is found["virtio0-req.3"] is True
    assert found["nvme1q0"] is found["virtio0-config"] is found["eth0-rx-0"] is None


@pytest.mark.parametrize(
    ("release", "version"), [("6.12.100+deb12-rt-amd64", (6, 12)), ("5.15.0", (5, 15)), ("", (0, 0)), ("mine", (0, 0))]
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


# -- kernel, identity -------------------------------------------------------------------------------------------------


def test_idle_states_are_those_of_cpu_0_shallow_to_deep(tmp_path: Path) -> None:
    states = {f"{CPU}/cpu0/cpuidle/state{number}/name": name for number, name in ((10, "C10"), (0, "POLL"), (2, "C6"))}
    own = {f"{CPU}/cpuidle/current_driver": "intel_idle", f"{CPU}/cpuidle/current_governor_ro": "menu"}
    idle = facts(tmp_path, {**cpus_tree(1), **states, **own}).idle
    assert (idle.driver, idle.governor, idle.states) == ("intel_idle", "menu", ("POLL", "C6", "C10"))


def test_without_an_idle_driver_there_is_none(tmp_path: Path) -> None:
    """Kernels since 5.10 have the file without _ro, and "none" is what they say in a virtual machine."""
    own = {f"{CPU}/cpuidle/current_driver": "none", f"{CPU}/cpuidle/current_governor": "haltpoll"}
    idle = facts(tmp_path, {**cpus_tree(1), **own}).idle
    assert (idle.driver, idle.governor, idle.states) == (None, "haltpoll", ())


def test_frequency_of_all_policies(tmp_path: Path) -> None:
    tree = {
        **cpus_tree(4),
        f"{CPU}/cpufreq/policy0/scaling_driver": "intel_pstate",
        f"{CPU}/intel_pstate/no_turbo": "1",
    }
    for number, governor in ((0, "powersave"), (1, "performance"), (10, "powersave")):
        tree[f"{CPU}/cpufreq/policy{number}/scaling_governor"] = governor
    found = facts(tmp_path, tree).frequency
    assert (found.driver, found.governors, found.boost) == ("intel_pstate", ("performance", "powersave"), False)


def test_frequency_before_policies_had_a_folder(tmp_path: Path) -> None:
    own = f"{CPU}/cpu0/cpufreq"
    tree = {f"{own}/scaling_driver": "acpi-cpufreq", f"{own}/scaling_governor": "ondemand", f"{CPU}/cpufreq/boost": "1"}
    found = facts(tmp_path, {**cpus_tree(1), **tree}).frequency
    assert (found.driver, found.governors, found.boost) == ("acpi-cpufreq", ("ondemand",), True)


@pytest.mark.parametrize(
    ("tree", "usable"),
    [
        ({"/dev/kvm": "", "/sys/module/kvm/parameters/halt_poll_ns": "0"}, True),
        ({"/dev/kvm": "", "/sys/module/kvm/uevent": ""}, True),
        ({"/sys/module/kvm/parameters/halt_poll_ns": "0"}, False),
        ({"/dev/kvm": "", "/sys/module/nvme/uevent": ""}, False),
        ({"/dev/kvm": ""}, None),
    ],
    ids=["loaded", "built in", "no device", "no module", "not told"],
)  # fmt: skip
def test_kvm_is_usable_with_a_device_and_a_module(tmp_path: Path, tree: Tree, usable: bool | None) -> None:
    assert facts(tmp_path, {**cpus_tree(1), **tree}).kvm_usable is usable


def test_parameters_of_the_modules_of_kvm(tmp_path: Path) -> None:
    tree = {
        "/sys/module/kvm/parameters/halt_poll_ns": "200000",
        "/sys/module/kvm_amd/parameters/avic": "N",
        "/sys/module/kvm_amd/parameters/nested": "1",
        "/sys/module/nvme/parameters/poll_queues": "4",
    }
    assert facts(tmp_path, {**cpus_tree(1), **tree}).kvm_parameters == {
        "kvm": {"halt_poll_ns": "200000"},
        "kvm_amd": {"avic": "N", "nested": "1"},
    }


def test_an_unset_nohz_full_is_empty(tmp_path: Path) -> None:
    found = facts(tmp_path, {**cpus_tree(1), f"{CPU}/nohz_full": " (null)", f"{CPU}/isolated": ""})
    assert (found.nohz_full, found.isolated) == (frozenset(), frozenset())
    assert found.settings[f"{CPU}/nohz_full"] == " (null)"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"/sys/kernel/realtime": "1"}, True),
        ({"/sys/kernel/realtime": "0", "/proc/sys/kernel/version": "#1 SMP PREEMPT_DYNAMIC"}, False),
        ({"/proc/sys/kernel/version": "#1 SMP PREEMPT_RT Debian 6.12.100-1"}, True),
        ({"/proc/sys/kernel/osrelease": "6.6.1", "/boot/config-6.6.1": "CONFIG_PREEMPT_RT=y"}, True),
        ({"/proc/sys/kernel/osrelease": "6.6.1", "/boot/config-6.6.1": "# CONFIG_PREEMPT_RT is not set"}, False),
    ],
)
def test_preempt_rt(tmp_path: Path, tree: Tree, expected: bool) -> None:
    assert facts(tmp_path, tree).kernel.preempt_rt is expected


def test_only_options_that_rules_ask_about_are_kept(tmp_path: Path) -> None:
    config = 'CONFIG_HZ=1000\n# CONFIG_NO_HZ_FULL is not set\nCONFIG_KVM=m\nCONFIG_CMDLINE="a=b"\nCONFIG_ACORN=y'
    found = facts(tmp_path, {"/proc/sys/kernel/osrelease": "6.6.1", "/boot/config-6.6.1": config})
    assert found.kernel.config == {"HZ": "1000", "NO_HZ_FULL": "n", "KVM": "m", "CMDLINE": "a=b"}


def test_parameters_that_the_kernel_did_not_know(tmp_path: Path) -> None:
    log = 'x\nUnknown kernel command line parameters "BOOT_IMAGE=/vmlinuz kthread_cpus=0-1 foo", will be passed on\ny'
    assert facts(tmp_path, {"/var/log/dmesg": log}).kernel.unknown_parameters == ("kthread_cpus=0-1", "foo")


@pytest.mark.parametrize(
    ("tree", "loader"),
    [
        ({"/boot/grub/grub.cfg": ""}, "grub"),
        ({"/etc/default/grub": ""}, "grub"),
        ({"/boot/grub2/grub.cfg": "", "/boot/loader/entries/a.conf": ""}, "bls"),
        ({"/boot/efi/loader/loader.conf": "", "/etc/default/grub": ""}, "systemd-boot"),
        ({}, None),
    ],
)
def test_boot_loaders(tmp_path: Path, tree: Tree, loader: str | None) -> None:
    assert facts(tmp_path, tree).kernel.boot_loader == loader


def test_installed_kernels_are_those_that_can_boot(tmp_path: Path) -> None:
    tree: Tree = {"/boot/vmlinuz-6.12.1-rt": "", "/boot/vmlinuz-6.1.0": "", "/lib/modules/5.10.0/x": ""}
    assert facts(tmp_path, tree).kernel.installed == ("6.1.0", "6.12.1-rt")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"/proc/cpuinfo": "processor: 0\nflags: fpu lm"}, ("none", False)),
        ({"/proc/cpuinfo": "processor: 0\nflags: fpu lm hypervisor"}, (None, None)),
        ({"/proc/cpuinfo": "processor: 0\nmodel name: QEMU TCG CPU version 2.5+\nflags: hypervisor"}, ("qemu", True)),
        (
            {"/sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc kvm-clock"},
            ("kvm", False),
        ),
        ({"/evenkeel-asked.json": '{"systemd-detect-virt": "qemu"}'}, ("qemu", True)),
        ({"/evenkeel-asked.json": '{"cpuid-hypervisor": "KVMKVMKVM", "systemd-detect-virt": "qemu"}'}, ("kvm", False)),
        ({"/evenkeel-asked.json": '{"cpuid-hypervisor": "TCGTCGTCGTCG"}'}, ("qemu", True)),
        ({"/evenkeel-asked.json": "[]"}, (None, None)),
    ],
)
def test_hypervisors(tmp_path: Path, tree: Tree, expected: tuple[str | None, bool | None]) -> None:
    identity = facts(tmp_path, tree).identity
    assert (identity.hypervisor, identity.emulated) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "architecture"),
    [
        ("processor: 0\nvendor_id: GenuineIntel\nflags: fpu lm", "x86_64"),
        ("processor: 0\nflags: fpu", "i686"),
        ("processor: 0\nCPU implementer: 0x41\nCPU architecture: 8", "aarch64"),
        ("processor: 0\ncpu: POWER7 (architected)", "ppc64"),
        ("processor: 0\ncpu: POWER9, altivec supported", "ppc64le"),
        ("processor: 0\nisa: rv64imafdc", "riscv64"),
        ("", "unknown"),
    ],
)
def test_architectures(tmp_path: Path, cpuinfo: str, architecture: str) -> None:
    assert facts(tmp_path, {"/proc/cpuinfo": cpuinfo}).identity.architecture == architecture


# -- cgroups ----------------------------------------------------------------------------------------------------------

CGROUP = "/sys/fs/cgroup"
V2 = {"/proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", f"{CGROUP}/cpuset.cpus.effective": "0-7"}


def cgroup(path: str, cpus: str, exclusive: str, effective: str, state: str) -> dict[str, str]:
    folder = f"{CGROUP}/{path}/cpuset.cpus"
    return {
        folder: cpus,
        f"{folder}.exclusive": exclusive,
        f"{folder}.effective": effective,
        f"{folder}.partition": state,
    }


def test_partitions_and_claims(tmp_path: Path) -> None:
    invalid = "isolated invalid (Cpu list in cpuset.cpus not exclusive)"
    found = facts(
        tmp_path,
        {
            **V2,
            **cgroup("system.slice", "", "", "0-5", "member"),
            **cgroup("machine.slice", "", "6-7", "0-5", "member"),
            **cgroup("machine.slice/rt", "6-7", "6-7", "6-7", "isolated"),
            **cgroup("user.slice", "4-5", "", "4-5", invalid),
            f"{CGROUP}/init.scope/deep/cpuset.cpus.partition": "root",  # no controller above it: never looked at
        },
    )
    assert found.cgroup_version == 2
    assert [(one.path, one.state, one.exclusive, one.effective) for one in found.partitions] == [
        ("/machine.slice", "member", {6, 7}, frozenset(range(6))),
        ("/machine.slice/rt", "isolated", {6, 7}, {6, 7}),
        ("/user.slice", invalid, frozenset(), {4, 5}),
    ]


@pytest.mark.parametrize(
    ("mounts", "version"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", 2),
        ("cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0", 1),
        ("proc /proc proc rw 0 0", None),
    ],
)
def test_cgroup_versions(tmp_path: Path, mounts: str, version: int | None) -> None:
    assert facts(tmp_path, {"/proc/mounts": mounts}).cgroup_version == version


# -- threads and owners -----------------------------------------------------------------------------------------------


def process(pid: int, name: str, *, flags: int, priority: int, policy: int, cpus: str) -> dict[str, str]:
    fields = ["S", "2", *["0"] * 4, str(flags), *["0"] * 30, str(priority), str(policy), *["0"] * 11]
    assert fields[37] == str(priority)
    return {
        f"/proc/{pid}/stat": f"{pid} ({name}) {' '.join(fields)}",
        f"/proc/{pid}/status": f"Name:\t{name}\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}",
    }


KERNEL = 0x00200040


def test_kernel_threads(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            **process(1, "systemd", flags=0x400100, priority=0, policy=0, cpus="0-7"),
            **process(20, "ktimers/10", flags=KERNEL, priority=1, policy=1, cpus="10"),
            **process(21, "ktimers/2", flags=KERNEL, priority=11, policy=1, cpus="2"),
            **process(22, "kworker/0:1-events", flags=KERNEL, priority=0, policy=0, cpus="0"),
            **process(23, "irq/9-a (b) c", flags=KERNEL, priority=50, policy=1, cpus="3"),
            **process(24, "kvm-pit/4711", flags=KERNEL, priority=0, policy=0, cpus="0-7"),
            **process(25, "sched_dl", flags=KERNEL, priority=0, policy=6, cpus="0-7"),
            "/proc/26/stat": "26 (gone",
        },
    )
    assert [(one.name, one.policy, one.priority) for one in found.kernel_threads] == [
        ("irq/9-a (b) c", "fifo", 50),
        ("ktimers/2", "fifo", 11),
        ("ktimers/10", "fifo", 1),
        ("kvm-pit", "other", 0),
        ("sched_dl", "deadline", 0),
    ]
    assert found.kernel_threads[2].cpus == {10}


def test_the_fields_of_stat_are_those_of_the_manual() -> None:
    """Our own /proc/self/stat: the flags and policy of this very process."""
    stat = Path("/proc/self/stat").read_text()
    parsed = parse_stat(stat)
    assert parsed is not None
    name, flags, priority, policy = parsed
    assert stat.split(" ", 1)[1].startswith(f"({name})")
    assert not flags & 0x00200000
    assert (priority, policy) == (0, 0)


def test_process_ids_are_no_facts(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    documents = [
        facts(folder, process(pid, f"vhost-{pid - 1}", flags=KERNEL, priority=0, policy=0, cpus="0"))
        for folder, pid in ((one, 4711), (two, 815))
    ]
    assert documents[0].to_json() == documents[1].to_json()


def test_owners(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            **process(400, "tuned", flags=0x400000, priority=0, policy=0, cpus="0-7"),
            **process(401, "power-profiles-", flags=0x400000, priority=0, policy=0, cpus="0-7"),
            "/etc/tuned/active_profile": "realtime-virtual-host",
            "/etc/systemd/system/multi-user.target.wants/irqbalance.service": Link("/lib/systemd/system/x.service"),
            "/proc/sys/kernel/timer_migration": "1",
            "/proc/sys/vm/swappiness": "60",
            "/etc/sysctl.d/90-mine.conf": "# kernel.timer_migration = 9\n-kernel.timer_migration=0\nnet.ipv4.x = 1",
            "/usr/lib/sysctl.d/90-mine.conf": "vm.swappiness = 1",
            "/etc/sysctl.d/50-slash.conf": "vm/swappiness=10",
            "/etc/modprobe.d/kvm.conf": "options  kvm halt_poll_ns=0\noptions snd x=1",
            "/sys/kernel/mm/ksm/run": "0",
            "/etc/tmpfiles.d/ksm.conf": "w /sys/kernel/mm/ksm/run - - - - 1",
        },
    )
    assert [(one.name, one.active, one.evidence) for one in found.owners] == [
        ("irqbalance", False, "/etc/systemd/system/multi-user.target.wants/irqbalance.service: starts at boot"),
        ("modprobe.d", True, "/etc/modprobe.d/kvm.conf: options kvm halt_poll_ns=0"),
        ("power-profiles-daemon", True, "process power-profiles- runs"),
        ("sysctl.d", True, "/etc/sysctl.d/50-slash.conf: vm.swappiness = 10"),
        ("sysctl.d", True, "/etc/sysctl.d/90-mine.conf: kernel.timer_migration = 0"),
        ("tmpfiles.d", True, "/etc/tmpfiles.d/ksm.conf: /sys/kernel/mm/ksm/run = 1"),
        ("tuned", True, "process tuned runs, /etc/tuned/active_profile: realtime-virtual-host"),
    ]


def test_settings_are_bounded_by_cpus(tmp_path: Path) -> None:
    """Four files a CPU at most, so that 1024 CPUs stay a document of a reasonable size."""
    tree: dict[str, Any] = cpus_tree(8)
    for cpu in range(8):
        tree[f"{CPU}/cpu{cpu}/power/pm_qos_resume_latency_us"] = "0"
        tree[f"{CPU}/cpu{cpu}/power/control"] = "auto"
        tree[f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime"] = "50000000"
        tree[f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/period"] = "1000000000"
        tree[f"/sys/devices/system/machinecheck/machinecheck{cpu}/ignore_ce"] = "0"
    settings = facts(tmp_path, tree).settings
    assert sum("/cpu3/" in path for path in settings) == 3
    assert settings["/sys/kernel/debug/sched/fair_server/cpu7/runtime"] == "50000000"
    assert [path for path in settings if "machinecheck" in path] == [
        "/sys/devices/system/machinecheck/machinecheck0/ignore_ce"
    ]


# -- the code itself --------------------------------------------------------------------------------------------------

SOURCES = sorted(Path(sys.modules[Root.__module__].__file__ or "").parent.glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_probe_needs_python_3_9_and_nothing_else(source: Path) -> None:
    tree = ast.parse(source.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            assert not isinstance(node, ast.Match)
            continue
        for name in names:
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or name.startswith("evenkeel.probe"), name
    if any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) for node in ast.walk(tree)):
        # `X | None` in an annotation is fine as long as annotations are never evaluated
        assert "from __future__ import annotations" in source.read_text()
