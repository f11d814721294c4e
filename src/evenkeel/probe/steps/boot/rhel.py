"""Red Hat Enterprise Linux, its kin, and Fedora: GRUB reads entry files; all of them are written by us directly.

Future kernels: kernel-install takes /etc/kernel/cmdline, or (RHEL 8) writes ``$kernelopts``, a variable of GRUB's
environment block.  A later run of grub2-mkconfig takes /etc/default/grub.  Ours goes into each of them that is there.
grubby is not needed: it edits the same files, one after the other and in place, and cannot give the old bytes back.
"""

from __future__ import annotations

import os
from typing import Any

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.inside import inside
from evenkeel.probe.steps.boot import defaults, entryfiles, environment
from evenkeel.probe.steps.boot.arguments import merge
from evenkeel.probe.steps.files import read_value

NAME = "GRUB with entry files, as on RHEL"
ENTRIES = "/boot/loader/entries"
DEFAULTS = "/etc/default/grub"
_MENUS = ("/boot/grub2/grub.cfg", "/boot/grub/grub.cfg")
_VARIABLE = "kernelopts"
#: Variables that entries put into the command line: the installer's, and TuneD's bootloader plugin's.
_VARIABLES = (_VARIABLE, "tuned_params")
_CODEC = ("utf-8", "surrogateescape")


def found(root: str) -> bool:
    if not entryfiles.entry_paths(ENTRIES, root):
        return False
    menus = [*_MENUS, *("/boot/efi/EFI/%s/grub.cfg" % vendor for vendor in _vendors(root))]
    return any("blscfg" in (read_value(path, root) or "") for path in menus)


def paths(root: str) -> list[str]:
    block = _block(root)
    entries = entryfiles.entry_paths(ENTRIES, root)
    texts = {path: read_value(path, root) or "" for path in entries}
    kernel = (read_value("/proc/sys/kernel/osrelease", root) or "").strip()
    rescue = entryfiles.rescue_path(texts, kernel)
    found = [rescue, DEFAULTS, entryfiles.COMMAND_LINE, block, *entries]
    return list(dict.fromkeys(path for path in found if path))


def owned(path: str) -> int | None:
    """Mode of a file of ours alone, None for one that others write too."""
    return 0o644 if entryfiles.is_rescue(path) else None


def look(contents: dict[str, bytes | None], root: str) -> dict[str, Any]:
    variables = environment.variables(_environment(contents)[1])
    texts = _texts(contents)
    return {
        "entries": [entryfiles.entry(p, text, variables) for p, text in texts.items() if entryfiles.is_tuned(p, text)],
        "rescue": [entryfiles.entry(p, text, variables) for p, text in texts.items() if entryfiles.is_rescue(p)],
    }


def wanted(arguments: list[dict[str, Any]], contents: dict[str, bytes | None], kernel: str) -> dict[str, bytes | None]:
    block, data = _environment(contents)
    variables = environment.variables(data)
    texts = _texts(contents)
    found: dict[str, str] = {}
    source = entryfiles.rescue_source(texts, kernel)
    rescue = entryfiles.rescue_path(texts, kernel)
    if source is None or rescue is None:
        raise StepFailed("has no entry for a Linux kernel; is the file system mounted?", 2, ENTRIES)
    found[rescue] = entryfiles.rescue_text(arguments, texts[source], variables)
    line = entryfiles.options(texts[source], variables)
    shell = contents.get(DEFAULTS)
    # Before the command line: kernel-install runs grub2-mkconfig when the defaults are the newer of the two.
    if shell is not None:
        found[DEFAULTS] = defaults.with_block(arguments, shell.decode(*_CODEC))
    shared = any(_shares(text) for path, text in texts.items() if entryfiles.is_tuned(path, text))
    plain = contents.get(entryfiles.COMMAND_LINE)
    if plain is not None or not shared:
        text = plain.decode(*_CODEC) if plain is not None else None
        found[entryfiles.COMMAND_LINE] = entryfiles.command_line(arguments, text, line)
    bytes_of: dict[str, bytes | None] = {path: text.encode(*_CODEC) for path, text in found.items()}
    if block and data is not None:
        for name in _VARIABLES:
            if name in variables:
                words: list[str] | None = None if shared and name == _VARIABLE else []
                data = environment.with_variable(data, name, merge(arguments, variables[name], words), block)
        bytes_of[block] = data
    for path, text in texts.items():
        if entryfiles.is_tuned(path, text):
            words = [] if _shares(text) else None
            bytes_of[path] = entryfiles.with_arguments(arguments, text, words, path).encode(*_CODEC)
    return bytes_of


def unmerge(arguments: list[dict[str, Any]], path: str, now: bytes, old: bytes | None) -> bytes | None:
    if path == DEFAULTS:
        return defaults.without_block(now.decode(*_CODEC)).encode(*_CODEC)
    if path.endswith("/grubenv"):
        before = environment.variables(old)
        for name, line in environment.variables(now).items():
            if name in _VARIABLES:
                line = entryfiles.unmerge(arguments, line, before.get(name, ""))
                now = environment.with_variable(now, name, line, path)
        return now
    return entryfiles.unmerge_file(arguments, path, now, old)


def finish(arguments: list[dict[str, Any]] | None, old: dict[str, Any] | None, root: str) -> None:
    """The files are all that GRUB reads."""


def clean(root: str) -> None:
    """Nothing but the files' own temporaries, which are removed with them."""


def default_kernel(root: str) -> str | None:
    block = _block(root)
    saved = environment.variables((read_value(block, root) or "").encode()).get("saved_entry") if block else None
    for path in entryfiles.entry_paths(ENTRIES, root):
        if saved and entryfiles.stem(path) == saved:
            return entryfiles.release(read_value(path, root) or "")
    return None


def _shares(text: str) -> bool:
    """Whether an entry takes its arguments from GRUB's environment block (RHEL 8)."""
    return "$" + _VARIABLE in text or "${%s}" % _VARIABLE in text


def _texts(contents: dict[str, bytes | None]) -> dict[str, str]:
    return {
        path: data.decode(*_CODEC)
        for path, data in contents.items()
        if data is not None and path.startswith(ENTRIES + "/")
    }


def _environment(contents: dict[str, bytes | None]) -> tuple[str | None, bytes | None]:
    for path, data in contents.items():
        if path.endswith("/grubenv"):
            return path, data
    return None, None


def _block(root: str) -> str | None:
    """The environment block; on UEFI of RHEL 8 a link into the EFI system partition."""
    for path in ("/boot/grub2/grubenv", "/boot/grub/grubenv"):
        for _ in range(8):
            where = inside(root, path)
            if not os.path.islink(where):
                break
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(where)))
        if os.path.isfile(inside(root, path)):
            return path
    return None


def _vendors(root: str) -> list[str]:
    try:
        return sorted(os.listdir(inside(root, "/boot/efi/EFI")))
    except OSError:
        return []
