"""Apply the plan of one host: check, boot layer, reboot, gate, then phase by phase; on any failure everything back.

The engine knows neither rules nor reasons.  Every write is one journaled request to the probe, so that at any moment,
a kill included, the journal on the host tells how to get back (see docs/explanation/safe-apply.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from evenkeel.apply import gate, hosts
from evenkeel.apply.interrupt import Interrupted, Stop, stop_on_interrupt
from evenkeel.apply.report import ApplyReport, StepReport
from evenkeel.apply.rollback import run_entries, undo_entries
from evenkeel.apply.steps import Step, host_steps
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import FileValue, HostPlan, Phase, Plan
from evenkeel.errors import NotAsWanted, RolledBack, Unreachable, WrongInput
from evenkeel.machines.protocol import Machine, OnProgress, Probe, ProbeError

#: Asks the user: a question, and the names of the steps that are the reason for it.
Confirm = Callable[[str, Sequence[str]], bool]
#: Longest time that a host may be away before its rollback is given up: while it reboots, and otherwise.
AWAY_S = 300.0
AWAY_SHORT_S = 30.0


@dataclass
class _Run:
    """One apply under way."""

    host: HostPlan
    plan_sha256: str
    machine: Machine
    probe: Probe
    stop: Stop
    on_progress: OnProgress | None
    steps: tuple[Step, ...]
    begin: int | None = None  # sequence number of our begin; None: nothing was written
    reports: dict[str, StepReport] = field(default_factory=dict)
    gate: tuple[Check, ...] = ()
    rebooted: bool = False

    def tell(self, done: int, total: int, what: str) -> None:
        if self.on_progress:
            self.on_progress(done, total, what)

    def report(self, outcome: Any, message: str = "") -> ApplyReport:
        return ApplyReport(
            host=self.host.name,
            address=self.machine.address,
            plan_sha256=self.plan_sha256,
            outcome=outcome,
            steps=tuple(self.reports[step.name] for step in self.steps if step.name in self.reports),
            gate=self.gate,
            rebooted=self.rebooted,
            message=message,
        )


def apply_plan(
    host: HostPlan,
    plan: Plan,
    machine: Machine,
    *,
    reboot: bool = False,
    dry_run: bool = False,
    restart_guests: bool = False,
    on_progress: OnProgress | None = None,
    on_stop: Callable[[], None] | None = None,
    confirm: Confirm | None = None,
) -> ApplyReport:
    """Bring the host to its plan.  A second call changes nothing.

    Without ``reboot`` it stops after the boot layer when the kernel must be started anew (``reboot_pending``); run it
    again after the reboot.  ``confirm`` is asked before a host is rebooted or guests are restarted; None: not asked.
    ``on_stop`` is called at the first Ctrl-C, which stops after the step under way and rolls back.

    Raises WrongInput (stale plan, wrong machine; nothing was changed), NotAsWanted (boot gate, or the user said no),
    RolledBack (a step failed; what this run wrote was undone), Unreachable (what was written stays, journaled).
    """
    if machine.read_only:
        raise WrongInput(f"{machine.address} is a recorded tree; a plan is applied to a machine")
    steps = host_steps(host, restart_guests=restart_guests)
    with stop_on_interrupt(on_stop) as stop:
        probe = machine.probe()
        run = _Run(host, plan.sha256(), machine, probe, stop, on_progress, steps)
        try:
            return _apply(run, reboot=reboot, dry_run=dry_run, confirm=confirm)
        except Interrupted:
            _back(run, "interrupted")
        except ProbeError as error:
            if run.begin is None:
                raise
            _back(run, error.message)
        except Unreachable as error:
            if run.begin is None:
                raise
            _back_after_loss(run, error)
        finally:
            run.probe.close()


def _apply(run: _Run, *, reboot: bool, dry_run: bool, confirm: Confirm | None) -> ApplyReport:
    run.tell(0, 0, "reading the host")
    hosts.require_root(run.probe, run.machine)
    facts = hosts.read_facts(run.probe)
    _refuse_stale_facts(run.host, facts)
    journal = hosts.read_journal(run.probe)
    found = hosts.check_steps(run.probe, run.steps)
    _refuse_surprises(run, found, journal)
    booted = gate.booted_with(run.host, facts.kernel.command_line)
    if not booted:
        _refuse_other_default(run)
    for step, answer in zip(run.steps, found, strict=True):
        _note(run, step, answer)
    if dry_run:
        return run.report("dry_run", _summary(run.reports.values(), booted))
    changes = [step for step, answer in zip(run.steps, found, strict=True) if answer["outcome"] == "would_change"]
    if not changes and booted:
        _gate(run, facts, journal.not_ready is not None)
        return run.report("unchanged", "everything is as planned already")
    _confirm(run, changes, needs_reboot=not booted and reboot, confirm=confirm)

    run.stop.check()
    run.begin = _journal(run, "begin", f"{len(changes)} of {len(run.steps)} steps")
    boot_steps = [step for step in run.steps if step.phase is Phase.BOOT]
    _take(run, boot_steps)
    if not booted:
        if not reboot:
            return _reboot_pending(run, "run it again after the reboot, or with --reboot")
        try:
            _reboot(run)
        except WrongInput as error:  # a machine that cannot reboot itself and go on
            return _reboot_pending(run, error.hint or error.message)
        facts = hosts.read_facts(run.probe)
        _refuse_other_machine(run, facts)
    _gate(run, facts, mark=True)
    _take(run, [step for step in run.steps if step.phase is not Phase.BOOT])
    _journal(run, "end", "applied")
    refused = run.report("applied").of("refused")
    return run.report("applied", f"{len(refused)} refused by the kernel" if refused else "")


# -- before anything is written ---------------------------------------------------------------------------------------


def _refuse_stale_facts(host: HostPlan, facts: Facts) -> None:
    """The plan must be for this machine and this kernel.  Raises WrongInput that names the parts that differ."""
    now = facts.fingerprint()
    differing = sorted(part for part in {*now, *host.fingerprint} if now.get(part) != host.fingerprint.get(part))
    if differing:
        raise WrongInput(
            f"{host.name}: the plan was made from stale facts: {', '.join(differing)} "
            f"{'differs' if len(differing) == 1 else 'differ'}; nothing was changed",
            hint="make the plan anew: evenkeel plan SITE -o plan.json",
        )


def _refuse_surprises(run: _Run, found: Sequence[dict[str, Any]], journal: hosts.HostJournal) -> None:
    """Every value must be what the plan saw, what it wants, or what we once found here.  Raises WrongInput.

    The last is the kernel's own value under the planned command line, which no facts from before the reboot can show.
    """
    # Once this plan has been written here, a different value is drift, and repairing that is what apply is for.
    ours = any(entry.plan_sha256 == run.plan_sha256 for entry in journal.outstanding)
    for step, answer in zip(run.steps, found, strict=True):
        if answer["outcome"] == "failed":
            _refuse(run.host, step, str(answer["error"]["message"]), hint="cure that, then run evenkeel apply again")
        setting = step.settings[0] if len(step.settings) == 1 else None
        if ours or setting is None or not isinstance(setting.target, FileValue):
            continue
        if answer["outcome"] == "would_change" and not setting.target.matches(answer["old"], setting.old):
            known = {entry.old for entry in journal.entries if entry.event == "intent" and entry.setting == setting.id}
            if not any(setting.target.matches(answer["old"], old) for old in known):
                _refuse(
                    run.host,
                    step,
                    f"{setting.target.path} is {answer['old']!r}, the plan saw {setting.old!r}, wants {setting.new!r}",
                )
    for step, answer in zip(run.steps, found, strict=True):
        if _runs_differently(step, answer["old"]) and not step.body["restart"]:
            _refuse(
                run.host,
                step,
                f"guest {step.body['guest']} has {answer['old']}",
                hint="shut it down first, or allow a restart with --restart-guests",
            )


def _refuse_other_default(run: _Run) -> None:
    """A reboot that brings up another kernel would end at the gate; better to know before it.  Raises WrongInput."""
    default = run.probe.call("boot_menu")["default"]
    if default not in (None, run.host.kernel_release):
        raise WrongInput(
            f"{run.host.name}: the plan is for kernel {run.host.kernel_release}, after a reboot {default} would run; "
            "nothing was changed",
            hint="choose another default (GRUB_DEFAULT, grubby --set-default), or boot the other kernel and plan again",
        )


def _runs_differently(step: Step, old: str | None) -> bool:
    """Whether a guest is up with a definition that is not the planned one: a change means to restart it."""
    return step.body["kind"] == "guest" and (old or "").startswith("another definition (")


def _refuse(host: HostPlan, step: Step, what: str, hint: str | None = None) -> NoReturn:
    raise WrongInput(
        f"{host.name}: {step.name}: {what}; nothing was changed",
        hint=hint or "make the plan anew from fresh facts: evenkeel plan SITE -o plan.json",
    )


def _confirm(run: _Run, changes: Sequence[Step], *, needs_reboot: bool, confirm: Confirm | None) -> None:
    """Ask before anything goes down.  Raises NotAsWanted when the user says no."""
    if confirm is None:
        return
    if needs_reboot:
        reasons = [f"{step.title}: {step.wanted}" for step in run.steps if step.disturbance == "reboot"]
        reasons += [f"guest {name} goes down with it" for name in hosts.running_guests(run.probe)]
        if not confirm(f"reboot {run.host.name}?", reasons):
            raise NotAsWanted(f"{run.host.name}: not rebooted, nothing was changed")
    restarts = [str(step.body["guest"]) for step in changes if _runs_differently(step, run.reports[step.name].old)]
    if restarts and not confirm(f"restart guests of {run.host.name}?", restarts):
        raise NotAsWanted(f"{run.host.name}: guests not restarted, nothing was changed")


# -- writing ----------------------------------------------------------------------------------------------------------


def _take(run: _Run, steps: Sequence[Step]) -> None:
    """Take the steps in order.  Raises ProbeError at the first that fails, Interrupted between two."""
    for number, step in enumerate(steps, 1):
        run.stop.check()
        run.tell(number, len(steps), f"{step.name}: {step.title}")
        try:
            answer = run.probe.call(
                "apply_step",
                step=step.body,
                plan_sha256=run.plan_sha256,
                setting=step.name,
                phase=str(step.phase),
                timeout_s=step.timeout_s,
            )
        except ProbeError as error:
            _note(run, step, {"outcome": "failed", "old": None, "read_back": None, "message": error.message})
            raise
        _note(run, step, answer)
    run.stop.check()


def _note(run: _Run, step: Step, answer: dict[str, Any]) -> None:
    run.reports[step.name] = StepReport(
        name=step.name,
        title=step.title,
        phase=str(step.phase),
        disturbance=step.disturbance,
        outcome=answer["outcome"],
        old=answer["old"],
        wanted=step.wanted,
        read_back=answer["read_back"],
        message=answer.get("message"),
    )


def _journal(run: _Run, event: str, message: str) -> int:
    number: int = run.probe.call("journal_note", event=event, plan_sha256=run.plan_sha256, message=message)
    return number


def _reboot_pending(run: _Run, how: str) -> ApplyReport:
    _journal(run, "end", "reboot pending")
    return run.report("reboot_pending", f"the kernel command line is written and waits for a reboot: {how}")


def _reboot(run: _Run) -> None:
    _journal(run, "reboot", "for the boot layer")
    run.probe.close()  # and with it the lock; the host goes down anyway
    try:
        run.machine.reboot(on_progress=run.stop.watching(run.on_progress))
    except WrongInput:
        run.probe = run.machine.probe()
        raise
    run.rebooted = True
    run.probe = hosts.patient_probe(run.machine, 60.0, run.stop.check)
    hosts.settle(run.probe, run.stop.watching(run.on_progress))


def _refuse_other_machine(run: _Run, facts: Facts) -> None:
    """After the reboot the machine must still be the planned one; its kernel is the gate's business."""
    now, then = facts.fingerprint(), run.host.fingerprint
    differing = sorted(part for part in {*now, *then} - {"kernel"} if now.get(part) != then.get(part))
    if differing:
        why = f"after the reboot {', '.join(differing)} differ from the facts of the plan"
        run.probe.call("not_ready", why=why)
        _journal(run, "end", why)
        raise NotAsWanted(
            f"{run.host.name}: {why}", hint="make the plan anew, and look at what changed: evenkeel facts"
        )


