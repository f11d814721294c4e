"""Numbers as people read them, on pages and on the command line: times, durations, sizes.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from evenkeel.lab import flat

#: For who looks for a machine before there is one.
NO_MACHINE = (
    "there is no machine yet: `evenkeel lab machine add ADDRESS` adds one, `evenkeel lab demo` makes virtual ones"
)
_SECOND = 10**9
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def moment(at_ns: int | None) -> str:
    """``2026-11-29 10:04`` (UTC)."""
    return "" if at_ns is None else datetime.fromtimestamp(at_ns // _SECOND, UTC).strftime("%Y-%m-%d %H:%M")


def duration(ns: float | None) -> str:
    """Its two largest units: ``2 d 4 h``, ``45 s``, ``250 ms``."""
    if ns is None:
        return ""
    if ns < 0:
        return f"-{duration(-ns)}"
    seconds = round(ns / _SECOND)
    if ns < 0.9995 * _SECOND:
        return f"{round(ns / 1e6)} ms" if ns else "0 s"
    for index, (unit, name) in enumerate(_UNITS):
        if seconds >= unit:
            whole, rest = divmod(seconds, unit)
            below = _UNITS[index + 1] if index + 1 < len(_UNITS) else None
            more = rest // below[0] if below else 0
            return f"{whole} {name}" + (f" {more} {below[1]}" if below and more else "")
    return "0 s"


def ago(at_ns: int | None, now_ns: int) -> str:
    """``3 min ago``, ``in 2 h``, ``now``."""
    if at_ns is None:
        return "never"
    apart = now_ns - at_ns
    if abs(apart) < _SECOND:
        return "now"
    return f"{duration(apart)} ago" if apart > 0 else f"in {duration(-apart)}"


def cause(error: Exception) -> str:
    """What went wrong in words: without the number that Python puts before them."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def several(count: int, one: str, many: str = "") -> str:
    """``1 machine``, ``2 machines``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


#: Numbers of nanoseconds beyond are moments (1973), below are lengths of time (three years).
_A_MOMENT = 10**17


def details(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an event says besides, as a person reads it: ``("until", "2026-11-29 10:04 UTC")``; nothing empty."""
    shown = []
    for key, value in data.items():
        if value in (None, "", [], {}) or (key == "machine_id" and data.get("machine")):
            continue
        if key.endswith("_ns") and isinstance(value, int) and not isinstance(value, bool):
            said = f"{moment(value)} UTC" if value > _A_MOMENT else duration(value)
            shown.append((key.removesuffix("_ns"), said))
        else:
            shown.append((key.replace("_", " "), _said(value)))
    return shown


def edits(fields: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What an event tells was edited, as field, what it was and is; of a field with keys, as a policy, by those that
    are others now."""
    told = []
    for field, pair in fields.items():
        old, new = pair["old"], pair["new"]
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            old, new = {field: old}, {field: new}
        for key in (key for key in {**old, **new} if old.get(key) != new.get(key)):
            was, now = details({key: old.get(key)}), details({key: new.get(key)})
            told.append(((was or now or [(key, "")])[0][0], was[0][1] if was else "–", now[0][1] if now else "–"))
    return told


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        if value and all(isinstance(one, Mapping) and one.keys() == {"old", "new"} for one in value.values()):
            return "; ".join(f"{field} {was} → {now}" for field, was, now in edits(value))
        return "; ".join(f"{key} {_said(one)}" for key, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_said(one) for one in value)
    return "" if value is None else str(value)


def subject(kind: str, id_: str, data: Mapping[str, Any]) -> str:
    """What an event is about: ``machine host1`` rather than its number, where the event tells the name."""
    name = data.get("name") if kind == "machine" else None
    return f"{'reservation' if kind == 'claim' else kind} {name or id_}".rstrip()


def size(count: int | None) -> str:
    """Bytes: ``3.2 MiB``."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def fact(key: str, value: str | float) -> str:
    """The value of a flat fact as a person reads it: ``32 GiB``, ``25 Gbps``."""
    known = flat.key(key)
    if isinstance(value, str) or known is None:
        return str(value)
    if known.kind == "size":
        return size(int(value))
    if known.kind in ("speed", "frequency"):
        return f"{value / 1e9:g} {'Gbps' if known.kind == 'speed' else 'GHz'}"
    return f"{value:g}" if abs(value) < 1e6 else str(value)
