"""Webhooks of NetBox: checked, then taken as a hint which device to read.  Nothing that they contain is believed.

So a replayed, reordered or lost one can do no harm: what counts is what NetBox answers when it is asked, and the
incremental sync brings what no webhook told of.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import schema
from evenkeel.lab.actor import SERVICE, Forbidden
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import settings
from evenkeel.lab.netbox.client import NetBox
from evenkeel.lab.netbox.sync import sync_devices

#: A webhook that is older, or that far in the future, is refused; NetBox's queue may lag by minutes.
WINDOW_NS = 10 * 60 * 10**9
SIGNATURE = "X-Hook-Signature"


class Heard(Model):
    """What came of a webhook.  ``run``: of the sync that it caused."""

    result: Literal["synced", "seen before", "not ours"]
    device: int | None = None
    run: int | None = None


def receive(lab: Lab, body: bytes, signature: str, *, netbox: NetBox | None = None) -> Heard:
    """``signature``: HMAC-SHA512 of the body, in hexadecimal, by the secret that both know.  Raises Forbidden."""
    config = settings.load(lab)
    if config.webhook_secret is None:
        raise Forbidden("this lab takes no webhooks", hint="set webhook-secret in netbox.yaml")
    key = settings.secret(lab, config.webhook_secret)
    wanted = hmac.new(key.encode(), body, hashlib.sha512).hexdigest()
    if not hmac.compare_digest(wanted.encode(), signature.strip().lower().encode()):
        raise Forbidden("the signature of this webhook is wrong", hint="is the secret the same in NetBox and here?")
    told = _read(body)
    _refuse_stale(lab, told)
    digest = hashlib.sha256(body).hexdigest()
    deliveries = schema.netbox_delivery
    with lab.store.read() as connection:
        if connection.scalar(select(deliveries.c.at_ns).where(deliveries.c.sha256 == digest)) is not None:
            return Heard(result="seen before")
        device = _device(told)
        machines = schema.machine
        ours = device is not None and connection.scalar(select(machines.c.id).where(machines.c.netbox_id == device))
    run = sync_devices(lab, SERVICE, [device], netbox=netbox).id if device is not None and ours else None
    # After the sync: one that failed may be sent again.
    lab.store.write(lambda connection: _remember(lab, connection, digest))
    return Heard(result="synced" if run else "not ours", device=device, run=run)


def _read(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("data"), dict):
        raise WrongInput("this webhook has no data", hint="leave its body template in NetBox empty")
    return told


def _refuse_stale(lab: Lab, told: Mapping[str, Any]) -> None:
    try:
        at = datetime.fromisoformat(str(told.get("timestamp")))
        at_ns = round(at.timestamp() * 1e9) if at.tzinfo else None
    except ValueError:
        at_ns = None
    if at_ns is None:
        raise WrongInput("this webhook has no time stamp", hint="leave its body template in NetBox empty")
    if abs(lab.now() - at_ns) > WINDOW_NS:
        raise Forbidden(
            f"this webhook is of {told['timestamp']}: too old or too early to be taken",
            hint="are the clocks of NetBox and lab right? the next incremental sync brings the change",
        )


def _device(told: Mapping[str, Any]) -> int | None:
    """Which device it is about: its own, or that of an interface or a MAC address.  Older ones say ``model``."""
    data = told["data"]
    kind = str(told.get("object_type") or told.get("model") or "").rpartition(".")[2]
    if kind == "device":
        found: Any = data
    elif kind == "interface":
        found = data.get("device")
    elif kind == "macaddress":
        found = (data.get("assigned_object") or {}).get("device")
    else:
        found = None
    number = found.get("id") if isinstance(found, dict) else None
    return number if type(number) is int and 0 < number < 1 << 31 else None


def _remember(lab: Lab, connection: Connection, digest: str) -> None:
    deliveries = schema.netbox_delivery
    # What is older than the window is refused by its time stamp.
    connection.execute(delete(deliveries).where(deliveries.c.at_ns < lab.now() - 3 * WINDOW_NS))
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(deliveries).values(sha256=digest, at_ns=lab.now())
    connection.execute(statement.on_conflict_do_nothing())
