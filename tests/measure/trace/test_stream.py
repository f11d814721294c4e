"""The ring: every event once and in order, losses that are made on purpose and counted, and its size."""

from __future__ import annotations

import os
import platform
import threading
import time
from typing import Any

import numpy as np
import pytest

from evenkeel.measure.trace.stream import FIELDS, Stream, consume, ring_bytes
from evenkeel.probe.trace.sources import BtfTracepoint, RawTracepoint
from evenkeel.probe.trace.templates import RECORD_STRIDE, Constant, Current

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="a ring is read on x86 only")
GETUID = "syscalls:sys_enter_getuid"


def stream(size: int = 1 << 20) -> Stream:
    return Stream(RawTracepoint(GETUID, process=os.getpid()), Constant(7), size)


def test_every_event_is_read_once_and_in_order() -> None:
    one = stream()
    batches: list[Any] = []

    def work() -> None:
        time.sleep(0.1)
        for _ in range(50):
            for _ in range(1000):
                os.getuid()
            time.sleep(0.005)  # lets go of Python's lock: the reader is a thread beside this one

    caller = threading.Thread(target=work)
    caller.start()
    consume(one, batches.append, 1.5)
    caller.join()
    found = np.concatenate(batches)
    assert one.events() == len(found) == 50_000
    assert one.lost() == 0
    assert len(batches) > 1, "read while it was written, several times round the ring"
    assert list(found.dtype.names or ()) == FIELDS
    assert set(found["process"]) == {os.getpid()}
    assert set(found["thread"]) == {caller.native_id}
    assert set(found["value"]) == {7}
    assert (np.diff(found["time_ns"].astype(np.int64)) >= 0).all()
    assert set(found["cpu"]) <= set(range(os.cpu_count() or 1))
    one.close()


def test_the_end_of_the_ring_is_read_in_one_piece() -> None:
    """A record is 40 bytes and a ring is no multiple of that, so some record always runs over the end."""
    one = stream(1 << 16)
    one.start()
    seen = 0
    for _ in range(40):
        for _ in range(500):
            os.getuid()
        batch = one.read()
        assert set(batch["value"]) == {7}
        seen += len(batch)
    one.stop()
    assert seen * RECORD_STRIDE > 10 * (1 << 16)
    assert seen == one.events() == 20_000
    assert one.lost() == 0
    one.close()


def test_a_reader_that_is_kept_away_loses_events_and_says_how_many() -> None:
    one = stream(1 << 16)
    one.start()
    for _ in range(5000):
        os.getuid()
    one.stop()
    found = one.read()
    assert len(found) == one.events() < 5000
    assert one.events() + one.lost() == 5000
    assert len(found) == (1 << 16) // RECORD_STRIDE, "the ring was full"
    one.close()


def test_a_value_is_read_from_the_event() -> None:
    hook = BtfTracepoint("sched:sched_switch")
    one = Stream(hook, hook.field("next_pid"), 1 << 20)
    batches: list[Any] = []
    consume(one, batches.append, 0.3)
    found = np.concatenate(batches)
    assert os.getpid() in found["value"], "we were switched to"
    one.close()


def test_nothing_is_an_empty_array_with_the_same_fields() -> None:
    one = Stream(RawTracepoint(GETUID, process=os.getpid()), Current("user"), 1 << 16)
    one.start()
    assert list(one.read().dtype.names or ()) == FIELDS
    one.close()


def test_a_ring_is_as_large_as_rate_and_gap_ask_for() -> None:
    assert ring_bytes(0) == 1 << 16
    assert ring_bytes(1e6, 0.1) >= 1e6 * 0.1 * RECORD_STRIDE
    assert ring_bytes(1e6, 0.1) < 2 * 1e6 * 0.1 * RECORD_STRIDE
    assert ring_bytes(1e12) == 1 << 28
