"""Search for machines: by predicate, with facets that narrow it down, and searches that are kept.

Retired machines are found only by who asks for them: ``state:retired``, or any state with ``state:*``.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, SkipValidation
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import flat, machines, words
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.facets import View, index_of
from evenkeel.lab.held import STATES as HELD
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Held, State
from evenkeel.lab.paging import key_of, page
from evenkeel.lab.predicate import All, Not, Predicate, Term, quote
from evenkeel.lab.schema import claim, fact, machine, saved_search

#: Values shown of a facet, the most frequent first.
MOST_VALUES = 12


class Value(Model):
    """A value that machines found here have; ``predicate``: the term that asks for it."""

    value: str
    count: int
    predicate: str


class Facet(Model):
    key: str
    what: str
    values: tuple[Value, ...]


class Line(Model):
    """A machine in a list."""

    id: str
    name: str
    site: str
    owner: str
    team: str
    state: State
    state_since_ns: int
    state_reason: str
    held: Held | None
    #: Of our own making.  To look at each of its values takes four times as long as all the rest of a line.
    told: Annotated[dict[str, tuple[str | int | float, ...]], SkipValidation]


class Found(Model):
    """``total`` machines; ``took_ns``: server time.  ``instead``: terms to try when a bare word found nothing.

    ``nearest``: why nothing was found, and what there is.
    """

    items: tuple[Line, ...]
    next: str | None
    total: int
    facets: tuple[Facet, ...] = ()
    instead: tuple[Value, ...] = ()
    nearest: str = ""
    signature: str
    took_ns: int


class Saved(Model):
    """A search that somebody kept; shared ones are seen by all."""

    name: str
    owner: str
    predicate: str
    shared: bool


class Save(Model):
    predicate: Annotated[str, Field(max_length=4000)]
    shared: bool = False


def find(
    lab: Lab, actor: Actor, text: str = "", *, facets: bool = True, after: str | None = None, limit: int = 100
) -> Found:
    """Machines by name.  Raises PredicateError (with the column)."""
    actor.need("read", "see machines")
    begin = time.perf_counter_ns()
    predicate = Predicate.parse(text)
    seen = key_of(after, str)
    with lab.store.read() as connection:
        view = index_of(lab).follow(connection, lab.store.holds)
        asked = {term.key for term in predicate.terms()}
        fit = fitting(view, connection, predicate)
        total = fit.bit_count()
        begun = int(connection.scalar(_UP_TO, {"name": str(seen[0])}) or 0) if seen else 0
        items = _lines(view, connection, view.by_name(fit, begun, limit + 1))
        listed = _facets(view, fit, asked) if facets and total else ()
        instead = _instead(connection, predicate) if not total else ()
        near = nearest(connection, predicate) if not total and asked and not instead else ""
    found = page(items, limit, lambda line: (line.name,))
    return Found.model_construct(
        items=found.items,
        next=found.next,
        total=total,
        facets=listed,
        instead=instead,
        nearest=near,
        signature=predicate.signature,
        took_ns=time.perf_counter_ns() - begin,
    )


def condition(predicate: Predicate) -> ColumnElement[bool]:
    """Machines that fit; retired ones only if they were asked for."""
    return _among(predicate) & predicate.where()


def _among(predicate: Predicate) -> ColumnElement[bool]:
    """Which machines are looked at."""
    return true() if _of_retired(predicate) else machine.c.state != "retired"


def fitting(view: View, connection: Connection, predicate: Predicate) -> int:
    """The machines of :func:`condition` as bits of the view, which answers what it can; the database, the rest."""
    everything = view.having(_ANY_STATE)
    if not _of_retired(predicate):
        everything &= ~view.having(_RETIRED)

    def having(terms: Sequence[Term]) -> int:
        found, others = everything, []
        for term in terms:
            if view.answers(term):
                found &= view.having(term)
            else:
                others.append(term)
        if others and found:
            # Of several terms at once fewer ids come; one alone needs no look at table machine.
            of_all = select(machine.c.id).where(*(term.where() for term in others))
            ids = others[0].machines() if len(others) == 1 else of_all
            found &= view.bits(connection.scalars(ids).all())
        return found

    return predicate.among(having, everything)


def _of_retired(predicate: Predicate) -> bool:
    """Whether it asks for them: ``state!=broken`` does not."""
    return any(term.key == "state" and term.fits("retired") for term in predicate.wanted())


_ANY_STATE, _RETIRED = Term("state", "state:*"), Term("state", "state:retired", equals="retired")
_UP_TO = select(func.count()).select_from(machine).where(machine.c.name <= bindparam("name"))


def nearest(connection: Connection, predicate: Predicate) -> str:
    """What a search that found nothing should have asked: which part of it finds none, and what there is instead."""
    there = _among(predicate)
    if connection.scalar(select(machine.c.id).limit(1)) is None:
        return words.NO_MACHINE
    parts = predicate.root.parts if isinstance(predicate.root, All) else (predicate.root,)
    for part in parts:
        if connection.scalar(select(machine.c.id).where(part.where(), there).limit(1)) is not None:
            continue
        if isinstance(part, Not):
            return f"{part.shown} leaves none: all machines here are so"
        keys = {term.key for term in Predicate("", part).wanted()}
        if isinstance(part, Term) and part.key == "name":
            names = list(connection.scalars(select(machine.c.name).where(there)))
            near = difflib.get_close_matches(part.equals or "", names, 3, 0.6)
            if near:
                return f"did you mean {' or '.join(near)}?"
            return "a bare word is a name; anything else has a key, as in nic.driver:ice (`evenkeel lab search --keys`)"
        found = f"{part.shown} alone finds none"
        return f"{found}: {_what_there_is(connection, keys.pop(), there)}" if len(keys) == 1 else found
    return "each term alone finds some, but none is all of it"


def _what_there_is(connection: Connection, key: str, there: ColumnElement[bool]) -> str:
    """Of keys that are facets, or numbers: those have few values, or an index; a list of all flags helps nobody."""
    known = flat.KEYS.get(key)
    of_key = (fact.c.key == key) & fact.c.machine_id.in_(select(machine.c.id).where(there))
    if known is not None and known.kind in ("count", "size", "speed", "frequency"):
        range_ = select(func.min(fact.c.num), func.max(fact.c.num)).where(of_key)
        least, most = connection.execute(range_).one()
        texts = [] if most is None else [words.fact(key, least)]
        if most != least:
            texts = [f"{texts[0]} to {words.fact(key, most)}"]
    elif key in ("site", "state", "owner", "team"):
        column = machine.c[key]
        those = select(column).where(column != "", there).distinct().order_by(column).limit(9)
        texts = list(connection.scalars(those))
    elif known is not None and known.facet:
        mine = select(fact.c.text).where(of_key).group_by(fact.c.text)
        texts = list(connection.scalars(mine.order_by(func.count().desc(), fact.c.text).limit(9)))
    elif connection.scalar(select(fact.c.key).where(of_key).limit(1)) is None:
        texts = []
    else:
        return "others have other values"
    more = " ..." if len(texts) > 8 else ""
    return f"{key} is {', '.join(texts[:8])}{more} here" if texts else f"no machine has {key}"


#: Made once, as in :mod:`evenkeel.lab.facets`.  Not identity and policy: to read JSON of a hundred machines takes as
#: long as to find them.
_COLUMNS = tuple(name for name in Line.model_fields if name not in ("held", "told"))
_THESE: BindParameter[list[str]] = bindparam("ids", expanding=True)
_LINES = select(*(machine.c[name] for name in _COLUMNS)).where(machine.c.id.in_(_THESE)).order_by(machine.c.name)
_HOLDING = select(claim).where(claim.c.machine_id.in_(_THESE), claim.c.state.in_(HELD))


def _lines(view: View, connection: Connection, ids: Sequence[str]) -> list[Line]:
    these = {"ids": list(ids)}
    held = {row.machine_id: machines.held_of(row) for row in connection.execute(_HOLDING, these)}
    told = view.told(ids)
    return [
        Line(**dict(zip(_COLUMNS, row, strict=True)), held=held.get(row[0]), told=told[row[0]])
        for row in connection.execute(_LINES, these)
    ]


def _facets(view: View, fit: int, asked: set[str]) -> tuple[Facet, ...]:
    """Those that tell these machines apart, and those that were asked about."""
    counts = view.counts(fit)
    keys = [key for key, known in flat.KEYS.items() if known.facet]
    return tuple(_facet(key, counts[key]) for key in keys if len(counts.get(key, ())) > (0 if key in asked else 1))


def _facet(key: str, counted: list[tuple[str, int]]) -> Facet:
    values = sorted(counted, key=lambda one: (-one[1], one[0]))[:MOST_VALUES]
    shown = tuple(Value(value=text, count=count, predicate=f"{key}:{quote(text)}") for text, count in values)
    return Facet(key=key, what=flat.KEYS[key].what, values=shown)


def _instead(connection: Connection, predicate: Predicate) -> tuple[Value, ...]:
    """What a bare word that is no machine's name could have meant: values of facts that have it in them."""
    words = [term.equals for term in predicate.wanted() if term.key == "name" and term.equals]
    if not words:
        return ()
    like = [fact.c.text.contains(word, autoescape=True) for word in words]
    keys = [
        key for key, known in flat.KEYS.items() if known.kind in ("text", "version") and key not in ("mac", "serial")
    ]
    counted = (
        select(fact.c.key, fact.c.text, func.count().label("count"))
        .where(fact.c.key.in_(keys), or_(*like))
        .group_by(fact.c.key, fact.c.text)
        .order_by(func.count().desc(), fact.c.key)
        .limit(6)
    )
    return tuple(
        Value(value=row.text, count=row[2], predicate=f"{row.key}:{quote(row.text)}")
        for row in connection.execute(counted)
    )


