"""Flat facts: a Facts document as keys and values, which predicates ask and table ``fact`` keeps.  Pure.

:data:`KEYS` is the whole vocabulary, with its meaning; docs/reference/lab-predicate.md is made from it.  A key can have
many values (``cpu.flag``, ``nic.driver``); text is lower case (ASCII), so that nobody has to know how a vendor spells.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.facts import BlockDevice, Facts
from evenkeel.documents.inventory import Inventory

Kind = Literal["text", "yes/no", "count", "size", "speed", "frequency", "version", "any"]
#: What flat facts are: of machines (:func:`flatten`) and of agents (their labels).
Flat = Mapping[str, Collection[str | float]]


@dataclass(frozen=True)
class Key:
    """``many``: a machine can have several values, and a term asks whether any of them is as wanted."""

    kind: Kind
    what: str
    many: bool = False
    facet: bool = False  # offered as a facet beside the search box


#: Without a place in the table: whoever runs an agent or owns a machine makes them up.
OPEN = "label."
_LABEL = Key("any", "anything that its owner says of it: `label.NAME`")

KEYS: dict[str, Key] = {
    "name": Key("text", "of the machine; a bare word asks for it"),
    "site": Key("text", "where it stands", facet=True),
    "state": Key("text", "ready, claimed, preparing, suspect, broken, off, retired", facet=True),
    "owner": Key("text", "principal that owns it"),
    "team": Key("text", "team that owns it", facet=True),
    "enclosure": Key("text", "name of the enclosure that it stands in"),
    "tag": Key("text", "word that its owner gave it", many=True, facet=True),
    "boot.own": Key("yes/no", "yes: who reserves it may have it booted from an image or a script of their own"),
    "arch": Key("text", "as `uname -m` prints it: x86_64, aarch64, ppc64le, s390x", facet=True),
    "virtual": Key("yes/no", "whether a hypervisor runs it", facet=True),
    "vendor": Key("text", "who made it", facet=True),
    "product": Key("text", "what the vendor calls it"),
    "board": Key("text", "name of the main board"),
    "serial": Key("text", "serial number of system or board", many=True),
    "mac": Key("text", "address of a network interface", many=True),
    "firmware.vendor": Key("text", "who made its firmware"),
    "firmware.version": Key("text", "version of its firmware, as it prints it"),
    "firmware.date": Key("text", "date of its firmware, year first: 2024-03-01"),
    "os": Key("text", "what is installed: PRETTY_NAME of /etc/os-release"),
    "cpu.vendor": Key("text", "of the processor: genuineintel, authenticamd, arm"),
    "cpu.model": Key("text", "of the processor, as /proc/cpuinfo has it", many=True, facet=True),
    "cpu.flag": Key("text", "flag of the processor in /proc/cpuinfo: avx512f, sve2", many=True),
    "cpu.kind": Key("text", "kind of core of a hybrid processor: performance, efficiency", many=True),
    "cpu.threads": Key("count", "logical CPUs that are online"),
    "cpu.cores": Key("count", "whole cores that are online"),
    "cpu.sockets": Key("count", "packages", facet=True),
    "cpu.smt": Key("yes/no", "whether a core runs more than one thread now"),
    "cpu.max": Key("frequency", "highest frequency of its fastest CPU"),
    "cpu.base": Key("frequency", "guaranteed frequency of its fastest CPU"),
    "cache.l2": Key("size", "largest second-level cache"),
    "cache.l3": Key("size", "largest third-level cache"),
    "resctrl": Key("text", "what resctrl can divide: l3, l2, mb", many=True),
    "mem": Key("size", "memory as it is built in: a server of 256GiB is `mem>=256GiB`, though its kernel has 251"),
    "mem.usable": Key("size", "memory that the kernel has, exactly"),
    "numa.nodes": Key("count", "NUMA nodes", facet=True),
    "hugepage": Key("size", "size of huge pages that it can have", many=True),
    "nic.driver": Key("text", "driver of a network interface on PCI", many=True, facet=True),
    "nic.speed": Key("speed", "speed that the link of a network interface runs at", many=True),
    "nic.count": Key("count", "network interfaces on PCI"),
    "nic.name": Key("text", "name of a network interface on PCI", many=True),
    "nic.ptp": Key("yes/no", "whether a network interface has a clock of its own"),
    "sriov.vfs": Key("count", "virtual functions that one device can have at most", many=True),
    "pci.id": Key("text", "vendor and device of a PCI function: 15b3:101d", many=True),
    "pci.class": Key("text", "class of a PCI function, six digits: 020000 is Ethernet", many=True),
    "pci.driver": Key("text", "driver that a PCI function is bound to", many=True),
    "disk.size": Key("size", "of one block device", many=True),
    "disk.total": Key("size", "of all block devices"),
    "disk.count": Key("count", "block devices"),
    "disk.kind": Key("text", "nvme, ssd or hdd", many=True, facet=True),
    "disk.driver": Key("text", "driver of a block device", many=True),
    "kernel.version": Key("version", "of the running kernel; `kernel.version>=6.12` compares numbers"),
    "kernel.rt": Key("yes/no", "whether the running kernel is PREEMPT_RT"),
    "kernel.installed": Key("version", "a kernel that is installed", many=True),
    "kernel.config": Key("text", "option of the running kernel that is built in or a module: preempt_rt", many=True),
    "boot.loader": Key("text", "grub, bls or systemd-boot"),
    "iommu": Key("yes/no", "whether devices are in IOMMU groups", facet=True),
    "kvm": Key("yes/no", "whether it can run guests with KVM", facet=True),
    "clocksource": Key("text", "the clock that the kernel uses: tsc, hpet, kvm-clock"),
    "cgroup": Key("count", "version of control groups"),
    "vulnerable": Key(
        "text", "what the kernel says the processor is vulnerable to: meltdown, mmio_stale_data", many=True
    ),
    "program": Key("text", "program that it has, with its version: qemu-7.2.15", many=True),
    "agent": Key("text", "name of the agent, of builders"),
    "tool": Key("text", "program that an agent offers to steps: gcc-aarch64", many=True),
}


def key(name: str) -> Key | None:
    """What ``name`` stands for; None when there is no such key."""
    return KEYS.get(name) or (_LABEL if name.startswith(OPEN) and name != OPEN else None)


def fold(text: str) -> str:
    """Lower case of ASCII alone, as in the database (lab.predicate): lower() of SQLite knows no other letters."""
    return "".join(chr(ord(letter) + 32) if "A" <= letter <= "Z" else letter for letter in text)


_VERSION = re.compile(r"(\d{1,4})(?:\.(\d{1,5}))?(?:\.(\d{1,5}))?")


def version_number(text: str) -> float | None:
    """``"6.12.3-rt5"`` -> 6_00012_00003: versions by their first three numbers.  None: it has none."""
    match = _VERSION.match(text)
    return float(int(match[1]) * 10**10 + int(match[2] or 0) * 10**5 + int(match[3] or 0)) if match else None


def number_of(name: str, value: str | float) -> float | None:
    """The number that ranges of key ``name`` compare: column ``num``."""
    if not isinstance(value, str):
        return float(value)
    found = key(name)
    if found and found.kind == "version":
        return version_number(value)
    if found and found.kind not in ("text", "yes/no"):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if abs(number) < 1e300 else None  # neither nan nor inf
    return None


def text_of(value: str | float) -> str:
    """What equality and globs compare: column ``text``."""
    if isinstance(value, str):
        return fold(value)
    return str(int(value)) if float(value).is_integer() else repr(float(value))


# -- from a Facts document ----------------------------------------------------------------------------------------


def flatten(facts: Facts, inventory: Inventory | None = None) -> dict[str, tuple[str | float, ...]]:
    """All that the probe tells of a machine, by the keys of :data:`KEYS`; sorted, without repetitions.

    A key that the machine does not have, or that could not be read, is absent.
    """
    inventory = inventory or Inventory()
    found: dict[str, tuple[str | float, ...]] = {}
    for part in (_identity(facts), _cpus(facts), _devices(facts), _kernel(facts), _inventory(inventory)):
        for name, value in part.items():
            several = [value] if value is None or isinstance(value, (str, int, float)) else value
            kept = {_tidy(one) if isinstance(one, str) else one for one in several if one is not None and one != ""}
            if kept:
                found[name] = tuple(sorted(kept, key=lambda one: (isinstance(one, str), one)))
    return found


def _tidy(text: str) -> str:
    return fold(" ".join(text.split()))


_Part = dict[str, str | float | Iterable[str | float | None] | None]


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _identity(facts: Facts) -> _Part:
    who = facts.identity
    return {
        "arch": who.architecture,
        "virtual": None if who.hypervisor is None else _yes(who.hypervisor != "none"),
        "vendor": who.system_vendor,
        "product": who.product,
        "board": who.board,
        "firmware.vendor": who.firmware_vendor,
        "firmware.version": who.firmware_version,
        "firmware.date": _year_first(who.firmware_date),
        "os": who.os_release,
        "program": [f"{name}-{version}" for name, version in facts.programs.items()],
    }


def _year_first(date: str | None) -> str | None:
    """SMBIOS writes month/day/year."""
    parts = re.fullmatch(r"(\d\d)/(\d\d)/(\d{4})", date or "")
    return f"{parts[3]}-{parts[1]}-{parts[2]}" if parts else date


def _cpus(facts: Facts) -> _Part:
    online = [cpu for cpu in facts.cpus if cpu.online]
    levels = {level: [cache.size_bytes for cache in facts.caches if cache.level == level] for level in (2, 3)}
    divided = facts.resctrl
    # A hybrid core's siblings, offline ones too, are a set of the same CPUs for each of them.
    cores = {cpu.siblings & facts.online or frozenset({cpu.id}) for cpu in online}
    return {
        "cpu.model": {cpu.model for cpu in facts.cpus},
        "cpu.kind": {cpu.kind for cpu in facts.cpus},
        "cpu.threads": len(online) or None,
        "cpu.cores": len(cores) or None,
        "cpu.sockets": len({cpu.package for cpu in online} - {None}) or None,
        "cpu.smt": _yes(any(len(core) > 1 for core in cores)) if cores else None,
        "cpu.max": _hertz(cpu.max_khz for cpu in online),
        "cpu.base": _hertz(cpu.base_khz for cpu in online),
        "cache.l2": max((size for size in levels[2] if size), default=None),
        "cache.l3": max((size for size in levels[3] if size), default=None),
        "resctrl": [*{cache.name[:2] for cache in divided.caches}, *(["mb"] if divided.bandwidth else [])]
        if divided
        else None,
        "mem": built_in(facts.memory_bytes) or None,
        "mem.usable": facts.memory_bytes or None,
        "numa.nodes": len(facts.nodes) or None,
        "hugepage": {pool.page_bytes for pool in facts.huge_pages},
        "clocksource": facts.clocksource,
        "vulnerable": [name for name, text in facts.vulnerabilities.items() if text.startswith("Vulnerable")],
    }


def built_in(usable_bytes: int) -> int:
    """The size of memory that leaves the kernel so much.

    Firmware and the kernel itself keep 0.1 to 7.6 % (seen in recorded machines); modules come in sizes that add up to
    quarters of a power of two.  A size that is not within 8 % of one is taken as it is.
    """
    if usable_bytes < 1 << 27:
        return usable_bytes
    step = 1 << (usable_bytes - 1).bit_length() - 3
    rounded = -(-usable_bytes // step) * step
    return rounded if usable_bytes >= rounded * 0.92 else usable_bytes


def _hertz(kilohertz: Iterable[int | None]) -> int | None:
    fastest = max((khz for khz in kilohertz if khz), default=None)
    return fastest * 1000 if fastest else None


def _devices(facts: Facts) -> _Part:
    virtual_functions = {function.address for function in facts.pci if function.physical_function}
    nics = [nic for nic in facts.nics if nic.pci and nic.pci not in virtual_functions]
    sizes = [disk.size_bytes for disk in facts.blocks if disk.size_bytes]
    return {
        "mac": {nic.mac for nic in nics},
        "nic.driver": {nic.driver for nic in nics},
        "nic.count": len(nics) or None,
        "nic.name": {nic.name for nic in nics},
        "nic.ptp": _yes(any(nic.ptp_clock is not None for nic in nics)) if nics else None,
        "sriov.vfs": {function.sriov_total_vfs for function in facts.pci if function.sriov_total_vfs},
        "pci.id": {f"{function.vendor}:{function.device}" for function in facts.pci},
        "pci.class": {function.class_code for function in facts.pci},
        "pci.driver": {function.driver for function in facts.pci},
        "iommu": _yes(any(function.iommu_group is not None for function in facts.pci)) if facts.pci else None,
        "disk.size": set(sizes),
        "disk.total": sum(sizes) or None,
        "disk.count": len(sizes) or None,
        "disk.kind": {_disk_kind(disk) for disk in facts.blocks if disk.size_bytes},
        "disk.driver": {disk.driver for disk in facts.blocks if disk.size_bytes},
    }


def _disk_kind(disk: BlockDevice) -> str | None:
    if disk.name.startswith("nvme"):
        return "nvme"
    return None if disk.rotational is None else "hdd" if disk.rotational else "ssd"


def _kernel(facts: Facts) -> _Part:
    kernel = facts.kernel
    return {
        "kernel.version": kernel.release,
        "kernel.rt": _yes(kernel.preempt_rt) if kernel.release else None,
        "kernel.installed": kernel.installed,
        "kernel.config": [name.removeprefix("CONFIG_") for name, value in kernel.config.items() if value in ("y", "m")],
        "boot.loader": kernel.boot_loader,
        "kvm": _yes(facts.kvm_usable),
        "cgroup": facts.cgroup_version,
    }


def _inventory(inventory: Inventory) -> _Part:
    return {
        "serial": set(inventory.serials.values()),
        "cpu.vendor": inventory.cpu_vendor,
        "cpu.flag": inventory.cpu_flags,
        "nic.speed": {mbps * 10**6 for mbps in inventory.link_mbps.values()},
    }
