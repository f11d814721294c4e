"""How long artifacts are kept: ``artifacts`` in the lab's settings file.  Values only; see lab.artifacts."""

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
    grace: Nanoseconds = Field(
        default=DAY_NS, ge=0, description="what nobody names: an upload, or of an agent that was away"
    )
