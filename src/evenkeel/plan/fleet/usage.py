"""Accounts of a site out of its history: what each owner held in each period, in hours times what was held.  Pure.

A guest holds what was planned for it from the moment it was applied, whether it runs or not: nobody else may have it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from evenkeel.documents.history import HeldGuest, HistoryEntry

GIB = 1 << 30
HOUR = 3600.0
#: A clock that is set is off by more than this against the kernel's own count; one that is disciplined is not.
STEP_S = 60.0


@dataclass(frozen=True)
class Dated:
    """``seconds`` since the epoch: first as the line says, then as :func:`straighten` has it."""

    seconds: float
    entry: HistoryEntry


@dataclass(frozen=True)
class Usage:
    """Of one owner in one period, everything in hours: four cores for half an hour are two core-hours."""

    period: int
    owner: str
    guest: float = 0.0
    vcpu: float = 0.0
    core: float = 0.0
    cpu: float = 0.0
    node: float = 0.0
    memory_gib: float = 0.0
    huge_gib: float = 0.0
    function: float = 0.0


_SUMS = tuple(field.name for field in fields(Usage))[2:]


def straighten(entries: Sequence[Dated], now: float) -> tuple[list[Dated], list[str]]:
    """Entries in their order with times that never go back; and a sentence for each that was dated anew.

    Between two lines of one boot the kernel's own count tells how much time went by, whatever was done to the clock.
    The last line of a boot is taken to have the right date, since a wrong clock is set right sooner or later.  A line
    from the future counts from the next one on, or from ``now``; one that is older than the line in front of it, from
    that one on.
    """
    anchors: dict[str, Dated] = {}
    for one in entries:
        if one.entry.boot:
            anchor = anchors.setdefault(one.entry.boot, one)
            anchors[one.entry.boot] = max(anchor, one, key=lambda other: other.entry.uptime_s)
    times: list[float] = []
    reasons: list[str] = []
    latest = float("-inf")
    for one in entries:
        seconds, why = one.seconds, ""
        if (found := anchors.get(one.entry.boot)) is not None:
            counted = found.seconds - (found.entry.uptime_s - one.entry.uptime_s)
            if abs(counted - seconds) > STEP_S:
                seconds, why = counted, "the clock was set after it"
        if seconds > now + STEP_S:
            seconds, why = float("inf"), "it is dated in the future"
        else:
            if seconds < latest - STEP_S:
                why = "it is dated before the entry in front of it"
            seconds = latest = max(seconds, latest)
        times.append(seconds)
        reasons.append(why)
    following = now
    for at in reversed(range(len(times))):
        following = times[at] = min(times[at], following)
    remarks = [
        f"entry {number} ({one.entry.host}, {one.entry.at}) counts from another moment: {why}"
        for number, (one, why) in enumerate(zip(entries, reasons, strict=True), 1)
        if why
    ]
    return [Dated(seconds, one.entry) for seconds, one in zip(times, entries, strict=True)], remarks


def usage(entries: Sequence[Dated], edges: Sequence[float]) -> list[Usage]:
    """What was held in each period, by period, then owner; guests without an owner are under ``-``.

    ``edges``: where periods begin, and where the last one ends; in order.
    """
    by_host: dict[str, list[Dated]] = defaultdict(list)
    for one in entries:
        by_host[one.entry.host].append(one)
    sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0] * len(_SUMS))
    for lines in by_host.values():
        for at, one in enumerate(lines):
            end = lines[at + 1].seconds if at + 1 < len(lines) else edges[-1]
            for period, (begin, stop) in enumerate(pairwise(edges)):
                hours = (min(end, stop) - max(one.seconds, begin)) / HOUR
                if hours <= 0:
                    continue
                for owner, amounts in _held(one.entry.guests).items():
                    row = sums[period, owner]
                    for column, amount in enumerate(amounts):
                        row[column] += amount * hours
    return [
        Usage(period, owner, *(round(amount, 6) for amount in row)) for (period, owner), row in sorted(sums.items())
    ]


def _held(guests: Iterable[HeldGuest]) -> dict[str, list[float]]:
    """What each owner holds of one host, in the order of ``_SUMS``."""
    found: dict[str, list[float]] = {}
    nodes: dict[str, set[int]] = defaultdict(set)
    for guest in guests:
        owner = guest.owner or "-"
        row = found.setdefault(owner, [0.0] * len(_SUMS))
        nodes[owner].update(guest.nodes)
        amounts = {
            "guest": 1.0,
            "vcpu": float(guest.vcpus),
            "core": float(guest.cores),
            "cpu": float(guest.cpus),
            "memory_gib": guest.memory_bytes / GIB,
            "huge_gib": guest.huge_bytes / GIB,
            "function": float(len(guest.functions)),
        }
        for name, amount in amounts.items():
            row[_SUMS.index(name)] += amount
    for owner, row in found.items():
        row[_SUMS.index("node")] = float(len(nodes[owner]))
    return found
