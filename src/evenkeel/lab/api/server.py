"""The web server: uvicorn on a Unix socket and on an address, which tells the application who is at the other end."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from evenkeel.lab.api.who import Peer

#: Seconds that open streams are given to end.
_GRACE_S = 3


class _WithPeer(H11Protocol):
    """Puts the peer of a Unix socket into the state of its requests.  Nothing that a client sends gets there."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and own.family == socket.AF_UNIX:
            raw = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.app_state = {**self.app_state, "peer": Peer(*struct.unpack("3i", raw))}


class Server(uvicorn.Server):
    """``run(sockets=...)`` until SIGINT, SIGTERM or :meth:`stop`."""

    def __init__(self, app: FastAPI, stopping: threading.Event) -> None:
        self._stopping = stopping
        super().__init__(
            uvicorn.Config(
                app,
                http=_WithPeer,
                # A header could name another client than the one that is there.
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=_GRACE_S,
                ws_max_size=1 << 20,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        self._stopping.set()
        self.should_exit = True

    def serve_on(self, sockets: Sequence[socket.socket]) -> None:
        self.run(sockets=list(sockets))
