"""REST of consoles, and the WebSocket that carries one: bytes as binary frames, everything else as JSON text.

To the client: ``state`` (line, writer, readers, ``you_write``), ``asked`` (by whom: the seat is wanted), ``refused``,
``gone``.  From it: ``{"do": "ask" | "give" | "keep"}`` and ``{"do": "resize", "columns": 80, "rows": 24}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocketDisconnect

from evenkeel.errors import EvenkeelError
from evenkeel.lab import console, problem
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.recording import Recorded

router = APIRouter(prefix="/api/v1", tags=["console"])
#: Messages that a reader may be behind; then it is cut off, and may come back.
_BEHIND = 2000


@router.get("/consoles")
def states(caller: Caller) -> list[console.ConsoleState]:
    """How all consoles stand."""
    return console.states(caller.lab, caller.actor)


@router.get("/machines/{machine}/console")
def state(caller: Caller, machine: str) -> console.ConsoleState:
    """Whether the line is up, who writes, who reads."""
    return console.state(caller.lab, caller.actor, machine)


@router.post("/machines/{machine}/console/reset")
def reset(caller: Caller, machine: str) -> console.ConsoleState:
    """End whatever session holds the line, also a foreign one, and open it anew."""
    return console.reset(caller.lab, caller.actor, machine)


@router.get("/machines/{machine}/console/text", response_class=PlainTextResponse)
def text(caller: Caller, machine: str, since_ns: Annotated[int, Query(ge=0, lt=1 << 63)] = 0) -> PlainTextResponse:
    """What the console printed from then on, its last MiB."""
    return PlainTextResponse(console.text(caller.lab, caller.actor, machine, since_ns))


@router.get("/machines/{machine}/console/recordings")
def recordings(caller: Caller, machine: str) -> list[Recorded]:
    """Newest first, with what was seen in them."""
    return console.recordings(caller.lab, caller.actor, machine)


@router.get("/machines/{machine}/console/recordings/{name}", response_class=FileResponse)
def recording(caller: Caller, machine: str, name: str) -> FileResponse:
    """An asciicast 2 file, which `asciinema play` shows."""
    path = console.recording_file(caller.lab, caller.actor, machine, name)
    return FileResponse(path, media_type="application/x-asciicast", filename=f"{machine}-{name}")


@router.websocket("/machines/{machine}/console/attach")
async def attach(socket: WebSocket, caller: Caller, machine: str, write: bool = True) -> None:
    await socket.accept()
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[bytes | dict[str, Any]] = asyncio.Queue()
    behind = asyncio.Event()

    def put(message: bytes | dict[str, Any]) -> None:
        if waiting.qsize() < _BEHIND:
            waiting.put_nowait(message)
        else:
            behind.set()

    def send(message: bytes | dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(put, message)

    try:
        session = await run_in_threadpool(console.attach, caller.lab, caller.actor, machine, send, write=write)
    except EvenkeelError as error:
        await socket.send_text(json.dumps({**problem.body_of(error), "type": "error"}))
        await socket.close(1008)
        return
    try:
        works = _to_client(socket, waiting), _from_client(socket, session), behind.wait()
        pumps = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
    finally:
        session.close()
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it went away by itself
            await socket.close()


async def _to_client(socket: WebSocket, waiting: asyncio.Queue[bytes | dict[str, Any]]) -> None:
    while True:
        message = await waiting.get()
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_text(json.dumps(message))
            if message["type"] == "gone":
                return


async def _from_client(socket: WebSocket, session: console.Session) -> None:
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if (typed := message.get("bytes")) is not None:
                session.type(typed)
            elif said := message.get("text"):
                _do(session, said)


def _do(session: console.Session, said: str) -> None:
    try:
        order = json.loads(said)
        what = order["do"]
        if what == "resize":
            session.resize(int(order["columns"]), int(order["rows"]))
        elif what in ("ask", "give", "keep"):
            getattr(session, what)()
    except (ValueError, KeyError, TypeError):
        return  # nothing that we know
