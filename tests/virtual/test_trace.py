"""Tracing where everything works: a Debian PREEMPT_RT kernel.  Every source once, exact, and what a probe became."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.virtual.conftest import on_host

from evenkeel.documents.answer import Answer
from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.machines.protocol import Probe, ProbeError
from evenkeel.machines.virtual import VirtualMachine

pytestmark = [pytest.mark.virtual]

GETUID = "syscalls:sys_enter_getuid"
#: Two names of one function; the tracer and BTF know one of them.
NAMES = ("function:__do_sys_getuid", "function:__x64_sys_getuid")
CALLS = 20_000
LOAD = f"""python3 -S -c '
import os
open("/proc/self/comm", "w").write("ek-load")
for _ in range({CALLS}): os.getuid()
'"""


@pytest.fixture
def probe(virtual_host: VirtualMachine) -> Iterator[Probe]:
    with virtual_host.probe() as one:
        yield one
        one.call("trace_close")
        assert on_host(virtual_host, "ls /sys/kernel/tracing/instances") == ""


def watch(machine: VirtualMachine, probe: Probe, source: str, event: str, kind: str = "top") -> dict[str, Any]:
    """The answer about ``CALLS`` calls of getuid by a process named ek-load."""
    question = {"kind": kind, "events": [event], "by": "command"}
    probe.call("trace_start", question=question, source=source, timeout_s=120.0)
    on_host(machine, LOAD)
    return dict(probe.call("trace_finish", timeout_s=120.0))


@pytest.mark.long
def test_everything_but_hardware_counters_works_here(probe: Probe) -> None:
    found = {(row["source"], row["event"]): row for row in probe.call("trace_sources", timeout_s=300.0)}
    refused = {key[0]: row for key, row in found.items() if not row["works"] and key[1] != "hardware:cycles"}
    assert refused == {}, refused
    assert {key[0] for key in found} >= {"raw_tp", "tp_btf", "fentry", "function", "kprobe", "uprobe", "ring", "perf"}


@pytest.mark.parametrize("source", ["raw_tp", "tp_btf", "tracepoint", "fentry"])
def test_system_calls_are_exact(virtual_host: VirtualMachine, probe: Probe, source: str) -> None:
    found = watch(virtual_host, probe, source, GETUID)
    assert {row["key"]: row["count"] for row in found["rows"]}["ek-load"] == CALLS
    assert found["lost"] == 0


#: System calls of each kind that the other programs below make: getuid by a 64-bit call, and by two 32-bit ones: number
#: 102, which is another call there, and 199, which is getuid by another number and ends in the same function.
COMPAT = """python3 -S -c '
import ctypes, mmap, os
open("/proc/self/comm", "w").write("ek-compat")
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
made = []
for place, number in ((0, 102), (64, 199)):
    page[place:place + 12] = b"\\x53\\xb8" + number.to_bytes(4, "little") + b"\\x31\\xdb\\xcd\\x80\\x5b\\xc3"
    made.append(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page, place))))
for _ in range(300): os.getuid()
for _ in range(500): made[0]()
for _ in range(700): made[1]()
print(made[0](), made[1](), os.getuid())
'"""


@pytest.mark.long
def test_a_function_that_32_bit_programs_share_counts_what_the_tracepoint_counts(
    virtual_host: VirtualMachine, probe: Probe
) -> None:
    """Trap: 32-bit programs get to the same function by another number.  The tracepoint does not have these."""
    for source in ("raw_tp", "tracepoint", "fentry"):
        probe.call("trace_start", question={"kind": "top", "events": [GETUID], "by": "command"}, source=source)
        assert on_host(virtual_host, COMPAT).split() == ["-22", "0", "0"]
        rows = probe.call("trace_finish", timeout_s=120.0)["rows"]
        assert {row["key"]: row["count"] for row in rows}["ek-compat"] == 301, source
    # Without the number it is all that end there: what the number is for.
    probe.call("trace_start", question={"kind": "top", "events": [NAMES[0]], "by": "command"}, source="fentry")
    on_host(virtual_host, COMPAT)
    rows = probe.call("trace_finish", timeout_s=120.0)["rows"]
    assert {row["key"]: row["count"] for row in rows}["ek-compat"] == 301 + 701


