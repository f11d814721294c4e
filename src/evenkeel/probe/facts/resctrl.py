"""Division of the shared caches (Intel RDT, AMD QoS): what the hardware offers, and how it is divided now.

Source: /sys/fs/resctrl (Documentation/filesystems/resctrl.rst).  The folder is there when the CPU can and the kernel
was built for it; it is empty until the file system is mounted.  Only control groups are read: occupancy and bandwidth
counters change by themselves and are no facts.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.root import Root

RESCTRL = "/sys/fs/resctrl"

#: Folders of the root that are no control groups.
_OTHERS = ("info", "mon_groups", "mon_data")


def read_resctrl(root: Root) -> dict[str, Any] | None:
    """None: this machine cannot divide its caches.  ``mounted`` False: it could, but nobody mounted the file system."""
    if not root.is_folder(RESCTRL):
        return None
    if not root.is_folder(RESCTRL + "/info"):
        return {"mounted": False, "caches": [], "bandwidth": None, "groups": []}
    caches = []
    bandwidth = None
    for name in root.folders(RESCTRL + "/info"):
        folder = "%s/info/%s" % (RESCTRL, name)
        closids = root.read_int(folder + "/num_closids")
        if closids is None:
            continue  # L3_MON and the like: counters
        mask = root.read(folder + "/cbm_mask")
        if mask is not None:
            caches.append(
                {
                    "name": name,
                    "closids": closids,
                    "mask": mask,
                    "least_bits": root.read_int(folder + "/min_cbm_bits") or 1,
                    "shareable": root.read(folder + "/shareable_bits") or "0",
                }
            )
        elif name == "MB":
            bandwidth = {
                "closids": closids,
                "least_percent": root.read_int(folder + "/min_bandwidth"),
                "step_percent": root.read_int(folder + "/bandwidth_gran"),
            }
    groups = [_group(root, "")]
    groups += [_group(root, name) for name in root.folders(RESCTRL) if name not in _OTHERS]
    return {"mounted": True, "caches": caches, "bandwidth": bandwidth, "groups": groups}


def _group(root: Root, name: str) -> dict[str, Any]:
    folder = "%s/%s" % (RESCTRL, name) if name else RESCTRL
    return {
        "name": name,
        "mode": root.read(folder + "/mode"),
        "cpus": format_list(parse_list(root.read(folder + "/cpus_list"))),
        "schemata": _schemata(root.read(folder + "/schemata") or ""),
    }


def _schemata(text: str) -> dict[str, dict[str, str]]:
    """``"    L3:0=7ff;1=7ff"`` -> {"L3": {"0": "7ff", "1": "7ff"}}; the values as the kernel prints them."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        name, _, values = line.strip().partition(":")
        pairs = (part.split("=", 1) for part in values.split(";") if "=" in part)
        found[name] = {domain.strip(): value.strip() for domain, value in pairs}
    return found
