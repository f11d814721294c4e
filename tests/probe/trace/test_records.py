"""Every event as a record: each once and in order, losses that are made on purpose and counted, and two sources.

Decoded by `evenkeel.measure.trace.records`, as a user's are.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenkeel.measure.trace.records import FIELDS, from_pages, from_ring
from evenkeel.measure.trace.records import records as in_order
from evenkeel.probe import recording
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import kinds, question, records, tracefs
from evenkeel.probe.trace.records import RECORD_STRIDE
from tests.probe.trace.load import never_idle
from tests.waiting import until

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="a ring is read on x86 only")
GETUID = "syscalls:sys_enter_getuid"
SWITCH = "sched:sched_switch"


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    question.trace_close()
    for number in list(recording._kept):
        recording.drop(number)
    assert tracefs.orphans() == []


def begin(source: str = "raw_tp", event: str = GETUID, **more: Any) -> None:
    own = {} if source == "ring" else {"process": os.getpid()}
    question.trace_start({"kind": "record", "events": [event], **own, **more}, source)


def end(field: str | None = None) -> tuple[dict[str, Any], Any]:
    """What the probe says, and the records."""
    found = question.trace_finish()
    kept = recording._kept[found["records"]["id"]]
    assert {int(cpu): size for cpu, size in found["records"]["bytes"].items()} == {
        cpu: len(one) for cpu, one in kept.items()
    }
    return found, in_order(found["records"], {cpu: bytes(one) for cpu, one in kept.items()}, field)


def getuid(times: int) -> None:
    for _ in range(times):
        os.getuid()


def test_every_event_is_read_once_and_in_order() -> None:
    begin(ring_bytes=1 << 18)

    def work() -> None:
        for _ in range(50):
            getuid(1000)
            time.sleep(0.002)  # lets go of Python's lock: the reader is a thread beside this one

    caller = threading.Thread(target=work)
    caller.start()
    while caller.is_alive():
        question.trace_wait(0.05)
    found, array = end()
    assert found["events"] == len(array) == 50_000
    assert found["lost"] == 0
    assert len(array) * RECORD_STRIDE > 5 * (1 << 18), "read while it was written, several times round the ring"
    assert list(array.dtype.names) == FIELDS
    assert set(array["process"]) == {os.getpid()}
    assert set(array["thread"]) == {caller.native_id}
    assert (np.diff(array["time_ns"].astype(np.int64)) >= 0).all()
    assert set(array["cpu"]) <= set(range(os.cpu_count() or 1))


def test_the_end_of_the_ring_is_read_in_one_piece() -> None:
    """A record is 40 bytes and a ring is no multiple of that, so some record always runs over the end."""
    begin(event="syscalls:sys_enter_getuid", ring_bytes=1 << 16)
    for _ in range(40):
        getuid(500)
        question.trace_wait(0)
    found, array = end()
    assert len(array) == found["events"] == 20_000
    assert set(array["process"]) == {os.getpid()}
    assert found["lost"] == 0


def test_a_reader_that_is_kept_away_loses_events_and_says_how_many() -> None:
    """Trap: a reader that does not run.  Nobody looks here until the end."""
    begin(ring_bytes=1 << 16)
    getuid(5000)
    found, array = end()
    assert len(array) == found["events"] == (1 << 16) // RECORD_STRIDE, "the ring was full"
    assert found["events"] + found["lost"] == 5000


READER = """
import signal, sys
from evenkeel.probe.trace import question

class Enough(Exception): ...

def enough(*_):
    raise Enough

signal.signal(signal.SIGUSR1, enough)
question.trace_start({"kind": "record", "events": ["sched:sched_switch"]}, sys.argv[1])
try:
    print("on", flush=True)
    question.trace_wait(600.0)
except Enough:
    print("between", flush=True)
sys.stdin.readline()
print(question.trace_finish()["not_real_time"], flush=True)
"""


@contextlib.contextmanager
def reader(source: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A process that records until :func:`stops` and then waits for a line; ``before``: what starts it."""
    argv = [*before, sys.executable, "-c", READER, source]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "on\n"
            yield process
        finally:
            process.kill()


def stops(process: subprocess.Popen[str]) -> None:
    """It reads no more, and has not ended."""
    process.send_signal(signal.SIGUSR1)
    assert process.stdout and process.stdout.readline() == "between\n"


