"""REST of power budgets: what the machines of a site may draw together, and what they count for now."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from evenkeel.lab import power_budget
from evenkeel.lab.api.caller import Caller

router = APIRouter(prefix="/api/v1/power-budgets", tags=["power"])
Site = Annotated[str, Path(max_length=200)]


@router.get("")
def budgets(caller: Caller) -> list[power_budget.Budget]:
    """Of all sites that have one."""
    return power_budget.budgets(caller.lab, caller.actor)


@router.put("/{site:path}")
def put(caller: Caller, site: Site, wanted: power_budget.Wanted) -> power_budget.Budget:
    """Set the budget of a site.  The lab gives no machine and wakes none beyond it; what runs goes on."""
    return power_budget.put(caller.lab, caller.actor, site, wanted)


@router.delete("/{site:path}", status_code=204)
def remove(caller: Caller, site: Site) -> None:
    """The site may draw what it likes."""
    power_budget.remove(caller.lab, caller.actor, site)
