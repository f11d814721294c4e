"""What NetBox says comes into the lab: by a plan first, then in full, by what changed, by webhook, or by import.

Compares field by field (:mod:`evenkeel.lab.netbox.compare`), inside the change that writes, so that whatever happened
since the plan counts.  A machine is all of one change: a crash leaves it as it was or as it should be.  What NetBox
has no more is marked, never removed.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeVar

from fastapi import FastAPI
from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import machines as pool
from evenkeel.lab import schema
from evenkeel.lab.actor import SERVICE, Actor, NotFound
from evenkeel.lab.identity import identity_told
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import fields, log, settings
from evenkeel.lab.netbox.client import NetBox, Object
from evenkeel.lab.netbox.compare import Act, Base, Outcome, Owner, Value, into_lab, plain
from evenkeel.lab.netbox.fields import Field
from evenkeel.lab.netbox.settings import Settings
from evenkeel.lab.netbox.status import status

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_LOOK_S = 60
#: Machines of one change: others wait for the writer meanwhile.
_TOGETHER = 50
#: NetBox stamps an object when it saves it and shows it when it commits: look so far back again.
_OVERLAP = timedelta(minutes=5)


class Difference(Model):
    """One field on which lab and NetBox do not agree, and what a sync makes of it."""

    field: str
    owner: Owner
    base: Value
    agreed: bool
    netbox: Value
    lab: Value
    act: Literal["take", "hold"]
    why: str
    conflict: str


class MachinePlan(Model):
    """``gone``: NetBox has it no more."""

    machine: str
    netbox_id: int
    gone: bool
    fields: tuple[Difference, ...]


class Plan(Model):
    """What a full sync would do now.  ``read``: devices in NetBox; ``unknown``: those that the lab does not have."""

    at_ns: int
    read: int
    known: int
    unknown: int
    machines: tuple[MachinePlan, ...]


@dataclass(frozen=True)
class _Known:
    """A machine that has a NetBox id, with what was agreed upon."""

    row: Row[Any]
    last_updated: str
    gone_ns: int | None
    bases: Mapping[str, Base]
    enclosure: int | None

    def value(self, field: Field) -> Value:
        return self.enclosure if field.column == "enclosure_id" else plain(getattr(self.row, field.column))


# -- plan ---------------------------------------------------------------------------------------------------------


def plan(lab: Lab, actor: Actor, *, machine: str | None = None, netbox: NetBox | None = None) -> Plan:
    """Ask NetBox and say what a sync would do; nothing is written.  ``machine``: this one only."""
    actor.need("read", "compare the lab with NetBox")
    config = settings.load(lab)
    with lab.store.read() as connection:
        known = _known(connection)
    if machine is not None:
        known = {number: one for number, one in known.items() if machine in (one.row.name, one.row.id)}
        if not known:
            raise NotFound(f"no machine {machine!r} with a NetBox id", hint="evenkeel lab netbox import ID")
    with connected(lab, config, netbox) as box:
        only = list(known) if machine is not None else None
        devices = {int(device["id"]): device for device in _read(box, only)}
    planned = []
    for number, one in sorted(known.items(), key=lambda item: item[1].row.name):
        device = devices.get(number)
        found = [] if device is None else [_difference(*d) for d in _differences(config, one, device)]
        if found or device is None:
            planned.append(
                MachinePlan(machine=one.row.name, netbox_id=number, gone=device is None, fields=tuple(found))
            )
    here = sum(number in devices for number in known)
    return Plan(at_ns=lab.now(), read=len(devices), known=here, unknown=len(devices) - here, machines=tuple(planned))


def _differences(
    config: Settings, one: _Known, device: Object
) -> Iterator[tuple[Field, Base | None, Value, Value, Outcome]]:
    for field in _synced(config):
        if not fields.missing(device, field):
            theirs, ours, base = fields.in_device(device, field), one.value(field), one.bases.get(field.name)
            outcome = into_lab(field.owner, base, theirs, ours, required=field.required)
            if outcome.act is not Act.SAME:
                yield field, base, theirs, ours, outcome


def _difference(field: Field, base: Base | None, theirs: Value, ours: Value, outcome: Outcome) -> Difference:
    return Difference(
        field=field.name,
        owner=field.owner,
        base=base.value if base else None,
        agreed=base is not None,
        netbox=theirs,
        lab=ours,
        act="take" if outcome.act is Act.TAKE else "hold",
        why=outcome.why,
        conflict=outcome.conflict,
    )


# -- sync ---------------------------------------------------------------------------------------------------------


def sync(
    lab: Lab, actor: Actor, kind: Literal["full", "incremental"] = "full", *, netbox: NetBox | None = None
) -> log.Run:
    """Bring the lab up to date.  An incremental one that has nothing to begin from is a full one."""
    actor.need("netbox", "sync with NetBox")
    config = settings.load(lab)
    since = _since(lab) if kind == "incremental" else None
    with log.running(lab, actor, "incremental" if since else "full") as report:
        with connected(lab, config, netbox) as box:
            devices = list(box.devices(**({"last_updated__gte": since} if since else {})))
        report.newest = max([since or "", *(str(device["last_updated"]) for device in devices)])
        report.count("read", len(devices))
        _apply(lab, config, report, devices)
        if not since:
            _mark_gone(lab, report, {int(device["id"]) for device in devices})
    return log.run(lab, actor, report.run)


def sync_devices(
    lab: Lab, actor: Actor, numbers: Sequence[int], kind: log.Kind = "webhook", *, netbox: NetBox | None = None
) -> log.Run:
    """Bring these devices up to date, by their NetBox ids; those that the lab does not have are left alone."""
    actor.need("netbox", "sync with NetBox")
    config = settings.load(lab)
    with log.running(lab, actor, kind) as report, connected(lab, config, netbox) as box:
        devices = list(_read(box, numbers))
        report.count("read", len(devices))
        _apply(lab, config, report, devices)
        _mark_gone(lab, report, {int(device["id"]) for device in devices}, among=set(numbers))
    return log.run(lab, actor, report.run)


def due(lab: Lab) -> Literal["full", "incremental"] | None:
    """Which sync it is time for, by ``netbox.yaml`` and the runs that were; the service asks every minute."""
    if not settings.configured(lab):
        return None
    stands, now = status(lab, SERVICE), lab.now()
    if stands.next_full_ns is not None and now >= stands.next_full_ns:
        return "full"
    return "incremental" if stands.next_incremental_ns is not None and now >= stands.next_incremental_ns else None


@contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[None]:
    """Of the service: look once a minute whether a sync is due, and do it."""

    def look() -> None:
        while not lab.stopping.wait(_LOOK_S) and not ended.is_set():
            try:
                tick(lab)
            except EvenkeelError as error:  # NetBox is away, or netbox.yaml is wrong: the run's row has it too
                _LOG.warning("NetBox: %s", error)

    ended = threading.Event()
    thread = threading.Thread(target=look, name="netbox", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # One that waits for NetBox is left behind: each change of it is whole, and a closed store takes no more.
        thread.join(2)


def tick(lab: Lab) -> log.Run | None:
    """Do what is due."""
    kind = due(lab)
    return sync(lab, SERVICE, kind) if kind else None


# -- import -------------------------------------------------------------------------------------------------------


def import_devices(lab: Lab, actor: Actor, numbers: Sequence[int], *, netbox: NetBox | None = None) -> log.Run:
    """Machines for these devices: linked where one of that name is there already, made where none is.

    A made one is suspect until it was checked: NetBox knows what was bought, not what works."""
    actor.need("machines", "add machines")
    config = settings.load(lab)
    with log.running(lab, actor, "import") as report:
        with connected(lab, config, netbox) as box:
            devices = list(_read(box, numbers))
            absent = sorted(set(numbers) - {int(device["id"]) for device in devices})
            if absent:
                raise NotFound(f"NetBox has no device {', '.join(map(str, absent))}")
            macs = {int(device["id"]): _macs(box, int(device["id"])) for device in devices}
        report.count("read", len(devices))
        for device in devices:
            lab.store.write(partial(_link, lab, report, device, macs[int(device["id"])]))
        _apply(lab, config, report, devices)
    return log.run(lab, actor, report.run)


def _macs(box: NetBox, number: int) -> list[str]:
    found = []
    for interface in box.interfaces(number):
        listed = [str(one["mac_address"]) for one in interface.get("mac_addresses") or ()]
        found += listed or [str(interface["mac_address"])] * bool(interface.get("mac_address"))
    return [fields.mac(one) for one in found]


def _link(lab: Lab, report: log.Report, device: Object, macs: list[str], connection: Connection) -> None:
    number = int(device["id"])
    name = fields.name_of(str(device.get("name") or "")) or f"netbox-{number}"
    machines = schema.machine
    if connection.execute(select(machines.c.id).where(machines.c.netbox_id == number)).first():
        report.count("here already")
        return
    row = connection.execute(select(machines).where(machines.c.name == name)).first()
    if row is not None:
        if row.netbox_id is not None:
            raise WrongInput(
                f"machine {name} is device {row.netbox_id} of NetBox already, it cannot be {number} too",
                hint="two devices of one name? rename one of them",
            )
        connection.execute(
            update(machines).where(machines.c.id == row.id).values(netbox_id=number, version=row.version + 1)
        )
        lab.store.event(connection, report.actor.name, "machine.linked", "machine", row.id, netbox_id=number)
        report.count("linked")
        return
    identity = identity_told(device.get("serial"), macs)
    made = {
        "id": str(uuid.uuid4()),
        "name": name,
        "state": "suspect",
        "state_since_ns": lab.now(),
        "state_reason": f"imported from NetBox (device {number}), not checked yet",
        "identity": identity.model_dump(mode="json"),
        "policy": {},
        "netbox_id": number,
        "registered_ns": lab.now(),
    }
    connection.execute(insert(machines).values(made))
    lab.store.event(
        connection, report.actor.name, "machine.registered", "machine", made["id"], name=name, netbox_id=number
    )
    report.count("made")


# -- applying -----------------------------------------------------------------------------------------------------


def _apply(lab: Lab, config: Settings, report: log.Report, devices: Sequence[Object]) -> None:
    """The names of all first, since they may go round in a circle; then each machine's other fields."""
    unsettled = _write(lab, report, partial(_rename, lab, config, report, devices))
    for at in range(0, len(devices), _TOGETHER):
        _write(lab, report, partial(_take, lab, config, report, devices[at : at + _TOGETHER], unsettled))


