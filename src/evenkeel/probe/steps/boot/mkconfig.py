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
from evenkeel.probe.inside import inside
from evenkeel.probe.journal import sync_directory
from evenkeel.probe.steps import config
from evenkeel.probe.steps.boot import grubcfg
from evenkeel.probe.steps.boot.arguments import missing
from evenkeel.probe.steps.files import read_value

_TIMEOUT_S = 600.0  # measured: 11 s in software emulation; os-prober on a slow disk array takes minutes
_NEW = ".evenkeel-new"


def look(path: str, root: str) -> dict[str, Any]:
    """``entries``, ``rescue``: what :mod:`.grubcfg` finds in grub.cfg; ``generated``: its SHA-256; ``menu``: itself;
    ``inputs``: SHA-256 of what it is made from."""
    text = read_value(path, root) or ""
    return {
        "entries": grubcfg.entries(text),
        "rescue": grubcfg.rescue_entries(text),
        "generated": hashlib.sha256(text.encode()).hexdigest(),
        "menu": base64.b64encode(zlib.compress(text.encode(), 9)).decode(),
        "inputs": _inputs(root),
    }


def restore(program: str, path: str, old: dict[str, Any], root: str) -> None:
    """The menu as it was in the snapshot ``old``, when its files are back.

    Byte for byte where nothing that it is made from has changed since: grub-mkconfig would make another file of the
    same defaults, because it translates for whoever runs it, or because the first was edited by hand.  Made anew where
    a kernel came or went, or somebody changed the defaults.
    """
    if old.get("inputs") == _inputs(root):
        info = os.stat(inside(root, path))
        data = zlib.decompress(base64.b64decode(old["menu"]))
        config.replace(path, data, stat.S_IMODE(info.st_mode), [info.st_uid, info.st_gid], root)
    else:
        generate(program, path, root, lambda text: None)


def _inputs(root: str) -> str:
    """Defaults and scripts with their content and mode, and the names of kernels."""
    folders = ("/etc/default/grub.d", "/etc/grub.d")
    paths = ["/etc/default/grub", *("%s/%s" % (folder, name) for folder in folders for name in _names(folder, root))]
    lines = _names("/boot", root)
    for path in paths:
        file = inside(root, path)
        if os.path.isfile(file) and not path.endswith(_NEW):
            with open(file, "rb") as opened:
                content = hashlib.sha256(opened.read()).hexdigest()
            lines.append("%s %o %s" % (path, stat.S_IMODE(os.stat(file).st_mode), content))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _names(folder: str, root: str) -> list[str]:
    try:
        return sorted(os.listdir(inside(root, folder)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def generate(program: str, path: str, root: str, check: Callable[[str], None]) -> None:
    """Let ``program`` make the menu anew.  ``check(text)`` raises StepFailed for a menu that must not be installed."""
    new = path + _NEW
    remove_temporaries(path, root)
    try:
        command.output([program, "-o", new], _TIMEOUT_S, root=root)
        text = read_value(new, root)
        if not text or not grubcfg.entries(text):
            raise StepFailed("%s wrote no entry for a Linux kernel; the old menu stays" % program, None, path)
        check(text)
        old = os.stat(inside(root, path))
        descriptor = os.open(inside(root, new), os.O_RDONLY | os.O_CLOEXEC)
        try:
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


def require_ours(arguments: list[dict[str, Any]], where: str) -> Callable[[str], None]:
    """A check for :func:`generate`: every entry has all arguments, and a rescue entry has none of ours."""

    def check(text: str) -> None:
        for line in grubcfg.entries(text):
            lacking = missing(arguments, line["arguments"])
            if lacking:
                raise StepFailed(
                    "the entry %s lacks %s; does a file sourced after %s, TuneD (tuned-adm off), or a changed "
                    "/etc/grub.d/10_linux set the command line?" % (line["id"], " ".join(lacking), where),
                    None,
                    where,
                )
        if not grubcfg.rescue_entries(text):
            raise StepFailed(
                "the menu has no rescue entry; does this /etc/grub.d/10_linux name its entries otherwise?", None, where
            )

    return check
