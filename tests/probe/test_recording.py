"""The recorder on this machine's kernel: what it keeps, what it loses and says so, and that nothing stays behind."""

from __future__ import annotations

import base64
import mmap
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evenkeel.measure.explain.attribute import stage
from evenkeel.measure.explain.clocks import host_clock
from evenkeel.measure.explain.recording import Raw
from evenkeel.measure.explain.trace import Trace, make_trace
from evenkeel.probe.recording import drop, fetch, fly, record, remove_orphans
from evenkeel.probe.trace import tracefs
from tests.measure.explain import constructed
from tests.probe.trace.load import never_idle

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="tracefs is for root")
SWITCH = {"sched/sched_switch": ""}


@pytest.fixture(autouse=True)
def tracing() -> Iterator[Path]:
    folder = Path(tracefs.root())
    yield folder
    assert not (folder / f"instances/evenkeel-{os.getpid()}").exists(), "an instance stayed behind"


def kept(answer: dict[str, object]) -> Trace:
    raw = fetched(answer)
    return make_trace(raw.pages, raw.formats, raw.header_page, raw.overrun)


def fetched(answer: dict[str, object]) -> Raw:
    """All of a recording, as the controlling side gets it."""
    pages: dict[int, bytes] = {}
    number, sizes = answer["id"], answer["bytes"]
    assert isinstance(number, int) and isinstance(sizes, dict)
    for cpu, size in sizes.items():
        whole, offset = b"", 0
        while offset is not None:
            piece = fetch(number, int(cpu), offset)
            whole += zlib.decompress(base64.b64decode(piece["pages"]))
            offset = piece["next"]
        assert len(whole) == size
        pages[int(cpu)] = whole
    drop(number)
    formats, overrun, marks = answer["formats"], answer["overrun"], answer["marks"]
    assert isinstance(formats, dict) and isinstance(overrun, dict) and isinstance(marks, list)
    lost = {int(cpu): count for cpu, count in overrun.items()}
    return Raw(pages, formats, str(answer["header_page"]), lost, tuple(marks))


def switched(process: int) -> int:
    """How often a process was taken off a CPU so far: each time but the last it came back."""
    status = Path(f"/proc/{process}/status").read_text()
    return sum(int(line.split()[1]) for line in status.splitlines() if "voluntary_ctxt_switches" in line)


def test_a_process_that_sleeps_and_wakes_is_in_the_recording() -> None:
    code = "import time\nprint(flush=True)\nwhile True: time.sleep(0.02)"
    sleeper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert sleeper.stdout is not None
    sleeper.stdout.readline()  # it sleeps from now on
    before = switched(sleeper.pid)
    try:
        with never_idle():
            answer = record(0.6, {"sched/sched_switch": f"next_pid == {sleeper.pid}", "sched/sched_waking": ""})
        most = switched(sleeper.pid) - before
    finally:
        sleeper.kill()
        sleeper.communicate()
    trace = kept(answer)
    switches = trace.table("sched/sched_switch", "next_pid", "prev_pid")
    assert 0 < len(switches["at"]) <= most + 1 and set(switches["next_pid"].tolist()) == {sleeper.pid}
    assert sleeper.pid in trace.table("sched/sched_waking", "pid")["pid"]
    assert trace.named("sched/sched_switch", "next_pid", "next_comm")[sleeper.pid].startswith("python")
    assert trace.lost == 0 and not answer["full"]


def test_the_marks_bind_the_counter_to_nanoseconds() -> None:
    answer = record(0.5, SWITCH)
    clock = host_clock(kept(answer), answer["marks"])
    with_mono = record(0.5, SWITCH, clock="mono_raw")
    told = host_clock(kept(with_mono), with_mono["marks"])
    assert told.ns_per_tick == pytest.approx(1.0, rel=1e-3)
    assert 0.1 < clock.ns_per_tick < 2


def test_what_a_small_ring_loses_is_counted() -> None:
    load = subprocess.Popen(["sh", "-c", "while :; do true | true; done"])
    try:
        answer = record(1.0, {"sched/sched_switch": "", "sched/sched_waking": ""}, buffer_kb=8)
    finally:
        load.kill()
        load.wait()
    assert sum(answer["overrun"].values()) > 0
    assert kept(answer).lost > 0


def test_memory_is_bounded() -> None:
    load = subprocess.Popen(["sh", "-c", "while :; do true | true; done"])
    try:
        start = time.monotonic()
        answer = record(600.0, {"sched/sched_switch": "", "sched/sched_waking": ""}, most_bytes=64 << 10)
    finally:
        load.kill()
        load.wait()
    assert answer["full"] and time.monotonic() - start < 500
    assert sum(answer["bytes"].values()) <= 64 << 10
    drop(answer["id"])


