"""Health and energy of the lab: an overview, a machine's history, and what idle machines draw."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError

from evenkeel.errors import WrongInput
from evenkeel.lab import energy, health, power_budget
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
    budgets = power_budget.budgets(caller.lab, caller.actor)
    assumed = power_budget.ASSUMED_W
    return render(request, "health/energy.html", report=found, days=days, budgets=budgets, assumed_watts=assumed)


@router.post("/health/energy/budgets")
def put_budget(
    request: Request,
    caller: Caller,
    site: Annotated[str, Form()],
    watts: Annotated[int, Form()],
    assumed_watts: Annotated[int, Form()] = power_budget.ASSUMED_W,
) -> Response:
    try:
        wanted = power_budget.Wanted(watts=watts, assumed_watts=assumed_watts)
    except ValidationError:
        raise WrongInput("a power budget is some watts, more than none", hint="as in 12000") from None
    power_budget.put(caller.lab, caller.actor, site.strip(), wanted)
    return back(request, "/health/energy")


@router.post("/health/energy/budgets/{site:path}/remove")
def remove_budget(request: Request, caller: Caller, site: str) -> Response:
    power_budget.remove(caller.lab, caller.actor, site)
    return back(request, "/health/energy")


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
