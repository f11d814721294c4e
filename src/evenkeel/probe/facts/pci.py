"""PCI functions: what, where, behind which IOMMU group, with which driver.

Source: /sys/bus/pci/devices (Documentation/ABI/testing/sysfs-bus-pci).  Reads no configuration space.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list, parse_mask
from evenkeel.probe.facts.root import Root

PCI = "/sys/bus/pci/devices"
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")


def read_pci(root: Root, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every function, sorted by address."""
    node_of_cpus = {parse_list(node["cpus"]): node["id"] for node in nodes} if len(nodes) > 1 else {}
    known = {node["id"] for node in nodes}
    functions = []
    for address in root.listdir(PCI):
        if not _ADDRESS.match(address):
            continue
        folder = "%s/%s" % (PCI, address)
        local = _local_cpus(root, folder)
        node = root.read_int(folder + "/numa_node")
        if node is None or node not in known:
            # -1: firmware said nothing of the node; it may still have said which CPUs are near (_PXM of the bridge)
            node = node_of_cpus.get(local)
        group = root.link_name(folder + "/iommu_group")
        functions.append(
            {
                "address": address,
                "class_code": _hexadecimal(root.read(folder + "/class"), 6),
                "vendor": _hexadecimal(root.read(folder + "/vendor"), 4),
                "device": _hexadecimal(root.read(folder + "/device"), 4),
                "node": node,
                "local_cpus": format_list(local),
                "driver": root.link_name(folder + "/driver"),
                "iommu_group": int(group) if group and group.isdigit() else None,
                "sriov_total_vfs": root.read_int(folder + "/sriov_totalvfs"),
                "sriov_vfs": root.read_int(folder + "/sriov_numvfs"),
                "physical_function": root.link_name(folder + "/physfn"),
                "reset_methods": (root.read(folder + "/reset_method") or "").split(),
            }
        )
    return functions


def pci_parent(root: Root, device: str) -> str | None:
    """Address of the PCI function that the device at ``device`` (a canonical sysfs path) is on, or None.

    The nearest one above it: a virtio NIC is a child of a virtio device, which is a child of the PCI function, and
    only the latter knows its NUMA node and its interrupts.
    """
    while device:
        device, _, name = device.rpartition("/")
        if _ADDRESS.match(name) and root.exists("%s/%s" % (PCI, name)):
            return name
    return None


def interrupts_of(root: Root, address: str) -> list[int]:
    """Numbers of the interrupts of a function, ascending: MSI vectors, or the one legacy line."""
    folder = "%s/%s" % (PCI, address)
    vectors = root.numbered(folder + "/msi_irqs", "")
    if vectors:
        return vectors
    line = root.read_int(folder + "/irq")
    return [line] if line else []


def _local_cpus(root: Root, folder: str) -> frozenset[int]:
    text = root.read(folder + "/local_cpulist")
    return parse_list(text) if text is not None else parse_mask(root.read(folder + "/local_cpus"))


def _hexadecimal(text: str | None, digits: int) -> str:
    """``"0x8086"`` -> ``"8086"``; zeros where the file is missing."""
    return (text or "").replace("0x", "", 1).lower().rjust(digits, "0")[-digits:]
