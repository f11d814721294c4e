"""The power of a machine: what is certain, buttons, every attempt.  A part of the machine's page, and a page."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from evenkeel.errors import WrongInput
from evenkeel.lab import power, touch
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import back, render
from evenkeel.lab.power_drivers import Action, Method

router = APIRouter()


@router.get("/machines/{machine}/power")
def page(request: Request, caller: Caller, machine: str, now: bool = False) -> HTMLResponse:
    """``now``: also ask the machine, which takes seconds."""
    lab, actor = caller.lab, caller.actor
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
    part = "HX-Request" in request.headers
    return render(
        request,
        "power/part.html" if part else "power/power.html",
        machine=found.name,
        plan=power.plan(lab, actor, machine),
        events=power.history(lab, actor, machine, limit=5 if part else 50).items,
        certain=power.status(lab, actor, machine) if now else None,
        may=actor.may("power") and touch.may_touch(actor, found),
        actions=power.ACTIONS,
    )


@router.post("/machines/{machine}/power")
def switch(
    request: Request, caller: Caller, machine: str, action: Annotated[str, Form()], method: Annotated[str, Form()] = ""
) -> Response:
    chosen: Action | None = next((one for one in power.ACTIONS if one == action), None)
    way: Method | None = next((one for one in power.METHODS if one == method), None)
    if chosen is None or (method and way is None):
        raise WrongInput(f"no such way to switch a machine: {action} {method}")
    power.request(caller.lab, caller.actor, machine, chosen, method=way)
    return back(request, f"/machines/{quote(machine, safe='')}/power")
