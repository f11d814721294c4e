"""Who the machine is: vendor, board, firmware, and whether it is a machine at all.

Source: /sys/class/dmi/id, /proc/device-tree, /etc/os-release, /proc/cpuinfo, the hypervisor's CPUID leaf.
No serial numbers or asset tags: they identify a customer, and no rule needs them.
"""

from __future__ import annotations

import os
import struct
import subprocess
from typing import Any

from evenkeel.probe.facts.cpus import first_cpu
from evenkeel.probe.facts.root import Root

DMI = "/sys/class/dmi/id"

#: Names as systemd-detect-virt(1) prints them, by the twelve bytes of CPUID leaf 0x40000000.
_CPUID_NAMES = {
    "KVMKVMKVM": "kvm",
    "Linux KVM Hv": "kvm",
    "TCGTCGTCGTCG": "qemu",
    "VMwareVMware": "vmware",
    "Microsoft Hv": "microsoft",
    "XenVMMXenVMM": "xen",
    "bhyve bhyve ": "bhyve",
    "ACRNACRNACRN": "acrn",
}


def architecture(machine: str, cpuinfo: dict[int, dict[str, str]]) -> str:
    """``uname -m``, or what the look of /proc/cpuinfo gives away where a tree does not have it."""
    if machine and machine != "ppc":  # hwloc's word for every PowerPC
        return machine
    first = first_cpu(cpuinfo)
    if "flags" in first or first.get("vendor_id") in ("GenuineIntel", "AuthenticAMD", "HygonGenuine"):
        return "x86_64" if " lm " in " %s " % first.get("flags", "lm") else "i686"
    if "CPU implementer" in first:
        return "aarch64" if first.get("CPU architecture") in ("8", "AArch64") else "armv7l"
    if first.get("cpu", "").startswith("POWER"):
        # little-endian Linux needs POWER8
        return "ppc64" if first["cpu"].startswith(("POWER4", "POWER5", "POWER6", "POWER7")) else "ppc64le"
    if "isa" in first:
        return "riscv64" if first["isa"].startswith("rv64") else "riscv32"
    return machine or "unknown"


def read_identity(root: Root, uname: dict[str, str], cpuinfo: dict[int, dict[str, str]]) -> dict[str, Any]:
    hypervisor, emulated = read_hypervisor(root, cpuinfo)
    whole = cpuinfo.get(-1, {})
    model = (root.read("/proc/device-tree/model") or "").rstrip("\0") or None
    return {
        "hostname": uname["nodename"] or None,
        "architecture": architecture(uname["machine"], cpuinfo),
        "system_vendor": _dmi(root, "sys_vendor"),
        "product": _dmi(root, "product_name") or model or whole.get("model") or whole.get("machine"),
        "board": _dmi(root, "board_name"),
        "firmware_vendor": _dmi(root, "bios_vendor"),
        "firmware_version": _dmi(root, "bios_version"),
        "firmware_date": _dmi(root, "bios_date"),
        "os_release": _pretty_name(root),
        "hypervisor": hypervisor,
        "emulated": emulated,
    }


def read_tsc_flags(cpuinfo: dict[int, dict[str, str]]) -> list[str] | None:
    """What /proc/cpuinfo says of the TSC, sorted; None where it has no flags."""
    flags = first_cpu(cpuinfo).get("flags")
    return None if flags is None else sorted(flag for flag in flags.split() if "tsc" in flag.split("_"))


def _dmi(root: Root, name: str) -> str | None:
    return (root.read("%s/%s" % (DMI, name)) or "").strip() or None


def _pretty_name(root: Root) -> str | None:
    text = root.read("/etc/os-release") or root.read("/usr/lib/os-release") or ""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'") or None
    return None


def read_hypervisor(root: Root, cpuinfo: dict[int, dict[str, str]]) -> tuple[str | None, bool | None]:
    """(``none``, ``kvm``, ``qemu``, ...; whether the CPUs are emulated in software).  None: the files do not tell."""
    name = _CPUID_NAMES.get(root.ask("cpuid-hypervisor", _cpuid_hypervisor) or "")
    name = name or root.ask("systemd-detect-virt", _detect_virt) or _from_files(root, cpuinfo)
    if name is None:
        return None, None
    # systemd-detect-virt(1): "qemu" is QEMU without KVM; with KVM it says "kvm", whatever the firmware pretends.
    return name, name == "qemu"


def _from_files(root: Root, cpuinfo: dict[int, dict[str, str]]) -> str | None:
    first = first_cpu(cpuinfo)
    if "QEMU TCG" in first.get("model name", ""):
        return "qemu"
    clocks = (root.read("/sys/devices/system/clocksource/clocksource0/available_clocksource") or "").split()
    if "kvm-clock" in clocks:
        return "kvm"
    kind = root.read("/sys/hypervisor/type")
    if kind:
        return kind
    if "hyperv_clocksource_tsc_page" in clocks:
        return "microsoft"
    flags = first.get("flags")
    if flags is None:
        return None
    if "hypervisor" not in flags.split():
        return "none"
    return "vmware" if "VMware" in (_dmi(root, "sys_vendor") or "") else None


def _cpuid_hypervisor() -> str | None:
    """The signature in leaf 0x40000000, if the cpuid module is loaded (cpuid(4))."""
    try:
        fd = os.open("/dev/cpu/0/cpuid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        registers = struct.unpack("<4I", os.pread(fd, 16, 0x40000000))
    except (OSError, struct.error):
        return None
    finally:
        os.close(fd)
    return struct.pack("<3I", *registers[1:]).rstrip(b"\0").decode("ascii", "replace")


def _detect_virt() -> str | None:
    try:
        # exit code 1 means "none", which is an answer
        done = subprocess.run(
            ["systemd-detect-virt", "--vm"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("ascii", "replace").strip() or None
