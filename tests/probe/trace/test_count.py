"""Counting on this kernel: every source to the last event, and the same as perf and bpftrace in the same run."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import (
    bpf,
    btf,
    calibrate,
    capabilities,
    functions,
    kinds,
    perf,
    question,
    sources,
    syscalls,
    tracefs,
)
from tests.probe.trace.load import caller, with_tracefs

GETUID = "syscalls:sys_enter_getuid"
#: What must work on any kernel that tests run on: nothing here patches kernel text.
EVERYWHERE = ("raw_tp", "tp_btf", "tracepoint", "perf", "ring")


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    question.trace_close()
    assert tracefs.orphans() == []


def ask(kind: str, source: str, **more: Any) -> None:
    question.trace_start({"kind": kind, "events": [GETUID], **more}, source)


def bpftrace_count(event: str, pid: int) -> str:
    """A script that says "on" when it has begun, and ends by itself when the process calls getppid."""
    mine = f"/pid == {pid}/"
    end = f"tracepoint:syscalls:sys_enter_getppid {mine} {{ exit(); }}"
    return f'tracepoint:{event} {mine} {{ @ = count(); }} {end} BEGIN {{ printf("on\\n"); }}'


def row_of(pid: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["key"] == str(pid))


@pytest.mark.parametrize("source", EVERYWHERE)
def test_a_count_is_exact(source: str) -> None:
    """On one CPU of our own, so that nobody else's calls are in it."""
    cpu = min(os.sched_getaffinity(0))
    with caller(20_000, "ek-exact") as one:
        ask("top" if source in sources.HOOKS else "count", source, by="process", cpus=None)
        one.go()
        found = question.trace_finish()
    if source in sources.HOOKS:
        assert row_of(one.pid, found["rows"]) == {"key": str(one.pid), "label": "ek-exact", "count": 20_000}
    else:
        assert 20_000 <= found["events"] < 30_000, f"counts everybody's calls, CPU {cpu} and others"
    assert found["lost"] == 0


