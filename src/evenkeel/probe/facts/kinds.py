"""Hybrid machines: which CPUs are of which kind.  Uniform machines get None everywhere.

Source: the core PMUs of x86 (/sys/devices/cpu_core, cpu_atom), MIDR of arm64 in /proc/cpuinfo; caches as a last
resort.  Frequencies alone decide nothing: with Intel SST-BF equal cores have different ones.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.cpulist import parse_list
from evenkeel.probe.facts.cpus import CPU
from evenkeel.probe.facts.root import Root

#: Name of the core PMU -> kind.  Source: arch/x86/events/intel/core.c.
_PMUS = {"cpu_core": "performance", "cpu_atom": "efficiency", "cpu_lowpower": "low-power"}

#: (implementer, part) -> name.  Source: arch/arm64/include/asm/cputype.h.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd80"): "Cortex-A520",
    ("0x41", "0xd81"): "Cortex-A720",
    ("0x41", "0xd82"): "Cortex-X4",
    ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd85"): "Cortex-X925",
    ("0x41", "0xd87"): "Cortex-A725",
    ("0x41", "0xd8e"): "Neoverse-N3",
}


def read_kinds(
    root: Root,
    cpus: list[dict[str, Any]],
    caches: list[dict[str, Any]],
    cpuinfo: dict[int, dict[str, str]],
) -> dict[int, str]:
    """Kind of each online CPU of a hybrid machine; empty for a uniform one."""
    numbers = [cpu["id"] for cpu in cpus if cpu["online"]]
    for kinds in (_by_pmu(root), _by_midr(numbers, cpuinfo), _by_first_level_cache(root, numbers, caches, cpuinfo)):
        if len(set(kinds.values())) > 1:
            return kinds
    return {}


def _by_pmu(root: Root) -> dict[int, str]:
    return {cpu: kind for pmu, kind in _PMUS.items() for cpu in parse_list(root.read("/sys/devices/%s/cpus" % pmu))}


def _by_midr(numbers: list[int], cpuinfo: dict[int, dict[str, str]]) -> dict[int, str]:
    kinds = {}
    for number in numbers:
        about = cpuinfo.get(number, {})
        midr = (about.get("CPU implementer", ""), about.get("CPU part", ""))
        if all(midr):
            kinds[number] = _ARM_CORES.get(midr, "implementer %s part %s" % midr)
    return kinds


def _by_first_level_cache(
    root: Root, numbers: list[int], caches: list[dict[str, Any]], cpuinfo: dict[int, dict[str, str]]
) -> dict[int, str]:
    """Intel kernels without core PMUs (before 5.13, or in a recorded tree): cores whose L1 caches differ in size are
    different cores; those with the highest nominal frequency are the performance cores."""
    if not any(about.get("vendor_id") == "GenuineIntel" for about in cpuinfo.values()):
        return {}
    shape: dict[int, list[tuple[str, int | None]]] = {number: [] for number in numbers}
    for cache in caches:
        if cache["level"] == 1:
            for number in parse_list(cache["cpus"]):
                if number in shape:
                    shape[number].append((cache["type"], cache["size_bytes"]))
    shapes = {number: tuple(sorted(seen)) for number, seen in shape.items()}
    if len(set(shapes.values())) != 2:
        return {}
    speed = {number: _nominal(root, number) for number in numbers}
    fastest = shapes[max(numbers, key=lambda number: speed[number])]
    return {number: "performance" if shapes[number] == fastest else "efficiency" for number in numbers}


def _nominal(root: Root, number: int) -> int:
    folder = "%s/cpu%d" % (CPU, number)
    return root.read_int(folder + "/acpi_cppc/nominal_freq") or root.read_int(folder + "/cpufreq/base_frequency") or 0
