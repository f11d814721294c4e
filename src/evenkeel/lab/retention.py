"""How long a lab keeps what its steps left: ``artifacts``, ``logs`` and ``results`` in its settings file.

Values only; see lab.artifacts and lab.records, which remove what is older.
"""

from __future__ import annotations

from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds

DAY_NS = 24 * 3600 * 10**9


class Retention(Model):
    """Failed ones are kept longer: somebody still has to find out why."""

    last: int = Field(
        default=10, ge=1, description="results of each kind and branch that are kept, however old they are"
    )
    passed: Nanoseconds = Field(default=14 * DAY_NS, ge=0, description="what older results gave that passed")
    failed: Nanoseconds = Field(default=60 * DAY_NS, ge=0, description="what others gave")


class ArtifactRetention(Retention):
    grace: Nanoseconds = Field(
        default=DAY_NS, ge=0, description="what nobody names: an upload, or of an agent that was away"
    )


class LogRetention(Retention):
    """A log may have 256 MiB, but most have some KiB, and say more about an old failure than all else that is left."""

    passed: Nanoseconds = Field(default=60 * DAY_NS, ge=0, description="of older results that passed")
    failed: Nanoseconds = Field(default=180 * DAY_NS, ge=0, description="of others")


class ResultRetention(Retention):
    """Documents with their warnings, some KiB each."""

    passed: Nanoseconds = Field(default=400 * DAY_NS, ge=0, description="older ones that passed")
    failed: Nanoseconds = Field(default=400 * DAY_NS, ge=0, description="others")


#: More than a year: whoever is asked what was done last year can answer.
EVENTS_NS = 400 * DAY_NS