def _gate(run: _Run, facts: Facts, mark: bool) -> None:
    """Raises NotAsWanted, and leaves a mark on the host, when the kernel did not take every boot setting."""
    run.gate = gate.check_boot(run.host, facts, hosts.read_values(run.probe, gate.effective_paths(run.host)))
    problems = gate.failures(run.gate)
    if mark or problems:
        run.probe.call("not_ready", why="\n".join(problems) if problems else None)
        _journal(run, "gate", "passed" if not problems else "; ".join(problems))
    if problems:
        _journal(run, "end", "not ready")
        raise NotAsWanted(
            f"{run.host.name} is not ready: its kernel did not take the plan: " + "; ".join(problems),
            hint=f"no guest was started; {next(c.fix for c in run.gate if c.status != 'passed')}; "
            "or go back with evenkeel rollback",
        )


# -- getting back -----------------------------------------------------------------------------------------------------


def _back_after_loss(run: _Run, error: Unreachable) -> NoReturn:
    """The connection is gone: undo over a new one, if there is one."""
    run.probe.close()
    try:
        run.probe = hosts.patient_probe(run.machine, AWAY_S if run.rebooted else AWAY_SHORT_S)
    except Unreachable:
        raise Unreachable(
            f"{error.message}; what was written so far stays written, and is in the journal on the host",
            hint="when it is back: evenkeel apply goes on, evenkeel rollback undoes it",
        ) from None
    _back(run, error.message)


