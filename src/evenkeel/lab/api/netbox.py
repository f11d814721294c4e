"""REST of NetBox: plans, syncs, imports, pushes, the log of overwritten fields with undo, and the webhook receiver."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.netbox import hook, imports, log, push, status, sync, undo
from evenkeel.lab.netbox.status import Status
from evenkeel.lab.paging import DEFAULT, MOST, Page

router = APIRouter(prefix="/api/v1/netbox", tags=["netbox"])
#: Of a webhook: a device with its context is some ten kilobytes.
MOST_BYTES = 4 << 20
Number = Annotated[int, Field(ge=1, lt=1 << 31)]
#: Of a run or a change.
Id = Annotated[int, Field(ge=1, lt=1 << 63)]
Limit = Annotated[int, Query(ge=1, le=MOST)]


class SyncOrder(Model):
    kind: Literal["full", "incremental"] = "full"


class ImportOrder(Model):
    """``devices``: their ids in NetBox."""

    devices: list[Number] = Field(min_length=1, max_length=1000)


class PushOrder(Model):
    """``fields``: those that may overwrite what somebody wrote in NetBox."""

    fields: list[str] = []


@router.get("")
def get_status(caller: Caller) -> Status:
    """Which NetBox this lab follows, when it was synced last, and when it is next."""
    return status.status(caller.lab, caller.actor)


@router.get("/plan")
def plan(caller: Caller, machine: str | None = None) -> sync.Plan:
    """What a full sync would do now.  Asks NetBox; writes nothing."""
    return sync.plan(caller.lab, caller.actor, machine=machine)


@router.post("/sync")
def run_sync(caller: Caller, order: SyncOrder) -> log.Run:
    """Bring the lab up to date with NetBox; answers when it is done."""
    return sync.sync(caller.lab, caller.actor, order.kind)


@router.post("/import")
def import_devices(caller: Caller, order: ImportOrder) -> log.Run:
    """Make or link machines for these devices."""
    return imports.import_devices(caller.lab, caller.actor, order.devices)


@router.get("/machines/{machine}/push")
def push_plan(caller: Caller, machine: str, field: Annotated[list[str], Query()] = []) -> push.PushPlan:  # noqa: B006
    """What a push of this machine would write to NetBox now.  ``field``: those that may overwrite."""
    return push.push_plan(caller.lab, caller.actor, machine, named=field)


@router.post("/machines/{machine}/push")
def run_push(caller: Caller, machine: str, order: PushOrder) -> log.Run:
    """Write what the lab knows of this machine to NetBox, a field at a time."""
    return push.push(caller.lab, caller.actor, machine, named=order.fields)


@router.get("/runs")
def runs(caller: Caller, after: str | None = None, limit: Limit = 20) -> Page[log.Run]:
    """Syncs, imports, pushes and undos, newest first."""
    return log.runs(caller.lab, caller.actor, after=after, limit=limit)


@router.get("/runs/{run}")
def run(caller: Caller, run: Id) -> log.Run:
    return log.run(caller.lab, caller.actor, run)


@router.get("/changes")
def changes(
    caller: Caller,
    machine: str | None = None,
    run: Id | None = None,
    field: str | None = None,
    after: str | None = None,
    limit: Limit = DEFAULT,
) -> Page[log.FieldChange]:
    """Every overwritten field, newest first."""
    return log.changes(caller.lab, caller.actor, machine=machine, run=run, field=field, after=after, limit=limit)


@router.post("/changes/{change}/undo")
def undo_change(caller: Caller, change: Id) -> log.FieldChange:
    """Put the old value back, unless the field was changed since."""
    return undo.undo(caller.lab, caller.actor, change)


@router.post("/webhook")
async def webhook(
    request: Request, x_hook_signature: Annotated[str, Header(description="HMAC-SHA512 of the body.")] = ""
) -> hook.Heard:
    """For NetBox: an event rule's webhook, signed with the secret that both know."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise WrongInput(f"a webhook of more than {MOST_BYTES} bytes")
    return await run_in_threadpool(hook.receive, request.app.state.lab, bytes(body), x_hook_signature)
