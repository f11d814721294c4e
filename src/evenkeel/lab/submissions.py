"""Submissions: a graph of steps that somebody wants done, from sending it in to its end.

Writes ``submission``, ``step`` and ``edge``, each change with an event that the dispatcher reads; starts nothing itself
(:mod:`evenkeel.lab.dispatcher`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, func, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import credits, schema
from evenkeel.lab.actor import Actor, Conflict, NotFound, need_version
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import Page, key_of, page
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.step import Graph

SubmissionState = Literal["open", "passed", "failed", "cancelled"]
StepState = Literal["blocked", "ready", "running", "passed", "failed", "cancelled", "skipped"]
_sub, _step = schema.submission.c, schema.step.c
MOST_STEPS = 2000


class StepLine(Model):
    """A step in its submission.  ``after``: names of the steps that it comes after, with the condition of the edge.

    ``attempts``: how many; ``attempt``: the number of the last one, by which its result and artifacts are found.
    """

    id: int
    name: str
    kind: str
    state: StepState
    cause: str
    after: dict[str, str]
    attempts: int
    attempt: int | None
    ready_ns: int | None
    started_ns: int | None
    ended_ns: int | None


class Submission(Model):
    id: int
    name: str
    kind: str
    submitter: str
    team: str
    urgent: bool
    reason: str
    state: SubmissionState
    submitted_ns: int
    ended_ns: int | None
    version: int
    steps: dict[str, int]  # state -> how many


class SubmissionInFull(Submission):
    """``asked``: when somebody asked for it to be urgent, with what came of it."""

    lines: tuple[StepLine, ...]
    asked: credits.Use | None


def submit(
    lab: Lab,
    actor: Actor,
    graph: Graph,
    *,
    team: str = "",
    urgent: bool = False,
    reason: str = "",
) -> SubmissionInFull:
    """``graph``: resolved (lab.step.resolve).  What comes back is on disk.  Raises WrongInput, Forbidden.

    ``urgent``: for a credit of who asks; without one left it is treated as any other, and ``asked`` says so."""
    actor.need("submit", "submit steps")
    if team and team not in actor.teams and not actor.may("anything"):
        raise WrongInput(f"{actor.name} is not in the team {team!r}", hint=f"yours: {', '.join(sorted(actor.teams))}")
    if len(graph.steps) > MOST_STEPS:
        raise WrongInput(f"{len(graph.steps)} steps in one submission", hint=f"at most {MOST_STEPS}")
    for name, use in graph.steps.items():
        for what, text in (("agent", use.definition().agent), ("machine", use.definition().machine)):
            try:
                Predicate.parse(text)
            except WrongInput as error:
                raise WrongInput(f'step "{name}", {what}: {error.message}', hint=error.hint) from None
    spec = graph.model_dump(mode="json")

    def change(connection: Connection) -> tuple[dict[str, Any], list[dict[str, Any]], credits.Use | None]:
        row, steps = _insert(connection, actor, graph, spec, team, reason, lab.now())
        number = row["id"]
        within = urgent and credits.spend(connection, lab, actor, "submission", number, reason)
        if within:
            connection.execute(update(schema.submission).where(_sub.id == number).values(urgent=True))
        lab.store.event(
            *(connection, actor.name, "submission.submitted", "submission", number),
            name=graph.name, steps=len(graph.steps), urgent=within, reason=reason,
        )  # fmt: skip
        asked = credits.asked(connection, "submission", number) if urgent else None
        return row | {"urgent": within}, steps, asked

    return _as_sent(graph, *lab.store.write(change))


def _insert(
    connection: Connection, actor: Actor, graph: Graph, spec: dict[str, Any], team: str, reason: str, now: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rows that it made, of the submission and of its steps."""
    row: dict[str, Any] = {"name": graph.name, "kind": graph.kind, "submitter": actor.name, "team": team, "spec": spec}
    row |= {"reason": reason, "state": "open", "submitted_ns": now}
    row["id"] = number = int(connection.execute(_INSERT_SUBMISSION, row).inserted_primary_key[0])  # type: ignore[index]
    rows = []
    for name, use in graph.steps.items():
        definition = use.definition()
        first = not use.edges()
        rows.append(
            {
                "submission_id": number,
                "name": name,
                "kind": definition.kind,
                "spec": spec["steps"][name],
                "needs": definition.agent,
                "machine": definition.machine,
                "expected": use.expected_key(),
                "timeout_ns": definition.limits.time,
                "retries": definition.retry.times,
                "any_path": use.join == "any",
                "state": "ready" if first else "blocked",
                "ready_ns": now if first else None,
            }
        )
    ids = dict(zip(graph.steps, connection.scalars(_INSERT_STEPS, rows), strict=True))
    edges = [
        {"before_id": ids[edge.step], "after_id": ids[name], "condition": edge.when}
        for name, use in graph.steps.items()
        for edge in use.edges()
    ]
    if edges:
        connection.execute(insert(schema.edge), edges)
    return row, [step | {"id": ids[step["name"]]} for step in rows]


def _as_sent(
    graph: Graph, row: dict[str, Any], steps: list[dict[str, Any]], asked: credits.Use | None
) -> SubmissionInFull:
    """As :func:`show` would read it; but reading it would hold up the dispatcher, which starts it at this moment."""
    lines = tuple(
        StepLine(
            **{key: step[key] for key in ("id", "name", "kind", "state", "ready_ns")},
            **{"cause": "", "attempts": 0, "attempt": None, "started_ns": None, "ended_ns": None},
            after={edge.step: edge.when for edge in graph.steps[step["name"]].edges()},
        )
        for step in steps
    )
    sent = {key: value for key, value in row.items() if key != "spec"} | {"ended_ns": None, "version": 1}
    return SubmissionInFull(**sent, lines=lines, steps=dict(Counter(line.state for line in lines)), asked=asked)


