"""The power of a real Debian host is cut in each phase of an apply, and of the rollback: nothing half-done stays.

QEMU is killed, so nothing in the host has a say.  After each cut the host boots, knows that it was interrupted, and the
next apply goes on or the rollback restores; in the end the facts are those of before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.virtual.before_after import BOOT_FILES, facts_of, settings, stable
from tests.virtual.conftest import on_host, running_host
from tests.virtual.tuned import SPEC, TunedHost, site

from evenkeel.apply import engine
from evenkeel.apply.engine import apply_plan
from evenkeel.apply.hosts import read_journal
from evenkeel.apply.report import ApplyReport
from evenkeel.apply.rollback import rollback_host
from evenkeel.apply.status import host_status
from evenkeel.apply.steps import Step, host_steps
from evenkeel.documents.plan import Phase
from evenkeel.errors import EvenkeelError
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual import VirtualMachine, lifecycle
from evenkeel.plan import make_plan

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(5400)]


def apply(host: TunedHost, on_progress: OnProgress | None = None) -> ApplyReport:
    return apply_plan(host.host, host.plan, host.machine, reboot=True, drain=True, on_progress=on_progress)


def cut_at(machine: VirtualMachine, step: str, hits: list[str]) -> OnProgress:
    """Cut the power just before this step is sent, which is after the one before it was written."""

    def on_progress(done: int, total: int, what: str) -> None:
        if what.startswith(f"{step}: ") and not hits:
            hits.append(step)
            lifecycle.power_cut(machine.name)

    return on_progress


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Nobody waits for a host whose power was cut."""
    away = engine.AWAY_S
    engine.AWAY_S = 5.0
    try:
        yield
    finally:
        engine.AWAY_S = away


def cut(machine: VirtualMachine, step: str, work: Callable[[OnProgress], Any]) -> None:
    """Do ``work`` until that step, cut the power there, and switch the host on again."""
    hits: list[str] = []
    with impatient(), pytest.raises(EvenkeelError):
        work(cut_at(machine, step, hits))
    assert hits == [step], "the power was not cut"
    machine.close()
    machine.start()


def middle_of_each_phase(steps: tuple[Step, ...]) -> list[Step]:
    """A step in the middle of each phase, so that something of it is written and something is not."""
    found = []
    for phase in Phase:
        here = [step for step in steps if step.phase is phase]
        if phase is not Phase.BOOT and here:
            found.append(here[len(here) // 2])
    return found


def test_the_power_is_cut_in_every_phase() -> None:
    with running_host("cuts", SPEC) as machine:
        before = facts_of(machine)
        plan = make_plan(site(machine.address), {"cell": before})
        host = TunedHost(machine, plan)
        untouched = on_host(machine, f"sync; {BOOT_FILES}")
        steps = host_steps(host.host)

        # While the boot loader's files are written, and just after, before anything was rebooted: both ways out.
        for name in ("boot", steps[1].name):
            hits: list[str] = []
            with impatient(), contextlib.suppress(EvenkeelError):
                apply_plan(host.host, host.plan, host.machine, on_progress=cut_at(machine, name, hits))
            if not hits:  # without --reboot the apply ends after the boot phase; the power goes then
                lifecycle.power_cut(machine.name)
            machine.close()
            machine.start()
            assert rollback_host("cell", machine, reboot=True).problems == ()
            assert on_host(machine, BOOT_FILES) == untouched

        # In each later phase: what is on disk stays, what was in the kernel is gone, and apply begins again.
        for step in middle_of_each_phase(steps):
            cut(machine, step.name, lambda on_progress: apply(host, on_progress))
            told = host_status(host.host, plan.sha256(), machine)
            assert told.interrupted and told.rebooted_since, step.name
            assert told.schedulable is not True, step.name
        report = apply(host)
        assert report.outcome == "applied"
        assert apply(host).outcome == "unchanged"
        assert host_status(host.host, plan.sha256(), machine).schedulable is True

        # In the middle of a rollback.
        with machine.probe() as probe:
            undone = [entry.setting or "" for entry in read_journal(probe).outstanding]
        middle = undone[len(undone) // 2]

        def on_progress(done: int, total: int, what: str) -> None:
            if middle in what and not hits:
                hits.append(middle)
                lifecycle.power_cut(machine.name)

        hits = []
        with impatient(), contextlib.suppress(EvenkeelError):
            rollback_host("cell", machine, on_progress=on_progress)
        assert hits == [middle], "the power was not cut"
        machine.close()
        machine.start()
        last = rollback_host("cell", machine, reboot=True)
        assert last.problems == ()
        assert on_host(machine, BOOT_FILES) == untouched
        after = facts_of(machine)
        assert settings(after) == settings(before)
        assert stable(after) == stable(before)
