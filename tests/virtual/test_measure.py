"""Measurement on a tuned virtual host.  No latency is asserted: it is emulated.  Structure and counts are."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time

import pytest
from tests.virtual.tuned import TunedHost

from evenkeel.apply.hosts import read_facts
from evenkeel.documents.evidence import EMULATION_NOTE, Evidence
from evenkeel.errors import EXIT_NOT_AS_WANTED, EvenkeelError, WrongInput
from evenkeel.measure.guest import guest_exec
from evenkeel.measure.host import Wish, measure_host
from evenkeel.measure.verdict import doubts

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def evidence(tuned_host: TunedHost, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """One measurement by the verb, which prints what it saves; looked at from several sides."""
    folder = tmp_path_factory.mktemp("evidence")
    plan, saved = folder / "plan.json", folder / "evidence.json"
    plan.write_text(tuned_host.plan.to_json())
    words = ["measure", str(plan), "--for", "3s", "--load", "hackbench", "--json", "-o", str(saved)]
    done = subprocess.run(
        [sys.executable, "-m", "evenkeel", *words], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == EXIT_NOT_AS_WANTED, done.stderr
    assert json.loads(done.stdout) == json.loads(saved.read_text())
    return Evidence.from_json(saved.read_text(), file="evidence.json")


def test_host_and_guest_are_measured_where_the_plan_says(tuned_host: TunedHost, evidence: Evidence) -> None:
    assert evidence.moment == "after"
    places = [(latency.where, latency.guest, latency.cpus) for latency in evidence.latencies]
    assert places == [("host", None, frozenset({tuned_host.cpu})), ("guest", "plc", frozenset({1}))]
    for latency in evidence.latencies:
        assert latency.tool_version and latency.samples > 10
        assert latency.histogram.samples == latency.samples
        assert 0 < latency.min_ns <= latency.avg_ns <= latency.max_ns
        # Of cyclictest all but the last samples, which it does not tell.
        assert latency.course is not None and len(latency.course.slices) > 5
        assert latency.samples // 2 < latency.course.samples <= latency.samples
        assert max(one.max_ns for one in latency.course.slices) <= latency.max_ns


def test_numbers_from_emulation_say_so_and_carry_their_conditions(tuned_host: TunedHost, evidence: Evidence) -> None:
    conditions = evidence.conditions
    assert conditions.emulated and all(latency.label == EMULATION_NOTE for latency in evidence.latencies)
    assert conditions.preempt_rt and "PREEMPT_RT" in conditions.kernel and "nohz_full=" in conditions.command_line
    assert conditions.plan_sha256 == tuned_host.plan.sha256()
    assert conditions.qemu and conditions.libvirt
    assert conditions.load.startswith("hackbench -g ")
    (deadline,) = evidence.deadlines
    assert (deadline.guest, deadline.state) == ("plc", "not provable") and "emulated" in deadline.why


def test_a_spinner_on_the_tuned_cpu_is_left_alone(tuned_host: TunedHost, evidence: Evidence) -> None:
    host = [spin for spin in evidence.spins if spin.where == "host"]
    assert [(spin.cpu, spin.load.split()[0]) for spin in host] == [
        (tuned_host.cpu, "idle"),
        (tuned_host.cpu, "hackbench"),
    ]
    for spin in host:
        assert spin.timer_interrupts * 4 <= 9 * max(4.0, spin.seconds)
        assert spin.device_interrupts == {}
        # The guest's own vCPU may take the CPU: each time an interrupt woke it, from here (timer) or elsewhere (RES).
        woken = spin.timer_interrupts + spin.other_interrupts.get("RES", 0)
        assert spin.involuntary_switches <= 5 + woken, spin
    (inside,) = (spin for spin in evidence.spins if spin.where == "guest")
    assert (inside.guest, inside.cpu, inside.policy) == ("plc", tuned_host.cpu, "fifo:2")
    assert inside.device_interrupts == {}


def test_a_program_in_a_guest(tuned_host: TunedHost) -> None:
    with tuned_host.machine.probe() as probe:
        ran = guest_exec(probe, "plc", ["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (ran.exit, ran.stdout, ran.stderr) == (3, "out\n", "err\n")
        with pytest.raises(EvenkeelError) as caught:
            guest_exec(probe, "plc", ["/no/such/program"])
        assert caught.value.hint
        with pytest.raises(EvenkeelError, match="did not end within"):
            guest_exec(probe, "plc", ["sleep", "5"], timeout_s=1.0)
        with pytest.raises(EvenkeelError) as absent:
            guest_exec(probe, "nobody", ["true"])
        assert "nobody" in str(absent.value) or "domain" in str(absent.value)


@pytest.mark.long
def test_a_guest_that_is_off_and_a_guest_that_is_not_there(tuned_host: TunedHost) -> None:
    def measure(guest: str) -> Evidence:
        with tuned_host.machine.probe() as probe:
            return measure_host(
                tuned_host.host, probe, read_facts(probe), moment="after", wish=Wish(seconds=1, guest=guest)
            )

    with pytest.raises(WrongInput, match="no guest plcc"):
        measure("plcc")
    tuned_host.run("virsh -q destroy hmi")
    try:
        with pytest.raises(EvenkeelError, match="hmi does not run"):
            measure("hmi")
    finally:
        tuned_host.run("virsh -q start hmi")


@pytest.mark.long
def test_a_placed_load_stays_off_the_real_time_cpus_while_tools_run(tuned_host: TunedHost) -> None:
    kinds = ("cpu", "io", "net", "irq")
    notes: list[str] = []
    with tuned_host.machine.probe() as probe:
        found = measure_host(
            tuned_host.host,
            probe,
            read_facts(probe),
            moment="after",
            wish=Wish(seconds=3, load=kinds, tools=("timerlat", "oslat"), spin_seconds=1.0),
            plan_sha256=tuned_host.plan.sha256(),
            on_note=notes.append,
        )
    # The guests of virtual hosts have no oslat; beside four loads one may be too slow for timerlat, which is said.
    assert {note.partition(":")[0] for note in notes} - {"no timerlat in guest plc"} == {"no oslat in guest plc"}, notes
    places = {(one.tool, one.where) for one in found.latencies}
    assert {("timerlat", "host"), ("timerlat irq", "host")} <= places
    others = tuned_host.host.ledger.housekeeping | tuned_host.host.ledger.shared
    for one in found.latencies:
        # Four loads at once may starve each other on an emulated CPU; then the evidence says so, and nothing is met.
        troubles = [load.trouble for load in one.loads if load.trouble]
        assert all(trouble.startswith("it did nothing on CPU") for trouble in troubles), one.loads
        assert all(load.seen <= others and load.operations for load in one.loads)
        assert all(load.packets and load.softirqs for load in one.loads if load.kind == "net"), one.loads
    assert found.conditions.dma_latency_holders == ()
    left = tuned_host.run("ls /sys/kernel/tracing/instances /sys/fs/cgroup; ps -eo comm")
    assert "evenkeel-" not in left and "evk-load" not in left


@pytest.mark.long
def test_timerlat_measures_on_the_host_and_in_the_guest_at_once(tuned_host: TunedHost) -> None:
    """By their kernels, in one run; and in the guest alone, where it is named.  No latency is asserted."""
    notes: list[str] = []

    def measured(guest: str | None) -> Evidence:
        with tuned_host.machine.probe() as probe:
            return measure_host(
                tuned_host.host,
                probe,
                read_facts(probe),
                moment="after",
                wish=Wish(seconds=10, tools=("timerlat",), guest=guest, spin_seconds=1.0),
                plan_sha256=tuned_host.plan.sha256(),
                on_note=notes.append,
            )

    both, alone = measured(None), measured("plc")
    assert notes == []
    inside = {("timerlat", "guest", "plc"), ("timerlat irq", "guest", "plc")}
    assert {(one.tool, one.where, one.guest) for one in alone.latencies} == inside
    outside = {("timerlat", "host", None), ("timerlat irq", "host", None)}
    assert {(one.tool, one.where, one.guest) for one in both.latencies} == inside | outside
    for one in (*both.latencies, *alone.latencies):
        print(one.tool, one.where, sorted(one.cpus), one.samples, "samples,", one.lost, "lost")
        assert one.samples > 100 and one.histogram.samples == one.samples and one.lost is not None
        assert 0 < one.min_ns <= one.avg_ns <= one.max_ns and one.course and one.course.samples == one.samples
        assert one.label and one.tool_version
    assert tuned_host.run("ls /sys/kernel/tracing/instances") == ""
    with tuned_host.machine.probe() as probe:
        look = "ls -d /sys/kernel/tracing/instances/* /run/evenkeel-spikes; cat /sys/kernel/tracing/osnoise/cpus; true"
        left = guest_exec(probe, "plc", ["/bin/sh", "-c", look])
    assert "evenkeel-" not in left.stdout


@pytest.mark.long
def test_an_interrupted_measurement_ends_in_the_guest_too(tuned_host: TunedHost) -> None:
    probe = tuned_host.machine.probe()

    def run() -> None:
        with contextlib.suppress(EvenkeelError):
            probe.call("together", jobs=[{"tool": "cyclictest", "guest": "plc", "vcpus": [1]}], seconds=600)

    def inside(wanted: bool) -> None:
        deadline = time.monotonic() + 120
        with tuned_host.machine.probe() as other:
            while (guest_exec(other, "plc", ["pidof", "cyclictest"]).exit == 0) != wanted:
                assert time.monotonic() < deadline
                time.sleep(1.0)

    threading.Thread(target=run, daemon=True).start()
    inside(True)
    probe.close()
    inside(False)


@pytest.mark.long
def test_a_guest_stands_beside_the_host_while_it_is_measured(tuned_host: TunedHost) -> None:
    told: list[str] = []
    jobs = [
        {"tool": "cyclictest", "guest": "plc", "vcpus": [1]},
        {"tool": "cyclictest", "guest": "nobody", "vcpus": [0]},
    ]
    with tuned_host.machine.probe() as probe:
        answer = probe.call(
            "together", jobs=jobs, seconds=8, live=True, on_progress=lambda done, total, what: told.append(what)
        )
        left = guest_exec(probe, "plc", ["sh", "-c", "ls /run; true"])
    assert "error" not in answer["jobs"][0] and "error" in answer["jobs"][1]
    rows = {row for what in told for row in what.split(" | ") if row.startswith("guest plc, vCPU 1, cyclictest: ")}
    assert len(rows) >= 2, told
    assert any("guest nobody: not seen live: " in what for what in told)
    assert "evenkeel-live" not in left.stdout


@pytest.mark.long
def test_who_keeps_the_vcpus_of_a_guest_awake_is_named_and_forbids_met(tuned_host: TunedHost) -> None:
    """Broken on purpose, inside the guest."""
    with tuned_host.machine.probe() as probe:
        hold = "(exec 9<>/dev/cpu_dma_latency; exec sleep 300) >/dev/null 2>&1 </dev/null &"
        assert guest_exec(probe, "plc", ["sh", "-c", hold]).exit == 0
        try:
            found = measure_host(
                tuned_host.host, probe, read_facts(probe), moment="after", wish=Wish(seconds=1, guest="plc")
            )
        finally:
            guest_exec(probe, "plc", ["killall", "sleep"])
    holders = found.conditions.guest_dma_latency_holders
    assert holders is not None and [name.split()[0] for name in holders["plc"]] == ["sleep"]
    assert any("in the guest and kept its vCPUs awake" in doubt for doubt in doubts(tuned_host.plc, found))


@pytest.mark.long
def test_who_keeps_the_cpus_awake_is_named(tuned_host: TunedHost) -> None:
    """Broken on purpose: a program that holds /dev/cpu_dma_latency, as TuneD's force_latency does."""
    tuned_host.run("(exec 9<>/dev/cpu_dma_latency; exec sleep 120) >/dev/null 2>&1 </dev/null & echo $!")
    try:
        with tuned_host.machine.probe() as probe:
            found = measure_host(
                tuned_host.host, probe, read_facts(probe), moment="after", wish=Wish(seconds=1, guest="plc")
            )
        assert found.conditions.dma_latency_holders is not None
        assert [name.split()[0] for name in found.conditions.dma_latency_holders] == ["sleep"]
        assert found.conditions.guest_dma_latency_holders == {"plc": ()}, "on the host is not in the guest"
    finally:
        tuned_host.run("pkill -x sleep || true")
