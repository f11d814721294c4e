"""The faults that are made on purpose, and what the doctor must say of each: exactly this finding, and no other.

docs/reference/doctor.md is made from this table (tools/doctor_reference.py), the mutation tests run it.  A fault with
``live`` is made on a running virtual host as well (tests/virtual/test_doctor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.verify.doctor.tree import ETC_GUEST, KERNEL_THREAD, Tree

GROUP = "/sys/fs/cgroup"
SCOPE = f"{GROUP}/machine.slice/machine-qemu\\x2d2\\x2dplc.scope/libvirt"
SYSCTL = "/proc/sys"
TWO_CELLS = "<cell id='0' cpus='0' memory='131072' unit='KiB'/><cell id='1' cpus='1' memory='131072' unit='KiB'/>"


@dataclass(frozen=True)
class Fault:
    id: str
    what: str  # for people: how it is made
    finding: str
    severity: Literal["harmful", "warning", "note"]
    make: Callable[[Tree], None]
    base: str = "guests"
    live: bool = False


def _isolate(tree: Tree, cpus: str, mask: str) -> None:
    """Another isolated set on the host with two threads a core."""
    for key in ("isolcpus=managed_irq,", "nohz_full=", "rcu_nocbs="):
        tree.argument(f"{key}8-11", f"{key}{cpus}")
    tree.change("/sys/devices/system/cpu/nohz_full", cpus)
    tree.put("/sys/devices/virtual/workqueue/cpumask", mask)


def _node_without_housekeeping(tree: Tree) -> None:
    _isolate(tree, "6-11", "03f")
    tree.argument("irqaffinity=0-1,6-7", "irqaffinity=0-1")
    tree.interrupts(lambda cpus: cpus if cpus in ("8", "9", "10", "11", "0-11") else "0")


def _no_irqaffinity(tree: Tree) -> None:
    tree.argument(" irqaffinity=0,3", "")
    tree.change("/proc/irq/default_smp_affinity", "3f")


def _mixed(tree: Tree) -> None:
    tree.argument("isolcpus=managed_irq,4-5", "isolcpus=domain,managed_irq,4-5")
    tree.change("/sys/devices/system/cpu/isolated", "4-5")


def _interrupt(tree: Tree) -> None:
    tree.change("/proc/irq/36/smp_affinity_list", "5")
    tree.change("/proc/irq/36/effective_affinity_list", "5")


def _managed(tree: Tree) -> None:
    tree.change("/proc/irq/29/smp_affinity_list", "4")
    tree.change("/proc/irq/30/smp_affinity_list", "5")


def _not_offloaded(tree: Tree) -> None:
    tree.argument(" nohz_full=4-5 rcu_nocbs=4-5", "")
    tree.change("/sys/devices/system/cpu/nohz_full", "")


def _rcu_on_housekeeping(tree: Tree) -> None:
    tree.end("irqbalance")  # it would leave nohz_full alone, and there is none now
    tree.argument(" nohz_full=8-11 rcu_nocbs=8-11", " rcu_nocbs=0-7")
    tree.change("/sys/devices/system/cpu/nohz_full", "")


def _share_two_cpus(tree: Tree) -> None:
    tree.thread("CPU 0/KVM", cpus="4-5", guest=True)
    tree.thread("CPU 1/KVM", policy="other", cpus="4-5", guest=True)


def _idle(tree: Tree, old: str, new: str) -> None:
    """A definition of a guest that does not run."""
    tree.stop("plc")
    tree.swap(ETC_GUEST, old, new)


def _old_kernel(tree: Tree) -> None:
    tree.change(f"{SYSCTL}/kernel/osrelease", "6.1.0-18-rt-amd64")
    tree.change(f"{SYSCTL}/kernel/sched_rt_runtime_us", "-1")


def _irqbalance(tree: Tree) -> None:
    tree.start(900, "irqbalance")
    tree.put("/etc/default/irqbalance", "IRQBALANCE_BANNED_CPULIST=0-1")


def _two_sysctl_files(tree: Tree) -> None:
    tree.put("/etc/sysctl.d/10-a.conf", "vm.swappiness = 60")
    tree.put("/etc/sysctl.d/20-b.conf", "vm.swappiness = 10")


def _power_daemons(tree: Tree) -> None:
    tree.start(900, "power-profiles-")
    tree.start(901, "auto-cpufreq")


def _log(kind: str, line: str) -> Callable[[Tree], None]:
    return lambda tree: tree.logged(kind, line)


def _pending(tree: Tree) -> None:
    for path in ("/boot/grub/grub.cfg", "/etc/default/grub.d/zz-evenkeel.cfg"):
        tree.swap(path, "skew_tick=1", "skew_tick=0")


def _pages_on_other_node(tree: Tree) -> None:
    tree.argument("hugepages=1:128", "hugepages=0:128")
    tree.pages(1, 0)
    tree.pages(0, 128)


def _page_of_one_cell(tree: Tree) -> None:
    tree.swap(ETC_GUEST, "<cell id='0' cpus='0-1' memory='262144' unit='KiB'/>", TWO_CELLS)
    tree.swap(ETC_GUEST, "<page size='2048' unit='KiB'/>", "<page size='2048' unit='KiB' nodeset='1'/>")


def two_nodes(tree: Tree, far: int = 21, bound: bool = True) -> None:
    """The guest with a cell on each node, as it should be."""
    tree.swap(ETC_GUEST, "<vcpupin vcpu='0' cpuset='4'/>", "<vcpupin vcpu='0' cpuset='2'/>")
    cells = "".join(
        f"<cell id='{cell}' cpus='{cell}' memory='131072' unit='KiB'><distances><sibling id='{cell}' value='10'/>"
        f"<sibling id='{1 - cell}' value='{far}'/></distances></cell>"
        for cell in (0, 1)
    )
    tree.swap(ETC_GUEST, "<cell id='0' cpus='0-1' memory='262144' unit='KiB'/>", cells)
    tree.swap(ETC_GUEST, "<memory mode='strict' nodeset='1'/>", "<memory mode='strict' nodeset='0-1'/>")
    both = "".join(f"<memnode cellid='{cell}' mode='strict' nodeset='{cell}'/>" for cell in (0, 1)) if bound else ""
    tree.swap(ETC_GUEST, "<memnode cellid='0' mode='strict' nodeset='1'/>", both)
    pages = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB"
    tree.change(f"{pages}/nr_hugepages", "64")
    tree.change(f"{pages}/free_hugepages", "64")


def _memory_far(tree: Tree) -> None:
    tree.swap(ETC_GUEST, "mode='strict'", "mode='preferred'")
    tree.swap(ETC_GUEST, "nodeset='1'", "nodeset='0'")


def _untune_other_kernel(tree: Tree) -> None:
    lines = tree.text("/boot/grub/grub.cfg").split("\n")
    mine = tree.text(f"{SYSCTL}/kernel/osrelease")
    changed = [
        line.replace(" nohz_full=4-5", "") if line.lstrip().startswith("linux") and mine not in line else line
        for line in lines
    ]
    tree.change("/boot/grub/grub.cfg", "\n".join(changed))


FAULTS: tuple[Fault, ...] = (
    # -- boot ----------------------------------------------------------------------------------------------------
    Fault(
        "list-with-N",
        "nohz_full=4-N",
        "D-CPULIST",
        "warning",
        lambda tree: tree.argument("nohz_full=4-5", "nohz_full=4-N"),
    ),
    Fault(
        "list-all",
        "rcu_nocbs=all",
        "D-CPULIST",
        "warning",
        lambda tree: tree.argument("rcu_nocbs=4-5", "rcu_nocbs=all"),
    ),
    Fault(
        "list-with-stride",
        "irqaffinity=0-3:1/3",
        "D-CPULIST",
        "warning",
        lambda tree: tree.argument("irqaffinity=0,3", "irqaffinity=0-3:1/3"),
    ),
    Fault(
        "list-as-mask",
        "irqaffinity=0x9",
        "D-CPULIST",
        "harmful",
        lambda tree: tree.argument("irqaffinity=0,3", "irqaffinity=0x9"),
    ),
    Fault(
        "foreign-parameter",
        "kthread_cpus=0,3 on a mainline kernel",
        "D-PARAM",
        "harmful",
        lambda tree: tree.argument("skew_tick=1", "skew_tick=1 kthread_cpus=0,3"),
    ),
    Fault(
        "misspelt-parameter",
        "nohz_ful=4-5 besides the right one",
        "D-PARAM",
        "harmful",
        lambda tree: tree.argument("skew_tick=1", "skew_tick=1 nohz_ful=4-5"),
    ),
    Fault(
        "parameter-gone",
        "options kvm lapic_timer_advance_ns=1000 on 6.12",
        "D-MODULE-PARAM",
        "warning",
        lambda tree: tree.put("/etc/modprobe.d/kvm.conf", "options kvm lapic_timer_advance_ns=1000"),
        live=True,
    ),
    Fault(
        "given-twice",
        "skew_tick=0 skew_tick=1",
        "D-PARAM-TWICE",
        "warning",
        lambda tree: tree.argument("skew_tick=1", "skew_tick=0 skew_tick=1"),
    ),
    Fault(
        "pending-reboot",
        "the boot loader's entries changed, not yet booted",
        "D-BOOT-PENDING",
        "warning",
        _pending,
        live=True,
    ),
    Fault(
        "edited-menu-only",
        "arguments in grub.cfg, not in the files that it is made from",
        "D-BOOT-LOST",
        "warning",
        lambda tree: tree.remove("/etc/default/grub.d/zz-evenkeel.cfg"),
        live=True,
    ),
    Fault(
        "other-kernel-untuned",
        "the entry of the other installed kernel without nohz_full=",
        "D-BOOT-LOST",
        "warning",
        _untune_other_kernel,
        live=True,
    ),
    Fault(
        "errors-hidden",
        "mce=off",
        "D-ERRORS-HIDDEN",
        "warning",
        lambda tree: tree.argument("skew_tick=1", "skew_tick=1 mce=off"),
    ),
    # -- isolation -----------------------------------------------------------------------------------------------
    Fault(
        "sibling-shared",
        "CPUs 9-11 isolated, 8 not: 8 and 9 are one core",
        "D-ISO-CORE",
        "harmful",
        lambda tree: _isolate(tree, "9-11", "1ff"),
        base="smt",
    ),
    Fault(
        "irqaffinity-overlaps",
        "irqaffinity=0-5 with 4-5 isolated",
        "D-ISO-IRQ",
        "harmful",
        lambda tree: tree.argument("irqaffinity=0,3", "irqaffinity=0-5"),
    ),
    Fault("no-irqaffinity", "no irqaffinity=, the default mask is all CPUs", "D-ISO-IRQ", "warning", _no_irqaffinity),
    Fault(
        "boot-cpu-isolated",
        "nohz_full=0,4-5: the kernel drops 0",
        "D-ISO-TAKEN",
        "warning",
        lambda tree: tree.argument("nohz_full=4-5", "nohz_full=0,4-5"),
    ),
    Fault(
        "list-beyond",
        "nohz_full=4-9 on a host with 6 CPUs",
        "D-ISO-TAKEN",
        "note",
        lambda tree: tree.argument("nohz_full=4-5", "nohz_full=4-9"),
    ),
    Fault(
        "list-not-taken",
        "nohz_full=4-5, and the kernel's own list is empty",
        "D-ISO-TAKEN",
        "harmful",
        lambda tree: tree.change("/sys/devices/system/cpu/nohz_full", "  (null)"),
    ),
    Fault(
        "list-refused",
        "the log says that nohz_full and isolcpus must match",
        "D-ISO-TAKEN",
        "harmful",
        _log("isolation", "Housekeeping: nohz_full= must match isolcpus="),
    ),
    Fault(
        "node-all-isolated",
        "all CPUs of node 1 isolated",
        "D-ISO-NODE",
        "warning",
        _node_without_housekeeping,
        base="smt",
    ),
    Fault(
        "domain-and-partition",
        "isolcpus=domain,managed_irq,4-5 with cgroup partitions",
        "D-ISO-MIXED",
        "harmful",
        _mixed,
    ),
    Fault(
        "partition-invalid",
        "a sibling cgroup lists a CPU of the partition",
        "D-PARTITION",
        "harmful",
        lambda tree: tree.change(
            f"{SCOPE}/vcpu0/cpuset.cpus.partition", "isolated invalid (Cpu list in cpuset.cpus not exclusive)"
        ),
        live=True,
    ),
    Fault(
        "workqueues-everywhere",
        "the mask of unbound workqueues holds all CPUs",
        "D-WORKQUEUE",
        "warning",
        lambda tree: tree.change("/sys/devices/virtual/workqueue/cpumask", "3f"),
        live=True,
    ),
    # -- interrupts ----------------------------------------------------------------------------------------------
    Fault(
        "interrupt-on-isolated",
        "the interrupt of a NIC directed at CPU 5",
        "D-IRQ-ISOLATED",
        "harmful",
        _interrupt,
        live=True,
    ),
    Fault("queue-for-each-cpu", "a disk with as many queues as CPUs", "D-IRQ-MANAGED", "warning", _managed),
    # -- clock ---------------------------------------------------------------------------------------------------
    Fault(
        "slow-clock",
        "clock source hpet",
        "D-CLOCK",
        "harmful",
        lambda tree: tree.change("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
        live=True,
    ),
    Fault(
        "clock-unstable",
        "the log calls the TSC unstable",
        "D-CLOCK",
        "harmful",
        _log("clocksource", "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable"),
    ),
    # -- memory --------------------------------------------------------------------------------------------------
    Fault(
        "pages-short", "128 huge pages asked for, 100 there", "D-HUGE-SHORT", "harmful", lambda tree: tree.pages(1, 100)
    ),
    Fault(
        "pages-refused",
        "the log says that the allocation failed",
        "D-HUGE-SHORT",
        "harmful",
        _log("huge-pages", "HugeTLB: allocating 900 of page size 2.00 MiB failed node1.  Only allocated 554 pages."),
    ),
    Fault(
        "pages-on-other-node",
        "all huge pages on node 0, the guest takes them from node 1",
        "D-HUGE-NODE",
        "harmful",
        _pages_on_other_node,
    ),
    Fault(
        "node-starved",
        "all but 6 MiB of node 1 in huge pages",
        "D-NODE-MEMORY",
        "harmful",
        lambda tree: tree.pages(1, 700),
    ),
    Fault(
        "pages-merged",
        "KSM runs",
        "D-MEMORY-MOVES",
        "warning",
        lambda tree: tree.change("/sys/kernel/mm/ksm/run", "1"),
        live=True,
    ),
    # -- real-time scheduling ------------------------------------------------------------------------------------
    Fault(
        "vcpu-at-one",
        "the real-time vCPU at FIFO 1",
        "D-RT-ONE",
        "harmful",
        lambda tree: tree.thread("CPU 1/KVM", policy="fifo", priority=1, guest=True),
        live=True,
    ),
    Fault(
        "vcpu-defined-at-one",
        "<vcpusched priority='1'> of a guest that does not run",
        "D-RT-ONE",
        "harmful",
        lambda tree: _idle(tree, "priority='2'", "priority='1'"),
    ),
    Fault(
        "timers-below-vcpu",
        "ktimers/5 at FIFO 1 beside a vCPU at FIFO 2",
        "D-RT-INVERSION",
        "harmful",
        lambda tree: tree.thread("ktimers/5", policy="fifo", priority=1),
        live=True,
    ),
    Fault(
        "vcpu-above-kernel",
        "the real-time vCPU at FIFO 60",
        "D-RT-INVERSION",
        "harmful",
        lambda tree: tree.thread("CPU 1/KVM", policy="fifo", priority=60, guest=True),
    ),
    Fault(
        "throttle-misread",
        "sched_rt_runtime_us=-1 on 6.12 with the fair server on",
        "D-RT-THROTTLE",
        "warning",
        lambda tree: tree.change(f"{SYSCTL}/kernel/sched_rt_runtime_us", "-1"),
        live=True,
    ),
    Fault("throttle-off-before", "sched_rt_runtime_us=-1 on 6.1", "D-RT-THROTTLE", "warning", _old_kernel),
    Fault(
        "fair-server-off",
        "fair server off on the CPU of the real-time vCPU",
        "D-FAIR-OFF",
        "harmful",
        lambda tree: tree.change("/sys/kernel/debug/sched/fair_server/cpu5/runtime", "0"),
        live=True,
    ),
    Fault(
        "rcu-wrong-side", "rcu_nocbs=0-7 with 8-11 isolated", "D-RCU-SIDE", "harmful", _rcu_on_housekeeping, base="smt"
    ),
    Fault(
        "rcu-not-offloaded",
        "a FIFO vCPU on a CPU without nohz_full and rcu_nocbs",
        "D-RCU-STALL",
        "warning",
        _not_offloaded,
    ),
    Fault(
        "rcu-stalled",
        "the log tells of an RCU stall",
        "D-RCU-STALL",
        "harmful",
        _log("rcu-stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ),
    # -- guests --------------------------------------------------------------------------------------------------
    Fault(
        "vcpus-stacked",
        "both vCPUs pinned to CPU 5",
        "D-VCPU-STACKED",
        "harmful",
        lambda tree: tree.thread("CPU 0/KVM", cpus="5", guest=True),
        live=True,
    ),
    Fault(
        "vcpus-not-balanced",
        "both vCPUs allowed on the isolated CPUs 4-5",
        "D-VCPU-STACKED",
        "harmful",
        _share_two_cpus,
    ),
    Fault(
        "emulator-on-vcpu",
        "the emulator allowed on the CPU of the real-time vCPU",
        "D-EMULATOR",
        "harmful",
        lambda tree: tree.thread("qemu-system-x86", cpus="5", guest=True),
        live=True,
    ),
    Fault(
        "emulator-defined-on-vcpu",
        "<emulatorpin cpuset='5'> of a guest that does not run",
        "D-EMULATOR",
        "harmful",
        lambda tree: _idle(tree, "<emulatorpin cpuset='3'/>", "<emulatorpin cpuset='5'/>"),
    ),
    Fault(
        "pit-floats",
        "kvm-pit allowed on all CPUs",
        "D-EMULATOR",
        "warning",
        lambda tree: tree.start(900, "kvm-pit/558", flags=KERNEL_THREAD),
    ),
    Fault(
        "emulator-outside-slice",
        "<emulatorpin> to a CPU that machine.slice does not have",
        "D-PIN-SLICE",
        "harmful",
        lambda tree: tree.put(f"{GROUP}/machine.slice/cpuset.cpus", "0-2,4-5"),
    ),
    # -- definitions ---------------------------------------------------------------------------------------------
    Fault(
        "vcpusched-beyond",
        "<vcpusched vcpus='0-2'> of a guest with 2 vCPUs",
        "D-XML-REFUSED",
        "harmful",
        lambda tree: tree.swap(ETC_GUEST, "<vcpusched vcpus='1'", "<vcpusched vcpus='0-2'"),
    ),
    Fault(
        "page-of-no-cell",
        "<page nodeset='1'> meant as host node, the guest has cell 0",
        "D-XML-REFUSED",
        "harmful",
        lambda tree: tree.swap(
            ETC_GUEST, "<page size='2048' unit='KiB'/>", "<page size='2048' unit='KiB' nodeset='1'/>"
        ),
    ),
    Fault(
        "no-such-cell",
        "<memnode cellid='1'> of a guest with cell 0",
        "D-XML-REFUSED",
        "harmful",
        lambda tree: tree.swap(ETC_GUEST, "<memnode cellid='0'", "<memnode cellid='1'"),
    ),
    Fault(
        "no-xml",
        "a definition that was cut off",
        "D-XML-REFUSED",
        "harmful",
        lambda tree: tree.swap(ETC_GUEST, "</devices>", ""),
    ),
    Fault(
        "page-of-one-cell",
        "<page nodeset='1'> of a guest with cells 0 and 1",
        "D-XML-MEANS",
        "harmful",
        _page_of_one_cell,
    ),
    Fault(
        "pin-to-nowhere",
        "<vcpupin cpuset='9'> on a host with 6 CPUs",
        "D-XML-START",
        "harmful",
        lambda tree: tree.swap(ETC_GUEST, "<vcpupin vcpu='0' cpuset='4'/>", "<vcpupin vcpu='0' cpuset='9'/>"),
    ),
    Fault("memory-far", "vCPUs on node 1, <memory mode='preferred' nodeset='0'>", "D-XML-NODE", "harmful", _memory_far),
    Fault(
        "memory-of-two-cells",
        "a guest with a cell on each node, and no <memnode>",
        "D-XML-NODE",
        "warning",
        lambda tree: two_nodes(tree, bound=False),
    ),
    Fault(
        "two-nodes-one-cell",
        "vCPUs pinned to CPUs of two nodes, in one <cell>",
        "D-XML-CELLS",
        "warning",
        lambda tree: tree.swap(ETC_GUEST, "<vcpupin vcpu='0' cpuset='4'/>", "<vcpupin vcpu='0' cpuset='2'/>"),
    ),
    Fault(
        "other-distances",
        "cells at a distance of 40 on nodes at 21",
        "D-XML-CELLS",
        "note",
        lambda tree: two_nodes(tree, far=40),
    ),
    # -- owners --------------------------------------------------------------------------------------------------
    Fault("two-power-daemons", "power-profiles-daemon and auto-cpufreq run", "D-OWNERS", "harmful", _power_daemons),
    Fault(
        "numad-runs",
        "numad beside pinned guests",
        "D-OWNERS",
        "harmful",
        lambda tree: tree.start(900, "numad"),
        live=True,
    ),
    Fault(
        "tuned-runs",
        "TuneD on a host that Evenkeel set up",
        "D-OWNERS",
        "harmful",
        lambda tree: tree.start(900, "tuned"),
        live=True,
    ),
    Fault(
        "irqbalance-open",
        "irqbalance with a ban list that lacks the isolated CPUs",
        "D-IRQBALANCE",
        "warning",
        _irqbalance,
    ),
    Fault(
        "two-sysctl-files", "two files in sysctl.d with two values", "D-SYSCTL", "warning", _two_sysctl_files, live=True
    ),
)
