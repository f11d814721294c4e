"""The page of agents: who does the steps."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from evenkeel.lab import agents
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render

router = APIRouter()
NAV = Nav("Agents", "/agents", 45, more=True)


@router.get("/agents")
def listing(request: Request, caller: Caller) -> Response:
    return render(request, "agents/list.html", found=agents.agents(caller.lab, caller.actor))


@router.post("/agents/{name}/drain")
def drain(request: Request, caller: Caller, name: str) -> Response:
    agents.drain(caller.lab, caller.actor, name)
    return back(request, "/agents")


@router.post("/agents/{name}/resume")
def resume(request: Request, caller: Caller, name: str) -> Response:
    agents.resume(caller.lab, caller.actor, name)
    return back(request, "/agents")
