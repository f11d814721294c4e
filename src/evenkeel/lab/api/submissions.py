"""REST of submissions and of the queue."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.lab import forecasts, submissions
from evenkeel.lab import queue as queues
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit, Version, set_etag
from evenkeel.lab.api.prefer import SAME, IfNews, tag
from evenkeel.lab.idle import Idle, idle_while_waiting
from evenkeel.lab.paging import Page
from evenkeel.lab.step import graph_of
from evenkeel.lab.submissions import Submission, SubmissionInFull, SubmissionState
from evenkeel.lab.why import Why

router = APIRouter(prefix="/api/v1", tags=["queue"])
Number = Annotated[int, Path(ge=1, lt=1 << 63)]


class Wanted(Model):
    """``graph``: steps with their definitions, or names of shipped ones; ``set``: its parameters."""

    graph: dict[str, Any]
    set: dict[str, str] = {}
    team: str = Field(default="", max_length=120)
    urgent: bool = False
    reason: str = Field(default="", max_length=2000)


@router.post("/submissions", status_code=201)
def submit(caller: Caller, wanted: Wanted, response: Response) -> SubmissionInFull:
    """Send steps in.  What is answered is on disk."""
    graph = graph_of(wanted.graph, wanted.set)
    made = submissions.submit(
        caller.lab, caller.actor, graph, team=wanted.team, urgent=wanted.urgent, reason=wanted.reason
    )
    set_etag(response, made.version, made)
    response.headers["Location"] = f"/api/v1/submissions/{made.id}"
    return made


@router.get("/submissions")
def listing(
    caller: Caller,
    state: Annotated[SubmissionState | None, Query()] = None,
    submitter: Annotated[str | None, Query(max_length=120)] = None,
    after: After = None,
    limit: Limit = 100,
) -> Page[Submission]:
    """The newest first."""
    return submissions.submissions(caller.lab, caller.actor, state=state, submitter=submitter, after=after, limit=limit)


@router.get("/submissions/{number}", response_model=SubmissionInFull, responses=SAME)
async def show(caller: Caller, number: Number, response: Response, conditional: IfNews) -> Any:
    """With `Prefer: wait=N`: when it has ended; with `If-None-Match`: when it, or one of its steps, is another."""
    return await conditional.answer(
        caller.lab,
        response,
        lambda: submissions.show(caller.lab, caller.actor, number),
        lambda found: tag(found.version, found),
        lambda found: found.state != "open",
    )


@router.get("/submissions/{number}/reasons")
def reasons(caller: Caller, number: Number) -> dict[int, Why]:
    """Why each step of it waits, by the number of the step."""
    submissions.show(caller.lab, caller.actor, number)
    return queues.reasons(caller.lab, caller.actor, number)


@router.get("/submissions/{number}/eta")
def eta(caller: Caller, number: Number) -> forecasts.SubmissionEta:
    """When it and its steps will start and end, in 8 of 10 cases; and what was foretold when it was sent in."""
    return forecasts.of_submission(caller.lab, caller.actor, number)


@router.post("/submissions/{number}/cancel")
def cancel(caller: Caller, number: Number, version: Version, response: Response) -> SubmissionInFull:
    """End it: what waits never starts, what runs is killed."""
    found = submissions.cancel(caller.lab, caller.actor, number, version=version)
    set_etag(response, found.version, found)
    return found


@router.get("/queue")
def queue(
    caller: Caller, submitter: Annotated[str | None, Query(max_length=120)] = None, limit: Limit = 200
) -> queues.Queue:
    """What waits, in the order in which it would start, with reasons; what runs; what idled."""
    return queues.queue(caller.lab, caller.actor, limit=limit, submitter=submitter)


@router.get("/idle")
def idle(caller: Caller, since_ns: Annotated[int, Query(ge=0, lt=1 << 63)] = 0) -> Idle:
    """Time that slots idled while something waited, by cause."""
    return idle_while_waiting(caller.lab, caller.actor, since_ns=since_ns)
