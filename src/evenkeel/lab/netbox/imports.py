"""Machines of the lab made of NetBox devices, by their ids, or linked to machines that are here already."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, insert, select, update

from evenkeel.errors import WrongInput
from evenkeel.lab import machines as pool
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.identity import identity_told
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import fields, log, settings
from evenkeel.lab.netbox.client import IN_ADDRESS, NetBox, Object
from evenkeel.lab.netbox.known import agree_all
from evenkeel.lab.netbox.settings import Settings, connected
from evenkeel.lab.netbox.take import column, synced, take


def import_devices(lab: Lab, actor: Actor, numbers: Sequence[int], *, netbox: NetBox | None = None) -> log.Run:
    """Machines for these devices: linked where one of that name is there already, made where none is.

    A made one is suspect until it was checked: NetBox knows what was bought, not what works."""
    actor.need("machines", "add machines")
    config = settings.load(lab)
    with log.running(lab, actor, "import") as report:
        with connected(lab, config, netbox) as box:
            devices = list(box.devices_of(numbers))
            absent = sorted(set(numbers) - {int(device["id"]) for device in devices})
            if absent:
                raise NotFound(f"NetBox has no device {', '.join(map(str, absent))}")
            macs = _macs(box, numbers)
        report.count("read", len(devices))
        for device in devices:
            lab.store.write(partial(_link, lab, config, report, device, macs.get(int(device["id"]), [])))
        take(lab, config, report, devices)
    return log.run(lab, actor, report.run)


def _macs(box: NetBox, numbers: Sequence[int]) -> dict[int, list[str]]:
    """MAC addresses of devices, by their ids."""
    found: dict[int, list[str]] = {}
    for at in range(0, len(numbers), IN_ADDRESS):
        for interface in box.interfaces(*numbers[at : at + IN_ADDRESS]):
            listed = [str(one["mac_address"]) for one in interface.get("mac_addresses") or ()]
            listed = listed or [str(interface["mac_address"])] * bool(interface.get("mac_address"))
            found.setdefault(int(interface["device"]["id"]), []).extend(map(fields.mac, listed))
    return found


def _link(
    lab: Lab, config: Settings, report: log.Report, device: Object, macs: list[str], connection: Connection
) -> None:
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
    made: dict[str, Any] = {
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
    # All of it is NetBox's: nothing is overwritten, and from here on it is what both agreed upon.
    given = {field: fields.in_device(device, field) for field in synced(config) if field.name != "name"}
    columns = {field: column(connection, field, value) for field, value in given.items()}
    made |= {field.column: value for field, value in columns.items()}
    connection.execute(insert(machines).values(made))
    settled = [(made["id"], f.name, value) for f, value in given.items() if value is None or columns[f] is not None]
    agree_all(lab, connection, settled)
    pool.follow(connection, made["id"])
    lab.store.event(
        connection, report.actor.name, "machine.registered", "machine", made["id"], name=name, netbox_id=number
    )
    report.count("made")
