"""Which guests run on a machine, and on which CPUs their vCPUs may run now.

Every QEMU process, whoever started it.  Reads only; must not decide what may be done beside them.
"""

from __future__ import annotations

import os
import re
from typing import Any

from evenkeel.probe.compare import cpu_list
from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.inside import inside

_QEMU = re.compile(r"qemu|kvm\Z")
_VCPU = re.compile(r"CPU \d+/")
_NAME = re.compile(r"(?:\A|,)guest=([^,]+)")


def running_guests(root: str = "/") -> list[dict[str, Any]]:
    """Operation: ``name``, ``process`` and ``cpus`` (kernel's list format) of each guest, by name.

    A process whose threads have no names (started by hand, without debug-threads=on) gives the CPUs of them all.
    """
    found = []
    for entry in os.listdir(inside(root, "/proc")):
        folder = inside(root, "/proc/%s" % entry)
        if entry.isdigit() and _QEMU.match(_text(folder + "/comm")):
            cpus = _vcpu_cpus(folder)
            if cpus:
                found.append({"name": _name(folder, entry), "process": int(entry), "cpus": format_list(cpus)})
    return sorted(found, key=lambda guest: (guest["name"], guest["process"]))


def _vcpu_cpus(folder: str) -> set[int]:
    try:
        threads = os.listdir(folder + "/task")
    except OSError:
        return set()  # it ended meanwhile
    vcpus: set[int] = set()
    others: set[int] = set()
    for thread in threads:
        place = "%s/task/%s" % (folder, thread)
        cpus = _allowed(place)
        others |= cpus
        if _VCPU.match(_text(place + "/comm")):
            vcpus |= cpus
    return vcpus or others


def _allowed(place: str) -> set[int]:
    for line in _text(place + "/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return cpu_list(line.partition(":")[2])
    return set()


def _name(folder: str, process: str) -> str:
    words = _text(folder + "/cmdline").split("\0")
    if "-name" in words[:-1]:
        value = words[words.index("-name") + 1]
        named = _NAME.search(value)
        return named.group(1) if named else value.partition(",")[0]
    return "process " + process


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""
