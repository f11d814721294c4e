"""What the kernel's text files about interrupts, threads and memory say: parsers only, text in, plain data out.

Must not open anything, so that recorded files and damaged ones can be given to it; a line that does not have the
expected shape is left out, never an error.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

#: Number in field 41 (policy) of /proc/PID/stat -> name; sched(7).  4 is SCHED_ISO, which no kernel has.
POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline", 7: "ext"}
#: include/linux/sched.h: this is a kernel thread (field 9, flags).
PF_KTHREAD = 0x00200000
#: Interrupts that are the CPU's own timer.  "LOC" on x86 and POWER, a numbered per-CPU interrupt elsewhere.
TIMERS = ("LOC", "arch_timer", "riscv-timer")

_CPU = re.compile(r"CPU(\d+)\Z")
#: "PCI-MSIX-0000:00:01.0 0-edge virtio0" and "GICv3 27 Level arch_timer": what follows the type is the action.
_ACTION = re.compile(r"\S+\s+(?:\d+-\S+|\d+\s+(?:Edge|Level|None))\s+(\S.*)\Z")
_NODE_PAGES = re.compile(r"N(\d+)=(\d+)\Z")


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that are of use here (proc(5)); ``cpu`` is where the thread ran last.

    ``ticks``: CPU time so far, of user and kernel, in ticks of the clock (SC_CLK_TCK a second).  ``began``: ticks from
    the boot to its start; with it a process id is unique until the next boot.
    """

    name: str
    flags: int
    ticks: int
    began: int
    cpu: int
    priority: int  # real-time priority, 0 for the other policies
    policy: str


def parse_stat(text: str) -> Stat | None:
    """None for a text that is no stat line.  The name may hold blanks and parentheses, so it ends at the last ``)``."""
    head, found, tail = text.rpartition(")")
    fields = tail.split()
    try:
        if not found or len(fields) < 39:
            return None
        return Stat(
            name=head.partition("(")[2],
            flags=int(fields[6]),
            ticks=int(fields[11]) + int(fields[12]),
            began=int(fields[19]),
            cpu=int(fields[36]),
            priority=int(fields[37]),
            policy=POLICIES.get(int(fields[38]), fields[38]),
        )
    except ValueError:
        return None


def cpu_seconds(stat: str) -> float:
    """CPU time so far of what this stat line is about; 0 of none."""
    found = parse_stat(stat)
    return found.ticks / os.sysconf("SC_CLK_TCK") if found else 0.0


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status as a dictionary."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, colon, value in pairs if colon}


def parse_interrupts(text: str) -> dict[str, dict[str, Any]]:
    """/proc/interrupts: label -> {"counts": {cpu: count}, "action": text}.

    Rows without a column for each online CPU (ERR, MIS) are left out: they say nothing about a CPU.
    """
    lines = text.splitlines()
    header = lines[0].split() if lines else []
    matches = [_CPU.match(word) for word in header]
    cpus = [int(match.group(1)) for match in matches if match]
    if not cpus or len(cpus) != len(header):
        return {}
    rows = {}
    for line in lines[1:]:
        label, colon, rest = line.partition(":")
        words = rest.split(None, len(cpus))
        numbers = words[: len(cpus)]
        if not colon or len(numbers) < len(cpus) or not all(word.isdecimal() for word in numbers):
            continue
        about = words[len(cpus)].strip() if len(words) > len(cpus) else ""
        match = _ACTION.match(about)
        rows[label.strip()] = {
            "counts": {cpu: int(numbers[column]) for column, cpu in enumerate(cpus)},
            # As /sys/kernel/irq/N/actions writes several handlers of one line: "a,b".
            "action": (match.group(1) if match else about).replace(", ", ","),
        }
    return rows


def row_kind(label: str, action: str) -> str:
    """``timer``, ``device`` (a numbered interrupt) or ``other`` (RES, CAL, TLB, IWI ...: sent by other CPUs)."""
    if label in TIMERS or action in TIMERS:
        return "timer"
    return "device" if label.isdecimal() else "other"


def parse_numa_maps(text: str) -> list[dict[str, Any]]:
    """/proc/PID/numa_maps: one entry a mapping that has pages, with ``page_bytes`` and pages of that size a node."""
    mappings = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        nodes, page_bytes, file = {}, 4096, None
        for word in words[2:]:
            pages = _NODE_PAGES.match(word)
            key, _, value = word.partition("=")
            if pages:
                nodes[int(pages.group(1))] = int(pages.group(2))
            elif key == "kernelpagesize_kB" and value.isdecimal():
                page_bytes = int(value) * 1024
            elif key == "file":
                file = value
        if nodes:
            where = {"policy": words[1], "file": file, "huge": "huge" in words[2:]}
            mappings.append({**where, "page_bytes": page_bytes, "nodes": nodes})
    return mappings
