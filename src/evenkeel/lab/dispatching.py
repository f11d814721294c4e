"""The dispatcher in a running service: its thread, the socket of local agents, and the lines of remote ones.

Agents on this machine connect to ``agents.sock`` in the lab's folder (who may is asked of the kernel: root, and the
user of the service); others come by WebSocket (:mod:`evenkeel.lab.api.agents`).  Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI

from evenkeel.lab import protocol
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.lab import Lab
from evenkeel.lab.logs import NO_ROOM
from evenkeel.lab.process import Process
from evenkeel.lab.set_within import set_within

log = logging.getLogger("evenkeel.lab")
T = TypeVar("T")
#: Time limits and leases are looked at so often.
_LOOK_S = 0.25
#: A full disk is tried again after so long.
_NO_ROOM_S = 1.0
#: Between the end of a line and the end of the process that held it, for one that was killed.
_DYING_S = 0.5


def socket_path(folder: Path) -> Path:
    return folder / "agents.sock"


@contextlib.contextmanager
def running(lab: Lab, dispatcher: Dispatcher | None = None) -> Iterator[Dispatching]:
    """A dispatcher for this lab, until the block ends.  Agents outlive it."""
    part = Dispatching(lab, dispatcher or Dispatcher(lab))
    part.start()
    try:
        yield part
    finally:
        part.stop()


class Dispatching:
    """A thread with a loop of its own, so that no page and no request delays a start."""

    def __init__(self, lab: Lab, dispatcher: Dispatcher) -> None:
        self.lab = lab
        self.dispatcher = dispatcher
        self.loop = asyncio.new_event_loop()
        self._woken = asyncio.Event()
        self.stopping = False
        self._open = threading.Event()
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="dispatcher")

    def start(self) -> None:
        self._thread.start()
        self._open.wait()
        if self.failed is not None:
            self._thread.join()
            raise self.failed
        self.lab.dispatching = self

    def stop(self) -> None:
        self.lab.dispatching = None
        self.stopping = True
        self.wake()
        self._thread.join()

    def wake(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._woken.set)

    def ask(self, question: Callable[[Dispatcher], T]) -> T:
        """Run ``question`` where the dispatcher runs; its answer.  For pages that want to know why something waits."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(question(self.dispatcher))
            except BaseException as error:  # noqa: BLE001  belongs to who asked
                answer.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return answer.result(10)

    def _work(self) -> None:
        try:
            self.loop.run_until_complete(self._run())
        except BaseException as error:
            self.failed = error
            log.exception("the dispatcher has ended")
        finally:
            self._open.set()
            self.loop.close()

    async def _run(self) -> None:
        path = socket_path(self.lab.folder)
        path.unlink(missing_ok=True)
        self.dispatcher.wake = self.wake
        end = self.lab.store.listen(lambda _: self.wake())
        try:
            server = await self.loop.create_unix_server(lambda: _Local(self), str(path))
            path.chmod(0o600)
            self._open.set()
            while not self.stopping:
                self._woken.clear()
                began = self.dispatcher.begin()
                if began is not None:
                    turn, future = began
                    written = asyncio.wrap_future(future)
                    await asyncio.wait({written})
                    written.exception()  # finish() looks at it itself
                    self.dispatcher.finish(turn, future)
                    continue
                await set_within(self._woken, _LOOK_S)
            server.close()
            path.unlink(missing_ok=True)
        finally:
            end()
            for agent in self.dispatcher.agents.values():
                if agent.link is not None:
                    agent.link.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            await asyncio.sleep(0)

    def hear(self, link: _Line, line: bytes | str) -> None:
        """One message of an agent, in the dispatcher's thread.  What it cannot mean ends the connection."""
        try:
            message = protocol.from_agent(line)
        except protocol.ProtocolError as error:
            link.send(protocol.Refused(why=str(error)))
            link.close()
            return
        if isinstance(message, protocol.Log):
            self._log(link, message)
        else:
            self.dispatcher.hear(link, message)

    def _log(self, link: _Line, message: protocol.Log) -> None:
        size = message.offset + len(message.data)
        if self.dispatcher.owns(link, message.attempt):
            try:
                size = self.lab.logs.write(message.attempt, message.offset, message.data.encode("latin-1"))
            except (OSError, UnicodeEncodeError) as error:
                log.error("log of attempt %d: %s", message.attempt, error)
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    # The agent has it still, and its result waits for it as it waits for the database.
                    self.dispatcher.put_off(message.attempt)
                    size = self.lab.logs.size(message.attempt)
                    self.loop.call_later(_NO_ROOM_S, link.send, protocol.LogTaken(attempt=message.attempt, size=size))
                    return
        # A log that is nobody's any more, or on a disk that is broken, is taken and dropped: its agent can go on.
        link.send(protocol.LogTaken(attempt=message.attempt, size=size))


class _Line:
    """What both kinds of connections are for the dispatcher (lab.dispatcher.Link)."""

    local = False
    process: Process | None = None

    def send(self, message: protocol.FromLab) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Local(_Line, asyncio.Protocol):
    """An agent on this machine."""

    local = True

    def __init__(self, part: Dispatching) -> None:
        self._part = part
        self._buffer = bytearray()
        self._ending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer: socket.socket = transport.get_extra_info("socket")
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            transport.abort()
            return
        self.process = Process.of(pid) if pid > 0 else None  # 0: in a namespace that is not seen from here

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._part.hear(self, line)
        if len(self._buffer) > protocol.MAX_MESSAGE:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._part.stopping:
            self._part.dispatcher.hear(self, None)
            self._ending = self._part.loop.create_task(self._end())

    async def _end(self) -> None:
        """A killed process closes its files a moment before it is gone.  One that takes longer is seen at a look."""
        for _ in range(round(_DYING_S / 0.002)):
            if self.process is None or self.process.gone():
                self._part.wake()
                return
            await asyncio.sleep(0.002)

    def send(self, message: protocol.FromLab) -> None:
        if not self._transport.is_closing():
            self._transport.write(protocol.encode(message))

    def close(self) -> None:
        self._transport.close()


class Remote(_Line):
    """An agent elsewhere.  ``send_text``, ``hang_up``: of its WebSocket, safe to call from any thread."""

    def __init__(self, part: Dispatching, send_text: Callable[[str], None], hang_up: Callable[[], None]) -> None:
        self._part, self._send_text, self._hang_up = part, send_text, hang_up

    def send(self, message: protocol.FromLab) -> None:
        self._send_text(protocol.encode(message).decode())

    def close(self) -> None:
        self._hang_up()

    def heard(self, text: str | None) -> None:
        """From any thread; None: it has ended."""
        loop = self._part.loop
        with contextlib.suppress(RuntimeError):  # the dispatcher has ended; the agent will come again
            if text is None:
                loop.call_soon_threadsafe(self._part.dispatcher.hear, self, None)
            else:
                loop.call_soon_threadsafe(self._part.hear, self, text)


def part(lab: Lab, app: FastAPI) -> AbstractContextManager[Dispatching]:
    """For :mod:`evenkeel.lab.parts`."""
    del app
    return running(lab)
