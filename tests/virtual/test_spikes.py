"""Late samples on a tuned virtual host, with causes put in at known times.  No latency is asserted: it is emulated.

What is asserted is who is named: the injected cause when it was there, and nobody when it was not.  This machine's own
scheduler, which takes CPUs from the host all the time, is recorded as the machine under the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from tests.virtual.injections import CASES, GUEST, HOST, HOST_RECORDS, Case, injections
from tests.virtual.tuned import TunedHost
from tools.injection_table import COUNTS, Counts, Row, all_of, markdown

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.hosts import read_facts
from evenkeel.documents.explanation import Explanation, Kind
from evenkeel.errors import EvenkeelError
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import Probe
from evenkeel.measure.conditions import conditions
from evenkeel.measure.explain.allowed import allowed
from evenkeel.measure.explain.attribute import Stage, explanation, stage
from evenkeel.measure.explain.recording import Recording, Under, fly, from_bytes, record, to_bytes
from evenkeel.measure.explain.score import Score, explained, explained_by_named, score
from evenkeel.measure.guest import guest_exec
from evenkeel.probe.trace import tracefs

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(1800)]

OVER_NS = 1_500_000
PERIOD_US = 2000


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_here() -> Iterator[None]:
    """What the machine under the host recorded with is removed."""
    yield
    instances = Path(tracefs.root(), "instances")
    ours = [match for one in instances.iterdir() if (match := re.fullmatch(r"evenkeel-(\d+)", one.name))]
    assert [match[0] for match in ours if not Path("/proc", match[1]).exists()] == []


def inject(host: TunedHost, case: Case) -> None:
    """Both halves of a case at the same time."""

    def in_guest() -> object:
        host.run(HOST_RECORDS)
        with host.machine.probe() as probe:
            return guest_exec(probe, "plc", ["/bin/sh", "-c", GUEST + case.guest], timeout_s=120)

    with ThreadPoolExecutor() as pool:
        jobs: list[Future[object]] = [pool.submit(in_guest)] if case.guest else []
        if case.host:
            words = f"{case.host} {case.times} $qemu $tid $scope"
            jobs.append(pool.submit(host.run, f"python3 - {words} <<'X'\n{HOST}\nX\n"))
        for job in jobs:
            job.result()


@contextlib.contextmanager
def around(probe: Probe, case: Case) -> Iterator[None]:
    """What the guest is prepared with, and what takes that back."""
    if case.before:
        done = guest_exec(probe, "plc", ["/bin/sh", "-ec", case.before], timeout_s=60)
        assert done.exit == 0, done
    yield
    if case.after:
        guest_exec(probe, "plc", ["/bin/sh", "-c", case.after], timeout_s=60)


def taken(host: TunedHost, case: Case) -> tuple[Recording, Stage, Explanation]:
    under = Under(host.machine.name, LocalMachine().probe, host.machine.probe)
    with host.machine.probe() as probe, around(probe, case):
        recording = record(
            probe,
            host.host.name,
            "plc",
            [1],
            conditions=conditions(read_facts(probe), load=case.name, plan_sha256=host.plan.sha256()),
            seconds=case.seconds,
            period_us=PERIOD_US,
            under=under,
            during=lambda: inject(host, case),
        )
    if folder := os.environ.get("SPIKES_KEEP"):
        Path(folder, case.name.replace(" ", "-")).write_bytes(to_bytes(recording))
    on = stage(recording)
    return recording, on, allowed(on, recording, explanation(on, recording, over_ns=OVER_NS))


def evenkeel(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evenkeel", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done


def case(name: str) -> Case:
    return next(one for one in CASES if one.name == name)


@dataclass(frozen=True)
class Run:
    """One case: how it was scored, and its line of the table."""

    score: Score
    row: Row

    @staticmethod
    def of(one: Case, on: Stage, found: Explanation) -> Run:
        put_in = injections(on, one)
        assert len(put_in) == one.times, f"{len(put_in)} of {one.times} lie within the recording"
        scored = score(found, put_in, one.name)
        charged, late = explained(found.spikes, OVER_NS)
        with_below, strict = (explained_by_named(found.spikes, OVER_NS, below=below)[0] for below in (True, False))
        counts = (scored.injected, scored.found, scored.named, scored.true, late, charged, with_below, strict)
        run = Run(scored, Row(one.name, *counts))
        if path := os.environ.get("SPIKES_SCORES"):
            with Path(path).open("a") as file:
                file.write(f"{run.row}\n")
        return run


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Of the cases that were taken so far."""
    return {}


