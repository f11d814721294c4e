"""Machines that have a NetBox id, with what was agreed upon with it, field by field: the base of the compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects import postgresql, sqlite

from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox.client import Object
from evenkeel.lab.netbox.compare import Base, Value, plain
from evenkeel.lab.netbox.fields import Field


@dataclass(frozen=True)
class Known:
    """``enclosure``: NetBox id of the machine's enclosure.  ``last_updated``: NetBox's own time; empty: never seen."""

    row: Row[Any]
    last_updated: str
    gone_ns: int | None
    bases: Mapping[str, Base]
    enclosure: int | None

    def value(self, field: Field) -> Value:
        """What the lab has in a field."""
        return self.enclosure if field.column == "enclosure_id" else plain(getattr(self.row, field.column))

    def fresh(self, device: Object) -> bool:
        """Not older than what was seen already: a webhook may overtake the pages of a long list."""
        return not self.last_updated or instant(str(device["last_updated"])) >= instant(self.last_updated)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def known(connection: Connection, numbers: Iterable[int] | None = None) -> dict[int, Known]:
    """Machines that have a NetBox id, by it."""
    machines, seen = schema.machine, schema.netbox_device
    query = select(machines, seen.c.last_updated, seen.c.gone_ns).join(
        seen, seen.c.machine_id == machines.c.id, isouter=True
    )
    wanted = None if numbers is None else list(numbers)
    query = query.where(machines.c.netbox_id.is_not(None) if wanted is None else machines.c.netbox_id.in_(wanted))
    rows = list(connection.execute(query))
    agreed = bases(connection, None if wanted is None else [row.id for row in rows])
    ids = dict(
        connection.execute(select(machines.c.id, machines.c.netbox_id).where(machines.c.netbox_id.is_not(None))).all()
    )
    return {
        int(row.netbox_id): Known(
            row, row.last_updated or "", row.gone_ns, agreed.get(row.id, {}), ids.get(row.enclosure_id)
        )
        for row in rows
    }


def agree(lab: Lab, connection: Connection, machine: str, field: str, value: Value) -> None:
    """From now on both sides have this value."""
    agree_all(lab, connection, [(machine, field, value)])


def agree_all(lab: Lab, connection: Connection, agreed: Sequence[tuple[str, str, Value]]) -> None:
    """Machine, field, value."""
    rows = [
        {"object": "machine", "object_id": machine, "field": field, "value": value, "at_ns": lab.now()}
        for machine, field, value in agreed
    ]
    upsert(connection, schema.netbox_base, ("object", "object_id", "field"), rows)


def bases(connection: Connection, machines: Iterable[str] | None = None) -> dict[str, dict[str, Base]]:
    """What was agreed upon, by machine and field."""
    table = schema.netbox_base
    query = select(table.c.object_id, table.c.field, table.c.value).where(table.c.object == "machine")
    if machines is not None:
        query = query.where(table.c.object_id.in_(list(machines)))
    found: dict[str, dict[str, Base]] = {}
    for machine, field, value in connection.execute(query):
        found.setdefault(machine, {})[field] = Base(value)
    return found


def upsert(connection: Connection, table: Any, key: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or put their values into those that have the same ``key``."""
    if rows:
        statement = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
        new = {name: statement.excluded[name] for name in rows[0] if name not in key}
        connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=new), list(rows))
