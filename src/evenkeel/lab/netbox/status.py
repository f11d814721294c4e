"""How the lab stands with its NetBox, without asking it: settings, last runs, what is due, what is marked."""

from __future__ import annotations

from sqlalchemy import func, select

from evenkeel.documents.base import Model
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import settings
from evenkeel.lab.netbox.compare import Owner
from evenkeel.lab.netbox.log import Run, run_of


class FieldOwner(Model):
    """One row of the ownership map: whose word counts, and where NetBox keeps it."""

    field: str
    owner: Owner
    netbox: str
    what: str


class Status(Model):
    """``url`` None: no NetBox is configured.  ``next_*_ns``: the moment that the next one is due."""

    url: str | None
    webhooks: bool
    machines: int
    gone: tuple[str, ...]
    last_full: Run | None
    last_incremental: Run | None
    next_full_ns: int | None
    next_incremental_ns: int | None
    fields: tuple[FieldOwner, ...]


def status(lab: Lab, actor: Actor) -> Status:
    """Raises WrongInput for a settings file that is wrong; none at all is no error here."""
    actor.need("read", "see how the lab stands with NetBox")
    machines, seen = schema.machine, schema.netbox_device
    with lab.store.read() as connection:
        known = connection.scalar(select(func.count()).where(machines.c.netbox_id.is_not(None))) or 0
        gone = connection.scalars(
            select(machines.c.name).join(seen).where(seen.c.gone_ns.is_not(None)).order_by(machines.c.name)
        ).all()
    if not settings.configured(lab):
        return Status(
            url=None,
            webhooks=False,
            machines=known,
            gone=tuple(gone),
            last_full=None,
            last_incremental=None,
            next_full_ns=None,
            next_incremental_ns=None,
            fields=(),
        )
    config = settings.load(lab)
    full, incremental = _last(lab, "full"), _last(lab, "incremental")
    began = max(run.started_ns if run else 0 for run in (full, incremental))
    now = lab.now()
    return Status(
        url=config.url,
        webhooks=config.webhook_secret is not None,
        machines=known,
        gone=tuple(gone),
        last_full=full,
        last_incremental=incremental,
        next_full_ns=_next(full.started_ns if full else 0, config.full_every, now),
        next_incremental_ns=_next(began, config.incremental_every, now),
        fields=tuple(FieldOwner(field=f.name, owner=f.owner, netbox=f.netbox, what=f.what) for f in config.table()),
    )


def _next(last_ns: int, every: int, now: int) -> int:
    """At once after one that is yet to come: the clock was set back since."""
    return last_ns + every if 0 < last_ns <= now else now


def _last(lab: Lab, kind: str) -> Run | None:
    runs = schema.netbox_run
    with lab.store.read() as connection:
        row = connection.execute(select(runs).where(runs.c.kind == kind).order_by(runs.c.id.desc()).limit(1)).first()
    return run_of(row) if row else None
