"""REST of the queue's statistics, and of when things will start and end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from evenkeel.lab import forecasts, statistics
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.order import DAY_NS

router = APIRouter(prefix="/api/v1", tags=["statistics"])


@router.get("/statistics")
def show(
    caller: Caller,
    days: Annotated[int, Query(ge=1, le=400, description="How far back.")] = 7,
) -> statistics.Statistics:
    """Idle slots by cause, waits, how good forecasts were, who used what, what steps take."""
    return statistics.statistics(caller.lab, caller.actor, back_ns=days * DAY_NS)


@router.get("/etas")
def etas(caller: Caller) -> dict[int, forecasts.Eta]:
    """When each open submission will start and end, as it looks now, by its number.

    Nothing at all when the service foretells nothing; ``no_forecast`` of `/queue` and `/overview` says why.
    """
    return dict(forecasts.current(caller.lab, caller.actor)[1])
