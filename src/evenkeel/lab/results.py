"""Results of attempts: taken with what they bring, found again, compared with the one before.

:func:`take` is called by the dispatcher within the change that ends an attempt; everything else reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.documents.result import Result
from evenkeel.lab import artifacts, schema
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.compare import Comparison, compare
from evenkeel.lab.contents import NoSuchContent
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import DEFAULT, Page, key_of, page
from evenkeel.lab.words import moment

_attempt, _step, _submission = schema.attempt.c, schema.step.c, schema.submission.c
_JOINED = schema.attempt.join(schema.step, _attempt.step_id == _step.id).join(
    schema.submission, _step.submission_id == _submission.id
)
State = Literal["passed", "failed", "lost", "cancelled", "timed-out"]


class ResultLine(Model):
    """An attempt that ended, in a list."""

    attempt: int
    submission: int
    submission_name: str
    submitter: str
    step: str
    step_id: int
    kind: str
    number: int
    state: str
    cause: str
    same: str
    agent: str
    started_ns: int
    ended_ns: int | None


class ResultInFull(ResultLine):
    """``result``: the document, where the agent sent one; ``removed_ns``: when the lab's policy took it away;
    ``before``: the attempt that it is compared with."""

    result: Result | None
    removed_ns: int | None
    artifacts: tuple[artifacts.Artifact, ...]
    before: int | None


class Compared(Model):
    before: ResultLine
    now: ResultLine
    comparison: Comparison


def take(connection: Connection, lab: Lab, attempt: int, spec: Mapping[str, Any], document: Any) -> str:
    """Keep what an attempt gave: its artifacts, its warnings, and what it can be compared by.

    ``spec``: of its step.  Returns what is wrong with the result, in words; then the attempt must not count as passed.
    """
    try:
        result = Result.model_validate(document)
        wishes = spec["step"].get("artifacts") or {}
        keep = {name: wish["keep"] for name, wish in wishes.items() if wish.get("keep") is not None}
        artifacts.commit(connection, lab, attempt, result, keep)
    except (ValidationError, NoSuchContent) as error:
        return f"the agent's result cannot be kept: {error}"
    same = artifacts.same_of(spec)
    connection.execute(update(schema.attempt).where(_attempt.id == attempt).values(same=same))
    if result.warnings:
        connection.execute(
            insert(schema.warning), [{"attempt_id": attempt, **one.model_dump()} for one in result.warnings]
        )
    return ""


def find(
    lab: Lab,
    actor: Actor,
    *,
    same: str = "",
    kind: str = "",
    state: State | None = None,
    submitter: str = "",
    after: str | None = None,
    limit: int = DEFAULT,
) -> Page[ResultLine]:
    """Attempts that ended, the latest first.  ``same``: exactly that."""
    actor.need("read", "see results")
    query = _select().where(_attempt.state != "running").order_by(_attempt.id.desc()).limit(limit + 1)
    for column, wanted in (
        (_attempt.same, same), (_step.kind, kind), (_attempt.state, state), (_submission.submitter, submitter)
    ):  # fmt: skip
        if wanted:
            query = query.where(column == wanted)
    if key := key_of(after, int):
        query = query.where(_attempt.id < key[0])
    with lab.store.read() as connection:
        rows = [ResultLine(**row._mapping) for row in connection.execute(query)]
    return page(rows, limit, lambda row: (row.attempt,))


def show(lab: Lab, actor: Actor, attempt: int) -> ResultInFull:
    """Raises NotFound."""
    actor.need("read", "see results")
    with lab.store.read() as connection:
        line = _line(connection, attempt)
        document, removed_ns = _kept(connection, attempt)
        before = _before(connection, line) if removed_ns is None else None
    return ResultInFull(
        **line.model_dump(),
        result=document,
        removed_ns=removed_ns,
        artifacts=artifacts.of_attempt(lab, actor, attempt),
        before=before,
    )


def compared(lab: Lab, actor: Actor, attempt: int, with_attempt: int | None = None) -> Compared:
    """This result with that one; with None, the last good one before it of the same thing.  Raises NotFound."""
    actor.need("read", "see results")
    with lab.store.read() as connection:
        now, document = _line(connection, attempt), _needed(connection, attempt)
        other = with_attempt if with_attempt is not None else _before(connection, now)
        if other is None:
            raise NotFound(
                f"there is no result before attempt {attempt} that it could be compared with",
                hint="name one: its kind and what `same` names must be equal for this to be found",
            )
        before = _line(connection, other)
        comparison = compare(_needed(connection, other), document)
    return Compared(before=before, now=now, comparison=comparison)


def _before(connection: Connection, line: ResultLine) -> int | None:
    if not line.same:
        return None
    return connection.scalar(
        select(_attempt.id)
        .where(_attempt.same == line.same, _attempt.state == "passed", _attempt.id < line.attempt)
        .where(_attempt.result_removed_ns.is_(None))
        .order_by(_attempt.id.desc())
        .limit(1)
    )


def _kept(connection: Connection, attempt: int) -> tuple[Result | None, int | None]:
    """Its document, and when that was removed."""
    query = select(_attempt.result, _attempt.result_removed_ns).where(_attempt.id == attempt)
    document, removed_ns = connection.execute(query).one()
    return Result.model_validate(document) if document else None, removed_ns


def _needed(connection: Connection, attempt: int) -> Result:
    """Raises NotFound, with the reason why there is none."""
    document, removed_ns = _kept(connection, attempt)
    if document is not None:
        return document
    if removed_ns is not None:
        raise NotFound(
            f"the result of attempt {attempt} was removed on {moment(removed_ns)} UTC: it was older than the lab keeps",
            hint="the newest good ones of each kind and branch stay; `results` in the lab's settings says how long",
        )
    raise NotFound(f"attempt {attempt} left no result", hint="it still runs, or was lost with its agent")


def _line(connection: Connection, attempt: int) -> ResultLine:
    row = connection.execute(_select().where(_attempt.id == attempt)).one_or_none()
    if row is None:
        raise NotFound(f"there is no attempt {attempt}")
    return ResultLine(**row._mapping)


def _select() -> Any:
    return select(
        _attempt.id.label("attempt"),
        _step.submission_id.label("submission"),
        _submission.name.label("submission_name"),
        _submission.submitter,
        _step.name.label("step"),
        _step.id.label("step_id"),
        *(_step.kind, _attempt.number, _attempt.state, _attempt.cause, _attempt.same, _attempt.agent),
        *(_attempt.started_ns, _attempt.ended_ns),
    ).select_from(_JOINED)
