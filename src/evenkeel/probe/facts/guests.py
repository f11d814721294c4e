"""Guests: the QEMU processes that run, thread by thread, and what libvirt has defined.

Source: /proc/PID/{stat,status,cmdline,task} (proc(5)), /etc/libvirt/qemu and /run/libvirt/qemu.
No process id leaves this module, nor the password of a console; threads that come and go with the work are left out.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.root import Root
from evenkeel.probe.facts.threads import POLICIES, parse_stat, unowned

DEFINITIONS = "/etc/libvirt/qemu"  # what libvirt starts next time
RUNNING = "/run/libvirt/qemu"  # what runs now, inside libvirt's own state

_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*(\S*)", re.MULTILINE)
_NAME = re.compile(r"(?:\Aguest=|,guest=|\A)((?:[^,=]|,,)+)(?:,|\Z)")
#: QEMU's pools: a thread is there as long as somebody waits for a disk or for a screen.
_PASSING = re.compile(r"worker\Z|pool-|vnc_worker|call_rcu|gmain|gdbus|threaded-ml|live_migration|mig/|mem-prealloc")
_VCPU = re.compile(r"CPU \d+/")
_PASSWORD = re.compile(r"(\spassw(?:or)?d=)('[^']*'|\"[^\"]*\")", re.IGNORECASE)
_DOMAIN = re.compile(r"<domain\b.*?</domain>", re.DOTALL)
_ID = re.compile(r"(<domain\b[^>]*?)\s+id=(?:'\d+'|\"\d+\")")


def read_guests(root: Root, processes: list[int]) -> list[dict[str, Any]]:
    """One entry a QEMU process, sorted by name.  ``processes``: their ids, as read_processes() found them."""
    guests = []
    for pid in processes:
        threads = _threads(root, pid)
        if threads:
            guests.append({"name": _name(root, pid), "threads": threads})
    return sorted(guests, key=lambda guest: (guest["name"], str(guest["threads"])))


def _name(root: Root, pid: int) -> str:
    """The guest's name of ``-name``, or "" where it has none."""
    path = "/proc/%d/cmdline" % pid
    words = (root.read(path, record=False) or "").split("\0")
    if "-name" not in words[:-1]:
        return ""
    given = words[words.index("-name") + 1]
    root.keep(path, "\0".join((words[0], "-name", given)))  # the rest may hold what is nobody's business
    match = _NAME.match(given)
    return match.group(1).replace(",,", ",") if match else ""


def _threads(root: Root, pid: int) -> list[dict[str, Any]]:
    """Threads with their scheduling; of several that are alike, but for vCPUs, one."""
    found: list[dict[str, Any]] = []
    for tid in root.numbered("/proc/%d/task" % pid, ""):
        folder = "/proc/%d/task/%d" % (pid, tid)
        stat = root.read(folder + "/stat", record=False) or ""
        parsed = parse_stat(stat)
        if parsed is None:
            continue
        name, _, priority, policy = parsed
        allowed = _ALLOWED.search(root.read(folder + "/status", record=False) or "")
        if allowed is None or _PASSING.match(name):
            continue
        root.keep(folder + "/stat", stat)
        root.keep(folder + "/status", allowed.group(0))
        thread = {
            "name": unowned(name),
            "policy": POLICIES.get(policy, "policy-%d" % policy),
            "priority": priority,
            "cpus": format_list(parse_list(allowed.group(1))),
        }
        if _VCPU.match(name) or thread not in found:
            found.append(thread)
    return sorted(found, key=lambda thread: (_natural(thread["name"]), thread["policy"], thread["cpus"]))


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def read_definitions(root: Root) -> list[dict[str, Any]]:
    """The domain definitions of libvirt, those of running guests too; passwords and numbers of a run are taken out."""
    found = []
    for folder, running in ((DEFINITIONS, False), (RUNNING, True)):
        names = root.listdir(folder)
        if not names and root.live and folder == DEFINITIONS and root.exists(folder):
            root.unreadable[folder] = "EACCES"  # it is never empty: libvirt keeps its networks in it
        for name in names:
            path = "%s/%s" % (folder, name)
            if not name.endswith(".xml"):
                continue
            text = root.read(path, record=False)
            if text is None:
                continue
            domain = _DOMAIN.search(text)
            xml = domain.group(0) if domain else text
            xml = _ID.sub(r"\1", _PASSWORD.sub(r"\1''", xml))
            root.keep(path, xml)
            found.append({"guest": name[:-4], "path": path, "running": running, "xml": xml})
    return found
