"""CPU lists: the kernel's list format (``0-3,8``) at the edges, a frozen set of ints inside.

The only parser and the only printer of CPU lists in the product, so that two settings never disagree about one.
Source of the format: Documentation/admin-guide/cputopology.rst and bitmap_parselist() in lib/bitmap-str.c.
The kernel's ``all``, ``N`` and stride forms (``0-15:2/4``) are refused on purpose: other tools that read the same
string misparse them (TuneD's ``cpulist_invert('4-N')`` silently gives every CPU, measured).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)
MAX_CPU = 8191  # NR_CPUS of the largest distribution kernels; a larger number is a typing error


def parse_cpus(text: str) -> frozenset[int]:
    """``"0-2,5"`` -> ``frozenset({0, 1, 2, 5})``.  The empty string is the empty set.

    Raises ValueError with the offending part for anything that is not the plain list format.
    """
    cpus: set[int] = set()
    text = text.strip()
    if not text:
        return frozenset()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if not match:
            raise ValueError(
                f"{part.strip()!r} is not a CPU or a range of CPUs in the kernel's list format, as in 2-3,6"
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ValueError(f"the range {part.strip()!r} runs backwards")
        if last > MAX_CPU:
            raise ValueError(f"CPU {last} is beyond {MAX_CPU}, the largest number a Linux kernel knows")
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """The packed list format, as the kernel prints it: ``frozenset({0, 1, 2, 5})`` -> ``"0-2,5"``."""
    parts: list[str] = []
    start = previous = None
    for cpu in sorted(set(cpus)):
        if previous is not None and cpu == previous + 1:
            previous = cpu
            continue
        if start is not None:
            parts.append(f"{start}" if start == previous else f"{start}-{previous}")
        start = previous = cpu
    if start is not None:
        parts.append(f"{start}" if start == previous else f"{start}-{previous}")
    return ",".join(parts)


def parse_mask(text: str) -> frozenset[int]:
    """The kernel's hexadecimal mask, with or without commas: ``"00000000,00000033"`` -> ``{0, 1, 4, 5}``."""
    value = int(text.strip().replace(",", "") or "0", 16)
    return frozenset(bit for bit in range(value.bit_length()) if value >> bit & 1)


def format_mask(cpus: Iterable[int]) -> str:
    """Hexadecimal mask in 32-bit groups, most significant first, as bitmap_parse() reads it."""
    value = sum(1 << cpu for cpu in set(cpus))
    groups: list[str] = []
    while True:
        groups.append(f"{value & 0xFFFFFFFF:08x}" if value >> 32 else f"{value:x}")
        value >>= 32
        if not value:
            return ",".join(reversed(groups))


def _validate(value: Any) -> Any:
    if isinstance(value, list):
        for cpu in value:
            if isinstance(cpu, int) and not 0 <= cpu <= MAX_CPU:
                raise ValueError(f"there is no CPU {cpu}: a Linux kernel numbers them from 0 to {MAX_CPU}")
    return parse_cpus(value) if isinstance(value, str) else value


#: A set of CPU numbers: ``frozenset[int]`` in code, the kernel's list format in every document.
CpuSet = Annotated[
    frozenset[int],
    BeforeValidator(_validate),
    PlainSerializer(format_cpus, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(-\d+)?(,\d+(-\d+)?)*)?$", "examples": ["2-3,6-7"]}),
]
