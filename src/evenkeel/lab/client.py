"""Ask a lab: REST over its Unix socket, or over a URL with a token.  Errors come back as the classes they were.

``with connect(at) as lab: lab.get("/machines", q="cpu.flag:avx512f")``.  Paths are below ``/api/v1``;
what comes back is plain JSON data.  Knows no nouns.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from evenkeel.errors import EvenkeelError, Unreachable
from evenkeel.lab import problem
from evenkeel.lab.place import SYSTEM_SOCKET, default_folder, socket_of

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

PREFIX = "/api/v1"
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class Client:
    """``at``: ``https://lab.example.org`` or the path of a socket; ``token``: of whom, over a URL."""

    def __init__(self, at: str, token: str | None = None) -> None:
        self.at = at
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        if at.startswith(("http://", "https://")):
            self.http = httpx.Client(base_url=at.rstrip("/"), headers=headers, timeout=_TIMEOUT)
        else:
            transport = httpx.HTTPTransport(uds=at, verify=False)  # no TLS there; reading the certificates takes 0.1 s
            self.http = httpx.Client(base_url="http://lab", transport=transport, headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        return self.ask("GET", path, parameters=parameters).json()

    def wait(self, path: str, seconds: int) -> Any:
        """GET of an object that is answered when it has ended, at the latest after so many seconds, as it is then."""
        answer = self.ask("GET", path, headers={"Prefer": f"wait={seconds}"})
        if "Preference-Applied" not in answer.headers:
            time.sleep(1)  # a lab that is stopping, or one of before that was known
        return answer.json()

    def pages(self, path: str, **parameters: Any) -> Iterator[Any]:
        """All items of a list, page after page."""
        while True:
            found = self.get(path, **parameters)
            yield from found["items"]
            if not found.get("next"):
                return
            parameters["after"] = found["next"]

    def post(self, path: str, body: Any = None, *, version: int | None = None, **parameters: Any) -> Any:
        return self.send("POST", path, body, version=version, **parameters)

    def send(self, method: str, path: str, body: Any = None, *, version: int | None = None, **parameters: Any) -> Any:
        """POST, PUT, PATCH or DELETE.  ``version``: as it was read; somebody changed it meanwhile raises Stale."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        answer = self.ask(method, path, body=body, parameters=parameters, headers=headers)
        return answer.json() if answer.content else None

    def lines(self, path: str, **parameters: Any) -> Iterator[str]:
        """A stream (server-sent events, a live log), line by line; ends when the lab ends it."""
        try:
            with self.http.stream("GET", PREFIX + path, params=_given(parameters), timeout=None) as answer:
                if answer.is_error:
                    answer.read()
                    self.refuse(answer)
                yield from answer.iter_lines()
        except httpx.TransportError as error:
            raise self.unreachable(error) from None

    def socket(self, path: str) -> AbstractAsyncContextManager[ClientConnection]:
        """A WebSocket, to be entered in an event loop.  Raises Unreachable, and what the lab answered."""
        return self._socket(PREFIX + path)

    @contextlib.asynccontextmanager
    async def _socket(self, path: str) -> AsyncIterator[ClientConnection]:
        from websockets.asyncio.client import connect as to_url
        from websockets.asyncio.client import unix_connect
        from websockets.exceptions import InvalidHandshake

        headers = {name: value for name, value in self.http.headers.items() if name == "authorization"}
        try:
            if self.at.startswith(("http://", "https://")):
                line = await to_url(f"ws{self.at.rstrip('/').removeprefix('http')}{path}", additional_headers=headers)
            else:
                line = await unix_connect(self.at, f"ws://lab{path}")
        except (OSError, InvalidHandshake) as error:
            raise self.unreachable(error) from None
        async with line:
            yield line

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        parameters: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """One request; raises what the lab answered as an error, and Unreachable."""
        try:
            answer = self.http.request(method, PREFIX + path, params=_given(parameters), json=body, headers=headers)
        except httpx.TransportError as error:
            raise self.unreachable(error) from None
        if answer.is_error:
            self.refuse(answer)
        return answer

    def refuse(self, answer: httpx.Response) -> None:
        try:
            body = answer.json()
        except json.JSONDecodeError:
            body = None
        problem.raise_problem(answer.status_code, body, self.at)

    def unreachable(self, error: Exception) -> EvenkeelError:
        from evenkeel.lab.words import cause

        return Unreachable(
            f"no lab answers at {self.at}: {cause(error)}",
            hint="`evenkeel lab up` starts one here; --lab URL names another",
        )


def _given(parameters: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (parameters or {}).items() if value is not None}


def connect(at: str | None = None) -> Client:
    """The lab at ``at`` (URL or socket); None: this user's own one, else the machine's."""
    if at is None:
        own = socket_of(default_folder())
        at = str(SYSTEM_SOCKET if not own.exists() and SYSTEM_SOCKET.exists() else own)
    elif "://" in at:
        return Client(at, os.environ.get("EVENKEEL_LAB_TOKEN") or tokens().get(at.rstrip("/")))
    else:
        at = str(Path(at).expanduser())
        if Path(at).is_dir():
            at = str(socket_of(Path(at)))
    return Client(at)


# -- tokens of this user ------------------------------------------------------------------------------------------


def _tokens_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "evenkeel" / "lab-tokens.json"


def tokens() -> dict[str, str]:
    """URL of a lab -> the token that `evenkeel lab login` got there."""
    try:
        found = json.loads(_tokens_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(url): str(token) for url, token in found.items()} if isinstance(found, dict) else {}


def keep_token(url: str, token: str | None) -> Path:
    """Keep it for later commands, readable by this user only; None: forget it.  Returns the file."""
    path = _tokens_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {key: value for key, value in tokens().items() if key != url.rstrip("/")}
    if token is not None:
        known[url.rstrip("/")] = token
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(known, stream, indent=2)
    new.replace(path)
    return path
