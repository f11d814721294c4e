"""The same questions to other tools in the same run: bpftrace and perf for what happened, libbpf for where fields are.

Each watches the same process while it does something a known number of times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.probe.trace import btf, question
from tests.probe.trace.load import caller, with_tracefs
from tests.probe.trace.test_latency import SLEEP, WAKEUPS, nanosleep

GETUID = "syscalls:sys_enter_getuid"


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    question.trace_close()


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End it by Ctrl-C, again and again: a bpftrace that has just begun does not hear the first one."""
    deadline = time.monotonic() + 120
    while True:
        process.send_signal(2)
        try:
            return process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, "it does not end"


@contextlib.contextmanager
def bpftrace(script: str) -> Iterator[Callable[[], str]]:
    """Runs it until the function is called, which has its maps as text."""
    argv = with_tracefs("bpftrace", "-B", "line", "-e", script + ' BEGIN { printf("on\\n"); }')
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def end() -> str:
        return interrupted(process)[0]

    try:
        assert process.stdout
        while "on" not in process.stdout.readline():
            assert process.poll() is None, "bpftrace did not start"
        yield end
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def perf_stat(*argv: str) -> Iterator[Callable[[], list[int]]]:
    """Counts until the function is called, which has a number for each event."""
    # perf begins when it is told to, and says that it did.
    (told, tell), (said, say) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        with_tracefs("perf", "stat", "-x,", "-D", "-1", "--control", f"fd:{told},{say}", *argv),
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(told, say),
    )

    def end() -> list[int]:
        lines = interrupted(process)[1].splitlines()
        return [int(line.split(",")[0]) for line in lines if re.match(r"\d+,", line)]

    try:
        os.write(tell, b"enable\n")
        assert os.read(said, 16).startswith(b"ack")
        yield end
    finally:
        process.kill()
        process.communicate()
        for descriptor in (told, tell, said, say):
            os.close(descriptor)


def number(name: str, text: str) -> int:
    return int(re.findall(rf"^@{name}: (\d+)$", text, re.MULTILINE)[0])


def test_top_counts_each_process_as_bpftrace_does() -> None:
    script = f"tracepoint:{GETUID} {{ @[pid] = count(); }}"
    with caller(30_000, "ek-one") as one, caller(7_000, "ek-two") as two, bpftrace(script) as end:
        question.trace_start({"kind": "top", "events": [GETUID], "by": "process"}, "raw_tp")
        together = [threading.Thread(target=each.go) for each in (one, two)]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
        found = {row["key"]: row["count"] for row in question.trace_finish()["rows"]}
        theirs = dict(re.findall(r"^@\[(\d+)\]: (\d+)$", end(), re.MULTILINE))
        for each, times in ((one, 30_000), (two, 7_000)):
            assert found[str(each.pid)] == int(theirs[str(each.pid)]) == times


def test_latency_has_the_durations_of_bpftrace_and_the_ends_of_perf() -> None:
    """40 sleeps: as many to all three, and as long, but for what the watchers take from each other.

    Trap: a program on an event's record that gives back 0 hides the event from every other user of perf.
    """
    mine = f"/pid == {os.getpid()}/"
    script = (
        f"tracepoint:{SLEEP[0]} {mine} {{ @at[tid] = nsecs; }} "
        f"tracepoint:{SLEEP[1]} {mine} {{ @n = count(); @t = sum(nsecs - @at[tid]); delete(@at[tid]); }}"
    )
    mine = f"common_pid == {threading.get_native_id()}"
    ends = perf_stat("-a", *(word for event in SLEEP for word in ("-e", event, "--filter", mine)))
    with bpftrace(script) as end, ends as counted:
        question.trace_start(
            {"kind": "latency", "events": SLEEP, "key": "thread", "process": os.getpid()}, "tracepoint"
        )
        for _ in range(40):
            nanosleep(2)
        found = question.trace_finish()
        theirs, counts = end(), counted()
    assert found["events"] == found["starts"] == number("n", theirs) == 40
    assert counts == [40, 40]
    assert abs(found["total_ns"] - number("t", theirs)) < 40 * 200_000


def test_wakeups_are_those_of_bpftrace() -> None:
    """The same rule in both: from the last waking to the next time on a CPU."""
    known: list[int] = []
    ready, ended = threading.Event(), threading.Event()
    ask, answer = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        known.append(threading.get_native_id())
        ready.set()
        for _ in range(200):
            ask.acquire()
            time.sleep(0.0003)
            answer.release()
        ended.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    (tid,) = known
    script = (
        f"tracepoint:sched:sched_waking /args->pid == {tid}/ {{ @at = nsecs; }} "
        # a thread that is left behind runnable did not sleep, as in the void of our program
        f"tracepoint:sched:sched_switch /args->prev_pid == {tid} && (args->prev_state & 0xff) == 0/ {{ @at = 0; }} "
        f"tracepoint:sched:sched_switch /args->next_pid == {tid} && @at/ "
        "{ @n = count(); @t = sum(nsecs - @at); @at = 0; }"
    )
    waking = perf_stat("-a", "-e", "sched:sched_waking", "--filter", f"pid == {tid}")
    with bpftrace(script) as end, waking as counted:
        question.trace_start(WAKEUPS, "tp_btf")
        for _ in range(200):
            ask.release()
            answer.acquire()
        found = question.trace_finish()
        theirs, (woken,) = end(), counted()
    ended.set()
    thread.join()
    row = next(row for row in found["rows"] if row["key"] == str(tid))
    assert row["count"] >= 200
    # bpftrace and perf are watching a moment longer than we do.
    assert abs(row["count"] - number("n", theirs)) <= 2
    assert row["count"] <= woken
    assert abs(row["total_ns"] - number("t", theirs)) < row["count"] * 100_000


