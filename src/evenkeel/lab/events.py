"""The one log, read: who did what when (audit), and what comes after a number (server-sent events, webhooks).

Each event is written by the service function that made the change, in the same transaction.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from sqlalchemy import RowMapping, Select, func, select

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab.actor import Actor
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import Page, key_of, page
from evenkeel.lab.schema import event as _event
from evenkeel.lab.set_within import set_within

#: Events that a stream reads at once.
_AT_ONCE = 500
#: All types of events, by kind: ``claim.began``.  A test compares them with what the service writes.
TYPES: dict[str, tuple[str, ...]] = {
    "agent": ("hello", "gone", "lost", "drained", "resumed"),
    "artifact": ("pinned", "unpinned", "collected"),
    "attempt": ("incomplete",),
    "claim": (
        *("requested", "preparing", "began", "next", "extended", "handed-over", "ends-soon", "wanted", "step"),
        *("ended", "cancelled"),
    ),
    "console": ("up", "down", "off", "freed", "reset", "writer", "boot", "panic", "oops", "stall", "login"),
    "credit": ("spent", "beyond", "refunded", "granted"),
    "endpoint": ("set", "removed"),
    "health": ("up", "down"),
    "login": ("refused",),
    "machine": ("registered", "facts", "edited", "address", "linked", "state", "suspect", "system"),
    "netbox": ("done", "failed", "written", "undone", "gone", "back"),
    "power": ("asked", "done", "failed", "unknown", "lied", "honest", "budget"),
    "principal": ("added", "rights"),
    "secret": ("set", "removed", "rotated"),
    "step": ("started", "passed", "failed", "again", "cancelled", "skipped", "retried"),
    "submission": ("submitted", "urgent", "passed", "failed", "cancelled"),
    "token": ("made", "revoked"),
    "webhook": ("added", "removed", "resumed", "tested", "off"),
}
#: Of these a site adds its own: what it has consoles watched for.
_OPEN = "console"


class Event(Model):
    """``object`` and ``object_id``: of what; ``data``: what a reader of the log wants to know besides."""

    seq: int
    at_ns: int
    actor: str
    type: str
    object: str
    object_id: str
    data: dict[str, Any]


def types() -> tuple[str, ...]:
    """All that are, in the alphabet; ``login`` has no kind."""
    return tuple(sorted({"login", *(f"{kind}.{what}" for kind, known in TYPES.items() for what in known)}))


def wanted(type_: str, chosen: Iterable[str]) -> bool:
    """Whether one of ``chosen`` (types; ``claim.*`` for all of a kind, ``*`` for all) asks for it."""
    return any(type_ == one or (one.endswith("*") and type_.startswith(one[:-1])) for one in chosen)


def check_type(chosen: str) -> None:
    """Raises WrongInput when no event is of such a type: who waits for it would wait for ever."""
    if any(wanted(type_, (chosen,)) for type_ in types()) or chosen.startswith(f"{_OPEN}."):
        return
    near = difflib.get_close_matches(chosen, [*types(), *(f"{kind}.*" for kind in TYPES)], 3)
    kind = chosen.partition(".")[0]
    if kind in TYPES:
        hint = f"of this kind there are {', '.join(f'{kind}.{what}' for what in TYPES[kind])}; {kind}.* for all"
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"kinds are {', '.join(TYPES)}; claim.* for all of a kind, * for all"
    raise WrongInput(f"there are no events of type {chosen[:100]!r}", hint=hint)


def events(
    lab: Lab,
    actor: Actor,
    *,
    after: str | None = None,
    limit: int = 100,
    by: str | None = None,
    type_: str | None = None,
    object_: str | None = None,
    object_id: str | None = None,
) -> Page[Event]:
    """The newest first.  ``type_`` may end in ``*``: ``claim.*``."""
    actor.need("read", "read the log")
    query = _chosen(select(_event).order_by(_event.c.seq.desc()).limit(limit + 1), by, type_, object_, object_id)
    if key := key_of(after, int):
        query = query.where(_event.c.seq < key[0])
    with lab.store.read() as connection:
        rows = [_shown(row) for row in connection.execute(query).mappings()]
    return page(rows, limit, lambda row: [row.seq])


def after(lab: Lab, seq: int, *, type_: str | None = None, limit: int = _AT_ONCE) -> list[Event]:
    """Those with a greater number, the oldest first."""
    query = _chosen(select(_event).where(_event.c.seq > seq).order_by(_event.c.seq).limit(limit), None, type_)
    with lab.store.read() as connection:
        return [_shown(row) for row in connection.execute(query).mappings()]


def last_seq(lab: Lab) -> int:
    with lab.store.read() as connection:
        return int(connection.execute(select(func.coalesce(func.max(_event.c.seq), 0))).scalar_one())


def first_seq(lab: Lab) -> int:
    """Of the oldest that is kept: who has read up to one before it misses nothing.  1 when there is none."""
    with lab.store.read() as connection:
        return int(connection.execute(select(func.coalesce(func.min(_event.c.seq), 1))).scalar_one())


async def stream(lab: Lab, actor: Actor, seq: int, *, type_: str | None = None) -> AsyncIterator[Event | None]:
    """All after ``seq``, then each as it is committed; None now and then, when there is nothing (a sign of life)."""
    actor.need("read", "read the log")
    loop, more = asyncio.get_running_loop(), asyncio.Event()

    def told(_: int) -> None:
        loop.call_soon_threadsafe(more.set)

    end = lab.store.listen(told)
    try:
        while not lab.stopping.is_set():
            more.clear()
            found = await asyncio.to_thread(after, lab, seq, type_=type_)
            for one in found:
                seq = one.seq
                yield one
            if len(found) == _AT_ONCE:
                continue
            for _ in range(15):  # a second each: to see that the service stops
                if await set_within(more, 1.0) or lab.stopping.is_set():
                    break
            else:
                yield None
    finally:
        end()


def _chosen(
    query: Select[Any],
    by: str | None,
    type_: str | None,
    object_: str | None = None,
    object_id: str | None = None,
) -> Select[Any]:
    if by:
        query = query.where(_event.c.actor == by)
    if type_ and type_.endswith("*"):
        query = query.where(_event.c.type.startswith(type_[:-1], autoescape=True))
    elif type_:
        query = query.where(_event.c.type == type_)
    if object_:
        query = query.where(_event.c.object == object_)
    if object_id:
        query = query.where(_event.c.object_id == object_id)
    return query


def _shown(row: RowMapping) -> Event:
    return Event(**row)
