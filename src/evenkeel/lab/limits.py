"""How many machines a person may have, for how long, and when they are reminded: ``reservations`` of the settings.

Owners can set a longest reservation of their own machine (:class:`evenkeel.lab.machines.Policy`).
"""

from __future__ import annotations

from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds

HOUR = 3_600 * 10**9
DAY = 24 * HOUR


class Limits(Model):
    """Durations with their unit, as in ``longest: 14d``."""

    longest: Nanoseconds = Field(default=14 * DAY, description="longest reservation, extensions included")
    usual: Nanoseconds = Field(default=DAY, description="length of a reservation that names none")
    ahead: Nanoseconds = Field(default=90 * DAY, description="how far ahead one can be made")
    most: int = Field(default=10, ge=1, description="reservations that a person can have at a time, waiting ones too")
    remind: Nanoseconds = Field(default=4 * HOUR, description="before its end, or at a quarter of a short one's length")
    unused_after: Nanoseconds = Field(default=3 * DAY, description="held so long while somebody waits: asked about")
    waited: Nanoseconds = Field(default=HOUR, description="waiting so long counts for that")
    ask_again: Nanoseconds = Field(default=DAY, description="between two such questions")
