"""The page of urgent work: who used priority, for what and why, and how much of it everybody has left."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from evenkeel.lab import credits
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render

router = APIRouter()
NAV = Nav("Priority", "/priority", 50, more=True)


@router.get("/priority")
def priority(request: Request, caller: Caller, after: Annotated[str | None, Query()] = None) -> Response:
    return render(
        request,
        "credits/priority.html",
        uses=credits.uses(caller.lab, caller.actor, after=after, limit=100),
        people=credits.credits(caller.lab, caller.actor),
        mine=credits.credit(caller.lab, caller.actor),
        each=caller.lab.settings.credits,
    )


@router.post("/priority/grant")
def grant(
    request: Request,
    caller: Caller,
    name: Annotated[str, Form(max_length=120)],
    granted: Annotated[int, Form()],
    reason: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    credits.grant(caller.lab, caller.actor, name.strip(), granted, reason)
    return back(request, "/priority")


@router.post("/submissions/{number}/urgent")
def make_urgent(
    request: Request, caller: Caller, number: int, reason: Annotated[str, Form(max_length=2000)] = ""
) -> Response:
    credits.make_urgent(caller.lab, caller.actor, number, reason)
    return back(request, f"/submissions/{number}")
