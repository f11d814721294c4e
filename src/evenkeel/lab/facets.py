"""What machines have which value of a fact: an index in memory beside table ``fact``, one bit a machine.

It counts what the machines of a list are, and answers terms about facts that have few values, in any combination:
SQLite takes longer to count values over thousands of rows than to search, and makes a list of all machines of each
term that stands under OR or NOT.  The index follows the event log: before each use it reads anew the machines that
changed since, of those whose state changed only that.  It is only ever a copy: what it does not hold is asked of the
database, and it decides nothing but what is shown.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from evenkeel.lab import flat
from evenkeel.lab.lab import Lab
from evenkeel.lab.predicate import Term
from evenkeel.lab.schema import event, fact, machine
from evenkeel.lab.store import Store

#: Kept of each machine, for a line of a list.
TOLD = (
    "arch",
    "cpu.model",
    "cpu.threads",
    "cpu.sockets",
    "mem",
    "nic.driver",
    "kernel.version",
    "kernel.rt",
    "virtual",
)
#: Facets that are columns of table machine; the others are facts.
COLUMNS = ("site", "state", "team")
COUNTED = tuple(key for key, known in flat.KEYS.items() if known.facet and key not in COLUMNS)
#: Besides the facets their terms are answered from here: what is told of each machine and has few values.
ANSWERED = frozenset({*COLUMNS, *COUNTED, "cpu.threads", "kernel.version", "kernel.rt"})
#: Events of all that can make another machine be as somebody wants, or one be so no more.
CHANGES = ("machine.registered", "machine.facts", "machine.edited", "machine.state", "machine.system", "netbox.undone")
#: More machines than these changed: read all anew.
_MANY = 200

#: Made once: to put a statement together takes longer than SQLite takes to answer it.
_SINCE = event.c.type.in_(CHANGES), event.c.seq > bindparam("seq")
_NEWEST = select(func.max(event.c.seq)).where(*_SINCE)
_OLDEST = select(func.min(event.c.seq))
_CHANGED = select(event.c.object_id, event.c.type).where(*_SINCE).distinct().limit(_MANY + 1)
_ORDERED = select(machine.c.id).order_by(machine.c.name)

Told = dict[str, tuple[str | int | float, ...]]


def value_of(key: str, text: str, num: float | None) -> str | float:
    """What a row of table ``fact`` was made from: a number, or the text, as of versions and labels."""
    known = flat.key(key)
    if num is None or known is None or known.kind in ("version", "any"):
        return text
    return int(num) if num.is_integer() else num


@dataclass(frozen=True)
class View:
    """The index at one moment: nobody changes what it holds.  Sets of machines are numbers, one bit a machine."""

    #: Key -> value -> machines that have it.
    values: Mapping[str, Mapping[str, int]]
    #: Machines and their bits, in the order that the database gives names.
    order: Sequence[tuple[str, int]]
    _place: Mapping[str, int]
    _told: Mapping[str, Told]

    @staticmethod
    def answers(term: Term) -> bool:
        """Whether :meth:`having` may be asked."""
        return term.key in ANSWERED

    def having(self, term: Term) -> int:
        """Machines that are so, retired ones too."""
        found = 0
        for text, bits in self.values.get(term.key, {}).items():
            if (text or term.key not in COLUMNS) and term.fits(text):
                found |= bits
        return found

    def bits(self, ids: Iterable[str]) -> int:
        """These machines; those that are not known here are left out."""
        return _bits(self._place, ids)

    def by_name(self, bits: int, begin: int, count: int) -> list[str]:
        """At most ``count`` of these machines in the order of their names, without the first ``begin`` of all names."""
        digits = f"{bits:0{len(self._place)}b}"  # the last one is place 0
        behind = islice(self.order, begin, None)
        return list(islice((machine_id for machine_id, place in behind if digits[~place] == "1"), count))

    def counts(self, bits: int) -> dict[str, list[tuple[str, int]]]:
        """Values of the facets with how many of these machines have them."""
        return {
            key: [(text, count) for text, having in values.items() if text and (count := (having & bits).bit_count())]
            for key in (*COLUMNS, *COUNTED)
            if (values := self.values.get(key))
        }

    def told(self, ids: Iterable[str]) -> Mapping[str, Told]:
        """A few facts of each machine."""
        return {machine_id: self._told.get(machine_id, {}) for machine_id in ids}


class Index:
    """Keeps a :class:`View` up to date.  ``columns``: machine -> what :data:`COLUMNS` hold of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seq = -1
        self._holds = 0
        #: A machine keeps its place for ever: others may still work with bits of an older view.
        self._place: dict[str, int] = {}
        self._bits: dict[str, dict[str, int]] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, Told] = {}
        self._names: dict[str, str] = {}
        #: None: to be read anew.
        self._order: list[tuple[str, int]] | None = None
        self._view = View({}, (), {}, {})

    def follow(self, connection: Connection, holds: int = 0) -> View:
        """Read what changed since.  ``holds``: of the store; another: read all.

        The view is as new as what the connection sees, or newer, when another search was faster.
        """
        with self._lock:
            if holds != self._holds:
                self._seq, self._holds = -1, holds
            self._follow(connection)
            return self._view

    def _follow(self, connection: Connection) -> None:
        gone = (connection.scalar(_OLDEST) or 1) - 1
        if 0 <= self._seq < gone:
            self._seq = -1  # nobody searched for so long that some of what changed is not in the log any more
        last = connection.scalar(_NEWEST, {"seq": self._seq})
        if last is None:
            if self._seq >= 0:
                return
            last = 0  # no machine was ever registered by an event
        touched: set[str] | None = None
        if self._seq >= 0:
            changes = connection.execute(_CHANGED, {"seq": self._seq}).all()
            if len(changes) <= _MANY:
                touched = {machine_id for machine_id, _ in changes}
                changed = {machine_id for machine_id, type_ in changes if type_ != "machine.state"}
        # What a view holds stays as it is: the rest of this works on copies.
        self._bits = {key: dict(values) for key, values in self._bits.items()}
        if touched is None:
            self._bits, self._columns, self._told = {}, {}, {}
            self._names, self._order = {}, None
            self._read(connection, None)
        elif changed:
            self._told = dict(self._told)
            for machine_id in changed:
                self._forget(machine_id)
            self._read(connection, changed)
        self._read_columns(connection, touched)
        if self._order is None:
            places = ((machine_id, self._place.get(machine_id)) for machine_id in connection.scalars(_ORDERED))
            self._order = [(machine_id, place) for machine_id, place in places if place is not None]
        self._seq = max(last, gone)  # what is gone was read as well, and is not missed the next time
        self._view = View(self._bits, self._order, self._place, self._told)

    def _forget(self, machine_id: str) -> None:
        self._told.pop(machine_id, None)
        place = self._place.get(machine_id)
        if place is not None:
            for key in ANSWERED.difference(COLUMNS):
                values = self._bits.get(key, {})
                for text in values:
                    values[text] &= ~(1 << place)

    def _read_columns(self, connection: Connection, ids: set[str] | None) -> None:
        query = select(machine.c.id, machine.c.name, *(machine.c[name] for name in COLUMNS))
        members: dict[tuple[str, str], list[str]] = {}
        rows = connection.execute(query if ids is None else query.where(machine.c.id.in_(ids)))
        for machine_id, named, *raw in rows:
            now = [flat.fold(text) for text in raw]  # as terms compare it: PRG and prg are one site
            place = self._place.setdefault(machine_id, len(self._place))
            if self._names.get(machine_id) != named:
                self._names[machine_id], self._order = named, None
            for name, before in zip(COLUMNS, self._columns.get(machine_id, ()), strict=False):
                self._bits[name][before] &= ~(1 << place)
            self._columns[machine_id] = tuple(now)
            for name, text in zip(COLUMNS, now, strict=True):
                members.setdefault((name, text), []).append(machine_id)
        for (name, text), having in members.items():
            bits = self._bits.setdefault(name, {})
            bits[text] = bits.get(text, 0) | _bits(self._place, having)

    def _read(self, connection: Connection, ids: set[str] | None) -> None:
        keys = {*TOLD, *ANSWERED.difference(COLUMNS)}
        wanted = select(fact.c.machine_id, fact.c.key, fact.c.text, fact.c.num).where(fact.c.key.in_(keys))
        if ids is not None:
            wanted = wanted.where(fact.c.machine_id.in_(ids))
        members: dict[str, dict[str, list[str]]] = {}
        told: dict[str, dict[str, list[str | float]]] = {}
        for machine_id, key, text, num in connection.execute(wanted):
            self._place.setdefault(machine_id, len(self._place))
            if key in ANSWERED:
                members.setdefault(key, {}).setdefault(text, []).append(machine_id)
            if key in TOLD:
                told.setdefault(machine_id, {}).setdefault(key, []).append(value_of(key, text, num))
        for key, values in members.items():
            bits = self._bits.setdefault(key, {})
            for text, having in values.items():
                bits[text] = bits.get(text, 0) | _bits(self._place, having)
        self._told |= {
            machine_id: {key: tuple(values) for key, values in sorted(keys.items())}
            for machine_id, keys in told.items()
        }


def _bits(place: Mapping[str, int], ids: Iterable[str]) -> int:
    packed = bytearray(len(place) // 8 + 1)
    for machine_id in ids:
        known = place.get(machine_id)
        if known is not None:
            packed[known >> 3] |= 1 << (known & 7)
    return int.from_bytes(packed, "little")


_INDEXES: weakref.WeakKeyDictionary[Store, Index] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def index_of(lab: Lab) -> Index:
    """The one of a lab's database."""
    with _MAKING:
        return _INDEXES.setdefault(lab.store, Index())


def read_told(connection: Connection, ids: Any) -> dict[str, Told]:
    """The same few facts straight from the database, for few machines."""
    told: dict[str, dict[str, list[str | float]]] = {}
    chosen = select(fact.c.machine_id, fact.c.key, fact.c.text, fact.c.num)
    for row in connection.execute(chosen.where(fact.c.machine_id.in_(ids), fact.c.key.in_(TOLD))):
        told.setdefault(row.machine_id, {}).setdefault(row.key, []).append(value_of(row.key, row.text, row.num))
    return {one: {key: tuple(values) for key, values in sorted(keys.items())} for one, keys in told.items()}
