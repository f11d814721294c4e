"""Evidence: histograms and counters with the conditions under which they were taken.

A latency taken where ``conditions.emulated`` is true says nothing about latency; :data:`EMULATION_NOTE` must stand
wherever such a number is shown.  Counts of what ran where are exact in emulation too.

Version 2 knows log-linear histograms, what the load really did, who held /dev/cpu_dma_latency, and verdicts.  Version 3
knows when in a run samples were late, who held that device in guests, and what a network load really sent.  Versions 1
and 2 are still read; what they do not say is None, and proves less.
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from evenkeel.documents.base import Document, Model
from evenkeel.documents.course import Course
from evenkeel.documents.cpuset import CpuSet
from evenkeel.documents.histogram import Histogram

EMULATION_NOTE = "taken in emulation, says nothing about latency"


class Conditions(Model):
    """What a measurement is bound to."""

    kernel: str  # release and build line
    preempt_rt: bool
    command_line: str
    firmware: str | None = None
    cpu_model: str | None = None
    hypervisor: str | None = None
    qemu: str | None = None
    libvirt: str | None = None
    emulated: bool | None = None
    clocksource: str | None = None
    plan_sha256: str | None = None
    facts_sha256: str | None = None
    #: What ran beside it: "idle", "hackbench on 0-1,6-7".
    load: str = "idle"
    #: Programs other than ours that held /dev/cpu_dma_latency open: "tuned (pid 812)".  None: not known.
    dma_latency_holders: tuple[str, ...] | None = None
    #: The same in each guest that was measured, by its name; one that cannot be known is left out.  None: not known.
    guest_dma_latency_holders: dict[str, tuple[str, ...]] | None = None


class LoadRun(Model):
    """What one kind of load really did beside a measurement, read back from the kernel while it ran."""

    kind: str  # "cpu", "io", "net", "irq", "hackbench"
    cpus: CpuSet | None = None  # where it should run; None: wherever the scheduler puts it
    seen: CpuSet = frozenset()  # where its processes ran, by /proc/PID/stat
    processes: int
    operations: int | None = None  # pieces of work done; None: the tool does not count
    cpu_seconds: float
    seconds: float
    packets: int | None = None  # of kind net: that came in over its pair of network interfaces
    softirqs: CpuSet | None = None  # of kind net: where soft interrupts of received packets ran meanwhile, anybody's
    trouble: str = ""  # why it was not the load that was asked for; empty: it was


class Latency(Model):
    """One run of a latency tool on one CPU or vCPU."""

    tool: str  # "cyclictest"
    tool_version: str | None = None
    argv: tuple[str, ...]
    where: Literal["host", "guest"]
    guest: str | None = None
    cpus: CpuSet  # host CPUs, or vCPUs of the guest
    interval_ns: int
    samples: int
    lost: int | None = None  # events that were dropped before they were counted; None: not known
    expected: int | None = None  # periods in the run; those that passed while a sample was late are no samples
    min_ns: int
    avg_ns: int
    max_ns: int
    histogram: Histogram
    course: Course | None = None  # when in the run they were; None: the tool does not tell
    loads: tuple[LoadRun, ...] = ()  # empty: the host was left idle
    label: str = ""  # EMULATION_NOTE where it applies


class Spin(Model):
    """One pinned spinner on one CPU for ``seconds``: what disturbed it.  Exact in emulation.

    Counters are differences over the run.  ``timer_interrupts`` is the LOC row of /proc/interrupts for that CPU.
    """

    where: Literal["host", "guest"]
    guest: str | None = None
    cpu: int  # host CPU
    seconds: float
    load: str = "idle"
    timer_interrupts: int
    device_interrupts: dict[str, int] = {}  # action -> count on that CPU, zero rows left out
    other_interrupts: dict[str, int] = {}  # RES, CAL, TLB, IWI ... rows, zero rows left out
    involuntary_switches: int
    guest_switches: int = 0  # so many of these by the guest whose CPU it is, each time that its vCPU woke up
    voluntary_switches: int
    cpu_seconds: float  # CPU time that the spinner got in watched_seconds
    watched_seconds: float | None = None  # a little over seconds: reading the interrupts under load takes its time
    policy: str = "other"

    @property
    def foreign_switches(self) -> int:
        """Involuntary switches but those by the guest whose CPU it is: the plan gives it that CPU."""
        return self.involuntary_switches - self.guest_switches


class Deadline(Model):
    """What can be said about the latency goal of one guest.  Made by :mod:`evenkeel.measure.verdict` and nowhere else.

    ``misses`` of ``samples``: at least so many samples of all vCPUs were later than ``wanted_ns``.  ``rate_bound``: by
    this share of late samples at most, at 95 % confidence; of the vCPU of which least is known.
    """

    host: str
    guest: str
    wanted_ns: int
    state: Literal["met", "missed", "not provable", "not measured"]
    why: str
    arithmetic: str = ""
    max_ns: int | None = None
    samples: int | None = None
    misses: int | None = None
    rate_bound: float | None = None


class Evidence(Document):
    kind: Literal["Evidence"] = "Evidence"
    version: Literal[1, 2, 3] = 3
    host: str
    moment: Literal["before", "after"]
    conditions: Conditions
    latencies: tuple[Latency, ...] = ()
    spins: tuple[Spin, ...] = ()
    #: As it was judged when it was taken.  A report judges anew, since it knows more.
    deadlines: tuple[Deadline, ...] = ()

    @field_validator("version")
    @classmethod
    def _is_now(cls, version: Literal[1, 2, 3]) -> Literal[1, 2, 3]:
        """Older versions have nothing that this one lacks: once read, they are of this version."""
        return 3
