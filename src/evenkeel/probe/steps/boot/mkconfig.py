"""GRUB with a generated menu: run grub-mkconfig into a file beside grub.cfg, look at it, only then replace the menu.

grub-mkconfig itself writes over grub.cfg in place, so a power cut in that moment leaves half a menu; here the menu is
the old one or the new one.  Shared by the layouts that have no entry files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
import zlib
from typing import Any, Callable

from evenkeel.probe import command
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.journal import inside, sync_directory, write_all
from evenkeel.probe.steps.boot import grubcfg
from evenkeel.probe.steps.boot.arguments import missing
from evenkeel.probe.steps.files import read_value

_TIMEOUT_S = 600.0  # measured: 11 s in software emulation; os-prober on a slow disk array takes minutes
_NEW = ".evenkeel-new"


def look(path: str, root: str) -> dict[str, Any]:
    """``entries``, ``rescue``: what :mod:`.grubcfg` finds in grub.cfg; ``generated``: its SHA-256; ``menu``: itself."""
    text = read_value(path, root) or ""
    return {
        "entries": grubcfg.entries(text),
        "rescue": grubcfg.rescue_entries(text),
        "generated": hashlib.sha256(text.encode()).hexdigest(),
        "menu": base64.b64encode(zlib.compress(text.encode(), 9)).decode(),
    }


def generate(program: str, path: str, root: str, check: Callable[[str], str | None]) -> None:
    """Let ``program`` make the menu anew.

    ``check(text)`` raises StepFailed for a menu that must not be installed, and may return another one instead.
    """
    new = path + _NEW
    remove_temporaries(path, root)
    try:
        command.output([program, "-o", new], _TIMEOUT_S, root=root)
        text = read_value(new, root)
        if not text or not grubcfg.entries(text):
            raise StepFailed("%s wrote no entry for a Linux kernel; the old menu stays" % program, None, path)
        other = check(text)
        old = os.stat(inside(root, path))
        descriptor = os.open(inside(root, new), os.O_RDWR | os.O_CLOEXEC)
        try:
            if other is not None:
                os.ftruncate(descriptor, 0)
                write_all(descriptor, other.encode())
            os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(inside(root, new), inside(root, path))
        sync_directory(os.path.dirname(inside(root, path)))
    except BaseException:
        remove_temporaries(path, root)
        raise


def remove_temporaries(path: str, root: str) -> None:
    """Take away what a kill left behind: our file, and the one that grub-mkconfig makes before it."""
    for name in (path + _NEW, path + _NEW + ".new"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(inside(root, name))


def old_menu(old: dict[str, Any] | None) -> Callable[[str], str | None]:
    """A check for :func:`generate` after an undo: the menu of before, byte for byte, where the new one does the same.

    It does not when a kernel came or went since, or somebody changed the defaults: then the new one is right.
    """

    def check(text: str) -> str | None:
        if not old or "menu" not in old:  # a journal of 0.1
            return None
        before = zlib.decompress(base64.b64decode(old["menu"])).decode()
        return before if grubcfg.same_but_for_language(before, text) else None

    return check


def require_ours(arguments: list[dict[str, Any]], where: str) -> Callable[[str], str | None]:
    """A check for :func:`generate`: every entry has all arguments, and a rescue entry has none of ours."""

    def check(text: str) -> str | None:
        for line in grubcfg.entries(text):
            lacking = missing(arguments, line["arguments"])
            if lacking:
                raise StepFailed(
                    "the entry %s lacks %s; does a file sourced after %s, or a changed /etc/grub.d/10_linux, set the "
                    "command line?" % (line["id"], " ".join(lacking), where),
                    None,
                    where,
                )
        if not grubcfg.rescue_entries(text):
            raise StepFailed(
                "the menu has no rescue entry; does this /etc/grub.d/10_linux name its entries otherwise?", None, where
            )
        return None

    return check
