"""What apply, rollback and status found and did: plain models for the command line to print and for ``--json``.

Not documents of the river: the journal on the host is the record, this is the answer to one command.
"""

from __future__ import annotations

from typing import Literal

from evenkeel.documents.base import Model
from evenkeel.documents.findings import Check

StepOutcome = Literal["unchanged", "would_change", "done", "refused", "absent", "failed", "left", "taken_back"]


class StepReport(Model):
    """One step.  ``old``, ``read_back``: as a person writes the value; None: not there.

    ``left``: not taken in this run, ``message`` says why; ``taken_back``: written, and undone because it starved the
    host.
    """

    name: str
    title: str
    phase: str
    disturbance: str
    outcome: StepOutcome
    old: str | None = None
    wanted: str | None = None
    read_back: str | None = None
    message: str | None = None


class ApplyReport(Model):
    """``reboot_pending``: the boot layer is written and waits for a reboot; nothing after it was touched.

    ``findings``: what went wrong without ending the run.
    """

    host: str
    address: str
    plan_sha256: str
    outcome: Literal["applied", "unchanged", "reboot_pending", "dry_run"]
    steps: tuple[StepReport, ...]
    gate: tuple[Check, ...] = ()
    rebooted: bool = False
    findings: tuple[Check, ...] = ()
    message: str = ""

    def of(self, *outcomes: StepOutcome) -> tuple[StepReport, ...]:
        return tuple(step for step in self.steps if step.outcome in outcomes)


class RollbackReport(Model):
    """``undone``: names of what was restored, newest first; ``gone``: what an earlier reboot had taken away already;
    ``problems``: what could not be restored, with the reason."""

    host: str
    address: str
    undone: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    reboot_needed: bool = False
    rebooted: bool = False


class GuestReport(Model):
    name: str
    power: str  # running, paused, shut off, absent
    as_planned: bool


class StatusReport(Model):
    """How a host stands.  ``pending``: what apply would write now; ``drifted``: of these, what was applied before."""

    host: str
    address: str
    reachable: bool
    state: str  # one line for a person
    applied_plan: str | None = None
    planned: str | None = None
    interrupted: bool = False
    applying: bool = False
    rebooted_since: bool = False
    gate: tuple[Check, ...] = ()
    not_ready: str | None = None
    #: Whether guests may run: the boot gate passed since the kernel started.  ``not_schedulable``: why not.
    schedulable: bool = False
    not_schedulable: str | None = None
    pending: tuple[str, ...] = ()
    drifted: tuple[str, ...] = ()
    guests: tuple[GuestReport, ...] = ()
