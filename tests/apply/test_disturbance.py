"""What apply takes while guests run, the mark of a schedulable host, the canary in the engine, and failed writes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evenkeel.apply import engine
from evenkeel.apply.engine import apply_plan
from evenkeel.apply.report import ApplyReport
from evenkeel.apply.rollback import rollback_host
from evenkeel.apply.status import host_status
from evenkeel.cli import main
from evenkeel.documents.plan import FileValue, GuestPlan, Phase, Plan, Setting, ThreadSchedule, VcpuPlan
from evenkeel.errors import NotAsWanted, RolledBack, WrongInput
from evenkeel.probe import canary
from evenkeel.probe.journal import SCHEDULABLE
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS, TreeHost, make_plan, setting
from tests.probe.test_running import guest as running_guest

FAIR = "sys/kernel/debug/sched/fair_server/cpu{}/runtime"
WORKQUEUES = RUNTIME_SETTINGS[1].model_copy(update={"disturbance": "drain"})
LIVE = (RUNTIME_SETTINGS[0], WORKQUEUES, *RUNTIME_SETTINGS[2:])
MARK = SCHEDULABLE.lstrip("/")

VIRSH = """#!/bin/sh
# The states of guests, in files: what the real one says in tests/virtual.
state=./run/guests
shift 2
guest="${2:-}"; [ "$guest" = --paused ] && guest="$3"
case "$1" in
    domstate) cat "$state/$guest" 2>/dev/null || { echo "error: failed to get domain '$guest'" >&2; exit 1; } ;;
    start) [ "$2" = --paused ] && echo paused > "$state/$guest" || echo running > "$state/$guest" ;;
    resume) echo running > "$state/$guest" ;;
    shutdown|destroy) echo 'shut off' > "$state/$guest"; rm -rf ./proc/700 ;;
    *) exit 2 ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path) -> TreeHost:
    return TreeHost(tmp_path)


def run_guest(host: TreeHost, name: str = "plc", cpus: str = "2-3") -> None:
    for tree in (host.root, host.fresh):
        script = tree / "usr/bin/virsh"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(VIRSH)
        script.chmod(0o755)
        (tree / "run/guests").mkdir()
        (tree / "run/guests" / name).write_text("shut off\n")
    (host.root / "run/guests" / name).write_text("running\n")
    running_guest(host.root, 700, f"guest={name}", {"CPU 0/KVM": cpus})


def apply(host: TreeHost, plan: Plan, **options: Any) -> ApplyReport:
    return apply_plan(plan.hosts[0], plan, host, **options)


def planned(name: str) -> GuestPlan:
    return GuestPlan(
        name=name,
        goal="flexible",
        trust="yields",
        vcpus=(VcpuPlan(index=0, cpus=frozenset({2, 3})),),
        emulator_cpus=frozenset({0}),
        memory_bytes=1 << 20,
        xml="<domain/>",
    )


def thread(name: str) -> Setting:
    return setting(f"R-RT-4:{name}", ThreadSchedule(name=name), "fifo:1", "fifo:11", Phase.THREADS)


def reasons(report: ApplyReport) -> dict[str, str]:
    return {step.name: step.message or "" for step in report.of("left")}


# -- live, drain, reboot ----------------------------------------------------------------------------------------------


def test_only_live_takes_what_disturbs_nothing_and_says_the_rest(host: TreeHost) -> None:
    plan = make_plan(host, *BOOT_SETTINGS, *LIVE)
    run_guest(host)
    before = host.picture()
    report = apply(host, plan, live_only=True)
    assert (report.outcome, host.boots) == ("applied", 0)
    assert {step.name for step in report.of("done")} == {"H-THP", "R-IRQ-1", "R-TIM-2"}
    left = reasons(report)
    assert set(left) == {"boot", "R-WQ-1", "R-RT-1"}
    assert left["boot"] == "needs a reboot"
    assert "--drain" in left["R-WQ-1"]
    assert "guest plc runs on CPUs 2-3" in left["R-RT-1"]
    changed = {name for name, item in host.picture().items() if item != before.get(name)}
    assert changed == {
        "/proc/irq/24/smp_affinity_list",
        "/proc/irq/25/smp_affinity_list",
        "/proc/sys/vm/stat_interval",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    }
    assert apply(host, plan, live_only=True).message == "3 settings are left as they are"
    rollback_host("cell", host)
    assert host.picture() == before


