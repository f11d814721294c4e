"""Artifacts: the files that steps gave, kept by policy, and inputs made of them.

The bytes lie in the lab's folder by their hash (:mod:`evenkeel.lab.contents`).  An artifact is a row that names them;
it is written with the result of its attempt, so that only what a committed attempt gave is ever seen.  What nobody
names any more is removed by :func:`collect`, which leaves alone whatever a live attempt has, may have, or is about to
give.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from evenkeel.documents.base import Model
from evenkeel.documents.result import Result
from evenkeel.errors import EvenkeelError
from evenkeel.lab import idempotency, records, schema
from evenkeel.lab.actor import SERVICE, Actor, NotFound
from evenkeel.lab.contents import Contents, NoSuchContent
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import DEFAULT, Page, key_of, page
from evenkeel.lab.retention import ArtifactRetention
from evenkeel.lab.step import output_text

_HOUR_NS = 3600 * 10**9
#: Of one content.
MOST_BYTES = 16 << 30
_artifact, _attempt, _step = schema.artifact.c, schema.attempt.c, schema.step.c
_JOINED = schema.artifact.join(schema.attempt, _artifact.attempt_id == _attempt.id).join(
    schema.step, _attempt.step_id == _step.id
)


class Artifact(Model):
    """``same``: the kind of its step, with what results are compared by.  ``here``: whether its bytes still are."""

    id: int
    attempt: int
    submission: int
    step: str
    name: str
    sha256: str
    size: int
    media: str
    state: str
    same: str
    ended_ns: int | None
    pinned_by: str
    retain_until_ns: int | None


class Usage(Model):
    """Bytes that are kept, each content counted once, and bytes that :func:`collect` would free."""

    contents: int
    size: int
    artifacts: int
    pinned: int


class Collected(Model):
    """What :func:`collect` removed: rows of artifacts, contents and their bytes; logs and their bytes, documents of
    results, events."""

    artifacts: int
    contents: int
    size: int
    logs: int = 0
    log_size: int = 0
    results: int = 0
    events: int = 0


def contents(lab: Lab) -> Contents:
    return Contents(lab.folder / "artifacts", lab.now)


# -- what attempts give -------------------------------------------------------------------------------------------


def commit(
    connection: Connection, lab: Lab, attempt: int, result: Result, keep: Mapping[str, int] | None = None
) -> None:
    """Within the change that ends the attempt: its artifacts are the lab's from now on.

    ``keep``: name -> nanoseconds that the step asked for.  Raises NoSuchContent when one was not brought; then the
    attempt must not count as passed.
    """
    store, now = contents(lab), lab.now()
    for one in result.artifacts:
        store.need(one.sha256)
    rows = [
        {
            "attempt_id": attempt,
            "name": one.name,
            "sha256": one.sha256,
            "size": one.size,
            "media": one.media,
            "retain_until_ns": now + keep[one.name] if keep and one.name in keep else None,
        }
        for one in result.artifacts
    ]
    if rows:
        connection.execute(insert(schema.artifact), rows)


def fill_inputs(connection: Connection, lab: Lab, submission: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a step that is about to start, with what other steps gave in them: ``use["inputs"]`` for its agent.

    ``artifact`` and ``baseline`` become ``content``, ``output`` becomes ``json_text``; what does not exist stays as it
    was, and the runner says so.  Contents are touched: nothing that an attempt was given is removed while it runs.
    """
    made: dict[str, Any] = {}
    for name, given in (spec.get("inputs") or {}).items():
        found: Mapping[str, Any] = {}
        if given.get("artifact"):
            other, _, wanted = given["artifact"].partition("/")
            found = _given_by(connection, submission, other, wanted)
        elif given.get("baseline"):
            other, _, wanted = given["baseline"].partition("/")
            found = _last_good(connection, submission, other, wanted)
        elif given.get("output"):
            found = _output_of(connection, submission, given["output"])
        elif given.get("content"):
            found = {"content": given["content"]}
        if "content" in found:
            try:
                contents(lab).touch(found["content"])
            except NoSuchContent:
                found = {}
        cleared = dict.fromkeys(("artifact", "baseline", "output"), None) if found else {}
        if given.get("baseline") and not found:  # there is none yet
            cleared = {"baseline": None}
        made[name] = {**given, **cleared, **found}
    return made


def _given_by(connection: Connection, submission: int, step: str, name: str) -> dict[str, str]:
    row = connection.execute(
        select(_artifact.sha256, _artifact.media)
        .select_from(_JOINED)
        .where(_step.submission_id == submission, _step.name == step, _artifact.name == name)
        .order_by(_attempt.id.desc())
        .limit(1)
    ).one_or_none()
    return {"content": row.sha256, "media": row.media} if row else {}


