"""Health and energy of the lab: an overview, a machine's history, and what idle machines draw."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from evenkeel.lab import energy, health
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render

router = APIRouter()
NAV = Nav("Health", "/health", 40, more=True)
_SHOWN_NS = 14 * energy.DAY_NS


@router.get("/health")
def overview(request: Request, caller: Caller) -> HTMLResponse:
    found = health.overview(caller.lab, caller.actor)
    return render(request, "health/overview.html", machines=found, probes=health.PROBES)


@router.get("/health/energy")
def report(request: Request, caller: Caller, days: int = 30) -> HTMLResponse:
    found = energy.report(caller.lab, caller.actor, days * energy.DAY_NS)
    return render(request, "health/energy.html", report=found, days=days)


@router.get("/machines/{machine}/health")
def page(request: Request, caller: Caller, machine: str) -> HTMLResponse:
    """The part of the machine's page when HTMX asks for it, else a page."""
    lab, actor = caller.lab, caller.actor
    since = lab.now() - _SHOWN_NS
    days: dict[str, dict[int, tuple[int, int]]] = {}
    for hour in health.history(lab, actor, machine, since):
        day = days.setdefault(hour.probe, {})
        asked, fine = day.get(hour.hour_ns // energy.DAY_NS, (0, 0))
        day[hour.hour_ns // energy.DAY_NS] = asked + hour.asked, fine + hour.ok
    today = lab.now() // energy.DAY_NS
    return render(
        request,
        "health/part.html" if "HX-Request" in request.headers else "health/machine.html",
        health=health.show(lab, actor, machine),
        days=days,
        shown=range(today - _SHOWN_NS // energy.DAY_NS + 1, today + 1),
        day_ns=energy.DAY_NS,
    )


@router.post("/machines/{machine}/health")
def ask(request: Request, caller: Caller, machine: str) -> Response:
    health.ask(caller.lab, caller.actor, machine)
    return back(request, f"/machines/{quote(machine, safe='')}/health")
