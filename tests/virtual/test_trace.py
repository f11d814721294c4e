"""Tracing where everything works: a Debian PREEMPT_RT kernel.  Every source once, exact, and what a probe became."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.virtual.conftest import on_host
from tests.virtual.tuned import TunedHost

from evenkeel.documents.answer import Answer
from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.machines.protocol import Probe, ProbeError
from evenkeel.machines.virtual import VirtualMachine
from evenkeel.measure.guest import guest_exec

pytestmark = [pytest.mark.virtual]

GETUID = "syscalls:sys_enter_getuid"
#: Two names of one function; the tracer and BTF know one of them.
NAMES = ("function:__do_sys_getuid", "function:__x64_sys_getuid")
CALLS = 20_000
LOAD = f"""python3 -S -c '
import os
open("/proc/self/comm", "w").write("ek-load")
for _ in range({CALLS}): os.getuid()
print(os.getpid())
'"""


@pytest.fixture
def traced(tuned_host: TunedHost) -> VirtualMachine:
    """The host of the session that others need, too: to trace needs none of its own."""
    return tuned_host.machine


@pytest.fixture
def probe(traced: VirtualMachine) -> Iterator[Probe]:
    with traced.probe() as one:
        yield one
        one.call("trace_close")
        assert on_host(traced, "ls /sys/kernel/tracing/instances") == ""


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


@pytest.mark.parametrize(
    "source",
    ["raw_tp", *(pytest.param(source, marks=pytest.mark.long) for source in ("fentry", "tp_btf", "tracepoint"))],
)
def test_system_calls_are_exact(traced: VirtualMachine, probe: Probe, source: str) -> None:
    found = watch(traced, probe, source, GETUID)
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
    traced: VirtualMachine, probe: Probe
) -> None:
    """Trap: 32-bit programs get to the same function by another number.  The tracepoint does not have these."""
    for source in ("raw_tp", "tracepoint", "fentry"):
        probe.call("trace_start", question={"kind": "top", "events": [GETUID], "by": "command"}, source=source)
        assert on_host(traced, COMPAT).split() == ["-22", "0", "0"]
        rows = probe.call("trace_finish", timeout_s=120.0)["rows"]
        assert {row["key"]: row["count"] for row in rows}["ek-compat"] == 301, source
    # Without the number it is all that end there: what the number is for.
    probe.call("trace_start", question={"kind": "top", "events": [NAMES[0]], "by": "command"}, source="fentry")
    on_host(traced, COMPAT)
    rows = probe.call("trace_finish", timeout_s=120.0)["rows"]
    assert {row["key"]: row["count"] for row in rows}["ek-compat"] == 301 + 701


@contextlib.contextmanager
def histogram(machine: VirtualMachine, event: str) -> Iterator[Callable[[], dict[str, int]]]:
    """The kernel's own table of a tracepoint: thread -> times, when the function is called."""
    folder = f"/sys/kernel/tracing/events/{event.replace(':', '/')}"
    on_host(machine, f"echo hist:keys=common_pid >{folder}/trigger")

    def table() -> dict[str, int]:
        found = re.findall(r"common_pid: +(\d+) } hitcount: +(\d+)", on_host(machine, f"cat {folder}/hist"))
        return {thread: int(times) for thread, times in found}

    try:
        yield table
    finally:
        on_host(machine, f"echo '!hist:keys=common_pid' >{folder}/trigger")


@pytest.mark.long
def test_a_function_counts_what_a_histogram_of_the_kernel_counts(traced: VirtualMachine, probe: Probe) -> None:
    """The kernel's own table of the tracepoint by process, in the same run; of 64-bit programs and of a 32-bit one."""
    with histogram(traced, GETUID) as table:
        probe.call("trace_start", question={"kind": "top", "events": [GETUID], "by": "process"}, source="fentry")
        for script in (LOAD, COMPAT):
            on_host(traced, script)
        rows = probe.call("trace_finish", timeout_s=120.0)["rows"]
        theirs = table()
    both = {row["label"]: (row["count"], theirs[row["key"]]) for row in rows if row["label"].startswith("ek-")}
    assert both == {"ek-load": (CALLS, CALLS), "ek-compat": (301, 301)}


