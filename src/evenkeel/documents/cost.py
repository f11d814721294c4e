"""Cost: what the owner of a plan gives up, guest by guest and for the host as a whole, and what stays possible.

Computed from a plan and the facts that it was made from (:mod:`evenkeel.plan.cost`); shown by
`evenkeel plan SITE --what-you-give-up`.  Sizes are bytes.
"""

from __future__ import annotations

from typing import Literal

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet
from evenkeel.documents.site import GoalLevel

State = Literal["given up", "limited", "kept"]


class CostItem(Model):
    """One thing that people take for granted, and what is left of it."""

    id: str  # "migration", "idle-cpus": the same word for every guest
    what: str
    state: State
    amount: str = ""  # "2 CPUs (9,11)", "4GiB"
    because: str
    instead: str = ""  # what is possible in its place, or how to have it back
    cpus: CpuSet | None = None
    bytes: int | None = None
    settings: tuple[str, ...] = ()  # Setting.id of those that cause it


class GuestCost(Model):
    name: str
    goal: GoalLevel
    strict: bool = False
    items: tuple[CostItem, ...]

    def item(self, identifier: str) -> CostItem | None:
        return next((item for item in self.items if item.id == identifier), None)


class HostCost(Model):
    name: str
    items: tuple[CostItem, ...]
    guests: tuple[GuestCost, ...] = ()

    def item(self, identifier: str) -> CostItem | None:
        return next((item for item in self.items if item.id == identifier), None)


class Cost(Document):
    kind: Literal["Cost"] = "Cost"
    version: Literal[1] = 1
    plan_sha256: str
    hosts: tuple[HostCost, ...]