def ended(process: subprocess.Popen[str]) -> str:
    return process.communicate("\n", timeout=120)[0].strip()


def switches(pid: int) -> int:
    """How often it went to sleep."""
    return int(re.findall(r"\nvoluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


@pytest.mark.parametrize("source", ["raw_tp", "ring"])
def test_the_reader_is_at_a_real_time_priority_and_sleeps(source: str) -> None:
    """Only while it reads, and what it starts is not; else a reader that spins would take the CPU from all others."""
    wanted = (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, records.PRIORITY)
    with reader(source) as process:
        pid = process.pid
        until(lambda: policy(pid) == wanted)
        slept, states = switches(pid), []
        for _ in range(100):
            time.sleep(0.005)
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
            assert policy(pid) == wanted
        assert states.count("S") > 50
        # A look each 2 or 30 milliseconds.
        assert switches(pid) - slept >= 10
        stops(process)
        assert policy(pid) == (os.SCHED_OTHER, 0)
        assert ended(process) == "None"


def test_a_reader_that_gets_no_priority_reads_on_and_says_so() -> None:
    """Trap: without the right to it (CAP_SYS_NICE) the kernel refuses, and losses are likelier."""
    with reader("raw_tp", "setpriv", "--bounding-set=-sys_nice", "prlimit", "--rtprio=0", "--") as process:
        time.sleep(0.2)
        assert policy(process.pid) == (os.SCHED_OTHER, 0)
        stops(process)
        assert ended(process) == "EPERM"


def policy(pid: int) -> tuple[int, int]:
    return os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority


def test_a_reader_of_pages_that_is_kept_away_says_so_too() -> None:
    begin("ring", ring_bytes=1 << 16)
    other = threading.Thread(target=getuid, args=(60_000,))  # the reader itself is left out
    other.start()
    other.join()
    run = question._run
    assert run is not None
    run.detach()
    lost, kept = run.lost(), run.events()
    _, array = end()
    assert lost > 0
    assert lost + kept >= 60_000
    assert len(array) <= kept


def test_a_record_that_is_still_written_waits_for_the_next_look() -> None:
    """A ring in plain memory, whose third record has the kernel's flag of being written."""
    size = 1 << 12
    ring = records.Ring.__new__(records.Ring)
    memory = bytearray(mmap.PAGESIZE + 2 * size)
    for number in range(5):
        length = 32 | (1 << 31 if number == 2 else 0)
        struct.pack_into("=IIQIIQII", memory, mmap.PAGESIZE + 40 * number, length, 0, number, 0, 0, 0, 0, 0)
    struct.pack_into("=Q", memory, 0, 5 * 40)
    ring.size, ring._theirs = size, memory  # type: ignore[assignment]
    ring._consumer, ring._producer = memoryview(bytearray(8)).cast("Q"), memoryview(memory).cast("Q")
    assert list(from_ring(bytes(ring.read()))["time_ns"]) == [0, 1]
    assert ring.read() == b""
    struct.pack_into("=I", memory, mmap.PAGESIZE + 80, 32)
    assert list(from_ring(bytes(ring.read()))["time_ns"]) == [2, 3, 4]
    assert ring.read() == b""


def test_a_number_of_the_event_is_in_each_record() -> None:
    for source in ("tp_btf", "tracepoint", "ring"):
        with never_idle():
            question.trace_start({"kind": "record", "events": [SWITCH], "field": "next_pid"}, source)
            question.trace_wait(0.2)
            found, array = end("next_pid")
        assert len(array) == found["events"], source
        assert os.getpid() in array["value"], "we were switched to"
        assert len(set(array["value"])) > 1, "and others"


def test_two_sources_have_the_same_records() -> None:
    """A ring and trace pages at once: the same calls, by the same thread, at the same time of the same clock.

    The thread is new, and is still there at the end, so that its process is known of pages, too.
    """
    runs = [
        kinds.Record({"kind": "record", "events": [GETUID]}, "raw_tp"),
        kinds.Record({"kind": "record", "events": [GETUID]}, "ring"),
    ]
    for run in runs:
        run.attach()
    known: list[int] = []
    worked, looked = threading.Event(), threading.Event()

    def work() -> None:
        known.append(threading.get_native_id())
        getuid(3000)
        worked.set()
        looked.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert worked.wait(60)
    times = []
    for run in runs:
        run.detach()
        told = run.result()["records"]
        pages = {cpu: bytes(one) for cpu, one in recording._kept[told["id"]].items()}
        run.close()
        if told["formats"]:
            array = from_pages(pages, told["header_page"], told["formats"][GETUID], None, told["processes"])
        else:
            array = from_ring(pages[0])
        assert set(array["process"][array["thread"] == known[0]]) == {os.getpid()}
        times.append(np.sort(array["time_ns"][array["thread"] == known[0]]).astype(np.int64))
    looked.set()
    thread.join()
    assert len(times[0]) == len(times[1]) == 3000
    assert np.median(np.abs(times[0] - times[1])) < 20_000, "one after the other, at the same event"


def test_a_thread_that_came_and_went_has_no_process_in_trace_pages() -> None:
    run = kinds.Record({"kind": "record", "events": [GETUID]}, "ring")
    run.attach()
    known: list[int] = []

    def work() -> None:
        known.append(threading.get_native_id())
        getuid(10)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    until(lambda: not Path("/proc/self/task", str(known[0])).exists())  # the kernel's end of it comes a moment later
    run.detach()
    told = run.result()["records"]
    pages = {cpu: bytes(one) for cpu, one in recording._kept[told["id"]].items()}
    run.close()
    array = from_pages(pages, told["header_page"], told["formats"][GETUID], None, told["processes"])
    assert list(array["process"][array["thread"] == known[0]]) == [0] * 10


def test_reading_is_not_recorded() -> None:
    """Trap: whoever records read(2) by reading pages would never end."""
    begin("ring", "syscalls:sys_enter_read", most_bytes=64 << 20)
    before = time.monotonic()
    seen = question.trace_wait(0.3)
    found, array = end()
    assert time.monotonic() - before < 20
    assert not seen["full"] and not found["full"]
    assert os.getpid() not in array["thread"]


def test_it_ends_by_itself_when_no_more_can_be_kept() -> None:
    begin(ring_bytes=1 << 16, most_bytes=1 << 18)
    for _ in range(10):
        getuid(1000)
        seen = question.trace_wait(0.001)
    assert seen["full"]
    found, array = end()
    assert found["full"]
    assert found["events"] == len(array) < 10_000
    assert len(array) * RECORD_STRIDE <= 1 << 18
    assert found["lost"] == 0, "what came later was not watched"


def test_what_cannot_be_recorded_is_refused() -> None:
    for source, more, code in (
        ("perf", {}, errno.EOPNOTSUPP),
        ("raw_tp", {"field": "colour"}, errno.EOPNOTSUPP),
        ("tracepoint", {"field": "colour"}, errno.ENOENT),
        ("ring", {"field": "colour"}, errno.ENOENT),
    ):
        with pytest.raises(StepFailed) as caught:
            begin(source, **more)
        assert caught.value.code == code, source
    with pytest.raises(StepFailed, match="not one process"):
        question.trace_start({"kind": "record", "events": [GETUID], "process": 1}, "ring")


def test_no_ring_is_read_where_the_order_of_memory_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(StepFailed, match="load-acquire"):
        records.Ring(1 << 16)


def test_a_ring_is_as_large_as_the_rate_asks_for() -> None:
    assert records.ring_bytes(0) == records.LEAST
    assert records.ring_bytes(0, 1 << 16) == 1 << 16
    assert records.ring_bytes(5e6) >= 5e6 * records.GAP_S * RECORD_STRIDE
    assert records.ring_bytes(5e6) < 2 * 5e6 * records.GAP_S * RECORD_STRIDE
    assert records.ring_bytes(1e12) == records.MOST


def test_a_refused_source_leaves_nothing_open() -> None:
    """Each step of the ladder that is refused half-way would keep its maps, and a trace buffer, until the end."""
    asked = {"kind": "record", "events": [SWITCH], "field": "colour"}
    for source in ("tracepoint", "ring"):
        with pytest.raises(StepFailed):
            question.trace_start(asked, source)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(StepFailed):
            question.trace_start(asked, source)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        assert not [name for name in os.listdir(tracefs.root() + "/instances") if f"-{os.getpid()}-" in name]  # noqa: PTH208