def test_all_sources_agree_with_perf_and_bpftrace_in_the_same_run() -> None:
    """One loop of 50,000 calls, watched by six at once; each may also see other processes, so all see at least it."""
    with caller(50_000, "ek-oracle") as one:
        counting = bpftrace_count(GETUID, one.pid)
        # perf begins when it is told to, and says that it did.
        (told, tell), (said, say) = os.pipe(), os.pipe()
        control = f"fd:{told},{say}"
        perf = subprocess.Popen(
            with_tracefs("perf", "stat", "-x,", "-e", GETUID, "-p", str(one.pid), "-D", "-1", "--control", control),
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(told, say),
        )
        bpftrace = subprocess.Popen(
            with_tracefs("bpftrace", "-B", "line", "-e", counting),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert bpftrace.stdout
            while "on" not in bpftrace.stdout.readline():
                assert bpftrace.poll() is None, "bpftrace did not start"
            os.write(tell, b"enable\n")
            assert os.read(said, 16).startswith(b"ack")
            ask("top", "raw_tp", by="process")
            one.go()
            ours = row_of(one.pid, question.trace_finish()["rows"])["count"]
        finally:
            perf.send_signal(2)
        for descriptor in (told, tell, said, say):
            os.close(descriptor)
        counted = int(perf.communicate(timeout=120)[1].splitlines()[-1].split(",")[0])
        traced = int(re.findall(r"@: (\d+)", bpftrace.communicate(timeout=120)[0])[0])
    assert ours == counted == traced == 50_000


@pytest.mark.parametrize("source", ["raw_tp", "tp_btf", "tracepoint"])
def test_a_32_bit_call_of_the_same_number_is_another_call(source: str) -> None:
    """Trap: number 102 is getuid, and socketcall by int 0x80.  A filter on the number alone would count both."""
    number = syscalls.number("getuid")
    assert number is not None
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # mov eax, NUMBER; xor ebx, ebx; int 0x80; ret, with rbx kept as the ABI wants it
    page.write(b"\x53\xb8" + number.to_bytes(4, "little") + b"\x31\xdb\xcd\x80\x5b\xc3")
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    assert call() == -errno.EINVAL, "it is socketcall(0), on a kernel with IA32 emulation"
    ask("top", source, by="process")
    for _ in range(500):
        call()
    for _ in range(300):
        os.getuid()
    assert row_of(os.getpid(), question.trace_finish()["rows"])["count"] == 300


def test_a_system_call_by_its_function_is_exact_or_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that lets nobody patch its text refuses it before its types are searched; see tests/virtual."""
    searched, find = list[str](), btf.Btf.find

    def noted(self: btf.Btf, name: str, kind: int) -> btf.Type | None:
        searched.append(name)
        return find(self, name, kind)

    monkeypatch.setattr(btf.Btf, "find", noted)
    with caller(20_000, "ek-function") as one:
        try:
            ask("top", "fentry", by="process")
        except StepFailed as error:
            assert error.code == errno.EPERM
            assert searched == [], "that takes hundreds of milliseconds"
            return
        assert searched, "where it is done, it is by this function"
        one.go()
        found = question.trace_finish()
    assert row_of(one.pid, found["rows"])["count"] == 20_000 and found["lost"] == 0
    assert "call number 102" in found["mechanism"][0]


@pytest.mark.parametrize(
    ("event", "code"),
    [("syscalls:sys_exit_getuid", errno.EOPNOTSUPP), ("syscalls:sys_enter_nothing", errno.ENOENT)],
)
def test_no_function_stands_for_another_event(event: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_check_fentry", lambda: None)
    with pytest.raises(StepFailed) as caught:
        question.trace_start({"kind": "count", "events": [event]}, "fentry")
    assert caught.value.code == code


def test_counters_count_several_events_at_the_same_time() -> None:
    question.trace_start({"kind": "count", "events": [GETUID, "raw_syscalls:sys_enter"]}, "perf")
    for _ in range(1000):
        os.getuid()
    for _ in range(500):
        os.getppid()
    found = question.trace_wait(0)
    own, every = found["each"]
    assert own >= 1000 and every >= own + 500, found
    assert found["events"] >= own + every


def test_only_the_cpus_that_were_asked_for() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one CPU only")
    here, there = sorted(allowed)[:2]
    for source in ("raw_tp", "tracepoint"):
        ask("top", source, by="process", cpus=[here])
        try:
            for cpu, times in ((here, 400), (there, 700)):
                os.sched_setaffinity(0, {cpu})
                for _ in range(times):
                    os.getuid()
        finally:
            os.sched_setaffinity(0, allowed)
        assert row_of(os.getpid(), question.trace_finish()["rows"])["count"] == 400, source


#: Touches pages that nobody has touched, in the thread that is there, in one that begins later and in a process of its
#: own, which is somebody else.
_TOUCH = """
import mmap, os, sys, threading
def touch():
    page = mmap.mmap(-1, 2000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, len(page), 4096):
        page[at] = 1
print("ready", flush=True)
sys.stdin.readline()
touch()
later = threading.Thread(target=touch)
later.start()
later.join()
if not os.fork():
    touch(), touch(), touch()
    os._exit(0)
os.wait()
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("cpus", [None, sorted(os.sched_getaffinity(0))])
def test_a_counter_of_one_process_counts_its_threads_and_nobody_else(cpus: list[int] | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _TOUCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdin and one.stdout and one.stdout.readline() == "ready\n"
        about = {"kind": "count", "events": ["software:page-faults"], "process": one.pid, "cpus": cpus}
        question.trace_start(about, "perf")
        one.stdin.write("go\n")
        one.stdin.flush()
        assert one.stdout.readline() == "done\n"
        found = question.trace_finish()
        one.communicate("end\n")
    assert 4000 <= found["events"] < 6000, "twice two thousand, and not the other process's six thousand"
    assert f"the threads of process {one.pid}" in found["mechanism"][0]


def test_a_processor_without_counters_is_no_event_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_of_what: object, **_more: object) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(perf, "on_every_cpu", none)
    with pytest.raises(StepFailed, match="not shown the processor's counters"):
        question.trace_start({"kind": "count", "events": ["hardware:cycles"]}, "perf")


def test_a_tracepoint_of_one_process_is_left_to_programs() -> None:
    """perf may count a wake-up for the thread that is woken, too, so its count could be another number."""
    with pytest.raises(StepFailed) as caught:
        question.trace_start({"kind": "count", "events": ["sched:sched_waking"], "process": os.getpid()}, "perf")
    assert caught.value.code == errno.EOPNOTSUPP


@pytest.mark.parametrize("source", ["raw_tp", "perf"])
def test_a_process_that_does_not_exist_is_no_count_of_nothing(source: str) -> None:
    with pytest.raises(StepFailed, match="no process 4194304") as caught:
        ask("count", source, process=4194304)
    assert caught.value.code == errno.ESRCH


@pytest.mark.parametrize(
    ("by", "key", "label"),
    [
        ("user", "0", "root"),
        ("command", "ek-by", "ek-by"),
        ("guest", "no guest", "no guest"),
    ],
)
def test_by_what_it_is_counted(by: str, key: str, label: str) -> None:
    with caller(1000, "ek-by") as one:
        ask("top", "raw_tp", by=by)
        one.go()
        rows = {row["key"]: row for row in question.trace_finish()["rows"]}
    assert rows[key]["label"] == label
    assert rows[key]["count"] >= 1000


#: What a guest is for whoever looks from outside: QEMU by its name, with -name, and a thread for each vCPU, named
#: as with debug-threads=on.  Each vCPU thread calls getuid so many times, and the main thread, which is no vCPU, 50.
_LOOKS_LIKE_QEMU = """
import os, sys, threading
open("/proc/self/comm", "w").write("qemu-ek-top")
go = threading.Event()
def vcpu(number, times):
    open("/proc/self/task/%d/comm" % threading.get_native_id(), "w").write("CPU %d/KVM" % number)
    named.wait()
    go.wait()
    for _ in range(times):
        os.getuid()
named = threading.Barrier(3)
threads = [threading.Thread(target=vcpu, args=one) for one in ((0, 700), (1, 300))]
for one in threads:
    one.start()
named.wait()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(50):
    os.getuid()
go.set()
for one in threads:
    one.join()
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        ("vcpu", {"ek-top vCPU 0": 700, "ek-top vCPU 1": 300, "ek-top qemu-ek-top": 50}),
        ("guest", {"ek-top": 1050}),
    ],
)
def test_by_vcpu_and_by_guest(by: str, wanted: dict[str, int]) -> None:
    """The threads of a guest are found when it begins; they are gone when names are given in the end."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _LOOKS_LIKE_QEMU, "-name", "guest=ek-top,debug-threads=on"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as one:
        assert one.stdin and one.stdout and one.stdout.readline() == "ready\n"
        ask("top", "raw_tp", by=by)
        one.stdin.write("go\n")
        one.stdin.flush()
        assert one.stdout.readline() == "done\n"
        rows = question.trace_finish()["rows"]
        one.communicate("end\n")
    found = {row["key"]: row["count"] for row in rows if row["key"].startswith("ek-top")}
    assert found == wanted
    assert all(row["label"] == row["key"] for row in rows)


def test_by_cgroup_has_its_path() -> None:
    ask("top", "raw_tp", by="cgroup")
    for _ in range(100):
        os.getuid()
    rows = question.trace_finish()["rows"]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    assert not own or own[0] in {row["label"] for row in rows}


def test_more_processes_than_rows_are_lost_events_and_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenkeel.probe.trace.templates._MOST_ROWS", 8)
    monkeypatch.setattr("evenkeel.probe.trace.templates._FEWEST_ROWS", 8)
    monkeypatch.setattr("evenkeel.probe.trace.tables._SLOTS", 1)
    ask("top", "raw_tp", by="thread")
    begin, end = threading.Barrier(41), threading.Barrier(41)

    def work() -> None:
        begin.wait()
        for _ in range(100):
            os.getuid()
        end.wait()

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    begin.wait()
    end.wait()
    for thread in threads:
        thread.join()
    found = question.trace_finish()
    assert found["lost"] > 0
    assert found["lost"] + sum(row["count"] for row in found["rows"]) >= 4000


def test_keys_that_push_each_other_out_of_their_slot_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot a CPU and twelve threads that take turns: nearly each call moves another one's count to the table."""
    monkeypatch.setattr("evenkeel.probe.trace.tables._SLOTS", 1)
    ask("top", "raw_tp", by="thread")
    turns = [threading.Semaphore(0) for _ in range(12)]
    known: dict[int, int] = {}

    def work(number: int) -> None:
        known[number] = threading.get_native_id()
        for _ in range(50):
            turns[number].acquire()
            for _ in range(number + 1):
                os.getuid()
            turns[(number + 1) % 12].release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    turns[0].release()
    for thread in threads:
        thread.join()
    found = question.trace_finish()
    rows = {row["key"]: row["count"] for row in found["rows"]}
    assert [rows[str(known[number])] for number in range(12)] == [50 * (number + 1) for number in range(12)]
    assert found["lost"] == 0


def test_a_program_that_was_interrupted_by_its_own_event_counts_in_the_table() -> None:
    """The slots are marked as in use on every CPU, as the interrupted program leaves them."""
    question.trace_start({"kind": "top", "events": ["task:task_rename"], "by": "process"}, "raw_tp")
    run = question._run
    assert isinstance(run, kinds.Top) and run.rows.slots is not None
    used = (1).to_bytes(8, "little") + bytes(run.rows.slots.value - 8)
    run.rows.slots.update(bytes(4), used * bpf.possible_cpus())
    name = Path("/proc/self/comm").read_bytes()
    for _ in range(300):
        Path("/proc/self/comm").write_bytes(name)
    assert row_of(os.getpid(), question.trace_finish()["rows"])["count"] == 300


def test_what_cannot_be_is_refused_with_its_errno() -> None:
    for event, source, code in (
        ("sched:sched_swich", "perf", errno.ENOENT),
        ("sched:../../etc", "tracepoint", errno.EINVAL),
        ("syscalls:sys_exit_getuid", "raw_tp", errno.EOPNOTSUPP),
        ("software:nonsense", "perf", errno.ENOENT),
    ):
        with pytest.raises(StepFailed) as caught:
            question.trace_start({"kind": "count", "events": [event]}, source)
        assert caught.value.code == code, event
    with pytest.raises(StepFailed, match="sched_switch"):
        question.trace_start({"kind": "count", "events": ["sched:switch"]}, "perf")


def test_every_source_was_really_tried() -> None:
    found = {(row["source"], row["event"]): row for row in capabilities.try_sources()}
    for name in EVERYWHERE:
        assert found[name, capabilities.TRIAL]["works"], found[name, capabilities.TRIAL]
    for row in found.values():
        assert row["works"] or row["errno"], "a no has the kernel's errno"


def test_the_numbers_of_system_calls_are_those_of_this_kernel() -> None:
    """The record has the number; a few calls without arguments, each counted by its number and by its own event."""
    libc, pid = ctypes.CDLL(None), os.getpid()
    for name in ("getpid", "getppid", "geteuid", "sched_yield", "gettid"):
        question.trace_start({"kind": "top", "events": [f"syscalls:sys_enter_{name}"], "by": "process"}, "raw_tp")
        for _ in range(50):
            libc.syscall(syscalls.number(name))
        ours = row_of(pid, question.trace_finish()["rows"])["count"]
        question.trace_start({"kind": "top", "events": [f"syscalls:sys_enter_{name}"], "by": "process"}, "tracepoint")
        for _ in range(50):
            libc.syscall(syscalls.number(name))
        assert ours == row_of(pid, question.trace_finish()["rows"])["count"] == 50, name


@pytest.mark.parametrize("loop", ["call", "event", "fault"])
@pytest.mark.parametrize(("source", "kind"), [("raw_tp", "count"), ("tracepoint", "latency"), ("ring", "record")])
def test_calibration_counts_its_own_loop(source: str, kind: str, loop: str) -> None:
    """A source that saw nothing would cost nothing, and be taken."""
    found = calibrate.calibrate(source, kind, loop)
    least = calibrate.ROUNDS * calibrate.TURNS[loop] * calibrate.CHUNKS
    assert found["events"] >= least - calibrate.ROUNDS, "the first event ends no duration"
    assert found["base_ns"] > 0
    back_to_back, *_, far = found["at"]
    assert back_to_back["ns"] > 0 or not found["steady"], "what it adds may be less than how much the loop varies"
    assert 20 * back_to_back["gap_ns"] < far["gap_ns"], "with other work in between"
    assert all(loop == "call" or at["other_ns"] == 0 for at in found["at"]), "no system call: it slows none"
    assert all((at["timed_ns"] is None) == (source == "ring") for at in found["at"]), "the kernel times programs only"


@pytest.mark.parametrize(
    ("source", "kind", "loop", "like"),
    [
        ("tp_btf", "wakeups", "switch", ""),
        ("sampling", "profile", "profile", ""),
        ("uprobe", "count", "uprobe", "uprobe:{libc}:getpgid"),
    ],
)
def test_calibration_of_what_needs_more_than_a_system_call(source: str, kind: str, loop: str, like: str) -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    libc = next(line.split()[-1] for line in maps if "/libc.so" in line)
    found = calibrate.calibrate(source, kind, loop, like=like.format(libc=libc))
    if loop != "profile":
        assert found["events"] >= calibrate.ROUNDS * calibrate.TURNS[loop] * calibrate.CHUNKS - calibrate.ROUNDS
    assert found["events"] > 0
    assert all(at["timed_ns"] > 0 and at["gap_ns"] > 0 for at in found["at"])


def test_a_uprobe_is_calibrated_as_its_function_begins(tmp_path: Path) -> None:
    """A breakpoint on an instruction that the kernel does itself is one trap, any other is two."""
    file = tmp_path / "functions"
    file.write_bytes(b"\x55\xc3" + b"\xf3\x0f\x1e\xfa\xc3")
    push, endbr64 = (f"uprobe:{file}:0x{place:x}" for place in (0, 2))
    cheap, dear = (calibrate.calibrate("uprobe", "count", "uprobe", like=one)["at"][0]["ns"] for one in (push, endbr64))
    assert cheap < dear


def test_no_instance_of_tracefs_outlives_a_killed_process() -> None:
    """Kill one that has an instance: the next one removes it, and only it."""
    program = (
        "from evenkeel.probe.trace import tracefs; import sys\n"
        "one = tracefs.Instance(); print(one.name, flush=True); sys.stdin.readline()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    name = child.stdout.readline().strip().rpartition("/")[2]
    assert os.path.isdir(f"{tracefs.root()}/instances/{name}")  # noqa: PTH112
    assert tracefs.orphans() == [], "its process lives"
    child.kill()
    child.communicate()
    assert tracefs.orphans() == [name]
    assert tracefs.remove_orphans() == [name]
    assert not os.path.isdir(f"{tracefs.root()}/instances/{name}")  # noqa: PTH112


def test_a_refused_write_is_an_error_at_once() -> None:
    """Trap: open().write() keeps the text in a buffer, and the refusal is lost in the interpreter's end."""
    instance = tracefs.Instance()
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            instance.set("trace_clock", "sundial")
        with pytest.raises(FileNotFoundError):
            instance.set("events/sched/sched_nonsense/enable", "1")
    finally:
        instance.close()


def test_a_costly_look_is_taken_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, ms = 0, 0

    def look() -> int:
        nonlocal looks, ms
        looks, ms = looks + 1, ms + 10
        return looks

    monkeypatch.setattr(kinds, "time", SimpleNamespace(monotonic=lambda: ms / 1000))
    seldom = kinds.Seldom(look)
    at = []
    while ms < 2500:
        before = looks
        assert seldom() == looks
        if looks > before:
            at.append(ms - 10)
        ms += 1
    assert at == pytest.approx([0, 1010, 2020], abs=2), "ten milliseconds of looking are paid for in a second"
