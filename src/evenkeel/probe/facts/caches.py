"""Caches and who shares them.

Source: /sys/devices/system/cpu/cpuN/cache (Documentation/ABI/testing/sysfs-devices-system-cpu).
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.facts.cpus import CPU, shared
from evenkeel.probe.facts.root import Root

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TYPES = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}


def read_caches(root: Root, cpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each cache once, sorted by level, type and first CPU.

    An index folder is read for one CPU of those that share it: the kernel fills shared_cpu_map for all of them at
    once (cache_shared_cpu_map_setup() in drivers/base/cacheinfo.c), and on 256 CPUs this saves thousands of reads.
    """
    caches: dict[tuple[int, str, frozenset[int]], dict[str, Any]] = {}
    covered: dict[int, set[int]] = {}
    for cpu in (cpu["id"] for cpu in cpus if cpu["online"]):
        folder = "%s/cpu%d/cache" % (CPU, cpu)
        for index in root.numbered(folder, "index"):
            if cpu in covered.get(index, ()):
                continue
            here = "%s/index%d" % (folder, index)
            level = root.read_int(here + "/level")
            kind = _TYPES.get(root.read(here + "/type") or "")
            if level is None or kind is None:
                continue
            sharing = shared(root, here, "shared_cpu_map", "shared_cpu_list") | {cpu}
            covered.setdefault(index, set()).update(sharing)
            key = (level, kind, sharing)
            if key not in caches:
                caches[key] = {
                    "level": level,
                    "type": kind,
                    "size_bytes": _size(root.read(here + "/size")),
                    "line_bytes": root.read_int(here + "/coherency_line_size") or None,
                    "ways": root.read_int(here + "/ways_of_associativity") or None,
                    "cpus": format_list(sharing),
                    "id": root.read_int(here + "/id"),
                }
    return [caches[key] for key in sorted(caches, key=lambda key: (key[0], key[1], min(key[2])))]


def _size(text: str | None) -> int | None:
    """``"1024K"`` in bytes.  Device trees that give no size print ``0K`` or nothing at all: not known."""
    match = re.match(r"(\d+)([KMG]?)\Z", text or "")
    return int(match.group(1)) * _UNITS[match.group(2)] or None if match else None
