"""Pages of webhooks: which programs are told of what, and whether they take it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from evenkeel.lab import events, webhooks
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render

router = APIRouter()
NAV = Nav("Webhooks", "/webhooks", 85, scope="people", more=True)


@router.get("/webhooks")
def webhooks_page(request: Request, caller: Caller) -> Response:
    found = webhooks.webhooks(caller.lab, caller.actor)
    return render(request, "webhooks/list.html", found=found, types=events.TYPES, made=None)


@router.post("/webhooks")
def add(
    request: Request,
    caller: Caller,
    url: Annotated[str, Form(max_length=2000)] = "",
    types: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    made = webhooks.add(caller.lab, caller.actor, url.strip(), types.replace(",", " ").split())
    found = webhooks.webhooks(caller.lab, caller.actor)
    return render(request, "webhooks/list.html", found=found, types=events.TYPES, made=made)


@router.get("/webhooks/{number}")
def webhook_page(request: Request, caller: Caller, number: int) -> Response:
    context: dict[str, Any] = {
        "hook": webhooks.webhook(caller.lab, caller.actor, number),
        "sent": webhooks.deliveries(caller.lab, caller.actor, number),
    }
    return render(request, "webhooks/show.html", **context)


@router.post("/webhooks/{number}/test")
def test(request: Request, caller: Caller, number: int) -> Response:
    webhooks.test(caller.lab, caller.actor, number)
    return back(request, f"/webhooks/{number}")


@router.post("/webhooks/{number}/resume")
def resume(request: Request, caller: Caller, number: int) -> Response:
    webhooks.resume(caller.lab, caller.actor, number)
    return back(request, f"/webhooks/{number}")


@router.post("/webhooks/{number}/remove")
def remove(request: Request, caller: Caller, number: int) -> Response:
    webhooks.remove(caller.lab, caller.actor, number)
    return back(request, "/webhooks")
