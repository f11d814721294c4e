"""REST of the service itself: what it is, how it stands, and its counters for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from evenkeel import __version__
from evenkeel.documents.base import Model
from evenkeel.lab import events, metrics, overview
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.people import url_of

router = APIRouter()


class Service(Model):
    """``active``: it may write; ``holder``: the service that may, where several share a database.

    ``parts``: what runs beside the pages.
    """

    version: str
    url: str
    database: str
    active: bool
    holder: str | None
    up_ns: int
    events: int
    parts: tuple[str, ...]


@router.get("/api/v1/service", tags=["service"])
def service(request: Request, caller: Caller) -> Service:
    """What answers here."""
    caller.actor.need("read", "look at the lab")
    up = getattr(request.app.state, "service", None)
    lab = caller.lab
    return Service(
        version=__version__,
        url=up.url if up else url_of(request),
        database=lab.store.engine.url.render_as_string(hide_password=True),
        active=up.active.is_set() if up else True,
        holder=lab.store.holder(),
        up_ns=lab.steady() - up.since_ns if up else 0,
        events=events.last_seq(lab),
        parts=tuple(getattr(request.app.state, "parts", ())),
    )


@router.get("/api/v1/overview", tags=["service"])
def overview_at_a_glance(caller: Caller) -> overview.Overview:
    """How the lab stands, at a glance."""
    return overview.overview(caller.lab, caller.actor)


@router.get("/metrics", tags=["service"], response_class=PlainTextResponse)
def prometheus(caller: Caller) -> PlainTextResponse:
    """Counters and gauges in the text format of Prometheus; it needs a token with the scope `read`."""
    caller.actor.need("read", "read the metrics")
    return PlainTextResponse(metrics.exposition(caller.lab), media_type=metrics.MEDIA)
