"""How a host stands against its plan and against what was applied to it.  Reads only, takes no lock."""

from __future__ import annotations

from evenkeel.apply import gate, hosts
from evenkeel.apply.report import GuestReport, StatusReport
from evenkeel.apply.steps import Step, host_steps
from evenkeel.documents.plan import HostPlan
from evenkeel.errors import Unreachable
from evenkeel.machines.protocol import Machine, OnProgress

_POWER = "guest_power"


def unreachable(name: str, address: str, error: Unreachable) -> StatusReport:
    return StatusReport(host=name, address=address, reachable=False, state=error.message)


def host_status(
    host: HostPlan, plan_sha256: str, machine: Machine, *, on_progress: OnProgress | None = None
) -> StatusReport:
    """Compare a host with ``host``.  Raises Unreachable."""
    with machine.probe() as probe:
        if on_progress:
            on_progress(0, 0, f"reading {host.name}")
        facts = hosts.read_facts(probe)
        journal = hosts.read_journal(probe)
        checks = gate.check_boot(host, facts, hosts.read_values(probe, gate.effective_paths(host)))
        steps = host_steps(host)
        found = hosts.check_steps(probe, steps)
    changing = [
        step for step, answer in zip(steps, found, strict=True) if answer["outcome"] in ("would_change", "failed")
    ]
    done = {entry.setting for entry in journal.outstanding if journal.finished(entry.sequence)}
    powers = {
        str(step.body["guest"]): answer["old"] or "absent"
        for step, answer in zip(steps, found, strict=True)
        if step.body["kind"] == _POWER
    }
    last = journal.outstanding[-1] if journal.outstanding else None
    rebooted = last is not None and (last.step or {}).get("boot_id") != journal.boot_id
    report = StatusReport(
        host=host.name,
        address=machine.address,
        reachable=True,
        state="",
        applied_plan=journal.applied_plan,
        planned=plan_sha256,
        interrupted=journal.interrupted and journal.writer is None,
        applying=journal.writer is not None,
        rebooted_since=rebooted,
        gate=checks,
        not_ready=journal.not_ready,
        schedulable=journal.schedulable,
        not_schedulable=_why_not(journal, gate.failures(checks)),
        pending=tuple(step.name for step in changing),
        drifted=tuple(step.name for step in changing if step.name in done),
        guests=tuple(
            GuestReport(
                name=guest.name, power=powers.get(guest.name, "absent"), as_planned=_all_right(guest.name, changing)
            )
            for guest in host.guests
        ),
    )
    return report.model_copy(update={"state": _state(report)})


def _why_not(journal: hosts.HostJournal, problems: list[str]) -> str | None:
    """Why guests may not run on this host; None: they may."""
    if journal.schedulable:
        return None
    if journal.not_ready:
        return journal.not_ready
    if problems:
        return "its kernel did not take the plan: " + "; ".join(problems)
    return "the boot gate was not asked since the host was started: run evenkeel apply"


def _all_right(guest: str, changing: list[Step]) -> bool:
    return all(step.body.get("guest") != guest for step in changing)


def _state(report: StatusReport) -> str:
    """One line: the most important thing, and what to do about it."""
    booted = not gate.failures(report.gate)
    if report.applying:
        return "being applied right now"
    if report.interrupted:
        return "an apply was interrupted: run apply again, or rollback"
    if report.applied_plan is None:
        return "nothing applied" if report.pending else "as planned, nothing of it applied by Evenkeel"
    if report.not_ready:
        return "not ready: its kernel did not take the plan"
    if not booted:
        return "waits for a reboot: run apply --reboot"
    if not report.pending:
        return "as planned"
    if report.rebooted_since:
        return f"rebooted since apply, {len(report.pending)} settings are gone: run apply again"
    if report.drifted:
        return f"{len(report.drifted)} settings drifted: run apply again"
    return f"{len(report.pending)} settings to apply"
