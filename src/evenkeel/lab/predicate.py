"""Predicates: the one language that search, reservations and steps say with what a machine or agent must be.  Pure.

``cpu.flag:avx512f nic.driver:mlx5_core mem>=256GiB (site:prg OR site:nue) NOT name:test*``

Three ways to answer: :meth:`Predicate.matches` for one machine in memory, :meth:`Predicate.where` as SQL over
``machine`` and ``fact``, and :meth:`Predicate.among` for many machines, one bit each, by whoever knows that of terms.
All must agree (tests/lab/test_predicate.py).  Knows the vocabulary of :mod:`evenkeel.lab.flat`; asks no database.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, NoReturn, Self

from sqlalchemy import ColumnElement, Select, String, and_, false, not_, or_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from evenkeel.documents.quantity import SIZE_UNITS
from evenkeel.errors import Where, WrongInput
from evenkeel.lab import flat, schema
from evenkeel.lab.flat import Flat, Kind

#: Longer or deeper ones are mistakes, or attacks on the parser.
MOST_CHARACTERS = 4000
MOST_DEPTH = 40
MOST_TERMS = 200

_SPEEDS = {"kbps": 10**3, "Mbps": 10**6, "Gbps": 10**9, "Tbps": 10**12}
_FREQUENCIES = {"Hz": 1, "kHz": 10**3, "MHz": 10**6, "GHz": 10**9}
_UNITS: dict[Kind, dict[str, int]] = {"size": SIZE_UNITS, "speed": _SPEEDS, "frequency": _FREQUENCIES}
_EXAMPLES = {"size": "256GiB", "speed": "25Gbps", "frequency": "3GHz"}
_DECIMAL = {"kb": "KiB", "mb": "MiB", "gb": "GiB", "tb": "TiB", "k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}
_SPELLED = {"g": "Gbps", "m": "Mbps", "gb": "Gbps", "gbit": "Gbps", "gbe": "Gbps", "gbit/s": "Gbps", "mbit/s": "Mbps"}

#: What people write for a key before they have seen the list.
_SAID = {
    **dict.fromkeys(("ram", "memory", "mem.gib"), "mem"),
    **dict.fromkeys(("cpus", "threads", "cpu.count"), "cpu.threads"),
    **dict.fromkeys(("cpu", "model", "processor"), "cpu.model"),
    **dict.fromkeys(("nic", "driver", "network", "card"), "nic.driver"),
    **dict.fromkeys(("flag", "flags", "cpu.flags"), "cpu.flag"),
    **dict.fromkeys(("host", "hostname", "machine"), "name"),
    **dict.fromkeys(("disk", "storage"), "disk.kind"),
    **dict.fromkeys(("pci", "device"), "pci.id"),
    **{"cores": "cpu.cores", "sockets": "cpu.sockets", "numa": "numa.nodes", "vfs": "sriov.vfs", "sriov": "sriov.vfs"},
    **{"kernel": "kernel.version", "speed": "nic.speed", "cache": "cache.l3", "rt": "kernel.rt", "gpu": "pci.class"},
}

_TERM = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)\s*(!=|>=|<=|=|:|>|<)\s*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r'[^\s()",]+')
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)([A-Za-z/]*)")
_PLAIN = re.compile(r'[^\s()",*?\\]+')

#: Keys that are columns of table ``machine``, so that they are never stale.
_COLUMNS = {
    "name": schema.machine.c.name,
    "site": schema.machine.c.site,
    "state": schema.machine.c.state,
    "owner": schema.machine.c.owner,
    "team": schema.machine.c.team,
}
_YES_NO = {
    word: [answer] for answer, words in (("yes", ("true", "1", "on")), ("no", ("false", "0", "off"))) for word in words
}
_STATES = ("ready", "claimed", "preparing", "suspect", "broken", "off", "retired")


class PredicateError(WrongInput):
    """``column`` counts from 1: where in the text the mistake is."""

    def __init__(self, message: str, column: int, *, hint: str | None = None) -> None:
        self.column = column
        super().__init__(message, where=Where("predicate", 1, column), hint=hint)


# -- what a text means --------------------------------------------------------------------------------------------

#: Which machines all these terms are true of, one bit each.
Having = Callable[[Sequence["Term"]], int]


@dataclass(frozen=True)
class Term:
    """A key and what one of its values must be: ``equals`` text, like ``glob``, or a number ``least`` to ``most``.

    All three None: the key is there at all.  ``above``, ``below``: the bound itself is not enough.
    """

    key: str
    shown: str  # canonical: parsing it gives this term again
    equals: str | None = None
    glob: str | None = None
    least: float | None = None
    most: float | None = None
    above: bool = False
    below: bool = False

    def matches(self, facts: Flat) -> bool:
        return any(self.fits(value) for value in facts.get(self.key, ()))

    def among(self, having: Having, everything: int) -> int:
        return having((self,))

    def fits(self, value: str | float) -> bool:
        """Whether a machine that has this value of the key is wanted."""
        if self.equals is not None:
            return flat.text_of(value) == self.equals
        if self.glob is not None:
            return _glob(self.glob).fullmatch(flat.text_of(value)) is not None
        if self.least is None and self.most is None:
            return True
        number = flat.number_of(self.key, value)
        if number is None:
            return False
        if self.least is not None and (number <= self.least if self.above else number < self.least):
            return False
        return self.most is None or (number < self.most if self.below else number <= self.most)

    def where(self) -> ColumnElement[bool]:
        if self.key in _COLUMNS:
            text = _Folded(_COLUMNS[self.key])
            return and_(text != "", self._of_text(text))
        return schema.machine.c.id.in_(self._of_facts())

    def machines(self) -> Select[tuple[str]]:
        """Ids of the machines, as :meth:`where` has them; of a fact without a look at table ``machine``."""
        return select(schema.machine.c.id).where(self.where()) if self.key in _COLUMNS else self._of_facts()

    def _of_facts(self) -> Select[tuple[str]]:
        fact = schema.fact.c
        fits = [fact.key == self.key]
        if self.equals is not None or self.glob is not None:
            fits.append(self._of_text(fact.text))
        if self.least is not None:
            fits.append(fact.num > self.least if self.above else fact.num >= self.least)
        if self.most is not None:
            fits.append(fact.num < self.most if self.below else fact.num <= self.most)
        return select(fact.machine_id).where(*fits)

    def _of_text(self, text: ColumnElement[str]) -> ColumnElement[bool]:
        if self.equals is not None:
            return text == self.equals
        if self.glob is not None:
            like = re.sub(r"([%_\\])", r"\\\1", self.glob).replace("*", "%").replace("?", "_")
            return text.like(like, escape="\\")
        return true()


class _Folded(FunctionElement[str]):
    """:func:`evenkeel.lab.flat.fold` in the database: what SQLite's lower() does.  PostgreSQL's goes by a locale, and
    in any but "C" changes letters that are not ASCII, too."""

    type = String()
    inherit_cache = True


@compiles(_Folded)
def _fold_anywhere(element: _Folded, compiler: SQLCompiler, **kept: Any) -> str:
    return f"lower({compiler.process(element.clauses, **kept)})"


@compiles(_Folded, "postgresql")
def _fold_in_postgresql(element: _Folded, compiler: SQLCompiler, **kept: Any) -> str:
    return f'lower({compiler.process(element.clauses, **kept)} COLLATE "C")'


@dataclass(frozen=True)
class Not:
    part: Node

    @property
    def shown(self) -> str:
        return f"NOT {_within(self.part)}"

    def matches(self, facts: Flat) -> bool:
        return not self.part.matches(facts)

    def among(self, having: Having, everything: int) -> int:
        return everything & ~self.part.among(having, everything)

    def where(self) -> ColumnElement[bool]:
        return not_(self.part.where())


@dataclass(frozen=True)
class All:
    parts: tuple[Node, ...]

    @property
    def shown(self) -> str:
        return " ".join(f"({part.shown})" if isinstance(part, AnyOf) else part.shown for part in self.parts)

    def matches(self, facts: Flat) -> bool:
        return all(part.matches(facts) for part in self.parts)

    def among(self, having: Having, everything: int) -> int:
        terms = [part for part in self.parts if isinstance(part, Term)]
        found = having(terms) if terms else everything
        for part in self.parts:
            if not isinstance(part, Term):
                found &= part.among(having, everything)
        return found

    def where(self) -> ColumnElement[bool]:
        return and_(true(), *(part.where() for part in self.parts))


@dataclass(frozen=True)
class AnyOf:
    parts: tuple[Node, ...]

    @property
    def shown(self) -> str:
        return " OR ".join(part.shown for part in self.parts)

    def matches(self, facts: Flat) -> bool:
        return any(part.matches(facts) for part in self.parts)

    def among(self, having: Having, everything: int) -> int:
        found = 0
        for part in self.parts:
            found |= part.among(having, everything)
        return found

    def where(self) -> ColumnElement[bool]:
        return or_(false(), *(part.where() for part in self.parts))


Node = Term | Not | All | AnyOf


def _within(part: Node) -> str:
    return part.shown if isinstance(part, (Term, Not)) else f"({part.shown})"


def _together(kind: type[All] | type[AnyOf], parts: Iterable[Node]) -> Node:
    """Flattened, sorted and without repetitions, so that what means the same is mostly written the same."""
    flattened: dict[str, Node] = {}
    for part in parts:
        for one in part.parts if isinstance(part, kind) else (part,):
            flattened[one.shown] = one
    ordered = tuple(flattened[shown] for shown in sorted(flattened))
    return ordered[0] if len(ordered) == 1 else kind(ordered)


def _negated(part: Node) -> Node:
    return part.part if isinstance(part, Not) else Not(part)


@lru_cache(maxsize=1000)
def _glob(pattern: str) -> re.Pattern[str]:
    # fnmatch knows [..] too, which LIKE does not.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")), re.DOTALL)


@dataclass(frozen=True)
class Predicate:
    """What was written (``text``) and what it means.  An empty text matches everything."""

    text: str
    root: Node

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises PredicateError with the column and, where it can be guessed, what was meant."""
        return cls(text, _parse(text))

    @cached_property
    def signature(self) -> str:
        """Canonical text: the order of terms, spaces and units do not matter.  Parses to the same meaning."""
        return self.root.shown

    def matches(self, facts: Flat) -> bool:
        return self.root.matches(facts)

    def where(self) -> ColumnElement[bool]:
        """A condition over a select from table ``machine``."""
        return self.root.where()

    def among(self, having: Having, everything: int) -> int:
        """Those of ``everything`` that fit, one bit each.  Terms that must all be true are asked for at once."""
        return self.root.among(having, everything)

    def terms(self) -> Iterator[Term]:
        """All terms, also those under NOT."""
        waiting: list[Node] = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Term):
                yield node
            else:
                waiting += (node.part,) if isinstance(node, Not) else node.parts

    def wanted(self) -> Iterator[Term]:
        """The terms that what is found may fit; those under NOT say what it does not."""
        waiting: list[tuple[Node, bool]] = [(self.root, True)]
        while waiting:
            node, positive = waiting.pop()
            if isinstance(node, Term):
                if positive:
                    yield node
            elif isinstance(node, Not):
                waiting.append((node.part, not positive))
            else:
                waiting += ((part, positive) for part in node.parts)

    @property
    def machine_name(self) -> str | None:
        """The machine, when nothing but a name is asked for."""
        return self.root.equals if isinstance(self.root, Term) and self.root.key == "name" else None