@pytest.fixture(scope="module")
def hogged(tuned_host: TunedHost, runs: dict[str, Run]) -> tuple[Recording, Stage, Explanation]:
    """One recording with a FIFO hog on the vCPU's CPU, looked at from several sides."""
    found = taken(tuned_host, case("hog on the host"))
    runs["hog on the host"] = Run.of(case("hog on the host"), *found[1:])
    return found


def test_a_hog_on_the_host_is_found_with_what_allowed_it(hogged: tuple[Recording, Stage, Explanation]) -> None:
    _, on, found = hogged
    put_in = injections(on, case("hog on the host"))
    assert len(put_in) == 6
    result = score(found, put_in, "hog on the host")
    assert result.found >= result.injected - 1, result
    (cause,) = (one for one in found.causes if one.who == "ek-hog")
    assert cause.kind == Kind.waits and cause.spikes >= 5
    assert {one.rule for one in cause.allowed} == {"G-3", "C-1"}


def test_nothing_was_lost_and_the_clocks_are_bound(hogged: tuple[Recording, Stage, Explanation]) -> None:
    _, _, found = hogged
    assert found.lost.host == found.lost.guest == found.lost.below == 0
    assert (found.alignment.method, found.alignment.error_ns) == ("tsc-offset", 0)
    assert found.below is not None and found.below.error_ns < 1_000_000
    assert found.samples > 1000 and found.label


def test_round_trips_tell_the_clock_that_kvm_tells(tuned_host: TunedHost) -> None:
    """Both ways in one recording: where they differ by more than the bound that is printed, the bound is no bound."""
    with tuned_host.machine.probe() as probe:
        recording = record(
            probe,
            tuned_host.host.name,
            "plc",
            [1],
            conditions=conditions(read_facts(probe), load="nothing", plan_sha256=tuned_host.plan.sha256()),
            seconds=10.0,
            period_us=PERIOD_US,
            round_trips=True,
        )
    told = stage(recording)
    assert (told.alignment.method, told.alignment.error_ns) == ("tsc-offset", 0)
    untold = replace(recording, told={"offsets": {}, "ratio": None, "fraction_bits": None})
    timed = stage(untold)
    bound = timed.alignment
    print(f"{len(recording.guest_trips)} round trips: off by {bound.error_ns / 1e6:.3f} ms at most")
    assert bound.method == "round trips" and bound.error_ns < 100_000_000
    # Of what both recorded: beyond that a line through the trips is none of the bound's.
    times = [(told.guest_clock.ns(one.at), timed.guest_clock.ns(one.at)) for one in told.guest.cpus.values()]
    off = np.concatenate([(seen - true)[(true >= 0) & (true <= told.end_ns)] for true, seen in times])
    print(f"they differ by {np.abs(off).max() / 1e6:.3f} ms at most")
    assert len(off) > 2000 and np.abs(off).max() <= bound.error_ns
    # What is charged by the wide clock is a part of what is charged by the exact one, over all samples.
    exact, rough = (
        {(one.kind, one.who): one.ns for one in explanation(on, taken_by, over_ns=0).causes}
        for on, taken_by in ((told, recording), (timed, untold))
    )
    rounded = 2 * told.scenes[1].guest.sample_at.size  # pieces begin and end at whole nanoseconds of either clock
    for cause, ns in rough.items():
        # Whether a lesser task was a throttling is told by how long it ran, also beyond the sample.
        assert cause[0] in (Kind.unexplained, Kind.throttled) or ns <= exact.get(cause, 0) + rounded, cause


