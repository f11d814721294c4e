"""Warnings of compilers, told apart by what they say and not by where they stand: which ones are new?

A warning becomes a signature without line numbers, folders, addresses and numbered copies of functions, so that a line
added above it, or another build folder, does not make it new.  Pure: text in, warnings out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from evenkeel.documents.result import Warned

#: gcc, clang and sparse: FILE:LINE:COLUMN: warning: TEXT
_COMPILER = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+):(?:(?P<column>\d+):)? warning: (?P<text>.*)")
#: objtool, ld: OBJECT: warning: TEXT, or ld: warning: TEXT
_OBJECT = re.compile(r"(?:\S*ld(?:\.\w+)?: )?(?:warning: )?(?P<file>[^\s:]+\.k?o): warning: (?P<text>.*)")
_LINKER = re.compile(r"\S*\bld(?:\.\w+)?: warning: (?P<text>.*)")
#: modpost: WARNING: modpost: TEXT; older ones without the name.
_MODPOST = re.compile(r"WARNING: (?:modpost: )?(?P<text>.*)")
_RUST = re.compile(r"warning(?:\[\w+\])?: (?P<text>.*)")
_RUST_PLACE = re.compile(r"\s*--> (?P<file>[^\s:]+):(?P<line>\d+):(?P<column>\d+)")

_COLOURS = re.compile(r"\x1b\[[0-9;]*[mK]")
_QUOTES = str.maketrans("‘’“”`", "'''''")
_NORMAL = (
    (re.compile(r"(?:/usr/src/[^/\s']+|(?:\.\.?)(?=/))/"), ""),
    (re.compile(r"(\.[chSo]|\.rs)(?::\d+)+"), r"\1"),
    (re.compile(r"\b(?:at|on|from) line \d+"), "at a line"),
    (re.compile(r"0x[0-9a-f]+", re.IGNORECASE), "0x"),
    (re.compile(r"\+0x(?:/0x)?"), ""),
    (re.compile(r"\.(isra|constprop|part|cold|llvm)(?:\.\d+)*"), r".\1"),
    (re.compile(r"\b(__UNIQUE_ID_\w*?|__compiletime_assert_|\.L\w*?|__key\.|__already_done\.)\d+\b"), r"\1"),
    (re.compile(r"\s+"), " "),
)


def warnings_in(log: str, roots: Iterable[str] = ()) -> tuple[Warned, ...]:
    """Each different warning of a log once, by signature; ``times``: at how many places.

    ``roots``: folders whose names are left out of paths (where the sources lay this time).
    The same place told twice (a header that many files include) counts once.
    """
    strip = [root.rstrip("/") + "/" for root in sorted(roots, key=len, reverse=True)]
    places: set[tuple[str, str, str]] = set()
    found: dict[str, Warned] = {}
    counts: Counter[str] = Counter()
    lines = _COLOURS.sub("", log).translate(_QUOTES).splitlines()
    for index, line in enumerate(lines):
        read = _read(line, lines[index + 1] if index + 1 < len(lines) else "")
        if read is None:
            continue
        tool, file, text, place = read
        for root in strip:
            file, text = file.replace(root, ""), text.replace(root, "")
        file, normal = _normal_file(file), normalise(text)
        if (file, text, place) in places:
            continue
        places.add((file, text, place))
        key = signature(tool, file, normal)
        counts[key] += 1
        found.setdefault(key, Warned(signature=key, tool=tool, file=file, text=normal, times=1))
    return tuple(found[key].model_copy(update={"times": counts[key]}) for key in sorted(found))


def _read(line: str, after: str) -> tuple[str, str, str, str] | None:
    """(tool, file, text, place) of a line that is a warning."""
    if match := _COMPILER.search(line):
        return "cc", match["file"], match["text"], f"{match['line']}:{match['column']}"
    if match := _OBJECT.search(line):
        tool, _, rest = match["text"].partition(": ") if match["text"].startswith("objtool: ") else ("ld", "", "")
        return tool, match["file"], rest or match["text"], line
    if match := _LINKER.match(line):
        return "ld", "", match["text"], line
    if match := _MODPOST.match(line):
        return "modpost", "", match["text"], line
    if (match := _RUST.match(line)) and (place := _RUST_PLACE.match(after)):
        return "rustc", place["file"], match["text"], f"{place['line']}:{place['column']}"
    return None


def _normal_file(file: str) -> str:
    """Without the folder of this build: relative paths stay as they are, of others only what every build shares."""
    while file.startswith(("./", "../")):
        file = file.partition("/")[2]
    if file.startswith("/usr/src/"):
        return file.split("/", 4)[-1]
    return file.rpartition("/")[2] if file.startswith("/") else file


def normalise(text: str) -> str:
    """The words of a warning without what moves."""
    for pattern, instead in _NORMAL:
        text = pattern.sub(instead, text)
    return text.strip()


def signature(tool: str, file: str, normal: str) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256("\0".join((tool, file, normal)).encode()).hexdigest()[:16]


def new_warnings(now: Sequence[Warned], before: Sequence[Warned]) -> tuple[Warned, ...]:
    """Those of ``now`` that are not in ``before``, or more often than there; ``times``: how much more often."""
    had = {one.signature: one.times for one in before}
    return tuple(
        one.model_copy(update={"times": one.times - had.get(one.signature, 0)})
        for one in now
        if one.times > had.get(one.signature, 0)
    )
