"""A step that failed, or that had to be taken back, as a finding: what, where, why it matters, what to do.  Pure."""

from __future__ import annotations

from evenkeel.apply.report import StepReport
from evenkeel.apply.steps import Step
from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.machines.protocol import ProbeError

#: Why an answer of the kernel matters, by the name of its error.  The cure stands in the message of the probe.
_WHY = {
    "EPERM": "the kernel forbids it: a managed interrupt, a locked-down kernel, or a file marked immutable",
    "EACCES": "the file allows no one to write it, or a security module forbids it",
    "EROFS": "what cannot be written cannot be tuned",
    "EIO": "the kernel took the write and then failed: a managed interrupt before 6.12, or a device that is broken",
    "EBUSY": "something else holds it; in the case of real-time throttling the order is wrong",
    "EINVAL": "the kernel does not know this value, so the rule behind it is keyed on another version",
    "ENOENT": "it vanished since the plan was made: a device, a guest, or another kernel",
    "ENODEV": "its device vanished since the plan was made",
    "ENOSPC": "nothing can be kept where it has to be kept",
}
_ALTERED = "the kernel says that it took the value and keeps another one, so what depends on it is not as it looks"
CANARY_WHY = "whoever needs a turn on every CPU (libvirt, systemd, compaction) would hang as long as that thread spins"


def failed_step(step: Step, report: StepReport, error: ProbeError) -> Check:
    """The finding for a step that ended a run."""
    where = error.path or str(step.body.get("path") or step.name)
    observed = error.read_back if error.read_back is not None else error.errno or "failed"
    altered = error.read_back is not None
    return Check(
        id=step.name,
        subject="setting",
        title=f"{step.title}: {'taken and changed' if altered else 'not written'}",
        status="failed",
        expected=step.wanted or "",
        observed=observed,
        evidence=(EvidenceItem(where=where, value=f"was {report.old}; {error.said}"),),
        severity="harmful",
        why=_ALTERED if altered else _WHY.get(error.errno or "", "the plan does not hold without it"),
        fix=error.said.rpartition("; ")[2],
    )


def starved(steps: list[Step], message: str, now: str) -> Check:
    """The finding for a change of real-time throttling that the canary did not survive."""
    return Check(
        id="CANARY",
        subject="setting",
        title="The host stays alive with real-time throttling as planned",
        status="failed",
        expected=f"a host-wide operation ends while {', '.join(step.name for step in steps)} is in force",
        observed=message,
        evidence=(EvidenceItem(where="/proc/sys/vm/stat_refresh", value=now),),
        severity="harmful",
        why=CANARY_WHY,
        fix="a guest that never goes idle needs `trust: spins` in the site file, which keeps the fair server; if it "
        "was only booting, run evenkeel apply again when it is up",
    )