def test_a_guest_runs_nothing_when_the_host_says_that_it_has_no_cpu(
    hogged: tuple[Recording, Stage, Explanation],
) -> None:
    """The proof of the clocks: no event of the guest lies where its vCPU did not run."""
    _, on, _ = hogged
    scene = on.scenes[1]
    times = on.guest_clock.ns(on.guest.cpus[1].at)
    outside = sum(
        1 for start, end in scene.host.thread.absences() for at in times[(times > start + 1000) & (times < end - 1000)]
    )
    assert len(times) > 5000 and outside <= len(times) // 1000


def test_nothing_stays_on_host_and_guest(tuned_host: TunedHost, hogged: tuple[Recording, Stage, Explanation]) -> None:
    assert tuned_host.run("ls /sys/kernel/tracing/instances") == ""
    with tuned_host.machine.probe() as probe:
        left = guest_exec(
            probe, "plc", ["/bin/sh", "-c", "ls /sys/kernel/tracing/instances /run/evenkeel-spikes; true"]
        )
    assert "evenkeel-" not in left.stdout


def test_a_recording_is_the_same_when_it_was_saved(hogged: tuple[Recording, Stage, Explanation]) -> None:
    recording, _, found = hogged
    again = from_bytes(to_bytes(recording), "kept.zip")
    on = stage(again)
    assert allowed(on, again, explanation(on, again, over_ns=OVER_NS)) == found


def test_the_flight_recorder_freezes_at_a_miss(tuned_host: TunedHost, tmp_path: Path) -> None:
    """By the verbs, as a user does it: wait, save, explain."""
    plan, kept, page, drawn = (tmp_path / name for name in ("plan.json", "miss.zip", "miss.html", "miss.pftrace"))
    plan.write_text(tuned_host.plan.to_json())
    done = evenkeel("measure", plan, "plc", "--for", "120s", "--flight-recorder", "5s", "--on-miss", "3ms", "-o", kept)
    assert "late sample" in done.stderr and zipfile.is_zipfile(kept)
    explain = ("spikes", plan, "plc", "--from", kept, "--over", "3ms")
    done = evenkeel(*explain, "--report", page, "--pftrace", drawn, "--json")
    found = Explanation.model_validate(json.loads(done.stdout))
    assert found.reason == "late sample" and found.spikes and found.max_latency_ns > 3_000_000
    assert "late on vCPU 1" in page.read_text() and drawn.stat().st_size > 1000
    assert tuned_host.run("ls /sys/kernel/tracing/instances") == ""


# -- the suite ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [one.name for one in CASES])
def test_each_injected_cause_is_found(
    name: str, tuned_host: TunedHost, hogged: tuple[Recording, Stage, Explanation], runs: dict[str, Run]
) -> None:
    """Each line is appended to the file SPIKES_SCORES as it comes; recordings are kept in the folder SPIKES_KEEP."""
    if name not in runs:
        runs[name] = Run.of(case(name), *taken(tuned_host, case(name))[1:])
    found = runs[name].score
    # One may drown: the machine under the host takes CPUs for tens of milliseconds here, and then that is the cause.
    assert found.found >= found.injected - 1, found.missed
    if name == "nothing":
        assert found.named == 0, [(spike.at_ns, charge) for spike, charge in found.wrong]


@pytest.mark.usefixtures("tuned_host")  # in its turn, behind those whose counts it adds up
def test_most_are_found_what_is_named_is_true_and_most_of_the_time_is_charged(runs: dict[str, Run]) -> None:
    """Leaves the counts in build/injections.json, of which `make injections` makes the table of the docs."""
    assert set(runs) == {one.name for one in CASES}, "run the whole file: this is about all cases together"
    taken = f"Taken on {date.today():%-d %B %Y}, on {os.cpu_count()} CPUs, all in emulation"
    counts = Counts(taken, tuple(runs[one.name].row for one in CASES))
    COUNTS.parent.mkdir(exist_ok=True)
    COUNTS.write_text(counts.to_json())
    print(markdown(counts))
    whole = all_of(counts.rows)
    assert whole.found >= 0.9 * whole.injected
    assert whole.true >= 0.95 * whole.named, [run.score.wrong for run in runs.values() if run.score.wrong]
    assert whole.charged >= 0.9 * whole.late