def test_a_recording_that_is_full_can_be_explained() -> None:
    """The marks that bind its clock are in it, and of no CPU anything is missing until the last of them."""
    words = ("sh", "-c", "while :; do true | true; done")
    loads = [subprocess.Popen(["taskset", "-c", str(cpu), *words]) for cpu in os.sched_getaffinity(0)]
    try:
        answer = record(60.0, {"sched/sched_switch": "", "sched/sched_waking": ""}, most_bytes=2 << 20)
    finally:
        for load in loads:
            load.kill()
            load.wait()
    host = fetched(answer)
    assert answer["full"] and sum(map(len, host.pages.values())) > (2 << 20) - 4096 and len(host.marks) > 2
    on = stage(replace(constructed.recording(), host=host))
    told_ns = host.marks[-1]["before"] - host.marks[0]["before"]
    assert on.end_ns == pytest.approx(told_ns, abs=1000) and 100_000_000 < on.end_ns < 55_000_000_000
    for cpu, records in on.host.cpus.items():
        times = on.host_clock.ns(records.at)
        longest = max(50_000_000, 2 * int(np.diff(times).max()))  # others may hold the CPU for a while
        assert times[-1] > on.end_ns - longest, f"CPU {cpu} ends before the last mark"


def test_what_the_recorder_took_is_told() -> None:
    """Of this process, which reads, and of what it starts and waits for; not of the others on the machine."""
    turning = "import time\nwhile time.process_time() < 0.3: pass"

    def burn(done: int, total: int, what: str) -> None:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass

    def start(done: int, total: int, what: str) -> None:
        subprocess.run([sys.executable, "-c", turning], check=True)

    for work in (burn, start):
        used = os.times()
        answer = record(0.1, SWITCH, on_progress=work)
        most = sum(os.times()[:4]) - sum(used[:4])  # in hundredths
        drop(answer["id"])
        assert 0.3e9 <= answer["cost"]["cpu_ns"] <= (most + 0.05) * 1e9
        assert 0.1e9 <= answer["cost"]["over_ns"] < 60e9


def test_the_mark_of_an_end_that_did_not_fit_is_not_told() -> None:
    answer = record(0.0, SWITCH, most_bytes=4096)
    drop(answer["id"])
    assert answer["full"] and len(answer["marks"]) == 1
    answer = record(0.0, SWITCH)
    drop(answer["id"])
    assert not answer["full"] and len(answer["marks"]) == 2


def test_the_rings_of_a_flight_are_bounded_by_their_sum(tracing: Path) -> None:
    """On a host of many CPUs too: a ring each, and the memory of all is what was asked for."""
    sizes = []

    def look(done: int, total: int, what: str) -> None:
        sizes.append(int((tracing / f"instances/evenkeel-{os.getpid()}/buffer_total_size_kb").read_text()))

    answer = fly(0.0, SWITCH, "no-guest", buffer_kb=1 << 19, most_bytes=8 << 20, on_progress=look)
    drop(answer["id"])
    assert answer["reason"] is None and len(answer["marks"]) == 2
    pages = 4 * (os.cpu_count() or 1)  # the kernel rounds each up
    assert sizes and 0 < max(sizes) <= (8 << 10) + pages


def test_a_lost_connection_removes_the_instance(tracing: Path) -> None:
    def gone(done: int, total: int, what: str) -> None:
        assert list((tracing / "instances").glob(f"evenkeel-{os.getpid()}"))
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        record(5.0, SWITCH, on_progress=gone)


def test_what_a_killed_probe_left_is_removed_and_what_is_in_use_is_not(tracing: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    orphan, foreign, living = (tracing / "instances" / name for name in (f"evenkeel-{ended.pid}", "mine", "evenkeel-1"))
    try:
        for folder in (orphan, foreign, living):
            folder.mkdir()
        (orphan / "events/sched/sched_switch/enable").write_text("1")
        assert remove_orphans(str(tracing)) == [orphan.name]
        assert foreign.is_dir() and living.is_dir() and not orphan.exists()
    finally:
        foreign.rmdir()
        living.rmdir()


@pytest.mark.parametrize(
    ("events", "clock"),
    [
        ({"sched/no_such_event": ""}, "mono"),
        ({"sched/sched_switch": "no_such_field == 1"}, "mono"),
        ({"../../trace_marker": ""}, "mono"),
        ({"sched/sched_switch": "next_pid == 1\n"}, "mono"),
        (SWITCH, "sundial"),
    ],
)
def test_what_cannot_be_recorded_is_refused(events: dict[str, str], clock: str) -> None:
    with pytest.raises(OSError):
        record(0.1, events, clock=clock)


def test_an_event_that_the_kernel_lacks_may_be_left_out() -> None:
    answer = record(0.1, SWITCH, optional={"kvm/no_such": "", "sched/sched_waking": ""})
    assert sorted(answer["formats"]) == ["ftrace/print", "sched/sched_switch", "sched/sched_waking"]
    drop(answer["id"])


def test_why_pages_are_read_and_not_mapped() -> None:
    """Trap: trace_pipe_raw says that its size is 0, and Python's mmap believes it."""
    instance = tracefs.Instance(buffer_kb=64)
    try:
        with (
            Path(instance.path, "per_cpu/cpu0/trace_pipe_raw").open("rb") as file,
            pytest.raises(ValueError, match="empty"),
        ):
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    finally:
        instance.close()