@pytest.mark.long
@pytest.mark.parametrize("event", NAMES)
@pytest.mark.parametrize("source", ["fentry", "kprobe"])
def test_functions_are_exact_under_both_of_their_names(
    traced: VirtualMachine, probe: Probe, source: str, event: str
) -> None:
    found = watch(traced, probe, source, event)
    assert {row["key"]: row["count"] for row in found["rows"]}["ek-load"] == CALLS
    assert found["lost"] == 0
    if source == "kprobe":
        assert "[FTRACE]" in found["mechanism"][0], "at the entry it hangs where the function tracer does"


@pytest.mark.long
@pytest.mark.parametrize("event", NAMES)
def test_the_function_tracer_traces_this_function_and_not_all(traced: VirtualMachine, probe: Probe, event: str) -> None:
    found = watch(traced, probe, "function", event, "count")
    assert CALLS <= found["events"] < CALLS + 2000, "others call it, too, but seldom"
    assert "sys_getuid" in found["mechanism"][0]


@pytest.mark.long
def test_a_kprobe_inside_a_function_is_a_breakpoint_and_says_so(traced: VirtualMachine, probe: Probe) -> None:
    """Behind endbr64 and the call of the tracer: the first instruction of the function's own."""
    found = watch(traced, probe, "kprobe", NAMES[0] + "+0x9")
    assert {row["key"]: row["count"] for row in found["rows"]}["ek-load"] == CALLS
    assert "int3" in found["mechanism"][0] or "[OPTIMIZED]" in found["mechanism"][0]
    assert "[FTRACE]" not in found["mechanism"][0]


@pytest.mark.long
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
def test_durations_are_marked_as_emulated(traced: VirtualMachine) -> None:
    answer = trace(traced, "wakeups", "--for", "1s")
    assert answer.events > 0
    assert EMULATION_NOTE in answer.notes


@pytest.mark.long
def test_a_profile_and_the_noise_of_a_cpu(traced: VirtualMachine) -> None:
    assert trace(traced, "profile", "--for", "2s").events > 0
    noise = trace(traced, "noise", "0", "--for", "2s")
    assert {row.key for row in noise.rows} >= {"CPU 0 thread", "CPU 0 vector"}


@pytest.mark.long
def test_a_system_call_among_many_is_seen_by_its_function(traced: VirtualMachine) -> None:
    """All others are slower while a tracepoint of a call is watched; a program on the function leaves them alone."""
    trace(traced, "count", GETUID, "--for", "1s")  # what an event costs is measured once, which takes long
    others = "timeout 300 python3 -S -c 'import os\nwhile True: os.getppid()'"
    busy = on_host(traced, f"{others} >/dev/null 2>&1 </dev/null & echo $!")
    try:
        answer = trace(traced, "count", GETUID, "--for", "1s")
    finally:
        on_host(traced, f"kill {busy}")
    assert answer.source == "fentry", answer
    assert "by a trampoline" in answer.mechanism[0]


@pytest.mark.long
def test_the_cheapest_that_works_is_taken_and_the_cheaper_are_explained(traced: VirtualMachine) -> None:
    answer = trace(traced, "count", NAMES[1], "--for", "1s")
    assert answer.source == "fentry"
    assert answer.refused == ()
    inside = trace(traced, "count", NAMES[0] + "+0x9", "--for", "1s")
    assert inside.source == "kprobe"
    assert {one.source: one.errno for one in inside.refused} == {"fentry": "ENOTSUP", "function": "ENOTSUP"}
    assert json.loads(inside.to_json())["mechanism"]


# -- the verbs, each beside what the kernel or the program itself says in the same run ------------------------------


