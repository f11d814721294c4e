"""Durations: the kernel's arithmetic against Python's, exact counts, what has no end, and wake-ups by two sources."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.histogram import Histogram
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import kinds, question, sources, spans, templates
from evenkeel.probe.trace.assembler import R7, R8
from evenkeel.probe.trace.templates import Current

LIBC = ctypes.CDLL(None)
#: nanosleep(2) itself: what programs call today is clock_nanosleep, so these calls are ours alone.
NANOSLEEP = 35 if os.uname().machine == "x86_64" else 101
SLEEP = ("syscalls:sys_enter_nanosleep", "syscalls:sys_exit_nanosleep")
WAKEUPS = {
    "kind": "wakeups",
    "events": ["sched:sched_waking", "sched:sched_switch"],
    "key": "pid=next_pid",
}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    question.trace_close()


def nanosleep(milliseconds: float) -> None:
    wanted = (ctypes.c_long * 2)(0, int(milliseconds * 1e6))
    assert LIBC.syscall(NANOSLEEP, wanted, None) == 0


@given(st.integers(0, 1 << 41))
def test_a_bucket_is_no_wider_than_a_64th_of_its_value(value: int) -> None:
    low, high = (
        next(edges for edges in map(spans.bucket_edges, range(spans.BUCKETS)) if edges[0] <= value < edges[1])
        if value < 1 << 41
        else spans.bucket_edges(spans.BUCKETS - 1)
    )
    assert high - low <= max(1, low // 64)


def test_buckets_follow_each_other_without_a_gap() -> None:
    edges = [spans.bucket_edges(index) for index in range(spans.BUCKETS)]
    assert edges[0][0] == 0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))


@pytest.mark.parametrize("value", [0, 1, 63, 64, 65, 127, 128, 129, 999, 1_000_000, (1 << 40) + 12345, (1 << 41) - 1])
def test_the_kernel_puts_a_value_where_python_would(value: int) -> None:
    """The arithmetic of the program itself, run by the kernel on a value that we know."""
    assert _bucket_of(value) == next(
        index for index in range(spans.BUCKETS) if spans.bucket_edges(index)[0] <= value < spans.bucket_edges(index)[1]
    )


def test_what_is_too_long_is_counted_and_in_no_bucket() -> None:
    assert _bucket_of(spans.LIMIT_NS) is _bucket_of(1 << 62) is None
    assert _bucket_of(spans.LIMIT_NS - 1) == spans.BUCKETS - 1


def test_the_kernels_buckets_are_those_of_the_document() -> None:
    """Both are written down twice, for the probe and for documents; the document refuses an edge that it lacks."""
    lows = [spans.bucket_edges(index)[0] for index in range(spans.BUCKETS)]
    found = Histogram(bucket_ns=1, bits=spans.SUB_BITS, counts=dict.fromkeys(lows, 1))
    assert [found.upper_ns(low) for low in lows] == [spans.bucket_edges(index)[1] for index in range(spans.BUCKETS)]


def _bucket_of(value: int) -> int | None:
    spread, numbers = spans.histogram(), templates.statistics()
    hook = sources.BtfTracepoint("syscalls:sys_enter_nanosleep")
    asm = templates.begin(hook.select)
    asm.constant(R7, value)
    spans._into_histogram(asm, spread, R7, R8)
    hook.load(templates.end(asm), "a test")
    hook.attach()
    nanosleep(0)
    hook.close()
    total_ns, counts, longer = spans.read_histogram(spread)
    numbers.close()
    spread.close()
    assert total_ns == value
    assert longer + sum(count for _, count in counts) == 1
    return counts[0][0] if counts else None


def test_every_sleep_is_there_and_as_long_as_it_was() -> None:
    question.trace_start({"kind": "latency", "events": SLEEP, "key": "thread"}, "tracepoint")
    began = time.monotonic_ns()
    for _ in range(20):
        nanosleep(5)
    whole = time.monotonic_ns() - began
    found = question.trace_finish()
    assert (found["events"], found["starts"], found["unmatched"], found["lost"]) == (20, 20, 0, 0)
    assert sum(count for _, count in found["buckets"]) == 20
    counts = dict(found["buckets"])
    histogram = Histogram(bucket_ns=1, bits=found["bits"], counts=counts)
    assert all(histogram.upper_ns(low) > 5_000_000 for low in counts), "no sleep is shorter than was asked for"
    assert 20 * 5_000_000 <= found["total_ns"] <= whole


def test_what_has_no_end_and_what_has_no_beginning_is_said() -> None:
    def sleeper(milliseconds: int) -> None:
        inside.set()
        nanosleep(milliseconds)
        begin.set()

    for milliseconds in (400, 2000, 10_000):  # on a busy machine it takes its time to begin to watch
        begin, inside = threading.Event(), threading.Event()
        threading.Thread(target=sleeper, args=(milliseconds,)).start()
        inside.wait()
        time.sleep(0.1)
        question.trace_start({"kind": "latency", "events": SLEEP, "key": "thread"}, "tracepoint")
        if not begin.is_set():
            break
        question.trace_finish()
    begin.wait()  # its end has no beginning
    other = threading.Thread(target=nanosleep, args=(900,))
    other.start()  # its beginning has no end
    time.sleep(0.1)
    found = question.trace_finish()
    other.join()
    assert (found["events"], found["starts"], found["unmatched"]) == (0, 1, 1)


def test_a_stamp_of_a_thread_that_never_slept_is_void() -> None:
    """The rule by itself: getuid begins, getppid ends, and user 0 stands for "left behind, runnable"."""
    for void, expected in ((None, 50), (spans.Void(Current("thread"), Current("user")), 0)):
        numbers, open_, spread = templates.statistics(), spans.open_spans(), spans.histogram()
        begin = sources.RawTracepoint("syscalls:sys_enter_getuid")
        end = sources.RawTracepoint("syscalls:sys_enter_getppid")
        begin.load(spans.begin_span(numbers, open_, Current("thread"), begin.select), "a test")
        end.load(spans.end_span(numbers, open_, spread, Current("thread"), end.select, void=void), "a test")
        begin.attach()
        end.attach()
        for _ in range(50):
            os.getuid()
            os.getppid()
        begin.close()
        end.close()
        own = templates.total(numbers, templates.EVENTS)
        assert own >= expected if expected else own == 0
        for one in (numbers, open_, spread):
            one.close()


def test_two_sources_see_the_same_wakeups() -> None:
    """Both attached at once, a thread that is woken 300 times; each sees all of them, and waits of the same length."""
    runs = [kinds.Latency(WAKEUPS, source) for source in ("tp_btf", "tracepoint")]
    for run in runs:
        run.attach()
    ask, answer = threading.Semaphore(0), threading.Semaphore(0)
    known: dict[str, int] = {}

    def work() -> None:
        known["tid"] = threading.get_native_id()
        for _ in range(300):
            ask.acquire()
            time.sleep(0.0005)
            answer.release()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(300):
        ask.release()
        answer.acquire()
    thread.join()
    rows: list[dict[str, Any]] = []
    for run in runs:
        run.detach()
        rows.append(next(row for row in run.result()["rows"] if row["key"] == str(known["tid"])))
        run.close()
    btf, record = rows
    assert btf["count"] == record["count"] >= 300
    assert btf["label"] == record["label"] != ""
    assert abs(btf["total_ns"] - record["total_ns"]) <= 0.2 * max(btf["total_ns"], record["total_ns"])


def test_fields_that_are_not_there_are_refused() -> None:
    asked = {"kind": "latency", "events": ["sched:sched_waking", "sched:sched_switch"], "key": "pid=next_pid"}
    with pytest.raises(StepFailed, match="raw_tp does not have the fields"):
        question.trace_start(asked, "raw_tp")
    with pytest.raises(StepFailed, match="has no field colour; it has"):
        question.trace_start({**asked, "key": "colour"}, "tracepoint")
    with pytest.raises(StepFailed, match="is no number"):
        question.trace_start({**asked, "key": "pid=next_comm"}, "tracepoint")
