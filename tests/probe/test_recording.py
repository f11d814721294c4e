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
from pathlib import Path

import pytest

from evenkeel.measure.explain.clocks import host_clock
from evenkeel.measure.explain.trace import Trace, make_trace
from evenkeel.probe.recording import drop, fetch, fly, record, remove_orphans
from evenkeel.probe.trace import tracefs
from tests.probe.trace.load import never_idle

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="tracefs is for root")
SWITCH = {"sched/sched_switch": ""}


@pytest.fixture(autouse=True)
def tracing() -> Iterator[Path]:
    folder = Path(tracefs.root())
    yield folder
    assert not (folder / f"instances/evenkeel-{os.getpid()}").exists(), "an instance stayed behind"


def kept(answer: dict[str, object]) -> Trace:
    """Fetch all of a recording as the controlling side does."""
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
    formats, overrun = answer["formats"], answer["overrun"]
    assert isinstance(formats, dict) and isinstance(overrun, dict)
    return make_trace(pages, formats, str(answer["header_page"]), {int(cpu): count for cpu, count in overrun.items()})


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
        answer = record(30.0, {"sched/sched_switch": "", "sched/sched_waking": ""}, most_bytes=64 << 10)
    finally:
        load.kill()
        load.wait()
    assert answer["full"] and time.monotonic() - start < 25
    assert sum(answer["bytes"].values()) <= 64 << 10
    drop(answer["id"])


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