@lru_cache(maxsize=10_000)
def _parse(text: str) -> Node:
    if len(text) > MOST_CHARACTERS:
        raise PredicateError(f"longer than {MOST_CHARACTERS} characters", MOST_CHARACTERS + 1)
    return _Parser(text).parse()


# -- from text ----------------------------------------------------------------------------------------------------


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.terms = 0

    def parse(self) -> Node:
        self._space()
        if self.at == len(self.text):
            return All(())
        node = self._any(0)
        if self.at < len(self.text):
            self._fail("a closing parenthesis that nothing opened", hint="remove it, or write the text in quotes")
        return node

    def _fail(self, message: str, *, at: int | None = None, hint: str | None = None) -> NoReturn:
        raise PredicateError(message, (self.at if at is None else at) + 1, hint=hint)

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _word(self, word: str) -> bool:
        """Take the keyword, if it is here."""
        match = _BARE.match(self.text, self.at)
        if not match or match[0] != word:
            return False
        self.at = match.end()
        self._space()
        return True

    def _any(self, depth: int) -> Node:
        parts = [self._all(depth)]
        while self._word("OR"):
            parts.append(self._all(depth))
        return _together(AnyOf, parts)

    def _all(self, depth: int) -> Node:
        parts = [self._one(depth)]
        while self.at < len(self.text) and self.text[self.at] != ")":
            here = self.at
            if self._word("OR"):
                self.at = here
                break
            self._word("AND")
            parts.append(self._one(depth))
        return _together(All, parts)

    def _one(self, depth: int) -> Node:
        if depth > MOST_DEPTH:
            self._fail(f"more than {MOST_DEPTH} parentheses and NOTs inside each other")
        if self.at == len(self.text):
            self._fail("something is missing at the end", hint="after AND, OR, NOT and ( comes a term")
        if self._word("NOT"):
            return _negated(self._one(depth + 1))
        if self.text[self.at] == "(":
            opened = self.at
            self.at += 1
            self._space()
            node = self._any(depth + 1)
            if self.at == len(self.text):
                self._fail("this parenthesis is never closed", at=opened)
            self.at += 1
            self._space()
            return node
        return self._term()

    def _term(self) -> Node:
        start = self.at
        self.terms += 1
        if self.terms > MOST_TERMS:
            self._fail(f"more than {MOST_TERMS} terms")
        match = _TERM.match(self.text, self.at)
        if not match:
            return self._name()
        name, operator = flat.fold(match[1]), match[2]
        known = flat.key(name)
        if known is None:
            near = [_SAID[name]] if name in _SAID else difflib.get_close_matches(name, flat.KEYS, 1, 0.75)
            hint = f"did you mean {near[0]}?" if near else "`evenkeel lab search --keys` lists them"
            self._fail(f"no such key: {match[1]}", at=start, hint=hint)
        self.at = match.end()
        values: list[Node] = []
        while True:
            begin = self.at
            value, quoted = self._value(match[1])
            values.append(self._compare(name, known.kind, operator, value, quoted, begin))
            if self.text[self.at : self.at + 1] != ",":
                break
            if operator not in (":", "=", "!="):
                self._fail(f"a list after {operator}", hint=f"lists go with : only, as in {name}:a,b")
            self.at += 1
            self._space()
        self._space()
        node = _together(AnyOf, values)
        return _negated(node) if operator == "!=" else node

    def _name(self) -> Node:
        start = self.at
        if self.text[start] == ",":
            self._fail("a comma where a term is expected", hint="lists go inside a term: site:a,b")
        value, quoted = self._value("name")
        if not quoted and value in ("and", "or", "not", "AND", "OR"):
            hint = f"did you mean {value.upper()}?" if value.islower() else "it stands between two terms"
            self._fail(f"{value!r} where a term is expected", at=start, hint=hint)
        self._space()
        return self._compare("name", "text", ":", value, quoted, start)

    def _value(self, name: str) -> tuple[str, bool]:
        quoted = _QUOTED.match(self.text, self.at)
        if quoted:
            self.at = quoted.end()
            return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), True
        if self.text[self.at : self.at + 1] == '"':
            self._fail("this quote is never closed")
        bare = _BARE.match(self.text, self.at)
        if not bare:
            self._fail(f"{name} has no value", hint=f'as in {name}:VALUE, or {name}:* for any, or {name}:"two words"')
        self.at = bare.end()
        return bare[0], False

    # -- one comparison

    def _compare(self, name: str, kind: Kind, operator: str, value: str, quoted: bool, at: int) -> Node:
        if operator in (">=", "<=", ">", "<"):
            if kind in ("text", "yes/no"):
                self._fail(f"{name} is text, which {operator} cannot compare", at=at, hint=f"write {name}:{value}")
            number = self._number(kind, name, value, at)
            if operator.startswith(">"):
                return _range(name, kind, number, None, above=operator == ">")
            return _range(name, kind, None, number, below=operator == "<")
        if value == "*" and not quoted:
            return Term(name, f"{name}:*")
        if not quoted and ".." in value and kind not in ("text", "yes/no"):
            low, _, high = value.partition("..")
            if not low and not high:
                self._fail("a range without ends", at=at, hint=f"as in {name}:LOW..HIGH, LOW.. or ..HIGH")
            least = self._number(kind, name, low, at) if low else None
            most = self._number(kind, name, high, at + len(low) + 2) if high else None
            if least is not None and most is not None and least > most:
                self._fail("a range whose low end is above its high end", at=at, hint=f"write {high}..{low}")
            return _range(name, kind, least, most)
        if kind in ("count", "size", "speed", "frequency"):
            number = self._number(kind, name, value, at)
            return _range(name, kind, number, number)
        return self._text(name, kind, flat.fold(value), quoted, at)

    def _text(self, name: str, kind: Kind, value: str, quoted: bool, at: int) -> Term:
        if not quoted and ("*" in value or "?" in value):
            value = re.sub(r"\*+", "*", value)
            return Term(name, f"{name}:{value}", glob=value)
        allowed = ("yes", "no") if kind == "yes/no" else _STATES if name == "state" else None
        if allowed and value not in allowed:
            near = difflib.get_close_matches(value, allowed, 1, 0.6) or _YES_NO.get(value, [])
            hint = f"did you mean {name}:{near[0]}?" if near else f"{name} is one of {', '.join(allowed)}"
            self._fail(f"{name} is never {value!r}", at=at, hint=hint)
        return Term(name, f"{name}:{quote(value)}", equals=value)

    def _number(self, kind: Kind, name: str, value: str, at: int) -> float:
        if kind == "version":
            number = flat.version_number(value)
            if number is None:
                self._fail(f"{value!r} is no version", at=at, hint=f"as in {name}>=6.12")
            return number
        units = _UNITS.get(kind, {})
        match = _NUMBER.fullmatch(value)
        example = f"as in {name}>={_EXAMPLES.get(kind, '8')}"
        if not match or len(match[1]) > 30:
            self._fail(f"{value!r} is no number", at=at, hint=example)
        unit = match[2]
        if not units:
            if unit:
                self._fail(f"{name} is a plain number, without unit {unit!r}", at=at, hint=f"write {match[1]}")
            return float(match[1])
        if unit not in units:
            # Half of the tools in this field read "GB" one way and half the other.
            spelled = _DECIMAL if kind == "size" else _SPELLED
            near = next((one for one in units if one.lower() == unit.lower()), spelled.get(unit.lower()))
            hint = f"did you mean {match[1]}{near}?" if near else f"units are {', '.join(units)}; {example}"
            self._fail(f"unknown unit {unit!r}" if unit else f"{value} has no unit", at=at, hint=hint)
        return float(Fraction(match[1]) * units[unit])


