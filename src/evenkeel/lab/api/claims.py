"""REST of claims: reserve, extend, release, hand over; who waits; the calendar."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.lab import claims
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit, Version, set_etag
from evenkeel.lab.api.machines import Moment, Q
from evenkeel.lab.api.prefer import SAME, IfNews, tag
from evenkeel.lab.claims import Claim, Kind, Lane, Request, State
from evenkeel.lab.machines import Happened
from evenkeel.lab.paging import DEFAULT, Page

router = APIRouter(prefix="/api/v1", tags=["claims"])
Number = Annotated[int, Path(ge=1, lt=1 << 62)]


class Extend(Model):
    by_ns: Nanoseconds = Field(gt=0, description="nanoseconds, or text with a unit: 4h, 2d")


class Release(Model):
    reason: Annotated[str, Field(max_length=2000)] = ""


class HandOver(Model):
    to: Annotated[str, Field(min_length=1, max_length=200)]


@router.get("/claims")
def listing(
    caller: Caller,
    state: State | Literal["open", "held", "all"] = "open",
    holder: Annotated[str | None, Query(max_length=200)] = None,
    kind: Kind | None = None,
    machine: Annotated[str | None, Query(max_length=100)] = None,
    after: After = None,
    limit: Limit = DEFAULT,
) -> Page[Claim]:
    """Newest first; `open`: waiting, preparing and active ones; `held`: preparing and active ones."""
    return claims.listing(
        caller.lab,
        caller.actor,
        state=None if state == "all" else state,
        holder=holder,
        kind=kind,
        of_machine=machine,
        after=after,
        limit=limit,
    )


@router.post("/claims", status_code=201)
def request(caller: Caller, wanted: Request, response: Response) -> Claim:
    """Reserve a machine, now or later.  Look at `state`: a claim may have to wait, see `waits`."""
    made = claims.request(caller.lab, caller.actor, wanted)
    set_etag(response, made.version)
    return made


@router.get("/claims/waiting")
def waiting(caller: Caller) -> list[Claim]:
    """Who waits for a machine, in the order in which they are served."""
    return claims.waiting(caller.lab, caller.actor)


@router.get("/claims/{number}", response_model=Claim, responses=SAME)
async def get(caller: Caller, number: Number, response: Response, conditional: IfNews) -> Any:
    """With `Prefer: wait=N`: when it waits no more, for a machine or until that is prepared; with `If-None-Match`: when
    it is another. What is foretold of it, in `waits`, is always as of now and changes no ETag."""
    return await conditional.answer(
        caller.lab,
        response,
        lambda: claims.get(caller.lab, caller.actor, number),
        lambda found: tag(found.version),
        lambda found: found.state not in ("waiting", "preparing"),
    )


@router.get("/claims/{number}/history")
def history(caller: Caller, number: Number) -> list[Happened]:
    """What happened to it, the newest first."""
    return claims.history(caller.lab, caller.actor, number)


@router.post("/claims/{number}/extend")
def extend(caller: Caller, number: Number, wanted: Extend, version: Version, response: Response) -> Claim:
    """Keep it longer, unless somebody waits for the machine or booked it."""
    found = claims.extend(caller.lab, caller.actor, number, wanted.by_ns, version)
    set_etag(response, found.version)
    return found


@router.post("/claims/{number}/release")
def release(caller: Caller, number: Number, wanted: Release, version: Version, response: Response) -> Claim:
    """Give the machine back, or stop waiting."""
    found = claims.release(caller.lab, caller.actor, number, wanted.reason, version)
    set_etag(response, found.version)
    return found


@router.post("/claims/{number}/hand-over")
def hand_over(caller: Caller, number: Number, wanted: HandOver, version: Version, response: Response) -> Claim:
    """Give what is left of it to somebody else."""
    found = claims.hand_over(caller.lab, caller.actor, number, wanted.to, version)
    set_etag(response, found.version)
    return found


@router.get("/calendar")
def calendar(caller: Caller, q: Q = "", start_ns: Moment = None, end_ns: Moment = None) -> list[Lane]:
    """Claims by machine that touch a time, two weeks from now if none is given."""
    return claims.calendar(caller.lab, caller.actor, q, start_ns, end_ns)
