"""Repairs through the real probe and its journal on a constructed tree: in order, journaled, undone when they fail."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.hosts import HostJournal, read_journal
from evenkeel.apply.rollback import rollback_host
from evenkeel.documents.plan import FileValue, HostPlan, Phase, Plan
from evenkeel.probe import canary
from evenkeel.watch.repair import MARK, MOST_REPAIRS, WITHIN_S, Repairer
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS, TreeHost, make_plan, setting

STAT = "proc/sys/vm/stat_interval"
WORKQUEUE = "sys/devices/virtual/workqueue/cpumask"
RUNTIME_US = "proc/sys/kernel/sched_rt_runtime_us"
ONLINE = frozenset(range(8))
EVERY = [one.id for one in RUNTIME_SETTINGS]


class Tuned:
    """A tree with a plan applied to it, and a conversation with its probe."""

    def __init__(self, folder: Path) -> None:
        self.tree = TreeHost(folder)
        self.plan: Plan = make_plan(self.tree, *RUNTIME_SETTINGS)
        self.before = self.tree.picture()
        assert apply_plan(self.host, self.plan, self.tree).outcome == "applied"
        self.applied = self.tree.picture()
        self.facts = self.tree.facts()
        self.now = 0.0
        self.repairer = Repairer(self.host, self.plan.sha256(), clock=lambda: self.now)

    @property
    def host(self) -> HostPlan:
        return self.plan.hosts[0]

    def write(self, path: str, text: str) -> None:
        (self.tree.root / path).write_text(text)

    def read(self, path: str) -> str:
        return (self.tree.root / path).read_text().strip()

    def repair(self, failed: list[str]) -> list[tuple[str, str, str]]:
        with self.tree.probe() as probe:
            return [
                (one.outcome, one.step.name if one.step else "", one.message)
                for one in self.repairer.repair(probe, failed, self.facts)
            ]

    def journal(self) -> HostJournal:
        with self.tree.probe() as probe:
            return read_journal(probe)


@pytest.fixture
def tuned(tmp_path: Path) -> Tuned:
    return Tuned(tmp_path)


def test_what_drifted_is_put_back_in_plan_order_and_journaled(tuned: Tuned) -> None:
    tuned.write(RUNTIME_US, "950000\n")
    tuned.write(STAT, "1\n")
    tuned.write(WORKQUEUE, "ff\n")
    outcomes = tuned.repair(["R-RT-1", "R-TIM-2", "R-WQ-1"])
    assert [(outcome, name) for outcome, name, _ in outcomes] == [
        ("repaired", "R-WQ-1"),
        ("repaired", "R-TIM-2"),
        ("repaired", "R-RT-1"),
    ], "workqueues, kernel, throttle: as apply would"
    assert tuned.tree.picture() == tuned.applied
    journal = tuned.journal()
    assert journal.last_frame is not None and journal.last_frame.event == "end" and not journal.interrupted
    assert [entry.setting for entry in journal.entries if entry.event == "done"][-3:] == ["R-WQ-1", "R-TIM-2", "R-RT-1"]


def test_a_rollback_after_repairs_gives_every_byte_back(tuned: Tuned) -> None:
    for _ in range(2):
        tuned.write(STAT, "3\n")
        assert tuned.repair(["R-TIM-2"])[0][0] == "repaired"
    rollback_host("cell", tuned.tree)
    assert tuned.tree.picture() == tuned.before


def test_the_lock_is_free_while_nothing_is_repaired(tuned: Tuned) -> None:
    with tuned.tree.probe() as probe:
        tuned.write(STAT, "1\n")
        assert tuned.repairer.repair(probe, ["R-TIM-2"], tuned.facts)
        tuned.write(STAT, "2\n")
        assert apply_plan(tuned.host, tuned.plan, tuned.tree).outcome == "applied", "the watcher's probe is still there"


def test_only_what_fails_and_is_live_is_written(tuned: Tuned) -> None:
    tuned.write(STAT, "1\n")
    tuned.write(WORKQUEUE, "ff\n")
    assert [name for _, name, _ in tuned.repair(["R-TIM-2", "V-LEDGER", "no such"])] == ["R-TIM-2"]
    assert tuned.read(WORKQUEUE) == "ff", "not said to fail"


@pytest.mark.parametrize("disturbance", ["drain", "reboot"])
def test_what_would_disturb_somebody_is_never_written(tmp_path: Path, disturbance: str) -> None:
    tree = TreeHost(tmp_path)
    one = setting("R-TIM-2", FileValue(path=f"/{STAT}", compare="integer"), "1", "10", Phase.KERNEL)
    plan = make_plan(tree, one.model_copy(update={"disturbance": disturbance}))
    repairer = Repairer(plan.hosts[0], plan.sha256())
    assert repairer.candidates(["R-TIM-2"], ONLINE) == []
    with tree.probe() as probe:
        assert repairer.repair(probe, ["R-TIM-2"], tree.facts()) == []
        assert (tree.root / STAT).read_text().strip() == "1"
        assert read_journal(probe).entries == ()


def test_after_a_rollback_nothing_is_put_back(tuned: Tuned) -> None:
    rollback_host("cell", tuned.tree)
    outcomes = tuned.repair(EVERY)
    assert [outcome for outcome, _, _ in outcomes] == ["left"] and "nothing is applied" in outcomes[0][2]
    assert tuned.tree.picture() == tuned.before


def test_while_another_one_applies_nothing_is_put_back(tuned: Tuned) -> None:
    tuned.write(STAT, "1\n")
    with tuned.tree.probe() as other:
        begin = other.call("journal_note", event="begin", plan_sha256="f" * 64)  # takes the lock
        assert begin
        assert tuned.repair(["R-TIM-2"]) == [("left", "", "somebody applies to this host right now")]
        other.call("journal_note", event="end", plan_sha256="f" * 64)
    assert tuned.read(STAT) == "1"
    assert tuned.repair(["R-TIM-2"])[0][0] == "repaired", "as soon as it is over"


def test_after_an_interrupted_apply_nothing_is_put_back(tuned: Tuned) -> None:
    with tuned.tree.probe() as other:
        other.call("journal_note", event="begin", plan_sha256="f" * 64, message="3 of 6 steps")
    tuned.write(STAT, "1\n")
    outcomes = tuned.repair(["R-TIM-2"])
    assert outcomes == [("left", "", "an apply was interrupted: run evenkeel apply again, or rollback")]
    assert tuned.read(STAT) == "1"


def test_under_another_kernel_or_command_line_nothing_is_put_back(tuned: Tuned) -> None:
    """The value may mean something else there, and nobody has looked at the boot gate."""
    tuned.write(STAT, "1\n")
    kernel = tuned.facts.kernel
    tuned.facts = tuned.facts.model_copy(update={"kernel": kernel.model_copy(update={"release": "6.99.0"})})
    outcomes = tuned.repair(["R-TIM-2"])
    assert [outcome for outcome, _, _ in outcomes] == ["left"] and "6.99.0 runs" in outcomes[0][2]
    assert tuned.read(STAT) == "1"


def test_a_host_that_failed_its_boot_gate_is_left_alone(tuned: Tuned) -> None:
    tuned.write(STAT, "1\n")
    with tuned.tree.probe() as probe:
        probe.call("not_ready", why="nohz_full is not on the command line")
    outcomes = tuned.repair(["R-TIM-2"])
    assert [outcome for outcome, _, _ in outcomes] == ["left"] and "not ready: nohz_full" in outcomes[0][2]
    assert tuned.read(STAT) == "1"


def test_without_the_planned_command_line_nothing_is_put_back(tmp_path: Path) -> None:
    tree = TreeHost(tmp_path)
    plan = make_plan(tree, *RUNTIME_SETTINGS, *BOOT_SETTINGS)  # planned, never booted
    outcomes = []
    with tree.probe() as probe:
        outcomes = Repairer(plan.hosts[0], plan.sha256()).repair(probe, ["R-TIM-2"], tree.facts())
        assert read_journal(probe).entries == ()
    assert [one.outcome for one in outcomes] == ["left"] and "command line" in outcomes[0].message


def test_a_watcher_of_an_older_plan_does_not_fight_the_newer_one(tuned: Tuned) -> None:
    other = setting("R-TIM-2", FileValue(path=f"/{STAT}", compare="integer"), "10", "20", Phase.KERNEL)
    newer = make_plan(tuned.tree, other)
    assert apply_plan(newer.hosts[0], newer, tuned.tree).outcome == "applied"
    tuned.write(WORKQUEUE, "ff\n")
    outcomes = tuned.repair(["R-TIM-2", "R-WQ-1"])
    assert [(outcome, name) for outcome, name, _ in outcomes] == [("left", "R-TIM-2"), ("repaired", "R-WQ-1")]
    assert outcomes[0][2] == "20 was applied since, by another plan: watch with that one"
    assert tuned.read(STAT) == "20"


def test_a_repair_of_ours_that_was_cut_short_is_undone_first(tuned: Tuned) -> None:
    """The watcher was killed between the write and its end; the one after it finds the frame open."""
    tuned.write(STAT, "1\n")
    with tuned.tree.probe() as other:
        other.call("journal_note", event="begin", plan_sha256=tuned.plan.sha256(), message=f"{MARK} of 1 settings")
        body = {"kind": "file", "path": f"/{STAT}", "value": "10", "compare": "integer"}
        other.call("apply_step", step=body, plan_sha256=tuned.plan.sha256(), setting="R-TIM-2", phase="kernel")
    assert tuned.journal().interrupted
    tuned.write(WORKQUEUE, "ff\n")
    assert [(outcome, name) for outcome, name, _ in tuned.repair(["R-WQ-1"])] == [("repaired", "R-WQ-1")]
    assert tuned.read(STAT) == "1", "as that repair had found it; the next sweep says so and puts it back"
    assert not tuned.journal().interrupted


def test_a_repair_that_fails_is_undone_and_the_others_are_made(tuned: Tuned) -> None:
    (tuned.tree.root / WORKQUEUE).unlink()
    (tuned.tree.root / WORKQUEUE).symlink_to("/proc/sys/kernel/ostype")  # reads "Linux", takes nothing
    tuned.write(STAT, "1\n")
    outcomes = tuned.repair(["R-WQ-1", "R-TIM-2"])
    assert [(outcome, name) for outcome, name, _ in outcomes] == [("failed", "R-WQ-1"), ("repaired", "R-TIM-2")]
    assert "cannot write" in outcomes[0][2] and "not undone" not in outcomes[0][2], outcomes[0][2]
    assert tuned.read(STAT) == "10"
    assert not tuned.journal().interrupted


def test_a_setting_that_another_owner_sets_again_and_again_is_left_alone(tuned: Tuned) -> None:
    said = []
    for _ in range(MOST_REPAIRS + 3):
        tuned.write(STAT, "1\n")
        said += tuned.repair(["R-TIM-2"])
        tuned.now += 1.0
    assert [outcome for outcome, _, _ in said] == ["repaired"] * MOST_REPAIRS
    assert "who sets it?" in said[-1][2] and "who sets it?" not in said[0][2]
    assert tuned.read(STAT) == "1", "no fight"
    tuned.now += WITHIN_S
    assert tuned.repair(["R-TIM-2"])[0][0] == "repaired", "after a while it is tried again"


def test_a_structural_check_with_a_cure_leads_to_the_step_of_its_guest() -> None:
    from tests.verify.record import load

    plan, _ = load()
    repairer = Repairer(plan.hosts[0], plan.sha256())
    names = [
        step.name
        for step in repairer.candidates(["V-THREAD-HELPER:plc", "C-1:plc/vcpu1", "R-RT-1", "G-15:plc"], ONLINE)
    ]
    assert names == ["C-1:plc/vcpu1", "plc/helpers", "R-RT-1"], "and a guest's definition is never touched"
    kinds = {
        step.body["kind"] for step in repairer.candidates([setting.id for setting in plan.hosts[0].settings], ONLINE)
    }
    assert kinds <= {"file", "interrupt", "thread", "unit", "partition", "guest_thread"}
    waiting = repairer.candidates(["C-1:plc/vcpu1", "R-RT-1"], ONLINE - {5})
    assert [step.name for step in waiting] == ["R-RT-1"], "CPU 5 is offline: its partition cannot be valid"


# -- the canary -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(tuned: Tuned) -> Iterator[None]:
    """A host-wide operation that comes to its end: somebody reads the FIFO that stands for it."""
    file = tuned.tree.root / canary.FILE.lstrip("/")
    if not file.exists():
        os.mkfifo(file)
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        os.close(descriptor)


def ask(tuned: Tuned, *, take_back: bool) -> dict[str, Any]:
    with tuned.tree.probe() as probe:
        return tuned.repairer.ask_canary(probe, 0.3, take_back=take_back)


def test_while_every_cpu_answers_nothing_is_taken_back(tuned: Tuned) -> None:
    with answering(tuned):
        answer = ask(tuned, take_back=True)
    assert answer["slowest_s"] is not None and answer["undone"] == []
    assert tuned.read(RUNTIME_US) == "-1"


def test_a_guest_that_begins_to_spin_later_has_throttling_taken_back_and_nobody_turns_it_off_again(
    tuned: Tuned,
) -> None:
    with answering(tuned):
        pass  # and from now on nobody reads
    answer = ask(tuned, take_back=True)
    assert answer["slowest_s"] is None and len(answer["undone"]) == 1 and answer["problems"] == []
    assert "stat_refresh" in answer["message"]
    assert tuned.read(RUNTIME_US) == "950000"
    assert not tuned.journal().interrupted and tuned.journal().writer is None
    [(outcome, name, why)] = tuned.repair(["R-RT-1"])
    assert (outcome, name) == ("left", "R-RT-1") and "it starved the host" in why
    assert tuned.read(RUNTIME_US) == "950000"
    tuned.write(STAT, "1\n")
    assert [(outcome, name) for outcome, name, _ in tuned.repair(["R-TIM-2"])] == [("repaired", "R-TIM-2")]

    with answering(tuned):  # the guest was cured, and its owner applies again
        assert apply_plan(tuned.host, tuned.plan, tuned.tree).outcome == "applied"
        tuned.write(RUNTIME_US, "950000\n")
        assert [(outcome, name) for outcome, name, _ in tuned.repair(["R-RT-1"])] == [("repaired", "R-RT-1")]


def test_without_repair_the_canary_is_only_asked(tuned: Tuned) -> None:
    with answering(tuned):
        pass
    assert ask(tuned, take_back=False)["slowest_s"] is None
    assert tuned.read(RUNTIME_US) == "-1"
