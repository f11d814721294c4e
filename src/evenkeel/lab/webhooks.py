"""Events told to other programs: each as a signed POST, in order, at least once.

A receiver answers 2xx within seconds; otherwise the same event is sent again, later and later, and none after it until
then.  Who does not answer for a day is switched off, which is an event too.  What was sent is signed as
``HMAC-SHA256(key, timestamp + "." + body)``; the receiver drops numbers (``Evenkeel-Event-Seq``) that it has had.
The last deliveries of each are kept, with what became of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
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
from evenkeel.lab.paging import Page, key_of, page
from evenkeel.lab.schema import webhook as _table
from evenkeel.lab.schema import webhook_delivery as _delivery
from evenkeel.lab.store import Away
from evenkeel.lab.words import cause

_S = 10**9
#: Wait after the first failure; twice as long after each further one, up to the longest.
_FIRST_NS, _LONGEST_NS = 1 * _S, 600 * _S
GIVE_UP_NS = 86_400 * _S
_TIMEOUT_S = 5.0
_AT_ONCE = 8
#: Deliveries that are kept of each.
KEPT = 100
#: What a delivery is that was only asked for to try the receiver: no number, so that no receiver skips one for it.
TRIAL = "webhook.test"


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


class Delivery(Model):
    """``seq``: of the event, 0: only a test; ``status``: of the answer; ``wrong``: empty when it was taken."""

    id: int
    at_ns: int
    seq: int
    type: str
    status: int | None
    took_ns: int
    wrong: str


class NewWebhook(Model):
    """``key``: that deliveries are signed with."""

    webhook: Webhook
    key: str


# -- who is told ----------------------------------------------------------------------------------------------


def webhooks(lab: Lab, actor: Actor) -> tuple[Webhook, ...]:
    actor.need("people", "see webhooks")
    with lab.store.read() as connection:
        return tuple(_shown(row) for row in connection.execute(select(_table).order_by(_table.c.id)).mappings())


def webhook(lab: Lab, actor: Actor, number: int) -> Webhook:
    """Raises NotFound."""
    actor.need("people", "see webhooks")
    return _get(lab, number)


def deliveries(lab: Lab, actor: Actor, number: int, *, after: str | None = None, limit: int = KEPT) -> Page[Delivery]:
    """The newest first, tests too; of a receiver the last hundred are kept.  Raises NotFound."""
    actor.need("people", "see webhooks")
    _get(lab, number)
    query = select(_delivery).where(_delivery.c.webhook_id == number).order_by(_delivery.c.id.desc()).limit(limit + 1)
    if key := key_of(after, int):
        query = query.where(_delivery.c.id < key[0])
    with lab.store.read() as connection:
        rows = [_delivered(row) for row in connection.execute(query).mappings()]
    return page(rows, limit, lambda row: [row.id])


def add(lab: Lab, actor: Actor, url: str, types: Iterable[str]) -> NewWebhook:
    """Tell ``url`` of what is written from now on.  Raises WrongInput."""
    actor.need("people", "add webhooks")
    host = _host_of(url)
    chosen = sorted(set(types))
    if not chosen:
        raise WrongInput("a webhook needs types of events", hint="as in claim.* or step.failed; * for all")
    for kind in chosen:
        events.check_type(kind)
    salt, now = secrets.token_hex(16), lab.now()

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
        connection.execute(delete(_delivery).where(_delivery.c.webhook_id == number))
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


def test(lab: Lab, actor: Actor, number: int) -> Delivery:
    """Send one signed event that means nothing, now, also to one that is off; waits for the answer, 5 s at most.

    Moves nothing: what the receiver has not had yet still comes in order.  Raises NotFound.
    """
    actor.need("people", "test webhooks")
    with lab.store.read() as connection:
        row = connection.execute(select(_table).where(_table.c.id == number)).mappings().first()
    if row is None:
        raise NotFound(f"there is no webhook {number}")
    data = {"by": actor.name, "why": "somebody tries whether you receive"}
    trial = Event(
        seq=0, at_ns=lab.now(), actor=actor.name, type=TRIAL, object="webhook", object_id=str(number), data=data
    )
    with httpx.Client(timeout=_TIMEOUT_S) as client:
        sent = _send(lab, row, trial, client)

    def change(connection: Connection) -> Delivery:
        if connection.scalar(select(_table.c.id).where(_table.c.id == number)) is None:
            raise NotFound(f"there is no webhook {number} any more")
        kept = _keep(connection, number, sent)
        lab.store.event(connection, actor.name, "webhook.tested", "webhook", number, taken=not sent["wrong"])
        return kept

    return lab.store.write(change)


# -- telling --------------------------------------------------------------------------------------------------


def deliver(lab: Lab, number: int, client: httpx.Client) -> int:
    """Send one receiver what it has not had, until there is no more or it fails; returns how many it took."""
    sent = 0
    while not lab.stopping.is_set():
        with lab.store.read() as connection:
            row = connection.execute(select(_table).where(_table.c.id == number)).mappings().first()
        if row is None or row["off"] or not _due(row["next_ns"], lab.now()):
            return sent
        fresh = events.after(lab, row["after"], limit=100)
        if not fresh:
            return sent
        seen = row["after"]
        for one in fresh:
            if not events.wanted(one.type, row["types"]):
                seen = one.seq
                continue
            if seen != row["after"]:  # what it does not want is behind it, whatever comes now
                _note(lab, number, {"after": seen})
            told = _send(lab, row, one, client)
            if told["wrong"]:
                _failed(lab, row, told)
                return sent
            seen, sent = one.seq, sent + 1
            _note(lab, number, {"after": seen, "failures": 0, "failing_ns": None, "last": ""}, told)
        _note(lab, number, {"after": seen})
    return sent


def _due(next_ns: int, now: int) -> bool:
    """Also when it is further away than any pause: then the clock was set back."""
    return not now < next_ns <= now + _LONGEST_NS


def _send(lab: Lab, row: RowMapping, one: Event, client: httpx.Client) -> dict[str, Any]:
    """What is kept of it, as columns of a delivery; ``wrong`` is empty when the receiver took it."""
    body = one.model_dump_json().encode()
    at_ns = lab.now()
    stamp = str(at_ns // _S)
    key = _key(lab, row["salt"]).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "evenkeel-lab",
        "Evenkeel-Event": one.type,
        "Evenkeel-Event-Seq": str(one.seq),
        "Evenkeel-Timestamp": stamp,
        "Evenkeel-Signature": "sha256=" + hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest(),
    }
    begin, status, wrong = time.monotonic_ns(), None, ""
    try:
        # A redirect is no receipt, and would lead anywhere.
        answer = client.post(row["url"], content=body, headers=headers, follow_redirects=False)
        status, wrong = answer.status_code, "" if answer.is_success else f"it answered {answer.status_code}"
    except httpx.TimeoutException:
        wrong = f"no answer within {_TIMEOUT_S:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        wrong = cause(error)
    took_ns = time.monotonic_ns() - begin
    told = {"at_ns": at_ns, "seq": one.seq, "type": one.type, "status": status, "took_ns": took_ns}
    return told | {"wrong": wrong[:500]}


def _failed(lab: Lab, row: RowMapping, told: dict[str, Any]) -> None:
    now = lab.now()
    since, failures = row["failing_ns"] or now, row["failures"] + 1
    off = now - since >= GIVE_UP_NS
    wait = min(_FIRST_NS << min(failures - 1, 20), _LONGEST_NS)
    values = {"failures": failures, "failing_ns": since, "last": told["wrong"], "next_ns": now + wait, "off": off}

    def change(connection: Connection) -> None:
        if not connection.execute(update(_table).where(_table.c.id == row["id"]).values(**values)).rowcount:
            return  # removed meanwhile
        _keep(connection, row["id"], told)
        if off:
            lab.store.event(
                connection, SERVICE.name, "webhook.off", "webhook", row["id"], host=urlsplit(row["url"]).hostname
            )

    lab.store.write(change)


def _note(lab: Lab, number: int, values: dict[str, object], told: dict[str, Any] | None = None) -> None:
    def change(connection: Connection) -> None:
        there = connection.execute(update(_table).where(_table.c.id == number).values(**values)).rowcount
        if there and told is not None:
            _keep(connection, number, told)

    lab.store.write(change)


def _keep(connection: Connection, number: int, told: dict[str, Any]) -> Delivery:
    """Write down what was sent, and forget the oldest."""
    done = connection.execute(insert(_delivery).values(**told, webhook_id=number))
    made = int(done.inserted_primary_key[0])  # type: ignore[index]
    mine = select(_delivery.c.id).where(_delivery.c.webhook_id == number).order_by(_delivery.c.id.desc())
    oldest = connection.scalar(mine.offset(KEPT).limit(1))
    if oldest is not None:
        connection.execute(delete(_delivery).where(_delivery.c.webhook_id == number, _delivery.c.id <= oldest))
    return Delivery(id=made, **told)


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
                    if _due(next_ns, now) and number not in self._busy:
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
        row = connection.execute(select(_table).where(_table.c.id == number)).mappings().first()
    if row is None:
        raise NotFound(f"there is no webhook {number}")
    return _shown(row)


def _shown(row: RowMapping) -> Webhook:
    return Webhook(**{name: row[name] for name in Webhook.model_fields if name != "types"}, types=tuple(row["types"]))


def _delivered(row: RowMapping) -> Delivery:
    return Delivery(**{name: row[name] for name in Delivery.model_fields})


def _host_of(url: str) -> str:
    """Of the address only this is told to all: the rest of it often is the secret.  Raises WrongInput."""
    hint = "as in https://chat.example.org/hooks/lab"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise WrongInput(f"{url!r} is no address for a webhook: {error}", hint=hint) from None
    if parts.scheme not in ("http", "https") or not host or any(letter.isspace() for letter in url):
        raise WrongInput(f"{url!r} is no address for a webhook", hint=hint)
    if parts.username:
        raise WrongInput("an address with a name and password is no address for a webhook", hint=hint)
    return host
