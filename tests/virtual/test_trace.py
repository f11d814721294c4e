"""Tracing where everything works: a Debian PREEMPT_RT kernel.  Every source once, exact, and what a probe became."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.mark.parametrize("source", ["raw_tp", "tp_btf", "tracepoint"])
def test_system_calls_are_exact(virtual_host: VirtualMachine, probe: Probe, source: str) -> None:
    found = watch(virtual_host, probe, source, GETUID)
    assert {row["key"]: row["count"] for row in found["rows"]}["ek-load"] == CALLS
    assert found["lost"] == 0


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
def test_the_cheapest_that_works_is_taken_and_the_cheaper_are_explained(virtual_host: VirtualMachine) -> None:
    answer = trace(virtual_host, "count", NAMES[1], "--for", "1s")
    assert answer.source == "fentry"
    assert answer.refused == ()
    inside = trace(virtual_host, "count", NAMES[0] + "+0x9", "--for", "1s")
    assert inside.source == "kprobe"
    assert {one.source: one.errno for one in inside.refused} == {"fentry": "ENOTSUP", "function": "ENOTSUP"}
    assert json.loads(inside.to_json())["mechanism"]
