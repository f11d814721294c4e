"""What one event costs at a source on this machine: the same loop of system calls without it and with it.

The quickest of many chunks is compared, not the mean: what disturbs a chunk can only make it slower, so the quickest is
stable on a busy machine where means are not.  Everybody's system calls are slower by as much for the 0.1 s it takes.
Must not be run unasked on a machine that is measured.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from evenkeel.probe.trace import question

EVENT = "syscalls:sys_enter_getuid"
CALLS, CHUNKS = 2000, 60


def calibrate(source: str, kind: str = "count", by: str = "process") -> dict[str, Any]:
    """Operation: ``{"ns_per_event", "base_ns", "events"}``.  Raises StepFailed where the source does not work.

    Runs on the CPU where it happens to be, pinned there meanwhile.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        base = quickest()
        question.trace_start({"kind": kind, "events": [EVENT], "by": by}, source)
        try:
            with_it = quickest()
            events = question.trace_finish()["events"]
        finally:
            question.trace_close()
        base = min(base, quickest())
    finally:
        os.sched_setaffinity(0, allowed)
    return {"ns_per_event": round(max(0.0, with_it - base), 1), "base_ns": round(base, 1), "events": events}


def quickest() -> float:
    """Nanoseconds of one call, in the quickest chunk."""
    call, clock = os.getuid, time.perf_counter_ns
    best = float("inf")
    for _ in range(CHUNKS):
        start = clock()
        for _ in itertools.repeat(None, CALLS):
            call()
        best = min(best, (clock() - start) / CALLS)
    return best