#: Waits, burns a second of CPU time, waits again.
BURN = """
import sys, time
open("/proc/self/comm", "w").write("ek-burn")
sys.stdin.readline()
start = time.process_time()
while time.process_time() - start < 1.0: pass
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_profile_has_as_many_samples_of_a_process_as_bpftrace_and_perf(tmp_path: Path) -> None:
    """All three watch all of a second of CPU time, 499 times a second."""
    target = tmp_path / "perf.data"
    argv = [sys.executable, "-S", "-c", BURN]
    busy = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "499", "-p", str(busy.pid), "-o", str(target)]
    assert busy.stdin and busy.stdout
    try:
        with bpftrace(f"profile:hz:499 /pid == {busy.pid}/ {{ @n = count(); }}") as end:
            perf = subprocess.Popen(with_tracefs(*record), stderr=subprocess.DEVNULL)
            question.trace_start({"kind": "profile", "frequency_hz": 499}, "sampling")
            time.sleep(1.0)  # perf does not say when it has begun
            busy.stdin.write("go\n")
            busy.stdin.flush()
            assert busy.stdout.readline() == "done\n"
            question.trace_wait(0)
            theirs = number("n", end())
            perf.send_signal(2)
            perf.wait(timeout=120)
            found = question.trace_finish()
    finally:
        busy.communicate("end\n")
    ours = sum(one["count"] for one in found["stacks"] if one["frames"][0] == "ek-burn")
    report = subprocess.run(
        ["perf", "report", "-i", str(target), "--stats"], capture_output=True, text=True, check=True
    )
    samples = int(re.findall(r"SAMPLE events:\s+(\d+)", report.stdout)[0])
    # Each has a clock of its own; and a sample that comes while any BPF program runs on that CPU is lost, and counted.
    assert ours - 50 <= theirs <= ours + found["lost"] + 50
    assert ours - 50 <= samples <= ours + found["lost"] + 50


# -- libbpf -----------------------------------------------------------------------------------------------------------

_STRUCT, _TYPEDEF, _FUNC = 4, 8, 12


@pytest.fixture(scope="module")
def libbpf() -> Iterator[Any]:
    library = ctypes.CDLL("libbpf.so.1")
    for name, result in (
        ("btf__load_vmlinux_btf", ctypes.c_void_p),
        ("btf__type_by_id", ctypes.c_void_p),
        ("btf__name_by_offset", ctypes.c_char_p),
        ("btf__resolve_size", ctypes.c_int64),
    ):
        getattr(library, name).restype = result
    setattr(library, "types", ctypes.c_void_p(library.btf__load_vmlinux_btf()))  # noqa: B010
    yield library
    library.btf__free(library.types)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("task_struct", _STRUCT),
        ("thread_info", _STRUCT),
        ("perf_event_attr", _STRUCT),
        ("btf_trace_sched_switch", _TYPEDEF),
        ("btf_trace_sys_enter", _TYPEDEF),
        ("vfs_read", _FUNC),
        ("no_such_type_here", _STRUCT),
    ],
)
def test_types_have_the_ids_of_libbpf(libbpf: Any, name: str, kind: int) -> None:
    theirs = libbpf.btf__find_by_name_kind(libbpf.types, name.encode(), kind)
    found = btf.Btf().find(name, kind)
    assert (found.id if found else -2) == theirs, "-ENOENT where there is none"


@pytest.mark.parametrize("structure", ["task_struct", "thread_info", "file", "rq"])
def test_every_field_is_where_libbpf_has_it(libbpf: Any, structure: str) -> None:
    """libbpf's own copy of the type, member by member: name, type, offset in bits (include/uapi/linux/btf.h)."""
    place = libbpf.btf__type_by_id(
        libbpf.types, libbpf.btf__find_by_name_kind(libbpf.types, structure.encode(), _STRUCT)
    )
    words = (ctypes.c_uint32 * 3).from_address(place)
    members, bitfields = words[1] & 0xFFFF, bool(words[1] >> 31)
    types, compared = btf.vmlinux(), 0
    for index in range(members):
        label, kind, bits = (ctypes.c_uint32 * 3).from_address(place + 12 + 12 * index)
        name = libbpf.btf__name_by_offset(libbpf.types, label).decode()
        if not name or (bitfields and bits >> 24):
            continue  # nameless, or a part of a byte
        found = types.field(structure, name)
        assert found is not None, name
        assert found[0] == (bits & 0xFFFFFF if bitfields else bits) // 8, name
        resolved = types.resolved(kind)
        if resolved is not None and resolved.kind in (1, 2, 4, 5):  # int, pointer, struct, union
            assert found[1] == libbpf.btf__resolve_size(libbpf.types, kind), name
        compared += 1
    assert compared > 2
