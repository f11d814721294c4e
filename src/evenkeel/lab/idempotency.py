"""Writes that may be sent twice: the answer to an Idempotency-Key is kept for a day and given again.

The note that a request was carried out is written in the transaction of its first change.  So a service that is killed
between change and answer does not do it twice: the second time it says that it was done, and that the answer is lost.
Keys are per principal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from evenkeel.errors import WrongInput
from evenkeel.lab.actor import Conflict
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import idempotency as _table

KEPT_NS = 86_400 * 10**9
_DONE_NO_ANSWER = 0


@dataclass(frozen=True)
class Kept:
    """An answer that was given before."""

    status: int
    headers: dict[str, str]
    body: bytes


def before(lab: Lab, principal: str, key: str, sha256: str) -> Kept | None:
    """What was answered to this request; None: it is new.

    Raises WrongInput when the key came with another request, Conflict when the answer was lost.
    """
    query = select(_table).where(_table.c.principal == principal, _table.c.key == key)
    with lab.store.read() as connection:
        row = connection.execute(query).mappings().first()
    if row is None or row["at_ns"] + KEPT_NS < lab.now():
        return None
    if row["request_sha256"] != sha256:
        raise WrongInput("this Idempotency-Key came with another request before", hint="a new request needs a new key")
    if row["status"] == _DONE_NO_ANSWER:
        raise Conflict("this request was carried out, but its answer was lost", hint="look what is there now")
    return Kept(row["status"], row["headers"], row["body"])


def mark(lab: Lab, connection: Connection, principal: str, key: str, sha256: str) -> None:
    """Within the change: it was carried out."""
    mine = (_table.c.principal == principal, _table.c.key == key)
    connection.execute(delete(_table).where(*mine, _table.c.at_ns < lab.now() - KEPT_NS))
    if connection.execute(select(_table.c.key).where(*mine)).first() is None:
        values: dict[str, Any] = {"principal": principal, "key": key, "request_sha256": sha256, "at_ns": lab.now()}
        connection.execute(insert(_table).values(**values, status=_DONE_NO_ANSWER, headers={}, body=b""))


def answered(lab: Lab, principal: str, key: str, sha256: str, kept: Kept) -> None:
    """After it: with this answer."""

    def change(connection: Connection) -> None:
        mark(lab, connection, principal, key, sha256)
        changed = update(_table).where(_table.c.principal == principal, _table.c.key == key)
        connection.execute(changed.values(status=kept.status, headers=kept.headers, body=kept.body))

    lab.store.write(change)


def forget_old(lab: Lab) -> int:
    """Remove those older than a day; returns how many."""
    old = delete(_table).where(_table.c.at_ns < lab.now() - KEPT_NS)
    return lab.store.write(lambda connection: connection.execute(old).rowcount)
