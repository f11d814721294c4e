"""Apply the plan of one host: check, boot layer, reboot, gate, then phase by phase; on any failure everything back.

The engine knows neither rules nor reasons.  Every write is one journaled request to the probe, so that at any moment,
a kill included, the journal on the host tells how to get back (see docs/explanation/safe-apply.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from evenkeel.apply import finding, gate, hosts, scope
from evenkeel.apply.interrupt import Interrupted, Stop, stop_on_interrupt
from evenkeel.apply.report import ApplyReport, StepReport
from evenkeel.apply.rollback import run_entries, undo_entries
from evenkeel.apply.scope import RunningGuest
from evenkeel.apply.steps import Step, drain_step, host_steps
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check
from evenkeel.documents.journal import JournalEntry
from evenkeel.documents.plan import FileValue, HostPlan, Phase, Plan
from evenkeel.errors import NotAsWanted, RolledBack, Unreachable, WrongInput
from evenkeel.machines.protocol import Machine, OnProgress, Probe, ProbeError

#: Asks the user: a question, and the names of the steps that are the reason for it.
Confirm = Callable[[str, Sequence[str]], bool]
#: Longest time that a host may be away before its rollback is given up: while it reboots, and otherwise.
AWAY_S = 300.0
AWAY_SHORT_S = 30.0
#: How long the canary is watched after the last change of real-time throttling, while guests run.
CANARY_WATCH_S = 5.0


@dataclass(frozen=True)
class _Allowed:
    """What the user allows this run to disturb."""

    reboot: bool
    drain: bool
    live_only: bool


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
    marked: bool = False  # whether the host was schedulable before this run
    left: dict[str, str] = field(default_factory=dict)  # step name -> why it is not taken
    findings: tuple[Check, ...] = ()
    canary_limit_s: float | None = None  # None: nothing was written that could starve the host

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
            findings=self.findings,
            message=message,
        )


def apply_plan(
    host: HostPlan,
    plan: Plan,
    machine: Machine,
    *,
    reboot: bool = False,
    drain: bool = False,
    live_only: bool = False,
    dry_run: bool = False,
    restart_guests: bool = False,
    on_progress: OnProgress | None = None,
    on_stop: Callable[[], None] | None = None,
    confirm: Confirm | None = None,
    offer: Confirm | None = None,
) -> ApplyReport:
    """Bring the host to its plan.  A second call changes nothing.

    Without ``reboot`` it stops after the boot layer when the kernel must be started anew (``reboot_pending``); run it
    again after the reboot.  ``drain``: shut the guests of the plan down where a setting disturbs them, and start them
    again; without it such settings are left while guests run.  ``live_only``: neither of the two, and nothing that
    reaches the CPUs of a running guest.  ``confirm`` is asked before a host is rebooted or guests go down by one of
    these options; None: not asked.  ``offer`` is asked where an option is missing; None: the answer is no.
    ``on_stop`` is called at the first Ctrl-C, which stops after the step under way and rolls back.

    Raises WrongInput (stale plan, wrong machine; nothing was changed), NotAsWanted (boot gate, or the user said no),
    RolledBack (a step failed; what this run wrote was undone), Unreachable (what was written stays, journaled).
    """
    if machine.read_only:
        raise WrongInput(f"{machine.address} is a recorded tree; a plan is applied to a machine")
    steps = host_steps(host, restart_guests=restart_guests or drain)
    allowed = _Allowed(reboot=reboot and not live_only, drain=drain and not live_only, live_only=live_only)
    with stop_on_interrupt(on_stop) as stop:
        probe = machine.probe()
        run = _Run(host, plan.sha256(), machine, probe, stop, on_progress, steps)
        try:
            return _apply(run, allowed, dry_run=dry_run, confirm=confirm, offer=offer)
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


def _apply(
    run: _Run, allowed: _Allowed, *, dry_run: bool, confirm: Confirm | None, offer: Confirm | None
) -> ApplyReport:
    run.tell(0, 0, "reading the host")
    hosts.require_root(run.probe, run.machine)
    facts = hosts.read_facts(run.probe)
    _refuse_stale_facts(run.host, facts)
    journal = hosts.read_journal(run.probe)
    run.marked = journal.schedulable
    found = hosts.check_steps(run.probe, run.steps)
    guests = hosts.running_guests(run.probe)
    booted = gate.booted_with(run.host, facts.kernel.command_line)
    if allowed.live_only:
        _leave_all_but_live(run, found, guests, facts)
    _refuse_surprises(run, found, journal)
    if not booted and not allowed.live_only:
        _refuse_other_default(run)
    for step, answer in zip(run.steps, found, strict=True):
        _note(run, step, answer)
    changes = [step for step in scope.changing(run.steps, found) if step.name not in run.left]
    if not dry_run:
        allowed = _ask(run, allowed, changes, guests, booted=booted, confirm=confirm, offer=offer)
    if booted and not allowed.drain:
        run.left.update(scope.without_drain(changes, guests))
    _note_left(run)
    if dry_run:
        return run.report("dry_run", _summary(run.reports.values(), booted or allowed.live_only))
    changes = [step for step in changes if step.name not in run.left]
    if not changes and (booted or allowed.live_only):
        if booted:
            _gate(run, facts, mark=journal.not_ready is not None)
        same = "everything is as planned already" if not run.left else f"{len(run.left)} settings are left as they are"
        return run.report("unchanged", same)

    run.stop.check()
    run.begin = _journal(run, "begin", f"{len(changes)} of {len(run.steps)} steps")
    _take(run, [step for step in run.steps if step.phase is Phase.BOOT])
    if not booted and not allowed.live_only:
        if not allowed.reboot:
            return _reboot_pending(run, "run it again after the reboot, or with --reboot")
        try:
            _reboot(run)
        except WrongInput as error:  # a machine that cannot reboot itself and go on
            return _reboot_pending(run, error.hint or error.message)
        facts = hosts.read_facts(run.probe)
        _refuse_other_machine(run, facts)
        guests = hosts.running_guests(run.probe)
        if not allowed.drain:  # guests of others may start by themselves
            run.left.update(scope.without_drain(changes, guests))
            _note_left(run)
    if booted or not allowed.live_only:
        _gate(run, facts, mark=True)
    rest = [step for step in run.steps if step.phase not in (Phase.BOOT, Phase.THROTTLE)]
    if guests and allowed.drain and scope.needs_drain(changes):
        _drain(run, guests)
    _take(run, rest)
    _throttle(run)
    _journal(run, "end", "applied" if not run.findings else "applied, real-time throttling taken back")
    said = [
        f"{len(names)} {what}"
        for what, names in (
            ("refused by the kernel", run.report("applied").of("refused")),
            ("left as they are", run.report("applied").of("left")),
            ("taken back", run.report("applied").of("taken_back")),
        )
        if names
    ]
    return run.report("applied", ", ".join(said))


def _leave_all_but_live(
    run: _Run, found: Sequence[dict[str, Any]], guests: Sequence[RunningGuest], facts: Facts
) -> None:
    checks = gate.check_boot(run.host, facts, hosts.read_values(run.probe, gate.effective_paths(run.host)))
    problems = gate.failures(checks)
    why = f"its kernel did not take the plan: {problems[0]}" if problems else None
    run.left.update(scope.live_only(run.host, run.steps, found, guests, why))


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
        if step.name in run.left:
            continue
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
        if _runs_differently(step, answer["old"]) and not step.body["restart"] and step.name not in run.left:
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


def _ask(
    run: _Run,
    allowed: _Allowed,
    changes: Sequence[Step],
    guests: Sequence[RunningGuest],
    *,
    booted: bool,
    confirm: Confirm | None,
    offer: Confirm | None,
) -> _Allowed:
    """Ask before anything goes down; what the user allows then.  Raises NotAsWanted when the user says no.

    Raises WrongInput when guests would have to be shut down that are not in the plan: nobody would start them again.
    """
    name, running = run.host.name, [guest.name for guest in guests]
    needs_reboot = not booted and not allowed.live_only
    if needs_reboot:
        reasons = [f"{step.title}: {step.wanted}" for step in run.steps if step.disturbance == "reboot"]
        reasons += [f"guest {guest} goes down with it" for guest in running]
        if not allowed.reboot:
            allowed = replace(allowed, reboot=offer is not None and offer(f"reboot {name} now?", reasons))
        elif confirm and not confirm(f"reboot {name}?", reasons):
            raise NotAsWanted(f"{name}: not rebooted, nothing was changed")
    drains = scope.needs_drain(changes)
    if drains and guests and booted and not allowed.live_only:
        reasons = [f"{step.title}: {step.wanted}" for step in drains] + [f"guest {guest}" for guest in running]
        if not allowed.drain:
            allowed = replace(allowed, drain=offer is not None and offer(f"shut down guests of {name}?", reasons))
        elif confirm and not confirm(f"shut down guests of {name}, and start them again?", reasons):
            raise NotAsWanted(f"{name}: guests not shut down, nothing was changed")
        _refuse_strangers(run, allowed, guests)
    restarts = [str(step.body["guest"]) for step in changes if _runs_differently(step, run.reports[step.name].old)]
    if restarts and confirm and not confirm(f"restart guests of {name}?", restarts):
        raise NotAsWanted(f"{name}: guests not restarted, nothing was changed")
    return allowed


def _refuse_strangers(run: _Run, allowed: _Allowed, guests: Sequence[RunningGuest]) -> None:
    ours = {guest.name for guest in run.host.guests}
    strangers = [guest.name for guest in guests if guest.name not in ours]
    if allowed.drain and strangers:
        raise WrongInput(
            f"{run.host.name}: {', '.join(strangers)} runs there and is not in the plan, so nobody would start it "
            "again; nothing was changed",
            hint="move it away or shut it down by hand, then run it again",
        )


# -- writing ----------------------------------------------------------------------------------------------------------


def _take(run: _Run, steps: Sequence[Step]) -> bool:
    """Take the steps in order but those that are left.  False: the last one starved the host and was taken back.

    Raises ProbeError at the first that fails, Interrupted between two.
    """
    steps = [step for step in steps if step.name not in run.left]
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
            old = run.reports[step.name].old if step.name in run.reports else None
            _note(run, step, {"outcome": "failed", "old": old, "read_back": error.read_back, "message": error.message})
            run.findings += (finding.failed_step(step, run.reports[step.name], error),)
            raise
        _note(run, step, answer)
        if "canary_limit_s" in answer:
            run.canary_limit_s = max(run.canary_limit_s or 0.0, answer["canary_limit_s"])
        if answer["outcome"] == "taken_back":
            return False
    run.stop.check()
    return True


def _drain(run: _Run, guests: Sequence[RunningGuest]) -> None:
    """Shut the guests down that run; their own steps, among the rest, start them again."""
    running = {guest.name for guest in guests}
    steps = tuple(drain_step(guest) for guest in run.host.guests if guest.name in running)
    _take(run, steps)
    run.steps = (*steps, *run.steps)


def _throttle(run: _Run) -> None:
    """Real-time throttling and the fair server, last of all and together: all of it holds, or none of it is kept.

    The probe asks its canary after each write, and takes the write back itself; while guests run it is watched a
    little longer, since a guest may start to spin only now.
    """
    steps = [step for step in run.steps if step.phase is Phase.THROTTLE]
    if not _take(run, steps):
        message = next(run.reports[s.name].message for s in steps if run.reports[s.name].outcome == "taken_back")
        _take_throttling_back(run, steps, message or "")
        return
    if run.canary_limit_s is None or not hosts.running_guests(run.probe):
        return
    run.tell(0, 0, f"watching for {CANARY_WATCH_S:.0f} s whether every CPU still answers")
    entries = _throttle_entries(run)
    answer = run.probe.call(
        "watch_canary",
        sequences=[entry.sequence for entry in entries],
        within_s=CANARY_WATCH_S,
        limit_s=run.canary_limit_s,
        timeout_s=60.0 + CANARY_WATCH_S,
    )
    if answer["slowest_s"] is None:
        _take_throttling_back(run, steps, answer["message"])


def _throttle_entries(run: _Run) -> list[JournalEntry]:
    assert run.begin is not None
    entries = run_entries(hosts.read_journal(run.probe), run.begin)
    return [entry for entry in entries if entry.phase == str(Phase.THROTTLE)]


def _take_throttling_back(run: _Run, steps: Sequence[Step], message: str) -> None:
    undone = undo_entries(
        run.probe, _throttle_entries(run), run.host.name, run.machine.address, run.on_progress, run.stop
    )
    back = [step for step in steps if run.reports[step.name].outcome in ("done", "taken_back", "would_change")]
    answers = dict(zip((step.name for step in back), hosts.check_steps(run.probe, back), strict=True))
    for step in back:
        old, now = run.reports[step.name].old, answers[step.name]["old"]
        _note(run, step, {"outcome": "taken_back", "old": old, "read_back": now, "message": message})
    now = ", ".join(f"{step.name} reads {answers[step.name]['old']} again" for step in back)
    run.findings += (finding.starved(back, message, now),)
    if undone.problems:
        raise RolledBack(
            f"{run.host.name}: {message}. Not everything could be undone: {'; '.join(undone.problems)}",
            hint="cure the cause, then run evenkeel rollback: it goes on with what is left",
        )


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


def _note_left(run: _Run) -> None:
    for name, reason in run.left.items():
        run.reports[name] = run.reports[name].model_copy(update={"outcome": "left", "message": reason})


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
    if mark or problems or not run.marked:
        run.probe.call("schedulable", schedulable=not problems)
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
    if not run.marked:
        run.probe.call("schedulable", schedulable=False)
    _journal(run, "end", "rolled back" if not undone.problems else "rolled back in part")
    kernel = (
        "; its kernel still runs with the arguments of the plan until the next reboot" if undone.reboot_needed else ""
    )
    if undone.problems:
        raise _rolled_back(
            run,
            f"{name}: {why}. Not everything could be undone: {'; '.join(undone.problems)}",
            hint="cure the cause, then run evenkeel rollback: it goes on with what is left",
        )
    raise _rolled_back(
        run,
        f"{name}: {why}. Rolled back: {len(undone.undone)} settings are as they were{kernel}",
        hint=None if why == "interrupted" else "cure the cause, then run evenkeel apply again",
    )


def _rolled_back(run: _Run, message: str, *, hint: str | None) -> RolledBack:
    error = RolledBack(message, hint=hint)
    error.findings = run.findings
    return error


def _summary(reports: Any, booted: bool) -> str:
    count = sum(1 for report in reports if report.outcome == "would_change")
    return f"{count} changes" + ("" if booted else ", a reboot") if count or not booted else "no change"
