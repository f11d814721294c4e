"""Write into the lab what a compare says to take from NetBox, with the log of each overwritten field.

A machine is all of one change: a crash leaves it as it was, or as it should be.  The compare is made inside the change,
so that whatever happened since a plan counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, insert, select, update

from evenkeel.lab import machines as pool
from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import fields, log
from evenkeel.lab.netbox.client import Object
from evenkeel.lab.netbox.compare import Act, Outcome, Value, into_lab
from evenkeel.lab.netbox.fields import Field
from evenkeel.lab.netbox.known import Known, agree_all, known, upsert
from evenkeel.lab.netbox.settings import Settings

T = TypeVar("T")
#: Machines of one change: others wait for the writer meanwhile.
_TOGETHER = 50


def take(lab: Lab, config: Settings, report: log.Report, devices: Sequence[Object]) -> None:
    """Bring the machines of these devices up to date.  Names that go round in a circle change all at once."""
    unsettled = _write(lab, report, partial(_circles, lab, config, report, devices))
    for at in range(0, len(devices), _TOGETHER):
        _write(lab, report, partial(_machines, lab, config, report, devices[at : at + _TOGETHER], unsettled))


def synced(config: Settings) -> list[Field]:
    """The fields that a sync looks at: those that a machine's row keeps."""
    return [field for field in config.table() if field.column]


def column(connection: Connection, field: Field, value: Value) -> Any:
    """As the column of the machine keeps it: text is never NULL, an enclosure is a machine."""
    if field.column != "enclosure_id":
        return "" if value is None else value
    machines = schema.machine
    return connection.scalar(select(machines.c.id).where(machines.c.netbox_id == value)) if value else None


def _write(lab: Lab, report: log.Report, change: Callable[[Connection], T]) -> T:
    before = dict(report.counts), len(report.conflicts)
    try:
        return lab.store.write(change)
    except BaseException:  # nothing of it is there, so nothing of it counts
        report.counts = before[0]
        del report.conflicts[before[1] :]
        raise


class _Pen:
    """Collects what goes into the tables beside the machine's row, to write it all at once."""

    def __init__(self, lab: Lab, connection: Connection, report: log.Report) -> None:
        self.lab, self.connection, self.report = lab, connection, report
        self.overwritten: list[dict[str, Any]] = []
        self.agreed: list[tuple[str, str, Value]] = []
        self.seen: list[dict[str, Any]] = []

    def machine(self, one: Known, taken: dict[Field, tuple[Value, Value, Outcome]]) -> None:
        """Take these fields (what was, what is, why): the row, the log, the event."""
        values: dict[str, Any] = {"version": one.row.version + 1}
        for field, (old, new, outcome) in taken.items():
            values[field.column] = column(self.connection, field, new)
            self.overwritten.append(log.overwritten(self.lab, self.report, "lab", one.row.id, field.name, old, new))
            self.agreed.append((one.row.id, field.name, new))
            self.report.count("taken")
            if outcome.conflict:
                self.conflict(one, field, outcome.conflict, new, old, kept="netbox")
        self.connection.execute(update(schema.machine).where(schema.machine.c.id == one.row.id).values(values))
        told = {field.name: {"old": old, "new": new} for field, (old, new, _) in taken.items()}
        said = {"name": one.row.name, "fields": told, "netbox_run": self.report.run}
        self.lab.store.event(self.connection, self.report.actor.name, "machine.edited", "machine", one.row.id, **said)
        if {"name", "enclosure"} & told.keys():
            pool.follow(self.connection, one.row.id)

    def conflict(self, one: Known, field: Field, what: str, theirs: Value, ours: Value, kept: log.Kept) -> None:
        self.report.conflicts.append(
            log.Conflict(machine=one.row.name, field=field.name, conflict=what, netbox=theirs, lab=ours, kept=kept)
        )

    def flush(self) -> None:
        if self.overwritten:
            self.connection.execute(insert(schema.field_change), self.overwritten)
        agree_all(self.lab, self.connection, self.agreed)
        upsert(self.connection, schema.netbox_device, ("machine_id",), self.seen)


