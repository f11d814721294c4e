"""The host's half on this machine's own kernel: a real task, a real better one, and what the scheduler's events say."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from evenkeel.documents.explanation import Kind
from evenkeel.measure.explain.charge import SVM_EXITS, Scene, charges, explain
from evenkeel.measure.explain.clocks import Clock, host_clock
from evenkeel.measure.explain.timeline import RUNS, WOKEN, GuestTimeline, HostEvents, guest_timeline
from evenkeel.measure.explain.trace import Trace, make_trace
from evenkeel.probe import recording
from evenkeel.probe.trace import tracefs
from tests.measure.test_pages import recorded

MS = 1_000_000
CPU = max(os.sched_getaffinity(0))
#: Told to, spins at FIFO 10 until it is killed, stands in for a vCPU.
VICTIM = f"""
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.sched_setaffinity(0, {{{CPU}}})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
print("ready", flush=True)
if not signal.sigtimedwait([signal.SIGUSR1], 30): sys.exit("nobody came")
until = time.monotonic() + 5
while time.monotonic() < until: pass
"""
#: Lets the victim spin, comes three times for 15 ms at FIFO 20 and says so in the trace, and ends the victim.  All in
#: one process, which nothing keeps from its CPU, and within a second: then the kernel gives ordinary tasks a share.
HOG = f"""
import os, signal, sys, time
open("/proc/self/comm", "w").write("the-hog")
os.sched_setaffinity(0, {{{CPU}}})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
print("ready", flush=True)
marker = os.open(sys.stdin.readline().strip(), os.O_WRONLY)
victim = int(sys.argv[1])
os.kill(victim, signal.SIGUSR1)
for _ in range(3):
    time.sleep(0.1)
    os.write(marker, b"hog begin\\n")
    until = time.monotonic() + 0.015
    while time.monotonic() < until: pass
    os.write(marker, b"hog end\\n")
