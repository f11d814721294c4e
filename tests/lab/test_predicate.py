"""Predicates: what they mean, what is said of a mistake and where.  SQL, memory and a search's index agree for any."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, insert, select

from evenkeel.lab import flat, schema, search
from evenkeel.lab import predicate as language
from evenkeel.lab.facets import Index
from evenkeel.lab.flat import Flat
from evenkeel.lab.predicate import Predicate, PredicateError

GIB = 1 << 30
HOST: Flat = {
    "name": ["host1"],
    "site": ["prg"],
    "state": ["ready"],
    "cpu.flag": ["avx512f", "sse2"],
    "cpu.model": ["Intel(R) Xeon(R) Gold 6338"],
    "cpu.threads": [64],
    "mem": [256 * GIB],
    "nic.driver": ["mlx5_core", "igb"],
    "nic.speed": [1e9, 25e9],
    "sriov.vfs": [8],
    "kernel.version": ["6.12.3-rt5"],
    "kernel.rt": ["yes"],
    "pci.id": ["15b3:101d"],
    "label.rack": ["7"],
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu.flag:avx512f nic.driver:mlx5_core mem>=256GiB sriov.vfs>=8",
        "host1",
        "host*",
        "h?st1 OR nothing",
        "NAME:HOST1",
        'cpu.model:"intel(r) xeon(r) gold 6338"',
        "cpu.model:*gold*6338",
        "site:nue,prg",
        "site!=nue",
        "NOT site:nue",
        "NOT (site:nue OR mem<1GiB) AND cpu.threads:64",
        "mem:64GiB..256GiB cpu.threads:..64 cpu.threads:64..",
        "mem=0.25TiB",
        "nic.speed>=25Gbps nic.speed:1Gbps",
        "kernel.version>=6.12 kernel.version<6.13 kernel.version:6.12*",
        "kernel.version:6.10..6.12.3",
        "kernel.rt:yes",
        "pci.id:15b3:101d",
        "sriov.vfs:*",
        "label.rack>6 label.rack:7",
        "mem >= 256GiB",
    ],
)
def test_what_host1_is(text: str) -> None:
    assert Predicate.parse(text).matches(HOST)


@pytest.mark.parametrize(
    "text",
    [
        "host",
        "host2",
        "cpu.flag:avx512",
        "mem>256GiB",
        "nic.driver!=igb",
        "NOT (site:prg OR mem<1GiB)",
        "kernel.version>=6.13",
        "iommu:*",
        "cpu.threads:65..",
        "sriov.vfs<8",
        "site:nue OR site:brq",
        "label.floor:*",
        # A glob in quotes is a text.
        'name:"host*"',
        # [..] is no glob.
        "name:host[1]*",
    ],
)
def test_what_host1_is_not(text: str) -> None:
    assert not Predicate.parse(text).matches(HOST)


def test_and_binds_closer_than_or_and_not_closest() -> None:
    assert Predicate.parse("site:prg OR site:nue name:other").matches(HOST)
    assert not Predicate.parse("(site:prg OR site:nue) name:other").matches(HOST)
    assert not Predicate.parse("NOT site:prg site:nue").matches(HOST)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mem>=256GiB cpu.flag:avx512f", "cpu.flag:avx512f   AND mem>=0.25TiB"),
        ("site:a,b", "site:b OR site:a"),
        ("site!=a", "NOT NOT NOT site:A"),
        ("(site:a) ((name:b))", "b site:a b"),
        ("kernel.version>=6.12", "kernel.version>=6.12.0"),
    ],
)
def test_the_signature_forgets_how_it_was_written(one: str, other: str) -> None:
    assert Predicate.parse(one).signature == Predicate.parse(other).signature


def test_a_machine_asked_for_by_name() -> None:
    assert Predicate.parse("Host1").machine_name == "host1"
    assert Predicate.parse("host*").machine_name is None
    assert Predicate.parse("host1 mem>=1GiB").machine_name is None


@pytest.mark.parametrize(
    ("text", "column", "said", "hint"),
    [
        ("mem>=1GiB cpu.flags:avx", 11, "no such key: cpu.flags", "did you mean cpu.flag?"),
        ("mem>=256", 6, "256 has no unit", "units are B, KiB, MiB, GiB, TiB; as in mem>=256GiB"),
        ("mem>=256GB", 6, "unknown unit 'GB'", "did you mean 256GiB?"),
        ("mem>=lots", 6, "'lots' is no number", "as in mem>=256GiB"),
        ("cpu.threads>=8GiB", 14, "cpu.threads is a plain number, without unit 'GiB'", "write 8"),
        ("nic.speed>=25G", 12, "unknown unit 'G'", "did you mean 25Gbps?"),
        ("mem:8GiB..4GiB", 5, "a range whose low end is above its high end", "write 4GiB..8GiB"),
        ("mem:..", 5, "a range without ends", "as in mem:LOW..HIGH, LOW.. or ..HIGH"),
        ("site>a", 6, "site is text, which > cannot compare", "write site:a"),
        ("kernel.version>=new", 17, "'new' is no version", "as in kernel.version>=6.12"),
        ("kernel.rt:true", 11, "kernel.rt is never 'true'", "did you mean kernel.rt:yes?"),
        ("state:redy", 7, "state is never 'redy'", "did you mean state:ready?"),
        ("host1 or host2", 7, "'or' where a term is expected", "did you mean OR?"),
        ("OR host2", 1, "'OR' where a term is expected", "it stands between two terms"),
        ("(site:a", 1, "this parenthesis is never closed", None),
        ("site:a)", 7, "a closing parenthesis that nothing opened", "remove it, or write the text in quotes"),
        ("site:a AND", 11, "something is missing at the end", "after AND, OR, NOT and ( comes a term"),
        ('site:"a', 6, "this quote is never closed", None),
        ("site:", 6, "site has no value", 'as in site:VALUE, or site:* for any, or site:"two words"'),
        ("mem>1GiB,2GiB", 9, "a list after >", "lists go with : only, as in mem:a,b"),
        ("()", 2, "name has no value", None),
        ("(" * 50, 42, "more than 40 parentheses and NOTs inside each other", None),
        ("x " * 201, 401, "more than 200 terms", None),
        ("x" * 5000, 4001, "longer than 4000 characters", None),
    ],
)
def test_a_mistake_is_told_with_its_column(text: str, column: int, said: str, hint: str | None) -> None:
    with pytest.raises(PredicateError) as raised:
        Predicate.parse(text)
    assert (raised.value.column, raised.value.message) == (column, said)
    assert hint is None or raised.value.hint == hint


def test_keys_suggested_are_keys() -> None:
    for text in ("cpu.thread:1", "nic.drivers:a", "memory>=1GiB", "numa.node:1"):
        with pytest.raises(PredicateError) as raised:
            Predicate.parse(text)
        assert flat.key((raised.value.hint or "").removeprefix("did you mean ").removesuffix("?"))


def test_the_reference_has_every_key_with_its_meaning_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "lab-predicate.md").read_text(encoding="utf-8")
    section = page.partition("## Keys")[2].partition("## Limits")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\S+?)(, many)? \| (.+) \|$", section, re.MULTILINE)
    expected = [(name, key.kind, ", many" if key.many else "", key.what) for name, key in flat.KEYS.items()]
    assert rows[:-1] == expected
    assert rows[-1][:2] == ("label.NAME", "any")
    for text in re.findall(r"^(?:cpu|\(site|host).*$", page.partition("```text")[2].partition("```")[0], re.MULTILINE):
        Predicate.parse(text)
    for number in (language.MOST_CHARACTERS, language.MOST_TERMS, language.MOST_DEPTH):
        assert f"{number} " in page.partition("## Limits")[2]


# -- SQL, memory and the index agree ------------------------------------------------------------------------------

_TEXTS = [
    "a",
    "A",
    "ab",
    "a%b",
    "a_b",
    "a\\b",
    "[a]",
    "é",
    "a b",
    'a"b',
    "a.b",
    "a..b",
    "(a)",
    "a*b",
    "or",
    "6.12.1",
    "",
]
_NUMBERS = [0, 1, 2.5, 8, 2**40]
_VERSIONS = ["6.12", "6.12.3-rt5", "6.1", "5.14.0-503.el9", "none"]
_SIZES = ["0B", "1B", "8B", "1TiB", "2.5B"]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def terms(draw: st.DrawFn) -> str:
    sort = draw(st.sampled_from(["text", "glob", "size", "version", "count", "any", "has", "list", "state"]))
    key = draw(st.sampled_from(["nic.driver", "site", "label.x", "name", "vendor"]))
    operator = draw(st.sampled_from([":", "=", "!="]))
    compare = draw(st.sampled_from([">=", "<=", ">", "<", ":", "!="]))
    if sort == "text":
        return f"{key}{operator}{_quoted(draw(st.sampled_from(_TEXTS)))}"
    if sort == "list":
        return f"{key}{operator}" + ",".join(
            _quoted(text) for text in draw(st.lists(st.sampled_from(_TEXTS), min_size=1))
        )
    if sort == "glob":
        return f"{key}{operator}" + draw(
            st.sampled_from(["a*", "*b", "?", "a?b", "*%*", "*_b", "a\\*", "[a]*", "*.*", "**"])
        )
    if sort == "size":
        return f"mem{compare}{draw(st.sampled_from(_SIZES))}"
    if sort == "version":
        if compare in (":", "!="):
            return f"kernel.version{compare}{draw(st.sampled_from(['6.12', '6.*', '6.1..6.12', '6.12..', '..5.14']))}"
        return f"kernel.version{compare}{draw(st.sampled_from(['6.12', '6.12.3', '5']))}"
    if sort == "state":
        return f"state{operator}{draw(st.sampled_from(['ready', 'retired', 're*', 'broken,ready', '*']))}"
    if sort == "count":
        key = draw(st.sampled_from(["cpu.threads", "numa.nodes", "nic.count"]))
        return f"{key}{compare}{draw(st.sampled_from(['0', '1', '2.5', '8', '-1']))}"
    if sort == "any":
        return f"label.x{draw(st.sampled_from(['>', '>=', '<', '<=', ':']))}{draw(st.sampled_from(['1', '8', '2.5']))}"
    return f"{key}{operator}*"


predicates = st.recursive(
    terms(),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(" ".join),
        st.tuples(inner, inner).map(" AND ".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} OR {two[1]})"),
        inner.map(lambda one: f"NOT ({one})"),
    ),
    max_leaves=8,
)
machines = st.fixed_dictionaries(
    {},
    optional={
        "site": st.lists(st.sampled_from([text for text in _TEXTS if text]), min_size=1, max_size=1),
        "vendor": st.lists(st.sampled_from(_TEXTS), min_size=1, max_size=1),
        "numa.nodes": st.lists(st.sampled_from([1, 2, 8]), min_size=1, max_size=1),
        "nic.count": st.lists(st.sampled_from([1, 2, 8]), min_size=1, max_size=1),
        "state": st.lists(st.sampled_from(["ready", "broken", "retired"]), min_size=1, max_size=1),
        "nic.driver": st.lists(st.sampled_from(_TEXTS), unique_by=flat.fold, min_size=1, max_size=3),
        "mem": st.lists(st.sampled_from(_NUMBERS), min_size=1, max_size=1),
        "cpu.threads": st.lists(st.sampled_from(_NUMBERS), unique=True, min_size=1, max_size=2),
        "kernel.version": st.lists(st.sampled_from(_VERSIONS), unique=True, min_size=1, max_size=2),
        "label.x": st.lists(st.sampled_from(["1", "8", "2.5", "nan", "inf", "a", "1e400"]), unique=True, min_size=1),
    },
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    schema.metadata.create_all(engine)
    yield engine
    engine.dispose()


def _ask_database(
    engine: Engine, pool: list[dict[str, list[str | float]]], predicate: Predicate
) -> tuple[list[bool], list[str]]:
    """Of each machine what SQL says; and the names that a search with its index finds, in its order."""
    row = {"state_since_ns": 0, "identity": {}, "policy": {}, "registered_ns": 0}
    with engine.connect() as connection:
        for number, facts in enumerate(pool):
            site = str(facts.get("site", [""])[0])
            machine = {"id": str(number), "name": str(facts["name"][0]), "site": site, "state": str(facts["state"][0])}
            connection.execute(insert(schema.machine).values(machine | row))
            rows = [
                {"machine_id": str(number), "key": key, "text": flat.text_of(one), "num": flat.number_of(key, one)}
                for key, values in facts.items()
                for one in values
            ]
            connection.execute(insert(schema.fact), rows)
        found = set(connection.scalars(select(schema.machine.c.id).where(predicate.where())))
        view = Index().follow(connection)
        fit = search.fitting(view, connection, predicate)
        names = [str(pool[int(one)]["name"][0]) for one in view.by_name(fit, 0, len(pool))]
        connection.rollback()
    return [str(number) in found for number in range(len(pool))], names


@settings(max_examples=60, deadline=None)
@given(text=predicates, pool=st.lists(machines, min_size=1, max_size=4))
def test_sql_memory_and_the_index_agree(engine: Engine, text: str, pool: list[dict[str, list[str | float]]]) -> None:
    predicate = Predicate.parse(text)
    named: list[dict[str, list[str | float]]] = []
    for number, facts in enumerate(pool):
        named.append({"state": ["ready"], "name": [f"{'ba'[number % 2]}{number}"]})
        named[-1].update(facts)
    in_memory = [predicate.matches(facts) for facts in named]
    by_sql, by_index = _ask_database(engine, named, predicate)
    assert by_sql == in_memory
    # A search leaves out retired machines, unless it asks for a state that they have; NOT state:ready does not.
    retired_too = any(term.key == "state" and term.fits("retired") for term in predicate.wanted())
    shown = [
        one
        for one, fits in zip(named, in_memory, strict=True)
        if fits and (retired_too or "retired" not in one["state"])
    ]
    assert by_index == sorted(str(one["name"][0]) for one in shown)
    # And so does what the signature says.
    again = Predicate.parse(predicate.signature)
    assert again.signature == predicate.signature
    assert [again.matches(facts) for facts in named] == in_memory


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet='abAN OR D T():=!<>."\\*?,.16GiB', max_size=40))
def test_any_text_is_a_predicate_or_a_mistake_with_its_place(text: str) -> None:
    try:
        predicate = Predicate.parse(text)
    except PredicateError as error:
        assert 1 <= error.column <= len(text) + 1
    else:
        assert Predicate.parse(predicate.signature).signature == predicate.signature
