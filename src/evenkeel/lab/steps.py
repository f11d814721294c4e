"""Steps of submissions, one by one: look at one with its attempts and log, cancel it, try it again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from evenkeel.documents.base import Model
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.submissions import StepState

_step, _attempt, _sub, _edge = schema.step.c, schema.attempt.c, schema.submission.c, schema.edge.c


class Attempt(Model):
    """``result``: the Result document, when the agent sent one.  ``log_size``: bytes of the log that are here.
    ``log_removed_ns``, ``result_removed_ns``: when the lab's policy took them away."""

    id: int
    number: int
    agent: str
    state: str
    started_ns: int
    ended_ns: int | None
    exit: int | None
    cause: str
    result: dict[str, Any] | None
    log_size: int
    log_removed_ns: int | None
    result_removed_ns: int | None


class StepInFull(Model):
    id: int
    submission: int
    submission_name: str
    submitter: str
    team: str
    name: str
    kind: str
    state: StepState
    cause: str
    cancel_by: str
    needs: str
    machine: str
    timeout_ns: int | None
    ready_ns: int | None
    started_ns: int | None
    ended_ns: int | None
    output: dict[str, Any] | None
    spec: dict[str, Any]
    attempts: tuple[Attempt, ...]


def show(lab: Lab, actor: Actor, number: int) -> StepInFull:
    """Raises NotFound."""
    actor.need("read", "see steps")
    with lab.store.read() as connection:
        row = _row(connection, number)
        attempts = connection.execute(
            select(*_ATTEMPT).where(_attempt.step_id == number).order_by(_attempt.number)
        ).all()
    shown = tuple(Attempt(**one._mapping, log_size=lab.logs.size(one.id)) for one in attempts)
    return StepInFull(**row._mapping, attempts=shown)


def by_name(lab: Lab, actor: Actor, submission: int, name: str) -> StepInFull:
    """Raises NotFound."""
    actor.need("read", "see steps")
    with lab.store.read() as connection:
        number = connection.scalar(select(_step.id).where(_step.submission_id == submission, _step.name == name))
        there = connection.scalar(select(schema.submission.c.id).where(schema.submission.c.id == submission))
    if there is None:
        raise NotFound(f"there is no submission {submission}")
    if number is None:
        raise NotFound(f"submission {submission} has no step {name!r}")
    return show(lab, actor, number)


def read_log(lab: Lab, actor: Actor, attempt: int, *, offset: int = 0, most: int = 1 << 20) -> tuple[bytes, bool]:
    """Bytes of the log from ``offset`` on, and whether more may come.  Raises NotFound."""
    actor.need("read", "read logs")
    with lab.store.read() as connection:
        state = connection.scalar(select(_attempt.state).where(_attempt.id == attempt))
    if state is None:
        raise NotFound(f"there is no attempt {attempt}")
    data = lab.logs.read(attempt, offset, most)
    return data, state == "running" or len(data) == most


def cancel(lab: Lab, actor: Actor, number: int) -> StepInFull:
    """End one step; what comes after it is skipped.  Raises NotFound, Forbidden, Conflict (it has ended)."""
    actor.need("submit", "cancel steps")

    def change(connection: Connection) -> None:
        row = _row(connection, number)
        _need_own(connection, actor, row)
        if row.state not in ("blocked", "ready", "running"):
            raise Conflict(f"step {row.name} of submission {row.submission} is {row.state} already")
        if row.state == "running":
            connection.execute(update(schema.step).where(_step.id == number).values(cancel_by=actor.name))
        else:
            connection.execute(
                update(schema.step)
                .where(_step.id == number)
                .values(state="cancelled", cause=f"cancelled by {actor.name}", ended_ns=lab.now())
            )
        lab.store.event(
            connection, actor.name, "step.cancelled", "submission", row.submission, step=row.name, step_id=number
        )

    lab.store.write(change)
    return show(lab, actor, number)


def retry(lab: Lab, actor: Actor, number: int) -> StepInFull:
    """Once more, with all that comes after it.  Raises NotFound, Forbidden, Conflict (it has not failed)."""
    actor.need("submit", "try steps again")

    def change(connection: Connection) -> None:
        row = _row(connection, number)
        _need_own(connection, actor, row)
        if row.state not in ("failed", "cancelled"):
            raise Conflict(
                f"step {row.name} of submission {row.submission} is {row.state}",
                hint="what failed or was cancelled can be tried again; to do it anew, submit it again",
            )
        running = connection.scalar(
            select(_step.name).where(_step.id.in_(_below(connection, number)), _step.state == "running")
        )
        if running:
            raise Conflict(f"step {running} comes after {row.name} and is running", hint=f"cancel {running} first")
        below = _below(connection, number)
        nothing: dict[str, Any] = {"cause": "", "cancel_by": "", "output": None, "started_ns": None, "ended_ns": None}
        connection.execute(
            update(schema.step).where(_step.id.in_(below)).values(**nothing, state="blocked", ready_ns=None)
        )
        connection.execute(
            update(schema.step).where(_step.id == number).values(**nothing, state="ready", ready_ns=lab.now())
        )
        connection.execute(
            update(schema.submission)
            .where(_sub.id == row.submission)
            .values(state="open", ended_ns=None, version=_sub.version + 1)
        )
        lab.store.event(
            connection, actor.name, "step.retried", "submission", row.submission, step=row.name, step_id=number
        )

    lab.store.write(change)
    return show(lab, actor, number)


def _below(connection: Connection, number: int) -> list[int]:
    """All that comes after it."""
    found: set[int] = set()
    todo = [number]
    while todo:
        todo = [
            after
            for after in connection.scalars(select(_edge.after_id).where(_edge.before_id.in_(todo)))
            if after not in found
        ]
        found.update(todo)
    return sorted(found)


def _need_own(connection: Connection, actor: Actor, row: Any) -> None:
    owner = connection.execute(select(_sub.submitter, _sub.team).where(_sub.id == row.submission)).one()
    actor.need_own(f"submission {row.submission}", owner.submitter, owner.team)


def _row(connection: Connection, number: int) -> Any:
    row = connection.execute(
        select(*_STEP)
        .select_from(schema.step.join(schema.submission, _step.submission_id == _sub.id))
        .where(_step.id == number)
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no step {number}")
    return row


_STEP = (
    *(_step.id, _step.submission_id.label("submission"), _sub.name.label("submission_name"), _sub.submitter),
    _sub.team,
    *(_step.name, _step.kind, _step.state, _step.cause, _step.cancel_by, _step.needs, _step.machine),
    *(_step.timeout_ns, _step.ready_ns, _step.started_ns, _step.ended_ns, _step.output, _step.spec),
)
_ATTEMPT = (
    *(_attempt.id, _attempt.number, _attempt.agent, _attempt.state, _attempt.started_ns, _attempt.ended_ns),
    *(_attempt.exit, _attempt.cause, _attempt.result),
    *(_attempt.log_removed_ns, _attempt.result_removed_ns),
)
