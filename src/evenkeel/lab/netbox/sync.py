"""What NetBox says comes into the lab: by a plan first, then in full, by what changed since, or of single devices.

Decides when and what is read; :mod:`evenkeel.lab.netbox.take` writes.  What NetBox has no more is marked only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

from fastapi import FastAPI
from sqlalchemy import select

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError
from evenkeel.lab import schema
from evenkeel.lab.actor import SERVICE, Actor, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import fields, log, settings
from evenkeel.lab.netbox.client import NetBox, Object
from evenkeel.lab.netbox.compare import Act, Base, Outcome, Owner, Value, into_lab
from evenkeel.lab.netbox.fields import Field
from evenkeel.lab.netbox.known import Known, instant, known
from evenkeel.lab.netbox.settings import Settings, connected
from evenkeel.lab.netbox.status import status
from evenkeel.lab.netbox.take import mark_gone, synced, take

_LOG = logging.getLogger(__name__)
_LOOK_S = 60
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


# -- plan ---------------------------------------------------------------------------------------------------------


def plan(lab: Lab, actor: Actor, *, machine: str | None = None, netbox: NetBox | None = None) -> Plan:
    """Ask NetBox and say what a sync would do; nothing is written.  ``machine``: this one only."""
    actor.need("read", "compare the lab with NetBox")
    config = settings.load(lab)
    with lab.store.read() as connection:
        found = known(connection)
    if machine is not None:
        found = {number: one for number, one in found.items() if machine in (one.row.name, one.row.id)}
        if not found:
            raise NotFound(f"no machine {machine!r} with a NetBox id", hint="evenkeel lab netbox import ID")
    with connected(lab, config, netbox) as box:
        only = list(found) if machine is not None else None
        devices = {int(device["id"]): device for device in (box.devices() if only is None else box.devices_of(only))}
    planned = []
    for number, one in sorted(found.items(), key=lambda item: item[1].row.name):
        device = devices.get(number)
        differing = [] if device is None else [_difference(*d) for d in _differences(config, one, device)]
        if differing or device is None:
            planned.append(
                MachinePlan(machine=one.row.name, netbox_id=number, gone=device is None, fields=tuple(differing))
            )
    here = sum(number in devices for number in found)
    return Plan(at_ns=lab.now(), read=len(devices), known=here, unknown=len(devices) - here, machines=tuple(planned))


def _differences(
    config: Settings, one: Known, device: Object
) -> Iterator[tuple[Field, Base | None, Value, Value, Outcome]]:
    for field in synced(config):
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
        take(lab, config, report, devices)
        if not since:
            mark_gone(lab, report, {int(device["id"]) for device in devices})
    return log.run(lab, actor, report.run)


def sync_devices(
    lab: Lab, actor: Actor, numbers: Sequence[int], kind: log.Kind = "webhook", *, netbox: NetBox | None = None
) -> log.Run:
    """Bring these devices up to date, by their NetBox ids; those that the lab does not have are left alone."""
    actor.need("netbox", "sync with NetBox")
    config = settings.load(lab)
    with log.running(lab, actor, kind) as report, connected(lab, config, netbox) as box:
        devices = list(box.devices_of(numbers))
        report.count("read", len(devices))
        take(lab, config, report, devices)
        mark_gone(lab, report, {int(device["id"]) for device in devices}, among=set(numbers))
    return log.run(lab, actor, report.run)


def due(lab: Lab) -> Literal["full", "incremental"] | None:
    """Which sync it is time for, by ``netbox.yaml`` and the runs that were; the service asks every minute."""
    if not settings.configured(lab):
        return None
    stands, now = status(lab, SERVICE), lab.now()
    if stands.next_full_ns is not None and now >= stands.next_full_ns:
        return "full"
    return "incremental" if stands.next_incremental_ns is not None and now >= stands.next_incremental_ns else None


class Watch:
    """A thread that looks once a minute whether a sync is due, and does it; ``failed``: what ended it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.failed: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="netbox", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        # One that waits for NetBox is left behind: each change of it is whole, and a closed store takes no more.
        self._thread.join(2)

    def _run(self) -> None:
        try:
            while not self._ended.wait(_LOOK_S):
                try:
                    tick(self.lab)
                except EvenkeelError as error:  # NetBox is away, or netbox.yaml is wrong; a run's row has it too
                    _LOG.warning("NetBox: %s", error)
        except Exception as error:  # noqa: BLE001  the service asks for it
            self.failed = error


@contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Watch]:
    """Of the service."""
    watch = Watch(lab)
    try:
        yield watch
    finally:
        watch.stop()


def tick(lab: Lab) -> log.Run | None:
    """Do what is due."""
    kind = due(lab)
    return sync(lab, SERVICE, kind) if kind else None


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
    return (instant(newest) - _OVERLAP).isoformat().replace("+00:00", "Z") if newest else None
