"""Evidence: histograms and counters with the conditions under which they were taken.

A latency taken where ``conditions.emulated`` is true says nothing about latency; :data:`EMULATION_NOTE` must stand
wherever such a number is shown.  Counts of what ran where are exact in emulation too.
"""

from __future__ import annotations

from typing import Literal

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet

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


class Histogram(Model):
    """Samples in buckets of ``bucket_ns``; keys are the lower edge in units of ``bucket_ns``."""

    bucket_ns: int = 1000
    counts: dict[int, int]
    overflows: int = 0  # samples beyond the last bucket

    @property
    def samples(self) -> int:
        return sum(self.counts.values()) + self.overflows


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
    lost: int | None = None
    min_ns: int
    avg_ns: int
    max_ns: int
    histogram: Histogram
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
    voluntary_switches: int
    cpu_seconds: float  # CPU time that the spinner got in watched_seconds
    watched_seconds: float | None = None  # a little over seconds: reading the interrupts under load takes its time
    policy: str = "other"


class Evidence(Document):
    kind: Literal["Evidence"] = "Evidence"
    version: Literal[1] = 1
    host: str
    moment: Literal["before", "after"]
    conditions: Conditions
    latencies: tuple[Latency, ...] = ()
    spins: tuple[Spin, ...] = ()
