"""Functions as events: what this machine refuses, uprobes that work anywhere, names that share an address.

What a kernel with everything does is in tests/virtual/test_trace.py.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import functions, question, tracefs

#: The file that this process really runs, whose functions we can call by ctypes.
LIBC = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so.6" in line)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    question.trace_close()
    assert tracefs.orphans() == []


def test_a_uprobe_counts_every_call_of_a_function() -> None:
    question.trace_start({"kind": "count", "events": [f"uprobe:{LIBC}:getppid"], "process": os.getpid()}, "uprobe")
    libc = ctypes.CDLL(None)
    for _ in range(700):
        libc.getppid()
    found = question.trace_finish()
    assert found["events"] == 700
    assert found["mechanism"] == [f"BPF on a uprobe at getppid of {LIBC}, a breakpoint (int3)"]


@pytest.mark.parametrize(
    ("event", "source", "code"),
    [
        ("function:no_such_function_here", "fentry", 2),
        ("function:no_such_function_here", "function", 2),
        ("function:__x64_sys_getuid+0x4", "fentry", 95),
        ("function:__x64_sys_getuid+0x4", "function", 95),
        ("function:2fast", "fentry", 22),
        ("uprobe:/no/such/file:main", "uprobe", 2),
        (f"uprobe:{LIBC}:no_such_function", "uprobe", 2),
        ("uprobe:relative:main", "uprobe", 22),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_attached(event: str, source: str, code: int) -> None:
    with pytest.raises(StepFailed) as caught:
        question.trace_start({"kind": "count", "events": [event]}, source)
    assert caught.value.code == code, caught.value.message


def test_names_that_share_an_address_are_found() -> None:
    """Trap: of several names of a function only one is known to the tracer."""
    text = Path("/proc/kallsyms").read_text()
    by_address: dict[str, set[str]] = {}
    for line in text.splitlines():
        address, kind, name = line.split()[:3]
        if kind in "tT" and "[" not in line and "." not in name:
            by_address.setdefault(address, set()).add(name)
    shared = next(names for address, names in by_address.items() if len(names) == 2 and address.strip("0"))
    for name in shared:
        assert set(functions.same_address(name)) == shared
        assert functions.same_address(name)[0] == name
    assert functions.same_address("no_such_function_here") == []


class _Filter:
    """An instance whose filter file keeps what it likes, as the kernel's does with a name that matches nothing."""

    def __init__(self, keeps: str) -> None:
        self._keeps = keeps
        self.written: list[tuple[str, str]] = []

    def set(self, name: str, text: str) -> None:
        self.written.append((name, text))

    def get(self, _name: str) -> str:
        return self._keeps


@pytest.mark.parametrize("keeps", ["", "#### all functions enabled ####\n", "vfs_read\nvfs_write\n"])
def test_a_filter_that_became_something_else_is_never_switched_on(keeps: str) -> None:
    """Trap: a filter that matches nothing traces everything."""
    with pytest.raises(StepFailed, match="the filter became"):
        functions.set_filter(_Filter(keeps), "vfs_read")
    functions.set_filter(_Filter("vfs_read (1)\n"), "vfs_read")


def test_windows_see_their_share_of_a_steady_stream() -> None:
    """A process that calls all the time, watched in a tenth of it: the share is what was asked for, roughly."""
    loop = subprocess.Popen([sys.executable, "-S", "-c", "import os\nwhile True: os.getuid()"])
    try:
        question.trace_start({"kind": "count", "events": ["syscalls:sys_enter_getuid"], "process": loop.pid}, "raw_tp")
        question.trace_wait(0.2)
        question.trace_pace(0.1)
        seen = question.trace_wait(3.0)
        found = question.trace_finish()
    finally:
        loop.kill()
        loop.wait()
    assert found["share"] == 0.1
    assert (seen["seconds"] - 0.2) / 3.0 < 0.15, "no more than it may, but for attaching that took longer than before"
    assert found["events"] > 0
