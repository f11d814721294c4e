"""What grub-mkconfig generated: the entries of grub.cfg, ours for rescue among them, and the default.  Pure text."""

from __future__ import annotations

import re
from typing import Any

_SECTION = re.compile(r"### (?P<edge>BEGIN|END) \S*/(?P<script>\S+) ###")
_ENTRY = re.compile(r"\s*menuentry\s.*?'(?P<ours>gnulinux|evenkeel-rescue)-(?P<id>[^']*)'")
_LINUX = re.compile(r"\s*linux(?:16|efi)?\s+(?P<image>\S+)\s*(?P<arguments>.*)")
_RELEASE = re.compile(r".*/(?:vmlinuz|vmlinux|kernel|bzImage|Image)-(?P<release>[^/]+?)(?:\.efi\.signed)?\Z")


def entries(grub_cfg: str) -> list[dict[str, Any]]:
    """``id``, ``image``, ``kernel`` and ``arguments`` of every entry that 10_linux made, without those for recovery."""
    return [entry for entry in _linux_entries(grub_cfg, "10_linux") if "-recovery-" not in entry["id"]]


def rescue_entries(grub_cfg: str) -> list[dict[str, Any]]:
    """The same of the entries that our own script made."""
    return _linux_entries(grub_cfg, "11_evenkeel")


def _linux_entries(grub_cfg: str, script: str) -> list[dict[str, Any]]:
    # TuneD has its arguments in a variable that its script in /etc/grub.d sets at the top.
    tuned = "".join(re.findall(r'^set tuned_params="([^"]*)"', grub_cfg, re.MULTILINE)[-1:])
    found = []
    inside = False
    name = ""
    for line in grub_cfg.splitlines():
        section = _SECTION.match(line)
        if section:
            inside = section.group("edge") == "BEGIN" and section.group("script") == script
            continue
        entry = _ENTRY.match(line)
        if entry:
            name = entry.group("id")
        linux = _LINUX.match(line)
        if inside and linux:
            image = linux.group("image")
            arguments = re.sub(r"\$(?:tuned_params\b|\{tuned_params\})", lambda match: tuned, linux.group("arguments"))
            arguments = " ".join(arguments.split())
            found.append({"id": name, "image": image, "kernel": release(image), "arguments": arguments})
    return found


def release(image: str) -> str | None:
    """``6.12.1-amd64`` from ``/boot/vmlinuz-6.12.1-amd64``; None for an image that is named otherwise."""
    match = _RELEASE.match("/" + image)
    return match.group("release") if match else None


def default_kernel(grub_cfg: str) -> str | None:
    """Release of the kernel that starts when nobody touches the menu; None where that cannot be told from the file.

    It cannot for a saved default (grub-set-default, grub-reboot) and for an entry given by its number in a submenu.
    """
    default = re.findall(r'^\s*set default="([^"]*)"', grub_cfg, re.MULTILINE)
    chosen = [one for one in default if one != "${next_entry}"]  # set for one boot by grub-reboot
    if len(chosen) != 1:
        return None
    named = re.search(r"gnulinux-(\S+)-(?:advanced|recovery)-[^>]*\Z", chosen[0].rpartition(">")[2])
    if named:
        return named.group(1)
    if chosen[0] != "0":
        return None
    first = re.search(r"^\s*linux(?:16|efi)?\s+\S*/vmlinuz-(\S+)", grub_cfg, re.MULTILINE)
    return first.group(1) if first else None
