"""`evenkeel trace` as a user runs it, on this machine: answers, refusals, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.probe.trace.load import caller
from tests.waiting import until

from evenkeel.cli import files
from evenkeel.cli.trace import _cost, _print
from evenkeel.documents.answer import Answer, Question, TraceCost
from evenkeel.documents.evidence import Conditions
from evenkeel.errors import EvenkeelError
from evenkeel.measure.trace.records import ENDINGS, FIELDS, STRIDE, write
from evenkeel.probe.trace import tracefs


def trace(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evenkeel", "trace", *words], capture_output=True, text=True, timeout=120, check=False
    )


def test_who_calls_getuid_at_least_a_hundred_times() -> None:
    """The talk's question, and Ctrl-C."""
    rest = ("--at-least", "100", "--for", "60s", "--json")
    with caller(3000, "ek-verb") as one:
        process = subprocess.Popen(
            [sys.executable, "-m", "evenkeel", "trace", "top", "syscalls:sys_enter_getuid", *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        while "watching by" not in process.stderr.readline():
            assert process.poll() is None, "it did not begin"
        one.go()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        answer = Answer.from_json(process.communicate(timeout=120)[0], file="stdout")
    assert process.returncode == 0, "Ctrl-C ends it early, and the answer is printed"
    assert "ended early by the user" in answer.notes
    row = next(row for row in answer.rows if row.key == str(one.pid))
    assert (row.label, row.count) == ("ek-verb", 3000)
    assert all(row.count >= 100 for row in answer.rows)
    assert answer.lost == 0
    assert answer.seconds < 60
    assert answer.predicted and answer.measured
    assert answer.mechanism[0].startswith("BPF on")


def test_the_answer_says_how_and_what_it_cost() -> None:
    done = trace("count", "sched:sched_switch", "--for", "500ms")
    assert done.returncode == 0, done.stderr
    for word in ("source ", "predicted ", "measured ", "lost ", "a second"):
        assert word in done.stdout


def test_durations_have_shares_and_who_waited_longest() -> None:
    done = trace("wakeups", "--for", "500ms", "--json")
    assert done.returncode == 0, done.stderr
    answer = Answer.from_json(done.stdout, file="stdout")
    assert answer.durations is not None
    assert answer.durations.samples == answer.events == sum(row.count for row in answer.rows)
    longest = [row.longest_ns or 0 for row in answer.rows]
    assert longest == sorted(longest, reverse=True)
    assert "99.9 % <=" in trace("latency", "sched:sched_waking", "sched:sched_switch", "--for", "300ms").stdout


def test_a_budget_makes_it_look_only_now_and_then() -> None:
    """A loop of getuid costs more than a thousandth of a percent of a core: what it did is worked out from windows."""
    loop = subprocess.Popen([sys.executable, "-S", "-c", "import os\nwhile True: os.getuid()"])
    try:
        done = trace("count", "syscalls:sys_enter_getuid", "--budget", "0.1", "--for", "2s", "--json")
        whole = trace("count", "syscalls:sys_enter_getuid", "--budget", "100", "--for", "500ms", "--json")
    finally:
        loop.kill()
        loop.wait()
    answer, all_of_it = (Answer.from_json(one.stdout, file="stdout") for one in (done, whole))
    assert answer.sampled < 0.6
    assert any(note.startswith("sampled") for note in answer.notes)
    assert all_of_it.sampled == 1
    assert not any(note.startswith("sampled") for note in all_of_it.notes)


def test_a_cost_says_over_which_time_it_is() -> None:
    cost = TraceCost(ns_per_event=200, events_per_s=1e6, share_of_core=0.2, how="calibrated here")
    assert _cost(cost, 0.05).startswith(
        "20.00% of a core while attached, 1.000% over the whole time: 200 ns x 1,000,000/s"
    )
    assert _cost(cost, 1.0).startswith("20.00% of a core: 200 ns"), "always attached: both are one"


def test_nobody_is_said_and_how_often_only_where_that_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    conditions = Conditions(kernel="this one", preempt_rt=False, command_line="")
    answer = Answer(
        host="here",
        question=Question(kind="top", events=("kvm:kvm_exit",), by="process"),
        source="raw_tp",
        mechanism=("BPF",),
        events=0,
        lost=0,
        seconds=1.0,
        conditions=conditions,
    )
    for changed, told in (
        ({}, "nobody did it\n"),
        ({"at_least": 100}, "nobody did it 100 times or more\n"),
        ({"kind": "wakeups"}, "nobody was woken\n"),
        ({"kind": "wakeups", "at_least": 100}, "nobody was woken 100 times or more\n"),
    ):
        _print(answer.model_copy(update={"question": answer.question.model_copy(update=changed)}))
        assert told in capsys.readouterr().out


def test_what_disturbs_a_cpu() -> None:
    done = trace("noise", "0", "--for", "500ms", "--json")
    assert done.returncode == 0, done.stderr
    answer = Answer.from_json(done.stdout, file="stdout")
    assert {row.key for row in answer.rows} >= {"CPU 0 thread", "CPU 0 vector"}
    assert "in all" in trace("noise", "0", "--for", "300ms").stdout


def test_where_the_time_goes_is_one_line(tmp_path: Path) -> None:
    target = tmp_path / "flame.html"
    busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])  # a machine at rest has no busy time
    try:
        done = trace("profile", "--flame", str(target), "--for", "500ms")
    finally:
        busy.kill()
        busy.wait()
    assert done.returncode == 0, done.stderr
    assert "of busy time" in done.stdout
    assert "Flame graph" in target.read_text()


