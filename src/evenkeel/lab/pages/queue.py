"""The queue as a page: what runs, what waits in which order and why, when it will start, and what idled."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from evenkeel.lab import queue as queues
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, render

router = APIRouter()
NAV = Nav("Queue", "/queue", 20)
#: Why slots stood idle, in words.
CAUSES = {
    "machine": "the step wanted a machine, and none was free",
    "fit": "what waited fits other agents only",
    "drained": "the agent was drained",
    "dispatch": "it could have started: our fault",
}


@router.get("/queue")
def queue(request: Request, caller: Caller, mine: Annotated[bool, Query()] = False) -> Response:
    found = queues.queue(caller.lab, caller.actor, submitter=caller.actor.name if mine else None)
    return render(request, "queue/queue.html", found=found, mine=mine, causes=CAUSES)
