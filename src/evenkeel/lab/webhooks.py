"""Events told to other programs: each as a signed POST, in order, at least once.

A receiver answers 2xx within seconds; otherwise the same event is sent again, later and later, and none after it until
then.  Who does not answer for a day is switched off, which is an event too.  What was sent is signed as
``HMAC-SHA256(key, timestamp + "." + body)``; the receiver drops numbers (``Evenkeel-Event-Seq``) that it has had.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI
from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import events
from evenkeel.lab.actor import SERVICE, Actor, NotFound
from evenkeel.lab.events import Event
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import webhook as _table
from evenkeel.lab.store import Away

_S = 10**9
#: Wait after the first failure; twice as long after each further one, up to the longest.
_FIRST_NS, _LONGEST_NS = 1 * _S, 600 * _S
GIVE_UP_NS = 86_400 * _S
_TIMEOUT_S = 5.0
_AT_ONCE = 8


class Webhook(Model):
    """``types``: of events, ``claim.*`` for all of a kind; ``last``: what the receiver answered, when it was no 2xx."""

    id: int
    url: str
    types: tuple[str, ...]
    made_by: str
    made_ns: int
    after: int
    failures: int
    failing_ns: int | None
    last: str
    off: bool


class NewWebhook(Model):
    """``key``: that deliveries are signed with."""

    webhook: Webhook
    key: str


# -- who is told ----------------------------------------------------------------------------------------------


def webhooks(lab: Lab, actor: Actor) -> tuple[Webhook, ...]:
    actor.need("people", "see webhooks")
    with lab.store.read() as connection:
        return tuple(_shown(row) for row in connection.execute(select(_table).order_by(_table.c.id)).mappings())


def add(lab: Lab, actor: Actor, url: str, types: Iterable[str]) -> NewWebhook:
    """Tell ``url`` of what is written from now on.  Raises WrongInput."""
    actor.need("people", "add webhooks")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise WrongInput(f"{url!r} is no address for a webhook", hint="as in https://chat.example.org/hooks/lab")
    chosen = sorted(set(types))
    if not chosen or any(not kind or len(kind) > 100 for kind in chosen):
        raise WrongInput("a webhook needs types of events", hint="as in claim.* or step.ended; * for all")
    # Of the address only this is told to all: the rest of it often is the secret.
    host, salt, now = parts.hostname, secrets.token_hex(16), lab.now()

    def change(connection: Connection) -> int:
        values = {"url": url, "types": chosen, "salt": salt, "made_by": actor.name, "made_ns": now, "next_ns": now}
        done = connection.execute(insert(_table).values(**values, after=0))
        made = int(done.inserted_primary_key[0])  # type: ignore[index]
        seq = lab.store.event(connection, actor.name, "webhook.added", "webhook", made, host=host, types=chosen)
        connection.execute(update(_table).where(_table.c.id == made).values(after=seq))
        return made

    made = lab.store.write(change)
    return NewWebhook(webhook=_get(lab, made), key=_key(lab, salt))


def remove(lab: Lab, actor: Actor, number: int) -> None:
    actor.need("people", "remove webhooks")

    def change(connection: Connection) -> None:
        if not connection.execute(delete(_table).where(_table.c.id == number)).rowcount:
            raise NotFound(f"there is no webhook {number}")
        lab.store.event(connection, actor.name, "webhook.removed", "webhook", number)

    lab.store.write(change)


def resume(lab: Lab, actor: Actor, number: int) -> Webhook:
    """Try again now, with what was missed; also when it was switched off."""
    actor.need("people", "resume webhooks")

    def change(connection: Connection) -> None:
        values = {"off": False, "failures": 0, "failing_ns": None, "next_ns": lab.now()}
        if not connection.execute(update(_table).where(_table.c.id == number).values(**values)).rowcount:
            raise NotFound(f"there is no webhook {number}")
        lab.store.event(connection, actor.name, "webhook.resumed", "webhook", number)

    lab.store.write(change)
    return _get(lab, number)


# -- telling --------------------------------------------------------------------------------------------------


def deliver(lab: Lab, number: int, client: httpx.Client) -> int:
    """Send one receiver what it has not had, until there is no more or it fails; returns how many it took."""
    sent = 0
    while not lab.stopping.is_set():
        with lab.store.read() as connection:
            row = connection.execute(select(_table).where(_table.c.id == number)).mappings().first()
        if row is None or row["off"] or row["next_ns"] > lab.now():
            return sent
        fresh = events.after(lab, row["after"], limit=100)
        if not fresh:
            return sent
        seen = row["after"]
        for one in fresh:
            if not _wanted(one, row["types"]):
                seen = one.seq
                continue
            if seen != row["after"]:  # what it does not want is behind it, whatever comes now
                _note(lab, number, {"after": seen})
            wrong = _send(lab, row, one, client)
            if wrong is not None:
                _failed(lab, row, wrong)
                return sent
            seen, sent = one.seq, sent + 1
            _note(lab, number, {"after": seen, "failures": 0, "failing_ns": None, "last": ""})
        _note(lab, number, {"after": seen})
    return sent


def _send(lab: Lab, row: RowMapping, one: Event, client: httpx.Client) -> str | None:
    """None: it took it; else why not."""
    body = one.model_dump_json().encode()
    stamp = str(lab.now() // _S)
    key = _key(lab, row["salt"]).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "evenkeel-lab",
        "Evenkeel-Event": one.type,
        "Evenkeel-Event-Seq": str(one.seq),
        "Evenkeel-Timestamp": stamp,
        "Evenkeel-Signature": "sha256=" + hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest(),
    }
    try:
        # A redirect is no receipt, and would lead anywhere.
        answer = client.post(row["url"], content=body, headers=headers, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    return None if answer.is_success else f"it answered {answer.status_code}"


def _failed(lab: Lab, row: RowMapping, why: str) -> None:
    now = lab.now()
    since, failures = row["failing_ns"] or now, row["failures"] + 1
    off = now - since >= GIVE_UP_NS
    wait = min(_FIRST_NS << min(failures - 1, 20), _LONGEST_NS)
    values = {"failures": failures, "failing_ns": since, "last": why[:500], "next_ns": now + wait, "off": off}

    def change(connection: Connection) -> None:
        connection.execute(update(_table).where(_table.c.id == row["id"]).values(**values))
        if off:
            lab.store.event(
                connection, SERVICE.name, "webhook.off", "webhook", row["id"], host=urlsplit(row["url"]).hostname
            )

    lab.store.write(change)


def _note(lab: Lab, number: int, values: dict[str, object]) -> None:
    lab.store.write(lambda c: c.execute(update(_table).where(_table.c.id == number).values(**values)) and None)


def _wanted(one: Event, types: Iterable[str]) -> bool:
    return any(one.type == kind or (kind.endswith("*") and one.type.startswith(kind[:-1])) for kind in types)


class Teller:
    """Tells all receivers, each by itself: one that hangs holds up nobody else."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._more = threading.Event()
        self._busy: set[int] = set()
        self._pool = ThreadPoolExecutor(_AT_ONCE, "webhook")
        self._client = httpx.Client(timeout=_TIMEOUT_S)
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._ended = False
        self._end_listening = lab.store.listen(lambda _: self._more.set())
        self._thread.start()

    def close(self) -> None:
        self._ended = True
        self._more.set()
        self._thread.join()
        self._end_listening()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _work(self) -> None:
        while not self._ended:
            now = self._lab.now()
            query = select(_table.c.id, _table.c.next_ns).where(_table.c.off.is_(False))
            # A database that is away has nothing to tell; when it is back, all that was missed is told.
            with contextlib.suppress(Away), self._lab.store.read() as connection:
                for number, next_ns in connection.execute(query).all():
                    if next_ns <= now and number not in self._busy:
                        self._busy.add(number)
                        self._pool.submit(self._one, number)
            self._more.wait(1)
            self._more.clear()

    def _one(self, number: int) -> None:
        try:
            deliver(self._lab, number, self._client)
        finally:
            self._busy.discard(number)


@contextlib.contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Teller]:
    """For :mod:`evenkeel.lab.parts`."""
    del app
    teller = Teller(lab)
    try:
        yield teller
    finally:
        teller.close()


# -- rows and keys --------------------------------------------------------------------------------------------


def _key(lab: Lab, salt: str) -> str:
    """Of one webhook: nothing in the database is enough to sign with."""
    path = lab.folder / "webhook.key"
    try:
        own = path.read_text(encoding="ascii")
    except FileNotFoundError:
        own = secrets.token_urlsafe(32)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(own)
    return hmac.new(own.encode(), f"webhook {salt}".encode(), hashlib.sha256).hexdigest()


def _get(lab: Lab, number: int) -> Webhook:
    with lab.store.read() as connection:
        return _shown(connection.execute(select(_table).where(_table.c.id == number)).mappings().one())


def _shown(row: RowMapping) -> Webhook:
    return Webhook(**{name: row[name] for name in Webhook.model_fields if name != "types"}, types=tuple(row["types"]))