def test_a_saved_answer_can_be_read_again(tmp_path: Path) -> None:
    target = tmp_path / "answer.json"
    done = trace("count", "software:context-switches", "--for", "200ms", "-o", str(target))
    assert done.returncode == 0, done.stderr
    answer = Answer.from_json(target.read_text(), file=str(target))
    assert answer.source == "perf"
    assert answer.events > 0
    assert answer.conditions.kernel


@pytest.mark.parametrize("name", ["switches.npy", "switches.csv"])
def test_every_event_is_written_to_a_file(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    done = trace("record", "sched:sched_switch", str(target), "--field", "next_pid", "--for", "500ms", "--json")
    assert done.returncode == 0, done.stderr
    answer = Answer.from_json(done.stdout, file="stdout")
    # Which of these is the cheapest is measured on the machine, and close.
    assert answer.source in ("tp_btf", "tracepoint", "ring"), "a raw tracepoint does not have the field"
    assert answer.lost == 0
    read = {".npy": np.load, ".csv": lambda path: np.genfromtxt(path, delimiter=",", names=True, dtype=None)}
    found = read[target.suffix](target)
    assert len(found) == answer.events > 0
    assert found.dtype.names == tuple(FIELDS)
    assert (np.diff(found["time_ns"].astype(np.int64)) >= 0).all()
    assert len(set(found["value"])) > 1


def test_ctrl_c_before_it_watches_leaves_at_once(tmp_path: Path) -> None:
    """Not with the answer 0, and not after the seconds that the first question of a kind measures for."""
    target = tmp_path / "calls.npy"
    words = ("record", "syscalls:sys_enter_getuid", str(target), "--for", "60s", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "evenkeel", "trace", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert process.stderr
    assert "asking" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "watching" not in said
    assert "interrupted after" in said and "Traceback" not in said
    assert not out and not target.exists()


def test_a_recording_that_ctrl_c_ends_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "switches.npy"
    target.write_text("old")
    words = ("record", "sched:sched_switch", str(target), "--for", "60s", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "evenkeel", "trace", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    while "watching by" not in process.stderr.readline():
        assert process.poll() is None, "it did not begin"
    time.sleep(0.3)
    assert target.read_text() == "old", "nothing is written in place"
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"wrote {target}" in said
    answer = Answer.from_json(out, file="stdout")
    assert len(np.load(target)) == answer.events > 0
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_without_a_real_time_priority_is_told(tmp_path: Path) -> None:
    unable = ("setpriv", "--bounding-set=-sys_nice", "prlimit", "--rtprio=0", "--")
    words = ("record", "sched:sched_switch", str(tmp_path / "switches.csv"), "--for", "300ms")
    for before, told in ((unable, True), ((), False)):
        argv = [*before, sys.executable, "-m", "evenkeel", "trace", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert ("no real-time priority (EPERM)" in done.stdout) == told


@pytest.mark.parametrize("ending", ENDINGS)
def test_records_on_a_full_disk_leave_the_old_file(tmp_path: Path, ending: str) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the write in the middle, as there."""
    target = tmp_path / f"switches{ending}"
    target.write_text("old")
    found = np.ones(5000, STRIDE)[FIELDS]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(EvenkeelError, match=r"cannot write .*: File too large") as caught,
            files.writing(target) as to,
        ):
            write(to, ending, found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 1
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_sources_and_events() -> None:
    done = trace("sources", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["source"] for row in json.loads(done.stdout) if row["works"]} >= {"raw_tp", "perf", "ring"}
    assert "syscalls:sys_enter_getuid" in trace("events", "getuid").stdout.split()
    none = trace("events", "no_such_event")
    assert (none.returncode, none.stdout) == (0, "")
    assert "no event of local has 'no_such_event' in its name" in none.stderr


def test_a_killed_asker_leaves_nothing() -> None:
    """The connection ends, so the probe ends, and with it what it had attached."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evenkeel", "trace", "count", "sched:sched_switch", "--source", "ring", "--for", "60s"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (mine := instances()):
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.05)
    process.kill()
    process.wait()
    until(lambda: not instances() & mine, told=lambda: "an instance stayed")


def instances() -> set[str]:
    return {path.name for path in Path(tracefs.root(), "instances").iterdir() if path.name.startswith("evenkeel-")}
