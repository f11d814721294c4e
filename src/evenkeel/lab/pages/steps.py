"""The page of a step: its attempts, what came of them, and its log while it runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from evenkeel.lab import queue as queues
from evenkeel.lab import steps
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import back, render

router = APIRouter()
#: Of a log that has ended, the page shows its end; the rest is a link.
SHOWN = 128 << 10


@router.get("/steps/{number}")
def show(request: Request, caller: Caller, number: int, attempt: Annotated[int | None, Query()] = None) -> Response:
    found = steps.show(caller.lab, caller.actor, number)
    chosen = next(
        (one for one in found.attempts if one.number == attempt), found.attempts[-1] if found.attempts else None
    )
    text, offset = "", 0
    if chosen is not None:
        offset = max(0, chosen.log_size - SHOWN)
        text = steps.read_log(caller.lab, caller.actor, chosen.id, offset=offset)[0].decode(errors="replace")
    reason = queues.reasons(caller.lab, caller.actor, found.submission).get(number)
    mine = caller.actor.may("submit") and caller.actor.owns(found.submitter, found.team)
    return render(
        request, "steps/show.html", found=found, chosen=chosen, text=text, cut=offset, reason=reason, mine=mine
    )


@router.post("/steps/{number}/cancel")
def cancel(request: Request, caller: Caller, number: int) -> Response:
    steps.cancel(caller.lab, caller.actor, number)
    return back(request, f"/steps/{number}")


@router.post("/steps/{number}/retry")
def retry(request: Request, caller: Caller, number: int) -> Response:
    steps.retry(caller.lab, caller.actor, number)
    return back(request, f"/steps/{number}")
