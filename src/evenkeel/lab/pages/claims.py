"""Pages of claims: my reservations and who waits, one reservation, and the calendar."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from evenkeel.documents.quantity import parse_duration
from evenkeel.errors import WrongInput
from evenkeel.lab import claims, machines, search
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.claims import Lane, Span
from evenkeel.lab.limits import DAY
from evenkeel.lab.pages import Nav, back, render
from evenkeel.lab.pages.machines import Text, made
from evenkeel.lab.predicate import PredicateError

router = APIRouter()
NAV = Nav("Reservations", "/reservations", 15, also=("/calendar",))


@router.get("/reservations")
def mine(request: Request, caller: Caller) -> HTMLResponse:
    lab, actor = caller.lab, caller.actor
    held = claims.listing(lab, actor, holder=actor.name, state="open", limit=200).items
    return render(
        request,
        "claims/mine.html",
        held=[one for one in held if one.kind != "step"],
        waiting=claims.waiting(lab, actor),
        past=claims.listing(lab, actor, holder=actor.name, state="ended", limit=10).items,
        limits=lab.settings.reservations,
        some_own_boot=search.find(lab, actor, "boot.own:yes", facets=False, limit=1).total,
        q="",
    )


@router.post("/reservations")
def reserve(
    request: Request,
    caller: Caller,
    predicate: Text,
    reason: Text = "",
    length: Text = "",
    start: Text = "",
    kind: Text = "reservation",
    team: Text = "",
    urgent: Annotated[bool, Form()] = False,
    image: Text = "",
    netboot: Text = "",
) -> Response:
    own = {"image": image.strip() or None, "netboot": netboot.strip() or None}
    wanted = made(
        claims.Request,
        predicate=predicate.strip(),
        reason=reason.strip(),
        length_ns=(length.strip() or None) if kind != "permanent" else None,
        not_before_ns=_moment(start) if start.strip() else None,
        kind=kind,
        team=team.strip(),
        urgent=urgent,
        boot_source=own if any(own.values()) else None,
    )
    done = claims.request(caller.lab, caller.actor, wanted)
    return back(request, f"/reservations/{done.id}")


def _moment(text: str) -> int:
    """What <input type=datetime-local> sends, taken as UTC.  Raises WrongInput."""
    try:
        at = datetime.fromisoformat(text.strip())
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 10**9
    except (ValueError, OverflowError):
        raise WrongInput(f"{text!r} is no time", hint="as in 2026-12-01 09:00") from None


@router.get("/reservations/{number}")
def show(request: Request, caller: Caller, number: int) -> HTMLResponse:
    one = claims.get(caller.lab, caller.actor, number)
    owner = machines.get(caller.lab, caller.actor, one.machine) if one.machine else None
    template = "claims/state.html" if request.headers.get("HX-Target") == "state" else "claims/show.html"
    return render(
        request,
        template,
        one=one,
        mine=caller.actor.owns(one.holder, one.team),
        machine=owner,
        owns_machine=owner is not None and caller.actor.owns(owner.owner, owner.team),
        happened=claims.history(caller.lab, caller.actor, number),
    )


@router.post("/reservations/{number}/extend")
def extend(request: Request, caller: Caller, number: int, by: Text) -> Response:
    try:
        by_ns = parse_duration(by)
    except ValueError as error:
        raise WrongInput(str(error), hint="as in 4h or 2d") from None
    claims.extend(caller.lab, caller.actor, number, by_ns)
    return back(request, f"/reservations/{number}")


@router.post("/reservations/{number}/release")
def release(request: Request, caller: Caller, number: int, reason: Text = "") -> Response:
    claims.release(caller.lab, caller.actor, number, reason)
    return back(request, "/reservations")


@router.post("/reservations/{number}/hand-over")
def hand_over(request: Request, caller: Caller, number: int, to: Text) -> Response:
    claims.hand_over(caller.lab, caller.actor, number, to.strip())
    return back(request, f"/reservations/{number}")


@router.get("/calendar")
def calendar(request: Request, caller: Caller, q: str = "", start: str = "", days: int = 14) -> HTMLResponse:
    days = min(max(days, 1), 92)
    begin = (_moment(start) if start else caller.lab.now()) // DAY * DAY
    end = begin + days * DAY
    wrong: PredicateError | None = None
    lanes: list[Lane] = []
    try:
        lanes = claims.calendar(caller.lab, caller.actor, q, begin, end)
    except PredicateError as error:
        wrong = error
    return render(
        request,
        "claims/calendar.html",
        q=q,
        days=days,
        wrong=wrong,
        begin=begin,
        start=_day(begin),
        before=_day(begin - days * DAY),
        after=_day(end),
        columns=[begin + n * DAY for n in range(days)]
        if days <= 31
        else [begin + n * 7 * DAY for n in range(days // 7)],
        now_at=_share(caller.lab.now(), begin, end),
        lanes=[(lane, [_placed(span, begin, end) for span in lane.spans]) for lane in lanes],
    )


def _day(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // 10**9, UTC).strftime("%Y-%m-%d")


def _share(at: int, begin: int, end: int) -> float:
    return min(100.0, max(0.0, (at - begin) / (end - begin) * 100))


def _placed(span: Span, begin: int, end: int) -> dict[str, Any]:
    """``left`` and ``width`` in percent of the lane."""
    left = _share(span.start_ns, begin, end)
    right = 100.0 if span.end_ns is None else _share(span.end_ns, begin, end)
    look = {"waiting": "booked", "preparing": "preparing", "ended": "ended"}.get(span.state, "")
    return {"span": span, "left": round(left, 2), "width": round(max(0.3, right - left), 2), "look": look}
