"""Plan: for each host the CPU ledger and the ordered settings with their reasons; for each guest its placement.

Computed by pure functions from Site + Facts.  The engine that applies it knows only :data:`Target` and the values,
never why; a person reads the rest.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet, parse_cpus, parse_mask
from evenkeel.documents.site import GoalLevel, Trust

Disturbance = Literal["live", "drain", "reboot"]


class Phase(StrEnum):
    """When a setting is written.  The order of the members is the order of applying (reference: host tuning, §3)."""

    BOOT = "boot"  # kernel command line; takes effect at the reboot that follows
    MEMORY = "memory"  # huge pages, KSM, compaction
    INTERRUPTS = "interrupts"  # irqbalance first, then affinities
    WORKQUEUES = "workqueues"
    KERNEL = "kernel"  # timers, statistics, watchdogs
    THREADS = "threads"  # priorities of kernel threads
    GUEST = "guest"  # definition, start (paused), partition, priorities, resume
    THROTTLE = "throttle"  # real-time throttling and fair server: last of all


class Ledger(Model):
    """Who owns which CPU of a host.  Disjoint and complete over the online CPUs; whole cores.

    ``realtime`` holds the CPUs that vCPUs of performance and realtime guests run on, ``idle`` the SMT siblings that
    stay empty beside them, ``data_plane`` cores that poll network cards.  ``emulator`` is not a set of its own:
    emulator and I/O threads of a guest run on the housekeeping CPUs of its nodes.
    """

    housekeeping: CpuSet
    data_plane: CpuSet = frozenset()
    realtime: CpuSet = frozenset()
    idle: CpuSet = frozenset()
    shared: CpuSet = frozenset()
    why: tuple[str, ...] = ()  # one sentence for each decision

    @property
    def isolated(self) -> frozenset[int]:
        """CPUs that nothing of the host may use."""
        return self.data_plane | self.realtime | self.idle


class FileValue(Model):
    """A file of procfs, sysfs, debugfs or cgroupfs.  ``compare``: how a value read back equals the wanted one.

    ``choice``: the file prints every word it knows with the one in force in brackets, ``always [madvise] never``.
    ``words``: the file separates by tabs what is written with blanks, as kernel/printk does.
    ``schemata``: lines ``L3:0=7ff;1=7ff`` of resctrl, of which those that are wanted must be there.
    :meth:`matches` is the only comparison in the product: planner, engine and verifier ask it.
    """

    type: Literal["file"] = "file"
    path: str
    compare: Literal["text", "integer", "cpulist", "cpumask", "choice", "schemata", "words"] = "text"

    def matches(self, read: str | None, wanted: str | None) -> bool:
        """Whether the text ``read`` from the file means the value ``wanted``.  None: there is no such file or value.

        A text that does not parse is no match, never an error: nohz_full reads `` (null)`` when it is unset.
        """
        if read is None or wanted is None:
            return read is wanted
        try:
            match self.compare:
                case "integer":
                    return int(read, 0) == int(wanted, 0)
                case "cpulist":
                    return parse_cpus("" if read.strip() == "(null)" else read) == parse_cpus(wanted)
                case "cpumask":
                    return parse_mask(read) == parse_mask(wanted)
                case "choice":
                    return f"[{wanted}]" in read.split() or read.strip() == wanted
                case "words":
                    return read.split() == wanted.split()
                case "schemata":
                    masks = _schemata(wanted)
                    return bool(masks) and masks.items() <= _schemata(read).items()
        except ValueError:
            return False
        return read.strip() == wanted.strip()


def _schemata(text: str) -> dict[tuple[str, int], int]:
    """(resource, cache) -> value.  Raises ValueError for a text of another form."""
    found: dict[tuple[str, int], int] = {}
    for line in text.strip().splitlines():
        resource, _, values = line.strip().partition(":")
        for part in values.split(";"):
            domain, _, value = part.partition("=")
            found[resource, int(domain)] = int(value, 16)
    return found


class BootArgument(Model):
    """One argument of the kernel command line: ``key=value``; an empty value means the bare flag ``key``.

    Identity is the pair (``after``, ``key``).  ``after``: the argument that stands directly before it and gives it its
    meaning; the pair is written and removed as one.  Only huge pages need it, since ``hugepages=`` counts pages of
    the ``hugepagesz=`` before it: key ``hugepages``, after ``hugepagesz=2M``, value ``0:64,1:256``.
    :func:`evenkeel.plan.order.command_line` merges a host's boot settings into an existing command line.
    """

    type: Literal["boot"] = "boot"
    key: str
    after: str | None = None
    #: The file that shows that it took effect, and how to compare it; None: /proc/cmdline only.
    effective: FileValue | None = None
    #: What that file must show; None: the value of the argument itself (isolcpus has flags before its list,
    #: irqaffinity takes a list and shows a mask).
    effective_value: str | None = None


class InterruptAffinity(Model):
    """All numbered interrupts with this action (numbers may change at a reboot, actions do not)."""

    type: Literal["interrupt"] = "interrupt"
    action: str


class ThreadSchedule(Model):
    """Kernel threads by name; the value is ``policy:priority``, as in ``fifo:11``."""

    type: Literal["thread"] = "thread"
    name: str


class UnitState(Model):
    """A systemd unit; the value is ``stopped`` (stopped and masked until reboot-safe undo) or ``running``."""

    type: Literal["unit"] = "unit"
    unit: str


class NicChannels(Model):
    """Queues of a network interface; the value is ``combined=4``, or ``rx=2 tx=2`` where the driver counts them apart.

    Drivers reset the device for it: the link goes down for a moment, and its interrupts are made anew.
    """

    type: Literal["channels"] = "channels"
    nic: str


class ServicePlacement(Model):
    """A service of the host: the value is its CPUs and, where one is wanted, its schedule: ``0-1 fifo:10``.

    A drop-in tells systemd for the next start, and the threads that run are moved; nothing is restarted.
    """

    type: Literal["service"] = "service"
    unit: str
    process: str  # name of the process whose threads are meant


class GuestDefinition(Model):
    """The domain definition of a guest.  Its libvirt XML is GuestPlan.xml; the value is the SHA-256 of that text
    (UTF-8), 64 hexadecimal digits.  Facts do not know definitions, so ``old`` is always None and the status "change":
    the engine compares with what it defined last.
    """

    type: Literal["guest"] = "guest"
    guest: str


class GuestPartition(Model):
    """A remote cgroup v2 partition over the cgroup of one vCPU thread; the value is the list of exclusive CPUs.

    The list holds the vCPU's CPU and the empty SMT siblings of its core, so that nothing of the host lands beside it;
    the thread itself stays on the one CPU of its ``vcpupin`` (a partition keeps a narrower user affinity).
    """

    type: Literal["partition"] = "partition"
    guest: str
    vcpu: int


class GuestThread(Model):
    """Schedule of one thread of a guest: ``vcpu N``; the value is ``policy:priority``."""

    type: Literal["guest_thread"] = "guest_thread"
    guest: str
    vcpu: int


Target = Annotated[
    FileValue
    | BootArgument
    | InterruptAffinity
    | ThreadSchedule
    | UnitState
    | NicChannels
    | ServicePlacement
    | GuestDefinition
    | GuestPartition
    | GuestThread,
    Field(discriminator="type"),
]


class Setting(Model):
    """One value, with the rule, the inputs, the source and the risk."""

    id: str = Field(description="RULE or RULE:what; unique in the plan of a host", examples=["R-WQ-2"])
    rule: str = Field(description="id in the catalogue of rules", examples=["R-WQ-2"])
    title: str
    target: Target
    old: str | None = Field(description="value in the facts that the plan was made from; None: not set or absent")
    new: str | None = Field(description="value wanted; None: remove it")
    #: "change": to be written; "satisfied": already so; "absent": this kernel lacks the file on purpose, which counts
    #: as satisfied.
    status: Literal["change", "satisfied", "absent"]
    phase: Phase
    disturbance: Disturbance
    reason: str
    inputs: dict[str, str] = {}
    verification: str
    risk: str
    source: str


class VcpuPlan(Model):
    index: int
    cpus: CpuSet  # one CPU for performance and realtime
    policy: Literal["other", "fifo"] = "other"
    priority: int = 0


class CellPlan(Model):
    """What a guest of several NUMA nodes has on one of them; its number is its place in ``GuestPlan.cells``."""

    node: int
    vcpus: CpuSet  # numbers of its vCPUs, not of host CPUs
    memory_bytes: int
    pages: int


class GuestPlan(Model):
    """Placement and definition of one guest.  ``node``: of a guest on one node; one on several has ``cells``.

    ``idle``: CPUs beside those of its vCPUs that stay empty; ``cores``: whole ones, of which it has every thread.
    """

    name: str
    owner: str | None = Field(default=None, description="to whom it is accounted")
    goal: GoalLevel
    trust: Trust
    latency_ns: int | None = None
    node: int | None = None  # None: floats over the shared CPUs, or has cells
    cells: tuple[CellPlan, ...] = ()
    vcpus: tuple[VcpuPlan, ...]
    idle: CpuSet = frozenset()
    cores: int = 0
    emulator_cpus: CpuSet
    memory_bytes: int
    page_bytes: int | None = None  # None: ordinary pages
    pages: int = 0
    functions: tuple[str, ...] = Field(default=(), description="addresses of its PCI functions, whole IOMMU groups")
    guest_arguments: str = ""  # what Evenkeel adds to the guest's own kernel command line
    cloud_config: str = ""  # user data for cloud-init in the guest, for its owner to use; "": nothing to do inside
    xml: str
    why: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """Host nodes that it is on, in the order of its cells; empty where it floats or the host has no nodes."""
        return tuple(cell.node for cell in self.cells) or (() if self.node is None else (self.node,))

    @property
    def pages_on(self) -> dict[int, int]:
        """Host node -> huge pages that it takes there; 0 stands for a host without nodes."""
        if not self.page_bytes:
            return {}
        return {cell.node: cell.pages for cell in self.cells} or {self.node or 0: self.pages}

    @property
    def realtime_vcpus(self) -> tuple[int, ...]:
        """vCPUs at real-time priority; all vCPUs where there is none.  These must keep the guest's deadline."""
        urgent = tuple(vcpu.index for vcpu in self.vcpus if vcpu.policy == "fifo")
        return urgent or tuple(vcpu.index for vcpu in self.vcpus)


