"""The page of the one log: who did what, and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from evenkeel.lab import events
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, render

router = APIRouter()
NAV = Nav("Log", "/log", 90, more=True)
Word = Annotated[str, Query(max_length=200)]


@router.get("/log")
def log(
    request: Request,
    caller: Caller,
    by: Word = "",
    type: Word = "",
    object: Word = "",
    id: Word = "",
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    chosen = {"by": by.strip(), "type": type.strip(), "object": object.strip(), "id": id.strip()}
    found = events.events(
        caller.lab,
        caller.actor,
        after=after,
        limit=100,
        by=chosen["by"],
        type_=chosen["type"],
        object_=chosen["object"],
        object_id=chosen["id"],
    )
    return render(request, "log/log.html", found=found, chosen=chosen, types=events.types())
