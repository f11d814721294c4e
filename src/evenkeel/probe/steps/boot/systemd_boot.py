"""systemd-boot: entry files on the EFI system partition or the partition for /boot, all of them written directly.

Future kernels: kernel-install takes /etc/kernel/cmdline; where there is none it is made.  A unified kernel image has
its command line inside, signed with it, and is refused.
"""

from __future__ import annotations

import os
from typing import Any

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.inside import inside
from evenkeel.probe.steps.boot import entryfiles
from evenkeel.probe.steps.files import read_value

NAME = "systemd-boot"
#: Where the EFI system partition and its extension are mounted: bootctl(1), --esp-path= and --boot-path=.
PARTITIONS = ("/efi", "/boot", "/boot/efi")
_GRUB = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_CODEC = ("utf-8", "surrogateescape")


def found(root: str) -> bool:
    """Its program is installed and, where GRUB is too, it says itself that it started this machine.

    Source: systemd's Boot Loader Interface; a UCS-2 text behind four bytes of attributes.
    """
    programs = [name for part in PARTITIONS for name in _names(part + "/EFI/systemd", root)]
    if not any(name.startswith("systemd-boot") and name.endswith(".efi") for name in programs):
        return False
    if not any(os.path.exists(inside(root, path)) for path in _GRUB):
        return True
    try:
        with open(inside(root, _LOADER_INFO), "rb") as file:
            return file.read()[4:].decode("utf-16-le", "replace").startswith("systemd-boot")
    except OSError:
        return False


def paths(root: str) -> list[str]:
    entries = [path for part in PARTITIONS for path in entryfiles.entry_paths(part + "/loader/entries", root)]
    texts = {path: read_value(path, root) or "" for path in entries}
    kernel = (read_value("/proc/sys/kernel/osrelease", root) or "").strip()
    rescue = entryfiles.rescue_path(texts, kernel)
    return list(dict.fromkeys(path for path in (rescue, entryfiles.COMMAND_LINE, *entries) if path))


def owned(path: str) -> int | None:
    """Mode of a file of ours alone, None for one that others write too."""
    return 0o644 if entryfiles.is_rescue(path) else None


def look(contents: dict[str, bytes | None], root: str) -> dict[str, Any]:
    for part in PARTITIONS:
        for name in _names(part + "/EFI/Linux", root):
            if name.lower().endswith(".efi"):
                raise StepFailed(
                    "is a unified kernel image, with its command line inside; Evenkeel can set arguments only for "
                    "kernels with an entry file",
                    None,
                    "%s/EFI/Linux/%s" % (part, name),
                )
    texts = _texts(contents)
    return {
        "entries": [entryfiles.entry(p, text, {}) for p, text in texts.items() if entryfiles.is_tuned(p, text)],
        "rescue": [entryfiles.entry(p, text, {}) for p, text in texts.items() if entryfiles.is_rescue(p)],
    }


def wanted(arguments: list[dict[str, Any]], contents: dict[str, bytes | None], kernel: str) -> dict[str, bytes | None]:
    texts = _texts(contents)
    source = entryfiles.rescue_source(texts, kernel)
    rescue = entryfiles.rescue_path(texts, kernel)
    if source is None or rescue is None:
        raise StepFailed("has no entry for a Linux kernel; is the partition mounted?", 2, "loader/entries")
    found = {rescue: entryfiles.rescue_text(arguments, texts[source], {})}
    plain = contents.get(entryfiles.COMMAND_LINE)
    text = plain.decode(*_CODEC) if plain is not None else None
    line = entryfiles.options(texts[source], {})
    found[entryfiles.COMMAND_LINE] = entryfiles.command_line(arguments, text, line)
    for path, entry in texts.items():
        if entryfiles.is_tuned(path, entry):
            found[path] = entryfiles.with_arguments(arguments, entry, None, path)
    return {path: text.encode(*_CODEC) for path, text in found.items()}


def unmerge(arguments: list[dict[str, Any]], path: str, now: bytes, old: bytes | None) -> bytes | None:
    return entryfiles.unmerge_file(arguments, path, now, old)


def finish(arguments: list[dict[str, Any]] | None, old: dict[str, Any] | None, root: str) -> None:
    """The files are all that systemd-boot reads."""


def clean(root: str) -> None:
    """Nothing but the files' own temporaries, which are removed with them."""


def default_kernel(root: str) -> str | None:
    """Not told: the default is a pattern in loader.conf, a variable of the firmware, or what was last chosen by key."""
    return None


def _texts(contents: dict[str, bytes | None]) -> dict[str, str]:
    return {
        path: data.decode(*_CODEC) for path, data in contents.items() if data is not None and path.endswith(".conf")
    }


def _names(folder: str, root: str) -> list[str]:
    try:
        return sorted(os.listdir(inside(root, folder)))
    except OSError:
        return []
