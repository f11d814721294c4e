"""Pages of submissions: the list, sending one in, and one with its graph of steps."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from evenkeel.errors import WrongInput
from evenkeel.lab import forecasts, submissions
from evenkeel.lab import queue as queues
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render
from evenkeel.lab.pages.graph import drawn
from evenkeel.lab.step import read_graph_text, shipped

router = APIRouter()
NAV = Nav("Submissions", "/submissions", 25, also=("/steps",))
_STATES = ("open", "passed", "failed", "cancelled")
EXAMPLE = """version: 1
name: hello
steps:
  greet:
    step:
      kind: greet
      command: echo "hello from $(uname -n)"
"""


@router.get("/submissions")
def listing(
    request: Request,
    caller: Caller,
    state: str = "",
    submitter: Annotated[str, Query(max_length=120)] = "",
    after: str | None = None,
) -> Response:
    chosen: Any = state if state in _STATES else None
    found = submissions.submissions(
        caller.lab, caller.actor, state=chosen, submitter=submitter.strip() or None, after=after
    )
    return render(request, "submissions/list.html", found=found, state=state, submitter=submitter, states=_STATES)


@router.get("/submissions/new")
def new(request: Request, caller: Caller) -> Response:
    caller.actor.need("submit", "submit steps")
    return render(request, "submissions/new.html", text=EXAMPLE, shipped=list(shipped()), error=None)


@router.post("/submissions")
def submit(
    request: Request,
    caller: Caller,
    text: Annotated[str, Form(max_length=1 << 20)] = "",
    urgent: Annotated[bool, Form()] = False,
    reason: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    try:
        made = submissions.submit(caller.lab, caller.actor, read_graph_text(text), urgent=urgent, reason=reason)
    except WrongInput as error:  # beside the text that it is about
        return render(request, "submissions/new.html", status=422, text=text, shipped=list(shipped()), error=error)
    return back(request, f"/submissions/{made.id}")


@router.get("/submissions/{number}")
def show(request: Request, caller: Caller, number: int) -> Response:
    found = submissions.show(caller.lab, caller.actor, number)
    eta = forecasts.of_submission(caller.lab, caller.actor, number)
    reasons = queues.reasons(caller.lab, caller.actor, number)
    mine = caller.actor.may("submit") and caller.actor.owns(found.submitter, found.team)
    return render(
        request, "submissions/show.html", found=found, eta=eta, reasons=reasons, mine=mine, graph=drawn(found.lines)
    )


@router.post("/submissions/{number}/cancel")
def cancel(request: Request, caller: Caller, number: int) -> Response:
    submissions.cancel(caller.lab, caller.actor, number)
    return back(request, f"/submissions/{number}")