def _write(lab: Lab, report: log.Report, change: Callable[[Connection], T]) -> T:
    before = dict(report.counts), len(report.conflicts)
    try:
        return lab.store.write(change)
    except BaseException:  # nothing of it is there, so nothing of it counts
        report.counts = before[0]
        del report.conflicts[before[1] :]
        raise


def _fresh(one: _Known, device: Object) -> bool:
    """Not older than what was seen already: a webhook may overtake the pages of a long list."""
    return not one.last_updated or _instant(str(device["last_updated"])) >= _instant(one.last_updated)


def _rename(
    lab: Lab, config: Settings, report: log.Report, devices: Iterable[Object], connection: Connection
) -> set[int]:
    """Take all names that can be taken, in one change.  Returns the NetBox ids whose name is not settled by that."""
    name = next(field for field in config.table() if field.name == "name")
    known = _known(connection, [int(device["id"]) for device in devices])
    machines = schema.machine
    wanted: dict[str, tuple[_Known, str, Outcome]] = {}
    for device in devices:
        one = known.get(int(device["id"]))
        if one is None or not _fresh(one, device):
            continue
        theirs, ours = fields.in_device(device, name), one.value(name)
        outcome = into_lab(name.owner, one.bases.get("name"), theirs, ours, required=True)
        if outcome.act is Act.TAKE:
            wanted[one.row.id] = (one, str(theirs), outcome)
    unsettled: set[int] = set()
    while wanted:  # until those that are left can all have their names
        leaving = [one.row.id for one, _, _ in wanted.values()]
        names = [new for _, new, _ in wanted.values()]
        taken = dict(
            connection.execute(
                select(machines.c.name, machines.c.id).where(machines.c.name.in_(names), machines.c.id.not_in(leaving))
            ).all()
        )
        doubled = {new for new in names if names.count(new) > 1}
        refused = {key: entry for key, entry in wanted.items() if entry[1] in taken or entry[1] in doubled}
        if not refused:
            break
        for key, (one, new, _) in refused.items():
            why = "two devices have this name" if new in doubled else "another machine of the lab has this name"
            report.conflicts.append(
                log.Conflict(
                    machine=one.row.name, field="name", conflict=why, netbox=new, lab=one.row.name, kept="both"
                )
            )
            unsettled.add(int(one.row.netbox_id))
            del wanted[key]
    for one, _, _ in wanted.values():
        connection.execute(update(machines).where(machines.c.id == one.row.id).values(name=f"~{one.row.id}"))
    for one, new, outcome in wanted.values():
        values = {"name": new, "version": one.row.version + 1}
        connection.execute(update(machines).where(machines.c.id == one.row.id).values(values))
        _taken(lab, connection, report, one, new, "name", one.row.name, new, outcome)
    for one, _, _ in wanted.values():
        pool.follow(connection, one.row.id)
    return unsettled


