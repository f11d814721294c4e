"""Threads of the kernel and of guests: which there are, how they are scheduled, and how to change that.

Helpers of the steps; must not journal and must not decide.
"""

from __future__ import annotations

import os
import re

from evenkeel.probe.failure import StepFailed, from_os_error
from evenkeel.probe.inside import inside

#: Numbers of linux/sched.h, names as the facts and plans write them.
POLICIES = {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5, "deadline": 6}
_NAMES = {number: name for name, number in POLICIES.items()}
_RESET_ON_FORK = 0x40000000
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, field 9 of /proc/PID/stat
_GUEST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")


def kernel_threads(root: str) -> list[tuple[int, str]]:
    """(process id, name) of every kernel thread, by number.  Names are whole since 5.17, cut at 15 before."""
    found = []
    for entry in os.listdir(inside(root, "/proc")):
        if entry.isdigit():
            stat = _stat(inside(root, "/proc/%s/stat" % entry))
            if stat is not None and int(stat[1][6]) & _KERNEL_THREAD:
                # The name in stat is cut for kernel threads of some versions; comm is what facts read.
                found.append((int(entry), _comm(inside(root, "/proc/%s/comm" % entry)) or stat[0]))
    return sorted(found)


def guest_process(guest: str, root: str) -> int | None:
    """Process id of the QEMU of a guest that libvirt runs, or None."""
    check_guest(guest)
    try:
        with open(inside(root, "/run/libvirt/qemu/%s.pid" % guest)) as file:
            number = file.read().strip()
    except OSError:
        return None
    return int(number) if number.isdigit() and os.path.isdir(inside(root, "/proc/" + number)) else None


def guest_threads(guest: str, root: str) -> dict[int, str]:
    """Thread id -> name, for every thread of a guest's QEMU; empty when the guest does not run."""
    process = guest_process(guest, root)
    if process is None:
        return {}
    folder = inside(root, "/proc/%d/task" % process)
    try:
        threads = sorted(int(entry) for entry in os.listdir(folder))
    except OSError:
        return {}
    names = ((thread, _comm("%s/%d/comm" % (folder, thread))) for thread in threads)
    return {thread: name for thread, name in names if name is not None}


def vcpu_thread(guest: str, vcpu: int, root: str) -> int | None:
    """Thread id of a vCPU.  libvirt lets QEMU name its threads ``CPU 1/KVM`` (``CPU 1/TCG`` in emulation)."""
    pattern = re.compile(r"CPU %d/" % vcpu)
    return next((thread for thread, name in guest_threads(guest, root).items() if pattern.match(name)), None)


def check_guest(guest: str) -> None:
    """The name becomes a file name and an argument of virsh."""
    if not _GUEST_NAME.match(guest):
        raise StepFailed("%r is not the name of a guest" % guest)


def schedule(thread: int) -> str | None:
    """``fifo:11``, or None when the thread is gone.  On the running system only."""
    try:
        policy = os.sched_getscheduler(thread) & ~_RESET_ON_FORK
        return "%s:%d" % (_NAMES.get(policy, str(policy)), os.sched_getparam(thread).sched_priority)
    except ProcessLookupError:
        return None


def set_schedule(thread: int, wanted: str) -> None:
    """``fifo:11``, ``other:0``.  Raises StepFailed."""
    policy, _, priority = wanted.partition(":")
    if policy not in POLICIES or policy == "deadline" or not priority.isdigit():
        raise StepFailed("%r is not a schedule; write policy:priority, as in fifo:11" % wanted)
    try:
        os.sched_setscheduler(thread, POLICIES[policy], os.sched_param(int(priority)))
    except ProcessLookupError:
        return
    except OSError as error:
        # CONFIG_RT_GROUP_SCHED with a cpu cgroup that has no real-time budget answers EPERM to root too (measured).
        raise from_os_error(error, "cannot give thread %d the schedule %s" % (thread, wanted)) from None


def cgroup_of(thread: int, process: int, root: str) -> str | None:
    """cgroup v2 path of a thread, ``/machine.slice/...``; None: gone, or there is no cgroup v2."""
    try:
        with open(inside(root, "/proc/%d/task/%d/cgroup" % (process, thread))) as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def _comm(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return None  # it ended meanwhile


def _stat(path: str) -> tuple[str, list[str]] | None:
    """Name, and the fields after it, of /proc/PID/stat; the name may hold blanks and parentheses."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()
