"""Facts: what a machine is, and how it is set now.  One document a host, read-only, made by the probe.

The probe (standard library only) prints exactly this structure; :class:`Facts` checks it.  No time stamp, process id
or counter is part of it, so that the same machine in the same state gives the same bytes.
Sizes are bytes, distances are the kernel's (local = 10), an absent number is None.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evenkeel.documents.base import Document, Model, digest
from evenkeel.documents.cpuset import MAX_CPU, CpuSet


class Identity(Model):
    """Who this machine is.  Source: /sys/class/dmi/id, /proc/device-tree, /etc/os-release, uname(2)."""

    hostname: str | None = None
    architecture: str  # as uname -m prints it: x86_64, aarch64, ppc64le
    system_vendor: str | None = None
    product: str | None = None
    board: str | None = None
    firmware_vendor: str | None = None
    firmware_version: str | None = None
    firmware_date: str | None = None
    os_release: str | None = None  # PRETTY_NAME
    #: "none", "kvm", "qemu" (software emulation), "vmware" ...; None when it cannot be known (a recorded tree).
    hypervisor: str | None = None
    #: True when the CPUs are emulated in software, so that no latency taken here means anything.
    emulated: bool | None = None


class Kernel(Model):
    """The running kernel.  ``config`` holds only the options that rules ask about (value y, m, n or a string)."""

    release: str
    version: str = ""  # the build line: uname -v
    preempt_rt: bool = False
    command_line: str = ""
    config: dict[str, str] = {}
    #: Parameters that this kernel did not know (dmesg "Unknown kernel command line parameters").
    unknown_parameters: tuple[str, ...] = ()
    #: Releases under /boot or /lib/modules, sorted.
    installed: tuple[str, ...] = ()
    #: "grub", "bls", "systemd-boot" or None.
    boot_loader: str | None = None


class Cpu(Model):
    """One logical CPU (SMT thread).  Absent topology numbers are None, as on an offline CPU."""

    id: int = Field(ge=0, le=MAX_CPU)
    online: bool = True
    package: int | None = None
    die: int | None = None
    cluster: int | None = None
    core: int | None = None  # core_id: unique within its package (and die) only
    node: int | None = None
    #: All threads of the core, itself included.  On AMD family 15h (Bulldozer) the two cores of a module, as the kernel
    #: has it: they share the front end and the FPU.
    siblings: CpuSet = frozenset()
    #: hybrid core type: "performance", "efficiency", "low-power" (cpu_core, cpu_atom, cpu_lowpower), or the name of the
    #: microarchitecture (MIDR); None: all CPUs are alike
    kind: str | None = None
    capacity: int | None = None  # cpu_capacity, 0..1024
    max_khz: int | None = None
    base_khz: int | None = None  # guaranteed; cores differ with Intel SST-BF, and on hybrid CPUs
    model: str | None = None


class Cache(Model):
    level: int
    type: Literal["data", "instruction", "unified"]
    size_bytes: int | None = None
    line_bytes: int | None = None
    ways: int | None = None
    cpus: CpuSet
    id: int | None = None  # the number that resctrl calls it by; unique within its level and type


class DividedCache(Model):
    """One cache resource of resctrl: L3, or L3CODE and L3DATA with code and data prioritisation (CDP); L2 likewise.

    Masks are hexadecimal, one bit a share of the ways, as the kernel prints them.
    """

    name: str
    closids: int  # classes of service, the default group included
    mask: str
    least_bits: int = 1  # the fewest bits that a mask may have
    shareable: str = "0"  # bits that devices use too


class DividedBandwidth(Model):
    """Memory bandwidth control of resctrl, in percent."""

    closids: int
    least_percent: int | None = None
    step_percent: int | None = None


class ResctrlGroup(Model):
    """A control group.  ``name`` empty: the default group, to which everything belongs that nobody moved."""

    name: str
    mode: str | None = None  # shareable, exclusive, pseudo-locked; None before Linux 4.19
    cpus: CpuSet = frozenset()
    schemata: dict[str, dict[int, str]] = {}  # resource -> cache id -> value


class Resctrl(Model):
    """How the shared caches can be divided, and are.  Source: /sys/fs/resctrl."""

    mounted: bool
    caches: tuple[DividedCache, ...] = ()
    bandwidth: DividedBandwidth | None = None
    groups: tuple[ResctrlGroup, ...] = ()


class HugePages(Model):
    page_bytes: int
    total: int
    free: int | None = None


class Node(Model):
    """A NUMA node.  ``cpus`` empty: a CPU-less node (memory expander).  ``memory_bytes`` 0: a memory-less node."""

    id: int
    cpus: CpuSet
    memory_bytes: int
    distances: dict[int, int] = {}  # node id -> distance
    huge_pages: tuple[HugePages, ...] = ()


class PciFunction(Model):
    """Source: /sys/bus/pci/devices/ADDRESS."""

    address: str  # 0000:3b:00.0
    class_code: str  # six hexadecimal digits: 020000
    vendor: str  # four hexadecimal digits
    device: str
    node: int | None = None
    local_cpus: CpuSet = frozenset()
    driver: str | None = None
    iommu_group: int | None = None
    sriov_total_vfs: int | None = None
    sriov_vfs: int | None = None
    physical_function: str | None = None  # address of the PF, for a VF
    reset_methods: tuple[str, ...] = ()


class Channels(Model):
    """Queues of an interface as its driver counts them (ethtool -l).  ``combined``: one for both directions."""

    combined: int = 0
    rx: int = 0
    tx: int = 0
    most_combined: int = 0
    most_rx: int = 0
    most_tx: int = 0


class Nic(Model):
    name: str
    pci: str | None = None  # None: virtual (bridge, veth), or not on PCI
    driver: str | None = None
    node: int | None = None
    mac: str | None = None
    rx_queues: int = 0
    tx_queues: int = 0
    operstate: str | None = None
    interrupts: tuple[str, ...] = ()  # actions, as in Interrupt.action
    channels: Channels | None = None  # None: the driver has no such thing, or it was not recorded
    ptp_clock: int | None = None  # N of /dev/ptpN


class BlockDevice(Model):
    name: str
    pci: str | None = None
    driver: str | None = None
    node: int | None = None
    queues: int = 0
    size_bytes: int | None = None
    rotational: bool | None = None
    interrupts: tuple[str, ...] = ()


class Interrupt(Model):
    """A numbered device interrupt.  Source: /proc/irq/N, /sys/kernel/irq/N.

    ``managed``: the kernel owns the affinity and refuses a write (EPERM since 6.12, EIO before); so do the few that
    nobody can move, the timer of IRQ 0 for one.  None: it cannot be known without writing.
    """

    number: int
    action: str  # nvme0q1, virtio0-input.0, eth0-rx-1; "" where no handler is installed
    chip: str | None = None
    affinity: CpuSet = frozenset()
    effective: CpuSet = frozenset()
    managed: bool | None = None


class Idle(Model):
    driver: str | None = None
    governor: str | None = None
    states: tuple[str, ...] = ()


class Frequency(Model):
    driver: str | None = None
    governors: tuple[str, ...] = ()  # those in use, sorted
    boost: bool | None = None


class Partition(Model):
    """A cgroup v2 cpuset partition or a cgroup that claims exclusive CPUs."""

    path: str  # below the cgroup root: /machine.slice/...
    cpus: CpuSet = frozenset()
    exclusive: CpuSet = frozenset()
    effective: CpuSet = frozenset()
    state: str = "member"  # as cpuset.cpus.partition prints it, e.g. "isolated invalid (...)"


class KernelThread(Model):
    """A kernel thread that is not a kworker.  ``policy``: other, fifo, rr, batch, idle, deadline."""

    name: str
    policy: str
    priority: int  # real-time priority 1..99; 0 for the others
    cpus: CpuSet


class Cpuset(Model):
    """A slice whose CPUs somebody restricted.  ``effective``: what is left of ``cpus`` for what runs in it."""

    path: str  # below the cgroup root: /machine.slice
    cpus: CpuSet
    effective: CpuSet = frozenset()


class GuestThread(Model):
    """A thread of QEMU, or a kernel thread that QEMU started and that is part of its process."""

    name: str  # "CPU 0/KVM" is a vCPU; the main thread has the name of the program
    policy: str  # as KernelThread.policy
    priority: int
    cpus: CpuSet


class RunningGuest(Model):
    """A QEMU process.  Threads that come and go with the work are left out, and of several alike there is one."""

    name: str  # of QEMU's -name; "" where it has none
    threads: tuple[GuestThread, ...]


class Definition(Model):
    """A domain definition of libvirt, without passwords.  ``running``: of a guest that runs, as it was started."""

    guest: str
    path: str
    running: bool
    xml: str


class BootEntry(Model):
    """What the boot loader offers to start.  ``kernel``: a release, "" where it cannot be told."""

    path: str
    title: str
    kernel: str
    arguments: str


class KernelLog(Model):
    """The first line of each kind that the doctor asks about (rcu-stall, lockup, huge-pages, clocksource ...)."""

    complete: bool  # whether the beginning of the log is still there
    lines: dict[str, str] = {}


class Daemon(Model):
    """A program of the host that must not wait: clock synchronisation, virtual switch, cluster."""

    name: str  # of the process: ptp4l
    unit: str | None = None  # of systemd; None: it was started another way
    policy: str  # as KernelThread.policy
    priority: int
    cpus: CpuSet
    kept: str | None = None  # for which place Evenkeel wrote a drop-in of the unit


class TuningOwner(Model):
    """Something else on this machine that sets what we would set: TuneD, irqbalance, sysctl.d, numad, ..."""

    name: str
    active: bool
    evidence: str  # a file and what it says


class Facts(Document):
    """What a machine is, and how it is set now."""

    kind: Literal["Facts"] = "Facts"
    version: Literal[1] = 1
    identity: Identity
    kernel: Kernel
    cpus: tuple[Cpu, ...]  # sorted by id; every present CPU, offline ones too
    possible: CpuSet = frozenset()
    isolated: CpuSet = frozenset()
    nohz_full: CpuSet = frozenset()
    smt: str | None = None  # smt/control: on, off, forceoff, notsupported
    caches: tuple[Cache, ...] = ()
    resctrl: Resctrl | None = None  # None: this CPU or kernel cannot divide its caches
    nodes: tuple[Node, ...] = ()
    memory_bytes: int = 0
    huge_pages: tuple[HugePages, ...] = ()  # whole machine
    pci: tuple[PciFunction, ...] = ()
    nics: tuple[Nic, ...] = ()
    blocks: tuple[BlockDevice, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()
    clocksource: str | None = None
    clocksources: tuple[str, ...] = ()
    #: What the kernel's flags say of the TSC: constant_tsc, nonstop_tsc, tsc_adjust ...; None: not known.
    tsc_flags: tuple[str, ...] | None = None
    idle: Idle = Idle()
    frequency: Frequency = Frequency()
    #: Intel Speed Select: base-freq, turbo-freq, core-power -> enabled, disabled, unsupported; None: not known.
    speed_select: dict[str, str] | None = None
    vulnerabilities: dict[str, str] = {}
    kvm_usable: bool | None = None  # /dev/kvm is there and a kvm_intel/kvm_amd (or built-in) is loaded
    kvm_parameters: dict[str, dict[str, str]] = {}  # module -> parameter -> value
    cgroup_version: int | None = None
    partitions: tuple[Partition, ...] = ()
    cpusets: tuple[Cpuset, ...] = ()
    kernel_threads: tuple[KernelThread, ...] = ()
    daemons: tuple[Daemon, ...] = ()
    guests: tuple[RunningGuest, ...] = ()
    definitions: tuple[Definition, ...] = ()
    boot_entries: tuple[BootEntry, ...] = ()
    kernel_log: KernelLog | None = None  # None: it cannot be read
    owners: tuple[TuningOwner, ...] = ()
    #: Services that ask firmware and devices by themselves (smartd, fwupd-refresh.timer) -> a file and what it says.
    services: dict[str, str] = {}
    #: Versions of the programs that a plan needs: "libvirt", "qemu", "python", "systemd"; absent = not installed.
    programs: dict[str, str] = {}
    #: Path -> content (trailing newline removed) of every file that a rule may want to set: sysctls, masks, boot
    #: loader defaults.  A path that is missing does not exist on this machine.
    settings: dict[str, str] = {}
    #: What the machine says of itself that cannot be true, and what was made of it (firmware that puts a CPU into two
    #: NUMA nodes), one sentence each.
    remarks: tuple[str, ...] = ()
    #: Path -> errno name, for files that exist and could not be read.
    unreadable: dict[str, str] = {}

    @property
    def online(self) -> frozenset[int]:
        return frozenset(cpu.id for cpu in self.cpus if cpu.online)

    def cpu(self, number: int) -> Cpu:
        return next(cpu for cpu in self.cpus if cpu.id == number)

    def node(self, number: int) -> Node:
        return next(node for node in self.nodes if node.id == number)

    def fingerprint(self) -> dict[str, str]:
        """Digest of each part that our own changes do not alter: a plan is good for these facts only.

        What we set (command line, masks, huge pages, affinities) is left out: each setting in a plan carries the
        value that it expects to find, and is refused by itself when it finds another.
        """
        parts = {
            "machine": self.identity.model_dump(mode="json", exclude={"hostname"}),
            "kernel": {"release": self.kernel.release, "version": self.kernel.version},
            "cpus": [cpu.model_dump(mode="json", exclude={"max_khz", "base_khz"}) for cpu in self.cpus],
            "caches": [cache.model_dump(mode="json", exclude={"id"}) for cache in self.caches],
            "memory": [{"id": node.id, "cpus": sorted(node.cpus), "distances": node.distances} for node in self.nodes],
            "devices": [
                pci.model_dump(mode="json", include={"address", "vendor", "device", "node"}) for pci in self.pci
            ],
        }
        return {name: digest(part) for name, part in parts.items()}
