"""What the dispatcher holds in memory: open submissions, their steps, running attempts, agents.  Data only.

All of it can be read from the database again at any time, but for the connections and for what the steady clock
(:mod:`evenkeel.lab.clocks`) said: ``began_ns``, ``deadline_ns``, ``heard_ns``, ``lost_ns``.  Those are of this process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from evenkeel.lab import protocol
from evenkeel.lab.process import Process


class Link(Protocol):
    """A connection to an agent.  ``process``: of one on this machine; None: elsewhere, or not known."""

    def send(self, message: protocol.FromLab) -> None: ...
    def close(self) -> None: ...

    @property
    def local(self) -> bool: ...
    @property
    def process(self) -> Process | None: ...


@dataclass(slots=True, eq=False)
class Sub:
    """An open submission in memory."""

    id: int
    name: str
    kind: str
    person: str
    team: str
    urgent: bool
    submitted_ns: int
    cancelled: bool = False
    steps: dict[int, Node] = field(default_factory=dict)
    left: int = 0  # steps that have not ended
    failed: bool = False
    cut: bool = False  # somebody cancelled one of its steps


@dataclass(slots=True, eq=False)
class Node:
    """A step of an open submission in memory.  ``before``: edges that have not said yes or no yet."""

    id: int
    sub: Sub
    name: str
    kind: str
    expected: str
    needs: str
    machine: str
    state: str
    attempts: int
    retries: int
    timeout_ns: int | None
    any_path: bool
    ready_ns: int
    cancel_by: str = ""
    losses: int = 0
    before: int = 0
    said_yes: int = 0
    edges_in: int = 0
    after: list[tuple[Node, str]] = field(default_factory=list)
    run: Run | None = None


@dataclass(slots=True, eq=False)
class Run:
    """A running attempt.  ``began_ns``: what ``started_ns`` is by the steady clock.  ``machine_id``: of the machine
    that it will probably get, until its start is written."""

    id: int
    node: Node
    agent: str
    started_ns: int
    began_ns: int
    deadline_ns: int | None
    timeout_ns: int | None = None
    expected_ns: int = 0
    claim_id: int | None = None
    machine_id: str | None = None
    stopping: str = ""  # cancelled, timed-out: what its agent was told, with the cause, so many times
    stop_cause: str = ""
    stops: int = 0


@dataclass(slots=True, eq=False)
class Agent:
    """``lost_ns``: when its attempts are given up, if it does not come back; None while it is connected.
    ``process``: where the lab can see whether it lives; once that has ended, nobody waits for it.

    ``seen_ns``: for people; ``heard_ns``: the same moment by the steady clock, by which its lease goes."""

    name: str
    identity: str
    kind: str
    slots: int
    labels: dict[str, list[str]]
    state: str
    fencing: int
    seen_ns: int
    heard_ns: int
    local: bool = False
    process: Process | None = None
    link: Link | None = None
    lost_ns: int | None = None
    runs: dict[int, Run] = field(default_factory=dict)
    mask: int = 0
    groups_seen: int = 0

    @property
    def free(self) -> int:
        return self.slots - len(self.runs)

    @property
    def takes(self) -> bool:
        return self.link is not None and self.state == "online" and len(self.runs) < self.slots
