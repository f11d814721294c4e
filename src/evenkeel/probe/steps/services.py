"""Step ``service``: where a service of the host may run and with which schedule, now and at its next start.

``{"kind": "service", "unit": "ptp4l.service", "process": "ptp4l", "value": "0-1 fifo:10"}``; without a schedule only
the CPUs.  A drop-in tells systemd for the next start, and the threads that run are moved: nothing is restarted, which
would cost a clock its lock and a cluster its member.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from evenkeel.probe import command, tasks
from evenkeel.probe.boot_id import boot_id
from evenkeel.probe.compare import cpu_list
from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.facts.daemons import DROP_IN, MARK
from evenkeel.probe.failure import StepFailed, from_os_error
from evenkeel.probe.inside import inside
from evenkeel.probe.steps import config

PERSISTENT = True
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,200}\.service\Z")
_PROCESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
_SCHEDULE = re.compile(r"(fifo|rr):([1-9]\d?)\Z")
#: Threads that have CPUs of their own: the polling threads of OVS-DPDK.
_PLACED = re.compile(r"pmd")


def parse(value: str) -> tuple[set[int], str | None]:
    """``"0-1 fifo:10"`` -> ({0, 1}, "fifo:10").  Raises StepFailed."""
    cpus, _, schedule = value.partition(" ")
    try:
        found = cpu_list(cpus)
    except ValueError:
        found = set()
    if not found or (schedule and not _SCHEDULE.match(schedule)):
        raise StepFailed("%r is no place for a service: write CPUs and a schedule, as in 0-1 fifo:10" % value)
    return found, schedule or None


def drop_in(value: str) -> str:
    """What systemd is told (systemd.exec(5)).  An empty assignment first, since the lists of several files add up."""
    cpus, schedule = parse(value)
    lines = [MARK + value, "[Service]", "CPUAffinity=", "CPUAffinity=%s" % format_list(cpus).replace(",", " ")]
    if schedule:
        policy, _, priority = schedule.partition(":")
        lines += ["CPUSchedulingPolicy=%s" % policy, "CPUSchedulingPriority=%s" % priority]
    return "\n".join(lines) + "\n"


def snapshot(step: dict[str, Any], root: str) -> str:
    """JSON: the ``file`` (a snapshot of the step config), the ``boot``, and ``threads``: id -> [schedule, CPUs]."""
    parse(step["value"])
    _check(step)
    return json.dumps(
        {"file": config.snapshot(_file(step), root), "boot": boot_id(root), "threads": _threads(step, root)}
    )


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    found = json.loads(state or "{}")
    cpus, schedule = parse(step["value"])
    return config.content(found["file"]) == drop_in(step["value"]).encode() and all(
        cpu_list(where) <= cpus and schedule in (None, how) for how, where in found["threads"].values()
    )


def shown(step: dict[str, Any], state: str | None) -> str | None:
    """``0-1 fifo:10``; several where its threads differ."""
    found = json.loads(state or "{}")
    _, schedule = parse(step["value"])
    places = sorted({"%s %s" % (cpus, how) if schedule else cpus for how, cpus in found["threads"].values()})
    return " and ".join(places) or ("at its next start" if config.content(found["file"]) else None)


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    config.write(_file(step), json.loads(state or "{}")["file"], root)
    command.output(["systemctl", "daemon-reload"], root=root)
    cpus, schedule = parse(step["value"])
    for thread, (how, where) in json.loads(state or "{}")["threads"].items():
        if not cpu_list(where) <= cpus:
            _move(int(thread), cpus)
        if schedule not in (None, how):
            tasks.set_schedule(int(thread), schedule or how)


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    old = json.loads(state or "{}")
    file = _file(step)
    if config.snapshot(file, root) != old["file"]:
        config.undo(file, old["file"], root)
        command.output(["systemctl", "daemon-reload"], root=root)
    # After a restart its threads have other numbers, and all of them had what the first one had.
    first = next(iter(old["threads"].values()), None)
    same_boot = old["boot"] == boot_id(root)
    for thread, now in _threads(step, root).items():
        before = old["threads"].get(thread, first) if same_boot else first
        if before is None or now == before:
            continue
        _move(int(thread), cpu_list(before[1]))
        if now[0] != before[0]:
            tasks.set_schedule(int(thread), before[0])


def _file(step: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "config", "path": DROP_IN % step["unit"], "text": drop_in(step["value"])}


def _check(step: dict[str, Any]) -> None:
    if not _UNIT.match(step["unit"]) or not _PROCESS.match(step["process"]):
        raise StepFailed("%r with the process %r is not the name of a service" % (step["unit"], step["process"]))


def _threads(step: dict[str, Any], root: str) -> dict[str, list[str]]:
    """Thread id -> [schedule, CPUs] of the processes of that name in the unit.  Of the running system only."""
    found: dict[str, list[str]] = {}
    proc = inside(root, "/proc")
    if not os.path.exists(proc + "/self"):
        return found  # a recorded tree: its process ids mean nothing here
    for entry in sorted(filter(str.isdigit, os.listdir(proc)), key=int):
        here = "%s/%s" % (proc, entry)
        if _text(here + "/comm") != step["process"] or not _belongs(here, step["unit"]):
            continue
        for thread in _listed(here + "/task"):
            if _PLACED.match(_text("%s/task/%s/comm" % (here, thread))):
                continue
            try:
                how, where = tasks.schedule(int(thread)), os.sched_getaffinity(int(thread))
            except ProcessLookupError:
                continue
            if how is not None:
                found[thread] = [how, format_list(where)]
    return found


def _belongs(folder: str, unit: str) -> bool:
    """Whether a process is in the cgroup of a unit, whatever slice that is in; v1 hierarchies name it too."""
    return any(unit in line.split("/") for line in _text(folder + "/cgroup").splitlines())


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""  # it ended meanwhile


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path), key=int)
    except OSError:
        return []


def _move(thread: int, cpus: set[int]) -> None:
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        return
    except OSError as error:
        raise from_os_error(error, "cannot move thread %d to CPUs %s" % (thread, format_list(cpus))) from None
