"""Undo of one overwritten field, on the side where it was overwritten.  Itself logged; it can be undone in turn.

Refused when the field changed since: what is there now is somebody's edit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from evenkeel.errors import EvenkeelError
from evenkeel.lab import machines as pool
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import log, push, settings
from evenkeel.lab.netbox.client import NetBox
from evenkeel.lab.netbox.compare import Value, plain
from evenkeel.lab.netbox.settings import Settings, connected


def undo(lab: Lab, actor: Actor, number: int, *, netbox: NetBox | None = None) -> log.FieldChange:
    """Put the old value back; returns the change that did it.  Raises Conflict when it is no longer ours to undo.

    The next sync leaves an undone field alone until its owner changes it again: only one side differs from what was
    agreed, and that one stays."""
    actor.need("netbox", "undo what NetBox and the lab exchanged")
    config = settings.load(lab)
    row = _row(lab, number)
    if row.undone_by is not None:
        raise Conflict(f"change {number} was undone by {row.undone_by} already")
    if row.state != "done":
        raise Conflict(f"change {number} never took place, as far as is known ({row.state})")
    with log.running(lab, actor, "undo") as report:
        if row.side == "lab":
            made = lab.store.write(lambda connection: _in_lab(lab, connection, config, report, row))
        else:
            with connected(lab, config, netbox) as box:
                made = _in_netbox(lab, config, report, box, row)
        report.count("undone")
    return log.change_of(_row(lab, made))


def _row(lab: Lab, number: int) -> Row[Any]:
    changes, machines = schema.field_change, schema.machine
    query = (
        select(changes, machines.c.name.label("machine_name"), machines.c.netbox_id)
        .join(machines, machines.c.id == changes.c.object_id, isouter=True)
        .where(changes.c.id == number)
    )
    with lab.store.read() as connection:
        row = connection.execute(query).first()
    if row is None:
        raise NotFound(f"no change {number}", hint="evenkeel lab netbox log")
    return row


def _in_lab(lab: Lab, connection: Connection, config: Settings, report: log.Report, row: Row[Any]) -> int:
    machines = schema.machine
    field = next(field for field in config.table() if field.name == row.field)
    machine = connection.execute(select(machines).where(machines.c.id == row.object_id)).first()
    if machine is None:
        raise NotFound(f"the machine of change {row.id} is gone")
    old: Any = row.old
    if field.column == "enclosure_id":
        now: Value = connection.scalar(select(machines.c.netbox_id).where(machines.c.id == machine.enclosure_id))
        old = connection.scalar(select(machines.c.id).where(machines.c.netbox_id == row.old)) if row.old else None
    else:
        now = plain(getattr(machine, field.column))
        old = "" if row.old is None else row.old
    _refuse_if_changed(row, now)
    if row.field == "name":
        other = connection.scalar(select(machines.c.id).where(machines.c.name == old))
        if other is not None:
            raise Conflict(f"another machine is called {old} now", hint="rename that one first")
    values = {field.column: old, "version": machine.version + 1}
    connection.execute(update(machines).where(machines.c.id == machine.id).values(values))
    pool.follow(connection, machine.id)
    made = log.record(
        lab, connection, report, "lab", row.object_id, row.field, row.new, row.old, source=f"undo of {row.id}"
    )
    _mark(lab, connection, report, row, made)
    return made


def _in_netbox(lab: Lab, config: Settings, report: log.Report, box: NetBox, row: Row[Any]) -> int:
    box.writable(force=config.write_to_old)
    if row.netbox_id is None:
        raise Conflict(f"machine {row.machine_name} is no device of NetBox any more")
    made = lab.store.write(
        lambda connection: log.record(
            lab,
            connection,
            report,
            "netbox",
            row.object_id,
            row.field,
            row.new,
            row.old,
            source=f"undo of {row.id}",
            state="intended",
        )
    )
    changes = schema.field_change
    try:
        push.set_value(box, config, row.netbox_id, row.field, row.new, row.old)
    except EvenkeelError:
        lab.store.write(lambda c: c.execute(update(changes).where(changes.c.id == made).values(state="failed")))
        raise

    def done(connection: Connection) -> None:
        connection.execute(update(changes).where(changes.c.id == made).values(state="done"))
        _mark(lab, connection, report, row, made)

    lab.store.write(done)
    return made


def _refuse_if_changed(row: Row[Any], now: Value) -> None:
    if now != row.new:
        raise Conflict(
            f"{row.field} of {row.machine_name} is {now!r} by now, not {row.new!r}: somebody changed it since",
            hint="set it by hand if the old value is right",
        )


def _mark(lab: Lab, connection: Connection, report: log.Report, row: Row[Any], made: int) -> None:
    values = {"undone_by": report.actor.name, "undone_ns": lab.now()}
    connection.execute(update(schema.field_change).where(schema.field_change.c.id == row.id).values(values))
    data = {"change": row.id, "by": made, "field": row.field, "old": row.new, "new": row.old, "side": row.side}
    lab.store.event(connection, report.actor.name, "netbox.undone", "machine", row.object_id, **data)
