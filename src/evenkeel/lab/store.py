"""The database of the lab: one writer that commits many changes at once, any number of readers, one ordered event log.

SQLite (WAL, synchronous=FULL) or PostgreSQL, by URL.  A change is a function of a connection; it runs in the writer's
thread, inside a savepoint, together with all other changes that wait, and its caller is answered after the commit.  So
an acknowledged change is on disk, a failed one leaves nothing, and a hundred callers cost one fsync.
Knows tables and events; knows nothing of machines or steps.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event, func, insert, select, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from evenkeel.errors import EvenkeelError, Unreachable, WrongInput
from evenkeel.lab import schema
from evenkeel.lab.clocks import now_ns, steady_ns

T = TypeVar("T")
#: Run within the next change of this context, in its transaction: notes that a request was carried out.
ALONGSIDE: ContextVar[Callable[[Connection], None] | None] = ContextVar("alongside", default=None)
#: Changes of one commit at most: one of them should not wait for thousands of others.
_TOGETHER = 500


class StoreClosed(EvenkeelError):
    """The service is going down; nothing was changed."""

    http_status = 503


class Away(Unreachable):
    """The database does not answer, or cannot write now.  What was asked was not acknowledged; try again later.

    Of a commit whose connection broke it is not known whether it was done: who must know sends an Idempotency-Key.
    """

    http_status = 503


class LostHold(Away):
    """Another service may be the active one by now, so nothing is written any more."""


#: The advisory lock of PostgreSQL that the active service holds: "evenkeel" as a number.
_HOLD = 0x6576_656E_6B65_656C


class Store:
    """``url``: ``sqlite:///path`` or ``postgresql://user@host/name``.  Raises WrongInput when it cannot be one.

    ``clock``, ``steady``: wall time and time that passes, of the lab whose store it is (:mod:`evenkeel.lab.clocks`).
    """

    def __init__(
        self, url: str | URL, *, clock: Callable[[], int] = now_ns, steady: Callable[[], int] = steady_ns
    ) -> None:
        self.clock, self.steady = clock, steady
        self.engine = _engine(url)
        # Without a word PostgreSQL gives each statement a view of its own; a transaction of SQLite has one.
        of_its_own = {} if self.engine.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        self._readers = self.engine.execution_options(**of_its_own)
        self._changes: queue.SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._told = threading.Condition()
        self._listeners: list[Callable[[int], None]] = []
        self._held: Connection | None = None
        #: How often the right to write was got: whoever keeps in memory what is in the database reads it anew then.
        self.holds = 0
        self._held_ns = 0
        self._closing = threading.Lock()
        self._closed = False
        self._writer = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What was asked before is still written."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._changes.put(None)
        self._writer.join()
        if self._held is not None:
            self._held.close()
        self.engine.dispose()

    # -- reading and writing --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view, of all statements; never waits for the writer.  Raises Away."""
        with telling(), self._readers.connect() as connection:
            yield connection

    def write(self, change: Callable[[Connection], T]) -> T:
        """Run ``change`` in the writer; return what it returned once that is on disk, raise what it raised."""
        return self.write_soon(change).result()

    def write_soon(self, change: Callable[[Connection], T]) -> Future[T]:
        """The same without waiting: the future is done after the commit.  For asyncio: ``asyncio.wrap_future``."""
        future: Future[T] = Future()
        if (also := ALONGSIDE.get()) is not None:
            change = _both(change, also)
        with self._closing:
            if self._closed:
                raise StoreClosed("the lab's service is stopping")
            self._changes.put((change, future))
        return future

    def event(
        self, connection: Connection, actor: str, type_: str, object_: str, object_id: object, **data: Any
    ) -> int:
        """Append to the one log, within a change; returns its number.  ``data`` is kept as JSON: no secrets."""
        row = {
            "at_ns": self.clock(),
            "actor": actor,
            "type": type_,
            "object": object_,
            "object_id": str(object_id),
            "data": data,
        }
        done = connection.execute(_INSERT_EVENT, row)
        seq = int(done.inserted_primary_key[0])  # type: ignore[index]
        connection.info["last_seq"] = max(seq, connection.info.get("last_seq", 0))
        return seq

    def events(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        """Append many at once, as whole rows; for who has thousands a second."""
        done = connection.execute(_INSERT_EVENT, rows)
        last = connection.scalar(_LAST_EVENT) if len(rows) > 1 else done.inserted_primary_key[0]  # type: ignore[index]
        connection.info["last_seq"] = last

    # -- one active service on one database --------------------------------------------------------------------

    def try_hold(self, name: str) -> bool:
        """Become the one service that writes to this database; False: another one is (see :meth:`holder`).

        On PostgreSQL the lock belongs to the connection that all changes go through: whoever loses one has lost the
        other, so that two can never write.  SQLite: always True; the folder's lock file keeps others away.
        ``name``: told to those who stand by.
        """
        if not self.shared or (self._held is not None and not self._held.invalidated):
            return True
        began_ns = self.steady()
        with telling():
            connection = self.engine.connect()
            try:
                connection.execute(_SESSION, {"name": name[:63]})
                held = bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _HOLD}).scalar())
                connection.commit()
            except BaseException:
                connection.close()
                raise
        if held:
            self.holds += 1
            before = self._held
            self._held, self._held_ns = connection, began_ns
            if before is not None:
                before.close()
        else:
            connection.invalidate()  # its name must not stay in the pool
            connection.close()
        return held

    @property
    def lost(self) -> bool:
        """The right to write was held, and is lost; see :meth:`try_hold`."""
        return self._held is not None and self._held.invalidated

    @staticmethod
    def hold_lost() -> LostHold:
        return LostHold(
            "the connection to the database was lost, and the right to write with it",
            hint="the service asks for it again by itself; does PostgreSQL run? `systemctl status postgresql`",
        )

    @property
    def shared(self) -> bool:
        """Whether a service on another machine can take over."""
        return self.engine.dialect.name == "postgresql"

    def held_within(self, length_ns: int) -> bool:
        """Whether it is certain that this was the active service at some moment of the last ``length_ns``.

        Certain is a commit through the connection that has the lock, from before it began.  The clock is this
        process's own: the lock has no time in it, and PostgreSQL's ``now()`` is a wall clock that jumps like any other.
        """
        return self._held is None or self.steady() - self._held_ns <= length_ns

    def check_hold(self) -> None:
        """Raises LostHold when another service could be active by now."""
        if self._held is not None:

            def ask(connection: Connection) -> None:
                connection.execute(text("SELECT 1"))

            try:
                self.write(ask)
            except Away:
                if not self.lost:  # a commit that failed for another reason: the next one will show
                    return
                raise self.hold_lost() from None

    def holder(self) -> str | None:
        """Name of the active service on this database; None: none, or SQLite."""
        if not self.shared:
            return None
        query = text(
            "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
            "AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND (classid::bigint << 32) + objid::bigint = :key"
        )
        with self.read() as connection:
            name = connection.execute(query, {"key": _HOLD}).scalar()
        return None if name is None else str(name)

    def _cause(self, error: Exception) -> Exception:
        """Of a change or a commit that failed, as its callers should know it."""
        if isinstance(error, SQLAlchemyError) and self.lost:
            return self.hold_lost()
        return (away(error) if isinstance(error, DBAPIError) else None) or error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        held = self._held
        if held is None:
            with self.engine.connect() as connection, connection.begin():
                yield connection
            return
        if held.invalidated:  # SQLAlchemy would connect anew by itself, without the lock
            raise self.hold_lost()
        with held.begin():
            yield held

    # -- who waits for events -------------------------------------------------------------------------------------

    def listen(self, told: Callable[[int], None]) -> Callable[[], None]:
        """Call ``told(last event number)`` after each commit that had events, in the writer's thread: be quick there.

        Returns what ends it."""
        self._listeners.append(told)
        return lambda: self._listeners.remove(told)

    # -- the writer -----------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        last = False
        while not last:
            first = self._changes.get()
            if first is None:
                return
            batch = [first]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _TOGETHER:
                    more = self._changes.get_nowait()
                    if more is None:
                        last = True
                        break
                    batch.append(more)
            self._commit(batch)

    def _commit(self, batch: list[tuple[Callable[[Connection], Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        seq, began_ns = 0, self.steady()
        try:
            with self._writing() as connection:
                connection.info["last_seq"] = 0
                # A change that is alone is taken back with the whole transaction.
                part = connection.begin_nested if len(batch) > 1 else contextlib.nullcontext
                for change, future in batch:
                    if not future.set_running_or_notify_cancel():
                        continue
                    try:
                        with part():
                            result = change(connection)
                    except Exception as error:
                        future.set_exception(self._cause(error))
                        if len(batch) == 1 or not _lives(connection):
                            raise
                    else:
                        done.append((future, result))
                seq = connection.info["last_seq"]
        except Exception as raw:  # noqa: BLE001  the commit itself: a full disk, a lost server; nobody was answered yet
            cause = self._cause(raw)
            for future, _ in done:
                future.set_exception(cause)
            for _, future in batch:
                if not future.done():
                    future.set_exception(cause)
            return
        self._held_ns = began_ns
        for future, result in done:
            future.set_result(result)
        if seq:
            for told in list(self._listeners):
                told(seq)


_INSERT_EVENT = insert(schema.event)
_LAST_EVENT = select(func.max(schema.event.c.seq))


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Errors of a database that is away, or of its disk, as :class:`Away`."""
    try:
        yield
    except DBAPIError as error:
        told = away(error)
        if told is None:
            raise
        raise told from error


def away(error: DBAPIError) -> Away | None:
    """What to tell of an error of the database or its disk; None: it is about the question, and a defect of ours."""
    cause = error.orig
    if isinstance(cause, sqlite3.OperationalError):
        known = _OF_SQLITE.get(cause.sqlite_errorcode & 0xFF)  # the primary code: https://sqlite.org/rescode.html
        return None if known is None else Away(f"the lab's database: {cause}", hint=known)
    if isinstance(error, OperationalError) or error.connection_invalidated:
        first = (str(cause).strip().splitlines() or ["it does not answer"])[0]
        return Away(
            f"the database does not answer: {first}",
            hint="does PostgreSQL run? `systemctl status postgresql`; the lab goes on by itself when it does",
        )
    return None


MAKE_ROOM = "make room on the disk of the lab's folder (`df`); it goes on by itself"
_LOOK_AT_DISK = "look at the disk of the lab's folder (`dmesg`, `df`)"
#: Hints for what SQLite says of its files; what it says of statements is not among them.
_OF_SQLITE = {
    sqlite3.SQLITE_FULL: MAKE_ROOM,
    sqlite3.SQLITE_IOERR: _LOOK_AT_DISK,
    sqlite3.SQLITE_CANTOPEN: _LOOK_AT_DISK,
    sqlite3.SQLITE_READONLY: _LOOK_AT_DISK,
    sqlite3.SQLITE_BUSY: "somebody else writes to the lab's database: only its service should",
}


def _lives(connection: Connection) -> bool:
    """False: SQLite took the whole transaction back (a full disk), with what the changes before had written; or the
    connection is gone."""
    if connection.invalidated:
        return False
    driver: Any = connection.connection.dbapi_connection
    return connection.dialect.name != "sqlite" or bool(driver.in_transaction)


def _both(change: Callable[[Connection], T], also: Callable[[Connection], None]) -> Callable[[Connection], T]:
    def both(connection: Connection) -> T:
        result = change(connection)
        also(connection)
        return result

    return both


def create(store: Store) -> None:
    """Make all tables of an empty database, for tests; a service migrates (:mod:`evenkeel.lab.migrate`)."""
    schema.metadata.create_all(store.engine)


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise WrongInput(
            f"{url!r} is no database URL", hint="sqlite:///lab.db or postgresql://user@host/name"
        ) from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if kind == "postgresql":
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=_POSTGRES)
    raise WrongInput(f"no database of the lab: {kind}", hint="sqlite:///lab.db or postgresql://user@host/name")


#: A server or a network that vanished without a word is noticed within half a minute, at both ends: the lock of a
#: service that is cut off must not keep for hours the one that stands by from taking over.  (libpq's connection
#: parameters, and the server's tcp_keepalives_*; sockets of Unix ignore them.)
_POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_SESSION = text(
    "SELECT set_config('application_name', :name, false), set_config('tcp_keepalives_idle', '10', false), "
    "set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '3', false)"
)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver's own idea of transactions breaks savepoints (SQLAlchemy's documentation of pysqlite).
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
