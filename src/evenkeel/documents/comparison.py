"""Comparison: how two pieces of Evidence differ, with confidence, and in which conditions.

Made by :mod:`evenkeel.measure.difference`.
"""

from __future__ import annotations

from typing import Literal

from evenkeel.documents.base import Document, Model

Shown = Literal["worse", "better", "no difference shown"]


class Difference(Model):
    """One number of one place in both runs.

    ``low`` to ``high`` holds later minus earlier (nanoseconds, or a share for misses) with the confidence of the whole
    comparison; None: no bound on that side.
    """

    place: str  # "guest plc, vCPU 1, cyclictest"
    of: str  # "99.9 %", "largest", "misses of 100us"
    unit: Literal["ns", "share"] = "ns"
    earlier: float | None  # None: beyond what the tool tells apart
    later: float | None
    low: float | None
    high: float | None
    shown: Shown
    why: str = ""


class Changed(Model):
    """A condition that was not the same."""

    name: str
    earlier: str
    later: str


class Comparison(Document):
    kind: Literal["Comparison"] = "Comparison"
    version: Literal[1] = 1
    host: str
    earlier_sha256: str
    later_sha256: str
    confidence: float  # of all differences together
    shown: Shown  # the worst of them
    differences: tuple[Difference, ...] = ()
    changed: tuple[Changed, ...] = ()
    unpaired: tuple[str, ...] = ()  # what only one of the two has
    label: str = ""  # EMULATION_NOTE where it applies
