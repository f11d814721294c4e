"""The verdict of a run: is the machine set as planned, and is each guest's deadline proven.

Pure.  What could not be checked is never a pass.  Deadlines are judged by :mod:`evenkeel.measure.verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.evidence import Deadline, Evidence
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Findings
from evenkeel.documents.fleet import FleetPlan
from evenkeel.documents.journal import Journal
from evenkeel.documents.plan import HostPlan, Plan
from evenkeel.measure import verdict

State = Literal["as planned", "not as planned", "incomplete"]


@dataclass(frozen=True)
class HostRun:
    """All that a run left behind about one host.  What is None was not made, or not found."""

    facts_before: Facts | None = None
    facts_after: Facts | None = None
    findings_before: Findings | None = None
    findings: Findings | None = None
    evidence_before: Evidence | None = None
    evidence_after: Evidence | None = None
    journal: Journal | None = None

    @property
    def emulated(self) -> bool | None:
        """True as soon as one document says so; None when none knows."""
        said = [evidence.conditions.emulated for evidence in (self.evidence_before, self.evidence_after) if evidence]
        said += [facts.identity.emulated for facts in (self.facts_before, self.facts_after) if facts]
        said += [self.findings.emulated] if self.findings else []
        return True if True in said else False if False in said else None


@dataclass(frozen=True)
class Run:
    """A plan and what came of it.  ``stopped``: why the run ended early, if it did; ``placement``: of its guests."""

    plan: Plan
    hosts: Mapping[str, HostRun]
    stopped: str | None = None
    placement: FleetPlan | None = None

    def of(self, host: HostPlan) -> HostRun:
        return self.hosts.get(host.name, HostRun())


@dataclass(frozen=True)
class Counts:
    passed: int = 0
    failed: int = 0
    not_checked: int = 0

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.not_checked


@dataclass(frozen=True)
class Verdict:
    state: State
    counts: Counts
    reasons: tuple[str, ...]  # why it is not "as planned"
    deadlines: tuple[Deadline, ...]
    emulated: bool


def judge(run: Run) -> Verdict:
    """The worst of all hosts.  A run that stopped early, or a host without findings, is incomplete at best."""
    counts = {"passed": 0, "failed": 0, "not_checked": 0}
    reasons: list[str] = [run.stopped] if run.stopped else []
    deadlines: list[Deadline] = []
    plan_sha256 = run.plan.sha256()
    for host in run.plan.hosts:
        of_host = run.of(host)
        findings = of_host.findings
        if findings is None or not findings.checks:
            reasons.append(f"{host.name} was not verified.")
        else:
            for check in findings.checks:
                counts[check.status] += 1
            if findings.plan_sha256 not in (None, plan_sha256):
                reasons.append(f"{host.name} was verified against another plan.")
        deadlines += [
            verdict.judge(host.name, guest, of_host.evidence_after, plan_sha256=plan_sha256, emulated=of_host.emulated)
            for guest in host.guests
            if guest.latency_ns is not None
        ]
    if counts["failed"]:
        state: State = "not as planned"
    elif reasons or counts["not_checked"]:
        state = "incomplete"
    else:
        state = "as planned"
    emulated = any(run.of(host).emulated for host in run.plan.hosts)
    return Verdict(state, Counts(**counts), tuple(reasons), tuple(deadlines), emulated)
