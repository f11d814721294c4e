"""REST of agents, and the line by which agents elsewhere talk to the lab."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

from fastapi import APIRouter, Path, WebSocket, WebSocketDisconnect

from evenkeel.lab import agents
from evenkeel.lab.agents import Agent
from evenkeel.lab.api.caller import Caller, actor_of
from evenkeel.lab.dispatching import Remote
from evenkeel.lab.lab import Lab

router = APIRouter(prefix="/api/v1", tags=["agents"])
Name = Annotated[str, Path(max_length=80)]
#: Codes of WebSocket: policy violation; try again later.
_MAY_NOT, _LATER = 1008, 1013


@router.get("/agents")
def listing(caller: Caller) -> tuple[Agent, ...]:
    """All agents, and what runs on them."""
    return agents.agents(caller.lab, caller.actor)


@router.get("/agents/{name}")
def show(caller: Caller, name: Name) -> Agent:
    return agents.show(caller.lab, caller.actor, name)


@router.post("/agents/{name}/drain")
def drain(caller: Caller, name: Name) -> Agent:
    """It ends what it runs and gets nothing more."""
    return agents.drain(caller.lab, caller.actor, name)


@router.post("/agents/{name}/resume")
def resume(caller: Caller, name: Name) -> Agent:
    """It gets steps again."""
    return agents.resume(caller.lab, caller.actor, name)


@router.websocket("/agents/line")
async def line(socket: WebSocket) -> None:
    """The protocol of :mod:`evenkeel.lab.protocol`, one message a text frame.  Needs the scope ``agent``."""
    lab: Lab = socket.app.state.lab
    actor = actor_of(socket)
    if actor is None or not actor.may("agent"):
        await socket.close(_MAY_NOT)  # before accept: the client sees 403
        return
    await socket.accept()
    part = lab.dispatching
    if part is None:
        await socket.close(_LATER)
        return
    loop, out = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def put(text: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the web server has ended
            loop.call_soon_threadsafe(out.put_nowait, text)

    remote = Remote(part, put, lambda: put(None))

    async def write() -> None:
        while (text := await out.get()) is not None:
            await socket.send_text(text)
        await socket.close()

    writing = asyncio.create_task(write())
    try:
        while not lab.stopping.is_set():
            remote.heard(await socket.receive_text())
    except (WebSocketDisconnect, RuntimeError):
        pass
    finally:
        remote.heard(None)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await writing
