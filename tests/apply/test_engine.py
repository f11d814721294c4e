"""The engine against a constructed machine behind the real probe: order, refusal, rollback, interruption, kill."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.report import ApplyReport
from evenkeel.apply.rollback import rollback_host
from evenkeel.apply.status import host_status
from evenkeel.documents.plan import FileValue, Phase, Plan
from evenkeel.errors import EvenkeelError, NotAsWanted, RolledBack, Unreachable, WrongInput
from evenkeel.machines.protocol import ProbeError
from evenkeel.probe import journal
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS, TreeHost, make_plan, setting

ALL = (*BOOT_SETTINGS, *RUNTIME_SETTINGS)
#: Taken by the kernel and changed (0 becomes the default): the step fails at its read-back.
STUBBORN = setting("R-BAD", FileValue(path="/proc/self/timerslack_ns", compare="integer"), "70000", "0", Phase.KERNEL)


@pytest.fixture
def host(tmp_path: Path) -> TreeHost:
    return TreeHost(tmp_path)


def apply(host: TreeHost, plan: Plan, **options: Any) -> ApplyReport:
    return apply_plan(plan.hosts[0], plan, host, **options)


def events(host: TreeHost) -> list[str]:
    return [entry["event"] for entry in journal.read_journal(str(host.root))["entries"]]


def test_apply_twice_then_roll_back(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    report = apply(host, plan)
    assert report.outcome == "applied"
    assert [step.name for step in report.steps] == ["H-THP", "R-IRQ-1", "R-WQ-1", "R-TIM-2", "R-RT-1"]  # by phase
    assert {step.outcome for step in report.steps} == {"done"}
    assert [(step.old, step.read_back) for step in report.steps if step.name == "R-TIM-2"] == [("1", "10")]
    applied, written = host.picture(), events(host)
    assert written == ["begin", "gate", *["intent", "done"] * 5, "end"]

    again = apply(host, plan)
    assert again.outcome == "unchanged"
    assert {step.outcome for step in again.steps} == {"unchanged"}
    assert host.picture() == applied
    assert events(host) == written  # nothing was changed, so there is nothing to journal

    undone = rollback_host("cell", host)
    assert undone.undone == ("R-RT-1", "R-TIM-2", "R-WQ-1", "R-IRQ-1", "H-THP")
    assert host.picture() == before
    assert rollback_host("cell", host).undone == ()


def test_dry_run_says_what_it_would_do_and_leaves_no_trace(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *ALL)
    report = apply(host, plan, dry_run=True)
    assert report.outcome == "dry_run"
    assert {step.outcome for step in report.steps} == {"would_change"}
    assert report.message == "6 changes, a reboot"
    assert host.picture() == before
    assert not (host.root / "var/lib/evenkeel").exists()


def test_boot_layer_reboot_gate_and_the_rest(host: TreeHost) -> None:
    plan = make_plan(host, *ALL)
    asked: list[tuple[str, list[str]]] = []

    def confirm(what: str, why: Sequence[str]) -> bool:
        asked.append((what, list(why)))
        return True

    report = apply(host, plan, reboot=True, confirm=confirm)
    line = "Kernel command line: isolcpus=managed_irq,2-3 nohz_full=2-3 hugepagesz=2M hugepages=0:64"
    assert asked == [("reboot cell?", [line])]
    assert (report.outcome, report.rebooted, host.boots) == ("applied", True, 1)
    assert {check.status for check in report.gate} == {"passed"}
    assert "hugepagesz=2M hugepages=0:64" in (host.root / "proc/cmdline").read_text()
    assert events(host)[:5] == ["begin", "intent", "done", "reboot", "gate"]
    assert apply(host, plan, reboot=True).outcome == "unchanged"
    assert host.boots == 1

    undone = rollback_host("cell", host, reboot=True)
    assert undone.rebooted and host.boots == 2
    assert host.facts().kernel.command_line == TreeHost(host.fresh.parent).facts().kernel.command_line
    assert (host.root / "proc/cmdline").read_bytes() == (host.fresh / "proc/cmdline").read_bytes()
    assert not (host.root / "etc/default/grub.d").exists()


def test_without_reboot_it_stops_after_the_boot_layer_and_goes_on_after_a_reboot_by_hand(host: TreeHost) -> None:
    plan = make_plan(host, *ALL)
    report = apply(host, plan)
    assert report.outcome == "reboot_pending"
    assert [step.name for step in report.of("done")] == ["boot"]
    assert apply(host, plan).outcome == "reboot_pending"  # until somebody reboots
    assert host_status(plan.hosts[0], plan.sha256(), host).state == "waits for a reboot: run apply --reboot"
    host.reboot()
    assert apply(host, plan).outcome == "applied"
    assert apply(host, plan).outcome == "unchanged"


def test_a_no_to_the_reboot_changes_nothing(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *ALL)
    with pytest.raises(NotAsWanted, match="not rebooted, nothing was changed"):
        apply(host, plan, reboot=True, confirm=lambda what, why: False)
    assert host.picture() == before


@pytest.mark.parametrize(
    ("spoiled", "named"),
    [
        (("nohz_full=2-3", "nohz_full=2"), "H-ISO-2: nohz_full on the command line: expected nohz_full=2-3, found"),
        (("isolcpus=managed_irq,2-3", ""), "H-ISO-1: isolcpus on the command line"),
        (("hugepagesz=2M ", ""), "H-HP-1:2M"),
    ],
)
def test_a_kernel_that_did_not_take_the_plan_does_not_pass_the_gate(
    host: TreeHost, spoiled: tuple[str, str], named: str
) -> None:
    plan = make_plan(host, *ALL)
    host.spoil_command_line = spoiled
    with pytest.raises(NotAsWanted, match="is not ready") as caught:
        apply(host, plan, reboot=True)
    assert named in caught.value.message
    assert named in (host.root / "var/lib/evenkeel/not-ready").read_text()
    assert "R-WQ-1" not in {entry.get("setting") for entry in journal.read_journal(str(host.root))["entries"]}
    assert host_status(plan.hosts[0], plan.sha256(), host).state == "not ready: its kernel did not take the plan"

    host.spoil_command_line = ("", "")
    host.reboot()
    assert apply(host, plan).outcome == "applied"
    assert not (host.root / "var/lib/evenkeel/not-ready").exists()


def test_an_effective_file_that_shows_something_else_does_not_pass_the_gate(host: TreeHost) -> None:
    plan = make_plan(host, *ALL)
    apply(host, plan)
    host.reboot()
    (host.root / "sys/devices/system/cpu/nohz_full").write_text("2\n")
    with pytest.raises(NotAsWanted, match="nohz_full took effect: expected 2-3, found 2"):
        apply(host, plan)


def test_stale_facts_are_refused_by_the_parts_that_differ(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    stale = {**plan.hosts[0].fingerprint, "cpus": "0" * 64, "kernel": "1" * 64}
    old = plan.model_copy(update={"hosts": (plan.hosts[0].model_copy(update={"fingerprint": stale}),)})
    before = host.picture()
    with pytest.raises(WrongInput, match="stale facts: cpus, kernel differ; nothing was changed") as caught:
        apply(host, old)
    assert caught.value.exit_code == 2
    assert host.picture() == before


def test_a_reboot_into_another_kernel_is_refused_before_it(host: TreeHost) -> None:
    file = host.root / "boot/grub/grub.cfg"
    file.write_text('set default="0"\n' + file.read_text())
    before = host.picture()
    with pytest.raises(WrongInput, match=r"after a reboot 6\.12-rt would run; nothing was changed"):
        apply(host, make_plan(host, *ALL), reboot=True)
    assert host.picture() == before
    assert apply(host, make_plan(host, *RUNTIME_SETTINGS)).outcome == "applied"  # needs no reboot, so no matter


def test_a_value_that_the_plan_never_saw_is_refused_by_name(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    (host.root / "proc/sys/vm/stat_interval").write_text("42\n")
    before = host.picture()
    with pytest.raises(WrongInput, match=r"R-TIM-2: /proc/sys/vm/stat_interval is '42', the plan saw '1', wants '10'"):
        apply(host, plan)
    assert host.picture() == before


def test_the_kernels_own_value_under_the_planned_command_line_is_no_surprise(host: TreeHost) -> None:
    """Rolled back without a reboot and applied again: the mask is neither the plan's old nor its new value."""
    host.own_values = {"sys/devices/virtual/workqueue/cpumask": "fb\n"}
    plan = make_plan(host, *ALL)
    apply(host, plan, reboot=True)
    assert rollback_host("cell", host).reboot_needed
    assert (host.root / "sys/devices/virtual/workqueue/cpumask").read_text() == "fb\n"
    assert apply(host, plan).outcome == "applied"
    assert host.boots == 1


