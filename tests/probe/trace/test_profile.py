"""Profiles: a program that spends a known share of its time at a known place, and perf on the same program."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.probe.trace import question, stacks
from tests.probe.trace.load import with_tracefs

#: Seven parts of its CPU time in crc32 of libz, three in compression by libbz2.
WORK = """
import bz2, sys, time, zlib
open("/proc/self/comm", "w").write("ek-profile")
big, small = bytes(4 << 20), bytes(20000)
print("on", flush=True)
crc = other = 0.0
while True:
    start = time.process_time()
    if crc * 3 <= other * 7:
        zlib.crc32(big)
        crc += time.process_time() - start
    else:
        bz2.compress(small)
        other += time.process_time() - start
"""


@pytest.fixture
def worker() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-S", "-c", WORK], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "on\n"
    yield process.pid
    process.kill()
    process.communicate()
    question.trace_close()


def share(found: list[dict[str, Any]], pattern: str) -> float:
    own = [one for one in found if one["frames"][0] == "ek-profile"]
    inside: int = sum(one["count"] for one in own if any(re.search(pattern, frame) for frame in one["frames"][1:]))
    total: int = sum(one["count"] for one in own)
    return inside / total


def test_the_shares_are_those_of_the_program_and_of_perf(worker: int, tmp_path: Path) -> None:
    target = tmp_path / "perf.data"
    perf = subprocess.Popen(
        with_tracefs("perf", "record", "-q", "-e", "cpu-clock", "-F", "999", "-p", str(worker), "-o", str(target)),
        stderr=subprocess.DEVNULL,
    )
    question.trace_start({"kind": "profile", "frequency_hz": 999}, "sampling")
    question.trace_wait(3.0)
    found = question.trace_finish()
    perf.send_signal(2)
    perf.wait(timeout=120)
    report = subprocess.run(
        ["perf", "report", "-i", str(target), "--stdio", "--sort", "dso"], capture_output=True, text=True, check=True
    )
    theirs = float(re.findall(r"([\d.]+)%.*libz", report.stdout)[0]) / 100
    ours = share(found["stacks"], r"crc32|\[libz")
    assert 0.6 <= ours <= 0.8
    assert abs(ours - theirs) < 0.1
    assert found["lost"] <= 0.02 * found["events"]


def test_samples_without_a_place_are_lost_and_counted(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenkeel.probe.trace.stacks._STACK_SLOTS", 1)
    question.trace_start({"kind": "profile", "frequency_hz": 999}, "sampling")
    question.trace_wait(0.7)
    found = question.trace_finish()
    assert found["lost"] > 0


def test_symbols_of_a_file_come_from_the_file() -> None:
    """libc is stripped to its dynamic symbols; where a function begins is what the loader says."""
    address = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value
    assert address is not None
    maps = stacks.Maps()
    maps.see({os.getpid()})
    assert maps.frame(os.getpid(), address) in ("getppid", "__getppid")
    assert maps.frame(os.getpid(), 1) == "[unknown]"


def test_a_file_that_is_no_elf_has_no_functions(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF\x02\x01" + b"\xff" * 80, b"#!/bin/sh\n"):
        broken = tmp_path / "broken"
        broken.write_bytes(content)
        stacks.elf_functions.cache_clear()
        table, segments = stacks.elf_functions(str(broken))
        assert table.find(4096) is None
        assert segments == []


def test_a_table_knows_where_a_function_ends() -> None:
    table = stacks.Table({100: (20, "short"), 200: (0, "open end")})
    assert [table.find(place) for place in (99, 100, 119, 120, 250)] == [None, "short", "short", None, "open end"]