@pytest.mark.long
def test_a_function_counts_what_a_histogram_of_the_kernel_counts(virtual_host: VirtualMachine, probe: Probe) -> None:
    """The kernel's own table of the tracepoint by process, in the same run; of 64-bit programs and of a 32-bit one."""
    trigger = "/sys/kernel/tracing/events/syscalls/sys_enter_getuid/trigger"
    on_host(virtual_host, f"echo hist:keys=common_pid >{trigger}")
    try:
        probe.call("trace_start", question={"kind": "top", "events": [GETUID], "by": "process"}, source="fentry")
        for script in (LOAD, COMPAT):
            on_host(virtual_host, script)
        rows = probe.call("trace_finish", timeout_s=120.0)["rows"]
        text = on_host(virtual_host, f"cat {trigger.replace('trigger', 'hist')}")
    finally:
        on_host(virtual_host, f"echo '!hist:keys=common_pid' >{trigger}")
    theirs = dict(re.findall(r"common_pid: +(\d+) } hitcount: +(\d+)", text))
    both = {row["label"]: (row["count"], int(theirs[row["key"]])) for row in rows if row["label"].startswith("ek-")}
    assert both == {"ek-load": (CALLS, CALLS), "ek-compat": (301, 301)}


@pytest.mark.long
@pytest.mark.parametrize("event", NAMES)
@pytest.mark.parametrize("source", ["fentry", "kprobe"])
def test_functions_are_exact_under_both_of_their_names(
    virtual_host: VirtualMachine, probe: Probe, source: str, event: str
) -> None:
    found = watch(virtual_host, probe, source, event)
    assert {row["key"]: row["count"] for row in found["rows"]}["ek-load"] == CALLS
    assert found["lost"] == 0
    if source == "kprobe":
        assert "[FTRACE]" in found["mechanism"][0], "at the entry it hangs where the function tracer does"


@pytest.mark.long
@pytest.mark.parametrize("event", NAMES)
def test_the_function_tracer_traces_this_function_and_not_all(
    virtual_host: VirtualMachine, probe: Probe, event: str
) -> None:
    found = watch(virtual_host, probe, "function", event, "count")
    assert CALLS <= found["events"] < CALLS + 2000, "others call it, too, but seldom"
    assert "sys_getuid" in found["mechanism"][0]


@pytest.mark.long
def test_a_kprobe_inside_a_function_is_a_breakpoint_and_says_so(virtual_host: VirtualMachine, probe: Probe) -> None:
    """Behind endbr64 and the call of the tracer: the first instruction of the function's own."""
    found = watch(virtual_host, probe, "kprobe", NAMES[0] + "+0x9")
    assert {row["key"]: row["count"] for row in found["rows"]}["ek-load"] == CALLS
    assert "int3" in found["mechanism"][0] or "[OPTIMIZED]" in found["mechanism"][0]
    assert "[FTRACE]" not in found["mechanism"][0]


def test_a_function_that_nobody_may_trace_is_refused(probe: Probe) -> None:
    for source in ("function", "kprobe"):
        question = {"kind": "count", "events": ["function:exc_int3"]}
        with pytest.raises(ProbeError):
            probe.call("trace_start", question=question, source=source)


def trace(machine: VirtualMachine, *words: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "evenkeel", "trace", *words, "--on", machine.address, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Answer.from_json(done.stdout, file="stdout")


@pytest.mark.long
def test_durations_are_marked_as_emulated(virtual_host: VirtualMachine) -> None:
    answer = trace(virtual_host, "wakeups", "--for", "1s")
    assert answer.events > 0
    assert EMULATION_NOTE in answer.notes


@pytest.mark.long
def test_a_profile_and_the_noise_of_a_cpu(virtual_host: VirtualMachine) -> None:
    assert trace(virtual_host, "profile", "--for", "2s").events > 0
    noise = trace(virtual_host, "noise", "0", "--for", "2s")
    assert {row.key for row in noise.rows} >= {"CPU 0 thread", "CPU 0 vector"}


@pytest.mark.long
def test_a_system_call_among_many_is_seen_by_its_function(virtual_host: VirtualMachine) -> None:
    """All others are slower while a tracepoint of a call is watched; a program on the function leaves them alone."""
    others = "for _ in $(seq 12); do python3 -S -c 'import os, sys\nfor _ in range(60000): os.getppid()'; done"
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(on_host, virtual_host, others)
        time.sleep(2.0)
        answer = trace(virtual_host, "count", GETUID, "--for", "1s")
        busy.result()
    assert answer.source == "fentry", answer
    assert "by a trampoline" in answer.mechanism[0]


@pytest.mark.long
def test_the_cheapest_that_works_is_taken_and_the_cheaper_are_explained(virtual_host: VirtualMachine) -> None:
    answer = trace(virtual_host, "count", NAMES[1], "--for", "1s")
    assert answer.source == "fentry"
    assert answer.refused == ()
    inside = trace(virtual_host, "count", NAMES[0] + "+0x9", "--for", "1s")
    assert inside.source == "kprobe"
    assert {one.source: one.errno for one in inside.refused} == {"fentry": "ENOTSUP", "function": "ENOTSUP"}
    assert json.loads(inside.to_json())["mechanism"]
