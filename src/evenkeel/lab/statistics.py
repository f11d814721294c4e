"""Statistics of the queue: idle slots by cause, waits, how good forecasts were, who used what, what steps take.

Reads only.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import durations, schema
from evenkeel.lab.actor import Actor
from evenkeel.lab.durations import quantile
from evenkeel.lab.forecast import Band, covered
from evenkeel.lab.idle import Idle, idle_while_waiting
from evenkeel.lab.lab import Lab
from evenkeel.lab.order import DAY_NS

#: How far back, if not said otherwise, and at most.
DEFAULT_NS, MOST_NS = 7 * DAY_NS, 400 * DAY_NS
_sub, _step, _attempt, _forecast = schema.submission.c, schema.step.c, schema.attempt.c, schema.forecast.c
#: Forecasts that are looked at: the latest so many.
_FORECASTS = 5000


class Waits(Model):
    """From sending in to the first start.  ``of``: all, urgent, final, other, or ``team NAME``."""

    of: str
    count: int
    p50_ns: int
    p95_ns: int


class Coverage(Model):
    """Of forecasts of the end that were made when something was sent in.

    ``covered``: share that ended within the band of 80 %; ``drawn``: of the band before it was calibrated.
    """

    object: str
    count: int
    covered: float
    drawn: float
    error_p50_ns: int
    error_p90_ns: int


class Usage(Model):
    """``used_ns``: time of slots; ``share``: of all that was used."""

    team: str
    person: str
    used_ns: int
    share: float
    submissions: int


class Learned(Model):
    """What steps of a kind take.  ``timeout_ns``: of one that names none; None while too few have passed."""

    kind: str
    key: str
    count: int
    p50_ns: int
    p90_ns: int
    timeout_ns: int | None


class Statistics(Model):
    since_ns: int
    idle: Idle
    waits: tuple[Waits, ...]
    forecasts: tuple[Coverage, ...]
    usage: tuple[Usage, ...]
    learned: tuple[Learned, ...]


def statistics(lab: Lab, actor: Actor, *, back_ns: int = DEFAULT_NS) -> Statistics:
    """Of the last ``back_ns``.  What steps take is of the latest runs, however old."""
    actor.need("read", "see statistics")
    if not 0 < back_ns <= MOST_NS:
        raise WrongInput("statistics reach back between an hour and 400 days", hint="as in 7d")
    since_ns = lab.now() - back_ns
    with lab.store.read() as connection:
        return Statistics(
            since_ns=since_ns,
            idle=idle_while_waiting(lab, actor, since_ns=since_ns),
            waits=_waits(connection, since_ns),
            forecasts=tuple(
                found for object_ in ("submission", "step") if (found := _coverage(connection, object_, since_ns))
            ),
            usage=_usage(connection, since_ns, lab.now()),
            learned=_learned(connection),
        )


def _waits(connection: Connection, since_ns: int) -> tuple[Waits, ...]:
    by: dict[str, list[int]] = {}
    for row in connection.execute(
        select(_sub.submitted_ns, _sub.urgent, _sub.kind, _sub.team, func.min(_attempt.started_ns).label("begun"))
        .select_from(
            schema.submission.join(schema.step, _step.submission_id == _sub.id).join(
                schema.attempt, _attempt.step_id == _step.id
            )
        )
        .where(_sub.submitted_ns >= since_ns)
        .group_by(_sub.id, _sub.submitted_ns, _sub.urgent, _sub.kind, _sub.team)
    ):
        wait = row.begun - row.submitted_ns
        by.setdefault("all", []).append(wait)
        by.setdefault("urgent" if row.urgent else "final" if row.kind == "final" else "other", []).append(wait)
        if row.team:
            by.setdefault(f"team {row.team}", []).append(wait)
    first = [name for name in ("all", "urgent", "final", "other") if name in by]
    return tuple(_wait(name, by[name]) for name in (*first, *sorted(by.keys() - set(first))))


def _wait(of: str, waits: list[int]) -> Waits:
    ordered = sorted(waits)
    return Waits(of=of, count=len(ordered), p50_ns=quantile(ordered, 0.5), p95_ns=quantile(ordered, 0.95))


def _coverage(connection: Connection, object_: str, since_ns: int) -> Coverage | None:
    rows = connection.execute(
        select(
            _forecast.end_p10_ns,
            _forecast.end_p50_ns,
            _forecast.end_p90_ns,
            _forecast.end_drawn_p10_ns,
            _forecast.end_drawn_p90_ns,
            _forecast.ended_ns,
        )
        .where(
            _forecast.object == object_,
            _forecast.made_ns >= since_ns,
            _forecast.ended_ns.is_not(None),
            _forecast.end_p50_ns.is_not(None),
        )
        .order_by(_forecast.ended_ns.desc())
        .limit(_FORECASTS)
    ).all()
    shown = covered((Band(low, middle, high), came) for low, middle, high, _, _, came in rows)
    drawn = covered((Band(low, middle, high), came) for _, middle, _, low, high, came in rows)
    if shown is None or drawn is None:
        return None
    errors = sorted(abs(row.ended_ns - row.end_p50_ns) for row in rows)
    return Coverage(
        object=object_,
        count=len(rows),
        covered=shown,
        drawn=drawn,
        error_p50_ns=quantile(errors, 0.5),
        error_p90_ns=quantile(errors, 0.9),
    )


def _usage(connection: Connection, since_ns: int, now_ns: int) -> tuple[Usage, ...]:
    took = func.sum(func.coalesce(_attempt.ended_ns, now_ns) - _attempt.started_ns)
    rows = connection.execute(
        select(_sub.team, _sub.submitter, took.label("used"), func.count(_sub.id.distinct()).label("submissions"))
        .select_from(
            schema.attempt.join(schema.step, _attempt.step_id == _step.id).join(
                schema.submission, _step.submission_id == _sub.id
            )
        )
        .where(_attempt.started_ns >= since_ns)
        .group_by(_sub.team, _sub.submitter)
    ).all()
    total = sum(int(row.used) for row in rows) or 1
    made = (
        Usage(
            team=row.team,
            person=row.submitter,
            used_ns=int(row.used),
            share=int(row.used) / total,
            submissions=row.submissions,
        )
        for row in rows
    )
    return tuple(sorted(made, key=lambda one: (-one.used_ns, one.team, one.person)))


def _learned(connection: Connection) -> tuple[Learned, ...]:
    known = durations.load(connection)
    table = schema.duration.c
    made = []
    for kind, key, count, latest in connection.execute(
        select(table.kind, table.key, table.count, table.latest).order_by(table.kind, table.key)
    ):
        took = sorted(latest)
        made.append(
            Learned(
                kind=kind,
                key=key,
                count=count,
                p50_ns=quantile(took, 0.5),
                p90_ns=quantile(took, 0.9),
                timeout_ns=known.timeout(kind, key),
            )
        )
    return tuple(made)
