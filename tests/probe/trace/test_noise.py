"""What disturbs a CPU: as many timer interrupts as the kernel counts itself, threads by name, every CPU by itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.sample import interrupt_rows
from evenkeel.probe.trace import noise, question


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    question.trace_close()


def timer(cpu: int) -> int:
    return int(interrupt_rows()["LOC"]["counts"].get(cpu, 0))


def test_timer_interrupts_are_those_of_proc_interrupts() -> None:
    """Read around it and inside of it: the truth lies between the two."""
    cpu = max(os.sched_getaffinity(0))
    before = timer(cpu)
    question.trace_start({"kind": "noise", "cpus": [cpu]}, "tracepoint")
    inside = timer(cpu)
    question.trace_wait(0.5)
    inside = timer(cpu) - inside
    found = question.trace_finish()
    around = timer(cpu) - before
    rows = {(row["key"], row["label"]): row for row in found["rows"]}
    counted = rows[f"CPU {cpu} vector", "local_timer"]["count"]
    assert inside <= counted + found["lost"]
    assert counted <= around
    assert all(row["key"].startswith(f"CPU {cpu} ") for row in found["rows"])
    assert all(row["longest_ns"] <= row["total_ns"] for row in found["rows"])


def test_a_thread_that_runs_there_has_its_name_and_its_time() -> None:
    cpu = min(os.sched_getaffinity(0))
    ready, go = threading.Event(), threading.Event()

    def work() -> None:
        os.sched_setaffinity(0, {cpu})
        with open("/proc/thread-self/comm", "w") as file:  # noqa: PTH123
            file.write("ek-noise")
        ready.set()
        go.wait()
        used = time.thread_time()
        while time.thread_time() - used < 0.1:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    question.trace_start({"kind": "noise", "cpus": [cpu]}, "tracepoint")
    go.set()
    thread.join()
    question.trace_wait(0.05)
    found = question.trace_finish()
    row = next(row for row in found["rows"] if row["label"].startswith("ek-noise ("))
    assert row["key"] == f"CPU {cpu} thread"
    assert row["total_ns"] >= 95_000_000, "its CPU time is in it"


def test_without_a_cpu_there_is_no_question() -> None:
    with pytest.raises(StepFailed, match="which CPU"):
        question.trace_start({"kind": "noise"}, "tracepoint")


def test_every_pair_has_both_of_its_events() -> None:
    from evenkeel.probe.trace import tracefs

    for pair in noise.pairs():
        assert tracefs.event_id(pair.begin) and tracefs.event_id(pair.end)
