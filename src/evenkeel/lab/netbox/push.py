"""What the lab knows goes to NetBox, by hand, a field at a time: serial, platform, sizes, owners, interfaces, MACs.

Never loses data: only what NetBox does not have, or still has as agreed, is written without being named; the old
value is in the log before NetBox is asked; If-Match makes NetBox refuse when somebody was faster.  Creates interfaces,
MAC addresses and platforms that are missing; deletes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import machines, schema
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import fields, log, settings
from evenkeel.lab.netbox.client import Changed, NetBox, Object
from evenkeel.lab.netbox.compare import Act, Base, Outcome, Owner, Value, into_netbox, plain
from evenkeel.lab.netbox.known import agree, bases
from evenkeel.lab.netbox.settings import Settings, connected

_DEVICES, _INTERFACES, _MACS = "dcim/devices", "dcim/interfaces", "dcim/mac-addresses"


class Write(Model):
    """One field of the plan.  ``act``: write, or hold with the reason.  ``creates``: what is made for it first."""

    field: str
    owner: Owner
    base: Value
    agreed: bool
    netbox: Value
    lab: Value
    act: Literal["write", "hold"]
    why: str
    conflict: str
    creates: str


class PushPlan(Model):
    """What a push of this machine would do now; fields that agree are left out."""

    machine: str
    netbox_id: int
    writes: tuple[Write, ...]


@dataclass(frozen=True)
class _Machine:
    row: Row[Any]
    bases: Mapping[str, Base]
    values: Mapping[str, Value]


def push_plan(
    lab: Lab, actor: Actor, machine: str, *, named: Collection[str] = (), netbox: NetBox | None = None
) -> PushPlan:
    """Say what a push would write.  ``named``: fields by name, which may overwrite what others wrote."""
    actor.need("read", "compare the lab with NetBox")
    config = settings.load(lab)
    with connected(lab, config, netbox) as box:
        found = _machine(lab, config, machine)
        device, interfaces = _device(box, found)
        writes = _plan(config, found, device, interfaces, named)
    return PushPlan(machine=found.row.name, netbox_id=found.row.netbox_id, writes=tuple(writes))


def push(lab: Lab, actor: Actor, machine: str, *, named: Collection[str] = (), netbox: NetBox | None = None) -> log.Run:
    """Write it.  Raises Refused for a NetBox that cannot tell lost updates, Changed when somebody was faster."""
    actor.need("netbox", "write to NetBox")
    config = settings.load(lab)
    with log.running(lab, actor, "push") as report, connected(lab, config, netbox) as box:
        box.writable(force=config.write_to_old)
        found = _machine(lab, config, machine)
        settle(lab, box, config, found.row)
        found = _machine(lab, config, machine)
        device, interfaces = _device(box, found)
        for write in _plan(config, found, device, interfaces, named):
            if write.act == "write":
                _one(lab, report, box, config, found.row, write)
            elif write.conflict:
                report.conflicts.append(
                    log.Conflict(
                        machine=found.row.name,
                        field=write.field,
                        conflict=write.conflict,
                        netbox=write.netbox,
                        lab=write.lab,
                        kept="both",
                    )
                )
        _agreed(lab, box, config, found)
    return log.run(lab, actor, report.run)


# -- plan ---------------------------------------------------------------------------------------------------------


def _plan(
    config: Settings, found: _Machine, device: Object, interfaces: list[Object], named: Collection[str]
) -> list[Write]:
    known = {field.name: field for field in config.table()}
    for name in named:
        if name not in known and fields.interface_of(name) is None:
            raise WrongInput(f"no field {name!r}", hint=f"fields are {', '.join(known)}, interface.NAME.mac")
    writes = []
    for field in known.values():
        if not field.writable:
            continue
        theirs, ours, base = fields.in_device(device, field), found.values.get(field.name), found.bases.get(field.name)
        outcome = into_netbox(field.owner, base, theirs, ours, named=field.name in named)
        if outcome.act is Act.WRITE and (lacking := fields.missing(device, field)):
            outcome = Outcome(Act.HOLD, lacking)
        if outcome.act is not Act.SAME and (ours is not None or field.name in named):
            writes.append(_write(field.name, field.owner, base, theirs, ours, outcome))
    for name, ours in found.values.items():
        if (interface := fields.interface_of(name)) and not _there(interfaces, str(ours)):
            there = next((one for one in interfaces if one["name"] == interface), None)
            theirs, base = fields.mac_of(there) if there else None, found.bases.get(name)
            outcome = into_netbox(Owner.OBSERVED, base if there else None, theirs, ours, named=name in named)
            creates = "MAC address" if there else f"interface {interface}, MAC address"
            if outcome.act is not Act.SAME:
                writes.append(_write(name, Owner.OBSERVED, base, theirs, ours, outcome, creates))
    return writes


def _write(
    name: str, owner: Owner, base: Base | None, theirs: Value, ours: Value, outcome: Outcome, creates: str = ""
) -> Write:
    return Write(
        field=name,
        owner=owner,
        base=base.value if base else None,
        agreed=base is not None,
        netbox=theirs,
        lab=ours,
        act="write" if outcome.act is Act.WRITE else "hold",
        why=outcome.why,
        conflict=outcome.conflict,
        creates=creates if outcome.act is Act.WRITE else "",
    )


def _there(interfaces: list[Object], address: str) -> bool:
    """Whether any interface has this address as its own, whatever it is called there ("Slot 1 Port 2")."""
    return any(fields.mac_of(interface) == address for interface in interfaces)


def _machine(lab: Lab, config: Settings, name: str) -> _Machine:
    snapshots = schema.snapshot
    with lab.store.read() as connection:
        row = machines.find(connection, name)
        if row.netbox_id is None:
            raise NotFound(f"machine {row.name} has no NetBox id", hint="evenkeel lab netbox import ID")
        newest = select(snapshots.c.document).where(snapshots.c.machine_id == row.id)
        document = connection.scalar(newest.order_by(snapshots.c.id.desc()).limit(1))
        agreed = bases(connection, [row.id]).get(row.id, {})
    told = json.loads(document) if document else {}
    values = fields.observed(told.get("facts") or {}, told.get("inventory") or {})
    values |= {f.name: plain(getattr(row, f.column)) for f in config.table() if f.column and f.writable}
    return _Machine(row, agreed, values)


def _device(box: NetBox, found: _Machine) -> tuple[Object, list[Object]]:
    read = box.device(found.row.netbox_id)
    if read is None:
        raise NotFound(
            f"NetBox has no device {found.row.netbox_id}, which machine {found.row.name} was",
            hint="import the device that it is now, by its id",
        )
    return read[0], box.interfaces(found.row.netbox_id)


# -- writing ------------------------------------------------------------------------------------------------------


def _one(lab: Lab, report: log.Report, box: NetBox, config: Settings, row: Row[Any], write: Write) -> None:
    """Write one field down, then send it, then write down what came of it."""
    machine = str(row.id)
    number = lab.store.write(
        lambda c: log.record(lab, c, report, "netbox", machine, write.field, write.netbox, write.lab, state="intended")
    )
    try:
        set_value(box, config, int(row.netbox_id), write.field, write.netbox, write.lab)
    except EvenkeelError:
        with suppress(EvenkeelError):  # where NetBox is gone, the next push finds out
            settle(lab, box, config, row)
        raise

    def done(connection: Connection) -> None:
        _state(connection, number, "done")
        agree(lab, connection, machine, write.field, write.lab)
        data = {"field": write.field, "old": write.netbox, "new": write.lab, "run": report.run}
        lab.store.event(connection, report.actor.name, "netbox.written", "machine", machine, **data)

    lab.store.write(done)
    report.count("written")
    if write.conflict:
        report.conflicts.append(
            log.Conflict(
                machine=row.name,
                field=write.field,
                conflict=write.conflict,
                netbox=write.netbox,
                lab=write.lab,
                kept="lab",
            )
        )


def set_value(box: NetBox, config: Settings, device: int, name: str, expected: Value, value: Value) -> None:
    """PATCH this one field, if NetBox still has ``expected`` in it.  Raises Changed."""
    interface = fields.interface_of(name)
    if interface is not None:
        _set_mac(box, device, interface, expected, value)
        return
    field = next(field for field in config.table() if field.name == name)
    read = box.device(device)
    if read is None:
        raise NotFound(f"NetBox has no device {device}")
    found, etag = read
    if fields.in_device(found, field) != expected:
        raise _overtaken(name, fields.in_device(found, field))
    if field.netbox == "platform.name" and value is not None:
        _need_platform(box, str(value))
    box.patch(_DEVICES, device, fields.body_of(field, value), etag)


def _overtaken(name: str, found: Value) -> Changed:
    return Changed(f"{name} was changed in NetBox meanwhile, to {found!r}", hint="look at the plan again and repeat")


def _set_mac(box: NetBox, device: int, name: str, expected: Value, value: Value) -> None:
    there = next((one for one in box.interfaces(device) if one["name"] == name), None)
    if there is None:
        # "other": what kind of port it is, NetBox's people know and the probe does not.
        there = box.create(_INTERFACES, {"device": device, "name": name, "type": "other"})
    read = box.one(_INTERFACES, int(there["id"]))
    if read is None:
        raise NotFound(f"NetBox has no interface {name} any more")
    interface, etag = read
    if fields.mac_of(interface) != expected:
        raise _overtaken(fields.mac_field(name), fields.mac_of(interface))
    if value is None:
        box.patch(_INTERFACES, int(interface["id"]), {"primary_mac_address": None}, etag)
        return
    if "mac_addresses" not in interface:  # before 4.2 the address was a plain field
        box.patch(_INTERFACES, int(interface["id"]), {"mac_address": value}, etag)
        return
    listed = interface["mac_addresses"] or ()
    address = next((one for one in listed if fields.mac(str(one["mac_address"])) == value), None)
    if address is None:
        body = {"mac_address": value, "assigned_object_type": "dcim.interface", "assigned_object_id": interface["id"]}
        address = box.create(_MACS, body)
    box.patch(_INTERFACES, int(interface["id"]), {"primary_mac_address": address["id"]}, etag)


def _need_platform(box: NetBox, name: str) -> None:
    if not list(box.all("dcim/platforms", name=name)):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:100]
        box.create("dcim/platforms", {"name": name, "slug": slug})


def _agreed(lab: Lab, box: NetBox, config: Settings, found: _Machine) -> None:
    """Where both say the same now, that is what was agreed upon."""
    device, interfaces = _device(box, found)

    def change(connection: Connection) -> None:
        for field in config.table():
            theirs = fields.in_device(device, field)
            if field.writable and theirs is not None and theirs == found.values.get(field.name):
                agree(lab, connection, found.row.id, field.name, theirs)
        for name, ours in found.values.items():
            if fields.interface_of(name) and ours is not None and _there(interfaces, str(ours)):
                agree(lab, connection, found.row.id, name, ours)

    lab.store.write(change)


# -- after a crash ------------------------------------------------------------------------------------------------


def settle(lab: Lab, box: NetBox, config: Settings, row: Row[Any]) -> None:
    """Find out of NetBox what became of writes that were intended and never answered."""
    changes = schema.field_change
    query = select(changes).where(changes.c.object_id == row.id, changes.c.state == "intended").order_by(changes.c.id)
    with lab.store.read() as connection:
        open_ = list(connection.execute(query))
    if not open_:
        return
    read = box.device(int(row.netbox_id))
    interfaces = box.interfaces(int(row.netbox_id)) if read else []
    table = {field.name: field for field in config.table()}

    def now_at(name: str) -> Value:
        if interface := fields.interface_of(name):
            return next((fields.mac_of(one) for one in interfaces if one["name"] == interface), None)
        return fields.in_device(read[0], table[name]) if read and name in table else None

    def change(connection: Connection) -> None:
        for one in open_:
            found = now_at(one.field)
            if found == one.new:
                _state(connection, one.id, "done")
                agree(lab, connection, row.id, one.field, found)
            elif found == one.old:
                _state(connection, one.id, "failed")
            else:
                _state(connection, one.id, "unknown")

    lab.store.write(change)


def _state(connection: Connection, number: int, state: str) -> None:
    changes = schema.field_change
    connection.execute(update(changes).where(changes.c.id == number).values(state=state))
