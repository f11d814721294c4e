"""Programs of the host that must not wait: clock synchronisation, virtual switch, cluster; where each may run and how.

Source: /proc/PID/{status,cgroup}, the drop-in that Evenkeel writes for a unit.  No process id leaves this module.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.root import Root
from evenkeel.probe.facts.threads import POLICIES, parse_stat

#: Process names (comm).  Source: seapath/ansible#857, #985: preempted on housekeeping CPUs, they cost the clock or the
#: membership in the cluster.
NAMES = ("corosync", "ovs-vswitchd", "phc2sys", "ptp4l", "ts2phc")
#: Where systemd looks for what the owner adds to a unit; the step ``service`` writes there.
DROP_IN = "/etc/systemd/system/%s.d/50-evenkeel.conf"
#: The line of the drop-in that says what it is for: ``# evenkeel: 0-1 fifo:10``.
MARK = "# evenkeel: "

_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*(\S*)", re.MULTILINE)
_UNIT = re.compile(r"^0::.*/([^/\n]+\.service)(?:/|$)", re.MULTILINE)


def read_daemons(root: Root, processes: dict[str, list[int]]) -> list[dict[str, Any]]:
    """One entry a unit and state, sorted.  ``processes``: name -> ids, as read_processes() found them."""
    found = []
    for name, pids in sorted(processes.items()):
        for pid in pids:
            daemon = _daemon(root, name, pid)
            if daemon is not None and daemon not in found:
                found.append(daemon)
    return sorted(found, key=lambda daemon: (daemon["name"], daemon["unit"] or "", daemon["cpus"]))


def _daemon(root: Root, name: str, pid: int) -> dict[str, Any] | None:
    folder = "/proc/%d" % pid
    stat = root.read(folder + "/stat", record=False) or ""
    parsed = parse_stat(stat)
    allowed = _ALLOWED.search(root.read(folder + "/status", record=False) or "")
    if parsed is None or allowed is None:
        return None  # it ended while we looked
    cgroup = root.read(folder + "/cgroup") or ""
    root.keep(folder + "/stat", stat)
    root.keep(folder + "/status", allowed.group(0))
    _, _, priority, policy = parsed
    unit = _UNIT.search(cgroup)
    return {
        "name": name,
        "unit": unit.group(1) if unit else None,
        "policy": POLICIES.get(policy, "policy-%d" % policy),
        "priority": priority,
        "cpus": format_list(parse_list(allowed.group(1))),
        "kept": _kept(root, unit.group(1)) if unit else None,
    }


def _kept(root: Root, unit: str) -> str | None:
    """The value for which Evenkeel wrote the drop-in of this unit; None: there is none."""
    for line in (root.read(DROP_IN % unit) or "").splitlines():
        if line.startswith(MARK):
            return line[len(MARK) :].strip()
    return None