def _last_good(connection: Connection, submission: int, step: str, name: str) -> dict[str, str]:
    """Of the last attempt before this submission that passed and is of the same thing as ``step`` in it."""
    spec = connection.scalar(select(_step.spec).where(_step.submission_id == submission, _step.name == step))
    if spec is None:
        return {}
    row = connection.execute(
        select(_artifact.sha256, _artifact.media)
        .select_from(_JOINED)
        .where(
            _attempt.same == same_of(spec),
            _attempt.state == "passed",
            _step.submission_id != submission,
            _artifact.name == name,
        )
        .order_by(_attempt.ended_ns.desc(), _attempt.id.desc())
        .limit(1)
    ).one_or_none()
    return {"content": row.sha256, "media": row.media} if row else {}


def same_of(spec: Mapping[str, Any]) -> str:
    """:meth:`evenkeel.lab.step.Use.same_key` of a stored step, without building the model."""
    step = spec["step"]
    return " ".join([step["kind"], *(f"{name}={spec['set'][name]}" for name in step.get("same") or ())])


def _output_of(connection: Connection, submission: int, step: str) -> dict[str, str]:
    row = connection.execute(
        select(_step.output).where(_step.submission_id == submission, _step.name == step)
    ).one_or_none()
    if row is None:
        return {}
    return {"json_text": output_text(row.output or {})}


# -- bytes in and out ---------------------------------------------------------------------------------------------


def need_to_bring(actor: Actor) -> None:
    """Of who submits, and of agents.  Raises Forbidden.  For who takes bytes in before they are all here."""
    actor.need("submit", "bring files", "agent")


def upload(lab: Lab, actor: Actor, sha256: str, pieces: Iterable[bytes]) -> int:
    """Keep these bytes for a while; a submission or a result that names them keeps them longer.  Their number.

    Raises WrongInput when they are not what ``sha256`` says."""
    need_to_bring(actor)
    return contents(lab).put(pieces, sha256=sha256, most=MOST_BYTES)[1]


def missing(lab: Lab, actor: Actor, wanted: Iterable[str]) -> tuple[str, ...]:
    """Which of these are not here, and must be brought.  Those that are here are as good as new."""
    need_to_bring(actor)
    absent = []
    for sha256 in wanted:
        try:
            contents(lab).touch(sha256)
        except NoSuchContent:
            absent.append(sha256)
    return tuple(absent)


def show(lab: Lab, actor: Actor, number: int) -> Artifact:
    """Raises NotFound."""
    actor.need("read", "see artifacts")
    with lab.store.read() as connection:
        return _one(connection, number)


def of_attempt(lab: Lab, actor: Actor, attempt: int) -> tuple[Artifact, ...]:
    actor.need("read", "see artifacts")
    with lab.store.read() as connection:
        rows = connection.execute(_select().where(_artifact.attempt_id == attempt).order_by(_artifact.name)).all()
    return tuple(Artifact(**row._mapping) for row in rows)


def find(
    lab: Lab, actor: Actor, *, same: str = "", name: str = "", after: str | None = None, limit: int = DEFAULT
) -> Page[Artifact]:
    """The latest first.  ``same``: begins with that (a kind, or a kind with its branch)."""
    actor.need("read", "see artifacts")
    query = _select().order_by(_artifact.id.desc()).limit(limit + 1)
    if same:
        query = query.where(_attempt.same.startswith(same, autoescape=True))
    if name:
        query = query.where(_artifact.name == name)
    if key := key_of(after, int):
        query = query.where(_artifact.id < key[0])
    with lab.store.read() as connection:
        rows = [Artifact(**row._mapping) for row in connection.execute(query)]
    return page(rows, limit, lambda row: (row.id,))


# -- keeping ------------------------------------------------------------------------------------------------------


def pin(lab: Lab, actor: Actor, number: int) -> Artifact:
    """Keep it until somebody unpins it."""
    actor.need("submit", "pin artifacts")
    return _set_pin(lab, actor, number, actor.name)


def unpin(lab: Lab, actor: Actor, number: int) -> Artifact:
    """Who pinned it may, and an admin."""
    actor.need("submit", "unpin artifacts")
    found = show(lab, actor, number)
    if found.pinned_by:
        actor.need_own(f"the pin of artifact {number}", found.pinned_by)
    return _set_pin(lab, actor, number, "")


def _set_pin(lab: Lab, actor: Actor, number: int, by: str) -> Artifact:
    def change(connection: Connection) -> Artifact:
        found = _one(connection, number)
        if bool(found.pinned_by) != bool(by):
            connection.execute(update(schema.artifact).where(_artifact.id == number).values(pinned_by=by))
            what = "artifact.pinned" if by else "artifact.unpinned"
            lab.store.event(connection, actor.name, what, "artifact", number, name=found.name, step=found.step)
        return _one(connection, number)

    return lab.store.write(change)


