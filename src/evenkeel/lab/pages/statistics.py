"""The page of the queue's statistics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from evenkeel.lab import statistics
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.order import DAY_NS
from evenkeel.lab.pages import Nav, render

router = APIRouter()
NAV = Nav("Statistics", "/statistics", 60)
#: Choices of a form; the API takes any.
_DAYS = (1, 7, 30, 90, 365)
#: Cause of idleness -> how a person would say it.
CAUSES = {
    "dispatch": "the step could have started: ours to answer for",
    "machine": "the step wants a machine of the pool, and none is free",
    "drained": "somebody has taken the agent out of service",
    "fit": "what waits fits other agents only",
}


@router.get("/statistics")
def page(request: Request, caller: Caller, days: Annotated[int, Query(ge=1, le=400)] = 7) -> Response:
    found = statistics.statistics(caller.lab, caller.actor, back_ns=days * DAY_NS)
    return render(
        request, "statistics/statistics.html", found=found, chosen=days, days=sorted({*_DAYS, days}), causes=CAUSES
    )