os.kill(victim, signal.SIGKILL)
"""


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


def scene_of(trace: Trace, clock: Clock, tid: int) -> Scene:
    """Of a thread that stands in for a vCPU, without a guest in it."""
    nothing = trace.table("ftrace/print")["at"][:0]
    return Scene(
        host=HostEvents.of(trace).timelines(clock, [tid])[tid],
        guest=GuestTimeline(nothing, nothing, {}, {}),
        tid=tid,
        home=frozenset({CPU}),
        family=frozenset(),
        exit_names=SVM_EXITS,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="real-time tasks and tracefs are for root")
def test_a_better_task_is_charged_for_what_it_took() -> None:
    # A mount of this process alone has no other path for another process.
    folder = tracefs.root().replace("/self/", f"/{os.getpid()}/")
    under_way = threading.Event()

    def disturb() -> None:
        """When the recording is under way, however long it took to set up."""
        assert under_way.wait(30)
        hog.communicate(f"{folder}/instances/evenkeel-{os.getpid()}/trace_marker\n", timeout=120)

    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", VICTIM], **pipes) as victim:
        assert victim.stdout and victim.stdout.readline() == "ready\n"
        with (
            ThreadPoolExecutor() as pool,
            subprocess.Popen([sys.executable, "-c", HOG, str(victim.pid)], **pipes) as hog,
        ):
            assert hog.stdout and hog.stdout.readline() == "ready\n"
            disturbing = pool.submit(disturb)
            answer = recording.record(
                2.0,
                {"sched/sched_switch": "", "sched/sched_waking": ""},
                on_progress=lambda done, total, what: under_way.set(),
            )
            disturbing.result()
    assert hog.returncode == 0
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
    scene = scene_of(trace, clock, victim.pid)
    over = []
    for (begin, _), (end, _) in zip(marks[::2], marks[1::2], strict=True):
        found = {
            (charge.kind, charge.who): charge.ns for charge in charges(explain(scene, begin - 5 * MS, end + 5 * MS))
        }
        assert found[Kind.waits, "the-hog"] >= 0.99 * (end - begin)
        over.append(found[Kind.waits, "the-hog"] - (end - begin))
    # The machine under this one may take time around the marks too, which only adds: so the least of them is the hog's.
    assert min(over) <= 4 * MS, over
    outside = explain(scene, marks[1][0] + 20 * MS, marks[2][0] - 20 * MS)
    assert not any(part.who == "the-hog" for part in outside)


LESSER = f"""
import os
open("/proc/self/comm", "w").write("the-lesser")
os.sched_setaffinity(0, {{{CPU}}})
os.setpriority(os.PRIO_PROCESS, 0, -20)
print("ready", flush=True)
while True: pass
"""


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="real-time tasks and tracefs are for root")
def test_a_lesser_task_that_gets_its_share_of_a_spinner_is_throttling() -> None:
    """The kernel takes the CPU from a FIFO task that never sleeps: by the fair server, before 6.12 by throttling."""
    pipes: Any = {"stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-c", VICTIM], **pipes) as victim,
        subprocess.Popen([sys.executable, "-c", LESSER], **pipes) as lesser,
    ):
        try:
            for one in (victim, lesser):
                assert one.stdout and one.stdout.readline() == "ready\n"
            answer = recording.record(
                4.0,
                {"sched/sched_switch": "", "sched/sched_waking": ""},
                on_progress=lambda done, total, what: os.kill(victim.pid, signal.SIGUSR1) if not done else None,
            )
        finally:
            victim.kill()
            lesser.kill()
    trace = fetched(answer)
    scene = scene_of(trace, host_clock(trace, answer["marks"]), victim.pid)
    ran = scene.host.thread
    spun = [int(at) for at, what in zip(ran.at, ran.what, strict=True) if what == RUNS]
    found = {(charge.kind, charge.who): charge.ns for charge in charges(explain(scene, spun[0], spun[-1]))}
    assert found[Kind.throttled, "the-lesser"] > MS, found
    assert (Kind.waits, "the-lesser") not in found


#: Sleeps twenty times for 10 ms, by a timer, and waits twenty times for another task.
SLEEPER = f"""
import os, sys, time
os.sched_setaffinity(0, {{{CPU}}})
print("ready", flush=True)
os.read(0, 1)
for _ in range(20): time.sleep(0.01)
print("timed", flush=True)
for _ in range(20): os.read(0, 1)
print("woken", flush=True)
os.read(0, 1)
"""
_TIMER = {"irq_vectors/local_timer_entry": "", "irq_vectors/local_timer_exit": ""}


@pytest.mark.skipif(os.getuid() != 0, reason="tracefs is for root")
def test_what_the_timers_interrupt_woke_is_told_from_what_a_task_woke() -> None:
    under_way = threading.Event()
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([sys.executable, "-c", SLEEPER], **pipes) as sleeper, ThreadPoolExecutor() as pool:
        assert sleeper.stdin and sleeper.stdout
        asked, told = sleeper.stdin, sleeper.stdout
        assert told.readline() == b"ready\n"

        def wake() -> None:
            assert under_way.wait(30)
            asked.write(b"\n")
            assert told.readline() == b"timed\n"
            for _ in range(20):
                time.sleep(0.01)
                asked.write(b"x")
            assert told.readline() == b"woken\n"
            asked.close()

        waking = pool.submit(wake)
        answer = recording.record(
            3.0,
            {"sched/sched_switch": "", "sched/sched_waking": ""},
            optional=_TIMER,
            on_progress=lambda done, total, what: under_way.set(),
        )
        waking.result()
    if not set(_TIMER) <= set(answer["formats"]):
        pytest.skip("this kernel has no irq_vectors events: x86 has")
    trace = fetched(answer)
    timelines = HostEvents.of(trace).timelines(host_clock(trace, answer["marks"]), [sleeper.pid, os.getpid()])
    host, other = timelines[sleeper.pid], timelines[os.getpid()]
    # What the host did is decoded once; what a thread did is its own.
    assert other.running is host.running and other.interrupts is host.interrupts
    assert len(other.thread.at) and other.thread.at.tolist() != host.thread.at.tolist()
    woken = host.thread.at[host.thread.what == WOKEN]
    assert len(woken) >= 40
    # Twenty of the forty, and the first ones: nobody else's timer wakes this thread.
    assert 19 <= len(host.timed) <= 21
    assert set(host.timed.tolist()) <= set(woken.tolist()) and host.timed.max() < woken[-15]


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
