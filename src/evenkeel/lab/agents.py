"""Agents as people see them: who is there, what runs on them, and taking one out of service.

Agents register themselves when they connect (:mod:`evenkeel.lab.dispatcher`); here nobody starts or ends one.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Connection, select, update

from evenkeel.documents.base import Model
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab

_agent, _attempt, _step, _sub = schema.agent.c, schema.attempt.c, schema.step.c, schema.submission.c
AgentState = Literal["online", "lost", "drained", "gone"]


class OnAgent(Model):
    """An attempt that runs there."""

    attempt: int
    step_id: int
    step: str
    submission: int
    submission_name: str
    submitter: str
    started_ns: int


class Agent(Model):
    """``local``: on the lab's own machine.  ``seen_ns``: of its last hello or loss, not of each sign of life."""

    name: str
    kind: str
    local: bool
    state: AgentState
    slots: int
    labels: dict[str, list[str]]
    hello_ns: int
    seen_ns: int
    running: tuple[OnAgent, ...]


def agents(lab: Lab, actor: Actor) -> tuple[Agent, ...]:
    """All that were ever here, by name; those that are gone for good last."""
    actor.need("read", "see agents")
    with lab.store.read() as connection:
        found = [_agent_of(connection, row) for row in connection.execute(select(schema.agent).order_by(_agent.name))]
    return tuple(sorted(found, key=lambda one: one.state == "gone"))


def show(lab: Lab, actor: Actor, name: str) -> Agent:
    """Raises NotFound."""
    actor.need("read", "see agents")
    with lab.store.read() as connection:
        return _agent_of(connection, _row(connection, name))


def drain(lab: Lab, actor: Actor, name: str) -> Agent:
    """It ends what it runs and gets nothing more.  Raises NotFound, Forbidden, Conflict (it is)."""
    return _move(lab, actor, name, "drained")


def resume(lab: Lab, actor: Actor, name: str) -> Agent:
    """It gets steps again.  Raises NotFound, Forbidden, Conflict (it does)."""
    return _move(lab, actor, name, "resumed")


def _move(lab: Lab, actor: Actor, name: str, to: Literal["drained", "resumed"]) -> Agent:
    actor.need("machines", "drain agents")

    def change(connection: Connection) -> None:
        row = _row(connection, name)
        if (row.state == "drained") == (to == "drained"):
            raise Conflict(f"agent {name} is {row.state}")
        # Whether it is there at this moment only the dispatcher knows, and says so.
        state = "drained" if to == "drained" else "lost"
        connection.execute(update(schema.agent).where(_agent.name == name).values(state=state))
        lab.store.event(connection, actor.name, f"agent.{to}", "agent", name)

    lab.store.write(change)
    return show(lab, actor, name)


def _row(connection: Connection, name: str) -> Any:
    row = connection.execute(select(schema.agent).where(_agent.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no agent {name!r}")
    return row


def _agent_of(connection: Connection, row: Any) -> Agent:
    running = connection.execute(
        select(
            *(_attempt.id.label("attempt"), _step.id.label("step_id"), _step.name.label("step")),
            *(_sub.id.label("submission"), _sub.name.label("submission_name"), _sub.submitter, _attempt.started_ns),
        )
        .select_from(
            schema.attempt.join(schema.step, _attempt.step_id == _step.id).join(
                schema.submission, _step.submission_id == _sub.id
            )
        )
        .where(_attempt.state == "running", _attempt.agent == row.name)
        .order_by(_attempt.id)
    ).all()
    shown = ("name", "kind", "local", "state", "slots", "labels", "hello_ns", "seen_ns")
    return Agent(**{key: row._mapping[key] for key in shown}, running=tuple(OnAgent(**one._mapping) for one in running))
