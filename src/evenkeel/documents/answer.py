"""Answer: what was asked of a running kernel, how it was found out, what it cost, and what came out.

``source`` and ``mechanism`` say how it was really done, ``refused`` why nothing cheaper was; ``lost`` is always there.
Latencies taken where ``conditions.emulated`` is true mean nothing, see :data:`evenkeel.documents.evidence`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet
from evenkeel.documents.evidence import Conditions
from evenkeel.documents.histogram import Histogram

Kind = Literal["count", "top", "latency", "wakeups", "profile", "noise", "exits", "record"]
#: What a count can be broken down by.
By = Literal["process", "thread", "command", "user", "cgroup", "cpu", "vcpu", "guest"]


class Question(Model):
    """What is asked.  ``events``: ``sched:sched_switch`` and the like, as the kind needs them."""

    kind: Kind
    events: tuple[str, ...] = ()
    by: By | None = None
    #: What joins a beginning to its end: ``thread``, ``process``, ``cpu``, a field of both, or ``FIELD=FIELD``.
    key: str | None = None
    frequency_hz: int = 99
    at_least: int = 1
    cpus: CpuSet | None = None  # only what happens there
    process: int | None = None  # only what its threads do
    guest: str | None = None
    field: str | None = None  # the number that each record has besides
    seconds: float = 5.0
    #: What it may take of one core before it is sampled.
    budget: float = 0.01


class Refused(Model):
    """A cheaper source that was not used.  ``errno``: the kernel's, or None where it cannot answer by its nature."""

    source: str
    why: str
    errno: str | None = None


class TraceCost(Model):
    """What tracing takes from the machine while it is attached.  ``share_of_core``: 0.01 is one hundredth of one core.

    Over the whole time it is as much times ``Answer.sampled``; that is what a budget is about.
    """

    ns_per_event: float
    events_per_s: float
    share_of_core: float
    how: str  # where the numbers are from


class Row(Model):
    key: str
    label: str
    count: int
    total_ns: int | None = None
    longest_ns: int | None = None


class Stack(Model):
    """So many samples of the same stack: the command, then from the outermost function to the innermost.

    A function of the kernel has ``_[k]`` behind its name.
    """

    frames: tuple[str, ...]
    count: int


class Answer(Document):
    kind: Literal["Answer"] = "Answer"
    version: Literal[1, 2] = 2
    host: str
    question: Question
    source: str
    mechanism: tuple[str, ...]
    refused: tuple[Refused, ...] = ()
    events: int
    lost: int
    seconds: float  # during which it was attached
    #: Share of the time in which it was attached.  Below 1 ``events`` and counts of rows are those that were seen.
    sampled: float = 1.0
    predicted: TraceCost | None = None
    measured: TraceCost | None = None
    reader_cpu_s: float = 0.0  # what the probe itself used, with the names that it looked up in the end
    rows: tuple[Row, ...] = ()
    durations: Histogram | None = None
    durations_ns: int | None = None  # all of them together
    stacks: tuple[Stack, ...] = ()
    conditions: Conditions
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _is_now(cls, raw: Any) -> Any:
        """Of version 1 each bucket was written with both edges."""
        if isinstance(raw, dict) and raw.get("version") == 1:
            raw = {**raw, "version": 2}
            spread = raw.pop("spread", None)
            if spread is not None:
                counts = {bucket["low_ns"]: bucket["count"] for bucket in spread["buckets"]}
                raw["durations"] = {"bucket_ns": 1, "bits": 6, "counts": counts}
                raw["durations_ns"] = spread["total_ns"]
        return raw