def _take(
    lab: Lab,
    config: Settings,
    report: log.Report,
    devices: Sequence[Object],
    unsettled: set[int],
    connection: Connection,
) -> None:
    known = _known(connection, [int(device["id"]) for device in devices])
    for device in devices:
        one = known.get(int(device["id"]))
        if one is None:
            continue
        if not _fresh(one, device):
            report.count("older than known")
            continue
        changed: dict[str, Any] = {}
        for field in _synced(config):
            if fields.missing(device, field) or (field.name == "name" and one.row.netbox_id in unsettled):
                continue
            theirs, ours, base = fields.in_device(device, field), one.value(field), one.bases.get(field.name)
            outcome = into_lab(field.owner, base, theirs, ours, required=field.required)
            if outcome.act is Act.SAME:
                if base is None or base.value != theirs:
                    agree(lab, connection, one.row.id, field.name, theirs)
            elif outcome.act is Act.TAKE and field.name != "name":
                value = _column(connection, field, theirs)
                if value is None and theirs is not None:
                    _told(report, one, field, "its enclosure is not in the lab", theirs, ours)
                    continue
                changed[field.column] = value
                _taken(lab, connection, report, one, one.row.name, field.name, ours, theirs, outcome)
            elif outcome.conflict:
                _told(report, one, field, outcome.conflict, theirs, ours)
        if changed:
            values = changed | {"version": one.row.version + 1}
            connection.execute(update(schema.machine).where(schema.machine.c.id == one.row.id).values(values))
            pool.follow(connection, one.row.id)
        _seen(lab, connection, report, one, str(device["last_updated"]))


