"""Debian and Ubuntu: GRUB, a generated menu, and a folder of defaults that is ours to add a file to.

All kernels, those of the future too, because every kernel package runs update-grub, which sources our file last.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe import command
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps.boot import defaults, grubcfg, mkconfig
from evenkeel.probe.steps.files import read_value

NAME = "GRUB as on Debian"
DROP_IN = "/etc/default/grub.d/zz-evenkeel.cfg"
MENU = "/boot/grub/grub.cfg"


def found(root: str) -> bool:
    """Whether the machine is set up this way."""
    try:
        command.find_program("update-grub", root)
    except StepFailed:
        return False
    script = read_value("/usr/sbin/grub-mkconfig", root)
    return script is None or "default/grub.d" in script  # a patch of Debian's and Ubuntu's


def paths(root: str) -> list[str]:
    return [defaults.RESCUE_SCRIPT, DROP_IN]


def owned(path: str) -> int | None:
    """Mode of a file of ours alone, None for one that others write too."""
    return {DROP_IN: 0o644, defaults.RESCUE_SCRIPT: 0o755}.get(path)


def look(contents: dict[str, bytes | None], root: str) -> dict[str, Any]:
    return mkconfig.look(MENU, root)


def wanted(arguments: list[dict[str, Any]], contents: dict[str, bytes | None], kernel: str) -> dict[str, bytes | None]:
    """The rescue script first, so that the way back is there before it is needed."""
    return {
        defaults.RESCUE_SCRIPT: defaults.RESCUE_TEXT.encode(),
        DROP_IN: defaults.drop_in(arguments).encode(),
    }


def finish(arguments: list[dict[str, Any]] | None, old: dict[str, Any] | None, root: str) -> None:
    """Generate the menu: with ``arguments``, or, when they are None, as it was in the snapshot ``old``."""
    if arguments is None:
        mkconfig.restore("update-grub", MENU, old or {}, root)
    else:
        mkconfig.generate("update-grub", MENU, root, mkconfig.require_ours(arguments, DROP_IN))


def clean(root: str) -> None:
    mkconfig.remove_temporaries(MENU, root)


def default_kernel(root: str) -> str | None:
    return grubcfg.default_kernel(read_value(MENU, root) or "")
