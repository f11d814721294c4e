"""Pages of NetBox: how the lab stands with it, the plan of the next sync, runs, overwritten fields with undo, push."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from evenkeel.errors import WrongInput
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.netbox import Id
from evenkeel.lab.netbox import imports, log, push, sync, undo
from evenkeel.lab.netbox.status import status
from evenkeel.lab.pages import Nav, back, render

router = APIRouter(prefix="/netbox")
NAV = Nav("NetBox", "/netbox", 70, more=True)


@router.get("")
def overview(request: Request, caller: Caller) -> HTMLResponse:
    return render(
        request,
        "netbox/overview.html",
        stands=status(caller.lab, caller.actor),
        runs=log.runs(caller.lab, caller.actor, limit=10).items,
        changes=log.changes(caller.lab, caller.actor, limit=10).items,
    )


@router.get("/plan")
def plan(request: Request, caller: Caller) -> HTMLResponse:
    return render(request, "netbox/plan.html", plan=sync.plan(caller.lab, caller.actor))


@router.post("/sync")
def run_sync(request: Request, caller: Caller, kind: Annotated[str, Form()] = "full") -> Response:
    run = sync.sync(caller.lab, caller.actor, "incremental" if kind == "incremental" else "full")
    return back(request, f"/netbox/runs/{run.id}")


@router.post("/import")
def run_import(request: Request, caller: Caller, devices: Annotated[str, Form()] = "") -> Response:
    words = devices.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise WrongInput(f"{devices!r}: ids of devices are numbers", hint="they stand at the end of a device's address")
    run = imports.import_devices(caller.lab, caller.actor, [int(word) for word in words])
    return back(request, f"/netbox/runs/{run.id}")


@router.get("/runs")
def runs(request: Request, caller: Caller, after: str | None = None) -> HTMLResponse:
    return render(request, "netbox/runs.html", page=log.runs(caller.lab, caller.actor, after=after, limit=50))


@router.get("/runs/{run}")
def run(request: Request, caller: Caller, run: Id) -> HTMLResponse:
    return render(
        request,
        "netbox/run.html",
        run=log.run(caller.lab, caller.actor, run),
        changes=log.changes(caller.lab, caller.actor, run=run, limit=1000).items,
    )


@router.get("/changes")
def changes(
    request: Request, caller: Caller, machine: str = "", field: str = "", after: str | None = None
) -> HTMLResponse:
    found = log.changes(caller.lab, caller.actor, machine=machine or None, field=field or None, after=after)
    return render(request, "netbox/changes.html", page=found, machine=machine, field=field)


@router.post("/changes/{change}/undo")
def undo_change(request: Request, caller: Caller, change: Id) -> Response:
    made = undo.undo(caller.lab, caller.actor, change)
    return back(request, f"/netbox/changes?machine={quote(made.machine, safe='')}")


@router.get("/machines/{machine}")
def push_plan(request: Request, caller: Caller, machine: str) -> HTMLResponse:
    return render(request, "netbox/push.html", plan=push.push_plan(caller.lab, caller.actor, machine))


@router.post("/machines/{machine}")
def run_push(request: Request, caller: Caller, machine: str, field: Annotated[list[str], Form()] = []) -> Response:  # noqa: B006
    run = push.push(caller.lab, caller.actor, machine, named=field)
    return back(request, f"/netbox/runs/{run.id}")
