"""SUSE, and whatever else runs grub2-mkconfig on /etc/default/grub alone: a marked block at the end of that file.

All kernels, those of the future too: a kernel package runs update-bootloader, which runs grub2-mkconfig.  YaST and
update-bootloader edit single lines of the file and leave a block as it is.
"""

from __future__ import annotations

import os
from typing import Any

from evenkeel.probe import command
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.inside import inside
from evenkeel.probe.steps.boot import defaults, grubcfg, mkconfig
from evenkeel.probe.steps.files import read_value

NAME = "GRUB as on SUSE"
DEFAULTS = "/etc/default/grub"
MENU = "/boot/grub2/grub.cfg"


def found(root: str) -> bool:
    try:
        command.find_program("grub2-mkconfig", root)
    except StepFailed:
        return False
    return all(os.path.isfile(inside(root, path)) for path in (DEFAULTS, MENU))


def paths(root: str) -> list[str]:
    return [defaults.RESCUE_SCRIPT, DEFAULTS]


def owned(path: str) -> int | None:
    """Mode of a file of ours alone, None for one that others write too."""
    return 0o755 if path == defaults.RESCUE_SCRIPT else None


def look(contents: dict[str, bytes | None], root: str) -> dict[str, Any]:
    return mkconfig.look(MENU, root)


def wanted(arguments: list[dict[str, Any]], contents: dict[str, bytes | None], kernel: str) -> dict[str, bytes | None]:
    text = (contents[DEFAULTS] or b"").decode("utf-8", "surrogateescape")
    return {
        defaults.RESCUE_SCRIPT: defaults.RESCUE_TEXT.encode(),
        DEFAULTS: defaults.with_block(arguments, text).encode("utf-8", "surrogateescape"),
    }


def unmerge(arguments: list[dict[str, Any]], path: str, now: bytes, old: bytes | None) -> bytes | None:
    """What somebody else changed since stays; our block goes."""
    text = now.decode("utf-8", "surrogateescape")
    return defaults.without_block(text).encode("utf-8", "surrogateescape")


def finish(arguments: list[dict[str, Any]] | None, old: dict[str, Any] | None, root: str) -> None:
    """Generate the menu: with ``arguments``, or, when they are None, as it was in the snapshot ``old``."""
    if arguments is None:
        mkconfig.restore("grub2-mkconfig", MENU, old or {}, root)
    else:
        mkconfig.generate("grub2-mkconfig", MENU, root, mkconfig.require_ours(arguments, DEFAULTS))


def clean(root: str) -> None:
    mkconfig.remove_temporaries(MENU, root)


def default_kernel(root: str) -> str | None:
    return grubcfg.default_kernel(read_value(MENU, root) or "")
