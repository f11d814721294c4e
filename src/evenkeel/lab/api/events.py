"""REST of the one log: pages of it, and a stream of what is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from evenkeel.errors import WrongInput
from evenkeel.lab import events as log
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit
from evenkeel.lab.paging import Page

router = APIRouter(prefix="/api/v1", tags=["events"])
Word = Annotated[str | None, Query(max_length=200)]
#: Event numbers fit into 64 bits.
MOST = (1 << 63) - 1


@router.get("/log")
def log_page(
    caller: Caller,
    after: After = None,
    limit: Limit = 100,
    by: Word = None,
    type: Word = None,
    object: Word = None,
    id: Word = None,
) -> Page[log.Event]:
    """What was done, by whom and when; the newest first.  ``type=claim.*`` for all of a kind."""
    return log.events(
        caller.lab, caller.actor, after=after, limit=limit, by=by, type_=type, object_=object, object_id=id
    )


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    caller: Caller,
    after: Annotated[int | None, Query(ge=0, le=MOST, description="Number of the last event seen.")] = None,
    type: Word = None,
    last_event_id: Annotated[str | None, Header(description="What browsers send instead of `after`.")] = None,
) -> StreamingResponse:
    """Server-sent events, without end: all after a number (left out: from now on), then each as it is committed.

    ``log.removed``, without an id, stands first when some of them are too old to be kept: ``to`` is the last of those.
    """
    caller.actor.need("read", "read the log")
    seq = after
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 19):
            raise WrongInput("Last-Event-ID is no number of an event")
        seq = int(last_event_id)
    if seq is None:
        seq = log.last_seq(caller.lab)

    async def lines() -> AsyncIterator[str]:
        yield ": hello\n\n"
        if (first := await run_in_threadpool(log.first_seq, caller.lab)) > seq + 1:
            yield f'event: log.removed\ndata: {{"to": {first - 1}}}\n\n'
        async for one in log.stream(caller.lab, caller.actor, seq, type_=type):
            yield (
                ": nothing new\n\n"
                if one is None
                else f"id: {one.seq}\nevent: {one.type}\ndata: {one.model_dump_json()}\n\n"
            )

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
