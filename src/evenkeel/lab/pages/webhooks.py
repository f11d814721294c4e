"""The page of webhooks: whom else the lab tells of its events, and how they do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from evenkeel.lab import webhooks
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render

router = APIRouter(prefix="/webhooks")
NAV = Nav("Webhooks", "/webhooks", 85, scope="people")


@router.get("")
def webhooks_page(request: Request, caller: Caller) -> Response:
    return render(request, "webhooks/webhooks.html", found=webhooks.listing(caller.lab, caller.actor))


@router.post("")
def add(
    request: Request,
    caller: Caller,
    name: Annotated[str, Form(max_length=80)],
    url: Annotated[str, Form(max_length=2000)],
    types: Annotated[str, Form(max_length=2000)] = "*",
) -> Response:
    wanted = webhooks.Wanted(name=name.strip(), url=url.strip(), types=types.replace(",", " ").split() or ["*"])
    made = webhooks.add(caller.lab, caller.actor, wanted)
    return render(request, "webhooks/made.html", made=made)


@router.post("/{name}/test")
def test(request: Request, caller: Caller, name: str) -> Response:
    webhooks.test(caller.lab, caller.actor, name)
    return back(request, "/webhooks")


@router.post("/{name}/pause")
def pause(request: Request, caller: Caller, name: str) -> Response:
    webhooks.pause(caller.lab, caller.actor, name)
    return back(request, "/webhooks")


@router.post("/{name}/resume")
def resume(request: Request, caller: Caller, name: str) -> Response:
    webhooks.resume(caller.lab, caller.actor, name)
    return back(request, "/webhooks")


@router.post("/{name}/remove")
def remove(request: Request, caller: Caller, name: str) -> Response:
    webhooks.remove(caller.lab, caller.actor, name)
    return back(request, "/webhooks")