# -- kept searches --------------------------------------------------------------------------------------------------


def saved(lab: Lab, actor: Actor) -> list[Saved]:
    """One's own and those that others share, by name."""
    actor.need("read", "see searches")
    mine = (saved_search.c.owner == actor.name) | saved_search.c.shared
    with lab.store.read() as connection:
        rows = connection.execute(select(saved_search).where(mine).order_by(saved_search.c.name, saved_search.c.owner))
        return [Saved(name=r.name, owner=r.owner, predicate=r.predicate, shared=r.shared) for r in rows]


def save(lab: Lab, actor: Actor, name: str, wanted: Save) -> Saved:
    """Keep a search under a name, or change it.  Raises PredicateError."""
    actor.need("read", "keep searches")
    name = name.strip()
    if not name or len(name) > 100:
        raise WrongInput("a search needs a name", hint="as in `my mellanox hosts`, 100 characters at most")
    Predicate.parse(wanted.predicate)
    values = {"predicate": wanted.predicate, "shared": wanted.shared}

    def change(connection: Connection) -> None:
        mine = (saved_search.c.owner == actor.name) & (saved_search.c.name == name)
        if not connection.execute(update(saved_search).where(mine).values(values)).rowcount:
            connection.execute(insert(saved_search).values(owner=actor.name, name=name, **values))

    lab.store.write(change)
    return Saved(name=name, owner=actor.name, predicate=wanted.predicate, shared=wanted.shared)


def forget(lab: Lab, actor: Actor, name: str) -> None:
    """Raises NotFound when one has no such search."""
    actor.need("read", "keep searches")
    mine = (saved_search.c.owner == actor.name) & (saved_search.c.name == name)
    gone: Any = lab.store.write(lambda connection: connection.execute(delete(saved_search).where(mine)).rowcount)
    if not gone:
        raise NotFound(f"you have no search {name!r}")
