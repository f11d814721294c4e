"""`evenkeel lab up`: one process that holds the lab's folder, its database, its parts and its web server.

Order up: folder and lock, database and its migration, the right to write, parts, sockets.  Down is the same backwards,
on Ctrl-C, SIGTERM and errors alike.  On PostgreSQL a second service stands by: it answers readers, refuses writers, and
takes over when the first one's right to write ends (:mod:`evenkeel.lab.active`).
Prints nothing; what happens is told to ``say``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from evenkeel.errors import WrongInput
from evenkeel.lab import active, migrate, people, place, settings
from evenkeel.lab import folder as folders
from evenkeel.lab.api.app import create_app
from evenkeel.lab.api.server import Server
from evenkeel.lab.api.who import Identify
from evenkeel.lab.lab import Lab
from evenkeel.lab.parts import running
from evenkeel.lab.settings import Settings
from evenkeel.lab.store import Away, Store, sqlite_url, telling

Say = Callable[[str], None]
_SWITCH_S = 0.0005


def session_key(folder: Path) -> str:
    """What sessions are signed with; made once.  Whoever removes the file logs everybody out."""
    path = folder / "session.key"
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_urlsafe(32))
        return path.read_text(encoding="ascii")


# -- the database -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(folder: Path, chosen: Settings) -> Iterator[Store]:
    """The store of a folder.  Raises Away when its database does not answer."""
    url = chosen.database or sqlite_url(folder / "lab.db")
    with Store(url) as store:
        try:
            with store.read():
                pass
        except Away as error:
            raise Away(error.message, hint="is its URL right, and does its server run?") from None
        yield store


# -- sockets ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sockets(folder: Path, chosen: Settings) -> Iterator[list[socket.socket]]:
    """The Unix socket, for all users of this machine that reach the folder, and the address of the pages."""
    path = place.socket_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(os.fsencode(path)) > 107:
        raise WrongInput(
            f"the path of the socket is too long for the kernel: {path}", hint="--folder DIR, a shorter one"
        )
    with contextlib.ExitStack() as stack:
        path.unlink(missing_ok=True)
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(path))
        # Who is at the other end is asked of the kernel, so everybody may knock.
        path.chmod(0o666)
        stack.callback(path.unlink, missing_ok=True)
        host, port = settings.address_of(chosen.listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        web = stack.enter_context(socket.socket(family))
        web.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            web.bind((host, port))
        except OSError as error:
            raise WrongInput(
                f"cannot listen on {chosen.listen}: {error.strerror or error}",
                hint="--listen ADDRESS:PORT names another",
            ) from None
        yield [local, web]


def web_address(web: socket.socket) -> str:
    host, port = web.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


# -- up -----------------------------------------------------------------------------------------------------------


@dataclass
class Up:
    """A service that answers.  ``url``: of the pages; ``active``: set while this one may write.

    ``settled``: set when it is known whether it is active or stands by; ``since_ns``: by the steady clock.
    """

    lab: Lab
    app: FastAPI
    url: str
    server: Server
    since_ns: int
    active: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)

    def own_link(self) -> str:
        """A link that logs the service's own user in to the pages."""
        actor = people.local_actor(self.lab, os.geteuid())
        return f"{self.url}/login/link/{self.app.state.links.make(actor)}"


def up(folder: Path, chosen: Settings, *, say: Say, ready: Callable[[Up], None] = lambda service: None) -> None:
    """Run until SIGINT, SIGTERM, or an error that it cannot go on with.

    ``ready``: called when the sockets are open.  Raises HeldElsewhere, WrongInput, Unreachable, LostHold.
    """
    # A thread that computes (forecasts, pages) holds Python's lock for so long while others wait for it; a start takes
    # the lock some twenty times, once after each statement, and 5 ms each, which is usual, would be its whole time.
    sys.setswitchinterval(_SWITCH_S)
    folders.prepare(folder)
    ended: list[Exception] = []
    with folders.locked(folder, chosen.listen), contextlib.ExitStack() as stack:
        store = stack.enter_context(opened(folder, chosen))
        sockets = stack.enter_context(_sockets(folder, chosen))
        lab = Lab(folder, store, chosen)
        app = create_app(lab, who=Identify(lab), key=session_key(folder))
        server = Server(app, lab.stopping)
        service = Up(lab, app, chosen.url or web_address(sockets[1]), server, lab.steady())
        app.state.service = service
        if store.engine.dialect.name == "sqlite":
            migrate.migrate(store)
        _guard_signals(stack, server)
        work = threading.Thread(target=_work, args=(service, say, ended), name="lab-work")
        work.start()
        stack.callback(work.join)
        stack.callback(lab.stopping.set)
        for sock in sockets:
            sock.listen(100)  # so that who is told that it is ready finds it so
        service.settled.wait()
        if not ended:
            ready(service)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_on(sockets)
    if ended:
        raise ended[0]


def _guard_signals(stack: contextlib.ExitStack, server: Server) -> None:
    """It ends the server before uvicorn listens, too; uvicorn raises it again at its end, when it must not kill."""
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, lambda *_: server.stop())
        stack.callback(signal.signal, signal.SIGTERM, before)


def _work(service: Up, say: Say, ended: list[Exception]) -> None:
    """Wait for the right to write, migrate, run the parts; end the server when that right is another's."""
    lab, name = service.lab, f"lab {service.url}"
    try:
        if not active.wait_for(lab, name, say, waits=service.settled.set):
            return
        with telling():
            before = migrate.migrate(lab.store)
        if before not in (None, migrate.known()[-1]):
            say(f"database migrated from version {before}")
        with running(lab, service.app) as check_parts:
            service.active.set()
            service.settled.set()
            active.keep(lab, name, say, check_parts, service.active)
    except Exception as error:  # noqa: BLE001  told when the server has ended
        ended.append(error)
    finally:
        service.active.clear()
        service.settled.set()
        service.server.stop()
