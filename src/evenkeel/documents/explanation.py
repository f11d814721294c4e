"""Explanation: where the time of each late sample of a guest went, cause by cause.

Every nanosecond of a spike is charged once at most.  What nobody can be blamed for is told apart: ``asleep`` is slack
and ``unexplained`` is unexplained; neither counts as explained.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import field_validator

from evenkeel.documents.base import Document, Model
from evenkeel.documents.course import Course
from evenkeel.documents.evidence import Conditions


class Kind(StrEnum):
    """What took the time.  The order is that of charging: of two that cover an instant the first is charged."""

    below = "below"  # the machine under the host gave its CPU to somebody else
    migrated = "migrated"  # the vCPU waited on a CPU that it was moved to
    throttled = "throttled"  # the vCPU could have run, and the kernel ran a lesser task or none
    emulator = "emulator"  # the vCPU waited for another thread of its own QEMU
    waits = "waits"  # the vCPU waited for a task on the host
    host_nmi = "host_nmi"
    host_irq = "host_irq"
    page_fault = "page_fault"  # the host had to fetch or map memory of the guest
    exits = "exits"  # the host handled what the guest cannot do by itself
    delivery = "delivery"  # KVM on its way back into the guest, after a halt or an interrupt of the host
    host_timer = "host_timer"  # the vCPU slept, and the timer's interrupt of the host that woke it came late
    guest_nmi = "guest_nmi"
    guest_irq = "guest_irq"
    guest_softirq = "guest_softirq"
    guest_thread = "guest_thread"
    guest_kernel = "guest_kernel"  # the guest had the vCPU, between halt, interrupt and thread
    asleep = "asleep"  # slack: the vCPU slept and no cause of it was seen
    unexplained = "unexplained"


#: Never a cause: shown, and not counted as explained.
NO_CAUSE = frozenset({Kind.asleep, Kind.unexplained})


class Charge(Model):
    """``who``: the task, interrupt or exit reason, as the kernel calls it.

    ``usual_ns``: what the same takes of the middle one of all samples, late or not; 0 for what fewer than half of them
    have.  Every sample needs its timer programmed, its interrupt and its switch.  That part is where the time went, and
    not why this sample was later than others.  ``named``: a verdict, "this made the sample late".
    """

    kind: Kind
    who: str
    ns: int
    usual_ns: int = 0
    named: bool = False


class Piece(Model):
    """What one lane of the picture shows from ``start_ns`` to ``end_ns``, counted from the begin of the recording."""

    start_ns: int
    end_ns: int
    lane: Literal["host", "guest"]
    kind: Kind | None  # None: the vCPU ran the guest
    who: str


class Spike(Model):
    """One late sample of timerlat: the time from when its timer was due to when its thread ran."""

    at_ns: int  # of the sample, from the begin of the recording
    vcpu: int
    latency_ns: int
    charges: tuple[Charge, ...]  # largest first; their sum is latency_ns
    #: Some events of this stretch were lost: what is charged is true, what is not may have had a cause.
    lossy: bool = False
    pieces: tuple[Piece, ...] = ()  # of the worst spikes only

    @property
    def explained_ns(self) -> int:
        return sum(charge.ns for charge in self.charges if charge.kind not in NO_CAUSE)


class Allowed(Model):
    """A fact that made a cause possible, and the rule that would have prevented it."""

    fact: str
    rule: str | None = None


class Cause(Model):
    """One cause over all spikes, with what allowed it."""

    kind: Kind
    who: str
    ns: int
    spikes: int  # that it had a part in
    worst_ns: int
    usual_ns: int = 0  # of one sample, as of Charge; the largest of all vCPUs
    named: int = 0  # spikes that it made late: beyond what is usual
    allowed: tuple[Allowed, ...] = ()


class Alignment(Model):
    """How the guest's clock was bound to the host's, and how far it can be off at any time of the recording.

    ``none``: the guest is gone, and left nothing that would be bound; of a machine below the host: no round trip did.
    """

    method: Literal["tsc-offset", "round trips", "none"]
    error_ns: int


class Lost(Model):
    """Events that were overwritten before they were read."""

    host: int = 0
    guest: int = 0
    below: int = 0


class Recorder(Model):
    """What one machine recorded, and what its recorder took of a CPU for that.

    What it costs the recorded tasks that events are written while they run is not in it: no counter tells.
    """

    seconds: float  # until when, from the begin of what is explained
    full: bool = False  # its limit of memory ended it before its time
    size_bytes: int
    #: CPU time, user and system, of the recorder's process and of all that it started, within ``over_ns``.  None: not
    #: measured.  In a guest the kernel tells whole hundredths of a second.
    cpu_ns: int | None = None
    over_ns: int | None = None
    timerlat_ns: int | None = None  # of the threads of timerlat beside it, in a guest

    def share(self, of_ns: int | None) -> float | None:
        """``cpu_ns`` or ``timerlat_ns`` as a share of one CPU."""
        return of_ns / self.over_ns if of_ns is not None and self.over_ns else None


class Explanation(Document):
    kind: Literal["Explanation"] = "Explanation"
    version: Literal[1, 2, 3, 4] = 4
    host: str
    guest: str
    conditions: Conditions
    label: str = ""  # EMULATION_NOTE where it applies
    seconds: float  # that both host and guest recorded
    #: That were asked for; None: as long as it took (a flight recorder).
    asked_seconds: float | None = None
    recorders: dict[Literal["host", "guest", "below"], Recorder] = {}
    period_ns: int
    threshold_ns: int
    samples: int
    max_latency_ns: int
    alignment: Alignment
    #: How the machine under the host was bound to it; None: not recorded.
    below: Alignment | None = None
    lost: Lost = Lost()
    #: Of a flight recorder: what froze it, and where the time just before went, a vCPU.
    reason: str | None = None
    ending: tuple[Spike, ...] = ()
    spikes: tuple[Spike, ...] = ()
    causes: tuple[Cause, ...] = ()  # largest first
    #: Of each vCPU all samples over time, late or not, from ``courses_from_ns`` after the begin of the recording on: 0
    #: but for a flight recorder, which keeps the last seconds only.
    courses: dict[int, Course] = {}
    courses_from_ns: int = 0

    @field_validator("version")
    @classmethod
    def _is_now(cls, version: Literal[1, 2, 3, 4]) -> Literal[1, 2, 3, 4]:
        """Version 1 has no courses, 2 does not know what is usual, 3 not what recording took; nothing that version 4
        lacks: once read, it is 4.
        """
        return 4
