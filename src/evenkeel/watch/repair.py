"""Put back what drifted and may be put back while guests run, in plan order, through the journal of apply.

Each repair is what apply itself would send for that setting: `apply_step` of the probe, which snapshots, journals,
writes, reads back and compares.  Nothing is repaired on a host to which nothing was applied (a rollback must stay one),
while somebody applies, after an apply that was interrupted, or under another kernel or command line than the planned
one.  Must not start, stop, define or move a guest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from evenkeel.apply.gate import booted_with
from evenkeel.apply.hosts import HostJournal, read_journal
from evenkeel.apply.rollback import run_entries, undo_entries
from evenkeel.apply.steps import Step, host_steps
from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import HostPlan, Phase
from evenkeel.machines.protocol import Probe, ProbeError

#: Kinds of steps that put a value back and touch nothing else.
KINDS = frozenset({"file", "interrupt", "thread", "unit", "service", "partition", "guest_thread", "guest_helpers"})
#: Structural check -> suffix of the step that cures it.
_CURES = {"V-THREAD-HELPER": "helpers"}
#: A setting that drifts this often within this time has another owner; to go on would be a fight.
MOST_REPAIRS = 5
WITHIN_S = 300.0
#: How our runs in the journal begin, so that one that was cut short is known for ours.
MARK = "watch: repair"


@dataclass(frozen=True)
class Outcome:
    """``repaired``: written and read back; ``failed``: undone again; ``left``: not tried, ``message`` says why."""

    outcome: Literal["repaired", "failed", "left"]
    step: Step | None
    message: str


@dataclass
class Repairer:
    """Repairs of one host, and how often each was made.  ``clock``: seconds, monotonic."""

    host: HostPlan
    plan_sha256: str
    clock: Callable[[], float] = time.monotonic
    _made: dict[str, list[float]] = field(default_factory=dict)
    #: Real-time throttling was taken back because a CPU did not answer; only an apply turns it off again.
    _starved: bool = False

    def candidates(self, failed: Iterable[str], online: frozenset[int]) -> list[Step]:
        """Steps that cure these failed checks (by id) while guests run, in plan order.

        A partition waits until its CPUs are ``online``: it stays invalid when they come back, and is put back then.
        """
        wanted = {_step_name(check) for check in failed}
        return [step for step in live_steps(self.host) if step.name in wanted and _cpus(step) <= online]

    def due(self, step: Step) -> bool:
        """Whether it was not repaired too often lately."""
        since = self.clock() - WITHIN_S
        self._made[step.name] = [at for at in self._made.get(step.name, []) if at > since]
        return len(self._made[step.name]) < MOST_REPAIRS

    def repair(self, probe: Probe, failed: Iterable[str], facts: Facts) -> list[Outcome]:
        """Repair what is due of :meth:`candidates`.  Raises Unreachable; what was under way then is in the journal.

        The lock of the journal is held no longer than this takes, so that apply and rollback find it free.
        """
        steps = [step for step in self.candidates(failed, facts.online) if self.due(step)]
        if not steps:
            return []
        if facts.kernel.release != self.host.kernel_release:
            return [Outcome("left", None, f"kernel {facts.kernel.release} runs, the plan is for another one")]
        if not booted_with(self.host, facts.kernel.command_line):
            return [Outcome("left", None, "it was booted without the plan's kernel command line: evenkeel apply")]
        try:
            journal = self._settled_journal(probe)
            if isinstance(journal, str):
                return [Outcome("left", None, journal)]
            left = [outcome for step in steps if (outcome := self._not_ours(journal, step))]
            mine = [step for step in steps if step not in [outcome.step for outcome in left]]
            return [*left, *(self._repair(probe, mine) if mine else [])]
        except ProbeError as error:  # somebody took the lock meanwhile, or the journal cannot be written
            return [Outcome("left", None, error.message)]
        finally:
            probe.call("journal_release")

    def _settled_journal(self, probe: Probe) -> HostJournal | str:
        """The journal, or why nothing may be written now.  A run of ours that was cut short is undone first."""
        journal = read_journal(probe)
        if journal.writer is not None:
            return "somebody applies to this host right now"
        frame = journal.last_frame
        if journal.interrupted and frame is not None and (frame.message or "").startswith(MARK):
            undo_entries(probe, run_entries(journal, frame.sequence), self.host.name, self.host.address)
            probe.call("journal_note", event="end", plan_sha256=self.plan_sha256, message="watch: cut short, undone")
            journal = read_journal(probe)
        elif journal.interrupted:
            return "an apply was interrupted: run evenkeel apply again, or rollback"
        if journal.not_ready:
            return f"the host is not ready: {journal.not_ready.splitlines()[0]}"
        return journal if journal.outstanding else "nothing is applied to this host, so there is nothing to put back"

    def _not_ours(self, journal: HostJournal, step: Step) -> Outcome | None:
        """Whether the plan that was applied last wants something else here than ours, or a spinner forbids it."""
        wanted = next((entry.wanted for entry in reversed(journal.outstanding) if entry.setting == step.name), None)
        if wanted is None and self._starved and step.phase is Phase.THROTTLE:
            why = "it starved the host and was taken back: cure the guest, then run evenkeel apply"
        elif wanted in (None, step.body.get("value")):
            return None
        else:
            why = f"{wanted} was applied since, by another plan: watch with that one"
        self._made[step.name].append(self.clock())
        return Outcome("left", step, why)

    def ask_canary(self, probe: Probe, limit_s: float, *, take_back: bool) -> dict[str, Any]:
        """Ask the canary once; when it does not answer within ``limit_s``, let the probe take throttling back.

        The answer of the operation `watch_canary`.  ``take_back`` false: it is only asked.
        """
        entries = [
            entry.sequence
            for entry in (read_journal(probe).outstanding if take_back else ())
            if entry.phase == str(Phase.THROTTLE)
        ]
        try:
            answer: dict[str, Any] = probe.call(
                "watch_canary", sequences=entries, within_s=0.0, limit_s=limit_s, timeout_s=60.0 + limit_s
            )
            if answer["undone"]:
                self._starved = True
                probe.call(
                    "journal_note",
                    event="end",
                    plan_sha256=self.plan_sha256,
                    message="watch: a CPU starved, real-time throttling taken back",
                )
            return answer
        finally:
            probe.call("journal_release")

    def _repair(self, probe: Probe, steps: list[Step]) -> list[Outcome]:
        outcomes = []
        begin = probe.call(
            "journal_note", event="begin", plan_sha256=self.plan_sha256, message=f"{MARK} of {len(steps)} settings"
        )
        for step in steps:
            self._made[step.name].append(self.clock())
            try:
                answer = probe.call(
                    "apply_step",
                    step=step.body,
                    plan_sha256=self.plan_sha256,
                    setting=step.name,
                    phase=str(step.phase),
                    timeout_s=step.timeout_s,
                )
            except ProbeError as error:
                outcomes.append(Outcome("failed", step, error.message + self._undo(probe, begin, step)))
                continue
            if answer["outcome"] == "done":
                told = f"was {answer['old']}, is {answer['read_back']}"
                outcomes.append(Outcome("repaired", step, told + self._last_time(step)))
            elif answer["outcome"] in ("refused", "taken_back"):
                outcomes.append(Outcome("failed", step, answer["message"]))
        probe.call("journal_note", event="end", plan_sha256=self.plan_sha256, message="watch: repaired")
        return outcomes

    def _last_time(self, step: Step) -> str:
        if len(self._made[step.name]) < MOST_REPAIRS:
            return ""
        return f"; for the {MOST_REPAIRS}th time, so it is left alone for {WITHIN_S / 60:.0f} min: who sets it?"

    def _undo(self, probe: Probe, begin: int, step: Step) -> str:
        entries = [entry for entry in run_entries(read_journal(probe), begin) if entry.setting == step.name]
        if not entries:
            return ""
        undone = undo_entries(probe, entries, self.host.name, self.host.address)
        return f"; not undone either: {'; '.join(undone.problems)}" if undone.problems else "; undone"


def live_steps(host: HostPlan) -> list[Step]:
    """Every step of the plan that disturbs nobody and puts back a value, in plan order."""
    return [step for step in host_steps(host) if step.disturbance == "live" and step.body["kind"] in KINDS]


def _cpus(step: Step) -> frozenset[int]:
    return parse_cpus(step.body["value"]) if step.body["kind"] == "partition" else frozenset()


def _step_name(check: str) -> str:
    """Of a setting its own id; of a structural check with a cure the step of its guest: ``plc/helpers``."""
    kind, _, guest = check.partition(":")
    return f"{guest}/{_CURES[kind]}" if kind in _CURES else check