@contextlib.contextmanager
def asked(machine: VirtualMachine, *words: str) -> Iterator[Callable[[], Answer]]:
    """The verb as a user types it, from when it watches on; the function ends it by Ctrl-C and has its answer."""
    argv = [sys.executable, "-m", "evenkeel", "trace", *words, "--for", "10min", "--on", machine.address, "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end() -> Answer:
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        answer = Answer.from_json(out, file="stdout")
        print(f"{words}: {answer.source}; not {[(one.source, one.why, one.errno) for one in answer.refused]}")
        return answer

    try:
        assert process.stderr
        said = ""
        while "watching by" not in said:
            line = process.stderr.readline()
            assert line, f"it ended before it watched: {said}"
            said += line
        yield end
    finally:
        process.kill()
        process.communicate()


#: A program that waits for a word, and so has a number before it does anything.
SLEEPS, SLEEP_S = 40, 0.02
SLEEPER = f"""
import json, os, time
open("/proc/self/comm", "w").write("ek-sleep")
open("/run/ek-go").read()
slept = 0
for _ in range({SLEEPS}):
    begin = time.monotonic_ns()
    time.sleep({SLEEP_S})
    slept += time.monotonic_ns() - begin
switches = [line.split() for line in open("/proc/self/status") if "ctxt_switches" in line]
print(json.dumps(dict(slept_ns=slept, switches=sum(int(number) for _, number in switches))))
"""


@contextlib.contextmanager
def sleeper(machine: VirtualMachine) -> Iterator[tuple[int, Callable[[], dict[str, int]]]]:
    """Its process, and what makes it sleep and has what it says of itself."""
    start = "rm -f /run/ek-go /run/ek-out; mkfifo /run/ek-go\ncat >/run/ek-sleeper.py <<'X'\n" + SLEEPER + "X\n"
    start += "nohup python3 -S /run/ek-sleeper.py >/run/ek-out 2>&1 </dev/null &\necho $!"
    pid = int(on_host(machine, start))

    def go() -> dict[str, int]:
        wait = f"timeout 60 sh -c 'while [ -e /proc/{pid} ]; do sleep 0.2; done'"
        return dict(json.loads(on_host(machine, f"echo go >/run/ek-go\n{wait}\ncat /run/ek-out")))

    try:
        yield pid, go
    finally:
        on_host(machine, f"kill {pid} 2>/dev/null || true; rm -f /run/ek-go /run/ek-out /run/ek-sleeper.py")


@pytest.mark.long
def test_top_counts_what_a_histogram_of_the_kernel_counts(traced: VirtualMachine) -> None:
    with histogram(traced, GETUID) as table:
        with asked(traced, "top", GETUID, "--at-least", "100", "--budget", "100") as end:
            pid = on_host(traced, LOAD)
            answer = end()
        theirs = table()
    assert answer.source in ("fentry", "tp_btf", "raw_tp", "tracepoint")
    assert [one.errno for one in answer.refused if one.errno] == [], "this kernel refuses nothing"
    row = next(row for row in answer.rows if row.key == pid)
    assert (row.label, row.count) == ("ek-load", theirs[pid])
    assert CALLS <= row.count < CALLS + 50, "Python itself asks when it begins"
    assert all(row.count >= 100 for row in answer.rows)
    assert answer.lost == 0


SLEEP = ("syscalls:sys_enter_clock_nanosleep", "syscalls:sys_exit_clock_nanosleep")


@pytest.mark.long
def test_latency_has_the_durations_that_the_program_saw(traced: VirtualMachine) -> None:
    with sleeper(traced) as (pid, go), histogram(traced, SLEEP[1]) as table:
        with asked(traced, "latency", *SLEEP, "--process", str(pid)) as end:
            said = go()
            answer = end()
        theirs = table()
    # The end of a call does not pass its number, so a raw tracepoint cannot tell which call ended.
    assert answer.source == "tracepoint"
    assert answer.durations is not None and answer.durations_ns is not None
    assert answer.durations.samples == answer.events == theirs[str(pid)] == SLEEPS
    # The program's clock is around the call; its deadline was worked out before it.
    assert SLEEPS * SLEEP_S * 1e9 / 2 < answer.durations_ns <= said["slept_ns"]
    assert answer.lost == 0
    assert EMULATION_NOTE in answer.notes


@pytest.mark.long
def test_wakeups_are_no_more_than_the_switches_that_the_kernel_counted(traced: VirtualMachine) -> None:
    with sleeper(traced) as (pid, go), asked(traced, "wakeups") as end:
        said = go()
        answer = end()
    assert answer.source in ("tp_btf", "tracepoint"), "a raw tracepoint does not have the fields"
    assert [one.errno for one in answer.refused if one.errno and one.source != "raw_tp"] == []
    row = next(row for row in answer.rows if row.key == str(pid))
    assert row.label == "ek-sleep"
    # It was switched on once for each, and once more where it was pre-empted; a few times to write and to end.
    assert SLEEPS <= row.count <= said["switches"] + 10


def interrupts(machine: VirtualMachine) -> Counter[int]:
    """Interrupt -> times on all CPUs, of those that one driver has: the event comes once for each driver."""
    found: Counter[int] = Counter()
    for line in on_host(machine, "cat /proc/interrupts").splitlines():
        head, _, rest = line.partition(":")
        if head.strip().isdigit() and "," not in rest:
            for word in rest.split():
                if not word.isdigit():
                    break
                found[int(head)] += int(word)
    return found


#: While a recording goes on: its reader is at FIFO but for the moments between two steps.
READER = r"""for _ in $(seq 100); do
    ps -eLo cls=,rtprio=,comm= | grep -E '^ *FF +5 +python' && exit
    sleep 0.1
done
exit 1
"""


@pytest.mark.long
def test_a_record_has_each_interrupt_that_the_kernel_counted(traced: VirtualMachine, tmp_path: Path) -> None:
    """More than came while it watched, by /proc/interrupts, are not in it, nor fewer than came in between."""
    target = tmp_path / "interrupts.npy"
    before = interrupts(traced)
    with asked(traced, "record", "irq:irq_handler_entry", str(target), "--field", "irq") as end:
        first = interrupts(traced)
        on_host(traced, READER)
        second = interrupts(traced)
        answer = end()
    after = interrupts(traced)
    assert answer.source in ("tp_btf", "tracepoint", "ring"), "a raw tracepoint does not have the field"
    assert answer.lost == 0
    found = np.load(target)
    assert len(found) == answer.events
    recorded = Counter(int(irq) for irq in found["value"])
    assert sum((second - first).values()) > 0, "the network at least"
    for irq in after:
        assert second[irq] - first[irq] <= recorded[irq] <= after[irq] - before[irq], irq


@pytest.mark.long
def test_a_record_has_each_call_of_a_program(traced: VirtualMachine, tmp_path: Path) -> None:
    target = tmp_path / "calls.npy"
    with histogram(traced, GETUID) as table, asked(traced, "record", GETUID, str(target)) as end:
        pid = on_host(traced, LOAD)
        answer = end()
        theirs = table()
    assert answer.source in ("fentry", "raw_tp", "tp_btf", "ring", "tracepoint")
    assert answer.lost == 0
    found = np.load(target)
    assert len(found) == answer.events
    assert CALLS <= (found["thread"] == int(pid)).sum() == theirs[pid]
    assert (np.diff(found["time_ns"].astype(np.int64)) >= 0).all()


ON_TRACEPOINT = ("raw_tp", "tp_btf", "perf", "tracepoint", "ring")
LIBC = "uprobe:/lib/x86_64-linux-gnu/libc.so.6:getppid"


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "sources"),
    [
        (("count", "sched:sched_switch"), ON_TRACEPOINT),
        (("count", "software:page-faults"), ("perf",)),
        (("count", LIBC), ("uprobe",)),
        (("top", "sched:sched_switch", "--by", "cpu"), ON_TRACEPOINT),
        (("top", "function:vfs_read"), ("fentry",)),
        (("top", LIBC), ("uprobe",)),
        (("latency", "function:__x64_sys_read", "function:vfs_read"), ("fentry",)),
        (("record", "sched:sched_switch", "{file}"), ON_TRACEPOINT),
        (("record", "function:vfs_read", "{file}"), ("fentry",)),
    ],
)
def test_a_question_of_the_reference_is_answered_here(
    traced: VirtualMachine, tmp_path: Path, words: tuple[str, ...], sources: tuple[str, ...]
) -> None:
    """What a locked-down kernel refuses, too; and no cheaper source was refused by this one."""
    answer = trace(traced, *(word.format(file=tmp_path / "records.csv") for word in words), "--for", "1s")
    print(f"{words}: {answer.source}; not {[(one.source, one.why, one.errno) for one in answer.refused]}")
    assert answer.source in sources
    assert [one.errno for one in answer.refused if one.errno] == []
    idle = {LIBC, "software:page-faults"}
    assert answer.events > 0 or idle & set(words), "nobody need call getppid, or touch a page"


