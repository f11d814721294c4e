"""Count what disturbs one busy, pinned thread: timer ticks, interrupts, involuntary switches.

The thread is a spinner of ours on a host CPU, or a busy loop inside a guest on one of its vCPUs.  What is counted is
exact in software emulation too; nothing here measures a latency.  Must leave nothing behind and judge nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Any, NamedTuple, Sequence

from evenkeel.probe.sample import OnProgress, grown, interrupt_rows, pause, read, threads
from evenkeel.probe.sample_guest import guest_start
from evenkeel.probe.sample_load import Load, under_load
from evenkeel.probe.sample_partition import describe, join, neighbours, places
from evenkeel.probe.sample_proc import cpu_seconds, parse_stat, parse_status
from evenkeel.probe.sample_process import Child, start

WARM_UP_S = 0.5

#: Shares of its CPU by which a vCPU counts as idle, or as busy.  Clearly inside what a judge would ask for.
SETTLED_IDLE, SETTLED_BUSY = 0.02, 0.95


def spin(
    cpus: Sequence[int],
    seconds: float,
    isolate: Sequence[int] = (),
    cgroups: dict[str, str] | None = None,
    vcpus: dict[str, int] | None = None,
    policy: str = "other",
    load: dict[str, Any] | None = None,
    settle_s: float = 0.0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """One spinner on each of ``cpus`` at the same time, at ``policy`` (``other`` or ``fifo:N``).

    ``cgroups``: CPU (as text) -> cgroup of the vCPU thread that runs there, which the spinner joins; ``vcpus``: CPU ->
    number of that thread, which tells the guest from an intruder in the same cgroup.  ``isolate``: CPUs that no guest
    runs on and that get a partition of their own.  ``load``: as ``under_load`` of
    :mod:`evenkeel.probe.sample_load` takes it.  ``settle_s``: wait so long at most for a guest that is still booting.
    Returns ``{"load": text, "spins": [...], "rows": [...]}``: see :func:`_count`.
    Raises EOPNOTSUPP or EBUSY when there can be no partition, EINVAL for a CPU that may not be used.
    """
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(places(cpus, isolate, cgroups or {}))
        theirs = {cpu: [(vcpus or {})[str(cpu)]] if str(cpu) in (vcpus or {}) else [] for cpu in cpus}
        _settle({tid for tids in theirs.values() for tid in tids}, settle_s, on_progress)
        described = stack.enter_context(under_load(load))
        spinning = {}
        for cpu in cpus:
            child = _spinner(cpu, policy, found.get(cpu))
            stack.callback(child.kill)
            spinning[cpu] = Busy(child.pid, theirs[cpu], found.get(cpu))
        pause(WARM_UP_S, "warming up", on_progress)
        answer = _count(spinning, seconds, described, on_progress)
        for one in answer["spins"]:
            one["policy"] = policy
            one["placement"] = describe(found.get(one["cpu"]))
        return answer


def spin_guest(
    guest: str,
    vcpu: int,
    seconds: float,
    load: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """A busy loop inside the guest on ``vcpu``.  Returns as :func:`spin`, with one spin.

    What is counted belongs to the vCPU's thread and to the host CPU that it runs on; ticks of the guest's own kernel
    are among its timer interrupts, because the host's timer carries them.  Needs the guest agent, and ``timeout``,
    ``taskset`` and ``sh`` in the guest (busybox has them).
    """
    with under_load(load) as described:
        # It ends by itself: the agent cannot be asked to kill, and this probe may be killed.
        lasts = int(seconds + WARM_UP_S + 3)
        loop = ["timeout", "-s", "KILL", str(lasts), "taskset", "-c", str(vcpu), "sh", "-c", "while :; do :; done"]
        guest_start(guest, loop)
        started = time.monotonic()
        pause(WARM_UP_S, "warming up", on_progress)
        thread = next((one for one in threads(guest)["threads"] if one["vcpu"] == vcpu), None)
        if thread is None:
            raise ValueError("guest %s has no thread of vCPU %d" % (guest, vcpu))
        answer = _count({thread["seen"][-1]: Busy(thread["tid"])}, seconds, described, on_progress)
        # The next measurement must find the guest quiet again.
        pause(max(0.0, started + lasts + 0.5 - time.monotonic()), "letting the guest come to rest", on_progress)
        for one in answer["spins"]:
            one["policy"] = "%s:%d" % (thread["policy"], thread["priority"]) if thread["priority"] else thread["policy"]
            one["placement"] = "a busy loop in guest %s on vCPU %d" % (guest, vcpu)
        return answer


def _settle(tenants: set[int], most_s: float, on_progress: OnProgress | None) -> None:
    """Wait until each of these threads was idle, or busy, for two seconds: a guest that boots is neither."""
    deadline = time.monotonic() + most_s
    while tenants and time.monotonic() < deadline:
        before = {tid: _state(tid) for tid in tenants}
        pause(2.0, "waiting for the guest to come to rest", on_progress)
        after = {tid: _state(tid) for tid in tenants}
        used = [(after[tid].cpu_s - before[tid].cpu_s) / (after[tid].when_s - before[tid].when_s) for tid in tenants]
        if all(one < SETTLED_IDLE or one > SETTLED_BUSY for one in used):
            return


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


class Busy(NamedTuple):
    """The thread that spins on a CPU, the vCPU ``tenants`` beside it, and the cgroup that they share."""

    tid: int
    tenants: Sequence[int] = ()
    cgroup: str | None = None

    def others(self, cpu: int) -> dict[int, State]:
        """Everybody else in the cgroup whom this CPU ran last, and how far each has come."""
        found = {}
        for tid in neighbours(self.cgroup):
            if tid not in (self.tid, *self.tenants):
                stat = parse_stat(read("/proc/%d/task/%d/stat" % (tid, tid)) or "")
                # Where cgroups are not one a vCPU, the guest's other threads are here too, on CPUs of their own.
                if stat and stat.cpu == cpu:
                    with contextlib.suppress(ProcessLookupError):  # it may come and go as it likes
                        found[tid] = _state(tid)
        return found


def _count(spinning: dict[int, Busy], seconds: float, load: Load, on_progress: OnProgress | None) -> dict[str, Any]:
    """``spins``: for each CPU what happened there and to the thread that spun; to the ``tenants`` beside it (the vCPU
    thread: all zero while its guest is idle); and to ``intruders``, with ``tid`` and ``name``: who else ran there from
    the same cgroup.  ``rows``: what grew in /proc/interrupts on any CPU.
    """
    begin = {
        cpu: (_state(one.tid), [_state(tenant) for tenant in one.tenants], one.others(cpu))
        for cpu, one in spinning.items()
    }
    rows, start_s = interrupt_rows(), time.monotonic()
    pause(seconds, "counting" if load.text() == "idle" else "counting under load", on_progress)
    changed, real = grown(rows, interrupt_rows()), time.monotonic() - start_s
    load.check()
    described = load.text()
    spins = []
    for cpu, one in spinning.items():
        own, theirs, strange = begin[cpu]
        spins.append(
            {
                "cpu": cpu,
                "seconds": round(real, 3),
                "timer_interrupts": sum(_on(changed, cpu, "timer").values()),
                "device_interrupts": _on(changed, cpu, "device"),
                "other_interrupts": _on(changed, cpu, "other"),
                **_growth(own, _state(one.tid)),
                "tenants": [_growth(old, _state(tid)) for old, tid in zip(theirs, one.tenants)],  # noqa: B905
                "intruders": _intruders(strange, one.others(cpu), real),
            }
        )
    return {"load": described, "spins": spins, "rows": changed}


def _intruders(before: dict[int, State], after: dict[int, State], seconds: float) -> list[dict[str, Any]]:
    """Those that ran, the busiest first.  One that came meanwhile began with nothing."""
    found = []
    for tid, now in after.items():
        grew = _growth(before.get(tid, State(0, 0, 0.0, now.when_s - seconds)), now)
        if grew["cpu_seconds"] or grew["voluntary_switches"] or grew["involuntary_switches"]:
            found.append({"tid": tid, "name": (read("/proc/%d/comm" % tid) or "?").strip(), **grew})
    return sorted(found, key=lambda one: (-one["cpu_seconds"], one["tid"]))


def _growth(old: State, new: State) -> dict[str, Any]:
    """``cpu_seconds`` of ``watched_seconds``: reading /proc/interrupts under load can take seconds by itself, so each
    thread has a window of its own, a little longer than that of the interrupts."""
    return {
        "voluntary_switches": new.voluntary - old.voluntary,
        "involuntary_switches": new.involuntary - old.involuntary,
        "cpu_seconds": round(new.cpu_s - old.cpu_s, 3),
        "watched_seconds": round(new.when_s - old.when_s, 3),
    }


def _on(rows: list[dict[str, Any]], cpu: int, kind: str) -> dict[str, int]:
    """Growth on one CPU by name: the action of a device interrupt, the label of the others (RES, CAL ...)."""
    found: dict[str, int] = {}
    for row in rows:
        if row["kind"] == kind and cpu in row["counts"]:
            name = (row["action"] or row["label"]) if kind == "device" else row["label"]
            found[name] = found.get(name, 0) + row["counts"][cpu]
    return found


class State(NamedTuple):
    """Switches and CPU seconds of a thread so far, and when that was (monotonic seconds)."""

    voluntary: int
    involuntary: int
    cpu_s: float
    when_s: float


def _state(tid: int) -> State:
    """Raises ProcessLookupError when the thread is gone."""
    text = read("/proc/%d/status" % tid)
    if text is None:
        raise ProcessLookupError(errno.ESRCH, "a thread that was measured ended", "/proc/%d" % tid)
    status = parse_status(text)
    used_s, now_s = _cpu_seconds(tid), time.monotonic()
    return State(int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"]), used_s, now_s)


def _cpu_seconds(tid: int) -> float:
    """CPU time of a thread so far.

    Of a process of ours by its CPU clock, exact at any moment (MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED of
    include/linux/posix-timers.h makes the number of that clock).  A thread of another process has no such clock:
    fields 14 and 15 of its stat, in hundredths of a second, which are up to date on a nohz_full CPU as well.  Below
    ``task``, because /proc/TID/stat has the times of the whole process, even where TID is not its first thread.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime((~tid << 3) | 2)
    return cpu_seconds(read("/proc/%d/task/%d/stat" % (tid, tid)) or "")
