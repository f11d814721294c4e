"""REST of results: find them, look at one, compare it with the one before."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from evenkeel.lab import results
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit
from evenkeel.lab.paging import Page

router = APIRouter(prefix="/api/v1", tags=["results"])
Attempt = Annotated[int, Path(ge=1, lt=1 << 63)]


@router.get("/results")
def find(
    caller: Caller,
    same: Annotated[str, Query(max_length=1000)] = "",
    kind: Annotated[str, Query(max_length=100)] = "",
    state: results.State | None = None,
    submitter: Annotated[str, Query(max_length=120)] = "",
    after: After = None,
    limit: Limit = 100,
) -> Page[results.ResultLine]:
    """Attempts that ended, the latest first.  `same`: exactly that, as a result has it."""
    return results.find(
        caller.lab,
        caller.actor,
        same=same,
        kind=kind,
        state=state,
        submitter=submitter,
        after=after,
        limit=limit,
    )


@router.get("/results/{attempt}")
def show(caller: Caller, attempt: Attempt) -> results.ResultInFull:
    """What came of an attempt: the Result document, its artifacts, and the attempt that it is compared with."""
    return results.show(caller.lab, caller.actor, attempt)


@router.get("/results/{attempt}/comparison")
def compare(
    caller: Caller,
    attempt: Attempt,
    with_attempt: Annotated[int | None, Query(alias="with", ge=1, lt=1 << 63)] = None,
) -> results.Compared:
    """With another attempt; when none is named, with the last good one before it of the same thing."""
    return results.compared(caller.lab, caller.actor, attempt, with_attempt)