# -- a guest that KVM runs ----------------------------------------------------------------------------------------


#: Ports where nothing is: each byte is an exit that QEMU has to answer.  On both vCPUs in turn.
READS = 8 * 256
PORTS = (
    "for on in 1 2 1 2 1 2 1 2; do taskset $on dd if=/dev/port of=/dev/null bs=256 skip=32 count=1 2>/dev/null; done"
)


def kvm_counters(host: TunedHost) -> dict[str, int]:
    """KVM's own sums for the guest, read without Evenkeel."""
    text = host.run("for one in exits io_exits; do echo $one $(cat /sys/kernel/debug/kvm/$qemu-*/$one); done")
    return {name: int(number) for name, number in (line.split() for line in text.splitlines())}


@contextlib.contextmanager
def bracketed(host: TunedHost) -> Iterator[dict[str, tuple[int, int]]]:
    """Reads ports in the guest.  Filled at the end: counter -> how far it grew in the inner and in the outer time."""
    found: dict[str, tuple[int, int]] = {}
    host.wait_for_agent()
    first = kvm_counters(host)
    with host.machine.probe() as probe:
        done = guest_exec(probe, "plc", ["/bin/sh", "-c", PORTS], timeout_s=120)
    assert done.exit == 0, done
    second = kvm_counters(host)
    inner = {name: second[name] - first[name] for name in first}
    assert inner["io_exits"] >= READS
    yield found
    after = kvm_counters(host)
    found |= {name: (inner[name], after[name]) for name in inner}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("more", "source", "label"),
    [
        ((), "debugfs", "io_exits"),
        (("--source", "libvirt"), "libvirt", "io_exits"),
        (("--source", "tracepoint"), "tracepoint", "io"),
    ],
)
def test_exits_are_those_that_kvm_counts(tuned_host: TunedHost, more: tuple[str, ...], source: str, label: str) -> None:
    """KVM's counters before and after, and just inside of the time: no more and no less than lies between."""
    before = kvm_counters(tuned_host)
    with asked(tuned_host.machine, "exits", "plc", *more) as end, bracketed(tuned_host) as grown:
        answer = end()
    assert answer.source == source
    assert answer.refused == (), "the free counters are the cheapest, and this kernel shows them"
    ports = sum(row.count for row in answer.rows if row.label == label)
    for name, ours in (("exits", answer.events), ("io_exits", ports)):
        inner, after = grown[name]
        assert inner <= ours <= after - before[name], name
    if source == "tracepoint":
        assert sum(row.count for row in answer.rows if row.label == "to QEMU: IO") >= READS
        assert {row.key for row in answer.rows} >= {"vCPU 0", "vCPU 1"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_top_names_the_vcpus_of_a_guest(tuned_host: TunedHost) -> None:
    before = kvm_counters(tuned_host)
    words = ("top", "kvm:kvm_exit", "--by", "vcpu", "--budget", "100")
    with asked(tuned_host.machine, *words) as end, bracketed(tuned_host) as grown:
        answer = end()
    assert answer.source in ("raw_tp", "tp_btf", "tracepoint")
    assert {row.key for row in answer.rows} >= {"plc vCPU 0", "plc vCPU 1"}
    inner, after = grown["exits"]
    assert inner <= sum(row.count for row in answer.rows if row.key.startswith("plc ")) <= after - before["exits"]
