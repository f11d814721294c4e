"""Answer: what was asked of a running kernel, how it was found out, what it cost, and what came out.

``source`` and ``mechanism`` say how it was really done, ``refused`` why nothing cheaper was; ``lost`` is always there.
Latencies taken where ``conditions.emulated`` is true mean nothing, see :data:`evenkeel.documents.evidence`.
"""

from __future__ import annotations

from typing import Literal

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet
from evenkeel.documents.evidence import Conditions

Kind = Literal["count", "top", "latency", "wakeups", "profile", "noise", "exits"]
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
    seconds: float = 5.0
    #: What it may take of one core before it is sampled.
    budget: float = 0.01


class Refused(Model):
    """A cheaper source that was not used.  ``errno``: the kernel's, or None where it cannot answer by its nature."""

    source: str
    why: str
    errno: str | None = None


class TraceCost(Model):
    """What tracing takes from the machine.  ``share_of_core``: 0.01 is one hundredth of one core."""

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


class Bucket(Model):
    """``count`` durations of at least ``low_ns`` and less than ``high_ns``."""

    low_ns: int
    high_ns: int
    count: int


class Spread(Model):
    """A log-linear histogram: a bucket is at most 1/64 of its value wide; buckets without a count are left out."""

    total_ns: int
    buckets: tuple[Bucket, ...] = ()

    @property
    def samples(self) -> int:
        return sum(bucket.count for bucket in self.buckets)


class Stack(Model):
    """So many samples of the same stack: the command, then from the outermost function to the innermost.

    A function of the kernel has ``_[k]`` behind its name.
    """

    frames: tuple[str, ...]
    count: int


class Answer(Document):
    kind: Literal["Answer"] = "Answer"
    version: Literal[1] = 1
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
    spread: Spread | None = None
    stacks: tuple[Stack, ...] = ()
    conditions: Conditions
    notes: tuple[str, ...] = ()
