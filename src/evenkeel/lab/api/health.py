"""REST of health: how machines answer, now and by the hour; and of energy: what they draw while nobody uses them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from evenkeel.lab import energy, health
from evenkeel.lab.api.caller import Caller

router = APIRouter(prefix="/api/v1", tags=["health"])
Moment = Annotated[int, Query(ge=0, lt=1 << 62)]


@router.get("/health")
def overview(caller: Caller) -> list[health.MachineHealth]:
    """All machines, those that are not well first."""
    return health.overview(caller.lab, caller.actor)


@router.get("/machines/{machine}/health")
def show(caller: Caller, machine: str) -> health.MachineHealth:
    """The last probe of every kind."""
    return health.show(caller.lab, caller.actor, machine)


@router.post("/machines/{machine}/health")
def ask(caller: Caller, machine: str) -> health.MachineHealth:
    """Ask it now, out of turn; some seconds when it is dead."""
    return health.ask(caller.lab, caller.actor, machine)


@router.get("/machines/{machine}/health/hours")
def hours(caller: Caller, machine: str, since_ns: Moment, until_ns: Moment | None = None) -> list[health.Hour]:
    """By hour and probe, oldest first."""
    return health.history(caller.lab, caller.actor, machine, since_ns, until_ns)


@router.get("/energy")
def report(caller: Caller, length_ns: Annotated[int, Query(gt=0, lt=1 << 62)] = 30 * energy.DAY_NS) -> energy.Report:
    """What stood idle in the last so long, what it drew meanwhile, and what could be switched off."""
    return energy.report(caller.lab, caller.actor, length_ns)
