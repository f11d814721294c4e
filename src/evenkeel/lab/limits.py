"""How many machines a person may have, for how long, and when they are reminded: ``limits.yaml`` in the lab's folder.

Absent: the values below.  Owners can set a longest reservation of their own machine (:class:`machines.Policy`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.errors import Where, WrongInput

HOUR = 3_600 * 10**9
DAY = 24 * HOUR


class Limits(Model):
    """Durations with their unit, as in ``longest: 336h``."""

    longest: Nanoseconds = Field(default=14 * DAY, description="longest reservation, extensions included")
    usual: Nanoseconds = Field(default=DAY, description="length of a reservation that names none")
    ahead: Nanoseconds = Field(default=90 * DAY, description="how far ahead one can be made")
    most: int = Field(default=10, ge=1, description="reservations that a person can have at a time, waiting ones too")
    remind: Nanoseconds = Field(default=4 * HOUR, description="before its end, or at a quarter of a short one's length")
    unused_after: Nanoseconds = Field(default=3 * DAY, description="held so long while somebody waits: asked about")
    waited: Nanoseconds = Field(default=HOUR, description="waiting so long counts for that")
    ask_again: Nanoseconds = Field(default=DAY, description="between two such questions")


def read_limits(folder: Path) -> Limits:
    """Raises WrongInput that names the file."""
    file = folder / "limits.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Limits()
    try:
        return Limits.model_validate(YAML(typ="safe").load(text) or {})
    except YAMLError as error:
        raise WrongInput(f"not YAML: {error}", where=Where(str(file))) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WrongInput(f"{place}: {first['msg']}", where=Where(str(file)), hint="as in longest: 336h") from None
