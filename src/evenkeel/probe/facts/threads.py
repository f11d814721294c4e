"""Kernel threads with their scheduling, and which daemons run.

Source: /proc/PID/stat (proc(5): fields 2 comm, 9 flags, 40 rt_priority, 41 policy), /proc/PID/status.
No process id leaves this module: facts of the same state must be the same bytes.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.root import Root

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline", 7: "ext"}

#: Threads that serve one process carry its id: kvm-pit/1234, vhost-1234, kvm-nx-lpage-recovery-1234.
_OWNER = re.compile(r"\A(kvm-pit/|kvm-nx-lpage-re\w*-|vhost-|vhost_task-)\d+")
#: What the process of a guest calls itself; on RHEL qemu-kvm, on Proxmox kvm.
_QEMU = re.compile(r"qemu|kvm\Z")
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*(\S*)", re.MULTILINE)


def read_processes(
    root: Root, daemons: frozenset[str], wanted: dict[str, list[int]] | None = None
) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """Kernel threads but kworkers, sorted by name; those of ``daemons`` that run; the ids of QEMU processes.

    ``wanted``: process names, to which the ids of those that run are added.
    kworkers come and go with the work; where they may run is decided by the workqueue masks, which are settings.
    """
    threads: list[dict[str, Any]] = []
    running: set[str] = set()
    guests: list[int] = []
    for pid in root.numbered("/proc", ""):
        folder = "/proc/%d" % pid
        stat = root.read(folder + "/stat", record=False)
        parsed = parse_stat(stat or "")
        if parsed is None:
            continue  # it ended while we looked
        name, flags, priority, policy = parsed
        if not flags & _PF_KTHREAD:
            if name in daemons:
                running.add(name)
                root.keep(folder + "/stat", stat or "")
            if _QEMU.match(name):
                guests.append(pid)
                root.keep(folder + "/stat", stat or "")
            if wanted is not None and name in wanted:
                wanted[name].append(pid)
            continue
        if name.startswith("kworker/"):
            continue
        allowed = _ALLOWED.search(root.read(folder + "/status") or "")
        if allowed is None:
            continue
        root.keep(folder + "/stat", stat or "")
        threads.append(
            {
                "name": unowned(name),
                "policy": POLICIES.get(policy, "policy-%d" % policy),
                "priority": priority,
                "cpus": format_list(parse_list(allowed.group(1))),
            }
        )
    threads.sort(key=lambda thread: (_natural(thread["name"]), thread["policy"], thread["priority"], thread["cpus"]))
    return threads, sorted(running), guests


def unowned(name: str) -> str:
    """The name of a thread without the id of the process that it serves: ``kvm-pit/1234`` -> ``kvm-pit``."""
    return _OWNER.sub(lambda match: match.group(1).rstrip("-/"), name)


def parse_stat(stat: str) -> tuple[str, int, int, int] | None:
    """(name, flags, real-time priority, policy).  The name is in parentheses and may hold any character."""
    start, end = stat.find("("), stat.rfind(")")
    fields = stat[end + 1 :].split()  # from field 3 on
    if start < 0 or len(fields) < 39 or not all(fields[index].isdecimal() for index in (6, 37, 38)):
        return None
    return stat[start + 1 : end], int(fields[6]), int(fields[37]), int(fields[38])


def _natural(name: str) -> list[Any]:
    """Sort ktimers/2 before ktimers/10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
