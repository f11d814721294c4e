"""How a machine is reached beside ssh: its BMC, its outlet, its console.  Its owner and who keeps the pool set them.

What a driver needs of an endpoint is checked here, before it is kept; nothing is contacted.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import Connection, delete, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import console, schema, touch
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.console_lines import Heard, line_for
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Way, driver_for

Kind = Literal["ssh", "bmc", "pdu", "hypervisor", "console"]


class Endpoint(Model):
    """``secret``: its name; what it holds is shown to nobody.  ``options``: of the driver."""

    id: int
    kind: Kind
    driver: str
    address: str
    secret: str | None
    options: dict[str, Any]


class NewEndpoint(Model):
    kind: Kind
    driver: Annotated[str, Field(max_length=40)]
    address: Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x20-][^\x00-\x20]*$")]
    secret: Annotated[str, Field(max_length=200)] | None = None
    options: dict[str, Any] = {}


#: Options of fence agents that name no program, file or host.
_PLAIN_PDU = frozenset({"agent", "plug", "ssl", "ssl_secure", "ssl_insecure", "snmp_version", "switch", "power_wait"})


def listing(lab: Lab, actor: Actor, machine: str) -> list[Endpoint]:
    """Raises NotFound, Forbidden."""
    actor.need("read", "see how a machine is reached")
    table = schema.endpoint
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
        rows = connection.execute(select(table).where(table.c.machine_id == found.id).order_by(table.c.id)).all()
    return [_endpoint(row) for row in rows]


def put(lab: Lab, actor: Actor, machine: str, wanted: NewEndpoint) -> Endpoint:
    """Add one, or replace the one of the same kind and address.

    Raises NotFound, Forbidden, WrongInput: no such driver, address, option or secret.
    """
    _check(wanted)
    table = schema.endpoint

    def change(connection: Connection) -> Endpoint:
        found = touch.find(connection, machine)
        _need_owner(actor, found, "say how it is reached")
        _need_more(actor, wanted)
        known = select(schema.secret.c.name).where(schema.secret.c.name == wanted.secret)
        if wanted.secret is not None and connection.scalar(known) is None:
            raise WrongInput(f"no secret {wanted.secret}", hint=f"evenkeel lab secret set {wanted.secret}")
        row = wanted.model_dump() | {"machine_id": found.id}
        same = (table.c.machine_id == found.id) & (table.c.kind == wanted.kind) & (table.c.address == wanted.address)
        number = connection.scalar(select(table.c.id).where(same))
        if number is not None:
            connection.execute(update(table).where(table.c.id == number).values(row))
        else:
            number = connection.execute(insert(table).values(row)).inserted_primary_key[0]  # type: ignore[index]
        told = {"name": found.name, "kind": wanted.kind, "driver": wanted.driver, "address": wanted.address}
        lab.store.event(connection, actor.name, "endpoint.set", "machine", found.id, **told)
        return _endpoint(connection.execute(select(table).where(table.c.id == number)).one())

    return lab.store.write(change)


def remove(lab: Lab, actor: Actor, machine: str, number: int) -> None:
    """Raises NotFound, Forbidden."""
    table = schema.endpoint

    def change(connection: Connection) -> None:
        found = touch.find(connection, machine)
        _need_owner(actor, found, "say how it is reached")
        here = (table.c.id == number) & (table.c.machine_id == found.id)
        row = connection.execute(select(table).where(here)).first()
        if row is None:
            raise NotFound(f"{found.name} has no endpoint {number}")
        connection.execute(delete(table).where(here))
        told = {"name": found.name, "kind": row.kind, "driver": row.driver, "address": row.address}
        lab.store.event(connection, actor.name, "endpoint.removed", "machine", found.id, **told)

    lab.store.write(change)


def _need_owner(actor: Actor, machine: touch.Touched, what: str) -> None:
    """Not who holds it for a while: an address is where passwords are sent."""
    if not actor.may("machines"):
        actor.need("read", what)
        actor.need_own(machine.name, machine.owner, machine.team)


def _need_more(actor: Actor, wanted: NewEndpoint) -> None:
    """What an owner alone may not: have the lab use its own rights or its passwords where the owner says."""
    if wanted.driver in ("unix", "tty"):
        actor.need("anything", "use sockets and devices of the lab's machine")
    if wanted.driver in ("ssh", "virtual") or wanted.options.get("watch"):
        actor.need("machines", "reach machines by what the lab itself may")
    if wanted.secret is not None:
        actor.need("secrets", "say where a password is sent")
    if wanted.driver == "pdu" and (odd := set(wanted.options) - _PLAIN_PDU):
        # Fence agents know options that are programs.
        actor.need("anything", f"set the option {min(odd)!r} of a fence agent")


def _check(wanted: NewEndpoint) -> None:
    way = Way(wanted.kind, wanted.driver, wanted.address, wanted.options)  # type: ignore[arg-type]
    drivers = {
        "ssh": ("ssh",),
        "hypervisor": ("virtual",),
        "bmc": ("redfish", "ipmi"),
        "pdu": ("pdu", "labgrid"),
        "console": ("ipmi", "unix", "tty", "telnet", "tcp", "ssh", "virtual"),
    }[wanted.kind]
    if wanted.driver not in drivers:
        raise WrongInput(f"a {wanted.kind} has no driver {wanted.driver!r}", hint=", ".join(drivers))
    if odd := [key for key in wanted.options if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", key)]:
        raise WrongInput(f"{odd[0]!r} is no name of an option")
    if wanted.kind == "console":
        line_for(way, Heard())
        own = wanted.options.get("watch", {})
        if not isinstance(own, dict):
            raise WrongInput("watch: names and regular expressions are wanted")
        for pattern in own.values():
            console.check_pattern(str(pattern))
    else:
        driver_for(way)
        if wanted.driver == "labgrid" and wanted.secret and "://" not in wanted.address:
            raise WrongInput("labgrid takes a password only for an address that is a URL", hint="leave the secret out")


def _endpoint(row: Any) -> Endpoint:
    return Endpoint(
        id=row.id, kind=row.kind, driver=row.driver, address=row.address, secret=row.secret, options=dict(row.options)
    )
