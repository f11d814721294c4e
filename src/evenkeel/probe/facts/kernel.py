"""The kernel: which build, how configured, how it was started, what it offers to idle and to scale.

Source: /proc/sys/kernel, /proc/cmdline, /boot, /sys/devices/system.  The words of uname(2) come from /proc/sys/kernel,
where a recorded tree has them too.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
from typing import Any

from evenkeel.probe.facts.root import Root

#: Options that rules and checks ask about, without CONFIG_.
_OPTIONS_TEXT = """
    PREEMPT_RT PREEMPT PREEMPT_DYNAMIC PREEMPT_LAZY NO_HZ_FULL RCU_NOCB_CPU RCU_BOOST CPU_ISOLATION HZ
    HIGH_RES_TIMERS IRQ_FORCED_THREADING RT_GROUP_SCHED CGROUP_SCHED CPUSETS CPUSETS_V1 SCHED_SMT
    TRANSPARENT_HUGEPAGE NUMA_BALANCING NUMA HUGETLBFS KSM COMPACTION LOCKUP_DETECTOR SOFTLOCKUP_DETECTOR
    KVM KVM_INTEL KVM_AMD VFIO VFIO_PCI INTEL_IOMMU AMD_IOMMU IRQ_REMAP IOMMU_DEFAULT_PASSTHROUGH
    X86_CPU_RESCTRL ARM64_MPAM CPU_FREQ CPU_IDLE X86_INTEL_PSTATE X86_AMD_PSTATE
    FTRACE OSNOISE_TRACER TIMERLAT_TRACER HWLAT_TRACER DEBUG_INFO_BTF BPF_SYSCALL SCHED_DEBUG
    CMDLINE SECURITY_LOCKDOWN_LSM
"""
_OPTIONS = frozenset(_OPTIONS_TEXT.split())
_CONFIG_LINE = re.compile(r"(?:# )?CONFIG_(\w+)(?:=(.*)| is not set)\Z")
_UNKNOWN = re.compile(r'Unknown kernel command line parameters "([^"]*)"')

#: hwloc-gather-topology keeps uname(2) here, in the trees that it records.
_HWLOC = "/proc/hwloc-nofile-info"


def uname(root: Root) -> dict[str, str]:
    """``release``, ``version``, ``machine``, ``nodename``; empty strings for what the tree does not tell."""
    told = {
        "release": root.read("/proc/sys/kernel/osrelease"),
        "version": root.read("/proc/sys/kernel/version"),
        "machine": root.read("/proc/sys/kernel/arch"),  # since 6.1
        "nodename": root.read("/proc/sys/kernel/hostname"),
    }
    told["machine"] = told["machine"] or root.ask("machine", lambda: os.uname().machine)
    if not root.live:
        _from_hwloc(root, told)
    match = re.match(r"Linux version (\S+).*?(#\d+ .*)\Z", root.read("/proc/version") or "")
    if match:
        told["release"] = told["release"] or match.group(1)
        told["version"] = told["version"] or match.group(2)
    return {name: value or "" for name, value in told.items()}


def _from_hwloc(root: Root, told: dict[str, str | None]) -> None:
    names = {"OSRelease": "release", "OSVersion": "version", "Architecture": "machine", "HostName": "nodename"}
    for line in (root.read(_HWLOC) or "").splitlines():
        key, _, value = line.partition(": ")
        if key in names:
            told[names[key]] = told[names[key]] or value


def read_kernel(root: Root, release: str, version: str) -> dict[str, Any]:
    config = _config(root, release)
    return {
        "release": release,
        "version": version,
        "preempt_rt": root.read("/sys/kernel/realtime") == "1"
        or "PREEMPT_RT" in version
        or config.get("PREEMPT_RT") == "y",
        "command_line": root.read("/proc/cmdline") or "",
        "config": config,
        "unknown_parameters": _unknown_parameters(root),
        "installed": _installed(root),
        "boot_loader": _boot_loader(root),
    }


def _config(root: Root, release: str) -> dict[str, str]:
    """The options of :data:`_OPTIONS` in the build of the running kernel; empty where its configuration is not kept."""
    lines = (root.ask("config.gz", _config_gz) or "").splitlines()
    for path in ("/boot/config-%s", "/lib/modules/%s/config", "/usr/lib/modules/%s/config"):
        if release and not lines:
            lines = root.read_lines(path % release, _wanted_option)
    config = {}
    for line in lines:
        match = _CONFIG_LINE.match(line)
        if match:
            config[match.group(1)] = (match.group(2) or "n").strip('"')
    return config


def _config_gz() -> str | None:
    try:
        with gzip.open("/proc/config.gz", "rt") as file:
            return "\n".join(line for line in map(str.rstrip, file) if _wanted_option(line))
    except OSError:
        return None


def _wanted_option(line: str) -> bool:
    match = _CONFIG_LINE.match(line)
    return match is not None and match.group(1) in _OPTIONS


def _unknown_parameters(root: Root) -> list[str]:
    """From the kernel's log, as long as the line is still in its ring buffer; later from /var/log/dmesg."""
    said = root.ask("unknown-parameters", _search_kmsg)
    if said is None:
        lines = root.read_lines("/var/log/dmesg", lambda line: _UNKNOWN.search(line) is not None)
        match = _UNKNOWN.search(lines[0]) if lines else None
        said = match.group(1) if match else ""
    # The boot loader's own key is always there and always meant for user space.
    return [word for word in said.split() if not word.startswith("BOOT_IMAGE=")]


