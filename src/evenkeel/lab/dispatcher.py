"""The one dispatcher of a lab: gives ready steps to agents, and notes what came of them.

No lock over all and no rounds: a freed slot takes its best step at once, and a step that hangs holds its own slot and
nothing else.  All state is in the database; what is kept in memory is an index of it, read anew at start.  Work goes in
rounds of :meth:`Dispatcher.turn`: hear what came in, choose, write everything in one change, and only after the commit
tell agents.  So whatever dies when, an agent never runs what the lab does not know of, and nothing acknowledged is lost.

Other modules never call in to change something: they write to the database with an event, and the dispatcher reads the
event log.  It owns the tables ``attempt``, ``agent`` and ``idle``, and the states of steps from ready on.  Which step
goes next is :mod:`evenkeel.lab.order`'s to say, which machine fits :mod:`evenkeel.lab.claims`'.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import OperationalError

from evenkeel.lab import protocol, schema
from evenkeel.lab.idle import IdleMeter
from evenkeel.lab.lab import Lab
from evenkeel.lab.order import Ready, Shares
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.step import holds

log = logging.getLogger("evenkeel.lab")

#: Events of others that change what the dispatcher holds in memory.
SUBMISSION_EVENTS = frozenset(
    {"submission.submitted", "submission.cancelled", "submission.urgent", "step.cancelled", "step.retried"}
)
AGENT_EVENTS = frozenset({"agent.drained", "agent.resumed"})
#: A step whose agents were lost so often may be what kills them.
LOST_AT_MOST = 5
#: Without a time limit: so many times the median of earlier runs, of which there must be a few, but not below a minute.
LEARNED_FACTOR = 3
LEARNED_FROM = 3
LEARNED_LEAST_NS = 60 * 10**9
#: After a stop the agent has so long to end the step before its slot counts as lost.
STOP_GRACE_NS = 60 * 10**9
#: After a commit that failed (a full disk) nothing is tried for so long.
PAUSE_NS = 10**9
_OVER = frozenset({"passed", "failed", "cancelled", "skipped"})
_ASK_IDS = 500


class Link(Protocol):
    """A connection to an agent.  ``process_gone``: for one on this machine, whether its process has ended."""

    def send(self, message: protocol.FromLab) -> None: ...
    def close(self) -> None: ...
    def process_gone(self) -> bool: ...

    @property
    def local(self) -> bool: ...


class Machines(Protocol):
    """The pool, as far as steps need it.  Called within the dispatcher's changes and before them."""

    def fitting(self, predicate: str) -> frozenset[str]:
        """All machines of the pool that ever fit, free or not."""
        ...

    def free(self) -> frozenset[str]:
        """Those that a step may have now."""
        ...

    def take(self, connection: Connection, predicate: str, step_id: int, holder: str, team: str) -> Claimed | None:
        """Claim one for a step; None when none is free after all."""
        ...

    def release(self, connection: Connection, claim_id: int, cause: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Claimed:
    """``told``: what the step may know of its machine: name, address, facts."""

    claim_id: int
    machine_id: str
    told: dict[str, Any]


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
    left: int = 0
    failed: bool = False


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
    may_fail: bool
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
    """A running attempt."""

    id: int
    node: Node
    agent: str
    started_ns: int
    deadline_ns: int | None
    claim_id: int | None = None
    told: protocol.Start | None = None  # until the agent has it for certain
    stopping: str = ""  # cancelled, timed-out
    expected_ns: int = 0
    waits: str = ""


@dataclass(slots=True, eq=False)
class Agent:
    """``lost_ns``: when its attempts are given up, if it does not come back; None while it is connected."""

    name: str
    identity: str
    kind: str
    slots: int
    labels: dict[str, list[str]]
    state: str
    fencing: int
    seen_ns: int
    local: bool = False
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


@dataclass
class _Turn:
    """All changes of one commit, and what is to be said after it."""

    starts: list[Run] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    end_messages: list[tuple[Link | None, protocol.Ended]] = field(default_factory=list)
    step_states: list[dict[str, Any]] = field(default_factory=list)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    agents: list[dict[str, Any]] = field(default_factory=list)
    durations: list[tuple[str, str, int]] = field(default_factory=list)
    releases: list[tuple[int, str]] = field(default_factory=list)
    events: list[tuple[str, str, object, dict[str, Any]]] = field(default_factory=list)
    idle: list[dict[str, Any]] = field(default_factory=list)
    say: list[tuple[Link, protocol.FromLab]] = field(default_factory=list)

    def empty(self) -> bool:
        return not (
            self.starts or self.ends or self.step_states or self.submissions or self.agents or self.releases
            or self.events or self.idle or self.say
        )  # fmt: skip


class Dispatcher:
    """``machines``: the pool; without one, steps that want a machine wait for ever and say so.

    Not thread-safe but for :meth:`hear`: everything else runs where :meth:`turn` runs (lab.dispatching).
    """

    def __init__(self, lab: Lab, *, machines: Machines | None = None, shares: Shares | None = None) -> None:
        self.lab = lab
        self.machines = machines
        self.shares = shares or Shares()
        self.ready = Ready(self.shares)
        self.subs: dict[int, Sub] = {}
        self.nodes: dict[int, Node] = {}
        self.runs: dict[int, Run] = {}
        self.agents: dict[str, Agent] = {}
        self.meter = IdleMeter()
        self.wake: Callable[[], None] = lambda: None
        self._inbox: deque[tuple[Link, protocol.FromAgent | None]] = deque()
        self._owner: dict[Link, Agent] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._next_attempt = 1
        self._seq = 0
        self._paused_until_ns = 0
        self._pause_ns = PAUSE_NS
        self._loaded = False
        self._medians: dict[tuple[str, str], int | None] = {}
        # Bits of groups whose steps could get their machine now; which machines fit which of them.
        self._available = 0
        self._fitting: dict[int, frozenset[str]] = {}
        self._predicates: list[tuple[int, str]] = []
        self._free: set[str] = set()
        self._machines_stale = True
        # What may have become possible since the last turn.
        self._fresh_groups = 0
        self._fresh_agents: set[str] = set()

    # -- what comes in --------------------------------------------------------------------------------------------

    def hear(self, link: Link, message: protocol.FromAgent | None) -> None:
        """From any thread.  None: the connection has ended."""
        self._inbox.append((link, message))
        self.wake()

    # -- a turn ---------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn, waiting for the disk.  False when there was nothing to do."""
        began = self.begin()
        if began is None:
            return False
        turn, future = began
        self.finish(turn, future)
        return True

    def begin(self) -> tuple[_Turn, Future[list[tuple[Run, protocol.Start | None]]]] | None:
        """Hear, choose and hand the changes to the writer.  None: nothing to do.  To be followed by :meth:`finish`."""
        now = self.lab.now()
        if now < self._paused_until_ns:
            return None
        try:
            if not self._loaded:
                self._load()
            turn = _Turn()
            self._read_events(turn)
            self._hear_all(turn, now)
            self._watch_time(turn, now)
            self._choose(turn, now)
            self._measure_idle(turn, now)
        except OperationalError as error:  # reading fails too when the disk does
            self._pause(error)
            return None
        if turn.empty():
            return None
        return turn, self.lab.store.write_soon(lambda connection: self._write(connection, turn))

    def finish(self, turn: _Turn, future: Future[list[tuple[Run, protocol.Start | None]]]) -> None:
        """After the commit (``future`` is done or is waited for): tell agents.  After a failed one: forget, read anew."""
        try:
            outcome = future.result()
        except Exception as error:  # noqa: BLE001  a full disk, a lost server, a row that no longer fits: all the same
            for link, message in reversed(turn.end_messages):
                if link is not None:
                    self._inbox.appendleft((link, message))
            self._pause(error)
            return
        self._pause_ns = PAUSE_NS
        for link, said in turn.say:
            link.send(said)
        for run, start in outcome:
            if start is None:
                self._take_back(run)
                continue
            agent = self.agents[run.agent]
            if agent.link is not None and run.id in agent.runs:
                agent.link.send(start)

    def _pause(self, error: Exception) -> None:
        log.error("the dispatcher could not write, tries again in %.0f s: %s", self._pause_ns / 1e9, error)
        self._paused_until_ns = self.lab.now() + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, 10 * PAUSE_NS)
        self._loaded = False

    def _take_back(self, run: Run) -> None:
        """The start was not written: the step was cancelled meanwhile, or its machine is somebody else's."""
        self.runs.pop(run.id, None)
        agent = self.agents[run.agent]
        agent.runs.pop(run.id, None)
        self._fresh_agents.add(agent.name)
        self.shares.charge(run.node.sub.person, run.node.sub.team, -run.expected_ns, run.started_ns)
        run.node.run = None
        self._machines_stale = True
        with self.lab.store.read() as connection:
            self._load_submissions(connection, [run.node.sub.id])

    # -- hearing --------------------------------------------------------------------------------------------------

    def _hear_all(self, turn: _Turn, now: int) -> None:
        while self._inbox:
            link, message = self._inbox.popleft()
            if message is None:
                self._closed(link, now)
            elif isinstance(message, protocol.Hello):
                self._hello(turn, link, message, now)
            elif (agent := self._owner.get(link)) is not None:
                agent.seen_ns = now
                if isinstance(message, protocol.Ended):
                    self._ended(turn, agent, link, message, now)
                elif isinstance(message, protocol.Beat):
                    link.send(protocol.Alive())
                elif isinstance(message, protocol.Bye):
                    self._bye(turn, agent, link, now)
            else:
                link.close()

    def _hello(self, turn: _Turn, link: Link, hello: protocol.Hello, now: int) -> None:
        agent = self.agents.get(hello.name)
        if agent is not None and agent.identity != hello.identity:
            if agent.link is not None or (agent.lost_ns is not None and agent.runs):
                why = f"another agent is called {hello.name}"
                turn.say.append((link, protocol.Refused(why=why, again=True)))
                return
            agent = None
        if agent is None:
            known = self.agents.get(hello.name)
            state, fencing = (known.state, known.fencing) if known else ("online", 0)
            agent = Agent(hello.name, hello.identity, "", 0, {}, state, fencing, now)
            self.agents[hello.name] = agent
        if agent.link is not None and agent.link is not link:
            self._owner.pop(agent.link, None)
            agent.link.close()
        agent.kind, agent.slots, agent.labels = hello.kind, hello.slots, _labels(hello)
        agent.local, agent.link, agent.lost_ns, agent.seen_ns = link.local, link, None, now
        agent.fencing += 1
        agent.state = agent.state if agent.state == "drained" else "online"
        agent.mask = agent.groups_seen = 0
        self._owner[link] = agent
        self._fit(agent)
        self._fresh_agents.add(agent.name)
        turn.agents.append(self._agent_row(agent, now))
        turn.events.append(("agent.hello", "agent", agent.name, {"slots": agent.slots, "running": len(hello.running)}))
        there = {*hello.running, *hello.finished}
        stop = tuple(number for number in hello.running if number not in agent.runs)
        sizes = {number: self.lab.logs.size(number) for number in there if number in agent.runs}
        turn.say.append((link, protocol.Welcome(fencing=agent.fencing, stop=stop, logs=sizes)))
        missing = [run for number, run in agent.runs.items() if number not in there]
        if missing:
            # Committed, but the agent died or the line was cut before it knew of them.
            with self.lab.store.read() as connection:
                starts = self._messages(connection, missing)
            turn.say += [(link, starts[run.id]) for run in missing if run.id in starts]
        turn.say += [(link, _stop(run)) for run in agent.runs.values() if run.stopping]

    def _closed(self, link: Link, now: int) -> None:
        agent = self._owner.pop(link, None)
        if agent is None or agent.link is not link:
            return
        agent.link = None
        if agent.local and link.process_gone():
            agent.lost_ns = now + protocol.LOCAL_GRACE_NS
        else:
            agent.lost_ns = max(now, agent.seen_ns + protocol.LEASE_NS) + _LEASE_MARGIN_NS

    def _bye(self, turn: _Turn, agent: Agent, link: Link, now: int) -> None:
        self._owner.pop(link, None)
        link.close()
        agent.link = None
        for run in list(agent.runs.values()):
            self._end(turn, run, now, state="lost", cause=f"agent {agent.name} ended")
        agent.state = "drained" if agent.state == "drained" else "gone"
        turn.agents.append(self._agent_row(agent, now))
        turn.events.append(("agent.gone", "agent", agent.name, {}))

    def _ended(self, turn: _Turn, agent: Agent, link: Link, message: protocol.Ended, now: int) -> None:
        run = self.runs.get(message.attempt)
        if run is None or run.agent != agent.name:
            # Fencing: given up meanwhile, or said twice because the first acknowledgement was lost.
            turn.say.append((link, protocol.Taken(attempt=message.attempt, accepted=False)))
            return
        turn.end_messages.append((link, message))
        state = message.state
        if run.stopping and state in ("failed", "cancelled", "lost", "timed-out"):
            state = "timed-out" if run.stopping == "timed-out" else "cancelled"
        self._end(
            turn,
            run,
            min(message.ended_ns or now, now),
            state=state,
            cause=message.cause,
            exit=message.exit,
            output=message.output,
            result=message.result,
        )
        turn.say.append((link, protocol.Taken(attempt=message.attempt)))

    # -- events of others -----------------------------------------------------------------------------------------

    def _read_events(self, turn: _Turn) -> None:
        event = schema.event.c
        with self.lab.store.read() as connection:
            rows = connection.execute(_EVENTS_SINCE, {"seq": self._seq}).all()
            if not rows:
                return
            self._seq = rows[-1].seq
            submissions = {int(row.object_id) for row in rows if row.type in SUBMISSION_EVENTS}
            if submissions:
                self._load_submissions(connection, sorted(submissions))
            if any(row.type in AGENT_EVENTS for row in rows):
                self._load_agent_states(connection)
        if any(row.object in ("machine", "claim") for row in rows):
            self._machines_stale = True
        for sub_id in submissions:
            if (sub := self.subs.get(sub_id)) is not None:
                for node in sub.steps.values():
                    if node.run is not None and not node.run.stopping and (node.cancel_by or sub.cancelled):
                        self._stop(turn, node.run, "cancelled", f"cancelled by {node.cancel_by}")
        del event

    # -- time -----------------------------------------------------------------------------------------------------

    def _watch_time(self, turn: _Turn, now: int) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            run = self.runs.get(number)
            if run is None:
                continue
            if run.deadline_ns is not None and run.deadline_ns > now:
                heapq.heappush(self._deadlines, (run.deadline_ns, number))
            elif run.stopping and self.agents[run.agent].link is not None and run.stops >= _STOPS:
                agent = self.agents[run.agent]
                self._end(turn, run, now, state="timed-out", cause=f"agent {agent.name} did not end it when told to")
                agent.state = "drained"
                turn.agents.append(self._agent_row(agent, now))
                turn.events.append(("agent.drained", "agent", agent.name, {"why": "it does not end its steps"}))
            else:
                self._stop(turn, run, run.stopping or "timed-out", run.waits if run.stopping else "its time was over")
        for agent in self.agents.values():
            if agent.link is not None:
                if now - agent.seen_ns > protocol.LEASE_NS + _LEASE_MARGIN_NS:
                    link = agent.link
                    self._owner.pop(link, None)
                    agent.link, agent.lost_ns = None, now
                    link.close()
                else:
                    continue
            if agent.lost_ns is not None and agent.lost_ns <= now:
                self._lost(turn, agent, now)

    def _stop(self, turn: _Turn, run: Run, state: str, cause: str) -> None:
        run.stopping, run.waits = state, cause
        run.stops += 1
        run.deadline_ns = self.lab.now() + STOP_GRACE_NS
        heapq.heappush(self._deadlines, (run.deadline_ns, run.id))
        link = self.agents[run.agent].link
        if link is not None:
            turn.say.append((link, _stop(run)))

    def _lost(self, turn: _Turn, agent: Agent, now: int) -> None:
        agent.lost_ns = None
        for run in list(agent.runs.values()):
            if agent.local:
                # Its processes may live on without it; the step must not run twice at once.
                end_attempt(run.id)
            self._end(turn, run, now, state="cancelled" if run.stopping == "cancelled" else "lost",
                      cause=f"agent {agent.name} was lost")  # fmt: skip
        if agent.state == "online":
            agent.state = "lost"
        turn.agents.append(self._agent_row(agent, now))
        turn.events.append(("agent.lost", "agent", agent.name, {}))

    # -- ends and what follows ------------------------------------------------------------------------------------

    def _end(
        self,
        turn: _Turn,
        run: Run,
        now: int,
        *,
        state: str,
        cause: str,
        exit: int | None = None,
        output: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        node, agent = run.node, self.agents[run.agent]
        sub = node.sub
        del self.runs[run.id]
        agent.runs.pop(run.id, None)
        node.run = None
        self._fresh_agents.add(agent.name)
        took = max(0, now - run.started_ns)
        self.shares.charge(sub.person, sub.team, took - run.expected_ns, run.started_ns)
        turn.ends.append(
            {"b_id": run.id, "b_state": state, "b_ended_ns": now, "b_exit": exit, "b_cause": cause, "b_result": result}
        )
        if run.claim_id is not None:
            turn.releases.append((run.claim_id, f"step {node.name} {state}"))
            self._machines_stale = True
        if state == "passed":
            turn.durations.append((node.kind, node.expected, took))
            self._medians.pop((node.kind, node.expected), None)
        if state == "lost":
            node.losses += 1
        again = not node.cancel_by and not sub.cancelled and self._again(node, state, cause, result)
        if state == "passed":
            to = "passed"
        elif state == "cancelled" or node.cancel_by or sub.cancelled:
            to = "cancelled"
        else:
            to = "ready" if again else "failed"
        data = {"step": node.name, "attempt": run.id, "agent": run.agent, "took_ns": took, "cause": cause}
        turn.events.append((f"step.{'again' if again else to}", "step", node.id, data | {"submission": sub.id}))
        self._set(turn, node, to, now, cause=cause, output=dict(output or {}))

    def _again(self, node: Node, state: str, cause: str, result: Mapping[str, Any] | None) -> bool:
        if state == "passed" or state == "cancelled":
            return False
        if state == "lost":
            return node.losses < LOST_AT_MOST
        if node.attempts - node.losses > node.retries:
            return False
        why = (result or {}).get("cause") or ("time" if state == "timed-out" else cause)
        with self.lab.store.read() as connection:
            spec = connection.scalar(select(schema.step.c.spec).where(schema.step.c.id == node.id))
        return why in ((spec or {}).get("step") or {}).get("retry", {}).get("causes", ())

    def _set(
        self, turn: _Turn, node: Node, state: str, now: int, *, cause: str = "", output: dict[str, Any] | None = None
    ) -> None:
        """Move a step on, and whatever follows from it."""
        node.state = state
        over = state in _OVER
        turn.step_states.append(
            {
                "b_id": node.id,
                "b_state": state,
                "b_cause": cause,
                "b_ready_ns": now if state == "ready" else node.ready_ns,
                "b_ended_ns": now if over else None,
                "b_output": output,
            }
        )
        if state == "ready":
            node.ready_ns = now
            self._queue(node)
        if not over:
            return
        self.ready.drop(node.id)
        sub = node.sub
        sub.left -= 1
        sub.failed = sub.failed or (state == "failed" and not node.may_fail)
        for child, condition in node.after:
            if child.state == "blocked":
                self._say(child, holds(condition, state, output or {}))  # type: ignore[arg-type]
                if (to := _decided(child)) is not None:
                    if to == "skipped":
                        turn.events.append(
                            ("step.skipped", "step", child.id, {"step": child.name, "submission": sub.id})
                        )
                    self._set(turn, child, to, now, cause=f"after {node.name}" if to == "skipped" else "")
        if sub.left == 0 and self.subs.get(sub.id) is sub:
            ended = "failed" if sub.failed else "passed"
            if not sub.cancelled:
                turn.submissions.append({"b_id": sub.id, "b_state": ended, "b_ended_ns": now})
                turn.events.append((f"submission.{ended}", "submission", sub.id, {"name": sub.name}))
            self._forget(sub)

    @staticmethod
    def _say(child: Node, yes: bool) -> None:
        child.before -= 1
        child.said_yes += yes

    def _forget(self, sub: Sub) -> None:
        self.subs.pop(sub.id, None)
        for number in sub.steps:
            self.nodes.pop(number, None)
            self.ready.drop(number)

    def _queue(self, node: Node) -> None:
        group = self.ready.group((node.needs, node.machine))
        if group >= self._groups_known:
            self._new_groups()
        sub = node.sub
        self.ready.add(
            node.id,
            group,
            person=sub.person,
            team=sub.team,
            kind=sub.kind,
            submitted_ns=sub.submitted_ns,
            urgent=sub.urgent,
        )
        self._fresh_groups |= 1 << group

    # -- which agents and machines fit what -----------------------------------------------------------------------

    _groups_known = 0

    def _new_groups(self) -> None:
        signatures = self.ready.signatures
        for group in range(self._groups_known, len(signatures)):
            machine = signatures[group][1]  # type: ignore[index]
            if machine:
                self._predicates.append((group, machine))
                self._fitting[group] = self.machines.fitting(machine) if self.machines else frozenset()
                if self._fitting[group] & self._free:
                    self._available |= 1 << group
            else:
                self._available |= 1 << group
        self._groups_known = len(signatures)
        for agent in self.agents.values():
            self._fit(agent)

    def _fit(self, agent: Agent) -> None:
        signatures = self.ready.signatures
        for group in range(agent.groups_seen, len(signatures)):
            if Predicate.parse(signatures[group][0]).matches(agent.labels):  # type: ignore[index]
                agent.mask |= 1 << group
        agent.groups_seen = len(signatures)

    def _look_at_machines(self) -> None:
        self._machines_stale = False
        if self.machines is None:
            return
        self._free = set(self.machines.free())
        for group, predicate in self._predicates:
            self._fitting[group] = self.machines.fitting(predicate)
        before = self._available
        self._count_machines()
        self._fresh_groups |= self._available & ~before

    def _count_machines(self) -> None:
        for group, _ in self._predicates:
            if self._fitting[group] & self._free:
                self._available |= 1 << group
            else:
                self._available &= ~(1 << group)

    # -- choosing -------------------------------------------------------------------------------------------------

    def _choose(self, turn: _Turn, now: int) -> None:
        if self._machines_stale:
            self._look_at_machines()
        for name in self._fresh_agents:
            self._feed(turn, self.agents[name], now)
        self._fresh_agents.clear()
        fresh = self._fresh_groups & self.ready.waiting & self._available
        self._fresh_groups = 0
        if fresh:
            # Who can do the least goes first, so that who can do more is left for others.
            idle = [agent for agent in self.agents.values() if agent.mask & fresh and agent.takes]
            for agent in sorted(idle, key=lambda agent: (agent.mask.bit_count(), -agent.free, agent.name)):
                self._feed(turn, agent, now)
                if not fresh & self.ready.waiting & self._available:
                    break

    def _feed(self, turn: _Turn, agent: Agent, now: int) -> None:
        while agent.takes:
            number = self.ready.best(agent.mask & self._available, now)
            if number is None:
                return
            self._start(turn, self.nodes[number], agent, now)

    def _start(self, turn: _Turn, node: Node, agent: Agent, now: int) -> None:
        group = self.ready.group_of(node.id)
        self.ready.drop(node.id)
        median = self._median(node)
        limit = node.timeout_ns
        if limit is None and median is not None:
            limit = max(LEARNED_FACTOR * median, LEARNED_LEAST_NS)
        node.state = "running"
        node.attempts += 1
        run = Run(self._next_attempt, node, agent.name, now, None if limit is None else now + limit)
        self._next_attempt += 1
        run.timeout_ns = limit
        run.expected_ns = median if median is not None else self.shares.quantum_ns
        self.shares.charge(node.sub.person, node.sub.team, run.expected_ns, now)
        node.run = self.runs[run.id] = agent.runs[run.id] = run
        if run.deadline_ns is not None:
            # The agent ends it itself; the lab's own word comes later, for an agent that does not.
            heapq.heappush(self._deadlines, (run.deadline_ns + _AGENT_FIRST_NS, run.id))
            run.deadline_ns += _AGENT_FIRST_NS
        if node.machine:
            # Any of them: the claim decides; this only keeps the count of what is left in this turn.
            self._free.discard(min(self._fitting[group] & self._free))
            self._machines_stale = True
            self._count_machines()
        turn.starts.append(run)
        data = {"step": node.name, "attempt": run.id, "agent": agent.name, "submission": node.sub.id}
        turn.events.append(("step.started", "step", node.id, data | {"waited_ns": now - node.ready_ns}))

    def _median(self, node: Node) -> int | None:
        key = (node.kind, node.expected)
        if key not in self._medians:
            table = schema.duration.c
            with self.lab.store.read() as connection:
                latest = connection.scalar(
                    select(table.latest).where(table.kind == node.kind, table.key == node.expected)
                )
            enough = latest and len(latest) >= LEARNED_FROM
            self._medians[key] = sorted(latest)[len(latest) // 2] if enough else None
        return self._medians[key]

    def _measure_idle(self, turn: _Turn, now: int) -> None:
        if not self.meter.due(now):
            return
        waiting = self.ready.waiting
        someone = 0
        for agent in self.agents.values():
            if agent.link is not None:
                someone |= agent.mask
        waiting &= someone
        slots, idle = 0, dict[str, int]()
        for agent in self.agents.values():
            if agent.link is None:
                continue
            slots += agent.slots
            if waiting and agent.free > 0:
                if agent.state == "drained":
                    cause = "drained"
                elif agent.mask & waiting & self._available:
                    cause = "dispatch"
                else:
                    cause = "machine" if agent.mask & waiting else "fit"
                idle[cause] = idle.get(cause, 0) + agent.free
        self.meter.note(now, slots, idle)
        turn.idle = self.meter.rows(now)
