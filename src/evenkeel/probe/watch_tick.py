"""What no event tells and somebody must look at every second: interrupts that fired, threads of guests, other owners.

Cheap: for each guest two system calls a thread, for the processes only those that are new.  Must not judge; what
changed since the look before is an event.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Sequence

from evenkeel.probe import sample
from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.facts.owners import DAEMONS
from evenkeel.probe.inside import inside
from evenkeel.probe.sample_proc import POLICIES, parse_interrupts

_RESET_ON_FORK = 0x40000000
_WIDTH = 11  # of a column of /proc/interrupts
PROFILE = "/etc/tuned/active_profile"


class Interrupts:
    """Device interrupts that fired on the CPUs that must be quiet, from one look to the next."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] | None = None
        self._at = 0.0

    def look(self, cpus: Sequence[int]) -> dict[str, Any] | None:
        """``{"rows": [...], "seconds": n}`` as the operation `interrupts` gives them, when one fired on ``cpus``."""
        rows, now = parse_columns(sample.read("/proc/interrupts") or "", set(cpus)), time.monotonic()
        before, self._rows = self._rows, rows
        seconds, self._at = now - self._at, now
        if before is None:
            return None
        # A CPU that was offline has no column; when it comes back, its counts are no growth.
        wanted = set(cpus) & _columns(before) & _columns(rows)
        grown = []
        for row in sample.grown(before, rows):
            counts = {cpu: count for cpu, count in row["counts"].items() if cpu in wanted}
            if row["kind"] == "device" and counts:
                grown.append(dict(row, counts=counts))
        return {"kind": "interrupts", "rows": grown, "seconds": round(seconds, 3)} if grown else None


class Guests:
    """Where and how the threads of each guest may run."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}
        self._processes: dict[str, int] = {}

    def look(self, guests: Sequence[str]) -> list[str]:
        """Names of the guests whose process, vCPUs or placement are not those of the look before."""
        changed = []
        for guest in guests:
            now = self._signature(guest)
            if guest in self._seen and self._seen[guest] != now:
                changed.append(guest)
            self._seen[guest] = now
        return changed

    def _signature(self, guest: str) -> Any:
        """vCPU by vCPU; of the other threads only which placements there are: workers come and go all the time."""
        process = self._process(guest)
        vcpus, others = {}, set()
        for thread in _tasks(process) if process else ():
            with contextlib.suppress(OSError):  # it ended
                name = _read("/proc/%d/task/%d/comm" % (process, thread)).rstrip("\n")
                policy = POLICIES.get(os.sched_getscheduler(thread) & ~_RESET_ON_FORK, "?")
                where = (policy, os.sched_getparam(thread).sched_priority, format_list(os.sched_getaffinity(thread)))
                if name.startswith("CPU "):
                    vcpus[name] = where
                else:
                    others.add(where)
        return process, vcpus, others

    def _process(self, guest: str) -> int:
        """The process id that libvirt wrote down; without it the one found before.  0: there is none."""
        for folder in ("/run/libvirt/qemu", "/var/run/libvirt/qemu"):
            text = (sample.read("%s/%s.pid" % (folder, guest)) or "").strip()
            if text.isdecimal() and os.path.isdir("/proc/" + text):
                return int(text)
        return 0


class Owners:
    """Daemons that tune a machine, by the name of their process, and the profile that TuneD is told to use."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._names: dict[int, str] = {}
        self._young: set[int] = set()
        self.running: set[str] = set()
        self.profile: str | None = None
        self._first = True

    def look(self) -> list[dict[str, Any]]:
        """Each daemon that started or ended, and each other profile, since the look before; at the first: all."""
        events: list[dict[str, Any]] = []
        running = self._scan()
        for name in sorted(running ^ self.running):
            events.append({"kind": "owner", "name": name, "running": name in running})
        profile = (sample.read(inside(self._root, PROFILE)) or "").strip() or None
        if profile != self.profile and not self._first:
            events.append({"kind": "profile", "profile": profile, "before": self.profile})
        self.running, self.profile, self._first = running, profile, False
        return events

    def _scan(self) -> set[str]:
        """Reads the names of new processes only; twice, because a process has its parent's name until it executes."""
        present = {int(name) for name in os.listdir(inside(self._root, "/proc")) if name.isdecimal()}
        for gone in self._names.keys() - present:
            del self._names[gone]
        new = present - self._names.keys()
        for process in new | (self._young & present):
            self._names[process] = (sample.read(inside(self._root, "/proc/%d/comm" % process)) or "").rstrip("\n")
        self._young = new
        return {DAEMONS[name] for name in self._names.values() if name in DAEMONS}


def parse_columns(text: str, cpus: set[int]) -> dict[str, dict[str, Any]]:
    """As :func:`parse_interrupts`, with the counts of ``cpus`` alone: on 256 CPUs a hundredth of the work.

    The kernel prints each count eleven characters wide (show_interrupts(), kernel/irq/proc.c).  A text that is not
    laid out so is parsed whole.
    """
    lines = text.splitlines()
    header = lines[0].split() if lines else []
    places = [(int(word[3:]), place) for place, word in enumerate(header) if word[3:].isdecimal()]
    wanted = [(cpu, _WIDTH * place) for cpu, place in places if cpu in cpus]
    rows = {}
    for line in lines[1:]:
        label, colon, counts = line.partition(":")
        found = {cpu: counts[start : start + _WIDTH].strip() for cpu, start in wanted}
        if not colon or len(counts) < _WIDTH * len(header):
            continue  # ERR and MIS have one number for all CPUs
        if counts[_WIDTH * len(header) :][:1].strip() or not all(count.isdecimal() for count in found.values()):
            return parse_interrupts(text)
        # What stands behind the counts is parsed as a row of a machine with one CPU.
        tail = "CPU0\n%s: 0 %s" % (label, counts[_WIDTH * len(header) :])
        action = next((row["action"] for row in parse_interrupts(tail).values()), "")
        rows[label.strip()] = {"counts": {cpu: int(count) for cpu, count in found.items()}, "action": action}
    return rows


def _columns(rows: dict[str, dict[str, Any]]) -> set[int]:
    return {cpu for row in rows.values() for cpu in row["counts"]}


def _tasks(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return sorted(int(name) for name in os.listdir("/proc/%d/task" % process))
    return []


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()
