"""Whether a text read back from a kernel file means the value that was wanted; the probe's own copy of the comparison.

:meth:`evenkeel.documents.plan.FileValue.matches` is the comparison of the controlling side; a test holds both to the
same answers.  Must not read anything.
"""

from __future__ import annotations

import re

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def matches(read: str | None, wanted: str | None, how: str) -> bool:
    """``how``: as FileValue.compare.  A text that does not parse is no match, never an error."""
    if read is None or wanted is None:
        return read is wanted
    try:
        if how == "integer":
            return int(read, 0) == int(wanted, 0)
        if how == "cpulist":
            return cpu_list("" if read.strip() == "(null)" else read) == cpu_list(wanted)
        if how == "cpumask":
            return _mask(read) == _mask(wanted)
        if how == "schemata":
            masks = _schemata(wanted)
            return bool(masks) and masks.items() <= _schemata(read).items()
    except ValueError:
        return False
    if how == "choice":
        return "[%s]" % wanted in read.split() or read.strip() == wanted
    if how == "words":
        return read.split() == wanted.split()
    return read.strip() == wanted.strip()


def writable(read: str) -> str:
    """What to write to a file so that it reads ``read`` again: ``always [madvise] never`` is set by ``madvise``."""
    chosen = re.search(r"(?:\A|\s)\[(\S+)\](?:\s|\Z)", read)
    return chosen.group(1) if chosen else read


def cpu_list(text: str) -> set[int]:
    """``0-2,5`` -> {0, 1, 2, 5}; raises ValueError for anything else.

    Strict, unlike :func:`evenkeel.probe.facts.cpulist.parse_list`: this one sees what is going to be written.
    """
    cpus: set[int] = set()
    for part in text.strip().split(",") if text.strip() else []:
        found = _RANGE.fullmatch(part.strip())
        if not found or int(found.group(2) or found.group(1)) < int(found.group(1)):
            raise ValueError("%r is not a CPU list" % text)
        if int(found.group(2) or found.group(1)) > 8191:
            raise ValueError("%r names a CPU that no Linux kernel has" % text)
        cpus.update(range(int(found.group(1)), int(found.group(2) or found.group(1)) + 1))
    return cpus


def _schemata(text: str) -> dict[tuple[str, int], int]:
    """``L3:0=7ff;1=7f0`` -> {("L3", 0): 0x7ff, ("L3", 1): 0x7f0}; raises ValueError for a text of another form."""
    found: dict[tuple[str, int], int] = {}
    for line in text.strip().splitlines():
        resource, _, values = line.strip().partition(":")
        for part in values.split(";"):
            domain, _, value = part.partition("=")
            found[resource, int(domain)] = int(value, 16)
    return found


def _mask(text: str) -> int:
    return int(text.strip().replace(",", "") or "0", 16)
