"""Count what disturbs one busy, pinned thread: timer ticks, interrupts, involuntary switches.

The thread is a spinner of ours on a host CPU, or a busy loop inside a guest on one of its vCPUs.  What is counted is
exact in software emulation too; nothing here measures a latency.  Must leave nothing behind and judge nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Iterator, Sequence

from evenkeel.probe.sample import OnProgress, grown, interrupt_rows, pause, read, threads
from evenkeel.probe.sample_guest import guest_start
from evenkeel.probe.sample_partition import join, partition
from evenkeel.probe.sample_proc import parse_status
from evenkeel.probe.sample_process import Child, start, start_tree

WARM_UP_S = 0.5
#: Forty processes a group have to be forked and to find each other before the load is a load.
LOAD_WARM_UP_S = 2.0


def spin(
    cpus: Sequence[int],
    seconds: float,
    isolate: Sequence[int] = (),
    policy: str = "other",
    load: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """One spinner on each of ``cpus`` at the same time; those in ``isolate`` inside a partition of their own.

    ``policy``: ``other`` or ``fifo:N``.  ``load``: ``{"tool": "hackbench", "groups": n}``, free to run wherever the
    scheduler may put it.  Returns ``{"load": text, "spins": [...]}``, see :func:`_count` for one spin.
    Raises EBUSY when the partition of a guest holds one of ``isolate``, EINVAL for a CPU that may not be used.
    """
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(partition(isolate)) if isolate else None
        described = stack.enter_context(under_load(load))
        threads_by_cpu = {}
        for cpu in cpus:
            child = _spinner(cpu, policy, inside if cpu in isolate else None)
            stack.callback(child.kill)
            threads_by_cpu[cpu] = child.pid
        pause(WARM_UP_S, "warming up", on_progress)
        spins = _count(threads_by_cpu, seconds, described.text(), on_progress)
        for one in spins:
            one["policy"] = policy
            one["placement"] = "a partition of its own" if one["cpu"] in isolate else "pinned, no partition"
        return {"load": described.text(), "spins": spins}


def spin_guest(
    guest: str,
    vcpu: int,
    seconds: float,
    cpus: Sequence[int] = (),
    load: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """A busy loop inside the guest on ``vcpu``: the guest's own conditions.  ``cpus``: host spinners beside it.

    What is counted for the guest belongs to the vCPU's thread and to the host CPU that it runs on.  Needs the guest
    agent and ``timeout``, ``taskset`` and ``sh`` in the guest (busybox has them).
    """
    with contextlib.ExitStack() as stack:
        described = stack.enter_context(under_load(load))
        threads_by_cpu = {}
        for cpu in cpus:
            child = _spinner(cpu, "other", None)
            stack.callback(child.kill)
            threads_by_cpu[cpu] = child.pid
        # It ends by itself: the agent cannot be asked to kill, and this probe may be killed.
        lasts = int(seconds + WARM_UP_S + 3)
        loop = ["timeout", "-s", "KILL", str(lasts), "taskset", "-c", str(vcpu), "sh", "-c", "while :; do :; done"]
        guest_start(guest, loop)
        started = time.monotonic()
        pause(WARM_UP_S, "warming up", on_progress)
        thread = next((one for one in threads(guest)["threads"] if one["vcpu"] == vcpu), None)
        if thread is None:
            raise ValueError("guest %s has no thread of vCPU %d" % (guest, vcpu))
        threads_by_cpu[thread["seen"][-1]] = thread["tid"]
        spins = _count(threads_by_cpu, seconds, described.text(), on_progress)
        # The next measurement must find the guest quiet again.
        pause(max(0.0, started + lasts + 0.5 - time.monotonic()), "letting the guest come to rest", on_progress)
        for one in spins:
            own = one["cpu"] == thread["seen"][-1]
            one["policy"] = "%s:%d" % (thread["policy"], thread["priority"]) if own and thread["priority"] else "other"
            one["placement"] = "a busy loop in guest %s on vCPU %d" % (guest, vcpu) if own else "pinned, no partition"
        return {"load": described.text(), "spins": spins}


def _spinner(cpu: int, policy: str, cgroup: str | None) -> Child:
    """A process that does nothing but turn in circles on ``cpu``: no system call, no allocation, no look at a clock.

    It is killed when the count is done; a spinner that watched the time itself would disturb what it measures.
    """

    def setup() -> None:
        if cgroup:
            join(cgroup)
        os.sched_setaffinity(0, {cpu})
        if policy.startswith("fifo:"):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(int(policy[5:])))

    def work() -> None:
        while True:
            pass

    return start("evenkeel-spin", setup, work)


class Load:
    """What ran beside the spinner, in words."""

    def __init__(self, words: str, child: Child | None) -> None:
        self._words = words
        self._child = child

    def text(self) -> str:
        if self._child is None:
            return "idle"
        if not self._child.running():
            raise ValueError("%s ended before the count did" % self._words)
        return "%s on %s" % (self._words, _allowed(self._child.pid))


@contextlib.contextmanager
def under_load(load: dict[str, Any] | None) -> Iterator[Load]:
    """hackbench: many processes that wake each other all the time, the classical enemy of a quiet CPU."""
    if not load:
        yield Load("idle", None)
        return
    if load["tool"] != "hackbench":
        raise ValueError("%r is no load that the probe knows" % load["tool"])
    groups = int(load.get("groups") or max(1, (os.cpu_count() or 4) // 4))
    child = start_tree(["hackbench", "-g", str(groups), "-l", "100000000"])
    try:
        time.sleep(LOAD_WARM_UP_S)
        yield Load("hackbench -g %d" % groups, child)
    finally:
        child.kill()


def _allowed(pid: int) -> str:
    return parse_status(read("/proc/%d/status" % pid) or "").get("Cpus_allowed_list", "")


def _count(
    threads_by_cpu: dict[int, int], seconds: float, load: str, on_progress: OnProgress | None
) -> list[dict[str, Any]]:
    """Counters of each CPU and thread over ``seconds``: timer, device and other interrupts, switches, CPU time."""
    before = {tid: _switches(tid) for tid in threads_by_cpu.values()}
    time_before = {tid: _cpu_seconds(tid) for tid in threads_by_cpu.values()}
    rows, start_s = interrupt_rows(), time.monotonic()
    pause(seconds, "counting" if load == "idle" else "counting under load", on_progress)
    changed, real = grown(rows, interrupt_rows()), time.monotonic() - start_s
    spins = []
    for cpu, tid in threads_by_cpu.items():
        after = _switches(tid)
        spins.append(
            {
                "cpu": cpu,
                "seconds": round(real, 3),
                "timer_interrupts": sum(_on(changed, cpu, "timer").values()),
                "device_interrupts": _on(changed, cpu, "device"),
                "other_interrupts": _on(changed, cpu, "other"),
                "voluntary_switches": after[0] - before[tid][0],
                "involuntary_switches": after[1] - before[tid][1],
                "cpu_seconds": round(_cpu_seconds(tid) - time_before[tid], 3),
            }
        )
    return spins


def _on(rows: list[dict[str, Any]], cpu: int, kind: str) -> dict[str, int]:
    """Growth on one CPU by name: the action of a device interrupt, the label of the others (RES, CAL ...)."""
    found: dict[str, int] = {}
    for row in rows:
        if row["kind"] == kind and cpu in row["counts"]:
            name = (row["action"] or row["label"]) if kind == "device" else row["label"]
            found[name] = found.get(name, 0) + row["counts"][cpu]
    return found


def _switches(tid: int) -> tuple[int, int]:
    """Voluntary and involuntary switches of a thread so far.  Raises ProcessLookupError when it is gone."""
    text = read("/proc/%d/status" % tid)
    if text is None:
        raise ProcessLookupError(3, "the thread that was measured ended", "/proc/%d" % tid)
    status = parse_status(text)
    return int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"])


def _cpu_seconds(tid: int) -> float:
    """CPU time of a thread so far.

    Of a process of ours by its CPU clock, exact at any moment (MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED of
    include/linux/posix-timers.h makes the number of that clock).  A thread of another process has no such clock:
    fields 14 and 15 of its stat, in hundredths of a second, which are up to date on a nohz_full CPU as well.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime((~tid << 3) | 2)
    fields = (read("/proc/%d/stat" % tid) or "").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0