def test_drift_of_an_applied_plan_is_repaired_and_still_rolls_back(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    apply(host, plan)
    (host.root / "proc/sys/vm/stat_interval").write_text("42\n")
    status = host_status(plan.hosts[0], plan.sha256(), host)
    assert (status.drifted, status.pending) == (("R-TIM-2",), ("R-TIM-2",))
    assert status.state == "1 settings drifted: run apply again"
    report = apply(host, plan)
    assert [step.name for step in report.of("done")] == ["R-TIM-2"]
    rollback_host("cell", host)
    assert host.picture() == before


def test_a_reboot_that_nobody_planned(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    apply(host, plan)
    host.reboot()
    status = host_status(plan.hosts[0], plan.sha256(), host)
    assert status.rebooted_since
    assert status.state == "rebooted since apply, 5 settings are gone: run apply again"
    before = host.picture()
    assert apply(host, plan).outcome == "applied"
    undone = rollback_host("cell", host)
    assert len(undone.undone) == 5
    assert len(undone.gone) == 5
    assert host.picture() == before


def test_a_step_that_fails_rolls_back_what_this_run_wrote(host: TreeHost) -> None:
    for tree in (host.root, host.fresh):
        (tree / "proc/self").symlink_to("/proc/self")
    plan = make_plan(host, *ALL, STUBBORN.model_copy(update={"old": "50000"}))
    before = host.picture()
    with pytest.raises(RolledBack, match="wrote '0' and reads '50000'") as caught:
        apply(host, plan, reboot=True)
    assert caught.value.exit_code == 4
    assert host.boots == 1
    assert "until the next reboot" in caught.value.message
    after = host.picture()
    assert {name for name in after if after[name] != before.get(name)} <= {
        "/proc/cmdline",
        "/sys/devices/system/cpu",
        "/sys/devices/system",
        "/sys/devices/system/cpu/nohz_full",
    }
    assert events(host)[-1] == "end"


def test_a_failed_run_takes_back_its_own_part_only(host: TreeHost) -> None:
    (host.root / "proc/self").symlink_to("/proc/self")
    first = make_plan(host, *RUNTIME_SETTINGS[:2])
    apply(host, first)
    between = host.picture()
    second = make_plan(host, *RUNTIME_SETTINGS[2:], STUBBORN.model_copy(update={"old": "50000"}))
    with pytest.raises(RolledBack):
        apply(host, second)
    assert host.picture() == between
    assert rollback_host("cell", host).undone == ("R-WQ-1", "R-IRQ-1")


def interrupt_at(word: str, times: int = 1, number: int = signal.SIGINT) -> Any:
    def on_progress(done: int, total: int, what: str) -> None:
        if word in what and not what.startswith("undo"):
            for _ in range(times):
                os.kill(os.getpid(), number)

    return on_progress


@pytest.mark.parametrize("word", ["H-THP", "R-WQ-1", "R-RT-1", "rebooting"])
def test_ctrl_c_rolls_back(host: TreeHost, word: str) -> None:
    before, plan = host.picture(), make_plan(host, *ALL)
    told: list[bool] = []
    with pytest.raises(RolledBack, match=r"interrupted\. Rolled back"):
        apply(host, plan, reboot=True, on_progress=interrupt_at(word), on_stop=lambda: told.append(True))
    assert told == [True]
    assert not (host.root / "etc/default/grub.d").exists()
    if word == "rebooting":  # nothing of the runtime was written, and the tree did not go down yet
        assert host.picture() == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_kill_rolls_back_as_ctrl_c_does(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    with pytest.raises(RolledBack, match=r"interrupted\. Rolled back"):
        apply(host, plan, on_progress=interrupt_at("R-WQ-1", number=signal.SIGTERM))
    assert host.picture() == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_in_the_rollback_stops_it_and_the_next_one_goes_on(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    apply(host, plan)

    def stop(done: int, total: int, what: str) -> None:
        if what == "undo R-WQ-1":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(EvenkeelError, match="interrupted; 2 entries are not undone yet"):
        rollback_host("cell", host, on_progress=stop)
    assert host.picture() != before
    assert rollback_host("cell", host).undone == ("R-IRQ-1", "H-THP")
    assert host.picture() == before


def test_ctrl_c_before_anything_is_written(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *ALL)
    with pytest.raises(NotAsWanted, match="interrupted; nothing was changed"):
        apply(host, plan, on_progress=interrupt_at("reading the host"))
    assert host.picture() == before


def test_ctrl_c_twice_leaves_everything_and_rollback_still_works(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        apply(host, plan, on_progress=interrupt_at("R-TIM-2", times=2))
    assert host.picture() != before
    assert host_status(plan.hosts[0], plan.sha256(), host).state.startswith("an apply was interrupted")
    rollback_host("cell", host)
    assert host.picture() == before


def test_the_controlling_side_killed_at_any_step(tmp_path: Path) -> None:
    """SIGKILL of the whole engine; then either the next apply goes on, or rollback undoes, in turns."""
    dice = random.Random(4)
    for turn, at in enumerate(dice.sample(range(1, 9), 6)):
        host = TreeHost(_folder(tmp_path / str(turn)))
        before, plan = host.picture(), make_plan(host, *ALL)
        child = os.fork()
        if not child:
            seen = 0

            def die(done: int, total: int, what: str, at: int = at) -> None:
                nonlocal seen
                seen += 1
                if seen > at:
                    os.kill(os.getpid(), signal.SIGKILL)

            apply(host, plan, reboot=True, on_progress=die)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if turn % 2:
            assert apply(host, plan, reboot=True).outcome == "applied", f"killed at {at}"
            assert apply(host, plan).outcome == "unchanged"
        undone = rollback_host("cell", host)
        assert undone.problems == ()
        host.reboot()
        fresh = TreeHost(_folder(tmp_path / f"{turn}-fresh"))
        fresh.reboot()
        assert host.picture() == fresh.picture(), f"killed at {at}"
        assert {*before} <= {*host.picture()}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_two_appliers_exclude_each_other(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    with host.probe() as other:
        other.call("journal_note", event="begin", plan_sha256="0" * 64)
        with pytest.raises(ProbeError, match="another evenkeel is applying"):
            apply(host, plan)
    assert apply(host, plan).outcome == "applied"


def test_a_connection_lost_in_the_middle_is_made_again_to_roll_back(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    probes: list[Any] = []
    real = host.probe

    def remember() -> Any:
        probes.append(real())
        return probes[-1]

    host.probe = remember  # type: ignore[method-assign]

    def cut(done: int, total: int, what: str) -> None:
        if "R-TIM-2" in what:
            probes[-1].inner._process.kill()

    with pytest.raises(RolledBack, match=r"went away before|connection lost"):
        apply(host, plan, on_progress=cut)
    assert len(probes) == 2
    assert host.picture() == before


def test_a_host_that_stays_away_keeps_its_journal(host: TreeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    from evenkeel.apply import engine

    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    probes: list[Any] = []
    real = host.probe

    def once() -> Any:
        if probes:
            raise Unreachable("tree: away")
        probes.append(real())
        return probes[-1]

    monkeypatch.setattr(engine, "AWAY_SHORT_S", 0.0)
    host.probe = once  # type: ignore[method-assign]

    def cut(done: int, total: int, what: str) -> None:
        if "R-TIM-2" in what:
            probes[-1].inner._process.kill()

    with pytest.raises(Unreachable, match="what was written so far stays written") as caught:
        apply(host, plan, on_progress=cut)
    assert "evenkeel rollback" in (caught.value.hint or "")
    monkeypatch.undo()
    host.probe = real  # type: ignore[method-assign]
    assert rollback_host("cell", host).undone == ("R-WQ-1", "R-IRQ-1", "H-THP")
    assert host.picture() == before


def test_a_recorded_tree_is_never_written_to(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    host.read_only = True
    with pytest.raises(WrongInput, match="a recorded tree"):
        apply(host, plan)
    with pytest.raises(WrongInput, match="a recorded tree"):
        rollback_host("cell", host)


def test_something_that_cannot_be_undone_does_not_keep_the_rest_from_it(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    apply(host, plan)
    broken = host.root / "proc/sys/vm/stat_interval"
    broken.unlink()
    broken.mkdir()  # reading it fails
    undone = rollback_host("cell", host)
    assert [problem.partition(":")[0] for problem in undone.problems] == ["R-TIM-2"]
    assert len(undone.undone) == 4
    broken.rmdir()
    broken.write_text("10\n")
    assert rollback_host("cell", host).undone == ("R-TIM-2",)
    assert host.picture() == before
