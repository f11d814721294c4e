"""The one dispatcher of a lab: gives ready steps to agents, and notes what came of them.

No lock over all and no rounds: a freed slot takes its best step at once, and a step that hangs holds its own slot and
nothing else.  All state is in the database; what is kept in memory is an index of it, read anew at start.  Work goes
in turns (:meth:`Dispatcher.turn`): hear what came in, choose, write everything in one change, and only after the commit
tell agents.  So whatever dies when, no agent runs what the lab does not know of, and nothing acknowledged is lost.

Two clocks (:mod:`evenkeel.lab.clocks`): ``now`` is what people read, ``at`` what leases and time limits go by.

Other modules never call in to change something: they write to the database with an event, and the dispatcher reads the
event log.  It owns the tables ``attempt``, ``agent`` and ``idle``, and the states of steps from ready on.  Which step
goes next is :mod:`evenkeel.lab.order`'s to say, which machine fits :mod:`evenkeel.lab.claims`'.
"""

from __future__ import annotations

import gc
import heapq
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, bindparam, func, or_, select
from sqlalchemy.exc import DBAPIError

from evenkeel.documents.result import Result
from evenkeel.lab import artifacts, durations, power_budget, protocol, schema
from evenkeel.lab.facets import CHANGES
from evenkeel.lab.idle import IdleMeter
from evenkeel.lab.lab import Lab
from evenkeel.lab.leftovers import end_attempt
from evenkeel.lab.live import Agent, Link, Node, Run, Sub
from evenkeel.lab.order import QUANTUM_NS, Ready, Shares
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.process import Process
from evenkeel.lab.step import holds
from evenkeel.lab.step_machines import StepMachines
from evenkeel.lab.store import Away
from evenkeel.lab.turn import Outcome, Overtaken, Turn, messages, write

log = logging.getLogger("evenkeel.lab")

#: Events of others that change what the dispatcher holds in memory.
SUBMISSION_EVENTS = frozenset(
    {"submission.submitted", "submission.cancelled", "submission.urgent", "step.cancelled", "step.retried"}
)
AGENT_EVENTS = frozenset({"agent.drained", "agent.resumed"})
#: Of a machine's facts and its owner's policy.  Machines have many other events (health, power, consoles), and to look
#: for all that fits costs a search for each predicate that steps wait with.
FACT_EVENTS = frozenset(CHANGES) - {"machine.state"}
#: A step whose agents were lost so often may be what kills them.
LOST_AT_MOST = 5
#: After a stop the agent has so long to end the step before its slot counts as lost.
STOP_GRACE_NS = 60 * 10**9
#: After a commit that failed (a full disk) nothing is tried for so long.
PAUSE_NS = 10**9
#: A step that its agent does not end after so many words is given up, and the agent gets nothing more.
_STOPS = 3
#: An agent ends its steps itself when it has lost its lease; the lab waits a little longer than that.
_LEASE_MARGIN_NS = 15 * 10**9
#: A lab on PostgreSQL renews leases only when it was the active one so lately: one that took over meanwhile waits
#: REMOTE_GRACE_NS, and by then an agent must have ended its steps (1 s to see that its lease is over, 5 s to end them).
_HELD_NS = 5 * 10**9
#: The agent keeps the time limit too, and should be first.
_AGENT_FIRST_NS = 5 * 10**9
#: A step that was refused a machine that looked free asks again after so long, or when a machine or claim changed.
REFUSED_NS = 10 * 10**9
_OVER = frozenset({"passed", "failed", "cancelled", "skipped"})