def _search_kmsg() -> str | None:
    """One record a read (Documentation/ABI/testing/dev-kmsg); None when the beginning of the log is lost."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        first = True
        while True:
            try:
                record = os.read(fd, 1 << 13).decode("utf-8", "replace")
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten while we read
                    continue
                return None if first else ""  # EAGAIN: the end
            match = _UNKNOWN.search(record)
            if match:
                return match.group(1)
            if first and record.split(",", 2)[1:2] != ["0"]:
                return None
            first = False
    finally:
        os.close(fd)


def _installed(root: Root) -> list[str]:
    """Kernels that can be booted; where /boot has none (an unmounted partition), those that have modules."""
    images = [name for name in root.listdir("/boot") if name.startswith("vmlinuz-") and not name.endswith(".old")]
    found = [name[8:] for name in images if root.exists("/boot/" + name)]
    modules = [name for name in root.listdir("/lib/modules") if name[:1].isdigit()]
    return found or [name for name in modules if root.is_folder("/lib/modules/" + name)]


def _boot_loader(root: Root) -> str | None:
    """``grub``: lines in /etc/default/grub; ``bls``: entry files that GRUB reads (Fedora, RHEL); ``systemd-boot``."""
    if any(root.exists(folder + "/loader/loader.conf") for folder in ("/boot", "/efi", "/boot/efi")):
        return "systemd-boot"
    grub = any(root.exists(folder + "/grub.cfg") for folder in ("/boot/grub", "/boot/grub2"))
    if grub and any(name.endswith(".conf") for name in root.listdir("/boot/loader/entries")):
        return "bls"
    return "grub" if grub or root.exists("/etc/default/grub") else None


def read_idle(root: Root) -> dict[str, Any]:
    """Idle states of CPU 0, shallow to deep.  Source: Documentation/admin-guide/pm/cpuidle.rst."""
    folder = "/sys/devices/system/cpu/cpu0/cpuidle"
    names = [root.read("%s/state%d/name" % (folder, number)) for number in root.numbered(folder, "state")]
    driver = root.read("/sys/devices/system/cpu/cpuidle/current_driver")
    return {
        "driver": driver if driver and driver != "none" else None,
        "governor": root.read("/sys/devices/system/cpu/cpuidle/current_governor_ro")
        or root.read("/sys/devices/system/cpu/cpuidle/current_governor"),
        "states": [name for name in names if name],
    }


def read_frequency(root: Root) -> dict[str, Any]:
    """Source: Documentation/admin-guide/pm/cpufreq.rst.  ``boost`` is None where nothing tells."""
    folder = "/sys/devices/system/cpu/cpufreq"
    policies = ["%s/policy%d" % (folder, number) for number in root.numbered(folder, "policy")]
    if not policies:  # kernels before 4.3, recorded trees: the policy is below the CPU
        policies = ["/sys/devices/system/cpu/cpu0/cpufreq"]
    governors = {root.read(policy + "/scaling_governor") for policy in policies}
    boost = root.read(folder + "/boost")
    no_turbo = root.read("/sys/devices/system/cpu/intel_pstate/no_turbo")
    return {
        "driver": root.read(policies[0] + "/scaling_driver"),
        "governors": sorted(governor for governor in governors if governor),
        "boost": boost == "1" if boost is not None else no_turbo == "0" if no_turbo is not None else None,
    }


def read_vulnerabilities(root: Root) -> dict[str, str]:
    folder = "/sys/devices/system/cpu/vulnerabilities"
    found = {name: root.read("%s/%s" % (folder, name)) for name in root.listdir(folder)}
    return {name: text for name, text in found.items() if text}


def read_kvm(root: Root) -> tuple[bool | None, dict[str, dict[str, str]]]:
    """Whether /dev/kvm is there with a module behind it, and the parameters of the KVM modules."""
    parameters = {}
    for module in ("kvm", "kvm_intel", "kvm_amd"):
        folder = "/sys/module/%s/parameters" % module
        found = {name: root.read("%s/%s" % (folder, name)) for name in root.listdir(folder)}
        if found:
            parameters[module] = {name: text for name, text in found.items() if text is not None}
    if not root.is_folder("/sys/module"):
        return None, parameters
    return root.exists("/dev/kvm") and ("kvm" in parameters or root.is_folder("/sys/module/kvm")), parameters
