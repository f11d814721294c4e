"""The web application of a lab: all handlers and pages, who asks, and errors as answers.

Every module of ``evenkeel.lab.api`` and ``evenkeel.lab.pages`` that has a ``router`` is served; none is listed here.
"""

from __future__ import annotations

import importlib
import pkgutil
import secrets
import warnings
from collections.abc import Callable
from types import ModuleType

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic.warnings import UnsupportedFieldAttributeWarning
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from evenkeel import __version__
from evenkeel.errors import EvenkeelError
from evenkeel.lab import api, pages
from evenkeel.lab.actor import Actor
from evenkeel.lab.api import contract, problem
from evenkeel.lab.api.once import Once
from evenkeel.lab.api.who import SAFE, SESSION, SameOrigin, SecurityHeaders
from evenkeel.lab.lab import Lab
from evenkeel.lab.login import Devices, Links
from evenkeel.lab.logs import NO_ROOM
from evenkeel.lab.store import MAKE_ROOM

# FastAPI names parameters by an alias, of which pydantic says that it has no effect, once for each, where a model is
# built only when it is used (documents.base).  It would be in the log of a service at the first requests.
warnings.filterwarnings("ignore", category=UnsupportedFieldAttributeWarning)

#: Finds out who asks; None: nobody known.  May read the database: it is called in a thread.
Who = Callable[[HTTPConnection], Actor | None]
DESCRIPTION = """Pool and queue of an Evenkeel lab. Times and durations are integers of nanoseconds (`..._ns`),
sizes are bytes. Errors are `application/problem+json` (RFC 9457) with a `hint`."""


def create_app(lab: Lab, *, who: Who, key: str | None = None) -> FastAPI:
    """``who``: of the service, or in tests a function that names somebody; ``key``: that sessions are signed with."""
    app = FastAPI(
        title="Evenkeel lab",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.lab = lab
    app.state.links, app.state.devices = Links(lab.steady), Devices(lab.steady)
    app.state.provider = None
    if lab.settings.oidc:
        from evenkeel.lab.oidc import Provider

        app.state.provider = Provider(lab.settings.oidc)
    for router in routers(api):
        app.include_router(router, responses=contract.REFUSALS)
    contract.install(app)
    pages.mount(app, routers(pages))
    app.add_exception_handler(EvenkeelError, _ours)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(OSError, _of_the_disk)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(_Bounded)
    app.add_middleware(_Standby)
    url = lab.settings.url
    https = bool(url and url.startswith("https:"))
    app.add_middleware(Once, lab=lab)
    app.add_middleware(_Who, who=who)
    app.add_middleware(SameOrigin, url=url)
    app.add_middleware(
        SessionMiddleware,
        secret_key=key or secrets.token_urlsafe(32),
        session_cookie=SESSION,
        max_age=lab.settings.session // 10**9,
        same_site="lax",
        https_only=https,
    )
    app.add_middleware(SecurityHeaders, hsts=https)
    return app


def modules(package: ModuleType) -> list[ModuleType]:
    """The modules of a package, in the order of their names."""
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def routers(package: ModuleType) -> list[APIRouter]:
    return [module.router for module in modules(package) if hasattr(module, "router")]


class StandingBy(EvenkeelError):
    """HTTP 503."""

    http_status = 503


class NoRoom(EvenkeelError):
    """HTTP 507."""

    http_status = 507


class _Bounded:
    """What is read into memory whole is of a size; contents go to disk as they come.  HTTP 413."""

    MOST = 32 << 20

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "PUT" and scope["path"].startswith("/api/v1/contents/")):
            await self.app(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.MOST:
                raise HTTPException(413, "a request has at most 32 MiB")
            return message

        await self.app(scope, counted, send)


class _Who:
    """Puts the actor into the state of each request and each WebSocket."""

    def __init__(self, app: ASGIApp, who: Who) -> None:
        self.app, self.who = app, who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                scope.setdefault("state", {})["actor"] = await run_in_threadpool(self.who, HTTPConnection(scope))
            except EvenkeelError as error:  # the database is away
                await _turn_away(scope, receive, send, error)
                return
        await self.app(scope, receive, send)


class _Standby:
    """Refuses writes while another service is the active one on the same database."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = getattr(scope["app"].state, "service", None) if scope["type"] == "http" else None
        if service is not None and scope["method"] not in SAFE and not service.active.is_set():
            error: EvenkeelError = StandingBy("this service stands by; another one is active", hint="ask that one")
            if service.lab.store.lost:
                error = service.lab.store.hold_lost()
            await _turn_away(scope, receive, send, error)
            return
        await self.app(scope, receive, send)


async def _turn_away(scope: Scope, receive: Receive, send: Send, error: EvenkeelError) -> None:
    """Answer before any handler is asked."""
    if scope["type"] == "websocket":
        # Not a close, which a client reads as 403: an agent that is refused ends, and its steps with it.
        await WebSocket(scope, receive, send).send_denial_response(problem.response(error))
        return
    await _answer(Request(scope, receive), error)(scope, receive, send)


def _answer(request: Request, error: EvenkeelError) -> Response:
    if request.url.path.startswith("/api/") or request.url.path == "/metrics":
        return problem.response(error)
    return pages.error(request, error)


def _of_the_disk(request: Request, error: Exception) -> Response:
    """A disk that is full is no defect; anything else is."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return _answer(request, NoRoom(f"the disk of the lab is full: {error.strerror}", hint=MAKE_ROOM))
    raise error


def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, EvenkeelError)
    return _answer(request, error)


def _unreadable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, problem.from_validation(error))


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, problem.from_http(error))


def _defect(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the server logs it with its traceback.
    del error
    return _answer(request, EvenkeelError("a defect in Evenkeel; the log of the service has the traceback"))
