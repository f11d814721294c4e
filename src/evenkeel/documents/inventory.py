"""Inventory: what tells a machine from all others, made by the probe beside its facts.

Kept by a lab's pool and shown to those who may see machines; never part of a plan, a report or a bulletin.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evenkeel.documents.base import Document


class Inventory(Document):
    """Serial numbers are absent where the probe did not run as root, or the vendor wrote none."""

    kind: Literal["Inventory"] = "Inventory"
    version: Literal[1] = 1
    uuid: str | None = Field(default=None, description="of the system, as its firmware has it")
    serials: dict[Literal["system", "board", "chassis"], str] = {}
    cpu_vendor: str | None = None
    cpu_flags: tuple[str, ...] = Field(default=(), description="flags (x86) or Features (arm64) of /proc/cpuinfo")
    link_mbps: dict[str, int] = Field(default={}, description="interface -> speed of its link, where that is up")
