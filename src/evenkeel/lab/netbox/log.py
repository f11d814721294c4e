"""Runs, and every field that one of them overwrote: old, new, whose, which run; who undid it.

Writes the log and reads it.  What to overwrite is decided elsewhere; undo is in :mod:`evenkeel.lab.netbox.undo`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox.compare import Value
from evenkeel.lab.paging import Page, key_of, page

Kind = Literal["full", "incremental", "webhook", "import", "push", "undo"]
Side = Literal["lab", "netbox"]
Kept = Literal["netbox", "lab", "both"]
#: Runs of this process that are under way: another one that says so was cut off.
_LIVE: set[int] = set()


class Conflict(Model):
    """A field that both sides changed, or that nobody may overwrite.  ``kept``: whose value stands now."""

    machine: str
    field: str
    conflict: str
    netbox: Value
    lab: Value
    kept: Kept


class Run(Model):
    """One sync, import, push or undo.  ``counts``: what it did, by word.  ``newest``: see schema."""

    id: int
    kind: Kind
    actor: str
    state: Literal["running", "done", "failed"]
    started_ns: int
    ended_ns: int | None
    newest: str
    counts: dict[str, int]
    conflicts: tuple[Conflict, ...]
    error: str


class FieldChange(Model):
    """One overwritten field.  ``side``: whose value was overwritten.  Intended: NetBox did not answer yet."""

    id: int
    run: int
    at_ns: int
    side: Side
    machine: str
    field: str
    old: Value
    new: Value
    source: str
    state: Literal["intended", "done", "failed", "unknown"]
    undone_by: str | None
    undone_ns: int | None


@dataclass
class Report:
    """What a run has done so far; the run's row gets it at the end, also of one that failed."""

    run: int
    kind: Kind
    actor: Actor
    newest: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + times


@contextmanager
def running(lab: Lab, actor: Actor, kind: Kind) -> Iterator[Report]:
    """A run that is in the log from its beginning, and says how it ended, whatever happens."""

    def begin(connection: Connection) -> int:
        _cut_off(lab, connection)
        row = {"kind": kind, "actor": actor.name, "state": "running", "started_ns": lab.now()}
        done = connection.execute(insert(schema.netbox_run).values(row | {"counts": {}, "conflicts": []}))
        number = int(done.inserted_primary_key[0])  # type: ignore[index]
        _LIVE.add(number)
        return number

    def end(connection: Connection, state: str, error: str) -> None:
        values = {
            "state": state,
            "ended_ns": lab.now(),
            "newest": report.newest if state == "done" else "",
            "counts": report.counts,
            "conflicts": [one.model_dump(mode="json") for one in report.conflicts],
            "error": error,
        }
        connection.execute(update(schema.netbox_run).where(schema.netbox_run.c.id == report.run).values(values))
        # A webhook about nothing of ours, or an incremental sync that found nothing, is no news.
        if error or report.counts.keys() - {"read", "same"}:
            data = {"kind": kind, "counts": report.counts, "conflicts": len(report.conflicts), "error": error}
            lab.store.event(connection, actor.name, f"netbox.{state}", "netbox", report.run, **data)

    report = Report(lab.store.write(begin), kind, actor)
    try:
        try:
            yield report
        except BaseException as error:
            told = error.message if isinstance(error, EvenkeelError) else f"{type(error).__name__}: {error}"
            lab.store.write(lambda connection: end(connection, "failed", told))
            raise
        lab.store.write(lambda connection: end(connection, "done", ""))
    finally:
        _LIVE.discard(report.run)


def _cut_off(lab: Lab, connection: Connection) -> None:
    """Runs that still claim to be under way and are not: the service was stopped within."""
    runs = schema.netbox_run
    values = {"state": "failed", "ended_ns": lab.now(), "error": "cut off: the service stopped within"}
    connection.execute(update(runs).where(runs.c.state == "running", runs.c.id.not_in(_LIVE)).values(values))


def record(
    lab: Lab,
    connection: Connection,
    report: Report,
    side: Side,
    machine: str,
    field_: str,
    old: Value,
    new: Value,
    *,
    source: str = "",
    state: str = "done",
) -> int:
    """Write one overwritten field down; returns its number."""
    row = overwritten(lab, report, side, machine, field_, old, new, source=source, state=state)
    done = connection.execute(insert(schema.field_change).values(row))
    return int(done.inserted_primary_key[0])  # type: ignore[index]


def overwritten(
    lab: Lab,
    report: Report,
    side: Side,
    machine: str,
    field_: str,
    old: Value,
    new: Value,
    *,
    source: str = "",
    state: str = "done",
) -> dict[str, Any]:
    """The row of one overwritten field."""
    return {
        "run": report.run,
        "at_ns": lab.now(),
        "side": side,
        "object": "machine",
        "object_id": machine,
        "field": field_,
        "old": old,
        "new": new,
        "source": source or f"{report.kind} by {report.actor.name}",
        "state": state,
    }


# -- reading ------------------------------------------------------------------------------------------------------


def runs(lab: Lab, actor: Actor, *, after: str | None = None, limit: int = 20) -> Page[Run]:
    """Newest first."""
    actor.need("read", "see runs of NetBox")
    table = schema.netbox_run
    query = select(table).order_by(table.c.id.desc()).limit(limit + 1)
    if key := key_of(after, int):
        query = query.where(table.c.id < key[0])
    with lab.store.read() as connection:
        found = [run_of(row) for row in connection.execute(query)]
    return page(found, limit, lambda run: (run.id,))


def run(lab: Lab, actor: Actor, number: int) -> Run:
    actor.need("read", "see runs of NetBox")
    with lab.store.read() as connection:
        row = connection.execute(select(schema.netbox_run).where(schema.netbox_run.c.id == number)).first()
    if row is None:
        raise NotFound(f"no run {number}", hint="evenkeel lab netbox log --runs")
    return run_of(row)


def changes(
    lab: Lab,
    actor: Actor,
    *,
    machine: str | None = None,
    run: int | None = None,
    field: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[FieldChange]:
    """Overwritten fields, newest first.  ``machine``: its name or id."""
    actor.need("read", "see what was overwritten")
    table, machines = schema.field_change, schema.machine
    query = (
        select(table, machines.c.name.label("machine_name"))
        .join(machines, machines.c.id == table.c.object_id, isouter=True)
        .order_by(table.c.id.desc())
        .limit(limit + 1)
    )
    if machine is not None:
        query = query.where((machines.c.name == machine) | (table.c.object_id == machine))
    if run is not None:
        query = query.where(table.c.run == run)
    if field is not None:
        query = query.where(table.c.field == field)
    if key := key_of(after, int):
        query = query.where(table.c.id < key[0])
    with lab.store.read() as connection:
        found = [change_of(row) for row in connection.execute(query)]
    return page(found, limit, lambda change: (change.id,))


def change_of(row: Row[Any]) -> FieldChange:
    """Of a row of field_change with the machine's name as ``machine_name``."""
    names = ("id", "run", "at_ns", "side", "field", "old", "new", "source", "state", "undone_by", "undone_ns")
    return FieldChange(machine=row.machine_name or row.object_id, **{name: getattr(row, name) for name in names})


def run_of(row: Row[Any]) -> Run:
    return Run.model_validate(dict(row._mapping))
