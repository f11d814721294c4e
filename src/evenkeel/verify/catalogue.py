"""The structural checks: id, what is compared, why it matters, what to do when it fails.

docs/reference/checks.md is this table for people (a test holds the two together).  Settings are checked under their
own id and take these texts from the plan.  No judgement here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.findings import Check, EvidenceItem

Subject = Literal["setting", "thread", "page", "interrupt", "spinner", "guest", "ledger", "kernel"]
Severity = Literal["harmful", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """One line of the catalogue.  A check of it has the id, with ``:guest`` behind it where it is about a guest."""

    id: str
    subject: Subject
    title: str
    why: str
    fix: str
    severity: Severity = "harmful"

    def judge(
        self,
        passed: bool,
        *,
        expected: str,
        observed: str,
        evidence: Iterable[EvidenceItem] = (),
        guest: str | None = None,
        part: str = "",
    ) -> Check:
        """A check that was made.  ``part`` tells apart several of the kind for one guest: ``vcpu1``."""
        return self._check("passed" if passed else "failed", expected, observed, tuple(evidence), "", guest, part)

    def not_checked(self, reason: str, *, expected: str = "", guest: str | None = None, part: str = "") -> Check:
        """A check that could not be made, which is never a pass."""
        return self._check("not_checked", expected, "", (), reason, guest, part)

    def _check(
        self,
        status: Literal["passed", "failed", "not_checked"],
        expected: str,
        observed: str,
        evidence: tuple[EvidenceItem, ...],
        reason: str,
        guest: str | None,
        part: str,
    ) -> Check:
        return Check(
            id=":".join(word for word in (self.id, guest or "", part) if word),
            subject=self.subject,
            title=self.title + (f" ({guest}{', ' + part if part else ''})" if guest else f" ({part})" if part else ""),
            status=status,
            expected=expected,
            observed=observed,
            evidence=evidence,
            severity=self.severity,
            why=self.why,
            fix=self.fix,
            reason=reason,
            guest=guest,
        )


def item(where: str, value: object) -> EvidenceItem:
    return EvidenceItem(where=where, value=str(value))


def shorten(words: Sequence[str], most: int = 6) -> str:
    """``a, b, c and 4 more``: lists in ``observed`` stay readable, evidence has them whole."""
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


KERNEL = Kind(
    "V-KERNEL",
    "kernel",
    "The kernel that the plan was made for is running",
    "rules are keyed on the kernel version; on another one the same value may mean something else",
    "boot that kernel, or make the plan anew on the one that runs: evenkeel plan",
)
MACHINE = Kind(
    "V-MACHINE",
    "ledger",
    "This is the machine that the plan was made for",
    "CPU numbers and nodes mean something else on another machine, or after a change of its hardware or firmware",
    "make the plan anew from fresh facts: evenkeel plan",
)
UNKNOWN_ARGUMENTS = Kind(
    "V-KERNEL-UNKNOWN",
    "kernel",
    "The kernel knows every argument that the plan gives it",
    "the kernel hands an argument that it does not know to init and does nothing",
    "make the plan anew: its rules are keyed on another kernel version",
)
LEDGER = Kind(
    "V-LEDGER",
    "ledger",
    "The CPU ledger fits the machine: whole cores, disjoint, complete",
    "a core that is shared by a real-time vCPU and the host lets the host slow the vCPU down",
    "was a CPU taken offline or brought online? undo that, or make the plan anew from fresh facts",
)
ISOLATED = Kind(
    "V-LEDGER-ISOLATED",
    "ledger",
    "The kernel's isolated sets are those of the ledger",
    "a CPU that is missing there gets ticks and callbacks; one that is there too much is lost to the host",
    "evenkeel apply, then reboot; look for a second owner of the kernel command line",
)
IRQ_AFFINITY = Kind(
    "V-IRQ-AFFINITY",
    "interrupt",
    "No interrupt that can be moved is directed at an isolated CPU",
    "each interrupt there takes the vCPU off its CPU for as long as the driver likes",
    "evenkeel apply; if it comes back, look for irqbalance or a driver that sets affinities when its link comes up",
)
IRQ_COUNT = Kind(
    "V-IRQ-COUNT",
    "interrupt",
    "No device interrupt fires on an isolated CPU",
    "what counts is where interrupts fire, not where they are directed: managed ones follow their queue",
    "find who uses that device from an isolated CPU; give the device fewer queues than housekeeping CPUs",
)
GUEST_RUNNING = Kind(
    "V-GUEST-RUNNING",
    "guest",
    "The guest runs",
    "a guest that does not run keeps no deadline",
    "evenkeel apply, or virsh start; see /var/log/libvirt/qemu for why it ended",
)
GUEST_LIVE = Kind(
    "V-GUEST-LIVE",
    "guest",
    "The running guest was started from the planned definition",
    "a definition that was changed while the guest runs takes effect at its next start only",
    "shut the guest down and start it again: virsh shutdown, then evenkeel apply",
)
GUEST_PCI = Kind(
    "V-GUEST-PCI",
    "guest",
    "The running guest has exactly the planned PCI functions, through VFIO",
    "another function is on another wire, on another node or another guest's; one that a driver of the host holds is "
    "not the guest's at all",
    "shut the guest down and start it again: virsh shutdown, then evenkeel apply; who ran virsh attach-device?",
)
THREAD_VCPU = Kind(
    "V-THREAD-VCPU",
    "thread",
    "vCPU threads have the planned CPU, policy and priority",
    "a vCPU at another policy waits for whatever the host wants to run; on another CPU it has company",
    "evenkeel apply; who ran virsh vcpupin, taskset or chrt?",
)
THREAD_EMULATOR = Kind(
    "V-THREAD-EMULATOR",
    "thread",
    "QEMU's own threads stay on the emulator CPUs, off the isolated ones",
    "a FIFO vCPU that waits for its emulator thread on the same CPU waits forever",
    "virsh emulatorpin, or evenkeel apply",
)
THREAD_IO = Kind(
    "V-THREAD-IO",
    "thread",
    "I/O threads of disks have the planned CPUs and ordinary policy, and run on no isolated CPU",
    "the disk's work on the CPU of a real-time vCPU is taken from its guest; at a real-time priority it pushes aside "
    "what the host runs on housekeeping CPUs; without the thread it is the main loop that does it",
    "shut the guest down and start it again: virsh shutdown, then evenkeel apply; who ran virsh iothreadpin, "
    "iothreaddel, taskset or chrt?",
)
THREAD_HELPER = Kind(
    "V-THREAD-HELPER",
    "thread",
    "Kernel threads that serve the guest stay off the isolated CPUs",
    "kvm-nx-lpage-recovery inherits the CPU and the priority of the vCPU that started it; kvm-pit and vhost follow "
    "the emulator only where somebody sees to it",
    "evenkeel apply",
)
INTRUDER = Kind(
    "V-THREAD-INTRUDER",
    "thread",
    "Nobody else may run on the CPUs of real-time vCPUs",
    "nohz_full works for one runnable task: a second one brings the tick back and shares the CPU",
    "end that process or move it to other CPUs; see the state of the partition",
)
PAGE_NODE = Kind(
    "V-PAGE-NODE",
    "page",
    "The guest's memory is in huge pages on its nodes, as much on each as planned",
    "memory of another node costs half as much again at each access, ordinary pages cost page walks and can move",
    "stop the guest and start it from the planned definition: evenkeel apply",
)
PAGE_CELL = Kind(
    "V-PAGE-CELL",
    "page",
    "The memory of a guest's cell is on the node of that cell",
    "a guest of several cells keeps data near the CPUs that use it; with two cells exchanged each access is far, "
    "though every node has as many pages as planned",
    "stop the guest and start it from the planned definition: evenkeel apply",
)
PAGE_LOCKED = Kind(
    "V-PAGE-LOCKED",
    "page",
    "The guest's memory is locked",
    "memory that is not locked can be swapped out or migrated under a running vCPU",
    "stop the guest and start it from the planned definition: evenkeel apply",
)
SPIN_TICK = Kind(
    "V-SPIN-TICK",
    "spinner",
    "A busy thread on a real-time CPU is not interrupted by the timer",
    "every tick stops the vCPU, on an untuned kernel 250 to 1000 times a second",
    "look at nohz_full, at other tasks there (V-THREAD-INTRUDER), and at the trace event timer:tick_stop, which names "
    "the dependency that keeps the tick",
)
SPIN_LOAD = Kind(
    "V-SPIN-LOAD",
    "spinner",
    "Load on the host does not take the CPU away from a busy thread",
    "this is what isolation is for: the same load on a housekeeping CPU at the same moment is the comparison",
    "look at the partition (C-1) and at V-THREAD-INTRUDER; then at kernel threads bound to that CPU",
)
SPIN_IRQ = Kind(
    "V-SPIN-IRQ",
    "spinner",
    "No device interrupts a busy thread on a real-time CPU",
    "a device interrupt runs its handler, and on PREEMPT_RT wakes a thread at priority 50, above any vCPU",
    "see V-IRQ-AFFINITY for where it is directed; evenkeel apply",
)

CATALOGUE: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
