"""Credits for urgent work: each person has a few a month, and everybody sees who spent one on what, and why.

Whoever asks beyond their credit is not refused: the work is treated as any other, and says so.  A credit comes back
when the work was cancelled before any of it started.  :func:`spend` and :func:`refund` are called within the change of
whoever submits or reserves, so that work and credit are never apart.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection, bindparam, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import Page, key_of, page

Outcome = Literal["spent", "beyond", "refunded"]
_credit, _use = schema.credit.c, schema.credit_use.c
_ASKED = (
    select(schema.credit_use)
    .where(_use.object == bindparam("object"), _use.object_id == bindparam("object_id"))
    .order_by(_use.id.desc())
    .limit(1)
)
MOST = 1000


class Credit(Model):
    """Of one person in the month that began at ``period_ns``."""

    principal: str
    period_ns: int
    granted: int
    spent: int
    left: int


class Use(Model):
    """``outcome`` beyond: no credit was left, so it was treated as any other."""

    id: int
    principal: str
    period_ns: int
    at_ns: int
    object: str
    object_id: str
    reason: str
    outcome: Outcome


def month(at_ns: int) -> int:
    """The first moment of its month, UTC."""
    at = datetime.fromtimestamp(at_ns // 10**9, UTC)
    return int(datetime(at.year, at.month, 1, tzinfo=UTC).timestamp()) * 10**9


# -- within the change of others ----------------------------------------------------------------------------------


def spend(connection: Connection, lab: Lab, actor: Actor, object_: str, object_id: object, reason: str) -> bool:
    """Whether it is urgent: True when a credit was left, which is spent now.  Raises WrongInput without a reason."""
    reason = reason.strip()
    if not reason:
        raise WrongInput("urgent work needs a reason", hint="it is shown to all, with your name: --reason TEXT")
    now = lab.now()
    credit = _of(connection, lab, actor.name, month(now))
    within = credit.left > 0
    if within:
        _set(connection, credit, spent=credit.spent + 1)
    use = {"principal": actor.name, "period_ns": credit.period_ns, "at_ns": now, "object": object_}
    use |= {"object_id": str(object_id), "reason": reason, "outcome": "spent" if within else "beyond"}
    connection.execute(insert(schema.credit_use).values(use))
    left = credit.left - within
    lab.store.event(connection, actor.name, f"credit.{use['outcome']}", object_, object_id, reason=reason, left=left)
    return within


def refund(connection: Connection, lab: Lab, actor: Actor, object_: str, object_id: object) -> None:
    """Give back what was spent on it, if anything was.  The caller knows that nothing of it has started."""
    spent = connection.execute(
        select(schema.credit_use).where(
            _use.object == object_, _use.object_id == str(object_id), _use.outcome == "spent"
        )
    ).all()
    for use in spent:
        connection.execute(update(schema.credit_use).where(_use.id == use.id).values(outcome="refunded"))
        credit = _of(connection, lab, use.principal, use.period_ns)
        _set(connection, credit, spent=credit.spent - 1)
        lab.store.event(connection, actor.name, "credit.refunded", object_, object_id, principal=use.principal)


def asked(connection: Connection, object_: str, object_id: object) -> Use | None:
    """The last time that somebody asked for this to be urgent."""
    row = connection.execute(_ASKED, {"object": object_, "object_id": str(object_id)}).one_or_none()
    return Use(**row._mapping) if row else None


# -- by themselves ------------------------------------------------------------------------------------------------


def make_urgent(lab: Lab, actor: Actor, submission: int, reason: str) -> Use:
    """Make an open submission urgent, for a credit of who asks.  Look at ``outcome`` of what comes back.

    Raises NotFound, Forbidden (not theirs), Conflict (it is, or it has ended), WrongInput (no reason)."""

    def change(connection: Connection) -> Use:
        sub = schema.submission.c
        row = connection.execute(
            select(sub.submitter, sub.team, sub.urgent, sub.state).where(sub.id == submission)
        ).one_or_none()
        if row is None:
            raise NotFound(f"there is no submission {submission}")
        actor.need_own(f"submission {submission}", row.submitter, row.team)
        if row.state != "open":
            raise Conflict(f"submission {submission} has ended", hint="only what still waits can be urgent")
        if row.urgent:
            raise Conflict(f"submission {submission} is urgent already")
        if spend(connection, lab, actor, "submission", submission, reason):
            connection.execute(
                update(schema.submission)
                .where(sub.id == submission)
                .values(urgent=True, reason=reason.strip(), version=sub.version + 1)
            )
            lab.store.event(connection, actor.name, "submission.urgent", "submission", submission, reason=reason)
        use = asked(connection, "submission", submission)
        assert use is not None
        return use

    actor.need("submit", "make submissions urgent")
    return lab.store.write(change)


def grant(lab: Lab, actor: Actor, principal: str, granted: int, reason: str) -> Credit:
    """Give somebody so many credits in this month, instead of what the lab gives to all.  Raises Forbidden."""
    actor.need("people", "grant credits")
    if not 0 <= granted <= MOST:
        raise WrongInput(f"{granted} is no number of credits", hint=f"0 to {MOST}")
    if not reason.strip():
        raise WrongInput("a grant needs a reason", hint="it is kept in the log: --reason TEXT")

    def change(connection: Connection) -> Credit:
        credit = _of(connection, lab, principal, month(lab.now()))
        _set(connection, credit, granted=granted)
        lab.store.event(
            connection, actor.name, "credit.granted", "principal", principal, before=credit.granted, now=granted,
            reason=reason.strip(),
        )  # fmt: skip
        return _of(connection, lab, principal, credit.period_ns)

    return lab.store.write(change)


def credit(lab: Lab, actor: Actor, principal: str | None = None) -> Credit:
    """What somebody (or who asks) has in this month."""
    actor.need("read", "see credits")
    with lab.store.read() as connection:
        return _of(connection, lab, principal or actor.name, month(lab.now()))


def credits(lab: Lab, actor: Actor) -> tuple[Credit, ...]:
    """Of all who spent or were granted some in this month; those who spent most first."""
    actor.need("read", "see credits")
    with lab.store.read() as connection:
        rows = connection.execute(
            select(schema.credit)
            .where(_credit.period_ns == month(lab.now()))
            .order_by(_credit.spent.desc(), _credit.principal)
        ).all()
    return tuple(_credit_of(row.principal, row.period_ns, row.granted, row.spent) for row in rows)


def uses(
    lab: Lab, actor: Actor, *, principal: str | None = None, after: str | None = None, limit: int = 100
) -> Page[Use]:
    """Who used priority for what, and why; the newest first."""
    actor.need("read", "see who used priority")
    query = select(schema.credit_use).order_by(_use.id.desc()).limit(limit + 1)
    if principal:
        query = query.where(_use.principal == principal)
    if key := key_of(after, int):
        query = query.where(_use.id < key[0])
    with lab.store.read() as connection:
        found = [Use(**row._mapping) for row in connection.execute(query)]
    return page(found, limit, lambda one: [one.id])


def _of(connection: Connection, lab: Lab, principal: str, period_ns: int) -> Credit:
    row = connection.execute(
        select(_credit.granted, _credit.spent).where(_credit.principal == principal, _credit.period_ns == period_ns)
    ).one_or_none()
    return _credit_of(principal, period_ns, *((row.granted, row.spent) if row else (lab.settings.credits, 0)))


def _credit_of(principal: str, period_ns: int, granted: int, spent: int) -> Credit:
    return Credit(principal=principal, period_ns=period_ns, granted=granted, spent=spent, left=max(0, granted - spent))


def _set(connection: Connection, credit: Credit, **values: int) -> None:
    here = (_credit.principal == credit.principal, _credit.period_ns == credit.period_ns)
    if not connection.execute(update(schema.credit).where(*here).values(values)).rowcount:
        row = {"principal": credit.principal, "period_ns": credit.period_ns}
        row |= {"granted": credit.granted, "spent": credit.spent} | values
        connection.execute(insert(schema.credit).values(row))
