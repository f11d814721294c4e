"""The queue as people see it: what waits, in the order in which it would start, why, and what runs.

Order and reasons come from the dispatcher's memory; where none runs (a standby) the order of submission is shown, and
no reason.  Changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from sqlalchemy import select

from evenkeel.documents.base import Model
from evenkeel.lab import forecasts, schema
from evenkeel.lab.actor import Actor
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.forecasts import Eta
from evenkeel.lab.idle import Idle, idle_while_waiting
from evenkeel.lab.lab import Lab
from evenkeel.lab.live import Node
from evenkeel.lab.why import Why, why

_step, _sub, _attempt = schema.step.c, schema.submission.c, schema.attempt.c
DAY_NS = 24 * 3600 * 10**9


class Waiting(Model):
    """``place``: 1 is next; of all that could start.  Blocked steps are not in the queue yet."""

    place: int
    step_id: int
    step: str
    kind: str
    submission: int
    submission_name: str
    submitter: str
    team: str
    urgent: bool
    since_ns: int
    why: Why
    eta: Eta | None


class Running(Model):
    attempt: int
    step_id: int
    step: str
    kind: str
    submission: int
    submission_name: str
    submitter: str
    urgent: bool
    agent: str
    since_ns: int
    eta: Eta | None


class Queue(Model):
    """``ready``, ``blocked``, ``runs``: how many there are in all; the lists may be shorter.  ``idle``: of a day.
    ``no_forecast``: in words, why nothing is foretold."""

    now_ns: int
    ready: int
    blocked: int
    runs: int
    slots: int
    waiting: tuple[Waiting, ...]
    running: tuple[Running, ...]
    idle: Idle
    no_forecast: str = ""


def queue(lab: Lab, actor: Actor, *, limit: int = 200, submitter: str | None = None) -> Queue:
    """At most ``limit`` of each.  ``submitter``: only theirs, with their places among all."""
    actor.need("read", "see the queue")
    steps, _, none = forecasts.current(lab, actor)
    idle = idle_while_waiting(lab, actor, since_ns=lab.now() - DAY_NS)
    if lab.dispatching is None:
        return _without_dispatcher(lab, limit, submitter, idle, none)

    def look(dispatcher: Dispatcher) -> Queue:
        waiting = []
        for place, number in enumerate(dispatcher.ready.in_order(lab.now()), 1):
            node = dispatcher.nodes[number]
            if submitter is None or node.sub.person == submitter:
                waiting.append(_waiting(place, node, why(dispatcher, node), steps.get(number)))
                if len(waiting) == limit:
                    break
        runs = sorted(dispatcher.runs.values(), key=lambda run: run.id)
        mine = (run for run in runs if submitter is None or run.node.sub.person == submitter)
        running = tuple(
            Running(
                attempt=run.id,
                step_id=run.node.id,
                step=run.node.name,
                kind=run.node.kind,
                submission=run.node.sub.id,
                submission_name=run.node.sub.name,
                submitter=run.node.sub.person,
                urgent=run.node.sub.urgent,
                agent=run.agent,
                since_ns=run.started_ns,
                eta=steps.get(run.node.id),
            )
            for run in itertools.islice(mine, limit)
        )
        return Queue(
            now_ns=lab.now(),
            ready=len(dispatcher.ready),
            blocked=len(dispatcher.nodes)
            - len(dispatcher.ready)
            - len(dispatcher.runs)
            - _over(dispatcher.nodes.values()),
            runs=len(runs),
            slots=sum(agent.slots for agent in dispatcher.agents.values() if agent.link is not None),
            waiting=tuple(waiting),
            running=running,
            idle=idle,
            no_forecast=none,
        )

    return lab.dispatching.ask(look)


def reasons(lab: Lab, actor: Actor, submission: int) -> dict[int, Why]:
    """Of each step of a submission that waits, by its number; empty where no dispatcher runs."""
    actor.need("read", "see the queue")
    if lab.dispatching is None:
        return {}

    def look(dispatcher: Dispatcher) -> dict[int, Why]:
        sub = dispatcher.subs.get(submission)
        if sub is None:
            return {}
        return {n.id: why(dispatcher, n) for n in sub.steps.values() if n.state in ("blocked", "ready")}

    return lab.dispatching.ask(look)


def _over(nodes: Iterable[Node]) -> int:
    return sum(node.state in ("passed", "failed", "cancelled", "skipped") for node in nodes)


def _waiting(place: int, node: Node, reason: Why, eta: Eta | None) -> Waiting:
    return Waiting(
        place=place,
        step_id=node.id,
        step=node.name,
        kind=node.kind,
        submission=node.sub.id,
        submission_name=node.sub.name,
        submitter=node.sub.person,
        team=node.sub.team,
        urgent=node.sub.urgent,
        since_ns=node.ready_ns,
        why=reason,
        eta=eta,
    )


def _without_dispatcher(lab: Lab, limit: int, submitter: str | None, idle: Idle, no_forecast: str) -> Queue:
    joined = schema.step.join(schema.submission, _step.submission_id == _sub.id)
    columns = (
        *(_step.id.label("step_id"), _step.name.label("step"), _step.kind, _sub.id.label("submission")),
        *(_sub.name.label("submission_name"), _sub.submitter, _sub.team, _sub.urgent, _step.ready_ns),
    )
    query = select(*columns).select_from(joined).order_by(_sub.urgent.desc(), _sub.submitted_ns, _step.id)
    with lab.store.read() as connection:
        counts: dict[str, int] = {}
        for (state,) in connection.execute(
            select(_step.state).select_from(joined).where(_sub.state == "open", _step.state.in_(("ready", "blocked")))
        ):
            counts[state] = counts.get(state, 0) + 1
        rows = connection.execute(query.where(_step.state == "ready")).all()
        runs = connection.execute(
            select(*columns, _attempt.id.label("attempt"), _attempt.agent, _attempt.started_ns)
            .select_from(joined.join(schema.attempt, _attempt.step_id == _step.id))
            .where(_attempt.state == "running")
            .order_by(_attempt.id)
        ).all()
        slots = sum(connection.scalars(select(schema.agent.c.slots).where(schema.agent.c.state == "online")))
    unknown = Why(code="unknown", text="no dispatcher runs in this service")
    listed = [
        Waiting(place=place, since_ns=row.ready_ns or 0, why=unknown, eta=None, **_named(row))
        for place, row in enumerate(rows, 1)
        if submitter is None or row.submitter == submitter
    ]
    running = [
        Running(attempt=row.attempt, agent=row.agent, since_ns=row.started_ns, eta=None, **_named(row, team=False))
        for row in runs
        if submitter is None or row.submitter == submitter
    ]
    return Queue(
        now_ns=lab.now(),
        ready=counts.get("ready", 0),
        blocked=counts.get("blocked", 0),
        runs=len(runs),
        slots=slots,
        waiting=tuple(listed[:limit]),
        running=tuple(running[:limit]),
        idle=idle,
        no_forecast=no_forecast,
    )


def _named(row: object, *, team: bool = True) -> dict[str, object]:
    names = ("step_id", "step", "kind", "submission", "submission_name", "submitter", "urgent", *(["team"] * team))
    return {name: getattr(row, name) for name in names}
