"""Result: what came of one step, wherever it ran.

The same on an agent of the lab and on a developer's machine: two runs of the same step on the same inputs differ in
``times`` and ``place`` only (:meth:`Result.comparable`).
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from evenkeel.documents.base import Document, Model
from evenkeel.documents.quantity import Bytes, Nanoseconds

State = Literal["passed", "failed", "timed-out", "cancelled", "lost"]
#: Why a step did not pass.  ``exit``: its command said so; ``lost`` and ``machine`` are found out by the lab.
Cause = Literal[
    "", "exit", "time", "memory", "disk", "tool", "input", "output", "artifact", "cancelled", "lost", "machine", "agent"
]


class Artifact(Model):
    """A file that a step gave, named by what is in it."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: Bytes
    media: str = "application/octet-stream"
    varies: bool = Field(default=False, description="whether its bytes differ from run to run, as those of a log")


class Warned(Model):
    """A compiler's warning without what moves: line numbers and folders (see lab.warnings)."""

    signature: str
    tool: str
    file: str
    text: str
    times: int = Field(ge=1)


class Times(Model):
    """Nanoseconds since 1970, and what it took.  Differs from run to run."""

    started_ns: int
    ended_ns: int
    cpu: Nanoseconds | None = Field(default=None, description="of all its processes together")
    memory: Bytes | None = Field(default=None, description="the most at once")


class Place(Model):
    """Where it ran and how it was held.  Differs from place to place."""

    host: str
    agent: str = ""
    machine: str = Field(default="", description="the machine of the pool that it had for itself")
    kernel: str = ""
    isolation: str = "process"
    limits: tuple[str, ...] = Field(default=(), description="what held each limit")


class Result(Document):
    """What came of one step."""

    kind: Literal["Result"] = "Result"
    version: Literal[1] = 1
    step: str = Field(description="kind of the step")
    same: str = Field(default="", description="results with the same text here may be compared")
    step_sha256: str = Field(description="of its definition and settings")
    settings: dict[str, str] = {}
    inputs: dict[str, str] = Field(default={}, description="name -> SHA-256 of a file, or commit")
    state: State
    cause: Cause = ""
    detail: str = Field(default="", description="the cause in words")
    exit: int | None = Field(default=None, description="of its command; -9: ended by signal 9")
    output: dict[str, Any] = {}
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[Warned, ...] | None = Field(default=None, description="None: it has no compiler's log")
    times: Times
    place: Place

    def comparable(self) -> str:
        """Canonical JSON of all but times and place: equal bytes mean that the same came of it."""
        data = self.model_dump(mode="json", exclude={"times", "place"})
        for one in data["artifacts"]:
            if one["varies"]:
                del one["sha256"], one["size"]
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
