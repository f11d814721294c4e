"""Step ``partition``: a remote cgroup v2 partition over the cgroup of one vCPU thread.

``{"kind": "partition", "guest": "plc", "vcpu": 1, "value": "2-3"}``.  ``cpuset.cpus.exclusive`` on every ancestor,
then ``cpuset.cpus.partition`` of the leaf: a local partition (without ``exclusive``) is silently invalidated as soon
as a sibling lists one of its CPUs (measured on 6.12).  Needs Linux 6.7 and cgroup v2.
"""

from __future__ import annotations

import json
import os
from typing import Any

from evenkeel.probe import tasks
from evenkeel.probe.compare import cpu_list, matches
from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.failure import StepFailed, from_os_error
from evenkeel.probe.inside import inside
from evenkeel.probe.steps.files import read_value, write_value

PERSISTENT = False
MOUNT = "/sys/fs/cgroup"
EXCLUSIVE = "cpuset.cpus.exclusive"
PARTITION = "cpuset.cpus.partition"


def snapshot(step: dict[str, Any], root: str) -> str | None:
    """JSON: ``leaf``: the cgroup; ``partition``: its state; ``exclusive``: cgroup -> CPUs, outermost first.

    None: the guest does not run.
    """
    process = tasks.guest_process(step["guest"], root)
    thread = tasks.vcpu_thread(step["guest"], step["vcpu"], root)
    leaf = tasks.cgroup_of(thread, process, root) if thread is not None and process is not None else None
    if not leaf or leaf == "/":
        return None
    exclusive = {}
    for cgroup in _lineage(leaf):
        value = read_value("%s%s/%s" % (MOUNT, cgroup, EXCLUSIVE), root)
        if value is None:
            why = "no cpuset there" if _exists(cgroup, "cgroup.procs", root) else "no cgroup v2 there"
            raise StepFailed(
                "%s; remote partitions need Linux 6.7, cgroup v2 and the cpuset controller" % why, 2, MOUNT + cgroup
            )
        exclusive[cgroup] = value
    state = read_value("%s%s/%s" % (MOUNT, leaf, PARTITION), root)
    return json.dumps({"leaf": leaf, "partition": (state or "").strip(), "exclusive": exclusive})


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    found = json.loads(state or "{}")
    return (
        bool(found)
        and found["partition"] == "isolated"  # and not "isolated invalid (...)"
        and matches(found["exclusive"][found["leaf"]], step["value"], "cpulist")
    )


def shown(step: dict[str, Any], state: str | None) -> str | None:
    """The CPUs of a valid partition; otherwise what the kernel says about it."""
    if state is None:
        return None
    found = json.loads(state)
    return str(found["exclusive"][found["leaf"]].strip() if found["partition"] == "isolated" else found["partition"])


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    found = json.loads(state or "{}")
    if not found:
        raise StepFailed("the guest %s does not run, or its vCPU %d has no thread" % (step["guest"], step["vcpu"]), 3)
    leaf, wanted = found["leaf"], cpu_list(step["value"])
    if found["partition"] != "member":
        _write("%s/%s" % (leaf, PARTITION), "member", root)  # an invalid one is not revived by writing its CPUs
    for cgroup, value in found["exclusive"].items():
        had = cpu_list(value)
        needed = wanted if cgroup == leaf else had | wanted
        if had != needed:
            _write("%s/%s" % (cgroup, EXCLUSIVE), format_list(needed), root)
    _write("%s/%s" % (leaf, PARTITION), "isolated", root)
    now = (read_value("%s%s/%s" % (MOUNT, leaf, PARTITION), root) or "").strip()
    if now != "isolated":
        raise StepFailed(
            "the partition of CPUs %s reads %r; with isolcpus=domain on the command line the kernel refuses partitions"
            % (step["value"], now),
            22,
            MOUNT + leaf,
        )


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    found = json.loads(state or "{}")
    if not found:
        return
    leaf = found["leaf"]
    now = read_value("%s%s/%s" % (MOUNT, leaf, PARTITION), root)
    if now is not None and now.strip() != found["partition"]:
        kind = found["partition"].split(" ")[0]
        _write("%s/%s" % (leaf, PARTITION), "member", root)
        if kind != "member":
            _write("%s/%s" % (leaf, EXCLUSIVE), found["exclusive"][leaf].strip(), root)
            _write("%s/%s" % (leaf, PARTITION), kind, root)
    for cgroup, old in reversed(list(found["exclusive"].items())):
        value = read_value("%s%s/%s" % (MOUNT, cgroup, EXCLUSIVE), root)
        if value is not None and value != old:  # None: gone with its guest
            _write("%s/%s" % (cgroup, EXCLUSIVE), old.strip(), root)


def _lineage(leaf: str) -> list[str]:
    """Every cgroup from below the root down to the leaf: what must list the CPUs, outermost first."""
    parts = leaf.strip("/").split("/")
    return ["/" + "/".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _exists(cgroup: str, name: str, root: str) -> bool:
    return os.path.exists(inside(root, "%s%s/%s" % (MOUNT, cgroup, name)))


def _write(below: str, value: str, root: str) -> None:
    try:
        write_value(MOUNT + below, value + "\n", root)
    except OSError as error:
        raise from_os_error(error, "cannot write %r" % value, MOUNT + below) from None
