"""REST of power: what is certain of a machine now, switching it, and every attempt that was made."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.lab import power
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.paging import DEFAULT, MOST, Page
from evenkeel.lab.power_drivers import Action, Method

router = APIRouter(prefix="/api/v1", tags=["power"])
Number = Annotated[int, Field(ge=1, lt=1 << 62)]
_MOST_WAIT_NS = 25 * 10**9


class Order(Model):
    """``method``: this way only; left out: all, in the order that did best on this machine."""

    action: Action
    method: Method | None = None


@router.get("/machines/{machine}/power")
def status(caller: Caller, machine: str) -> power.PowerStatus:
    """Ask every source twice, now.  A silent BMC makes it take 3 s, a slow one more."""
    return power.status(caller.lab, caller.actor, machine)


@router.get("/machines/{machine}/power/plan")
def plan(caller: Caller, machine: str) -> power.Plan:
    """In which order ways would be tried, how each did lately, and how long a boot may take."""
    return power.plan(caller.lab, caller.actor, machine)


@router.post("/machines/{machine}/power", status_code=202)
def switch(caller: Caller, machine: str, order: Order, response: Response) -> power.PowerEvent:
    """Begin to switch a machine; `Location` follows it until its `result` is no longer `running`."""
    begun = power.request(caller.lab, caller.actor, machine, order.action, method=order.method)
    response.headers["Location"] = f"/api/v1/power/events/{begun.id}"
    return begun


@router.get("/machines/{machine}/power/events")
def history(
    caller: Caller, machine: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=MOST)] = DEFAULT
) -> Page[power.PowerEvent]:
    """What was done to a machine, newest first, with each attempt."""
    return power.history(caller.lab, caller.actor, machine, after=after, limit=limit)


@router.get("/power/events/{event}")
def event(caller: Caller, event: Number, wait_ns: Annotated[int, Query(ge=0, lt=1 << 62)] = 0) -> power.PowerEvent:
    """One of them.  `wait_ns`: answer when it has ended, or after so long (25 s at most)."""
    end = time.monotonic() + min(wait_ns, _MOST_WAIT_NS) / 1e9
    while (found := power.event(caller.lab, caller.actor, event)).result == "running" and time.monotonic() < end:
        if caller.lab.stopping.wait(0.2):
            break
    return found
