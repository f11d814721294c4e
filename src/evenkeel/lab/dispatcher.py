"""The one dispatcher of a lab: gives ready steps to agents, and notes what came of them.

No lock over all and no rounds: a freed slot takes its best step at once, and a step that hangs holds its own slot and
nothing else.  All state is in the database; what is kept in memory is an index of it, read anew at start.  Work goes
in turns (:meth:`Dispatcher.turn`): hear what came in, choose, write everything in one change, and only after the commit
tell agents.  So whatever dies when, no agent runs what the lab does not know of, and nothing acknowledged is lost.

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

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import OperationalError

from evenkeel.lab import protocol, schema
from evenkeel.lab.idle import IdleMeter
from evenkeel.lab.lab import Lab
from evenkeel.lab.leftovers import end_attempt
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
LEARNED_AT_MOST = 50
LEARNED_LEAST_NS = 60 * 10**9
#: After a stop the agent has so long to end the step before its slot counts as lost.
STOP_GRACE_NS = 60 * 10**9
#: After a commit that failed (a full disk) nothing is tried for so long.
PAUSE_NS = 10**9
#: A step that its agent does not end after so many words is given up, and the agent gets nothing more.
_STOPS = 3
#: An agent ends its steps itself when it has lost its lease; the lab waits a little longer than that.
_LEASE_MARGIN_NS = 15 * 10**9
#: The agent keeps the time limit too, and should be first.
_AGENT_FIRST_NS = 5 * 10**9
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

    def told(self, connection: Connection, claim_id: int) -> dict[str, Any] | None:
        """What the step may know of the machine of its claim."""
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
    """A running attempt."""

    id: int
    node: Node
    agent: str
    started_ns: int
    deadline_ns: int | None
    timeout_ns: int | None = None
    expected_ns: int = 0
    claim_id: int | None = None
    stopping: str = ""  # cancelled, timed-out: what its agent was told, with the cause, so many times
    stop_cause: str = ""
    stops: int = 0


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
        self._latest: dict[tuple[str, str], deque[int]] = {}
        # Bits of groups whose steps could get their machine now; which machines fit which of them.
        self._available = 0
        self._fitting: dict[int, frozenset[str]] = {}
        self._predicates: list[tuple[int, str]] = []
        self._free: set[str] = set()
        self._machines_stale = True
        self._fresh_subs: list[Sub] = []
        # What may have become possible since the last turn.
        self._fresh_groups = 0
        self._fresh_agents: set[str] = set()

    # -- what comes in --------------------------------------------------------------------------------------------

    def hear(self, link: Link, message: protocol.FromAgent | None) -> None:
        """From any thread.  None: the connection has ended."""
        self._inbox.append((link, message))
        self.wake()

    def owns(self, link: Link, attempt: int) -> bool:
        """Whether this attempt runs on the agent at the other end."""
        agent = self._owner.get(link)
        return agent is not None and attempt in agent.runs

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
            self._settle(turn, now)
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
        """After the commit (``future`` is waited for): tell agents.  After a failed one: forget, read anew."""
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
            agent.lost_ns = now
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
        with self.lab.store.read() as connection:
            rows = connection.execute(_EVENTS_SINCE, {"seq": self._seq}).all()
            if not rows:
                return
            self._seq = rows[-1].seq
            submissions = {
                int(row.object_id) for row in rows if row.type in SUBMISSION_EVENTS and row.object == "submission"
            }
            if submissions:
                self._load_submissions(connection, sorted(submissions))
            if any(row.type in AGENT_EVENTS for row in rows):
                self._load_agent_states(turn, connection, self.lab.now())
        if any(row.object in ("machine", "claim") for row in rows):
            self._machines_stale = True
        for sub_id in submissions:
            if (sub := self.subs.get(sub_id)) is not None:
                for node in sub.steps.values():
                    if node.run is not None and not node.run.stopping and (node.cancel_by or sub.cancelled):
                        self._stop(turn, node.run, "cancelled", f"cancelled by {node.cancel_by}")

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
                self._stop(
                    turn, run, run.stopping or "timed-out", run.stop_cause if run.stopping else "its time was over"
                )
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
        run.stopping, run.stop_cause = state, cause
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
                end_attempt(agent.identity, run.id)
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
            if (known := self._latest.get((node.kind, node.expected))) is not None:
                known.append(took)
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
        sub.failed |= state == "failed"
        sub.cut |= state == "cancelled"
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
            self._over(turn, sub, now)

    def _over(self, turn: _Turn, sub: Sub, now: int) -> None:
        if not sub.cancelled:
            ended = "failed" if sub.failed else "cancelled" if sub.cut else "passed"
            turn.submissions.append({"b_id": sub.id, "b_state": ended, "b_ended_ns": now})
            turn.events.append((f"submission.{ended}", "submission", sub.id, {"name": sub.name}))
        self._forget(sub)

    def _settle(self, turn: _Turn, now: int) -> None:
        """What somebody else changed may decide steps that were blocked, or end a submission."""
        for sub in self._fresh_subs:
            for node in list(sub.steps.values()):
                if node.state == "blocked" and (to := _decided(node)) is not None:
                    self._set(turn, node, to, now)
            if sub.left == 0 and self.subs.get(sub.id) is sub:
                self._over(turn, sub, now)
        self._fresh_subs.clear()

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
        # The agent ends it itself; the lab's own word comes later, for an agent that does not.
        deadline = None if limit is None else now + limit + _AGENT_FIRST_NS
        expected = median if median is not None else self.shares.quantum_ns
        run = Run(self._next_attempt, node, agent.name, now, deadline, limit, expected)
        self._next_attempt += 1
        self.shares.charge(node.sub.person, node.sub.team, run.expected_ns, now)
        node.run = self.runs[run.id] = agent.runs[run.id] = run
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, run.id))
        if node.machine:
            # Any of them: the claim decides; this only keeps the count of what is left in this turn.
            self._free.discard(min(self._fitting[group] & self._free))
            self._machines_stale = True
            self._count_machines()
        turn.starts.append(run)
        data = {"step": node.name, "attempt": run.id, "agent": agent.name, "submission": node.sub.id}
        turn.events.append(("step.started", "step", node.id, data | {"waited_ns": now - node.ready_ns}))

    def _median(self, node: Node) -> int | None:
        """Of the durations of steps like this one; None while there are too few."""
        key = (node.kind, node.expected)
        latest = self._latest.get(key)
        if latest is None:
            table = schema.duration.c
            with self.lab.store.read() as connection:
                kept = connection.scalar(select(table.latest).where(table.kind == key[0], table.key == key[1]))
            latest = self._latest[key] = deque(kept or (), maxlen=LEARNED_AT_MOST)
        return sorted(latest)[len(latest) // 2] if len(latest) >= LEARNED_FROM else None

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

    # -- writing: in the writer's thread --------------------------------------------------------------------------

    def _write(self, connection: Connection, turn: _Turn) -> list[tuple[Run, protocol.Start | None]]:
        """All of a turn in one change.  For each start what its agent is to be told; None where it cannot be."""
        now = self.lab.now()
        if turn.ends:
            connection.execute(_END_ATTEMPT, turn.ends)
        for claim_id, cause in turn.releases:
            assert self.machines is not None
            self.machines.release(connection, claim_id, cause)
        if turn.step_states:
            connection.execute(_MOVE_STEP, turn.step_states)
        if turn.submissions:
            connection.execute(_END_SUBMISSION, turn.submissions)
        for row in turn.agents:
            _replace(connection, schema.agent, ("name",), row)
        _add_durations(connection, turn.durations)
        for row in turn.idle:
            _add_idle(connection, row)
        outcome = self._write_starts(connection, turn.starts, now) if turn.starts else []
        refused = {run.id for run, start in outcome if start is None}
        events = [
            {"at_ns": now, "actor": "lab", "type": type_, "object": object_, "object_id": str(id_), "data": data}
            for type_, object_, id_, data in turn.events
            if not (type_ == "step.started" and data["attempt"] in refused)
        ]
        if events:
            self.lab.store.events(connection, events)
        return outcome

    def _write_starts(
        self, connection: Connection, starts: list[Run], now: int
    ) -> list[tuple[Run, protocol.Start | None]]:
        asked = {run.node.id: run for run in starts}
        still = {
            row.id
            for row in _in_pieces(connection, _STEPS_READY, sorted(asked))  # somebody may have cancelled meanwhile
        }
        told: dict[int, dict[str, Any]] = {}
        for run in starts:
            node = run.node
            if node.id in still and node.machine:
                with connection.begin_nested() as savepoint:
                    taken = None
                    if self.machines is not None:
                        taken = self.machines.take(connection, node.machine, node.id, node.sub.person, node.sub.team)
                    if taken is None:
                        savepoint.rollback()
                        still.discard(node.id)
                    else:
                        run.claim_id, told[run.id] = taken.claim_id, taken.told
        going = [run for run in starts if run.node.id in still]
        if going:
            rows = [
                {
                    "id": run.id,
                    "step_id": run.node.id,
                    "number": run.node.attempts,
                    "agent": run.agent,
                    "claim_id": run.claim_id,
                    "fencing": run.id,
                    "state": "running",
                    "started_ns": run.started_ns,
                }
                for run in going
            ]
            connection.execute(insert(schema.attempt), rows)
            moved = [
                {"b_id": run.node.id, "b_started_ns": run.started_ns, "b_attempts": run.node.attempts} for run in going
            ]
            connection.execute(_START_STEP, moved)
        messages = self._messages(connection, going, told)
        return [(run, messages.get(run.id)) for run in starts]

    def _messages(
        self, connection: Connection, runs: Iterable[Run], machines: Mapping[int, dict[str, Any]] | None = None
    ) -> dict[int, protocol.Start]:
        """What agents are told, by attempt."""
        by_step = {run.node.id: run for run in runs}
        made = {}
        for row in _in_pieces(connection, _SPECS, sorted(by_step)):
            run = by_step[row.id]
            machine = (machines or {}).get(run.id)
            if machine is None and run.claim_id is not None and self.machines is not None:
                machine = self.machines.told(connection, run.claim_id)
            made[run.id] = protocol.Start(
                attempt=run.id,
                submission=run.node.sub.id,
                step=run.node.name,
                use=row.spec,
                timeout_ns=run.timeout_ns,
                machine=machine,
                inputs=_inputs(connection, run.node.sub.id, row.spec),
            )
        return made

    def _agent_row(self, agent: Agent, now: int) -> dict[str, Any]:
        return {
            "name": agent.name,
            "identity": agent.identity,
            "kind": agent.kind,
            "local": agent.local,
            "slots": agent.slots,
            "labels": agent.labels,
            "state": agent.state,
            "fencing": agent.fencing,
            "hello_ns": now,
            "seen_ns": agent.seen_ns,
        }

    # -- reading the database into memory -------------------------------------------------------------------------

    def _load(self) -> None:
        """Forget everything but the connections, and read it anew."""
        now = self.lab.now()
        links = {agent.name: (agent.link, agent.lost_ns, agent.seen_ns) for agent in self.agents.values()}
        self.shares = Shares(weights=self.shares.weights)
        self.ready = Ready(self.shares)
        self.subs, self.nodes, self.runs, self.agents = {}, {}, {}, {}
        self._owner, self._deadlines, self._latest = {}, [], {}
        self._available, self._fitting, self._predicates, self._groups_known = 0, {}, [], 0
        self._machines_stale = True
        with self.lab.store.read() as connection:
            self._seq = connection.scalar(select(func.max(schema.event.c.seq))) or 0
            last = connection.scalar(select(func.max(schema.attempt.c.id))) or 0
            self._next_attempt = max(self._next_attempt, last + 1)
            for row in connection.execute(select(schema.agent)):
                agent = Agent(
                    row.name, row.identity, row.kind, row.slots, row.labels, row.state, row.fencing, row.seen_ns
                )
                agent.local = row.local
                self.agents[agent.name] = agent
                if agent.name in links:
                    agent.link, agent.lost_ns, agent.seen_ns = links[agent.name]
                    if agent.link is not None:
                        self._owner[agent.link] = agent
                else:
                    agent.lost_ns = now + (protocol.LOCAL_GRACE_NS if agent.local else protocol.REMOTE_GRACE_NS)
            self._charge_history(connection, now)
            if self.machines is not None:
                self._free = set(self.machines.free())
            self._load_submissions(connection, None)
        for agent in self.agents.values():
            if agent.link is None and not agent.runs and agent.state in ("gone", "lost"):
                agent.lost_ns = None
        self._fresh_agents = set(self.agents)
        self._loaded = True

    def _charge_history(self, connection: Connection, now: int) -> None:
        since = now - _HISTORY_HALF_LIVES * self.shares.half_life_ns
        for row in connection.execute(_USED_BY_HOUR, {"since": since}):
            self.shares.charge(row.submitter, row.team, int(row.used), int(row.hour) * _HOUR_NS)

    def _load_agent_states(self, turn: _Turn, connection: Connection, now: int) -> None:
        for row in connection.execute(select(schema.agent.c.name, schema.agent.c.state)):
            agent = self.agents.get(row.name)
            if agent is not None and (row.state == "drained") != (agent.state == "drained"):
                agent.state = row.state if row.state == "drained" else "online" if agent.link else "lost"
                self._fresh_agents.add(agent.name)
                if agent.state == "online":
                    turn.agents.append(self._agent_row(agent, now))

    def _load_submissions(self, connection: Connection, only: list[int] | None) -> None:
        """Open submissions, or those of ``only`` that are open, in place of what was known of them."""
        sub, step = schema.submission.c, schema.step.c
        for number in only or ():
            if number in self.subs:
                self._forget(self.subs[number])
        wanted = and_(sub.id.in_(only), _OPEN) if only is not None else _OPEN
        within = step.submission_id.in_(select(sub.id).where(wanted))
        loaded: dict[int, Sub] = {}
        for row in connection.execute(select(*_SUB_COLUMNS).where(wanted)):
            loaded[row.id] = Sub(
                row.id, row.name, row.kind, row.submitter, row.team, row.urgent, row.submitted_ns,
                cancelled=row.state == "cancelled",
            )  # fmt: skip
        nodes: dict[int, Node] = {}
        for values in connection.execute(select(*_STEP_COLUMNS).where(within)):
            number, of, name, kind, expected, needs, machine, state, attempts, retries, limit, any_, since, by = values
            owner = loaded[of]
            node = Node(
                *(number, owner, name, kind, expected, needs, machine, state, attempts, retries, limit, any_),
                ready_ns=since or 0,
                cancel_by=by,
            )
            owner.steps[node.id] = nodes[node.id] = node
            if node.state not in _OVER:
                owner.left += 1
            elif node.state == "failed":
                owner.failed = True
            elif node.state == "cancelled":
                owner.cut = True
        self._load_edges(connection, nodes, within)
        self._load_runs(connection, nodes, within)
        for sub_ in loaded.values():
            if sub_.left or not sub_.cancelled:
                self.subs[sub_.id] = sub_
                self.nodes.update(sub_.steps)
                self._fresh_subs.append(sub_)
        for node in nodes.values():
            if node.state == "ready" and node.sub.left and not node.sub.cancelled:
                self._queue(node)

    def _load_edges(self, connection: Connection, nodes: dict[int, Node], within: Any) -> None:
        step, edge = schema.step.c, schema.edge.c
        outputs: dict[int, dict[str, Any]] = {}
        for row in connection.execute(
            select(step.id, step.output).where(within, step.state.in_(("passed", "failed")), step.output.is_not(None))
        ):
            outputs[row.id] = row.output or {}
        joined = schema.edge.join(schema.step, edge.after_id == step.id)
        query = select(edge.before_id, edge.after_id, edge.condition).select_from(joined).where(within)
        for before_id, after_id, condition in connection.execute(query):
            before, after = nodes[before_id], nodes[after_id]
            before.after.append((after, condition))
            after.edges_in += 1
            if before.state in _OVER:
                after.said_yes += holds(condition, before.state, outputs.get(before_id, {}))  # type: ignore[arg-type]
            else:
                after.before += 1

    def _load_runs(self, connection: Connection, nodes: dict[int, Node], within: Any) -> None:
        step, attempt = schema.step.c, schema.attempt.c
        joined = schema.attempt.join(schema.step, attempt.step_id == step.id)
        for row in connection.execute(
            select(schema.attempt).select_from(joined).where(within, attempt.state == "running")
        ):
            node = nodes[row.step_id]
            run = self.runs.get(row.id)
            if run is None:
                # What its agent was told as a limit, it keeps by itself.
                median = self._median(node)
                limit = node.timeout_ns
                if limit is None and median is not None:
                    limit = max(LEARNED_FACTOR * median, LEARNED_LEAST_NS)
                deadline = None if limit is None else row.started_ns + limit + _AGENT_FIRST_NS
                expected = median if median is not None else self.shares.quantum_ns
                run = Run(row.id, node, row.agent, row.started_ns, deadline, limit, expected, row.claim_id)
                self.shares.charge(node.sub.person, node.sub.team, expected, row.started_ns)
                if deadline is not None:
                    heapq.heappush(self._deadlines, (deadline, run.id))
                if node.cancel_by or node.sub.cancelled:
                    run.stopping, run.stop_cause = "cancelled", f"cancelled by {node.cancel_by}"
            run.node, node.run = node, run
            self.runs[run.id] = run
            self.agents[run.agent].runs[run.id] = run
        lost = select(attempt.step_id, func.count()).select_from(joined).where(within, attempt.state == "lost")
        for step_id, times in connection.execute(lost.group_by(attempt.step_id)):
            nodes[step_id].losses = times


# -- small parts --------------------------------------------------------------------------------------------------


def _decided(node: Node) -> str | None:
    """What a blocked step may do now (lab.step.decide, by counts): ready, skipped, or None: wait on."""
    if node.any_path and node.edges_in:
        if node.before:
            return None
        return "ready" if node.said_yes else "skipped"
    if node.said_yes + node.before < node.edges_in:
        return "skipped"
    return None if node.before else "ready"


def _stop(run: Run) -> protocol.Stop:
    state = "timed-out" if run.stopping == "timed-out" else "cancelled"
    return protocol.Stop(attempt=run.id, state=state, cause=run.stop_cause)


def _labels(hello: protocol.Hello) -> dict[str, list[str]]:
    return {**hello.labels, "name": [hello.name.lower()]}


def _inputs(connection: Connection, submission_id: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Of each step that an input comes from: output, and artifacts of its last attempt by name."""
    names = set()
    for given in (spec.get("inputs") or {}).values():
        if given.get("artifact"):
            names.add(given["artifact"].partition("/")[0])
        if given.get("output"):
            names.add(given["output"])
    found: dict[str, Any] = {}
    step, attempt, artifact = schema.step.c, schema.attempt.c, schema.artifact.c
    for name in sorted(names):
        row = connection.execute(
            select(step.id, step.output).where(step.submission_id == submission_id, step.name == name)
        ).one_or_none()
        if row is None:
            continue
        last = select(func.max(attempt.id)).where(attempt.step_id == row.id, attempt.state.in_(("passed", "failed")))
        kept = connection.execute(
            select(artifact.name, artifact.sha256, artifact.size, artifact.media).where(
                artifact.attempt_id == last.scalar_subquery()
            )
        ).all()
        found[name] = {"output": row.output or {}, "artifacts": {one.name: dict(one._mapping) for one in kept}}
    return found


