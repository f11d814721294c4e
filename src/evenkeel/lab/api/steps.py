"""REST of steps, their attempts and logs, live ones too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from evenkeel.lab import steps
from evenkeel.lab.api.caller import Asked, Caller
from evenkeel.lab.api.prefer import SAME, Conditional, IfNews, tag
from evenkeel.lab.steps import Attempt, StepInFull

router = APIRouter(prefix="/api/v1", tags=["queue"])
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Offset = Annotated[int, Query(ge=0, lt=1 << 63, description="Bytes that were read before.")]
_LOOK_S = 0.2
_PIECE = 256 << 10


@router.get("/steps/{number}", response_model=StepInFull, responses=SAME)
async def show(caller: Caller, number: Number, response: Response, conditional: IfNews) -> Any:
    """With all its attempts. With `Prefer: wait=N`: when it has ended; with `If-None-Match`: when it is another."""
    return await _when(caller, response, conditional, lambda: steps.show(caller.lab, caller.actor, number))


@router.get("/submissions/{number}/steps/{name}", response_model=StepInFull, responses=SAME)
async def by_name(
    caller: Caller,
    number: Number,
    name: Annotated[str, Path(max_length=80)],
    response: Response,
    conditional: IfNews,
) -> Any:
    """As by its number."""
    return await _when(caller, response, conditional, lambda: steps.by_name(caller.lab, caller.actor, number, name))


async def _when(caller: Asked, response: Response, conditional: Conditional, read: Callable[[], StepInFull]) -> Any:
    return await conditional.answer(
        caller.lab,
        response,
        read,
        # The log of one that runs grows all the time, and is followed by other means.
        lambda found: tag(1, found.model_copy(update={"attempts": _without_logs(found)})),
        lambda found: found.state not in ("blocked", "ready", "running"),
    )


def _without_logs(step: StepInFull) -> tuple[Attempt, ...]:
    return tuple(attempt.model_copy(update={"log_size": 0}) for attempt in step.attempts)


@router.post("/steps/{number}/cancel")
def cancel(caller: Caller, number: Number) -> StepInFull:
    """End one step; what comes after it is skipped."""
    return steps.cancel(caller.lab, caller.actor, number)


@router.post("/steps/{number}/retry")
def retry(caller: Caller, number: Number) -> StepInFull:
    """Once more, with all that comes after it."""
    return steps.retry(caller.lab, caller.actor, number)


@router.get("/attempts/{number}/log", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def log(caller: Caller, number: Number, offset: Offset = 0) -> Response:
    """Its log from ``offset`` on, at most 1 MiB.  ``Lab-Log-More: yes``: ask again from the next byte on."""
    data, more = steps.read_log(caller.lab, caller.actor, number, offset=offset)
    headers = {"Lab-Log-Offset": str(offset + len(data)), "Lab-Log-More": "yes" if more else "no"}
    return Response(data, media_type="text/plain; charset=utf-8", headers=headers)


@router.get(
    "/attempts/{number}/log/follow",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def follow(caller: Caller, number: Number, offset: Offset = 0) -> StreamingResponse:
    """The same as server-sent events, until the attempt has ended: ``log`` with text, then ``end``."""
    lab, actor = caller.lab, caller.actor
    await asyncio.to_thread(steps.read_log, lab, actor, number, offset=offset, most=1)  # refuses before it begins

    async def stream() -> AsyncIterator[str]:
        at, quiet = offset, 0.0
        while not lab.stopping.is_set():
            data, more = await asyncio.to_thread(steps.read_log, lab, actor, number, offset=at, most=_PIECE)
            if more and data and len(data) < _PIECE:
                # Not in the middle of a character, as far as that can be told.
                data = data[: data.rfind(b"\n") + 1] or data
            if data:
                at, quiet = at + len(data), 0.0
                yield event("log", data.decode(errors="replace"), at)
            if not more:
                yield event("end", "", at)
                return
            if not data:
                await asyncio.sleep(_LOOK_S)
                quiet += _LOOK_S
                if quiet > 15:
                    quiet = 0.0
                    yield ": still there\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def event(type_: str, text: str, number: int) -> str:
    """A server-sent event."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return f"id: {number}\nevent: {type_}\n" + "".join(f"data: {line}\n" for line in lines) + "\n"
