"""Entry files of the Boot Loader Specification: one kernel a file, a key and its value a line.  Text and names.

Source: the UAPI group's Boot Loader Specification, type #1.  ``options`` may come several times and is then joined.
Red Hat's GRUB puts variables of its environment block into it (``$kernelopts``, ``$tuned_params``).
Shared by the layouts that have such files; which files, they know.
"""

from __future__ import annotations

import os
import re
from typing import Any

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.inside import inside
from evenkeel.probe.steps.boot import grubcfg
from evenkeel.probe.steps.boot.arguments import RESCUE_MARK, merge, split

#: What kernel-install gives a new kernel; without it, it takes what the running kernel was started with, and that
#: is how arguments get lost when a kernel is installed before the reboot (rhboot/grubby#55).
COMMAND_LINE = "/etc/kernel/cmdline"
_RESCUE = "evenkeel-rescue.conf"
_OPTIONS = re.compile(r"^(?P<key>options[ \t]+)(?P<value>.*?)(?P<end>[ \t\r]*)$", re.MULTILINE)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_TRIES = re.compile(r"\+\d+(?:-\d+)?\Z")


def entry_paths(folder: str, root: str) -> list[str]:
    """Every entry file in ``folder``, ours for rescue among them."""
    try:
        names = sorted(os.listdir(inside(root, folder)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return ["%s/%s" % (folder, name) for name in names if name.endswith(".conf")]


def is_rescue(path: str) -> bool:
    """Whether it is our rescue entry."""
    return path.endswith(_RESCUE)


def is_tuned(path: str, text: str) -> bool:
    """Whether an entry gets our arguments: it starts Linux, and is not somebody's way back in (dracut's 0-rescue)."""
    return path.endswith(".conf") and not is_rescue(path) and "-0-rescue" not in path and bool(value(text, "linux"))


def stem(path: str) -> str:
    """The id of an entry: its file name without .conf and without the counter of tries that systemd-boot changes."""
    return _TRIES.sub("", path.rpartition("/")[2][: -len(".conf")])


def value(text: str, key: str) -> str | None:
    """The first value of a key, or None."""
    match = re.search(r"^%s[ \t]+(.*?)[ \t\r]*$" % re.escape(key), text, re.MULTILINE)
    return match.group(1) if match else None


def options(text: str, variables: dict[str, str]) -> str:
    """The command line, as the boot loader puts it together.  An unknown variable is empty, as in GRUB."""
    raw = " ".join(match.group("value") for match in _OPTIONS.finditer(text))
    return " ".join(_VARIABLE.sub(lambda match: variables.get(match.group(1) or match.group(2), ""), raw).split())


def release(text: str) -> str:
    """Of the kernel of an entry: from the name of its image, else what ``version`` says."""
    return grubcfg.release(value(text, "linux") or "") or value(text, "version") or ""


def entry(path: str, text: str, variables: dict[str, str]) -> dict[str, Any]:
    """``id``, ``image``, ``kernel`` and ``arguments`` of an entry."""
    image = value(text, "linux") or ""
    return {"id": stem(path), "image": image, "kernel": release(text), "arguments": options(text, variables)}


def with_arguments(arguments: list[dict[str, Any]], text: str, words: list[str] | None, path: str) -> str:
    """An entry with our arguments at the end of its last ``options`` and nowhere else; ``words``: those instead."""
    lines = list(_OPTIONS.finditer(text))
    if not lines:
        raise StepFailed("this entry has no options, so nothing is known of its root file system", None, path)
    for number, line in reversed(list(enumerate(lines))):
        added = words if number == len(lines) - 1 else []
        merged = merge(arguments, line.group("value"), added)
        text = text[: line.start("value")] + merged + text[line.end("value") :]
    return text


def rescue_source(texts: dict[str, str], kernel: str) -> str | None:
    """Path of the entry that the rescue entry is made from: of the kernel that it has, the running, or the newest."""
    tuned = [path for path, text in texts.items() if is_tuned(path, text)]
    tuned.sort(key=lambda path: _natural(stem(path)))
    rescue = next((text for path, text in sorted(texts.items()) if is_rescue(path)), "")
    for path in tuned:
        if value(rescue, "linux") == value(texts[path], "linux"):
            return path
    for path in tuned:
        if kernel in (release(texts[path]), value(texts[path], "version")):
            return path
    return tuned[-1] if tuned else None


def rescue_path(texts: dict[str, str], kernel: str) -> str | None:
    """Where the rescue entry is, or belongs: never the first of the menu, whichever way the boot loader sorts.

    Both sort by name or by version, highest first: version 0 comes after every kernel of its own, and ``~`` before
    the end of a name (rpmvercmp; systemd's strverscmp_improved()).
    """
    for path in sorted(texts):
        if is_rescue(path):
            return path
    source = rescue_source(texts, kernel)
    if source is None:
        return None
    name, version = stem(source), value(texts[source], "version") or release(texts[source])
    prefix = name[: -len(version)] + "0-" if version and name.endswith("-" + version) else name + "~"
    return "%s/%s%s" % (source.rpartition("/")[0], prefix, _RESCUE)


def rescue_text(arguments: list[dict[str, Any]], text: str, variables: dict[str, str]) -> str:
    """The rescue entry for the kernel of the entry ``text``: none of our keys, no variable that could bring them in."""
    plain, _, behind = split(arguments, options(text, variables))
    line = "options " + " ".join(filter(None, (plain, RESCUE_MARK, behind)))
    lines = []
    for old in text.splitlines():
        key = old.split(None, 1)[0] if old.split() else ""
        if key == "title":
            lines.append("title Evenkeel rescue: " + old.split(None, 1)[1])
        elif key in ("version", "id"):
            lines.append("%s 0-evenkeel-rescue" % key)
        elif key == "options":
            lines += [line] if line not in lines else []
        else:
            lines.append(old)
    return "\n".join(lines) + "\n"


def command_line(arguments: list[dict[str, Any]], text: str | None, entry_options: str) -> str:
    """/etc/kernel/cmdline with our arguments; made from the options of an entry where there is none."""
    if text is None:
        return merge(arguments, entry_options) + "\n"
    body = text.rstrip()
    return merge(arguments, body) + (text[len(body) :] or "\n")


def unmerge(arguments: list[dict[str, Any]], line: str, old: str) -> str:
    """``line`` with the words for our keys that ``old`` has, instead of ours."""
    return merge(arguments, line, split(arguments, old)[1])


def unmerge_file(arguments: list[dict[str, Any]], path: str, now: bytes, old: bytes | None) -> bytes:
    """An entry, or the command line for new kernels, that somebody changed since: what is ours goes, the rest stays."""
    codec = ("utf-8", "surrogateescape")
    text, before = now.decode(*codec), (old or b"").decode(*codec)
    if path == COMMAND_LINE:
        body = text.rstrip()
        return (unmerge(arguments, body, before.rstrip()) + text[len(body) :]).encode(*codec)
    words = split(arguments, " ".join(match.group("value") for match in _OPTIONS.finditer(before)))[1]
    return with_arguments(arguments, text, words, path).encode(*codec) if _OPTIONS.search(text) else now


def _natural(name: str) -> list[Any]:
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.findall(r"\d+|\D+", name)]