class Dispatcher:
    """``machines``: the pool; without one, steps that want a machine wait for ever and say so.

    Not thread-safe but for :meth:`hear`: everything else runs where :meth:`turn` runs (lab.dispatching).
    """

    def __init__(self, lab: Lab, *, weights: Mapping[str, float] | None = None) -> None:
        self.lab = lab
        self.weights = lab.settings.shares if weights is None else weights
        self.meter = IdleMeter()
        self.wake: Callable[[], None] = lambda: None
        self.agents: dict[str, Agent] = {}
        self._inbox: deque[tuple[Link, protocol.FromAgent | None]] = deque()
        self._owner: dict[Link, Agent] = {}
        self._next_attempt = 1
        self._paused_until_ns = 0
        self._pause_ns = PAUSE_NS
        self._timed: dict[int, Run] = {}  # what ran before all was read anew: when it began is in no table
        self._loaded = False
        self._holds = lab.store.holds
        self._clear()

    def _clear(self) -> None:
        """All that is read from the database, but for agents."""
        self.ready = Ready(Shares(weights=self.weights))
        self.durations = durations.Durations()
        self.machines = StepMachines(self.lab)
        self.subs: dict[int, Sub] = {}
        self.nodes: dict[int, Node] = {}
        self.runs: dict[int, Run] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._seq = 0
        # Groups that are known here, and bits of those that want no machine.
        self._groups_known = 0
        self._wants: list[Predicate] = []  # of an agent, by group
        self._plain = 0
        # What may have changed or become possible since the last turn.
        self._fresh_subs: list[Sub] = []
        self._fresh_groups = 0
        self._fresh_agents: set[str] = set()
        self._fresh_machines = self._fresh_facts = True
        self._fresh_people = False
        # Groups that were refused a machine that looked free (it is booked soon), and when they are tried again.
        self._refused = 0
        self._again_ns = 0

    # -- what comes in --------------------------------------------------------------------------------------------

    def hear(self, link: Link, message: protocol.FromAgent | None) -> None:
        """From any thread.  None: the connection has ended."""
        self._inbox.append((link, message))
        self.wake()

    def owns(self, link: Link, attempt: int) -> bool:
        """Whether this attempt runs on the agent at the other end."""
        agent = self._owner.get(link)
        return agent is not None and attempt in agent.runs

    def put_off(self, attempt: int) -> None:
        """Its time is not over while it waits for the lab's own disk."""
        run = self.runs.get(attempt)
        if run is not None and run.deadline_ns is not None:
            run.deadline_ns = max(run.deadline_ns, self.lab.steady() + STOP_GRACE_NS)

    # -- a turn ---------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn, waiting for the disk.  False when there was nothing to do."""
        began = self.begin()
        if began is None:
            return False
        turn, future = began
        self.finish(turn, future)
        return True

    def begin(self) -> tuple[Turn, Future[Outcome]] | None:
        """Hear, choose and hand the changes to the writer.  None: nothing to do.  To be followed by :meth:`finish`."""
        # In this order, and a start the other way round: what ended must not seem to end after what followed it began.
        at, now = self.lab.steady(), self.lab.now()
        if self.lab.store.lost:
            return None
        turn = Turn(holds=self.lab.store.holds)
        if turn.holds != self._holds:
            self._begin_anew(at)
            self._holds = turn.holds
        if at < self._paused_until_ns:
            return None
        try:
            if not self._loaded:
                self._load()
                self._stop_again(turn)
            self._read_events(turn)
            turn.seq = self._seq
            self._settle(turn, now)
            self._hear_all(turn, now, at)
            self._watch_time(turn, now, at)
            self._choose(turn, now)
            self._measure_idle(turn, now, at)
        except (Away, DBAPIError) as error:  # reading fails too when the disk does
            self._hear_again(turn)
            self._pause(error)
            return None
        if turn.empty():
            return None
        future = self.lab.store.write_soon(lambda connection: write(connection, self.lab, turn))
        # The disk takes longer; whoever is freed next finds the order as it is.
        self.ready.settle()
        return turn, future

    def finish(self, turn: Turn, future: Future[Outcome]) -> None:
        """After the commit (``future`` is waited for): tell agents.  After a failed one: forget, read anew."""
        try:
            outcome = future.result()
        except Exception as error:  # noqa: BLE001  a full disk, a lost server, a row that no longer fits: all the same
            self._hear_again(turn)
            if isinstance(error, Overtaken):
                self._loaded = False
            else:
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

    def _begin_anew(self, at: int) -> None:
        """The right to write was lost and got back: what others wrote meanwhile is not known, nor whether the last
        commit was done.  So all is read anew, and agents are asked what they run, as after a restart."""
        for agent in self.agents.values():
            if (link := agent.link) is not None:
                link.close()
                self._closed(link, at)
            # Another service may have had them, and given them steps, up to this moment.
            agent.lost_ns = at + self._grace(agent)
        self._loaded = False
        self._paused_until_ns, self._pause_ns = 0, PAUSE_NS

    def _stop_again(self, turn: Turn) -> None:
        """After a commit that failed: what was to be said with it was not said."""
        for run in self.runs.values():
            if run.stopping and self.agents[run.agent].link is not None:
                self._stop(turn, run, run.stopping, run.stop_cause)

    def _hear_again(self, turn: Turn) -> None:
        self._inbox.extendleft(reversed(turn.end_messages))

    def _pause(self, error: Exception) -> None:
        log.error("the dispatcher could not write, tries again in %.0f s: %s", self._pause_ns / 1e9, error)
        self._paused_until_ns = self.lab.steady() + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, 10 * PAUSE_NS)
        self._loaded = False

    def _take_back(self, run: Run) -> None:
        """The start was not written: the step was cancelled meanwhile, or its machine is somebody else's."""
        self.runs.pop(run.id, None)
        agent = self.agents[run.agent]
        agent.runs.pop(run.id, None)
        self._fresh_agents.add(agent.name)
        self.ready.charge(run.node.sub.person, run.node.sub.team, -run.expected_ns, run.started_ns)
        run.node.run = None
        self._fresh_machines = True
        if run.node.machine:
            self._refused |= 1 << self.group_for(run.node)
            self._again_ns = self.lab.steady() + REFUSED_NS
        try:
            with self.lab.store.read() as connection:
                self._load_submissions(connection, [run.node.sub.id])
        except (Away, DBAPIError):
            self._loaded = False

    # -- hearing --------------------------------------------------------------------------------------------------

    def _hear_all(self, turn: Turn, now: int, at: int) -> None:
        while self._inbox:
            link, message = self._inbox.popleft()
            if message is None:
                self._closed(link, at)
            elif isinstance(message, protocol.Hello):
                self._hello(turn, link, message, now, at)
            elif (agent := self._owner.get(link)) is not None:
                agent.seen_ns, agent.heard_ns = now, at
                if isinstance(message, protocol.Ended):
                    self._ended(turn, agent, link, message, at)
                elif isinstance(message, protocol.Beat):
                    if self.lab.store.held_within(_HELD_NS):
                        link.send(protocol.Alive(number=message.number))
                elif isinstance(message, protocol.Bye):
                    self._bye(turn, agent, link, now, at)
            else:
                link.close()

    def _hello(self, turn: Turn, link: Link, hello: protocol.Hello, now: int, at: int) -> None:
        turn.end_messages.append((link, hello))
        agent = self.agents.get(hello.name)
        if agent is not None and agent.identity != hello.identity:
            if agent.link is not None or (agent.lost_ns is not None and agent.runs):
                why = f"another agent is called {hello.name} (--name gives this one another)"
                turn.say.append((link, protocol.Refused(why=why, again=True)))
                return
            agent = None
        if agent is None:
            known = self.agents.get(hello.name)
            state, fencing = (known.state, known.fencing) if known else ("online", 0)
            agent = Agent(hello.name, hello.identity, "", 0, {}, state, fencing, now, at)
            self.agents[hello.name] = agent
        if agent.link is not None and agent.link is not link:
            self._owner.pop(agent.link, None)
            agent.link.close()
        agent.kind, agent.slots, agent.labels = hello.kind, hello.slots, _labels(hello)
        agent.local, agent.process, agent.link, agent.lost_ns = link.local, link.process, link, None
        agent.seen_ns, agent.heard_ns = now, at
        agent.fencing += 1
        agent.state = agent.state if agent.state == "drained" else "online"
        agent.mask = agent.groups_seen = 0
        self._owner[link] = agent
        self._fit(agent)
        self._fresh_agents.add(agent.name)
        turn.agents.append(self._agent_row(agent, now))
        turn.tell("agent.hello", "agent", agent.name, slots=agent.slots, running=len(hello.running))
        there = {*hello.running, *hello.finished}
        stop = tuple(number for number in hello.running if number not in agent.runs)
        sizes = {number: self.lab.logs.size(number) for number in there if number in agent.runs}
        lease = protocol.LEASE_NS if self._leased(agent) else None
        turn.say.append((link, protocol.Welcome(fencing=agent.fencing, lease_ns=lease, stop=stop, logs=sizes)))
        missing = [run for number, run in agent.runs.items() if number not in there]
        if missing:
            # Committed, but the agent died or the line was cut before it knew of them.
            with self.lab.store.read() as connection:
                starts = messages(connection, self.lab, missing)
            turn.say += [(link, starts[run.id]) for run in missing if run.id in starts]
        turn.say += [(link, _stop(run)) for run in agent.runs.values() if run.stopping]

    def _leased(self, agent: Agent) -> bool:
        """Whether it has to end its steps when it hears nothing of a lab: unless every lab that can follow this one
        sees its processes, and ends them itself."""
        return not agent.local or self.lab.store.shared

    def _grace(self, agent: Agent) -> int:
        """How long it is waited for by who does not know when it was last heard.

        One on this machine whose process lives has its steps, however long a busy machine keeps it from saying so."""
        if self._leased(agent):
            agent.process = None  # of the machine of another service, perhaps
        elif agent.process is None or agent.process.gone():
            agent.process = None
            return protocol.LOCAL_GRACE_NS
        return protocol.REMOTE_GRACE_NS

    def _closed(self, link: Link, at: int) -> None:
        agent = self._owner.pop(link, None)
        if agent is None or agent.link is not link:
            return
        agent.link = None
        agent.lost_ns = max(at, agent.heard_ns + protocol.LEASE_NS) + _LEASE_MARGIN_NS

    def _bye(self, turn: Turn, agent: Agent, link: Link, now: int, at: int) -> None:
        self._owner.pop(link, None)
        link.close()
        agent.link = None
        for run in list(agent.runs.values()):
            self._end(turn, run, at, state="lost", cause=f"agent {agent.name} ended")
        agent.state = "drained" if agent.state == "drained" else "gone"
        turn.agents.append(self._agent_row(agent, now))
        turn.tell("agent.gone", "agent", agent.name)

    def _ended(self, turn: Turn, agent: Agent, link: Link, message: protocol.Ended, at: int) -> None:
        run = self.runs.get(message.attempt)
        if run is None or run.agent != agent.name:
            # Fencing: given up meanwhile, or said twice because the first acknowledgement was lost.
            turn.say.append((link, protocol.Taken(attempt=message.attempt, accepted=False)))
            return
        turn.end_messages.append((link, message))
        state, cause = message.state, message.cause
        if state == "passed" and (wrong := self._wrong(message)):
            state, cause = "failed", wrong
        if run.stopping and state in ("failed", "cancelled", "lost", "timed-out"):
            state = "timed-out" if run.stopping == "timed-out" else "cancelled"
        self._end(
            turn,
            run,
            max(run.began_ns, at - message.ago_ns),
            state=state,
            cause=cause,
            exit=message.exit,
            output=message.output,
            result=message.result,
        )
        turn.say.append((link, protocol.Taken(attempt=message.attempt)))

    def _wrong(self, message: protocol.Ended) -> str:
        """Why a result that says passed is none: it is no Result, or names what its agent did not bring."""
        if message.result is None:
            return ""
        try:
            result = Result.model_validate(message.result)
        except ValidationError as error:
            return f"agent: its result is none: {error.errors()[0]['msg']}"
        store = artifacts.contents(self.lab)
        missing = [one.name for one in result.artifacts if not store.has(one.sha256)]
        return f"agent: it did not bring {', '.join(missing)}" if missing else ""

    # -- events of others -----------------------------------------------------------------------------------------

    def _read_events(self, turn: Turn) -> None:
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
        # Teams and roles say which machines somebody's steps may have.
        self._fresh_people |= any(row.object == "principal" for row in rows)
        matters = {power_budget.SET, *CHANGES, *(power_budget.SWITCHED if self.machines.over else ())}
        if self._fresh_people or any(row.object == "claim" or row.type in matters for row in rows):
            self._fresh_machines = True
            self._try_refused()
        self._fresh_facts |= any(row.type in FACT_EVENTS for row in rows)
        for sub_id in submissions:
            if (sub := self.subs.get(sub_id)) is not None:
                for node in sub.steps.values():
                    if node.run is not None and not node.run.stopping and (node.cancel_by or sub.cancelled):
                        self._stop(turn, node.run, "cancelled", f"cancelled by {node.cancel_by}")

    # -- time -----------------------------------------------------------------------------------------------------

    def _try_refused(self) -> None:
        self._fresh_groups |= self._refused
        self._refused = 0

    def _watch_time(self, turn: Turn, now: int, at: int) -> None:
        if self._refused and at >= self._again_ns:
            self._try_refused()
        while self._deadlines and self._deadlines[0][0] <= at:
            _, number = heapq.heappop(self._deadlines)
            run = self.runs.get(number)
            if run is None:
                continue
            if run.deadline_ns is not None and run.deadline_ns > at:
                heapq.heappush(self._deadlines, (run.deadline_ns, number))
            elif run.stopping and self.agents[run.agent].link is not None and run.stops >= _STOPS:
                agent = self.agents[run.agent]
                cause = f"agent {agent.name} did not end it when told to"
                self._end(turn, run, at, state="timed-out", cause=cause, may_run=True)
                agent.state = "drained"
                turn.agents.append(self._agent_row(agent, now))
                turn.tell("agent.drained", "agent", agent.name, why="it does not end its steps")
            else:
                self._stop(
                    turn, run, run.stopping or "timed-out", run.stop_cause if run.stopping else "its time was over"
                )
        for agent in self.agents.values():
            if agent.link is not None:
                if at - agent.heard_ns > protocol.LEASE_NS + _LEASE_MARGIN_NS:
                    link = agent.link
                    self._owner.pop(link, None)
                    agent.link, agent.lost_ns = None, at
                    link.close()
                else:
                    continue
            if agent.lost_ns is not None and (agent.lost_ns <= at or (agent.process and agent.process.gone())):
                self._lost(turn, agent, now, at)

    def _stop(self, turn: Turn, run: Run, state: str, cause: str) -> None:
        run.stopping, run.stop_cause = state, cause
        run.stops += 1
        run.deadline_ns = self.lab.steady() + STOP_GRACE_NS
        heapq.heappush(self._deadlines, (run.deadline_ns, run.id))
        link = self.agents[run.agent].link
        if link is not None:
            turn.say.append((link, _stop(run)))

    def _lost(self, turn: Turn, agent: Agent, now: int, at: int) -> None:
        agent.lost_ns = None
        for run in list(agent.runs.values()):
            # Its processes may live on without it; the step must not run twice at once.
            may_run = agent.local and not end_attempt(agent.identity, run.id)
            cause = f"agent {agent.name} was lost" + (", and what it ran cannot be ended" if may_run else "")
            state = "cancelled" if run.stopping == "cancelled" else "lost"
            self._end(turn, run, at, state=state, cause=cause, may_run=may_run)
        if agent.state == "online":
            agent.state = "lost"
        turn.agents.append(self._agent_row(agent, now))
        turn.tell("agent.lost", "agent", agent.name)

    # -- ends and what follows ------------------------------------------------------------------------------------

    def _end(
        self,
        turn: Turn,
        run: Run,
        at: int,
        *,
        state: str,
        cause: str,
        exit: int | None = None,
        output: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        may_run: bool = False,
    ) -> None:
        """``at``: when it ended, by the steady clock; ``may_run``: nobody knows whether it did."""
        node, agent = run.node, self.agents[run.agent]
        sub = node.sub
        del self.runs[run.id]
        agent.runs.pop(run.id, None)
        node.run = None
        self._fresh_agents.add(agent.name)
        took = max(0, at - run.began_ns)
        ended_ns = run.started_ns + took  # so that its length is true, whatever was done to the wall clock meanwhile
        now = self.lab.now() - (self.lab.steady() - at)
        self.ready.charge(sub.person, sub.team, took - run.expected_ns, run.started_ns)
        turn.end_attempt(run, ended_ns, state, exit, cause, result)
        if run.claim_id is not None:
            turn.claimed.append((node.id, f"step {node.name} {state}"))
            self._fresh_machines = True
        if state == "passed":
            turn.durations.append((node.kind, node.expected, took))
            self.durations.learn(node.kind, node.expected, took)
        if state == "lost":
            node.losses += 1
        again = not (node.cancel_by or sub.cancelled or may_run) and self._again(node, state, cause, result)
        if state == "passed":
            to = "passed"
        elif state == "cancelled" or node.cancel_by or sub.cancelled:
            to = "cancelled"
        else:
            to = "ready" if again else "failed"
        told = {"step": node.name, "submission": sub.id, "attempt": run.id, "agent": run.agent}
        turn.tell(f"step.{'again' if again else to}", "step", node.id, **told, took_ns=took, cause=cause)
        self._set(turn, node, to, now, ended_ns=ended_ns, cause=cause, output=dict(output or {}))

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
        self,
        turn: Turn,
        node: Node,
        state: str,
        now: int,
        *,
        ended_ns: int | None = None,
        cause: str = "",
        output: dict[str, Any] | None = None,
    ) -> None:
        """Move a step on, and whatever follows from it."""
        node.state = state
        over = state in _OVER
        turn.move_step(
            node.id,
            state,
            cause=cause,
            ready_ns=now if state == "ready" else node.ready_ns or None,
            ended_ns=(ended_ns or now) if over else None,
            output=output,
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
                        turn.tell("step.skipped", "step", child.id, step=child.name, submission=sub.id)
                    self._set(turn, child, to, now, cause=_unwanted(node, state, condition) if to == "skipped" else "")
        if sub.left == 0 and self.subs.get(sub.id) is sub:
            self._over(turn, sub, now)

    def _over(self, turn: Turn, sub: Sub, now: int) -> None:
        if not sub.cancelled:
            ended = "failed" if sub.failed else "cancelled" if sub.cut else "passed"
            turn.submissions.append({"b_id": sub.id, "b_state": ended, "b_ended_ns": now})
            turn.tell(f"submission.{ended}", "submission", sub.id, name=sub.name)
        self._forget(sub)

    def _settle(self, turn: Turn, now: int) -> None:
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

    def group_for(self, node: Node) -> int:
        """Of all steps that want the same of an agent, and the same machines that they may have."""
        # Whose it is counts only where a machine is wanted: owners do not let everybody have theirs.
        whose = self.machines.whose(node.sub.person, node.sub.team) if node.machine else 0
        group = self.ready.group((node.needs, node.machine, whose))
        if group >= self._groups_known:
            self._new_groups()
        return group

    def _queue(self, node: Node) -> None:
        group = self.group_for(node)
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

    @property
    def available(self) -> int:
        """Bits of the groups whose steps could start now, if an agent fits."""
        return self._plain | self.machines.available & ~self._refused

    def _new_groups(self) -> None:
        signatures: list[Any] = self.ready.signatures
        for group in range(self._groups_known, len(signatures)):
            needs, machine, whose = signatures[group]
            self._wants.append(Predicate.parse(needs))
            if machine:
                self.machines.want(group, machine, whose)
            else:
                self._plain |= 1 << group
        self._groups_known = len(signatures)
        for agent in self.agents.values():
            self._fit(agent)

    def _fit(self, agent: Agent) -> None:
        signatures: list[Any] = self.ready.signatures
        fits: dict[str, bool] = {}  # groups that want another machine mostly want the same of an agent
        for group in range(agent.groups_seen, len(signatures)):
            needs = signatures[group][0]
            if needs not in fits:
                fits[needs] = self._wants[group].matches(agent.labels)
            if fits[needs]:
                agent.mask |= 1 << group
        agent.groups_seen = len(signatures)

    def _look_at_machines(self) -> None:
        before = self.machines.available
        if self.machines.look(facts=self._fresh_facts, people=self._fresh_people):
            for node in self.nodes.values():
                if node.machine and node.id in self.ready and self.ready.group_of(node.id) != self.group_for(node):
                    self._queue(node)
        self._fresh_machines = self._fresh_facts = self._fresh_people = False
        self._fresh_groups |= self.machines.available & ~before

    # -- choosing -------------------------------------------------------------------------------------------------

    def _choose(self, turn: Turn, now: int) -> None:
        if self._fresh_machines:
            self._look_at_machines()
        for name in self._fresh_agents:
            self._feed(turn, self.agents[name], now)
        self._fresh_agents.clear()
        fresh = self._fresh_groups & self.ready.waiting & self.available
        self._fresh_groups = 0
        if fresh:
            # Who can do the least goes first, so that who can do more is left for others.
            idle = [agent for agent in self.agents.values() if agent.mask & fresh and agent.takes]
            for agent in sorted(idle, key=lambda agent: (agent.mask.bit_count(), -agent.free, agent.name)):
                self._feed(turn, agent, now)
                if not fresh & self.ready.waiting & self.available:
                    break

    def _feed(self, turn: Turn, agent: Agent, now: int) -> None:
        while agent.takes:
            number = self.ready.best(agent.mask & self.available, now)
            if number is None:
                return
            self._start(turn, self.nodes[number], agent)

    def _start(self, turn: Turn, node: Node, agent: Agent) -> None:
        group = self.ready.group_of(node.id)
        self.ready.drop(node.id)
        limit, expected = self._limit(node)
        node.state = "running"
        node.attempts += 1
        # One moment by both clocks, though the turn began before all was read anew: its end is counted from here.
        now, at = self.lab.now(), self.lab.steady()
        # The agent ends it itself; the lab's own word comes later, for an agent that does not.
        deadline = None if limit is None else at + limit + _AGENT_FIRST_NS
        run = Run(self._next_attempt, node, agent.name, now, at, deadline, limit, expected)
        self._next_attempt += 1
        self.ready.charge(node.sub.person, node.sub.team, expected, now)
        node.run = self.runs[run.id] = agent.runs[run.id] = run
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, run.id))
        if node.machine:
            run.machine_id = self.machines.use(group)
            self._fresh_machines = True
        turn.starts.append(run)
        told = {"step": node.name, "submission": node.sub.id, "attempt": run.id, "agent": agent.name}
        turn.tell("step.started", "step", node.id, **told, waited_ns=max(0, now - node.ready_ns))

    def _limit(self, node: Node) -> tuple[int | None, int]:
        """Its time limit, given or learned, and how long it will probably take."""
        limit = node.timeout_ns or self.durations.timeout(node.kind, node.expected)
        return limit, self.durations.median(node.kind, node.expected) or QUANTUM_NS

    def _measure_idle(self, turn: Turn, now: int, at: int) -> None:
        if not self.meter.due(at):
            return
        waiting = self.ready.waiting
        someone = 0
        for agent in self.agents.values():
            if agent.link is not None:
                someone |= agent.mask
        # What nothing in this lab can ever do idles nobody.
        waiting &= someone & (self._plain | self.machines.possible)
        slots, idle = 0, dict[str, int]()
        for agent in self.agents.values():
            if agent.link is None:
                continue
            slots += agent.slots
            if waiting and agent.free > 0:
                if agent.state == "drained":
                    cause = "drained"
                elif agent.mask & waiting & self.available:
                    cause = "dispatch"
                else:
                    cause = "machine" if agent.mask & waiting else "fit"
                idle[cause] = idle.get(cause, 0) + agent.free
        self.meter.note(at, now, slots, idle)
        turn.idle = self.meter.rows(at)

    def _agent_row(self, agent: Agent, now: int) -> dict[str, Any]:
        return {
            "name": agent.name,
            "identity": agent.identity,
            "kind": agent.kind,
            "local": agent.local,
            "process": str(agent.process or ""),
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
        agents = self.agents
        collecting = gc.isenabled()
        # A hundred thousand steps come to stay: looking them through again and again takes a third of the time.
        gc.disable()
        try:
            self._load_all()
        except (Away, DBAPIError):
            # Their connections are in no database: an agent whose line is forgotten is taken for lost.
            self.agents = agents
            self._owner = {agent.link: agent for agent in agents.values() if agent.link is not None}
            raise
        finally:
            if collecting:
                gc.enable()
        self._loaded = True

    def _load_all(self) -> None:
        now, at = self.lab.now(), self.lab.steady()
        # What is known of an agent here is newer than its row, if that could not be written.
        here = {
            one.name: (one.link, one.process, one.lost_ns, one.seen_ns, one.heard_ns) for one in self.agents.values()
        }
        self._timed |= self.runs
        self._clear()
        self.agents, self._owner = {}, {}
        with self.lab.store.read() as connection:
            self._seq = connection.scalar(select(func.max(schema.event.c.seq))) or 0
            last = connection.scalar(select(func.max(schema.attempt.c.id))) or 0
            self._next_attempt = max(self._next_attempt, last + 1)
            for row in connection.execute(select(schema.agent)):
                known = (row.name, row.identity, row.kind, row.slots, row.labels, row.state, row.fencing, row.seen_ns)
                agent = Agent(*known, heard_ns=at, local=row.local, process=Process.parse(row.process))
                self.agents[agent.name] = agent
                if agent.name in here:
                    agent.link, agent.process, agent.lost_ns, agent.seen_ns, agent.heard_ns = here[agent.name]
                    if agent.link is not None:
                        self._owner[agent.link] = agent
                else:
                    agent.lost_ns = at + self._grace(agent)
            self._charge_history(connection, now)
            self.durations = durations.load(connection)
            self._load_submissions(connection, None)
        for agent in self.agents.values():
            if agent.link is None and not agent.runs and agent.state in ("gone", "lost"):
                agent.lost_ns = None
            elif agent.link is None and agent.lost_ns is None and agent.runs:
                agent.lost_ns = at  # it was lost, or said good-bye, and that could not be written
        self._fresh_agents = set(self.agents)
        self._timed = {}

    def _charge_history(self, connection: Connection, now: int) -> None:
        since = now - _HISTORY_HALF_LIVES * self.ready.shares.half_life_ns
        for row in connection.execute(_USED_BY_HOUR, {"since": since}):
            self.ready.charge(row.submitter, row.team, int(row.used), int(row.hour) * _HOUR_NS)

    def _load_agent_states(self, turn: Turn, connection: Connection, now: int) -> None:
        for row in connection.execute(select(schema.agent.c.name, schema.agent.c.state)):
            agent = self.agents.get(row.name)
            if agent is not None and (row.state == "drained") != (agent.state == "drained"):
                agent.state = row.state if row.state == "drained" else "online" if agent.link else "lost"
                self._fresh_agents.add(agent.name)
                if agent.state == "online":
                    turn.agents.append(self._agent_row(agent, now))

    def _load_submissions(self, connection: Connection, only: list[int] | None) -> None:
        """Open submissions, or those of ``only`` that are open, in place of what was known of them."""
        for number in only or ():
            if number in self.subs:
                self._forget(self.subs[number])
        loaded: dict[int, Sub] = {}
        for row in connection.execute(
            _OPEN_SUBS if only is None else _THESE_SUBS, {} if only is None else {"ids": only}
        ):
            loaded[row.id] = Sub(
                row.id, row.name, row.kind, row.submitter, row.team, row.urgent, row.submitted_ns,
                cancelled=row.state == "cancelled",
            )  # fmt: skip
        asked, within = (_OF_OPEN, {}) if only is None else (_OF_THESE, {"ids": list(loaded)})
        nodes: dict[int, Node] = {}
        for values in connection.execute(asked.steps, within):
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
        # Each statement takes its part of a start: one that can find nothing is left out.
        if len(nodes) > len(loaded):
            self._load_edges(connection, nodes, asked, within)
        if any(node.attempts for node in nodes.values()):
            self._load_runs(connection, nodes, asked, within)
        for sub_ in loaded.values():
            if sub_.left or not sub_.cancelled:
                self.subs[sub_.id] = sub_
                self.nodes.update(sub_.steps)
                self._fresh_subs.append(sub_)
        for node in nodes.values():
            if node.state == "ready" and node.sub.left and not node.sub.cancelled:
                self._queue(node)

    def _load_edges(
        self, connection: Connection, nodes: dict[int, Node], asked: _Within, within: Mapping[str, Any]
    ) -> None:
        outputs: dict[int, dict[str, Any]] = {}
        if any(node.state in ("passed", "failed") for node in nodes.values()):
            outputs = {row.id: row.output or {} for row in connection.execute(asked.outputs, within)}
        for before_id, after_id, condition in connection.execute(asked.edges, within):
            before, after = nodes[before_id], nodes[after_id]
            before.after.append((after, condition))
            after.edges_in += 1
            if before.state in _OVER:
                after.said_yes += holds(condition, before.state, outputs.get(before_id, {}))  # type: ignore[arg-type]
            else:
                after.before += 1

    def _load_runs(
        self, connection: Connection, nodes: dict[int, Node], asked: _Within, within: Mapping[str, Any]
    ) -> None:
        for row in connection.execute(asked.runs, within):
            node = nodes[row.step_id]
            run = self.runs.get(row.id)
            if run is None:
                # The limit that its agent was told, that one keeps by itself.
                limit, expected = self._limit(node)
                began, deadline = self._began(row, limit)
                run = Run(row.id, node, row.agent, row.started_ns, began, deadline, limit, expected, row.claim_id)
                self.ready.charge(node.sub.person, node.sub.team, expected, row.started_ns)
                if deadline is not None:
                    heapq.heappush(self._deadlines, (deadline, run.id))
                if node.cancel_by or node.sub.cancelled:
                    run.stopping, run.stop_cause = "cancelled", f"cancelled by {node.cancel_by}"
            run.node, node.run = node, run
            self.runs[run.id] = run
            self.agents[run.agent].runs[run.id] = run
        for step_id, times in connection.execute(asked.losses, within):
            nodes[step_id].losses = times

    def _began(self, row: Any, limit: int | None) -> tuple[int, int | None]:
        """When an attempt of the database began and is to end, by the steady clock.

        Of one that another process started only a date is known, which may be wrong by any jump since.  It serves for
        numbers that people read; a step that runs is not ended by it, so here its limit begins anew."""
        if (run := self._timed.get(row.id)) is not None:
            return run.began_ns, run.deadline_ns
        ran, at = max(0, self.lab.now() - row.started_ns), self.lab.steady()
        return at - ran, None if limit is None else at + limit + _AGENT_FIRST_NS


# -- small parts --------------------------------------------------------------------------------------------------


def _unwanted(before: Node, state: str, condition: str) -> str:
    """Why a step is skipped."""
    if state == "passed":
        return f"only after {before.name} with {condition}, which it has not"
    return f"{before.name} {'was ' if state in ('skipped', 'cancelled') else ''}{state}"


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
_OPEN_SUBS = select(*_SUB_COLUMNS).where(_OPEN)
_THESE_SUBS = select(*_SUB_COLUMNS).where(_sub.id.in_(bindparam("ids", expanding=True)), _OPEN)


class _Within:
    """What is read of steps, and of what belongs to them, of the submissions that ``wanted`` means.

    Made once: SQLAlchemy takes longer to see that it knows a statement than SQLite to run it."""

    def __init__(self, wanted: Any) -> None:
        edge, tries = schema.edge.c, schema.attempt.join(schema.step, _attempt.step_id == _step.id)
        joined = schema.edge.join(schema.step, edge.after_id == _step.id)
        ended = _step.state.in_(("passed", "failed")), _step.output.is_not(None)
        self.steps = select(*_STEP_COLUMNS).where(wanted)
        self.outputs = select(_step.id, _step.output).where(wanted, *ended)
        self.edges = select(edge.before_id, edge.after_id, edge.condition).select_from(joined).where(wanted)
        self.runs = (
            select(_attempt.id, _attempt.step_id, _attempt.agent, _attempt.started_ns, _attempt.claim_id)
            .select_from(tries)
            .where(wanted, _attempt.state == "running")
        )
        lost = select(_attempt.step_id, func.count()).select_from(tries).where(wanted, _attempt.state == "lost")
        self.losses = lost.group_by(_attempt.step_id)


_OF_OPEN = _Within(_step.submission_id.in_(select(_sub.id).where(_OPEN)))
_OF_THESE = _Within(_step.submission_id.in_(bindparam("ids", expanding=True)))
_EVENTS_SINCE = (
    select(schema.event.c.seq, schema.event.c.type, schema.event.c.object, schema.event.c.object_id)
    .where(schema.event.c.seq > bindparam("seq"))
    .order_by(schema.event.c.seq)
)
_USED_BY_HOUR = (
    select(
        _sub.submitter,
        _sub.team,
        (_attempt.started_ns // _HOUR_NS).label("hour"),
        func.sum(_attempt.ended_ns - _attempt.started_ns).label("used"),
    )
    .select_from(schema.attempt.join(schema.step, _attempt.step_id == _step.id).join(
        schema.submission, _step.submission_id == _sub.id
    ))
    .where(_attempt.started_ns > bindparam("since"), _attempt.ended_ns.is_not(None))
    # By its name: PostgreSQL sees two parameters, not that they are the same.
    .group_by(_sub.submitter, _sub.team, "hour")
)  # fmt: skip
