"""Raw pages: the same records as the kernel's own text, extended times, damaged pages, and losses that are flagged."""

from __future__ import annotations

import mmap
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.measure.trace.pages import PAGE, read_pages, walk
from evenkeel.probe.trace import tracefs

EVENT = "syscalls:sys_enter_getuid"


@pytest.fixture
def instance() -> Iterator[tracefs.Instance]:
    one = tracefs.Instance(buffer_kb=8192)
    yield one
    one.close()


def on_this_cpu(instance: tracefs.Instance, calls: int, pause_s: float = 0.0) -> str:
    """Record so many calls of getuid of ours, and the folder of the CPU that they are on."""
    before, cpu = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    try:
        instance.set("events/syscalls/sys_enter_getuid/filter", f"common_pid == {os.getpid()}")
        instance.enable(EVENT)
        instance.set("tracing_on", "1")
        for _ in range(calls):
            os.getuid()
            if pause_s:
                time.sleep(pause_s)
        instance.set("tracing_on", "0")
    finally:
        os.sched_setaffinity(0, before)
    return f"{instance.path}/per_cpu/cpu{cpu}"


@pytest.mark.parametrize(("calls", "pause_s"), [(20_000, 0.0), (30, 0.15)])
def test_the_same_records_as_the_kernels_own_text(instance: tracefs.Instance, calls: int, pause_s: float) -> None:
    """Far apart, too: 2^27 ns are 134 ms, and what is longer needs an extended time."""
    folder = on_this_cpu(instance, calls, pause_s)
    text = Path(folder, "trace").read_text()
    stamps = [float(one) for one in re.findall(r"(\d+\.\d{6}): sys_getuid", text)]
    pages = read_pages(f"{folder}/trace_pipe_raw")
    found = walk(pages)
    assert len(found.time_ns) == len(stamps) == calls
    assert max(abs(ours / 1e9 - theirs) for ours, theirs in zip(found.time_ns.tolist(), stamps, strict=True)) < 2e-6
    field = tracefs.fields(EVENT)["common_pid"]
    assert set(found.field(pages, field.offset, "i4").tolist()) == {os.getpid()}
    assert set(found.field(pages, 0, "u2").tolist()) == {tracefs.event_id(EVENT)}
    assert found.pages_with_loss == 0


def test_losses_are_flagged_in_the_pages_and_counted_by_the_kernel() -> None:
    small = tracefs.Instance(buffer_kb=16)
    try:
        folder = on_this_cpu(small, 20_000)
        found = walk(read_pages(f"{folder}/trace_pipe_raw"))
        stats = small.stats()
        assert found.pages_with_loss >= 1
        assert stats["overrun"] > 0
        assert len(found.time_ns) + stats["overrun"] == 20_000
    finally:
        small.close()


def test_why_pages_are_read_and_not_mapped(instance: tracefs.Instance) -> None:
    """Trap: the file says that its size is 0, and Python's mmap believes it."""
    with (
        Path(instance.path, "per_cpu/cpu0/trace_pipe_raw").open("rb") as file,
        pytest.raises(ValueError, match="empty"),
    ):
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def test_kinds_of_records_that_are_seldom() -> None:
    """A long record, padding in the middle, an absolute time: as ring_buffer.h has them."""
    body = struct.pack("<IQ", 5 << 5 | 2, 0x1111)  # 8 bytes of data, 5 ns later
    body += struct.pack("<III", 7 << 5 | 0, 8, 0x2222)  # its length stands in front: 4 bytes of data
    body += struct.pack("<III", 1 << 5 | 29, 8, 0)  # padding of 12 bytes in all
    body += struct.pack("<II", 3 << 5 | 31, 1)  # from here on 2^27 + 3
    body += struct.pack("<II", 4 << 5 | 1, 0x3333)
    page = struct.pack("<QQ", 1000, len(body)) + body
    found = walk(page.ljust(PAGE, b"\0"))
    assert found.time_ns.tolist() == [1005, 1012, (1 << 27) + 7]
    assert found.length.tolist() == [8, 4, 4]
    assert found.field(page.ljust(PAGE, b"\0"), 0, "u4").tolist() == [0x1111, 0x2222, 0x3333]


@given(st.integers(0, (1 << 32) - 1), st.binary(max_size=120))
def test_a_damaged_page_ends(used: int, body: bytes) -> None:
    """Whatever stands in it, no record begins outside of its page."""
    page = (struct.pack("<QQ", 0, used) + body * (PAGE // max(1, len(body))))[:PAGE].ljust(PAGE, b"\0")
    found = walk(page)
    assert (found.place <= PAGE + 8).all()


def test_half_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        walk(b"x")
    assert len(walk(b"").time_ns) == 0
