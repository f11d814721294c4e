"""REST of people, services, their tokens and their log-in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.lab import login, people
from evenkeel.lab.actor import Forbidden
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit, NeededVersion, set_etag
from evenkeel.lab.paging import Page

router = APIRouter(prefix="/api/v1", tags=["people"])
Name = Annotated[str, Path(max_length=120)]


class Rights(Model):
    roles: tuple[str, ...]
    teams: tuple[str, ...] = ()


class NewService(Model):
    name: str = Field(max_length=120)
    roles: tuple[str, ...]
    shown: str = Field(default="", max_length=200)


class Wanted(Model):
    """``length_ns``: how long it lives, ``"30 d"`` or nanoseconds; ``principal``: a service; left out: who asks."""

    name: str = Field(max_length=120)
    scopes: tuple[str, ...]
    length_ns: Nanoseconds
    principal: str | None = None


@router.get("/me")
def me(caller: Caller) -> people.Me:
    """Who asks, and what they may do."""
    return people.me(caller.actor)


@router.get("/people")
def principals(caller: Caller, after: After = None, limit: Limit = 100) -> Page[people.Principal]:
    """All who were ever here, by name."""
    return people.principals(caller.lab, caller.actor, after=after, limit=limit)


@router.post("/people", status_code=201)
def add_service(caller: Caller, wanted: NewService, response: Response) -> people.Principal:
    """Add a principal for a program."""
    made = people.add_service(caller.lab, caller.actor, wanted.name, roles=wanted.roles, shown=wanted.shown)
    set_etag(response, made.version)
    return made


@router.get("/people/{name}")
def principal(caller: Caller, name: Name, response: Response) -> people.Principal:
    found = people.principal(caller.lab, caller.actor, name)
    set_etag(response, found.version)
    return found


@router.put("/people/{name}/rights")
def set_rights(
    caller: Caller, name: Name, wanted: Rights, version: NeededVersion, response: Response
) -> people.Principal:
    """Give somebody these roles and teams instead of what they have."""
    found = people.set_rights(caller.lab, caller.actor, name, roles=wanted.roles, teams=wanted.teams, version=version)
    set_etag(response, found.version)
    return found


@router.get("/tokens")
def tokens(caller: Caller, principal: Annotated[str | None, Query()] = None) -> tuple[people.Token, ...]:
    """One's own, or those of a principal; the newest first."""
    return people.tokens(caller.lab, caller.actor, of=principal)


@router.post("/tokens", status_code=201)
def make_token(caller: Caller, wanted: Wanted) -> people.NewToken:
    """Make a token; its secret is told this once."""
    return people.make_token(
        caller.lab,
        caller.actor,
        wanted.name,
        scopes=wanted.scopes,
        length_ns=wanted.length_ns,
        of=wanted.principal,
    )


@router.delete("/tokens/{id_}")
def revoke_token(caller: Caller, id_: Annotated[int, Path(ge=1, lt=1 << 63)]) -> people.Token:
    """It is refused from now on; it stays in the list."""
    return people.revoke_token(caller.lab, caller.actor, id_)


# -- logging in ---------------------------------------------------------------------------------------------------


class Link(Model):
    """``path``: on the lab's pages, good for one use within ten minutes."""

    path: str


class Device(Model):
    name: str = Field(max_length=120, description="of the machine that asks")


class Code(Model):
    device_code: str = Field(max_length=120)


class Decision(Model):
    user_code: str = Field(max_length=40)
    grant: bool


@router.post("/login/link")
def make_link(request: Request, caller: Caller) -> Link:
    """A link that logs who asks in, in a browser.  Over the Unix socket only: a token would become more than it is."""
    if caller.actor.via != "socket":
        raise Forbidden(
            "a log-in link is made over the lab's socket only", hint="on the lab's machine: evenkeel lab open"
        )
    code = request.app.state.links.make(caller.actor)
    return Link(path=f"/login/link/{code}")


@router.post("/login/device")
def begin_device(request: Request, device: Device) -> login.Begun:
    """Begin to log a command line in (as RFC 8628): show the code, then ask /login/device/token until it is granted."""
    begun: login.Begun = request.app.state.devices.begin(device.name, url_of(request))
    return begun


@router.post("/login/device/token")
def ask_device(request: Request, code: Code) -> login.Answer:
    """``pending``, or the token that was granted."""
    answer: login.Answer = request.app.state.devices.ask(code.device_code)
    return answer


@router.post("/login/device/decide", status_code=204)
def decide_device(request: Request, caller: Caller, decision: Decision) -> None:
    """Let a command line in as oneself, or turn it away."""
    request.app.state.devices.decide(caller.lab, caller.actor, decision.user_code, grant=decision.grant)


def url_of(request: Request) -> str:
    """Of the lab's pages, as people reach them."""
    return request.app.state.lab.settings.url or str(request.base_url).rstrip("/")
