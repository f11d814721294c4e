"""Control groups: the version, and the cpuset partitions that CPUs are already promised to.

Source: /proc/mounts, /sys/fs/cgroup (Documentation/admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.root import Root

CGROUP = "/sys/fs/cgroup"


def read_version(root: Root) -> int | None:
    """2 when /sys/fs/cgroup itself is the unified hierarchy; 1 for any other mount of controllers."""
    kinds = {}
    for line in (root.read("/proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] in ("cgroup", "cgroup2"):
            kinds[fields[1]] = fields[2]
    if kinds.get(CGROUP) == "cgroup2":
        return 2
    return 1 if "cgroup" in kinds.values() else None


def read_partitions(root: Root) -> list[dict[str, Any]]:
    """Groups that are a partition or claim CPUs for themselves, sorted by path."""
    if read_version(root) != 2:
        return []
    partitions: list[dict[str, Any]] = []
    _walk(root, "", partitions)
    return sorted(partitions, key=lambda partition: str(partition["path"]))


def _walk(root: Root, path: str, partitions: list[dict[str, Any]]) -> None:
    folder = CGROUP + path
    if not root.exists(folder + "/cpuset.cpus.effective"):
        return  # the cpuset controller ends here: no group below can have it
    state = root.read(folder + "/cpuset.cpus.partition") or "member"  # the root has none
    exclusive = root.read(folder + "/cpuset.cpus.exclusive")  # since 6.7
    if state != "member" or exclusive:
        partitions.append(
            {
                "path": path,
                "cpus": format_list(parse_list(root.read(folder + "/cpuset.cpus"))),
                "exclusive": format_list(parse_list(exclusive)),
                "effective": format_list(parse_list(root.read(folder + "/cpuset.cpus.effective"))),
                "state": state,
            }
        )
    for name in root.folders(folder):
        _walk(root, "%s/%s" % (path, name), partitions)


def read_cpusets(root: Root) -> list[dict[str, Any]]:
    """Slices whose CPUs somebody restricted (``AllowedCPUs=`` of systemd), sorted by path."""
    if read_version(root) != 2:
        return []
    found: list[dict[str, Any]] = []
    waiting = [""]
    while waiting:
        path = waiting.pop()
        folder = CGROUP + path
        if not root.exists(folder + "/cpuset.cpus.effective"):
            continue
        cpus = format_list(parse_list(root.read(folder + "/cpuset.cpus")))
        if cpus:
            effective = format_list(parse_list(root.read(folder + "/cpuset.cpus.effective")))
            found.append({"path": path, "cpus": cpus, "effective": effective})
        waiting += ["%s/%s" % (path, name) for name in root.folders(folder) if name.endswith(".slice")]
    return sorted(found, key=lambda group: str(group["path"]))