def _in_pieces(connection: Connection, query: Any, ids: list[int]) -> Iterable[Any]:
    for start in range(0, len(ids), _ASK_IDS):
        yield from connection.execute(query, {"ids": ids[start : start + _ASK_IDS]})


def _replace(connection: Connection, table: Any, keys: tuple[str, ...], row: dict[str, Any]) -> None:
    """Update the row with these keys, or insert it; in both kinds of database."""
    where = [table.c[key] == row[key] for key in keys]
    if not connection.execute(update(table).where(*where).values(row)).rowcount:
        connection.execute(insert(table).values(row))


def _add_idle(connection: Connection, row: Mapping[str, Any]) -> None:
    table = schema.idle.c
    added = connection.execute(
        update(schema.idle)
        .where(table.hour_ns == row["hour_ns"], table.cause == row["cause"])
        .values(idle_ns=table.idle_ns + row["idle_ns"], slots_ns=table.slots_ns + row["slots_ns"])
    )
    if not added.rowcount:
        connection.execute(insert(schema.idle).values(dict(row)))


def _add_durations(connection: Connection, durations: list[tuple[str, str, int]]) -> None:
    table = schema.duration.c
    by_key: dict[tuple[str, str], list[int]] = {}
    for kind, key, took in durations:
        by_key.setdefault((kind, key), []).append(took)
    for (kind, key), more in by_key.items():
        known = connection.execute(
            select(table.latest, table.count).where(table.kind == kind, table.key == key)
        ).one_or_none()
        latest = [*(known[0] if known else ()), *more][-LEARNED_AT_MOST:]
        row = {"kind": kind, "key": key, "latest": latest, "count": (known[1] if known else 0) + len(more)}
        _replace(connection, schema.duration, ("kind", "key"), row)


