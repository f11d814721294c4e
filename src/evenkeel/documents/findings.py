"""Findings: where reality and plan (or plain good sense) differ, and every check that was made to know it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from evenkeel.documents.base import Document, Model


class EvidenceItem(Model):
    """A place and what it says: a file and its content, a thread and its schedule, a counter and its growth."""

    where: str
    value: str


class Check(Model):
    """One thing that was compared.  ``not_checked`` is never a pass; ``reason`` says why it could not be."""

    id: str  # Setting.id, or V-... for a structural check
    subject: Literal["setting", "thread", "page", "interrupt", "spinner", "guest", "ledger", "kernel"]
    title: str
    status: Literal["passed", "failed", "not_checked"]
    expected: str
    observed: str
    evidence: tuple[EvidenceItem, ...] = ()
    severity: Literal["harmful", "warning", "note"] = "harmful"  # of a failure
    why: str = ""  # why it matters
    fix: str = ""  # what to do when it failed
    reason: str = ""
    guest: str | None = None


class Findings(Document):
    kind: Literal["Findings"] = "Findings"
    version: Literal[1] = 1
    host: str
    plan_sha256: str | None = None
    kernel: str
    emulated: bool | None = None
    checks: tuple[Check, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def verdict(self) -> Literal["as planned", "not as planned", "incomplete"]:
        if self.failed:
            return "not as planned"
        if not self.checks or any(check.status == "not_checked" for check in self.checks):
            return "incomplete"
        return "as planned"


_STATUSES = {"failed": 0, "not_checked": 1, "passed": 2}
_SEVERITIES = {"harmful": 0, "warning": 1, "note": 2}


def ranked(checks: Iterable[Check]) -> tuple[Check, ...]:
    """What failed, the worst on top; then what could not be checked; then what is well.  Otherwise as they came."""
    return tuple(
        sorted(
            checks, key=lambda one: (_STATUSES[one.status], _SEVERITIES[one.severity] if one.status == "failed" else 0)
        )
    )
