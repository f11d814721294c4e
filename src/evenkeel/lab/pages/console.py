"""Consoles in the browser: the list, one as a terminal, and its recordings."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from evenkeel.errors import EvenkeelError
from evenkeel.lab import console, touch
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import back, render

router = APIRouter()


@router.get("/machines/{machine}/console")
def page(request: Request, caller: Caller, machine: str) -> HTMLResponse:
    lab, actor = caller.lab, caller.actor
    actor.need("console", "use consoles")
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
    try:
        state, why_not = console.state(lab, actor, machine), None
    except EvenkeelError as error:
        state, why_not = None, error
    return render(
        request,
        "console/console.html",
        machine=found.name,
        state=state,
        why_not=why_not,
        may=touch.may_touch(actor, found),
        recordings=console.recordings(lab, actor, machine)[:20],
    )


@router.post("/machines/{machine}/console/reset")
def reset(request: Request, caller: Caller, machine: str) -> Response:
    console.reset(caller.lab, caller.actor, machine)
    return back(request, f"/machines/{quote(machine, safe='')}/console")