class Note(Model):
    """Something that the plan cannot set and the reader must know; verification may count it."""

    rule: str = Field(description="id in the catalogue of rules", examples=["R-IRQ-2"])
    text: str


class DataPlanePlan(Model):
    """For the owner of the process that polls, who starts it himself.

    ``polling``: of ``Ledger.data_plane``, the rest of which are their siblings and stay empty.  ``options``: of Open
    vSwitch, as ovs-vsctl takes them.
    """

    polling: CpuSet
    options: dict[str, str]


class HostPlan(Model):
    name: str
    address: str
    fingerprint: dict[str, str] = Field(description="Facts.fingerprint() of the facts that it was made from")
    facts_sha256: str
    kernel_release: str
    preempt_rt: bool
    ledger: Ledger
    settings: tuple[Setting, ...]  # in the order of applying
    guests: tuple[GuestPlan, ...] = ()
    data_plane: DataPlanePlan | None = None
    notes: tuple[Note, ...] = ()

    def setting(self, identifier: str) -> Setting | None:
        return next((setting for setting in self.settings if setting.id == identifier), None)

    @property
    def changes(self) -> tuple[Setting, ...]:
        return tuple(setting for setting in self.settings if setting.status == "change")


class Plan(Document):
    kind: Literal["Plan"] = "Plan"
    version: Literal[1] = 1
    site_sha256: str
    hosts: tuple[HostPlan, ...]
