"""What differs between two plans: settings, CPU roles, guests.  Pure; says nothing about what is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import GuestPlan, HostPlan, Ledger, Plan

Kind = Literal["added", "removed", "changed"]
ROLES = ("housekeeping", "data_plane", "realtime", "idle", "shared")


@dataclass(frozen=True)
class Difference:
    """``what``: a setting's id, ``cpus housekeeping``, ``guest plc: node``.  A value that is not there is None."""

    host: str
    kind: Kind
    what: str
    before: str | None
    after: str | None


def diff_plans(before: Plan, after: Plan) -> tuple[Difference, ...]:
    """Sorted by host and subject; empty when the two plans ask for the same."""
    old = {host.name: host for host in before.hosts}
    new = {host.name: host for host in after.hosts}
    found: list[Difference] = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            found.append(Difference(name, "removed", "host", old[name].address, None))
        elif name not in old:
            found.append(Difference(name, "added", "host", None, new[name].address))
        else:
            found += _diff_host(old[name], new[name])
    return tuple(found)


def _diff_host(before: HostPlan, after: HostPlan) -> list[Difference]:
    pairs = [
        ("address", before.address, after.address),
        ("kernel", before.kernel_release, after.kernel_release),
        *_roles(before.ledger, after.ledger),
        *_compare({s.id: s.new for s in before.settings}, {s.id: s.new for s in after.settings}),
    ]
    old = {guest.name: guest for guest in before.guests}
    new = {guest.name: guest for guest in after.guests}
    for name in sorted(old.keys() | new.keys()):
        told = _guest(old[name]) if name in old else {}
        tnew = _guest(new[name]) if name in new else {}
        pairs += [(f"guest {name}: {key}", one, two) for key, one, two in _compare(told, tnew)]
    return [
        Difference(after.name, "added" if one is None else "removed" if two is None else "changed", what, one, two)
        for what, one, two in pairs
        if one != two
    ]


def _roles(before: Ledger, after: Ledger) -> list[tuple[str, str | None, str | None]]:
    return [
        (f"cpus {role.replace('_', ' ')}", format_cpus(getattr(before, role)), format_cpus(getattr(after, role)))
        for role in ROLES
    ]


def _guest(guest: GuestPlan) -> dict[str, str | None]:
    return {
        "goal": guest.goal,
        "node": " ".join(map(str, guest.nodes)) or None,
        "cells": "; ".join(f"{format_cpus(cell.vcpus)}, {cell.memory_bytes}" for cell in guest.cells) or None,
        "vCPUs": " ".join(f"{v.index}:{format_cpus(v.cpus)}:{v.policy}:{v.priority}" for v in guest.vcpus),
        "emulator": format_cpus(guest.emulator_cpus),
        "memory": str(guest.memory_bytes),
        "pages": f"{guest.pages} of {guest.page_bytes}" if guest.page_bytes else None,
    }


def _compare(before: dict[str, str | None], after: dict[str, str | None]) -> list[tuple[str, str | None, str | None]]:
    """In the order of ``after``, then what only ``before`` has."""
    keys = [*after, *(key for key in before if key not in after)]
    return [(key, before.get(key), after.get(key)) for key in keys]