def _circles(
    lab: Lab, config: Settings, report: log.Report, devices: Iterable[Object], connection: Connection
) -> set[int]:
    """Change names that wait for each other (a to b, b to a), in one change.

    Returns the NetBox ids of machines that cannot have their names: another machine has it, or two want it."""
    name = next(field for field in config.table() if field.name == "name")
    found = known(connection, [int(device["id"]) for device in devices])
    machines, pen = schema.machine, _Pen(lab, connection, report)
    wanted: dict[str, tuple[Known, str, Outcome]] = {}
    for device in devices:
        one = found.get(int(device["id"]))
        if one is None or not one.fresh(device):
            continue
        theirs, ours = fields.in_device(device, name), one.value(name)
        outcome = into_lab(name.owner, one.bases.get("name"), theirs, ours, required=True)
        if outcome.act is Act.TAKE:
            wanted[one.row.id] = (one, str(theirs), outcome)
    unsettled: set[int] = set()
    holders: dict[str, str] = {}
    while wanted:  # until those that are left can all have their names
        names = [new for _, new, _ in wanted.values()]
        rows = connection.execute(select(machines.c.name, machines.c.id).where(machines.c.name.in_(names)))
        holders = {row.name: row.id for row in rows}
        doubled = {new for new in names if names.count(new) > 1}
        refused = [key for key, (_, new, _) in wanted.items() if new in doubled or holders.get(new, key) not in wanted]
        if not refused:
            break
        for key in refused:
            one, new, _ = wanted.pop(key)
            why = "two devices have this name" if new in doubled else "another machine of the lab has this name"
            pen.conflict(one, name, why, new, one.row.name, kept="both")
            unsettled.add(int(one.row.netbox_id))
    # The others find their new names free, and change them with their other fields.
    waiting = {key for key, (_, new, _) in wanted.items() if new in holders} | (wanted.keys() & holders.values())
    for key in waiting:
        connection.execute(update(machines).where(machines.c.id == key).values(name=f"~{key}"))
    for key in waiting:
        one, new, outcome = wanted[key]
        pen.machine(one, {name: (one.row.name, new, outcome)})
    pen.flush()
    return unsettled


def _machines(
    lab: Lab,
    config: Settings,
    report: log.Report,
    devices: Sequence[Object],
    unsettled: set[int],
    connection: Connection,
) -> None:
    found, pen = known(connection, [int(device["id"]) for device in devices]), _Pen(lab, connection, report)
    for device in devices:
        one = found.get(int(device["id"]))
        if one is None:
            continue
        if not one.fresh(device):
            report.count("older than known")
            continue
        taken = _compared(config, pen, one, device, unsettled)
        if taken:
            pen.machine(one, taken)
        _seen(pen, one, str(device["last_updated"]))
    pen.flush()


def _compared(
    config: Settings, pen: _Pen, one: Known, device: Object, unsettled: set[int]
) -> dict[Field, tuple[Value, Value, Outcome]]:
    """The fields to take; what agrees is noted, what contradicts is named."""
    taken = {}
    for field in synced(config):
        if fields.missing(device, field) or (field.name == "name" and one.row.netbox_id in unsettled):
            continue
        theirs, ours, base = fields.in_device(device, field), one.value(field), one.bases.get(field.name)
        outcome = into_lab(field.owner, base, theirs, ours, required=field.required)
        if outcome.act is Act.SAME:
            if base is None or base.value != theirs:
                pen.agreed.append((one.row.id, field.name, theirs))
        elif outcome.act is Act.TAKE:
            if lacking := _lacking(pen.connection, field, theirs):
                pen.conflict(one, field, lacking, theirs, ours, kept="both")
            else:
                taken[field] = (ours, theirs, outcome)
        elif outcome.conflict:
            pen.conflict(one, field, outcome.conflict, theirs, ours, kept="both")
    return taken


def _lacking(connection: Connection, field: Field, value: Value) -> str:
    """Why the lab cannot have this value now; empty: it can."""
    if value is not None and column(connection, field, value) is None:
        return "its enclosure is not in the lab"
    machines = schema.machine
    if field.name == "name" and connection.scalar(select(machines.c.id).where(machines.c.name == value)):
        return "another machine of the lab has this name"  # since the names were looked at
    return ""


def _seen(pen: _Pen, one: Known, last_updated: str) -> None:
    if one.last_updated == last_updated and one.gone_ns is None:
        return
    pen.seen.append({"machine_id": one.row.id, "last_updated": last_updated, "seen_ns": pen.lab.now(), "gone_ns": None})
    if one.gone_ns is not None:
        pen.lab.store.event(pen.connection, pen.report.actor.name, "netbox.back", "machine", one.row.id)
        pen.report.count("back")


def mark_gone(lab: Lab, report: log.Report, present: set[int], *, among: set[int] | None = None) -> None:
    """Write down since when NetBox has a machine's device no more; the machine stays as it is.

    ``present``: NetBox ids that were read; ``among``: those that were asked for, None: all."""

    def change(connection: Connection) -> None:
        pen = _Pen(lab, connection, report)
        for number, one in known(connection, among).items():
            if number in present or one.gone_ns is not None:
                continue
            now = lab.now()
            pen.seen.append(
                {"machine_id": one.row.id, "last_updated": one.last_updated, "seen_ns": now, "gone_ns": now}
            )
            lab.store.event(connection, report.actor.name, "netbox.gone", "machine", one.row.id, netbox_id=number)
            report.count("gone")
        pen.flush()

    _write(lab, report, change)
