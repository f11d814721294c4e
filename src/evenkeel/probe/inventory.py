"""Inventory: what tells this machine from all others, and what of it no tuning rule needs but a person searches for.

Serial numbers, flags of the processor, link speeds.  Beside the facts, not in them: facts travel in reports and plans,
and a serial number identifies a customer.  Only a lab's pool asks for it.  Read-only, and nothing that changes by
itself but the links.
Source: /sys/class/dmi/id, /proc/device-tree/serial-number, /proc/cpuinfo, /sys/class/net/NAME/speed.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.cpus import first_cpu, read_cpuinfo
from evenkeel.probe.facts.devices import NET
from evenkeel.probe.facts.identity import DMI
from evenkeel.probe.facts.root import Root

#: /proc/cpuinfo "CPU implementer" of arm64 (arch/arm64/include/asm/cputype.h, Linux 6.12).
_IMPLEMENTERS = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x50: "APM",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}


def read_inventory(root: str = "/") -> dict[str, Any]:
    """The Inventory document of the machine at ``root``.  Serial numbers are readable by its root only."""
    return inventory_of(Root(root))


def inventory_of(root: Root) -> dict[str, Any]:
    """As :func:`read_inventory`, through a root that the caller made."""
    cpuinfo = read_cpuinfo(root)
    first = first_cpu(cpuinfo)
    flags = first.get("flags") or first.get("Features") or cpuinfo.get(-1, {}).get("features") or ""
    serials = {
        "system": root.read(DMI + "/product_serial") or root.read("/proc/device-tree/serial-number"),
        "board": root.read(DMI + "/board_serial"),
        "chassis": root.read(DMI + "/chassis_serial"),
    }
    return {
        "kind": "Inventory",
        "version": 1,
        "uuid": _clean(root.read(DMI + "/product_uuid")),
        "serials": {name: clean for name, clean in ((name, _clean(text)) for name, text in serials.items()) if clean},
        "cpu_vendor": _vendor(first, cpuinfo.get(-1, {})),
        "cpu_flags": sorted(set(flags.split())),
        "link_mbps": _speeds(root),
    }


def _clean(text: str | None) -> str | None:
    return (text or "").rstrip("\0").strip() or None


def _vendor(first: dict[str, str], whole: dict[str, str]) -> str | None:
    if "vendor_id" in first or "vendor_id" in whole:
        return first.get("vendor_id") or whole.get("vendor_id")
    if "CPU implementer" in first:
        try:
            return _IMPLEMENTERS.get(int(first["CPU implementer"], 0))
        except ValueError:
            return None
    return "IBM" if first.get("cpu", "").startswith("POWER") else None


def _speeds(root: Root) -> dict[str, int]:
    """Speeds of links that are up, in Mbit/s.  The kernel answers EINVAL or -1 for others (ABI sysfs-class-net)."""
    speeds: dict[str, int] = {}
    for name in root.listdir(NET):
        folder = "%s/%s" % (NET, name)
        if name == "lo" or not root.is_folder(folder) or root.link_target(folder + "/device") is None:
            continue
        speed = root.read_int(folder + "/speed")
        if speed is not None and speed > 0:
            speeds[name] = speed
    return speeds
