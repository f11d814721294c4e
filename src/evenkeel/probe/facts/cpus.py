"""Logical CPUs: which there are, where each sits, of what kind it is.

Source: /sys/devices/system/cpu (Documentation/admin-guide/cputopology.rst), /proc/cpuinfo.
Keeps the kernel's numbers; makes none up, but for packages that firmware left unnumbered.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list, parse_mask
from evenkeel.probe.facts.root import Root

CPU = "/sys/devices/system/cpu"


def read_cpuinfo(root: Root) -> dict[int, dict[str, str]]:
    """/proc/cpuinfo by CPU number.  CPU -1 holds what is said of the machine as a whole (POWER: platform, model)."""
    cpus: dict[int, dict[str, str]] = {}
    number = -1
    for line in (root.read("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            number = -1  # an empty line ends a CPU
        elif key == "processor" and value.isdigit():
            number = int(value)
            cpus[number] = {}
        else:
            cpus.setdefault(number, {})[key] = value
    return cpus


def first_cpu(cpuinfo: dict[int, dict[str, str]]) -> dict[str, str]:
    """What /proc/cpuinfo says of the CPU with the lowest number; empty where it numbers none."""
    return next((cpuinfo[number] for number in sorted(cpuinfo) if number >= 0), {})


def shared(root: Root, folder: str, mask: str, listed: str) -> frozenset[int]:
    """A CPU set from its mask, or from the list where there is no mask.

    The mask first: on AMD family 15h, kernels of 2011 printed a shared_cpu_list that disagreed with the
    shared_cpu_map beside it, and the map was right (seen in a recorded machine).
    """
    text = root.read("%s/%s" % (folder, mask))
    return parse_mask(text) if text is not None else parse_list(root.read("%s/%s" % (folder, listed)))


def present(root: Root) -> list[int]:
    """Numbers of the CPUs that are plugged in, offline ones too."""
    listed = parse_list(root.read(CPU + "/present"))
    return sorted(listed) or root.numbered(CPU, "cpu")


def online(root: Root) -> frozenset[int]:
    """Numbers of the CPUs that run."""
    listed = root.read(CPU + "/online")
    if listed is not None:
        return parse_list(listed)
    # cpu0/online is missing where CPU 0 cannot be unplugged
    return frozenset(number for number in present(root) if root.read("%s/cpu%d/online" % (CPU, number)) != "0")


def read_cpus(root: Root, nodes: list[dict[str, Any]], cpuinfo: dict[int, dict[str, str]]) -> list[dict[str, Any]]:
    """Every present CPU in order of its number, without ``kind`` (see :mod:`~evenkeel.probe.facts.kinds`)."""
    node_of = {cpu: node["id"] for node in nodes for cpu in parse_list(node["cpus"])}
    numbers = present(root)
    running = online(root)
    cpus = []
    siblings_of: dict[int, str] = {}
    unnumbered: dict[int, frozenset[int]] = {}
    for number in numbers:
        folder = "%s/cpu%d" % (CPU, number)
        topology = folder + "/topology"
        entry: dict[str, Any] = {"id": number, "online": number in running}
        if entry["online"]:
            if number not in siblings_of:
                siblings = shared(root, topology, "thread_siblings", "thread_siblings_list") | {number}
                siblings_of.update(dict.fromkeys(siblings, format_list(siblings)))
            package = root.read_int(topology + "/physical_package_id")
            if package is not None and package < 0:
                unnumbered[number] = shared(root, topology, "core_siblings", "core_siblings_list") | {number}
            entry.update(
                package=_number(package),
                die=_number(root.read_int(topology + "/die_id")),
                cluster=_number(root.read_int(topology + "/cluster_id")),
                core=_number(root.read_int(topology + "/core_id")),
                siblings=siblings_of[number],
            )
        entry["node"] = node_of.get(number)
        entry["capacity"] = root.read_int(folder + "/cpu_capacity")
        entry["max_khz"] = root.read_int(folder + "/cpufreq/cpuinfo_max_freq")
        entry["base_khz"] = root.read_int(folder + "/cpufreq/base_frequency")
        about = cpuinfo.get(number, {})
        entry["model"] = about.get("model name") or about.get("cpu") or cpuinfo.get(-1, {}).get("cpu model")
        cpus.append(entry)
    _number_packages(cpus, unnumbered)
    return cpus


def _number(value: int | None) -> int | None:
    """-1 and 65535 (an unsigned short of -1, arm64 before 5.18) are the kernel's "not known"."""
    return None if value is None or value < 0 or value == 65535 else value


def _number_packages(cpus: list[dict[str, Any]], unnumbered: dict[int, frozenset[int]]) -> None:
    """Firmware that numbers no package (-1, seen on POWER) still says who shares one: count those from 0."""
    if len(unnumbered) != sum(cpu["online"] for cpu in cpus):
        return
    order = {group: index for index, group in enumerate(sorted(set(unnumbered.values()), key=min))}
    for cpu in cpus:
        if cpu["online"]:
            cpu["package"] = order[unnumbered[cpu["id"]]]
