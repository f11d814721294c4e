"""Idempotency-Key on writes, as a layer around all handlers (see :mod:`evenkeel.lab.idempotency`)."""

from __future__ import annotations

import hashlib

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import idempotency
from evenkeel.lab.actor import Conflict
from evenkeel.lab.api import problem
from evenkeel.lab.api.caller import actor_of
from evenkeel.lab.api.who import SAFE
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import ALONGSIDE

#: A request that is longer cannot be kept: uploads name what they carry by its hash.
MOST_BYTES = 1 << 20
#: Their answers hold what is shown once, or their bodies do: neither is kept, nor a hash for trying guesses on.
_SECRET_ANSWERS = ("/api/v1/tokens", "/api/v1/webhooks", "/api/v1/login/")
_SECRET_BODIES = "/api/v1/secrets"
_KEPT_HEADERS = {"content-type", "etag", "location"}


class Once:
    """Answers a write that came before with what was answered then, and the header ``Idempotency-Replayed``."""

    def __init__(self, app: ASGIApp, lab: Lab) -> None:
        self.app, self.lab = app, lab
        self._under_way: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        plain = path.startswith("/api/") and not path.startswith(_SECRET_BODIES)
        if scope["type"] != "http" or scope["method"] in SAFE or not plain:
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        key, actor = connection.headers.get("idempotency-key"), actor_of(connection)
        if key is None or actor is None:
            await self.app(scope, receive, send)
            return
        mine = (actor.name, key)
        try:
            if not 1 <= len(key) <= 200:
                raise WrongInput("an Idempotency-Key has 1 to 200 characters", hint="a UUID is fine")
            if mine in self._under_way:
                raise Conflict("the same request is under way", hint="wait for its answer")
            self._under_way.add(mine)
            try:
                await self._once(mine, scope, receive, send)
            finally:
                self._under_way.discard(mine)
        except EvenkeelError as error:
            await problem.response(error)(scope, receive, send)

    async def _once(self, mine: tuple[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        head = f"{scope['method']} {scope['path']}?".encode() + scope["query_string"] + b"\n"
        sha256 = hashlib.sha256(head + body).hexdigest()
        kept = await run_in_threadpool(idempotency.before, self.lab, *mine, sha256)
        if kept is not None:
            headers = {**kept.headers, "Idempotency-Replayed": "true"}
            await Response(kept.body, kept.status, headers)(scope, receive, send)
            return
        answer: list[Message] = []
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            answer.append(message)

        token = ALONGSIDE.set(lambda connection: idempotency.mark(self.lab, connection, *mine, sha256))
        try:
            await self.app(scope, again, keep)
        finally:
            ALONGSIDE.reset(token)
        start = answer[0]
        whole = b"".join(message.get("body", b"") for message in answer[1:])
        if start["status"] < 500 and not scope["path"].startswith(_SECRET_ANSWERS):
            named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
            headers = {name: value for name, value in named.items() if name in _KEPT_HEADERS}
            done = idempotency.Kept(start["status"], headers, whole)
            await run_in_threadpool(idempotency.answered, self.lab, *mine, sha256, done)
        for message in answer:
            await send(message)


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise WrongInput("the request ended before it was whole")
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            error = WrongInput("a request with an Idempotency-Key has at most 1 MiB")
            error.http_status = 413  # type: ignore[attr-defined]
            raise error
        if not message.get("more_body", False):
            return bytes(body)
