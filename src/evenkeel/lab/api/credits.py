"""REST of credits for urgent work: who has how many, who spent them on what, and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.lab import credits
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit
from evenkeel.lab.paging import Page

router = APIRouter(prefix="/api/v1", tags=["credits"])


class Grant(Model):
    granted: int = Field(ge=0, le=credits.MOST)
    reason: str = Field(max_length=2000)


class Why(Model):
    reason: str = Field(max_length=2000, description="shown to all, with the name of who asks")


@router.get("/credits")
def all_credits(caller: Caller) -> tuple[credits.Credit, ...]:
    """Of all who spent or were granted some in this month; those who spent most first."""
    return credits.credits(caller.lab, caller.actor)


@router.get("/credits/uses")
def uses(
    caller: Caller,
    principal: Annotated[str | None, Query(max_length=120)] = None,
    after: After = None,
    limit: Limit = 100,
) -> Page[credits.Use]:
    """Who used priority for what, and why; the newest first."""
    return credits.uses(caller.lab, caller.actor, principal=principal, after=after, limit=limit)


@router.get("/credits/mine")
def mine(caller: Caller) -> credits.Credit:
    """What who asks has in this month."""
    return credits.credit(caller.lab, caller.actor)


@router.put("/credits/{name}")
def grant(caller: Caller, name: Annotated[str, Path(max_length=120)], wanted: Grant) -> credits.Credit:
    """Give somebody so many credits in this month, instead of what the lab gives to all."""
    return credits.grant(caller.lab, caller.actor, name, wanted.granted, wanted.reason)


@router.post("/submissions/{number}/urgent")
def make_urgent(caller: Caller, number: Annotated[int, Path(ge=1, lt=1 << 63)], why: Why) -> credits.Use:
    """Make an open submission urgent.  ``outcome`` beyond: no credit was left, it waits as any other."""
    return credits.make_urgent(caller.lab, caller.actor, number, why.reason)
