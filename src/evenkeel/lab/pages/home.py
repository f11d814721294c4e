"""The front page: how the lab stands, at a glance."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from evenkeel.lab import overview
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, render

router = APIRouter()
NAV = Nav("Overview", "/", 0)


@router.get("/")
def home(request: Request, caller: Caller) -> HTMLResponse:
    return render(request, "home/home.html", found=overview.overview(caller.lab, caller.actor))
