"""NUMA nodes: CPUs, memory, distances, huge pages.  Source: /sys/devices/system/node, /sys/kernel/mm/hugepages."""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list, parse_mask
from evenkeel.probe.facts.root import Root

NODE = "/sys/devices/system/node"


def read_nodes(root: Root, online: frozenset[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Nodes in order of their number with their CPUs that are online, and remarks on what firmware got wrong.

    Old kernels list offline CPUs too, newer ones do not; the facts never do.
    A node whose CPUs an earlier node already has is left out, as hwloc does: no kernel builds such nodes from a
    correct SRAT, and a CPU with two homes has none.
    """
    nodes: list[dict[str, Any]] = []
    remarks = []
    taken: dict[int, int] = {}
    for number in root.numbered(NODE, "node"):
        folder = "%s/node%d" % (NODE, number)
        cpus = _cpus(root, folder) & online
        homes = sorted({taken[cpu] for cpu in cpus if cpu in taken})
        if homes:
            remarks.append(
                "node %d is left out: firmware gives it CPUs %s, which node %s already has"
                % (number, format_list(cpu for cpu in cpus if cpu in taken), format_list(homes))
            )
            continue
        taken.update(dict.fromkeys(cpus, number))
        nodes.append(
            {
                "id": number,
                "cpus": format_list(cpus),
                "memory_bytes": _total(root.read(folder + "/meminfo")),
                "huge_pages": read_huge_pages(root, folder + "/hugepages"),
            }
        )
    _add_distances(root, nodes, root.numbered(NODE, "node"))
    return nodes, remarks


def read_huge_pages(root: Root, folder: str) -> list[dict[str, Any]]:
    """Pools in a ``hugepages`` folder, ascending by page size in bytes."""
    pools = []
    for kilobytes in sorted(int(n[10:-2]) for n in root.listdir(folder) if re.match(r"hugepages-\d+kB\Z", n)):
        pool = "%s/hugepages-%dkB" % (folder, kilobytes)
        pools.append(
            {
                "page_bytes": kilobytes << 10,
                "total": root.read_int(pool + "/nr_hugepages") or 0,
                "free": root.read_int(pool + "/free_hugepages"),
            }
        )
    return pools


def read_memory(root: Root, nodes: list[dict[str, Any]]) -> int:
    """Bytes of memory that the kernel manages; the sum of the nodes where /proc/meminfo is missing."""
    return _total(root.read("/proc/meminfo")) or sum(node["memory_bytes"] for node in nodes)


def _cpus(root: Root, folder: str) -> frozenset[int]:
    text = root.read(folder + "/cpulist")
    return parse_list(text) if text is not None else parse_mask(root.read(folder + "/cpumap"))


def _total(meminfo: str | None) -> int:
    match = re.search(r"\bMemTotal:\s*(\d+) kB", meminfo or "")
    return int(match.group(1)) << 10 if match else 0


def _add_distances(root: Root, nodes: list[dict[str, Any]], numbers: list[int]) -> None:
    """The row of a node has one number for each online node, in order of the node numbers."""
    kept = {node["id"] for node in nodes}
    for node in nodes:
        row = (root.read("%s/node%d/distance" % (NODE, node["id"])) or "").split()
        if len(row) == len(numbers) and all(word.isdigit() for word in row):
            node["distances"] = {str(number): int(row[i]) for i, number in enumerate(numbers) if number in kept}
