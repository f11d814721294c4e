"""Apply and rollback on a real Debian with a PREEMPT_RT kernel, GRUB, systemd and libvirt."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.virtual.before_after import settings
from tests.virtual.tuned import TunedHost, site

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.hosts import HostJournal, read_journal
from evenkeel.apply.report import ApplyReport, StatusReport
from evenkeel.apply.rollback import rollback_host
from evenkeel.apply.status import host_status
from evenkeel.documents.journal import JournalEntry
from evenkeel.documents.plan import InterruptAffinity, Plan, ThreadSchedule
from evenkeel.errors import WrongInput
from evenkeel.machines.virtual import VirtualMachine
from evenkeel.plan import make_plan
from evenkeel.probe.steps.boot import grubcfg

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(2400)]

JOURNAL = "/var/lib/evenkeel/journal.jsonl"


def apply(host: TunedHost, plan: Plan | None = None, **options: Any) -> ApplyReport:
    plan = plan or host.plan
    return apply_plan(plan.hosts[0], plan, host.machine, **options)


def status(host: TunedHost) -> StatusReport:
    return host_status(host.host, host.plan.sha256(), host.machine)


def journal(machine: VirtualMachine) -> HostJournal:
    with machine.probe() as probe:
        return read_journal(probe)


def newer(machine: VirtualMachine, sequence: int) -> list[JournalEntry]:
    """Entries that were written after this one."""
    return [entry for entry in journal(machine).entries if entry.sequence > sequence]


def done(report: ApplyReport) -> set[str]:
    return {step.name for step in report.of("done")}


def test_a_second_apply_changes_nothing_and_leaves_no_line(tuned_host: TunedHost) -> None:
    before = tuned_host.run(f"sha256sum {JOURNAL}")
    report = apply(tuned_host)
    assert report.outcome == "unchanged", report.of("done", "failed")
    assert tuned_host.run(f"sha256sum {JOURNAL}") == before
    told = status(tuned_host)
    assert (told.state, told.pending, told.not_ready) == ("as planned", (), None)
    assert {guest.name: guest.power for guest in told.guests} == {"hmi": "running", "plc": "running"}


def test_the_journal_is_roots_alone_and_every_done_was_read_back(tuned_host: TunedHost) -> None:
    assert tuned_host.run(f"stat -c %a:%U {JOURNAL}") == "600:root"
    found = journal(tuned_host.machine)
    assert found.outstanding
    for entry in found.outstanding:
        finished = found.finished(entry.sequence)
        assert finished is not None and finished.event in ("done", "refused"), entry.setting
    values = [entry for entry in found.outstanding if (entry.step or {}).get("kind") == "file"]
    assert values
    assert all(entry.old is not None for entry in values)


@pytest.mark.long
def test_drift_of_each_kind_is_seen_and_repaired(tuned_host: TunedHost) -> None:
    """A value, an interrupt's CPUs, a unit, a kernel thread, a vCPU's priority, a partition."""
    targets = {setting.id: setting.target for setting in tuned_host.host.settings}
    thread, name = next((i, target.name) for i, target in targets.items() if isinstance(target, ThreadSchedule))
    interrupt, action = next((i, t.action) for i, t in targets.items() if isinstance(t, InterruptAffinity))
    tuned_host.run(
        f"""
        echo 5 > /proc/sys/vm/swappiness
        for folder in /proc/irq/[0-9]*; do
            if grep -qFx '{action}' /sys/kernel/irq/${{folder##*/}}/actions; then
                echo {tuned_host.cpu} > $folder/smp_affinity_list
            fi
        done
        systemctl unmask irqbalance.service && systemctl start irqbalance.service
        chrt -f -p 3 $(pgrep -x '{name}')
        chrt -o -p 0 $tid
        echo member > $scope/vcpu1/cpuset.cpus.partition
        """
    )
    broken = {"R-MM-2:swappiness", interrupt, "R-IRQ-4", thread, "G-3:plc/vcpu1", "C-1:plc/vcpu1"}
    told = status(tuned_host)
    assert broken <= set(told.pending)
    report = apply(tuned_host)
    assert report.outcome == "applied"
    assert broken <= done(report)
    assert not {step.phase for step in report.of("done")} & {"boot"}
    assert status(tuned_host).state == "as planned"
    assert tuned_host.run("cat $scope/vcpu1/cpuset.cpus.partition; systemctl is-enabled irqbalance || true") == (
        "isolated\nmasked"
    )


def test_a_managed_interrupt_answers_with_eperm_and_is_refused_not_failed(tuned_host: TunedHost) -> None:
    """6.12 answers EPERM, and a buffered write would not even see it (host-tuning R-IRQ-2)."""
    managed = [one for one in tuned_host.facts().interrupts if one.managed and one.action.startswith("virtio")]
    assert managed
    step = {"kind": "interrupt", "action": managed[0].action, "value": "0"}
    if managed[0].affinity == frozenset({0}):
        step["value"] = "1"
    with tuned_host.machine.probe() as probe:
        answer = probe.call("apply_step", step=step, plan_sha256="0" * 64, setting="T-1")
        assert (answer["outcome"], answer["errno"]) == ("refused", "EPERM")
        assert str(managed[0].number) in answer["message"]
        last = read_journal(probe).outstanding[-1]
        assert last.setting == "T-1"
        assert probe.call("undo_step", sequence=last.sequence)["outcome"] == "undone"
        probe.call("journal_note", event="end", plan_sha256="0" * 64)


@pytest.mark.long
def test_a_guest_that_died_is_put_back_into_its_place(tuned_host: TunedHost) -> None:
    tuned_host.run("virsh destroy plc")
    told = status(tuned_host)
    assert {guest.name: (guest.power, guest.as_planned) for guest in told.guests} == {
        "hmi": ("running", True),
        "plc": ("shut off", False),
    }
    other = tuned_host.run("cat /run/libvirt/qemu/hmi.pid")
    report = apply(tuned_host)
    assert {"plc/start", "C-1:plc/vcpu0", "C-1:plc/vcpu1", "plc/resume"} <= done(report)
    assert tuned_host.run("cat /run/libvirt/qemu/hmi.pid") == other  # the other guest was left alone
    assert tuned_host.run("virsh domstate plc; cat $scope/vcpu1/cpuset.cpus.partition").split() == [
        "running",
        "isolated",
    ]
    assert "SCHED_FIFO" in tuned_host.run("chrt -p $tid")
    helpers = tuned_host.run(
        "for t in $(ps -eLo tid,comm | awk '/kvm-nx|kvm-pit/ {print $1}'); do taskset -cp $t; done"
    )
    allowed = [set(_cpus(line.rpartition(": ")[2])) for line in helpers.splitlines()]
    assert allowed
    assert all(tuned_host.cpu not in cpus for cpus in allowed)


def test_a_running_guest_is_never_moved_or_restarted_unasked(tuned_host: TunedHost) -> None:
    wanted = site(tuned_host.machine.address)
    bigger = wanted.guests["hmi"].model_copy(update={"memory": 256 << 20})
    changed = wanted.model_copy(update={"guests": {**wanted.guests, "hmi": bigger}})
    plan = make_plan(changed, {"cell": tuned_host.facts()})
    before = tuned_host.run(f"sha256sum {JOURNAL}; cat /run/libvirt/qemu/*.pid")
    with pytest.raises(WrongInput, match=r"G-15:hmi: guest hmi has another definition \(running\)") as caught:
        apply(tuned_host, plan)
    assert "--restart-guests" in (caught.value.hint or "")
    assert tuned_host.run(f"sha256sum {JOURNAL}; cat /run/libvirt/qemu/*.pid") == before


def test_a_plan_made_from_other_facts_is_refused(tuned_host: TunedHost) -> None:
    facts = tuned_host.facts()
    other = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"release": "6.12.1-other-rt"})})
    plan = make_plan(site(tuned_host.machine.address), {"cell": other})
    with pytest.raises(WrongInput, match="stale facts: kernel differs; nothing was changed"):
        apply(tuned_host, plan)


@pytest.mark.long
def test_rolled_back_then_interrupted_then_killed_then_applied(tuned_host: TunedHost, tmp_path: Path) -> None:
    """Without a reboot in between: the kernel still has its arguments, so only the runtime goes back and forth."""
    intents = journal(tuned_host.machine).outstanding
    undone = rollback_host("cell", tuned_host.machine)
    assert undone.problems == ()
    assert undone.reboot_needed
    assert tuned_host.run("virsh list --all --name; ls /etc/default/grub.d/zz* 2>/dev/null || true") == ""
    assert tuned_host.run("systemctl is-enabled irqbalance; systemctl is-active irqbalance") == "enabled\nactive"
    for line in grubcfg.entries(tuned_host.run("cat /boot/grub/grub.cfg")):
        assert "nohz_full" not in line["arguments"]
    first: dict[str, str] = {}
    for entry in intents:
        step = entry.step or {}
        if step["kind"] == "file":
            first.setdefault(step["path"], (entry.old or "").strip())
    assert first
    with tuned_host.machine.probe() as probe:
        assert probe.call("read", paths=list(first))["values"] == first
    before = settings(tuned_host.facts())

    said = _apply_until(tuned_host, tmp_path, lambda entry: entry.phase == "interrupts", signal.SIGINT, 4)
    assert "interrupted. Rolled back" in said
    assert settings(tuned_host.facts()) == before
    assert journal(tuned_host.machine).outstanding == ()

    _apply_until(tuned_host, tmp_path, lambda entry: entry.setting == "plc/start", signal.SIGKILL, -signal.SIGKILL)
    deadline = time.monotonic() + 300
    while journal(tuned_host.machine).writer is not None:  # the probe ends after the step that it is in
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert status(tuned_host).state == "an apply was interrupted: run apply again, or rollback"
    report = apply(tuned_host)
    assert (report.outcome, report.rebooted) == ("applied", False)
    assert apply(tuned_host).outcome == "unchanged"
    assert status(tuned_host).state == "as planned"


def _apply_until(
    host: TunedHost, folder: Path, reached: Callable[[JournalEntry], bool], number: signal.Signals, code: int
) -> str:
    """`evenkeel apply` on the command line, sent a signal when its journal has come so far.  What it said on stderr."""
    file = folder / "plan.json"
    file.write_text(host.plan.to_json())
    start = journal(host.machine).entries[-1].sequence
    command = [sys.executable, "-m", "evenkeel", "apply", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 600
        while not any(map(reached, newer(host.machine, start))):
            assert process.poll() is None and time.monotonic() < deadline
        process.send_signal(number)
        _, said = process.communicate(timeout=600)
    assert process.returncode == code, said
    return said


def _cpus(text: str) -> frozenset[int]:
    from evenkeel.documents.cpuset import parse_cpus

    return parse_cpus(text)
