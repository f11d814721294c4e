"""Who asks: by token, by session, or by the Unix socket, in this order.  And what keeps a session from being abused.

A session is a signed cookie (``SameSite=Lax``) that names a principal; what that one may do is looked up each time.
Unsafe requests of a session must come from a page of the lab itself (:class:`SameOrigin`), so forms need no token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evenkeel.lab import login, people
from evenkeel.lab.actor import Actor, Forbidden
from evenkeel.lab.api import problem
from evenkeel.lab.lab import Lab

SESSION = "evenkeel_lab"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Peer:
    """The process at the other end of a Unix socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


class Identify:
    """``who`` of :func:`evenkeel.lab.api.app.create_app`, as the service uses it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __call__(self, connection: HTTPConnection) -> Actor | None:
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if scheme:
            return people.actor_of_token(self.lab, secret.strip()) if scheme.lower() == "bearer" else None
        session: dict[str, Any] = connection.scope.get("session") or {}
        if name := session.get("name"):
            if session.get("until_ns", 0) <= self.lab.now():
                return None
            return login.session_actor(self.lab, str(name), bool(session.get("machine_admin")))
        peer = connection.scope.get("state", {}).get("peer")
        return people.local_actor(self.lab, peer.uid) if isinstance(peer, Peer) else None


def begin_session(request: Request, name: str, *, machine_admin: bool = False) -> None:
    lab: Lab = request.app.state.lab
    request.session.clear()
    until = lab.now() + lab.settings.session
    request.session.update({"name": name, "until_ns": until, "machine_admin": machine_admin})


class SameOrigin:
    """Refuses unsafe requests that a page of somebody else makes with the reader's session (CSRF), and WebSockets too.

    Browsers say where a request comes from (``Sec-Fetch-Site``, ``Origin``), and no page can change that.  Programs
    with a token, or on the socket, have no session and send neither.
    """

    def __init__(self, app: ASGIApp, url: str | None) -> None:
        self.app = app
        self._own = urlsplit(url).netloc if url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unsafe = scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in SAFE)
        if unsafe and not self._same(HTTPConnection(scope)):
            error = Forbidden("this request came from a page of another site", hint="use the lab's own pages")
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
            else:
                await problem.response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _same(self, connection: HTTPConnection) -> bool:
        site = connection.headers.get("sec-fetch-site")
        if site is not None and site not in ("same-origin", "none"):
            return False
        origin = connection.headers.get("origin")
        if origin is None:
            # No browser leaves both out of an unsafe request.
            return site is not None or SESSION not in connection.cookies
        return urlsplit(origin).netloc in {connection.headers.get("host", ""), self._own}


_HEADERS = {
    "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class SecurityHeaders:
    """On every answer; ``hsts`` where people come by https."""

    def __init__(self, app: ASGIApp, hsts: bool) -> None:
        self.app = app
        extra = {"strict-transport-security": "max-age=31536000"} if hsts else {}
        self._headers = [(name.encode(), value.encode()) for name, value in (_HEADERS | extra).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", [])}
                more = [pair for pair in self._headers if pair[0] not in present]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
