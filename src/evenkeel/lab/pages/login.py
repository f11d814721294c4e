"""Pages of logging in and out: by the provider, by a link of the command line, and letting a command line in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from evenkeel.errors import EvenkeelError
from evenkeel.lab import login
from evenkeel.lab.api.caller import Caller, actor_of
from evenkeel.lab.api.people import url_of
from evenkeel.lab.api.who import begin_session
from evenkeel.lab.login import NoLogin
from evenkeel.lab.pages import back, render

router = APIRouter()


@router.get("/login")
def login_page(request: Request, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
    if actor_of(request) is not None:
        return back(request, _ours(next))
    return render(request, "login/login.html", next=_ours(next), provider=request.app.state.provider, refused=None)


@router.get("/login/oidc")
async def begin(request: Request, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
    provider = request.app.state.provider
    if provider is None:
        raise NoLogin("this lab has no provider to log in by", hint="its owner names one in the settings, below `oidc`")
    request.session["next"] = _ours(next)
    try:
        answer: Response = await provider.begin(request, f"{url_of(request)}/login/back")
    except NoLogin as error:
        return await _refused(request, "", error)
    return answer


@router.get("/login/back")
async def come_back(request: Request) -> Response:
    """Where the provider sends the browser."""
    provider = request.app.state.provider
    if provider is None:
        raise NoLogin("this lab has no provider to log in by")
    there, who = _ours(str(request.session.get("next") or "/")), ""
    try:
        claims = await provider.claims(request)
        who = str(claims.get(provider.settings.name) or "")
        name = await run_in_threadpool(provider.let_in, request.app.state.lab, claims)
    except EvenkeelError as error:
        return await _refused(request, who, error)
    begin_session(request, name)
    return back(request, there)


@router.get("/login/link/{code}")
def use_link(request: Request, code: str) -> Response:
    name, machine_admin = request.app.state.links.use(code)
    begin_session(request, name, machine_admin=machine_admin)
    return back(request, "/")


@router.post("/logout")
def logout(request: Request) -> Response:
    request.session.clear()
    return back(request, "/login")


@router.get("/device")
def device_page(request: Request, caller: Caller, code: Annotated[str, Query(max_length=40)] = "") -> Response:
    asks = request.app.state.devices.who_asks(code) if code else None
    return render(request, "login/device.html", code=code, asks=asks, done=None)


@router.post("/device")
def decide_device(
    request: Request, caller: Caller, user_code: Annotated[str, Form(max_length=40)], grant: Annotated[str, Form()] = ""
) -> Response:
    request.app.state.devices.decide(caller.lab, caller.actor, user_code, grant=bool(grant))
    done = "It is logged in as you now. You can close this page." if grant else "It was turned away."
    return render(request, "login/device.html", code=user_code, asks=None, done=done)


async def _refused(request: Request, who: str, error: EvenkeelError) -> Response:
    await run_in_threadpool(login.refused, request.app.state.lab, who, error)
    request.session.clear()
    context = {"next": "/", "provider": request.app.state.provider, "refused": error}
    return render(request, "login/login.html", status=403, **context)


def _ours(path: str) -> str:
    """A path of ours, and nothing that leads elsewhere."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\", "/login")) else "/"