def _column(connection: Connection, field: Field, value: Value) -> Any:
    """As the column of the machine keeps it: text is never NULL, an enclosure is a machine."""
    if field.column != "enclosure_id":
        return "" if value is None else value
    machines = schema.machine
    return connection.scalar(select(machines.c.id).where(machines.c.netbox_id == value)) if value else None


def _taken(
    lab: Lab,
    connection: Connection,
    report: log.Report,
    one: _Known,
    machine: str,
    field: str,
    old: Value,
    new: Value,
    outcome: Outcome,
) -> None:
    log.record(lab, connection, report, "lab", one.row.id, field, old, new)
    agree(lab, connection, one.row.id, field, new)
    data = {"field": field, "old": old, "new": new, "run": report.run, "conflict": outcome.conflict}
    lab.store.event(connection, report.actor.name, "machine.field", "machine", one.row.id, **data)
    report.count("taken")
    if outcome.conflict:
        report.conflicts.append(
            log.Conflict(machine=machine, field=field, conflict=outcome.conflict, netbox=new, lab=old, kept="netbox")
        )


def _told(report: log.Report, one: _Known, field: Field, conflict: str, theirs: Value, ours: Value) -> None:
    report.conflicts.append(
        log.Conflict(machine=one.row.name, field=field.name, conflict=conflict, netbox=theirs, lab=ours, kept="both")
    )