def _range(
    name: str, kind: Kind, least: float | None, most: float | None, *, above: bool = False, below: bool = False
) -> Term:
    if least is not None and least == most:
        shown = f"{name}:{_shown(kind, least)}" if kind not in ("any", "version") else None
        shown = shown or f"{name}:{_shown(kind, least)}..{_shown(kind, least)}"
    elif most is None and least is not None:
        shown = f"{name}{'>' if above else '>='}{_shown(kind, least)}"
    elif least is None and most is not None:
        shown = f"{name}{'<' if below else '<='}{_shown(kind, most)}"
    else:
        assert least is not None and most is not None
        shown = f"{name}:{_shown(kind, least)}..{_shown(kind, most)}"
    return Term(name, shown, least=least, most=most, above=above, below=below)


def _shown(kind: Kind, number: float) -> str:
    """A number as it can be written: exact, in the largest unit that needs no fraction."""
    if kind == "version":
        whole = int(number)
        parts = [whole // 10**10, whole // 10**5 % 10**5, whole % 10**5]
        return ".".join(str(part) for part in (parts if parts[2] else parts[:2]))
    exact = Fraction(number)
    units = _UNITS.get(kind)
    if not units:
        return _decimal(exact)
    unit, factor = max(
        ((unit, factor) for unit, factor in units.items() if (exact / factor).denominator == 1),
        key=lambda one: one[1],
        default=min(units.items(), key=lambda one: one[1]),
    )
    return f"{_decimal(exact / factor)}{unit}"


def _decimal(exact: Fraction) -> str:
    # The shortest that reads back as the same float; never with an exponent, which the language does not have.
    return f"{exact.numerator}" if exact.denominator == 1 else f"{float(exact):.20f}".rstrip("0")


def quote(value: str) -> str:
    """A text as it can be written in a predicate: in quotes where it must be."""
    if _PLAIN.fullmatch(value) and ".." not in value:
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
