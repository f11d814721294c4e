"""The words of a kernel command line: which are ours, what is missing, ours merged into somebody else's.  Pure text.

An argument is ``{"key": "nohz_full", "value": "2-3", "after": null}``; value "": a bare flag; null: only take it away.
``after``: the argument that stands directly before it (``hugepagesz=2M`` before ``hugepages=``).
"""

from __future__ import annotations

import errno
import re
from typing import Any

from evenkeel.probe.failure import StepFailed

#: Of a kernel on x86, arm64 and ppc64, with the NUL at the end; what is longer is cut off without a word.
#: Source: COMMAND_LINE_SIZE in arch/*/include/{uapi/,}asm/setup.h.
COMMAND_LINE_SIZE = 2048
#: On the command line of our rescue entries.  The dot makes it a parameter of a module that is never loaded: the kernel
#: neither warns about it nor hands it to init (unknown_bootoption() in init/main.c).
RESCUE_MARK = "evenkeel.rescue"

# Quotes keep blanks together, as in next_arg() of lib/cmdline.c.
_TOKEN = re.compile(r'(?:[^\s"]|"[^"]*"?)+')


def word_of(argument: dict[str, Any]) -> str | None:
    """``key=value``, the bare ``key``, or None when it is only to be taken away."""
    if argument["value"] is None:
        return None
    return "%s=%s" % (argument["key"], argument["value"]) if argument["value"] else str(argument["key"])


def words_of(arguments: list[dict[str, Any]]) -> list[str]:
    """All words of ours, in the order of the plan."""
    words = []
    for argument in arguments:
        word = word_of(argument)
        if word is not None:
            words += [argument["after"], word] if argument.get("after") else [word]
    return words


def same_key(word: str, key: str) -> bool:
    """The kernel does not tell ``-`` from ``_`` in the name of a parameter (parameqn() in kernel/params.c)."""
    return word.partition("=")[0].replace("-", "_") == key.replace("-", "_")


def is_ours(argument: dict[str, Any], before: str, word: str) -> bool:
    """Whether ``word``, which stands behind ``before``, is the argument, or what it takes the place of.

    A ``hugepages=`` without a size before it counts too: it means the default size, which a plan sets.
    The count for another size does not.
    """
    if not same_key(word, argument["key"]):
        return False
    after = argument.get("after")
    return not after or before == after or before.partition("=")[0] != after.partition("=")[0]


def missing(arguments: list[dict[str, Any]], line: str) -> list[str]:
    """The arguments that ``line`` does not have exactly as wanted: once, with this value, at this place.

    What stands behind ``--`` belongs to init, so it does not count.
    """
    words = _TOKEN.findall(line)
    if "--" in words:
        words = words[: words.index("--")]
    pairs = [(words[index - 1] if index else "", word) for index, word in enumerate(words)]
    lacking = []
    for argument in arguments:
        wanted = word_of(argument)
        found = [word for before, word in pairs if is_ours(argument, before, word)]
        there = found == ([wanted] if wanted is not None else [])
        if argument.get("after") and wanted is not None:
            there = there and (argument["after"], wanted) in pairs
        if not there:
            lacking.append(" ".join(filter(None, (argument.get("after"), wanted or "(no %s)" % argument["key"]))))
    return lacking


def rescued(line: str) -> bool:
    """Whether a kernel with this command line was started from a rescue entry of ours."""
    return any(same_key(word, RESCUE_MARK) for word in _TOKEN.findall(line))


def split(arguments: list[dict[str, Any]], line: str) -> tuple[str, list[str], str]:
    """``line`` without our keys, byte for byte; the words that were ours; and what begins with ``--``."""
    matches = list(_TOKEN.finditer(line))
    words = [match.group() for match in matches]
    kernel = words.index("--") if "--" in words else len(words)
    ours: set[int] = set()
    for index, word in enumerate(words[:kernel]):
        before = words[index - 1] if index else ""
        for argument in arguments:
            if is_ours(argument, before, word):
                ours.add(index)
                if argument.get("after") and before == argument["after"]:
                    ours.add(index - 1)
    kept = ""
    for index, match in enumerate(matches[:kernel]):
        if index not in ours:
            start = matches[index - 1].end() if index else 0
            # What our words leave at the beginning of the line goes with them.
            kept += line[start : match.end()] if kept or not index else match.group()
    behind = line[matches[kernel].start() :] if kernel < len(words) else ""
    return kept, [words[index] for index in sorted(ours)], behind


def merge(arguments: list[dict[str, Any]], line: str, words: list[str] | None = None) -> str:
    """``line`` with our arguments once, at its end (before ``--``); all other words keep their order and bytes.

    ``words``: what to append instead of the words of the arguments.  A line that has ours already, wherever they stand,
    is left as it is: kernel-install appends words of its own.
    """
    if words is None and not missing(arguments, line):
        return line
    kept, _, behind = split(arguments, line)
    added = words_of(arguments) if words is None else words
    return " ".join(filter(None, (kept, " ".join(added), behind)))


def require_short(line: str, image: str, where: str) -> None:
    """Raise StepFailed for a command line that the kernel would cut off.

    ``image``: path of the kernel as the boot loader names it: GRUB puts ``BOOT_IMAGE=`` with it in front.
    """
    size = len(("BOOT_IMAGE=%s %s" % (image, line)).encode())
    if size >= COMMAND_LINE_SIZE:
        longest = sorted(_TOKEN.findall(line), key=len)[-3:]
        raise StepFailed(
            "the command line of %s would have %d bytes and the kernel takes %d, so its end would be lost; "
            "the longest words are %s"
            % (where, size, COMMAND_LINE_SIZE - 1, ", ".join("%s (%d)" % (_short(w), len(w)) for w in longest[::-1])),
            errno.E2BIG,
        )


def _short(word: str) -> str:
    return word if len(word) < 40 else word[:37] + "..."