def _seen(lab: Lab, connection: Connection, report: log.Report, one: _Known, last_updated: str) -> None:
    if one.last_updated == last_updated and one.gone_ns is None:
        return
    values = {"last_updated": last_updated, "seen_ns": lab.now(), "gone_ns": None}
    upsert(connection, schema.netbox_device, {"machine_id": one.row.id}, values)
    if one.gone_ns is not None:
        lab.store.event(connection, report.actor.name, "netbox.back", "machine", one.row.id)
        report.count("back")


def _mark_gone(lab: Lab, report: log.Report, present: set[int], *, among: set[int] | None = None) -> None:
    """Write down since when NetBox has a machine's device no more; the machine stays as it is."""

    def change(connection: Connection) -> None:
        for number, one in _known(connection, among).items():
            if number in present or one.gone_ns is not None:
                continue
            values = {"last_updated": one.last_updated, "seen_ns": lab.now(), "gone_ns": lab.now()}
            upsert(connection, schema.netbox_device, {"machine_id": one.row.id}, values)
            lab.store.event(connection, report.actor.name, "netbox.gone", "machine", one.row.id, netbox_id=number)
            report.count("gone")

    lab.store.write(change)


# -- the tables ---------------------------------------------------------------------------------------------------


def agree(lab: Lab, connection: Connection, machine: str, field: str, value: Value) -> None:
    """From now on both sides have this value: the base of the next compare."""
    key = {"object": "machine", "object_id": machine, "field": field}
    upsert(connection, schema.netbox_base, key, {"value": value, "at_ns": lab.now()})


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


def upsert(connection: Connection, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values({**key, **values})
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def _known(connection: Connection, numbers: Iterable[int] | None = None) -> dict[int, _Known]:
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
        int(row.netbox_id): _Known(
            row, row.last_updated or "", row.gone_ns, agreed.get(row.id, {}), ids.get(row.enclosure_id)
        )
        for row in rows
    }


def _synced(config: Settings) -> list[Field]:
    return [field for field in config.table() if field.column]


def _since(lab: Lab) -> str | None:
    """Where an incremental sync begins; None when none was ever done in full."""
    runs = schema.netbox_run
    query = (
        select(runs.c.newest)
        .where(runs.c.kind.in_(("full", "incremental")), runs.c.state == "done", runs.c.newest != "")
        .order_by(runs.c.id.desc())
        .limit(1)
    )
    with lab.store.read() as connection:
        newest = connection.scalar(query)
    return (_instant(newest) - _OVERLAP).isoformat().replace("+00:00", "Z") if newest else None


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _read(box: NetBox, numbers: Sequence[int] | None) -> Iterator[Object]:
    """All devices, or these; one that is not there is left out."""
    if numbers is None:
        yield from box.devices()
    elif len(numbers) == 1:
        found = box.device(numbers[0])
        if found:
            yield found[0]
    else:
        for at in range(0, len(numbers), 100):
            yield from box.devices(id=list(numbers[at : at + 100]))


@contextmanager
def connected(lab: Lab, config: Settings, given: NetBox | None) -> Iterator[NetBox]:
    """The given client, which stays open; or one of our own, which does not."""
    if given is not None:
        yield given
    else:
        with settings.client(lab, config) as own:
            yield own
