"""Pages of results: the list, one result with its artifacts, and two of them compared."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from evenkeel.lab import artifacts, results
from evenkeel.lab.api.artifacts import file_of
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.compare import flat
from evenkeel.lab.pages import Nav, back, render

router = APIRouter()
NAV = Nav("Results", "/results", 40)
_STATES = ("passed", "failed", "timed-out", "cancelled", "lost")
#: More of them are told by number.
_SHOWN = 200


@router.get("/results")
def find(
    request: Request,
    caller: Caller,
    same: Annotated[str, Query(max_length=1000)] = "",
    kind: Annotated[str, Query(max_length=100)] = "",
    state: str = "",
    after: str | None = None,
) -> Response:
    chosen: Any = state if state in _STATES else None
    found = results.find(caller.lab, caller.actor, same=same, kind=kind, state=chosen, after=after)
    context: dict[str, Any] = {"found": found, "same": same, "kind": kind, "state": state, "states": _STATES}
    return render(request, "results/list.html", usage=artifacts.usage(caller.lab, caller.actor), **context)


@router.get("/results/{attempt}")
def show(request: Request, caller: Caller, attempt: int) -> Response:
    found = results.show(caller.lab, caller.actor, attempt)
    output = flat(found.result.output) if found.result else {}
    return render(request, "results/show.html", found=found, output=output, most=_SHOWN)


@router.get("/results/{attempt}/comparison")
def compare(
    request: Request, caller: Caller, attempt: int, with_attempt: Annotated[int | None, Query(alias="with")] = None
) -> Response:
    found = results.compared(caller.lab, caller.actor, attempt, with_attempt)
    return render(request, "results/compare.html", found=found, most=_SHOWN)


@router.get("/artifacts/{number}")
def download(caller: Caller, number: int) -> Response:
    return file_of(caller, artifacts.show(caller.lab, caller.actor, number))


@router.post("/artifacts/{number}/pin")
def pin(request: Request, caller: Caller, number: int) -> Response:
    return back(request, f"/results/{artifacts.pin(caller.lab, caller.actor, number).attempt}")


@router.post("/artifacts/{number}/unpin")
def unpin(request: Request, caller: Caller, number: int) -> Response:
    return back(request, f"/results/{artifacts.unpin(caller.lab, caller.actor, number).attempt}")