def usage(lab: Lab, actor: Actor) -> Usage:
    actor.need("read", "see artifacts")
    with lab.store.read() as connection:
        once = select(_artifact.sha256, func.max(_artifact.size).label("size")).group_by(_artifact.sha256).subquery()
        number, size = connection.execute(select(func.count(), func.coalesce(func.sum(once.c.size), 0))).one()
        rows = connection.scalar(select(func.count()).select_from(schema.artifact))
        pinned = connection.scalar(select(func.count()).where(_artifact.pinned_by != ""))
    return Usage(contents=number, size=int(size), artifacts=rows or 0, pinned=pinned or 0)


def collect(lab: Lab, actor: Actor, policy: ArtifactRetention | None = None) -> Collected:
    """Forget artifacts that the policy does not keep, and remove contents that nobody names; then logs, results and
    events by theirs (:mod:`evenkeel.lab.records`).

    Kept: what is pinned; the last so many passed of each ``same``; what is younger than the policy, or than its step
    asked for; all of submissions that are open.  Contents that were brought or given out since the oldest attempt
    that runs now are left alone, whoever names them.
    """
    actor.need("anything", "collect artifacts")
    policy = policy or lab.settings.artifacts
    rows = lab.store.write(lambda connection: _forget(connection, lab, policy))
    store = contents(lab)
    with lab.store.read() as connection:
        oldest = connection.scalar(select(func.min(_attempt.started_ns)).where(_attempt.state == "running"))
    # An hour for clocks that differ between agents, the lab and its disk.
    before = min(lab.now() - policy.grace, (lab.now() if oldest is None else oldest) - _HOUR_NS)
    old = dict(store.old(before))
    removed = size = 0
    if old:
        with lab.store.read() as connection:
            named = _named(connection, lab.now() - policy.failed)
        for sha256 in old.keys() - named:
            if store.remove(sha256, before_ns=before):
                removed, size = removed + 1, size + old[sha256]
    store.sweep(before)
    done = Collected(artifacts=rows, contents=removed, size=size, **records.remove(lab))
    if rows or removed or done.logs or done.results or done.events > 1:  # 1: what the time before was told by
        lab.store.write(
            lambda connection: lab.store.event(
                connection, actor.name, "artifact.collected", "artifact", "", **done.model_dump()
            )
        )
    return done


@contextlib.contextmanager
def part(lab: Lab, app: object) -> Iterator[None]:
    """For :mod:`evenkeel.lab.parts`: collects each hour, and forgets answers that nobody will ask for again."""
    del app
    over = threading.Event()

    def each_hour() -> None:
        while not over.wait(3600):
            try:
                collect(lab, SERVICE)
                idempotency.forget_old(lab)
            except (EvenkeelError, OSError, SQLAlchemyError):
                logging.getLogger("evenkeel.lab").exception("artifacts could not be collected; tried again in an hour")

    thread = threading.Thread(target=each_hour, name="artifacts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _forget(connection: Connection, lab: Lab, policy: ArtifactRetention) -> int:
    now = lab.now()
    old, open_ = records.old(policy, now), records.open_attempts()
    done = connection.execute(
        delete(schema.artifact).where(
            _artifact.pinned_by == "",
            or_(
                and_(_artifact.retain_until_ns.is_(None), _artifact.attempt_id.in_(old)),
                and_(_artifact.retain_until_ns < now, _artifact.attempt_id.not_in(open_)),
            ),
        )
    )
    return int(done.rowcount)


def _named(connection: Connection, since_ns: int) -> set[str]:
    """All contents that an artifact names, or an input of a step that has not ended, or ended so lately that somebody
    may try it again."""
    named = set(connection.scalars(select(_artifact.sha256).distinct()))
    living: ColumnElement[bool] = or_(_step.ended_ns.is_(None), _step.ended_ns > since_ns)
    for spec in connection.scalars(select(_step.spec).where(living)):
        named.update(_contents_in(spec))
    return named


def _contents_in(spec: Mapping[str, Any]) -> Iterator[str]:
    for given in (spec.get("inputs") or {}).values():
        if given.get("content"):
            yield given["content"]


def _select() -> Any:
    return select(
        _artifact.id,
        _artifact.attempt_id.label("attempt"),
        _step.submission_id.label("submission"),
        _step.name.label("step"),
        *(_artifact.name, _artifact.sha256, _artifact.size, _artifact.media, _attempt.state, _attempt.same),
        *(_attempt.ended_ns, _artifact.pinned_by, _artifact.retain_until_ns),
    ).select_from(_JOINED)


def _one(connection: Connection, number: int) -> Artifact:
    row = connection.execute(_select().where(_artifact.id == number)).one_or_none()
    if row is None:
        raise NotFound(f"there is no artifact {number}", hint="it may have been too old to keep")
    return Artifact(**row._mapping)
