"""What the boot loader would start next, and with which arguments: GRUB's menu, and entry files (BLS, systemd-boot).

Entries for recovery and rescue are left out.  Reads only; how arguments are set is the business of the steps.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.root import Root

_MENUENTRY = re.compile(r"\s*menuentry\s+(?:'([^']*)'|\"([^\"]*)\")")
_LINUX = re.compile(r"\s*linux(?:16|efi)?\s+(\S+)\s*(.*)")
_RELEASE = re.compile(r"(?:vmlinuz|Image|linux)-(\S+)\Z")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
#: Recovery, and what os-prober found on other disks: neither is a kernel of this system.
_RESCUE = re.compile(r"\b(recovery|rescue|single)\b|\(on /dev/", re.IGNORECASE)
#: On the command line of the rescue entries that apply makes (evenkeel.probe.steps.boot.arguments.RESCUE_MARK).
_OURS = "evenkeel.rescue"


def read_boot_entries(root: Root) -> list[dict[str, Any]]:
    """``title``, ``kernel`` (a release, "" where it cannot be told) and ``arguments``, in the order of the menu."""
    found = []
    for path in ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"):
        found += _grub_menu(path, root.read(path) or "")
    variables = _variables(root)
    for folder in ("/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"):
        for name in root.listdir(folder):
            if name.endswith(".conf"):
                path = "%s/%s" % (folder, name)
                found += _entry_file(path, root.read(path) or "", variables)
    return [entry for entry in found if not _RESCUE.search(entry["title"]) and _OURS not in entry["arguments"]]


def _grub_menu(path: str, text: str) -> list[dict[str, Any]]:
    found, title = [], ""
    for line in text.splitlines():
        entry = _MENUENTRY.match(line)
        if entry:
            title = entry.group(1) or entry.group(2) or ""
        linux = _LINUX.match(line)
        if linux:
            release = _RELEASE.search(linux.group(1))
            arguments = " ".join(linux.group(2).split())
            found.append(_made(path, title, release.group(1) if release else "", arguments))
    return found


def _entry_file(path: str, text: str, variables: dict[str, str]) -> list[dict[str, Any]]:
    """The Boot Loader Specification: a key and its value a line; ``options`` may come several times."""
    keys: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        keys.setdefault(key, []).append(value.strip())
    if "linux" not in keys:
        return []
    options = _VARIABLE.sub(lambda match: variables.get(match.group(1), ""), " ".join(keys.get("options", [])))
    release = keys.get("version", [""])[0]
    if not release:
        match = _RELEASE.search(keys["linux"][0])
        release = match.group(1) if match else ""
    return [_made(path, keys.get("title", [""])[0], release, " ".join(options.split()))]


def _variables(root: Root) -> dict[str, str]:
    """GRUB's environment block, which entries of RHEL and Fedora refer to: ``$kernelopts``, ``$tuned_params``."""
    found: dict[str, str] = {}
    for path in ("/boot/grub2/grubenv", "/boot/grub/grubenv"):
        for line in (root.read(path) or "").splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(key, value)
    return found


def _made(path: str, title: str, kernel: str, arguments: str) -> dict[str, Any]:
    return {"path": path, "title": title, "kernel": kernel, "arguments": arguments}
