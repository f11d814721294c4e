"""Webhooks: other programs are told of events of the lab, each of them in order, at least once, signed.

A POST carries up to :data:`TOGETHER` events.  One that is not answered with 2xx is repeated, at longer and longer
intervals, and given up after :data:`GIVE_UP_NS`.  Nothing is lost meanwhile: the log is the queue.
Who may make one decides where the service sends requests to, so that is ``people`` (admins).
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
import logging
import re
import secrets as random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import httpx
from fastapi import FastAPI
from pydantic import Field
from sqlalchemy import Connection, Row, delete, insert, select, update

from evenkeel import __version__
from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, Unreachable, WrongInput
from evenkeel.lab import events, secrets
from evenkeel.lab.actor import SERVICE, Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import webhook as _webhook

_log = logging.getLogger(__name__)
TOGETHER = 100
_MINUTE = 60 * 10**9
#: First repetition, doubled each time up to an hour.
_AGAIN_NS, _MOST_NS = 10 * 10**9, 60 * _MINUTE
GIVE_UP_NS = 3 * 24 * 60 * _MINUTE
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
#: How long the part sleeps if no event wakes it, and at most how many are sent at once.
_LOOK_S, _AT_ONCE = 5.0, 4
#: Events of so long go together.
_GATHER_S = 0.1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_TYPE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*(\.\*)?|\*")
SIGNATURE = "Evenkeel-Signature"


class Wanted(Model):
    """``types``: of events, as in ``claim.*``; ``*`` is all of them."""

    name: Annotated[str, Field(max_length=80)]
    url: Annotated[str, Field(max_length=2000)]
    types: Annotated[list[Annotated[str, Field(max_length=80)]], Field(min_length=1, max_length=50)] = ["*"]


class Webhook(Model):
    """``seq``: it was told of all events up to this one.  ``error``: of the last try, empty when it worked."""

    name: str
    url: str
    types: tuple[str, ...]
    owner: str
    made_ns: int
    state: Literal["active", "paused", "given up"]
    seq: int
    told_ns: int | None
    failing_since_ns: int | None
    failures: int
    next_ns: int
    error: str


class Made(Model):
    """``secret``: shown once; whoever listens checks the signature with it."""

    webhook: Webhook
    secret: str


# -- for people ---------------------------------------------------------------------------------------------------


def listing(lab: Lab, actor: Actor) -> tuple[Webhook, ...]:
    """By name.  Their addresses are for those only who may make them."""
    actor.need("people", "see webhooks")
    with lab.store.read() as connection:
        return tuple(_shown(row) for row in connection.execute(select(_webhook).order_by(_webhook.c.name)))


def add(lab: Lab, actor: Actor, wanted: Wanted) -> Made:
    """It is told of what happens from now on.  Raises WrongInput, Conflict."""
    actor.need("people", "make webhooks")
    if not _NAME.fullmatch(wanted.name):
        raise WrongInput(f"{wanted.name!r} is no name of a webhook", hint="letters, digits, . _ and -")
    _need_address(wanted.url)
    for one in wanted.types:
        if not _TYPE.fullmatch(one):
            raise WrongInput(f"{one!r} is no type of event", hint="as in claim.*, machine.state or *")
    with lab.store.read() as connection:
        if connection.scalar(select(_webhook.c.name).where(_webhook.c.name == wanted.name)) is not None:
            raise Conflict(f"there is a webhook {wanted.name} already")
    secret = random.token_urlsafe(32)
    secrets.put(lab, SERVICE, _secret_of(wanted.name), "", secret)
    row: dict[str, Any] = {
        "name": wanted.name,
        "url": wanted.url,
        "types": wanted.types,
        "secret": _secret_of(wanted.name),
    }
    row |= {"owner": actor.name, "made_ns": lab.now(), "state": "active"}

    def change(connection: Connection) -> None:
        if connection.scalar(select(_webhook.c.name).where(_webhook.c.name == wanted.name)) is not None:
            raise Conflict(f"there is a webhook {wanted.name} already")
        seq = lab.store.event(connection, actor.name, "webhook.made", "webhook", wanted.name, types=wanted.types)
        connection.execute(insert(_webhook).values(row | {"seq": seq}))

    lab.store.write(change)
    return Made(webhook=_one(lab, wanted.name), secret=secret)


def resume(lab: Lab, actor: Actor, name: str) -> Webhook:
    """Try again at once: after it was given up or paused, it goes on where it was."""
    values = {"state": "active", "failures": 0, "failing_since_ns": None, "next_ns": 0, "error": ""}
    return _set(lab, actor, name, "webhook.resumed", values)


def test(lab: Lab, actor: Actor, name: str) -> Webhook:
    """Send it a message without events, now.  Raises Unreachable with what came of it."""
    actor.need("people", "test webhooks")
    with lab.store.read() as connection:
        row = connection.execute(select(_webhook).where(_webhook.c.name == name)).first()
    if row is None:
        raise NotFound(f"there is no webhook {name!r}")
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as http:
        if error := _post(lab, http, row, ()):
            raise Unreachable(f"webhook {name}: {error}", hint=f"does {row.url} answer from the lab's machine?")
    return _shown(row)


def pause(lab: Lab, actor: Actor, name: str) -> Webhook:
    return _set(lab, actor, name, "webhook.paused", {"state": "paused"})


def remove(lab: Lab, actor: Actor, name: str) -> None:
    actor.need("people", "remove webhooks")

    def change(connection: Connection) -> None:
        if not connection.execute(delete(_webhook).where(_webhook.c.name == name)).rowcount:
            raise NotFound(f"there is no webhook {name!r}")
        lab.store.event(connection, actor.name, "webhook.removed", "webhook", name)

    lab.store.write(change)
    secrets.remove(lab, SERVICE, _secret_of(name))


def _set(lab: Lab, actor: Actor, name: str, type_: str, values: dict[str, Any]) -> Webhook:
    actor.need("people", "change webhooks")

    def change(connection: Connection) -> None:
        if not connection.execute(update(_webhook).where(_webhook.c.name == name).values(values)).rowcount:
            raise NotFound(f"there is no webhook {name!r}")
        lab.store.event(connection, actor.name, type_, "webhook", name)

    lab.store.write(change)
    return _one(lab, name)


def _need_address(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise WrongInput(f"{url!r} is no address that can be told", hint="https://chat.example.org/hook")
    if parsed.userinfo:
        raise WrongInput("a password in the address would be seen by everybody who lists webhooks", hint="leave it out")


def _one(lab: Lab, name: str) -> Webhook:
    with lab.store.read() as connection:
        return _shown(connection.execute(select(_webhook).where(_webhook.c.name == name)).one())


def _shown(row: Row[Any]) -> Webhook:
    given = dict(row._mapping)
    del given["secret"]
    return Webhook(**given)


def _secret_of(name: str) -> str:
    return f"webhook/{name}"


# -- telling ------------------------------------------------------------------------------------------------------


def signature(secret: str, at_s: int, body: bytes) -> str:
    """``t=SECONDS,v1=HEX``: HMAC-SHA256 of the seconds since 1970, a point and the body.

    Who listens refuses old times, or somebody could repeat what was once sent."""
    made = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256)
    return f"t={at_s},v1={made.hexdigest()}"


def wanted_of(types: Sequence[str], found: Sequence[events.Event]) -> list[events.Event]:
    """Those that a webhook asked for."""
    return [one for one in found if any(fnmatch.fnmatchcase(one.type, pattern) for pattern in types)]


def tell_due(lab: Lab, http: httpx.Client, row: Row[Any]) -> bool:
    """Tell one webhook of the next events, if there are any; whether there may be more at once."""
    found = events.after(lab, row.seq, limit=TOGETHER)
    if not found:
        return False
    # Of itself it is not told.
    chosen = [one for one in wanted_of(row.types, found) if (one.object, one.object_id) != ("webhook", row.name)]
    if not chosen and len(found) < TOGETHER:
        return False  # nothing of it yet; to write that down each time would be the most of all writes
    error = _post(lab, http, row, chosen) if chosen else ""
    now = lab.now()
    values: dict[str, Any]
    if not error:
        values = {"seq": found[-1].seq, "failures": 0, "failing_since_ns": None, "next_ns": 0, "error": ""}
        if chosen:
            values["told_ns"] = now
    else:
        since = row.failing_since_ns or now
        wait = min(_AGAIN_NS << min(row.failures, 12), _MOST_NS)
        values = {"failures": row.failures + 1, "failing_since_ns": since, "next_ns": now + wait, "error": error}
        if now - since >= GIVE_UP_NS:
            values["state"] = "given up"

    def change(connection: Connection) -> None:
        # Somebody may have paused or removed it meanwhile.
        same = (_webhook.c.name == row.name) & (_webhook.c.made_ns == row.made_ns) & (_webhook.c.state == "active")
        done = connection.execute(update(_webhook).where(same).values(values)).rowcount
        if done and values.get("state") == "given up":
            lab.store.event(connection, SERVICE.name, "webhook.given-up", "webhook", row.name, error=error)

    lab.store.write(change)
    return not error and len(found) == TOGETHER


def _post(lab: Lab, http: httpx.Client, row: Row[Any], chosen: Sequence[events.Event]) -> str:
    """What went wrong; empty: it was taken."""
    try:
        secret = secrets.credentials(lab, row.secret).password
    except EvenkeelError as error:
        return error.message
    told = {"webhook": row.name, "events": [one.model_dump(mode="json") for one in chosen]}
    body = json.dumps(told, ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"evenkeel/{__version__}",
        SIGNATURE: signature(secret, lab.now() // 10**9, body),
    }
    try:
        answer = http.post(row.url, content=body, headers=headers)
    except httpx.HTTPError as error:
        return f"no answer: {error or type(error).__name__}"
    return "" if answer.is_success else f"answered {answer.status_code} {answer.reason_phrase}"


class Teller:
    """A thread that tells; ``failed``: what ended it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.failed: Exception | None = None
        self._woken = threading.Event()
        self._ended = threading.Event()
        self._busy: set[str] = set()
        self._end_listening = lab.store.listen(lambda seq: self._woken.set())
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end_listening()
        self._ended.set()
        self._woken.set()
        # One that waits for an answer is left behind: what was not answered is told again.
        self._thread.join(3)

    def _run(self) -> None:
        try:
            # Redirects are not followed: the address was checked, where it leads to was not.
            with httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as http:
                pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")
                while not self._ended.is_set():
                    self._woken.clear()
                    self._ended.wait(_GATHER_S)
                    for row in self._due():
                        self._busy.add(row.name)
                        pool.submit(self._tell, http, row)
                    self._woken.wait(_LOOK_S)
                pool.shutdown(wait=False, cancel_futures=True)
        except Exception as error:  # noqa: BLE001  the service asks for it
            if not self._ended.is_set():
                self.failed = error

    def _due(self) -> list[Row[Any]]:
        due = (_webhook.c.state == "active") & (_webhook.c.next_ns <= self.lab.now())
        with self.lab.store.read() as connection:
            rows = connection.execute(select(_webhook).where(due)).all()
        return [row for row in rows if row.name not in self._busy]

    def _tell(self, http: httpx.Client, row: Row[Any]) -> None:
        more = False
        try:
            more = tell_due(self.lab, http, row)
        except Exception:  # noqa: BLE001  one webhook is not the end of the others
            if not self._ended.is_set():
                _log.exception("webhook %s", row.name)
        finally:
            self._busy.discard(row.name)
            if more:
                self._woken.set()


@contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Teller]:
    """Of the service."""
    teller = Teller(lab)
    try:
        yield teller
    finally:
        teller.stop()
