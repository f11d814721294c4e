"""The host's half on this machine's own kernel: a real task, a real better one, and what the scheduler's events say."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.explanation import Kind
from evenkeel.measure.explain.charge import SVM_EXITS, Scene, charges, explain
from evenkeel.measure.explain.clocks import Clock, host_clock
from evenkeel.measure.explain.timeline import GuestTimeline, guest_timeline, host_timeline
from evenkeel.measure.explain.trace import Trace, make_trace
from evenkeel.probe import recording
from tests.measure.test_pages import recorded

MS = 1_000_000
CPU = max(os.sched_getaffinity(0))
#: Spins at FIFO 10 for a time, stands in for a vCPU.
VICTIM = f"""
import os, time
os.sched_setaffinity(0, {{{CPU}}})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
until = time.monotonic() + 1.2
while time.monotonic() < until: pass
"""
#: Comes three times for 15 ms at FIFO 20 and says so in the trace.
HOG = f"""
import os, sys, time
marker = os.open(sys.argv[1], os.O_WRONLY)
open("/proc/self/comm", "w").write("the-hog")
os.sched_setaffinity(0, {{{CPU}}})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
for _ in range(3):
    time.sleep(0.15)
    os.write(marker, b"hog begin\\n")
    until = time.monotonic() + 0.015
    while time.monotonic() < until: pass
    os.write(marker, b"hog end\\n")
"""


@pytest.fixture
def tracing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "tracing"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "tracefs", str(folder)], check=True)
    monkeypatch.setattr(recording, "tracing_folder", lambda: str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fetched(answer: dict[str, Any]) -> Trace:
    pages: dict[int, bytes] = {}
    for cpu in answer["bytes"]:
        whole, offset = b"", 0
        while offset is not None:
            piece = recording.fetch(answer["id"], int(cpu), offset)
            whole, offset = whole + zlib.decompress(base64.b64decode(piece["pages"])), piece["next"]
        pages[int(cpu)] = whole
    recording.drop(answer["id"])
    return make_trace(pages, answer["formats"], answer["header_page"])


@pytest.mark.skipif(os.getuid() != 0, reason="real-time tasks and tracefs are for root")
def test_a_better_task_is_charged_for_what_it_took(tracing: Path) -> None:
    tasks: list[subprocess.Popen[bytes]] = []

    def disturb() -> None:
        time.sleep(0.3)
        marker = tracing / f"instances/evenkeel-{os.getpid()}/trace_marker"
        tasks.append(subprocess.Popen([sys.executable, "-c", HOG, str(marker)]))
        tasks.append(subprocess.Popen([sys.executable, "-c", VICTIM]))

    helper = threading.Thread(target=disturb)
    helper.start()
    answer = recording.record(2.0, {"sched/sched_switch": "", "sched/sched_waking": ""})
    helper.join()
    for task in tasks:
        assert task.wait(30) == 0
    trace = fetched(answer)
    clock = host_clock(trace, answer["marks"])
    marks = [
        (at, text.strip())
        for at, text in zip(
            clock.ns(trace.table("ftrace/print")["at"]).tolist(), trace.texts("ftrace/print", "buf"), strict=True
        )
        if text.startswith("hog ")
    ]
    assert [text for _, text in marks] == ["hog begin", "hog end"] * 3
    victim = tasks[1].pid
    scene = Scene(
        host=host_timeline(trace, clock, victim),
        guest=GuestTimeline(trace.table("ftrace/print")["at"][:0], trace.table("ftrace/print")["at"][:0], {}, {}),
        tid=victim,
        home=frozenset({CPU}),
        family=frozenset(),
        exit_names=SVM_EXITS,
    )
    for (begin, _), (end, _) in zip(marks[::2], marks[1::2], strict=True):
        found = {
            (charge.kind, charge.who): charge.ns for charge in charges(explain(scene, begin - 5 * MS, end + 5 * MS))
        }
        # The machine under this one may take time of its own, which is charged to whom it was taken from.
        assert found[Kind.waits, "the-hog"] >= 0.99 * (end - begin)
        assert found[Kind.waits, "the-hog"] <= end - begin + 4 * MS
    outside = explain(scene, marks[1][0] + 20 * MS, marks[2][0] - 20 * MS)
    assert not any(part.who == "the-hog" for part in outside)


def test_noise_and_samples_of_a_recorded_guest() -> None:
    """Recorded in a PREEMPT_RT guest under TCG: timerlat every millisecond, and once a FIFO 99 shell beside it."""
    kept = recorded("6.12-rt-timerlat.tar.bz2")
    names = {"timerlat": "ftrace/timerlat", "print": "ftrace/print"}
    trace = Trace(
        {cpu: kept.records(cpu) for cpu in kept.cpus},
        {names.get(form.name, f"osnoise/{form.name}"): form for form in kept.formats},
    )
    # In the text of the kernel: duration and time of each thread noise, in counts of the 2793.4 MHz counter.
    lines = kept.files["cpu1.txt"].decode().splitlines()
    told = [re.search(r"(\d+): thread_noise: +(\S+):\d+ start \S+ duration (\d+) ns", line) for line in lines]
    wanted = [(int(m[1]), m[2], int(m[3])) for m in told if m and not m[2].startswith(("swapper", "timerlat"))]
    assert wanted
    clock = Clock(0, 1000 / 2793.428)
    guest = guest_timeline(trace, clock, 1)
    threads = guest.noise[3]
    assert len(threads.end) == len(wanted)
    for (at, name, took), start, end, what in zip(wanted, threads.start, threads.end, threads.what, strict=True):
        assert guest.names[3][what] == name
        assert abs(int(end) - at * clock.ns_per_tick) < 2
        assert end - start >= took  # what interrupted it lies within
    assert len(guest.sample_at) > 1000 and guest.sample_latency.max() > 1000
