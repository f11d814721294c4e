"""Who else tunes this machine: daemons, sysctl.d, modprobe.d, tmpfiles.d.

A value that we set and that one of them sets too is lost at the next boot, or sooner.  Says what it found and where;
whether that is a conflict is for the plan to decide.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.root import Root

#: Process name -> unit name.  Each changes masks, priorities, frequencies or memory merging while it runs.
DAEMONS = {
    "tuned": "tuned",
    "irqbalance": "irqbalance",
    "numad": "numad",
    "ksmtuned": "ksmtuned",
    "stalld": "stalld",
    "thermald": "thermald",
    "power-profiles-": "power-profiles-daemon",  # comm is cut at 15 characters
    "auto-cpufreq": "auto-cpufreq",
    "tlp": "tlp",
}

#: Process name -> name of what asks firmware and devices now and then; a poll may raise a system management interrupt.
POLLERS = {"ipmievd": "ipmievd", "ipmiseld": "ipmiseld", "mcelog": "mcelog", "smartd": "smartd"}
_FIRMWARE_TIMER = "fwupd-refresh.timer"

_SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
_TMPFILES_FOLDERS = ("/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/lib/tmpfiles.d")
_WANTS = "/etc/systemd/system/multi-user.target.wants"


def read_owners(root: Root, running: list[str], settings: dict[str, str]) -> list[dict[str, Any]]:
    """Sorted by name.  ``running``: process names of :data:`DAEMONS`; ``settings``: the paths that rules may set."""
    owners = [_daemon(root, process, unit, running) for process, unit in DAEMONS.items()]
    owners += _sysctl_files(root, settings) + _modprobe_files(root) + _tmpfiles(root, settings)
    return sorted((owner for owner in owners if owner), key=lambda owner: (owner["name"], owner["evidence"]))


def read_services(root: Root, running: list[str]) -> dict[str, str]:
    """Name -> evidence of what runs, of :data:`POLLERS`; whether the timer of firmware updates starts or is masked."""
    found = {name: "process %s runs" % process for process, name in POLLERS.items() if process in running}
    link = "/etc/systemd/system/timers.target.wants/" + _FIRMWARE_TIMER
    # A mask lies over the enablement link: a link to /dev/null in the folder itself.
    mask = "/etc/systemd/system/" + _FIRMWARE_TIMER
    if root.link_target(mask) == "/dev/null":
        found[_FIRMWARE_TIMER] = mask + ": masked"
    elif root.link_target(link):
        found[_FIRMWARE_TIMER] = link + ": starts at boot"
    return dict(sorted(found.items()))


def _daemon(root: Root, process: str, unit: str, running: list[str]) -> dict[str, Any] | None:
    profile = ""
    if unit == "tuned":
        active = root.read("/etc/tuned/active_profile")
        profile = ", /etc/tuned/active_profile: %s" % active if active else ""
    if process in running:
        return {"name": unit, "active": True, "evidence": "process %s runs%s" % (process, profile)}
    enabled = "%s/%s.service" % (_WANTS, unit)
    if root.link_target(enabled):
        return {"name": unit, "active": False, "evidence": "%s: starts at boot%s" % (enabled, profile)}
    return None


def _sysctl_files(root: Root, settings: dict[str, str]) -> list[dict[str, Any]]:
    """Files that set one of our sysctls.  A name in a folder of higher rank hides the same name in the others."""
    files: dict[str, str] = {}
    for folder in _SYSCTL_FOLDERS:
        for name in root.listdir(folder):
            if name.endswith(".conf"):
                files.setdefault(name, "%s/%s" % (folder, name))
    paths = {root.canonical(path): path for path in [*files.values(), "/etc/sysctl.conf"]}  # 99-sysctl.conf is a link
    owners = []
    for path in paths:
        keys = []
        for line in _lines(root, path):
            key, equals, value = line.lstrip("-").partition("=")
            # a dot separates, unless the key is written with slashes (sysctl.d(5))
            key = key.strip() if "/" in key else key.strip().replace(".", "/")
            if equals and "/proc/sys/" + key in settings:
                keys.append("%s = %s" % (key.replace("/", "."), value.strip()))
        if keys:
            owners.append({"name": "sysctl.d", "active": True, "evidence": "%s: %s" % (path, "; ".join(keys))})
    return owners


def _modprobe_files(root: Root) -> list[dict[str, Any]]:
    owners = []
    for folder in ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"):
        for name in root.listdir(folder):
            path = "%s/%s" % (folder, name)
            if not name.endswith(".conf") or root.canonical(path) != path:
                continue
            lines = [line for line in map(_single_spaced, _lines(root, path)) if line.startswith("options kvm")]
            if lines:
                owners.append({"name": "modprobe.d", "active": True, "evidence": "%s: %s" % (path, "; ".join(lines))})
    return owners


def _tmpfiles(root: Root, settings: dict[str, str]) -> list[dict[str, Any]]:
    """``w`` lines of tmpfiles.d(5) write a value into a file at boot."""
    owners = []
    for folder in _TMPFILES_FOLDERS:
        for name in root.listdir(folder):
            if not name.endswith(".conf"):
                continue
            path = "%s/%s" % (folder, name)
            writes = [line.split() for line in _lines(root, path) if line.startswith("w")]
            found = ["%s = %s" % (words[1], words[-1]) for words in writes if len(words) > 6 and words[1] in settings]
            if found:
                owners.append({"name": "tmpfiles.d", "active": True, "evidence": "%s: %s" % (path, "; ".join(found))})
    return owners


def _single_spaced(line: str) -> str:
    return " ".join(line.split())


def _lines(root: Root, path: str) -> list[str]:
    lines = (line.strip() for line in (root.read(path) or "").splitlines())
    return [line for line in lines if line and not line.startswith(("#", ";"))]
