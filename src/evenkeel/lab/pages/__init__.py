"""Pages of the lab: one module a noun with a ``router``, its templates in ``templates/NOUN/``.

A page calls the same service functions as the REST handlers and renders a template with :func:`render`; it decides
nothing.  What a page can do, REST can do (a test compares them).  A module that wants to stand in the navigation has
``NAV = Nav("Machines", "/machines", 10)``.  Scripts are files in ``static/``: the pages' security policy runs no inline
script.  Forms are plain ``<form method="post">``; HTMX (``hx-...``) makes them smoother, and is not needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evenkeel import __version__
from evenkeel.errors import EvenkeelError
from evenkeel.lab.actor import NotLoggedIn
from evenkeel.lab.api.caller import actor_of
from evenkeel.lab.pages import words
from evenkeel.lab.problem import status_of

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Nav:
    """An entry of the navigation; ``place``: small numbers stand first.  ``scope``: who lacks it does not see it.

    ``more``: behind *More*, for what few need every day; ``also``: other paths that belong to it.
    """

    title: str
    path: str
    place: int
    scope: str = "read"
    more: bool = False
    also: tuple[str, ...] = ()

    def holds(self, here: str) -> bool:
        """Whether the page at ``here`` belongs to it."""
        paths = (self.path, *self.also)
        return any(here == path or (path != "/" and here.startswith(f"{path}/")) for path in paths)


def mount(app: FastAPI, found: Sequence[APIRouter]) -> None:
    """Serve the pages: not part of the REST contract."""
    for router in found:
        app.include_router(router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")


def render(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A page, or a part of one.  In each template: ``actor``, ``lab``, ``now_ns``, ``here`` (path) and the filters."""
    lab = request.app.state.lab
    text = (
        environment()
        .get_template(template)
        .render(
            actor=actor_of(request),
            lab=lab,
            now_ns=lab.now(),
            here=request.url.path,
            navigation=navigation(),
            **context,
        )
    )
    return HTMLResponse(text, status, headers={"Vary": "HX-Request"})


def back(request: Request, path: str) -> Response:
    """After a form was done: to ``path`` (a path of ours), with HTMX or without."""
    if "HX-Request" in request.headers:
        return Response(status_code=204, headers={"HX-Location": path})
    return RedirectResponse(path, 303)


def error(request: Request, found: EvenkeelError) -> Response:
    """An error as a page, or as the notice of the page that asked by HTMX.  Who is unknown is led to the log-in."""
    status = status_of(found)
    htmx = "HX-Request" in request.headers
    if isinstance(found, NotLoggedIn):
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        there = f"/login?next={quote(here if request.method == 'GET' and not htmx else '/')}"
        return Response(status_code=401, headers={"HX-Redirect": there}) if htmx else RedirectResponse(there, 303)
    answer = render(
        request,
        "notice.html" if htmx else "error.html",
        status=status,
        error=found,
        code=status,
        posted=request.method != "GET",
    )
    if htmx:
        answer.headers.update({"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"})
    return answer


@cache
def navigation() -> tuple[Nav, ...]:
    from evenkeel.lab import pages
    from evenkeel.lab.api.app import modules

    found = [module.NAV for module in modules(pages) if hasattr(module, "NAV")]
    return tuple(sorted(found, key=lambda entry: (entry.place, entry.title)))


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(static=_static, version=__version__)
    made.filters.update(words.FILTERS)
    return made


@cache
def _static(name: str) -> str:
    """Its address; another content has another address, so that browsers may keep it."""
    return f"/static/{name}?{hashlib.sha256((_HERE / 'static' / name).read_bytes()).hexdigest()[:12]}"