def _back(run: _Run, why: str) -> NoReturn:
    """Undo what this run wrote.  Raises RolledBack, or NotAsWanted when there was nothing to undo."""
    name = run.host.name
    if run.begin is None:
        raise NotAsWanted(f"{name}: {why}; nothing was changed")
    run.stop.requested = False  # the next Ctrl-C stops the rollback
    try:
        journal = hosts.read_journal(run.probe)
    except Unreachable:  # interrupted while the host was on its way through a reboot
        run.probe.close()
        run.probe = hosts.patient_probe(run.machine, AWAY_S, run.stop.check)
        journal = hosts.read_journal(run.probe)
    entries = run_entries(journal, run.begin)
    undone = undo_entries(run.probe, entries, name, run.machine.address, run.on_progress, run.stop)
    _journal(run, "end", "rolled back" if not undone.problems else "rolled back in part")
    kernel = (
        "; its kernel still runs with the arguments of the plan until the next reboot" if undone.reboot_needed else ""
    )
    if undone.problems:
        raise RolledBack(
            f"{name}: {why}. Not everything could be undone: {'; '.join(undone.problems)}",
            hint="cure the cause, then run evenkeel rollback: it goes on with what is left",
        )
    raise RolledBack(
        f"{name}: {why}. Rolled back: {len(undone.undone)} settings are as they were{kernel}",
        hint=None if why == "interrupted" else "cure the cause, then run evenkeel apply again",
    )


def _summary(reports: Any, booted: bool) -> str:
    count = sum(1 for report in reports if report.outcome == "would_change")
    return f"{count} changes" + ("" if booted else ", a reboot") if count or not booted else "no change"