# -- the flight recorder, last: what ends it leaves the host as no other test should find it ----------------------


def _until_it_answers(host: TunedHost) -> None:
    """Guest plc boots: what is recorded in it next needs its agent."""
    with host.machine.probe() as probe:
        for _ in range(120):
            try:
                guest_exec(probe, "plc", ["true"])
                return
            except EvenkeelError:
                time.sleep(2.0)
    raise AssertionError(host.run("virsh -q list --all; tail -5 /var/log/libvirt/qemu/plc.log"))


#: Once both sides record.
CRASH = """
(until [ -e /run/evenkeel-spikes/arm ]; do sleep 1; done; sleep 4; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &
"""


def test_a_guest_that_dies_freezes_the_flight_recorder(tuned_host: TunedHost) -> None:
    def kill() -> None:
        with tuned_host.machine.probe() as other:
            guest_exec(other, "plc", ["/bin/sh", "-c", CRASH])

    with tuned_host.machine.probe() as probe, ThreadPoolExecutor() as pool:
        killing = pool.submit(kill)
        recording = fly(
            probe,
            tuned_host.host.name,
            "plc",
            [1],
            conditions=conditions(read_facts(probe), load="a crash"),
            keep_s=5,
            late_us=900_000,
            limit_s=120,
        )
        killing.result()
    try:
        assert recording.reason == "guest gone"
        on = stage(recording)
        found = explanation(on, recording, over_ns=OVER_NS)
        assert [spike.vcpu for spike in found.ending] == [0, 1] and found.samples == 0
    finally:
        tuned_host.run("virsh -q destroy plc || true")
        # Into its place: the tests that follow find the host as planned.
        assert apply_plan(tuned_host.host, tuned_host.plan, tuned_host.machine).outcome == "applied"
        _until_it_answers(tuned_host)


#: A real oops where the kernel has the module for it; else its trace in the taint, which is what others see of one.
OOPS = r"""
until ls -d /sys/kernel/tracing/instances/evenkeel-* >/dev/null 2>&1; do sleep 1; done
sleep 5
sysctl -q kernel.panic_on_oops=0
if modprobe lkdtm 2>/dev/null; then
	sh -c 'echo EXCEPTION >/sys/kernel/debug/provoke-crash/DIRECT' || true
	echo oops
else
	echo 128 >/proc/sys/kernel/tainted
	echo taint
fi
"""


def test_an_oops_of_the_host_freezes_the_flight_recorder(tuned_host: TunedHost, tmp_path: Path) -> None:
    """Second to last in this file: the kernel is tainted from now on."""
    with tuned_host.machine.probe() as probe, ThreadPoolExecutor() as pool:
        dying = pool.submit(tuned_host.run, OOPS)
        recording = fly(
            probe,
            tuned_host.host.name,
            "plc",
            [1],
            conditions=conditions(read_facts(probe), load="an oops", plan_sha256=tuned_host.plan.sha256()),
            keep_s=2,
            late_us=900_000,
            limit_s=120,
        )
        assert dying.result() in ("oops", "taint")
    assert recording.reason == "host oops"
    kept = tmp_path / "oops.zip"
    kept.write_bytes(to_bytes(recording))
    done = evenkeel("spikes", "plan.json", "plc", "--from", kept, "--json", "--report", tmp_path / "oops.html")
    found = Explanation.model_validate(json.loads(done.stdout))
    assert found.reason == "host oops" and found.samples > 100 and {spike.vcpu for spike in found.ending} == {1}
    # Two seconds or so: a ring holds what it holds, and is not written out meanwhile.
    assert found.seconds < 60 and kept.stat().st_size < 64 << 20
    assert "host oops" in (tmp_path / "oops.html").read_text()
