"""Pages of people and services: who they are, what they may do, and one's own tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from evenkeel.lab import events, people
from evenkeel.lab.actor import ROLES
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.pages import Nav, back, render

router = APIRouter()
NAV = Nav("People", "/people", 80, more=True)
_DAY = 86_400 * 10**9


@router.get("/people")
def people_page(request: Request, caller: Caller, after: Annotated[str | None, Query()] = None) -> Response:
    found = people.principals(caller.lab, caller.actor, after=after, limit=100)
    return render(request, "people/people.html", found=found, roles=ROLES)


@router.get("/people/{name}")
def person_page(request: Request, caller: Caller, name: str) -> Response:
    found = people.principal(caller.lab, caller.actor, name)
    log = events.events(caller.lab, caller.actor, by=name, limit=20)
    tokens = people.tokens(caller.lab, caller.actor, of=name) if caller.actor.may("people") else ()
    context: dict[str, Any] = {"person": found, "roles": ROLES, "log": log, "tokens": tokens, "days": _DAYS}
    return render(request, "people/person.html", **context)


@router.post("/people/{name}/rights")
def set_rights(
    request: Request,
    caller: Caller,
    name: str,
    version: Annotated[int, Form()],
    roles: Annotated[tuple[str, ...], Form()] = (),
    teams: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    groups = teams.replace(",", " ").split()
    people.set_rights(caller.lab, caller.actor, name, roles=roles, teams=groups, version=version)
    return back(request, f"/people/{name}")


@router.post("/people")
def add_service(
    request: Request,
    caller: Caller,
    name: Annotated[str, Form(max_length=120)],
    role: Annotated[str, Form()],
) -> Response:
    people.add_service(caller.lab, caller.actor, name.strip(), roles=[role])
    return back(request, f"/people/{name.strip()}")


#: Choices of a form; the API takes any.
_DAYS = (1, 7, 30, 90, 365)


@router.get("/me")
def me(request: Request, caller: Caller) -> Response:
    tokens = people.tokens(caller.lab, caller.actor)
    return render(request, "people/me.html", me=people.me(caller.actor), tokens=tokens, days=_DAYS, made=None)


@router.post("/me/tokens")
def make_token(
    request: Request,
    caller: Caller,
    name: Annotated[str, Form(max_length=120)],
    days: Annotated[int, Form()],
    scopes: Annotated[tuple[str, ...], Form()] = (),
    of: Annotated[str | None, Form(max_length=120)] = None,
) -> Response:
    made = people.make_token(caller.lab, caller.actor, name, scopes=scopes, length_ns=days * _DAY, of=of)
    tokens = people.tokens(caller.lab, caller.actor, of=of)
    context: dict[str, Any] = {"me": people.me(caller.actor), "tokens": tokens, "days": _DAYS, "made": made}
    return render(request, "people/me.html", **context)


@router.post("/tokens/{id_}/revoke")
def revoke_token(request: Request, caller: Caller, id_: int) -> Response:
    token = people.revoke_token(caller.lab, caller.actor, id_)
    return back(request, "/me" if token.principal == caller.actor.name else f"/people/{token.principal}")
