"""What is removed because it is old: logs of attempts, result documents with their warnings, events.

Each by its policy in the settings (``logs``, ``results``, ``events``), called by the hourly keeper of artifacts
(:func:`evenkeel.lab.artifacts.collect`).  Never touched: an attempt that runs or whose submission is open, the last
good results of each kind and branch, what belongs to an artifact that somebody pinned.  That an attempt was, when and
how it ended stays for ever; so does when its log and its result were removed, for those who look for them.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Executable, Select, Update, and_, delete, func, null, or_, select, update

from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from evenkeel.lab.retention import Retention

#: Rows in one change: the dispatcher's changes wait for it.
_AT_ONCE = 1000
_attempt, _step, _submission, _event = schema.attempt.c, schema.step.c, schema.submission.c, schema.event.c
_log = logging.getLogger(__name__)


def remove(lab: Lab) -> dict[str, int]:
    """All that the policies do not keep.  How much: ``logs`` and their bytes ``log_size``, ``results``, ``events``."""
    logs, log_size = _remove_logs(lab)
    return {"logs": logs, "log_size": log_size, "results": _remove_results(lab), "events": _remove_events(lab)}


def open_attempts() -> Select[Any]:
    """Numbers of those that run, or that somebody may still try again and look at."""
    return (
        select(_attempt.id)
        .select_from(
            schema.attempt.join(schema.step, _attempt.step_id == _step.id).join(
                schema.submission, _step.submission_id == _submission.id
            )
        )
        .where(or_(_submission.state == "open", _attempt.state == "running"))
    )


def old(policy: Retention, now: int) -> Select[Any]:
    """Numbers of attempts that the policy does not keep."""
    ranked = (
        select(
            _attempt.id,
            func.row_number()
            .over(partition_by=_attempt.same, order_by=(_attempt.ended_ns.desc(), _attempt.id.desc()))
            .label("place"),
        )
        .where(_attempt.state == "passed", _attempt.same != "")
        .subquery()
    )
    last = select(ranked.c.id).where(ranked.c.place <= policy.last)
    age = or_(
        and_(_attempt.state == "passed", _attempt.ended_ns < now - policy.passed),
        _attempt.ended_ns < now - policy.failed,
    )
    return select(_attempt.id).where(age, _attempt.id.not_in(last), _attempt.id.not_in(open_attempts()))


def _unpinned(policy: Retention, now: int) -> Select[Any]:
    pinned = select(schema.artifact.c.attempt_id).where(schema.artifact.c.pinned_by != "")
    return old(policy, now).where(_attempt.id.not_in(pinned)).order_by(_attempt.id)


def _remove_logs(lab: Lab) -> tuple[int, int]:
    with lab.store.read() as connection:
        query = _unpinned(lab.settings.logs, lab.now()).where(_attempt.log_removed_ns.is_(None))
        found = list(connection.scalars(query))
    removed, size = 0, 0
    for begin in range(0, len(found), _AT_ONCE):
        gone = []
        for number in found[begin : begin + _AT_ONCE]:
            try:
                freed = lab.logs.remove(number)
            except OSError as error:  # the others can go; this one is tried again in an hour
                _log.warning("the log of attempt %d cannot be removed: %s", number, error)
                continue
            gone.append(number)
            removed, size = removed + 1, size + freed
        # After the files: a service that is killed between the two removes them again, which does nothing.
        if gone:
            _change(lab, _of(gone).values(log_removed_ns=lab.now()))
    return removed, size


def _remove_results(lab: Lab) -> int:
    with lab.store.read() as connection:
        query = _unpinned(lab.settings.results, lab.now()).where(_attempt.result_removed_ns.is_(None))
        found = list(connection.scalars(query))
    for begin in range(0, len(found), _AT_ONCE):
        part = found[begin : begin + _AT_ONCE]
        _change(
            lab,
            delete(schema.warning).where(schema.warning.c.attempt_id.in_(part)),
            _of(part).values(result=null(), result_removed_ns=lab.now()),
        )
    return len(found)


def _of(numbers: list[int]) -> Update:
    return update(schema.attempt).where(_attempt.id.in_(numbers))


def _change(lab: Lab, *statements: Executable) -> None:
    """All of them in one change."""

    def change(connection: Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    lab.store.write(change)


def _remove_events(lab: Lab) -> int:
    """The oldest up to the first that is young: whoever reads on from a number can tell whether something is missing
    (:func:`evenkeel.lab.events.first_seq`).

    Kept, too: the newest, after which numbers go on, and what a webhook that is not off has not been told yet.
    """
    before = lab.now() - lab.settings.events
    with lab.store.read() as connection:
        first, newest = connection.execute(select(func.min(_event.seq), func.max(_event.seq))).one()
        if first is None:
            return 0
        young = connection.scalar(select(_event.seq).where(_event.at_ns >= before).order_by(_event.seq).limit(1))
        told = connection.scalar(select(func.min(schema.webhook.c.after)).where(schema.webhook.c.off.is_(False)))
    end = min(seq for seq in (newest, young, None if told is None else told + 1) if seq is not None)
    removed = 0
    for begin in range(first, end, _AT_ONCE):
        part = delete(schema.event).where(_event.seq < min(begin + _AT_ONCE, end))
        removed += lab.store.write(lambda connection, part=part: int(connection.execute(part).rowcount))  # type: ignore[misc]
    return removed
