"""History: which guests held what of which host from when on.  The accounts of a site are made from it.

Apply appends one line for a host whenever what is held there changes (:mod:`evenkeel.apply.history`); this is the model
of that file once it is read back.  A line holds all guests of the host, and counts until the next line of that host.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evenkeel.documents.base import Document, Model
from evenkeel.documents.plan import GuestPlan


class HeldGuest(Model):
    """What one guest holds.  ``cores``: whole ones, of which it has every thread; ``cpus``: with those kept empty."""

    name: str
    owner: str | None = None
    goal: str
    vcpus: int
    cores: int = 0
    cpus: int = 0
    nodes: tuple[int, ...] = ()
    memory_bytes: int
    huge_bytes: int = 0
    functions: tuple[str, ...] = ()


class HistoryEntry(Model):
    """One line.  ``boot``, ``uptime_s``: of the machine that wrote it, to see through steps of its clock."""

    at: str = Field(description="UTC, RFC 3339", examples=["2026-11-29T01:37:15.250Z"])
    boot: str = Field(description="boot_id of the machine that wrote this line")
    uptime_s: float = Field(ge=0, description="CLOCK_BOOTTIME of that machine")
    event: Literal["applied", "rolled back"] = "applied"
    host: str
    address: str
    plan_sha256: str | None = None
    guests: tuple[HeldGuest, ...] = ()


class History(Document):
    kind: Literal["History"] = "History"
    version: Literal[1] = 1
    entries: tuple[HistoryEntry, ...] = ()


def held_by(guest: GuestPlan) -> HeldGuest:
    """What a planned guest holds once the plan is applied.  Guests that share CPUs hold no CPU."""
    own = guest.cores > 0
    taken = frozenset(cpu for vcpu in guest.vcpus for cpu in vcpu.cpus) | guest.idle if own else frozenset()
    return HeldGuest(
        name=guest.name,
        owner=guest.owner,
        goal=guest.goal,
        vcpus=len(guest.vcpus),
        cores=guest.cores,
        cpus=len(taken),
        nodes=guest.nodes,
        memory_bytes=guest.memory_bytes,
        huge_bytes=guest.memory_bytes if guest.page_bytes else 0,
        functions=guest.functions,
    )