def test_only_live_leaves_interrupts_that_would_land_on_a_guest(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    run_guest(host, cpus="0-1")
    (host.root / "proc/irq/24/smp_affinity_list").write_text("4-7\n")
    seen = plan.model_copy(update={"hosts": make_plan(host, *RUNTIME_SETTINGS).hosts})
    left = reasons(apply(host, seen, live_only=True))
    assert "it sends interrupts to CPU 0-1, and guest plc runs on CPUs 0-1" in left["R-IRQ-1"]
    assert (host.root / "proc/irq/24/smp_affinity_list").read_text() == "4-7\n"


def test_without_a_guest_nothing_needs_a_drain(host: TreeHost) -> None:
    report = apply(host, make_plan(host, *LIVE))
    assert len(report.of("done")) == 5
    assert report.of("left") == ()


def test_a_drain_setting_is_left_while_guests_run_and_taken_when_they_are_down(host: TreeHost) -> None:
    plan = make_plan(host, *LIVE)
    run_guest(host)
    report = apply(host, plan)
    assert reasons(report) == {"R-WQ-1": "disturbs what runs (plc); --drain shuts it down first"}
    assert report.message == "1 left as they are"
    assert (host.root / "sys/devices/virtual/workqueue/cpumask").read_text() == "ff\n"
    assert (host.root / "run/guests/plc").read_text() == "running\n"
    shutil.rmtree(host.root / "proc/700")
    assert [step.name for step in apply(host, plan).of("done")] == ["R-WQ-1"]


def test_with_drain_the_guest_goes_down_and_comes_back(host: TreeHost) -> None:
    plan = make_plan(host, *LIVE, guests=(planned("plc"),))
    run_guest(host)
    before = host.picture()
    asked: list[str] = []

    def confirm(question: str, why: Sequence[str]) -> bool:
        asked.append(question)
        return True

    report = apply(host, plan, drain=True, confirm=confirm)
    assert asked == ["shut down guests of cell, and start them again?"]
    done = [step.name for step in report.of("done")]
    assert done[0] == "plc/drain"
    assert done.index("R-WQ-1") < done.index("plc/start")
    assert (host.root / "run/guests/plc").read_text() == "running\n"
    undone = rollback_host("cell", host)
    assert undone.problems == ()
    assert (host.root / "run/guests/plc").read_text() == "running\n"  # as it was before the first apply
    after = host.picture()
    assert {name for name in before if after.get(name) != before[name]} == {
        name
        for name in before
        if name.startswith("/proc/700")  # another process by now
    }


def test_a_no_to_the_drain_changes_nothing(host: TreeHost) -> None:
    plan = make_plan(host, *LIVE, guests=(planned("plc"),))
    run_guest(host)
    before = host.picture()
    with pytest.raises(NotAsWanted, match="guests not shut down, nothing was changed"):
        apply(host, plan, drain=True, confirm=lambda what, why: False)
    assert host.picture() == before


def test_a_terminal_is_offered_what_no_option_allowed(host: TreeHost) -> None:
    plan = make_plan(host, *LIVE, guests=(planned("plc"),))
    run_guest(host)
    offered: list[tuple[str, list[str]]] = []

    def offer(question: str, why: Sequence[str]) -> bool:
        offered.append((question, list(why)))
        return True

    report = apply(host, plan, offer=offer)
    assert offered == [("shut down guests of cell?", ["title of R-WQ-1: f3", "guest plc"])]
    assert "plc/drain" in {step.name for step in report.of("done")}

    plan = make_plan(host, *BOOT_SETTINGS, *LIVE, guests=(planned("plc"),))
    report = apply(host, plan, offer=offer)
    assert offered[1][0] == "reboot cell now?"
    assert (report.outcome, host.boots) == ("applied", 1)


def test_a_guest_of_somebody_else_is_never_shut_down(host: TreeHost) -> None:
    plan = make_plan(host, *LIVE, guests=(planned("plc"),))
    run_guest(host, name="theirs")
    before = host.picture()
    with pytest.raises(WrongInput, match="theirs runs there and is not in the plan"):
        apply(host, plan, drain=True)
    assert host.picture() == before


def test_the_options_on_the_command_line(
    host: TreeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: host)
    plan = make_plan(host, *LIVE)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    run_guest(host)
    assert main(["apply", str(file), "--only", "live", "--reboot"]) == 2
    capsys.readouterr()
    assert main(["apply", str(file), "--only", "live"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 left as they are" in said
    assert "left is no live setting" in said
    assert main(["apply", str(file)]) == 1  # no terminal, so nobody could be asked
    said = " ".join(capsys.readouterr().out.split())
    assert "1 left as they are" in said
    assert "--drain shuts it down first" in said


ON_A_TERMINAL = """
import pathlib, sys
import evenkeel.machines.address
from evenkeel.cli import main
from tests.apply.tree_host import TreeHost
host = TreeHost(pathlib.Path(sys.argv[1]))
evenkeel.machines.address.resolve = lambda address: host
sys.exit(main(sys.argv[2:]))
"""


def on_a_terminal(host: TreeHost, arguments: list[str], answer: bytes) -> str:
    """Run the command on a terminal of its own and type ``answer`` at its question; what the terminal showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, str(host.root.parent), *arguments]
    paths = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": paths}
    )
    os.close(theirs)
    said, typed = b"", False
    with contextlib.suppress(OSError):  # EIO: the other end is gone
        while chunk := os.read(ours, 4096):
            said += chunk
            if b"[y/N]" in said and not typed:
                os.write(ours, answer)
                typed = True
    process.wait()
    os.close(ours)
    assert typed, said.decode()
    return said.decode()


@pytest.mark.parametrize("answer", [b"n\n", b"y\n"])
def test_on_a_terminal_the_drain_is_asked_for(host: TreeHost, tmp_path: Path, answer: bytes) -> None:
    file = tmp_path / "plan.json"
    file.write_text(make_plan(host, *LIVE, guests=(planned("plc"),)).to_json())
    run_guest(host)
    said = on_a_terminal(host, ["apply", str(file)], answer)
    assert "shut down guests of cell?" in said and "guest plc" in said
    drained = answer == b"y\n"
    assert ("plc/drain" in said) is drained
    assert (host.root / "sys/devices/virtual/workqueue/cpumask").read_text() == ("f3\n" if drained else "ff\n")
    assert (host.root / "run/guests/plc").read_text() == "running\n"


# -- schedulable ------------------------------------------------------------------------------------------------------


def test_a_host_is_schedulable_once_the_gate_passed_and_no_longer_after_a_reboot(host: TreeHost) -> None:
    plan = make_plan(host, *BOOT_SETTINGS, *RUNTIME_SETTINGS)

    def told() -> tuple[bool, str | None]:
        report = host_status(plan.hosts[0], plan.sha256(), host)
        return report.schedulable, report.not_schedulable

    assert told()[0] is False
    apply(host, plan)  # stops before the reboot
    assert not (host.root / MARK).exists()
    apply(host, plan, reboot=True)
    assert told() == (True, None)
    assert (host.root / MARK).read_text() == (host.root / "proc/sys/kernel/random/boot_id").read_text()
    host.reboot()
    assert told() == (False, "the boot gate was not asked since the host was started: run evenkeel apply")
    apply(host, plan)
    assert told() == (True, None)

    host.spoil_command_line = ("nohz_full=2-3", "nohz_full=2")
    host.reboot()
    with pytest.raises(NotAsWanted, match="is not ready"):
        apply(host, plan, reboot=False) if apply(host, plan).outcome == "reboot_pending" else None
        apply(host, plan, reboot=True)
    assert told()[0] is False
    assert "H-ISO-2: nohz_full on the command line" in (told()[1] or "")


def test_a_mark_of_another_boot_counts_for_nothing(host: TreeHost) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    apply(host, plan)
    (host.root / MARK).write_text("33333333-3333-3333-3333-333333333333\n")  # a /run that outlived its kernel
    assert host_status(plan.hosts[0], plan.sha256(), host).schedulable is False


def test_no_guest_is_started_on_a_host_that_is_not_schedulable(host: TreeHost) -> None:
    run_guest(host)
    (host.root / "run/guests/plc").write_text("shut off\n")
    step = {"kind": "guest_power", "guest": "plc", "value": "running"}
    from evenkeel.machines.protocol import ProbeError

    with host.probe() as probe:
        with pytest.raises(ProbeError, match="not schedulable"):
            probe.call("apply_step", step=step, plan_sha256="0" * 64)
        assert (host.root / "run/guests/plc").read_text() == "shut off\n"
        probe.call("schedulable", schedulable=True)
        assert probe.call("apply_step", step=step, plan_sha256="0" * 64)["outcome"] == "done"
        probe.call("schedulable", schedulable=False)


def test_a_run_that_is_rolled_back_leaves_the_mark_as_it_found_it(host: TreeHost) -> None:
    (host.root / "proc/self").symlink_to("/proc/self")
    bad = setting("R-BAD", FileValue(path="/proc/self/timerslack_ns", compare="integer"), "50000", "0", Phase.KERNEL)
    with pytest.raises(RolledBack):
        apply(host, make_plan(host, RUNTIME_SETTINGS[2], bad))
    assert not (host.root / MARK).exists()
    apply(host, make_plan(host, RUNTIME_SETTINGS[3]))
    with pytest.raises(RolledBack):
        apply(host, make_plan(host, RUNTIME_SETTINGS[2], bad))
    assert (host.root / MARK).exists()
    rollback_host("cell", host)
    assert not (host.root / MARK).parent.exists()


# -- the canary -------------------------------------------------------------------------------------------------------


@pytest.fixture
def canary_file(host: TreeHost) -> Iterator[Path]:
    """A host-wide operation that ends (somebody reads the FIFO) until the reader is killed."""
    for cpu in (2, 3):
        for tree in (host.root, host.fresh):
            file = tree / FAIR.format(cpu)
            file.parent.mkdir(parents=True)
            file.write_text("50000000\n")
    file = host.root / canary.FILE.lstrip("/")
    os.mkfifo(file)
    yield file


def throttle(*cpus: int) -> list[Setting]:
    return [
        setting(
            f"R-RT-2:cpu{cpu}",
            FileValue(path="/" + FAIR.format(cpu), compare="integer"),
            "50000000",
            "0",
            Phase.THROTTLE,
        )
        for cpu in cpus
    ]


def reader(file: Path) -> subprocess.Popen[bytes]:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.Popen(["sleep", "600"], stdin=descriptor)
    os.close(descriptor)
    return process


def test_a_guest_that_spins_only_later_takes_all_of_throttling_back(
    host: TreeHost, canary_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS, *throttle(2, 3))
    run_guest(host)
    monkeypatch.setattr(engine, "CANARY_WATCH_S", 0.5)
    answering = reader(canary_file)

    def spin(done: int, total: int, what: str) -> None:
        if what.startswith("watching"):
            answering.kill()
            answering.wait()

    try:
        report = apply(host, plan, on_progress=spin)
    finally:
        answering.kill()
        answering.wait()
    assert report.outcome == "applied"
    assert {step.name for step in report.of("taken_back")} == {"R-RT-1", "R-RT-2:cpu2", "R-RT-2:cpu3"}
    assert {step.read_back for step in report.of("taken_back")} == {"950000", "50000000"}
    assert len(report.of("done")) == 4  # the rest stays
    [finding] = report.findings
    assert finding.id == "CANARY" and "stat_refresh" in finding.observed
    assert "R-RT-2:cpu2 reads 50000000 again" in finding.evidence[0].value
    assert (host.root / FAIR.format(2)).read_text() == "50000000\n"
    assert (host.root / "proc/sys/kernel/sched_rt_runtime_us").read_text() == "950000\n"
    status = host_status(plan.hosts[0], plan.sha256(), host)
    assert set(status.pending) == {"R-RT-1", "R-RT-2:cpu2", "R-RT-2:cpu3"}
    assert not status.interrupted


def test_a_guest_that_yields_keeps_what_was_planned(
    host: TreeHost, canary_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS, *throttle(2, 3))
    run_guest(host)
    monkeypatch.setattr(engine, "CANARY_WATCH_S", 0.5)
    answering = reader(canary_file)
    try:
        report = apply(host, plan)
        assert report.findings == ()
        assert report.of("taken_back") == ()
        assert (host.root / FAIR.format(3)).read_text() == "0\n"
    finally:
        answering.kill()
        answering.wait()


# -- a finding for each step that failed ------------------------------------------------------------------------------


def test_a_value_that_is_taken_and_changed_is_a_finding_with_what_is_there_now(
    host: TreeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host.root / "proc/self").symlink_to("/proc/self")
    bad = setting("R-BAD", FileValue(path="/proc/self/timerslack_ns", compare="integer"), "50000", "0", Phase.KERNEL)
    plan = make_plan(host, *RUNTIME_SETTINGS, bad)
    before = host.picture()
    with pytest.raises(RolledBack) as caught:
        apply(host, plan)
    [finding] = caught.value.findings
    assert (finding.id, finding.expected, finding.observed) == ("R-BAD", "0", "50000")
    assert finding.evidence[0].where == "/proc/self/timerslack_ns"
    assert "keeps another one" in finding.why
    assert host.picture() == before

    monkeypatch.setattr("evenkeel.cli.output._emitted", False)
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: host)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    assert main(["apply", str(file), "--json"]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert [one["observed"] for one in error["findings"]] == ["50000"]
    assert main(["apply", str(file)]) == 4
    assert "R-BAD: title of R-BAD: taken and changed: expected 0, found 50000" in capsys.readouterr().err
