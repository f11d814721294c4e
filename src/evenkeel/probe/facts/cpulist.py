"""CPU lists and masks as the kernel prints them, for the probe, which may not import the documents.

Lenient where :mod:`evenkeel.documents.cpuset` is strict: it reads what a kernel wrote, of any version, and never what
a person typed.  A test holds both to the same answers.
"""

from __future__ import annotations

from typing import Iterable

_MOST = 1 << 13  # no kernel has more CPUs (MAX_CPU of the documents); a broken file must not become a set of millions


def parse_list(text: str | None) -> frozenset[int]:
    """``"0-2,5"`` -> {0, 1, 2, 5}.  Empty, missing and the kernel's ``(null)`` (an unset mask) are the empty set."""
    cpus: set[int] = set()
    for part in (text or "").strip().split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal() and int(last or first) < _MOST:
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def parse_mask(text: str | None) -> frozenset[int]:
    """``"00000000,00000033"`` -> {0, 1, 4, 5}: hexadecimal, 32-bit groups, most significant first."""
    digits = (text or "").strip().replace(",", "")
    try:
        value = int(digits or "0", 16) if len(digits) <= _MOST // 4 else 0
    except ValueError:
        return frozenset()
    cpus: list[int] = []
    while value > 0:  # by set bits: a mask of 8192 CPUs usually has few
        low = value & -value
        cpus.append(low.bit_length() - 1)
        value ^= low
    return frozenset(cpus)


def ranges(cpus: Iterable[int]) -> list[tuple[int, int]]:
    """{0, 1, 2, 5} -> [(0, 2), (5, 5)]."""
    found: list[tuple[int, int]] = []
    for cpu in sorted(set(cpus)):
        if found and cpu == found[-1][1] + 1:
            found[-1] = (found[-1][0], cpu)
        else:
            found.append((cpu, cpu))
    return found


def format_list(cpus: Iterable[int]) -> str:
    """{0, 1, 2, 5} -> ``"0-2,5"``."""
    return ",".join("%d" % low if low == high else "%d-%d" % (low, high) for low, high in ranges(cpus))


def format_mask(cpus: Iterable[int]) -> str:
    """{0, 32} -> ``"1,00000001"``, what :func:`parse_mask` reads."""
    value = sum(1 << cpu for cpu in set(cpus))
    groups = ["%08x" % (value >> place & 0xFFFFFFFF) for place in range(0, max(1, value.bit_length()), 32)]
    return ",".join(reversed(groups))
