"""Facts of our own recordings: a virtual host whose topology we chose, running a real PREEMPT_RT kernel of Debian.

``virtual-2s3c2t``: 2 sockets x 3 cores x 2 threads, a NUMA node each, emulated IOMMU; a virtio and an e1000e NIC and an
NVMe disk on node 0, an igb NIC (SR-IOV) and an NVMe disk on node 1.  Made with `evenkeel facts virtual:NAME --record`.
``-tuned``: another host of the same shape, after a plan was applied to it (CPUs 8-11 isolated).
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.machines.tree import TreeMachine
from evenkeel.report.picture import machine_svg

FOLDER = Path(__file__).parents[1] / "machines" / "recorded"
RECORDING = FOLDER / "virtual-2s3c2t.tar.bz2"
TUNED = FOLDER / "virtual-2s3c2t-tuned.tar.bz2"
CPUS = range(12)


def read(recording: Path) -> Facts:
    with TreeMachine(recording).probe() as probe:
        return Facts.model_validate(probe.call("facts"))


@pytest.fixture(scope="module")
def facts() -> Facts:
    return read(RECORDING)


@pytest.mark.parametrize("recording", [RECORDING, TUNED], ids=lambda path: path.name)
def test_small_and_the_same_twice(recording: Path) -> None:
    assert recording.stat().st_size < 300_000
    assert read(recording).to_json() == read(recording).to_json()


def test_topology(facts: Facts) -> None:
    assert facts.online == frozenset(CPUS) == facts.possible
    for cpu in facts.cpus:
        assert (cpu.package, cpu.node, cpu.core) == (cpu.id // 6, cpu.id // 6, cpu.id % 6 // 2)
        assert cpu.siblings == {cpu.id // 2 * 2, cpu.id // 2 * 2 + 1}
    assert [(node.id, node.cpus, node.distances) for node in facts.nodes] == [
        (0, frozenset(range(6)), {0: 10, 1: 21}),
        (1, frozenset(range(6, 12)), {0: 21, 1: 10}),
    ]
    assert {cache.cpus for cache in facts.caches if cache.level == 3} == {node.cpus for node in facts.nodes}
    assert {cache.cpus for cache in facts.caches if cache.level < 3} == {cpu.siblings for cpu in facts.cpus}
    assert facts.smt == "on"
    assert {cpu.kind for cpu in facts.cpus} == {None}


def test_identity_and_kernel(facts: Facts) -> None:
    assert facts.identity.architecture == "x86_64"
    assert (facts.identity.hypervisor, facts.identity.emulated) == ("qemu", True)
    assert re.fullmatch(r"6\.12\.\d+\+deb12-rt-amd64", facts.kernel.release)
    assert facts.kernel.preempt_rt
    assert facts.kernel.config["PREEMPT_RT"] == facts.kernel.config["NO_HZ_FULL"] == "y"
    assert facts.kernel.config["RT_GROUP_SCHED"] == "n"
    assert facts.kernel.boot_loader == "grub"
    assert facts.kernel.release in facts.kernel.installed
    assert "intel_iommu=on" in facts.kernel.command_line
    assert facts.kernel.unknown_parameters == ()
    assert (facts.kvm_usable, facts.cgroup_version) == (True, 2)
    assert facts.programs.keys() >= {"libvirt", "qemu", "python", "systemd"}
    assert facts.unreadable == {}
    assert facts.remarks == ()


def test_devices_are_at_the_node_that_we_put_them_to(facts: Facts) -> None:
    assert {(nic.driver, nic.node) for nic in facts.nics} == {("virtio_net", 0), ("e1000e", 0), ("igb", 1)}
    assert {(disk.name[:4], disk.driver, disk.node, disk.queues) for disk in facts.blocks} == {
        ("nvme", "nvme", 0, 12),
        ("nvme", "nvme", 1, 12),
        ("vda", "virtio_blk", None, 12),
    }
    functions = {function.address: function for function in facts.pci}
    for device in facts.nics:
        assert device.node is not None
        function = functions[device.pci or ""]
        assert function.local_cpus == facts.node(device.node).cpus
        assert function.iommu_group is not None
    (igb,) = (nic for nic in facts.nics if nic.driver == "igb")
    assert (functions[igb.pci or ""].sriov_total_vfs, functions[igb.pci or ""].sriov_vfs) == (7, 0)
    assert igb.rx_queues == igb.tx_queues == 8


def test_managed_interrupts(facts: Facts) -> None:
    """One vector for each of 12 CPUs: NVMe queues, virtio disk queues.  The timer cannot be moved either."""
    managed = {one.action for one in facts.interrupts if one.managed and one.action}
    queues = {f"nvme{disk}q{number}" for disk in (0, 1) for number in range(1, 13)}
    requests = {f"virtio0-req.{number}" for number in CPUS}
    assert managed == queues | requests | {"timer"}
    by_action = {one.action: one for one in facts.interrupts}
    for names in (requests, {name for name in queues if name.startswith("nvme0")}):
        homes = [by_action[name].effective for name in names]
        assert sorted(min(home) for home in homes) == list(CPUS)
        assert {len(home) for home in homes} == {1}
    assert {one.managed for one in facts.interrupts} == {True, False}  # 6.12: never unknown


def test_interrupts_belong_to_their_devices(facts: Facts) -> None:
    (igb,) = (nic for nic in facts.nics if nic.driver == "igb")
    assert igb.interrupts == (igb.name, *(f"{igb.name}-TxRx-{number}" for number in range(8)))
    (virtio,) = (nic for nic in facts.nics if nic.driver == "virtio_net")
    assert [action.split("-")[1] for action in virtio.interrupts] == ["config", "input.0", "output.0"]
    for disk in facts.blocks:
        assert len(disk.interrupts) == 13


def test_kernel_threads_of_a_real_time_kernel(facts: Facts) -> None:
    threads = {thread.name: thread for thread in facts.kernel_threads}
    for cpu in CPUS:
        for name, priority in (("ktimers", 1), ("irq_work", 1), ("rcuc", 1), ("migration", 99)):
            thread = threads[f"{name}/{cpu}"]
            assert (thread.policy, thread.priority, thread.cpus) == ("fifo", priority, frozenset({cpu}))
        assert threads[f"ksoftirqd/{cpu}"].policy == "other"
    assert any(name.startswith("irq/") and thread.priority == 50 for name, thread in threads.items())


def test_settings_that_rules_need(facts: Facts) -> None:
    settings = facts.settings
    for path in (
        "/proc/sys/kernel/sched_rt_runtime_us",
        "/proc/sys/kernel/timer_migration",
        "/proc/sys/kernel/watchdog_cpumask",
        "/proc/sys/vm/stat_interval",
        "/proc/sys/vm/compaction_proactiveness",
        "/proc/irq/default_smp_affinity",
        "/sys/devices/virtual/workqueue/cpumask",
        "/sys/devices/virtual/workqueue/writeback/cpumask",
        "/sys/kernel/mm/ksm/run",
        "/sys/module/rcutree/parameters/kthread_prio",
        "/sys/module/kvm/parameters/halt_poll_ns",
        "/etc/default/grub",
    ):
        assert path in settings, path
    for cpu in CPUS:
        assert settings[f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime"] == "50000000"
        assert settings[f"/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"] == "0"
    for node in (0, 1):
        assert f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages" in settings
    # a PREEMPT_RT kernel lacks these on purpose, which counts as satisfied
    assert "/proc/sys/kernel/numa_balancing" not in settings
    assert "/sys/kernel/mm/transparent_hugepage/enabled" not in settings


def test_irqbalance_is_an_owner(facts: Facts) -> None:
    assert [(owner.name, owner.active) for owner in facts.owners] == [("irqbalance", True)]


def test_picture(facts: Facts) -> None:
    page = ElementTree.fromstring(machine_svg(facts))
    words = [element.text or "" for element in page.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("L3 16 MiB") == 2
    assert [word for word in words if word.isdigit()] == [str(cpu) for cpu in CPUS]


def test_tuning_shows_and_does_not_change_the_fingerprint(facts: Facts) -> None:
    """A plan is good for the machine that it was made for; what it sets itself must not make it stale."""
    tuned = read(TUNED)
    assert tuned.fingerprint() == facts.fingerprint()
    assert (facts.nohz_full, tuned.nohz_full) == (frozenset(), frozenset(range(8, 12)))
    assert tuned.isolated == frozenset()  # managed_irq alone does not show there
    assert [pool.total for node in tuned.nodes for pool in node.huge_pages] == [0, 0, 128, 0]
    threads = {thread.name: thread for thread in tuned.kernel_threads}
    for cpu in CPUS:
        assert threads[f"rcuc/{cpu}"].priority == 11
    assert {threads[f"rcuop/{cpu}"].policy for cpu in CPUS} == {"fifo"}
    assert tuned.settings["/proc/irq/default_smp_affinity"] == "0c3"
    assert tuned.settings["/sys/devices/virtual/workqueue/cpumask"] == "0ff"
    assert tuned.settings["/sys/devices/virtual/workqueue/writeback/cpumask"] == "fff"
    assert tuned.settings["/sys/module/rcutree/parameters/kthread_prio"] == "11"
