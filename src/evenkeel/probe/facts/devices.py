"""Network interfaces and disks, each tied to its PCI function, its NUMA node and its interrupts.

Source: /sys/class/net, /sys/class/block.  Virtual disks (loop, device mapper, RAM) are left out: they have no
interrupt and no place.  Virtual interfaces are kept, because bridges and bonds matter to a plan.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.network import read_channels, read_ptp_clock
from evenkeel.probe.facts.pci import interrupts_of, pci_parent
from evenkeel.probe.facts.root import Root

NET = "/sys/class/net"
BLOCK = "/sys/class/block"

#: Drivers of a disk as such.  The one that owns queues and interrupts is further up.
_DISK_DRIVERS = ("sd", "sr", "st", "ses")


def read_nics(root: Root, node_of: dict[str, int | None], actions: dict[int, str]) -> list[dict[str, Any]]:
    """Every interface but loopback, sorted by name.  ``actions``: interrupt number -> action."""
    nics: list[dict[str, Any]] = []
    for name in root.listdir(NET):
        folder = "%s/%s" % (NET, name)
        if name == "lo" or not root.is_folder(folder):
            continue  # bonding_masters is a file among the interfaces
        place = root.canonical(folder)
        pci = pci_parent(root, place)
        queues = folder + "/queues"
        mac = root.read(folder + "/address")
        nics.append(
            {
                "name": name,
                "pci": pci,
                "driver": root.link_name(folder + "/device/driver"),
                "node": node_of.get(pci) if pci else _node_above(root, place),
                "mac": mac if mac and mac.strip("0:") else None,
                "rx_queues": len(root.numbered(queues, "rx-")),
                "tx_queues": len(root.numbered(queues, "tx-")),
                "operstate": root.read(folder + "/operstate"),
                "interrupts": _actions(root, pci, actions),
                "channels": read_channels(root, name) if pci else None,
                "ptp_clock": read_ptp_clock(root, folder),
            }
        )
    return nics


def read_blocks(root: Root, node_of: dict[str, int | None], actions: dict[int, str]) -> list[dict[str, Any]]:
    """Every disk that is a device, sorted by name.  Partitions and virtual disks have no ``device``."""
    blocks: list[dict[str, Any]] = []
    for name in root.listdir(BLOCK):
        folder = "%s/%s" % (BLOCK, name)
        if root.link_target(folder + "/device") is None or root.read(folder + "/hidden") == "1":
            continue  # hidden: one path of a multipath NVMe disk
        place = _controller(root, root.canonical(folder))
        pci = pci_parent(root, place)
        sectors = root.read_int(folder + "/size")
        rotational = root.read(folder + "/queue/rotational")
        blocks.append(
            {
                "name": name,
                "pci": pci,
                "driver": _driver(root, place),
                "node": node_of.get(pci) if pci else _node_above(root, place),
                "queues": _queues(root, folder, place),
                "size_bytes": sectors * 512 if sectors is not None else None,  # 512 whatever the device's own sector
                "rotational": {"0": False, "1": True}.get(rotational or ""),
                "interrupts": _actions(root, pci, actions),
            }
        )
    return blocks


def _controller(root: Root, disk: str) -> str:
    """A multipath NVMe disk hangs below a virtual subsystem: take the place of its first controller instead."""
    subsystem = disk.rpartition("/")[0]
    if "/nvme-subsystem/" in disk:
        for number in root.numbered(subsystem, "nvme"):
            controller = root.link_target("%s/nvme%d" % (subsystem, number))
            if controller:
                return controller
    return disk


def _queues(root: Root, folder: str, controller: str) -> int:
    """Hardware queues.  Those of a multipath NVMe disk are at its hidden paths, as in nvme0/nvme0c0n1."""
    found = len(root.numbered(folder + "/mq", ""))
    if found or "/nvme-subsystem/" not in root.canonical(folder):
        return found
    namespace = folder.rpartition("n")[2]
    hidden = re.compile(r"nvme\d+c\d+n%s\Z" % re.escape(namespace))
    paths = [name for name in root.folders(controller) if hidden.match(name)]
    return len(root.numbered("%s/%s/mq" % (controller, paths[0]), "")) if paths else 0


def _driver(root: Root, device: str) -> str | None:
    """The first driver from the disk upwards that drives more than the disk itself."""
    while device.startswith("/sys/devices/"):
        driver = root.link_name(device + "/driver")
        if driver and driver not in _DISK_DRIVERS:
            return driver
        device = device.rpartition("/")[0]
    return None


def _node_above(root: Root, device: str) -> int | None:
    """Node of what is not on PCI (persistent memory, platform devices): the nearest numa_node upwards."""
    while device.startswith("/sys/devices/"):
        node = root.read_int(device + "/numa_node")
        if node is not None:
            return node if node >= 0 else None
        device = device.rpartition("/")[0]
    return None


def _actions(root: Root, pci: str | None, actions: dict[int, str]) -> list[str]:
    if pci is None or not actions:
        return []
    return [actions[number] for number in interrupts_of(root, pci) if actions.get(number)]
