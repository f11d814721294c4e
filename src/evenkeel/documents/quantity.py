"""Durations and sizes: a number with a unit at the edges, integers of nanoseconds and bytes inside.

A bare number is refused, because nobody can tell what it means.  Binary units only for sizes (KiB, MiB, GiB, TiB):
"GB" is refused with the cure, since half of the tools in this field read it one way and half the other.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµμ]*)\s*", re.ASCII)
DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DECIMAL = {"KB": "KiB", "MB": "MiB", "GB": "GiB", "TB": "TiB", "K": "KiB", "M": "MiB", "G": "GiB", "T": "TiB"}


def _parse(text: str, units: dict[str, int], what: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text)
    known = ", ".join(units)
    if not match:
        raise ValueError(f"{text!r} is not a {what}; write a number and a unit, as in {example}")
    number, unit = Fraction(match[1]), match[2].replace("µ", "u").replace("μ", "u")
    if unit not in units:
        close = next((name for name in units if name.lower() == unit.lower()), _DECIMAL.get(unit.upper()))
        cure = f"did you mean {match[1]}{close}?" if close in units else f"units are {known}"
        raise ValueError(f"{text!r} has no unit; {cure}" if not unit else f"unknown unit {unit!r} in {text!r}; {cure}")
    value = number * units[unit]
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of {next(iter(units))}")
    return int(value)


def parse_duration(text: str) -> int:
    """``"100us"`` -> 100000 (nanoseconds).  Raises ValueError that names the units."""
    return _parse(text, DURATION_UNITS, "duration", "100us")


def parse_size(text: str) -> int:
    """``"4GiB"`` -> 4294967296 (bytes).  Raises ValueError that names the units."""
    return _parse(text, SIZE_UNITS, "size", "4GiB")


def _format(value: int, units: dict[str, int]) -> str:
    unit, factor = max(((u, f) for u, f in units.items() if value % f == 0 and (value or f == 1)), key=lambda x: x[1])
    return f"{value // factor}{unit}"


def format_duration(nanoseconds: int) -> str:
    """Exact, in the largest unit that needs no fraction: 100000 -> ``"100us"``."""
    return _format(nanoseconds, DURATION_UNITS)


def format_size(size_bytes: int) -> str:
    """Exact, in the largest unit that needs no fraction: 4294967296 -> ``"4GiB"``."""
    return _format(size_bytes, SIZE_UNITS)


def _validate_with(parse: Any, example: str) -> Any:
    def validate(value: Any, about: ValidationInfo) -> Any:
        written_by_hand = bool(about.context and about.context.get("written_by_hand"))
        if isinstance(value, bool) or not isinstance(value, str if written_by_hand else (str, int)):
            raise ValueError(f"write a number and a unit, as in {example}")
        # Inside documents (JSON) the integer stands by itself; the site file reader passes text only.
        return parse(value) if isinstance(value, str) else value

    return validate


#: An integer of nanoseconds; text with a unit is parsed.
Nanoseconds = Annotated[
    int,
    BeforeValidator(_validate_with(parse_duration, "100us")),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["100us"], "description": "a duration with its unit"}),
]
#: An integer of bytes; text with a unit is parsed.
Bytes = Annotated[
    int,
    BeforeValidator(_validate_with(parse_size, "4GiB")),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["4GiB"], "description": "a size with its unit"}),
]