_HOUR_NS = 3600 * 10**9
#: Use before that is less than a hundredth of itself.
_HISTORY_HALF_LIVES = 7
_step, _attempt, _sub = schema.step.c, schema.attempt.c, schema.submission.c
_OPEN = or_(_sub.state == "open", _sub.id.in_(select(_step.submission_id).where(_step.state == "running")))
_SUB_COLUMNS = (_sub.id, _sub.name, _sub.kind, _sub.submitter, _sub.team, _sub.urgent, _sub.submitted_ns, _sub.state)
_STEP_COLUMNS = (
    *(_step.id, _step.submission_id, _step.name, _step.kind, _step.expected, _step.needs, _step.machine, _step.state),
    *(_step.attempts, _step.retries, _step.timeout_ns, _step.any_path, _step.ready_ns, _step.cancel_by),
)
_EVENTS_SINCE = (
    select(schema.event.c.seq, schema.event.c.type, schema.event.c.object, schema.event.c.object_id)
    .where(schema.event.c.seq > bindparam("seq"))
    .order_by(schema.event.c.seq)
)
_STEPS_READY = select(_step.id).where(_step.id.in_(bindparam("ids", expanding=True)), _step.state == "ready")
_SPECS = select(_step.id, _step.spec).where(_step.id.in_(bindparam("ids", expanding=True)))
_END_ATTEMPT = (
    update(schema.attempt)
    .where(_attempt.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        ended_ns=bindparam("b_ended_ns"),
        exit=bindparam("b_exit"),
        cause=bindparam("b_cause"),
        result=bindparam("b_result"),
    )
)
_MOVE_STEP = (
    update(schema.step)
    .where(_step.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        cause=bindparam("b_cause"),
        ready_ns=bindparam("b_ready_ns"),
        ended_ns=bindparam("b_ended_ns"),
        output=bindparam("b_output"),
    )
)
_START_STEP = (
    update(schema.step)
    .where(_step.id == bindparam("b_id"))
    .values(state="running", cause="", started_ns=bindparam("b_started_ns"), attempts=bindparam("b_attempts"))
)
_END_SUBMISSION = (
    update(schema.submission)
    .where(_sub.id == bindparam("b_id"), _sub.state == "open")
    .values(state=bindparam("b_state"), ended_ns=bindparam("b_ended_ns"), version=_sub.version + 1)
)
_USED_BY_HOUR = (
    select(
        _sub.submitter,
        _sub.team,
        (_attempt.started_ns / _HOUR_NS).label("hour"),
        func.sum(_attempt.ended_ns - _attempt.started_ns).label("used"),
    )
    .select_from(schema.attempt.join(schema.step, _attempt.step_id == _step.id).join(
        schema.submission, _step.submission_id == _sub.id
    ))
    .where(_attempt.started_ns > bindparam("since"), _attempt.ended_ns.is_not(None))
    .group_by(_sub.submitter, _sub.team, _attempt.started_ns / _HOUR_NS)
)  # fmt: skip