def show(lab: Lab, actor: Actor, number: int) -> SubmissionInFull:
    """Raises NotFound."""
    actor.need("read", "see submissions")
    with lab.store.read() as connection:
        row = _row(connection, number)
        asked = credits.asked(connection, "submission", number)
        steps = connection.execute(_LINES, {"number": number}).all()
        names = {step.id: step.name for step in steps}
        after: dict[int, dict[str, str]] = {}
        edges = connection.execute(_EDGES, {"ids": list(names)}) if len(names) > 1 else ()
        for before_id, after_id, condition in edges:
            after.setdefault(after_id, {})[names[before_id]] = condition
        tried = schema.attempt.c
        last = select(tried.step_id, func.max(tried.id)).where(tried.step_id.in_(list(names))).group_by(tried.step_id)
        attempts: dict[int, int] = {step_id: number for step_id, number in connection.execute(last)}
    lines = tuple(
        StepLine(**step._mapping, after=after.get(step.id, {}), attempt=attempts.get(step.id)) for step in steps
    )
    counts = Counter(line.state for line in lines)
    return SubmissionInFull(**_fields(row), steps=dict(counts), lines=lines, asked=asked)


def submissions(
    lab: Lab,
    actor: Actor,
    *,
    state: SubmissionState | None = None,
    submitter: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Submission]:
    """The newest first."""
    actor.need("read", "see submissions")
    query = select(*_FIELDS).order_by(_sub.id.desc()).limit(limit + 1)
    if state:
        query = query.where(_sub.state == state)
    if submitter:
        query = query.where(_sub.submitter == submitter)
    if key := key_of(after, int):
        query = query.where(_sub.id < key[0])
    with lab.store.read() as connection:
        rows = connection.execute(query).all()
        counts = step_counts(connection, [row.id for row in rows])
    found = [Submission(**_fields(row), steps=counts.get(row.id, {})) for row in rows]
    return page(found, limit, lambda one: [one.id])


def step_counts(connection: Connection, numbers: list[int]) -> dict[int, dict[str, int]]:
    """How many steps of each submission are in which state."""
    found: dict[int, dict[str, int]] = {}
    for number, state in connection.execute(
        select(_step.submission_id, _step.state).where(_step.submission_id.in_(numbers))
    ):
        states = found.setdefault(number, {})
        states[state] = states.get(state, 0) + 1
    return found


def cancel(lab: Lab, actor: Actor, number: int, *, version: int | None = None) -> SubmissionInFull:
    """End it: what waits never starts, what runs is killed.  Raises NotFound, Forbidden, Conflict (it has ended)."""

    def change(connection: Connection) -> None:
        row = _row(connection, number)
        actor.need_own(f"submission {number}", row.submitter, row.team)
        need_version(f"submission {number}", version, row.version)
        if row.state != "open":
            raise Conflict(f"submission {number} has {_ended(row.state)} already")
        now = lab.now()
        mine = _step.submission_id == number
        connection.execute(
            update(schema.step)
            .where(mine, _step.state.in_(("blocked", "ready")))
            .values(state="cancelled", cause=f"cancelled by {actor.name}", ended_ns=now)
        )
        connection.execute(update(schema.step).where(mine, _step.state == "running").values(cancel_by=actor.name))
        connection.execute(
            update(schema.submission)
            .where(_sub.id == number)
            .values(state="cancelled", ended_ns=now, version=_sub.version + 1)
        )
        begun = connection.scalar(select(func.count()).where(mine, _step.attempts > 0))
        if not begun:
            credits.refund(connection, lab, actor, "submission", number)
        lab.store.event(connection, actor.name, "submission.cancelled", "submission", number, name=row.name)

    actor.need("submit", "cancel submissions")
    lab.store.write(change)
    return show(lab, actor, number)


def _ended(state: str) -> str:
    return "been cancelled" if state == "cancelled" else state


def _row(connection: Connection, number: int) -> Any:
    row = connection.execute(_ONE, {"number": number}).one_or_none()
    if row is None:
        raise NotFound(f"there is no submission {number}")
    return row


def _fields(row: Any) -> dict[str, Any]:
    return dict(row._mapping)


_FIELDS = (
    *(_sub.id, _sub.name, _sub.kind, _sub.submitter, _sub.team, _sub.urgent, _sub.reason, _sub.state),
    *(_sub.submitted_ns, _sub.ended_ns, _sub.version),
)
_LINE = (
    *(_step.id, _step.name, _step.kind, _step.state, _step.cause, _step.attempts),
    *(_step.ready_ns, _step.started_ns, _step.ended_ns),
)
# Made once: whoever is answered waits for what SQLAlchemy needs to see that it knows them.
_ONE = select(*_FIELDS).where(_sub.id == bindparam("number"))
_LINES = select(*_LINE).where(_step.submission_id == bindparam("number")).order_by(_step.id)
_edge = schema.edge.c
_EDGES = select(_edge.before_id, _edge.after_id, _edge.condition).where(
    _edge.after_id.in_(bindparam("ids", expanding=True))
)
_INSERT_SUBMISSION = insert(schema.submission)
_INSERT_STEPS = insert(schema.step).returning(_step.id, sort_by_parameter_order=True)
