"""Whatever a person writes into a site file: a plan, or errors with their place in the file.  Never a traceback.

Texts without any structure are tried in test_sitefile.py; here sites are taken apart and put together wrongly, and
then planned for as the command line does it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.cli import main
from evenkeel.cli.files import load_site, placed_in
from evenkeel.documents.facts import Facts
from evenkeel.errors import EvenkeelError, Where
from evenkeel.plan import make_plan
from tests.plan.factories import make_facts

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
FACTS = make_facts(cores=5)
#: Uses every part of the format; as data, since JSON is YAML and mutations need places.
SITE: dict[str, Any] = {
    "version": 1,
    "hosts": {
        "cell": {
            "address": "virtual:plc",
            "housekeeping": "0-1,10-11",
            "overrides": {"R-WQ-1": {"off": True, "because": "x"}, "H-ISO-6": {"value": "0", "because": "y"}},
            "consents": {"no-audit": {"because": "z"}},
        }
    },
    "guests": {
        "plc": {
            "goal": "realtime",
            "latency": "100us",
            "vcpus": 2,
            "realtime_vcpus": "1",
            "memory": "256MiB",
            "page_size": "2MiB",
            "trust": "spins",
            "near": "ens3",
            "boot": {"kernel": "/k", "initrd": "/i", "arguments": "quiet"},
        },
        "db": {
            "goal": "performance",
            "vcpus": 2,
            "memory": "128MiB",
            "cpus": "4-5",
            "disks": [{"path": "/dev/sdb", "format": "raw"}, {"path": "/d.qcow2", "format": "qcow2"}],
            "networks": [{"bridge": "br0"}, {"network": "default"}, {"user": True}],
        },
        "gui": {"goal": "balanced", "vcpus": 1, "memory": "64MiB", "networks": [{"bridge": "br0"}]},
        "log": {"vcpus": 1, "memory": "64MiB", "host": "cell", "architecture": "x86_64", "boot": {"kernel": "/k"}},
    },
}
WORDS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 99, 10**30, 1.5, "", " ", "0", "-", "0-", "0-3", "4-N", "all", "0-8191", "99999"),
    *("1us", "0us", "1ns", "9999h", "-5ms", "100 us", "1.5us", "1KiB", "0MiB", "3MiB", "4096", "1e9GiB", "4GB", "∞"),
    *("realtime", "performance", "balanced", "flexible", "Realtime", "yields", "spins", "cell", "plc", "ens2", "br0"),
    *("ssh://root@a", "ssh://", "local", "virtual:", "/no/such/tree", "aarch64", "ppc64le", "qcow2", "R-WQ-1", "H-"),
    *("a\nb", "\u2028", "\x07", "😀", "x" * 3000, "&a", "*a", "<<", "!!python/object", "%", "{{", "]]>", "<a/>", "'"),
    *([], {}, [None], {"a": {}}, [[["x"]]], {"because": "x"}, {"path": "/x"}, {"kernel": ""}),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    if path:
        yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


PLACES = tuple(places(SITE))


def quoted(text: str) -> str:
    """JSON is YAML but for lone surrogates, which no UTF-8 file can hold."""
    return json.dumps(text, ensure_ascii=True)


def written(node: Any, indent: int = 0) -> str:
    """Block style where a person would use it, so that errors have lines of their own."""
    pad = "  " * indent
    if isinstance(node, dict) and node:
        lines = []
        for key, value in node.items():
            name = key if isinstance(key, str) and key.replace("-", "_").isidentifier() else quoted(str(key))
            body = written(value, indent + 1)
            lines.append(f"{pad}{name}:{body}")
        return ("\n" if indent else "") + "\n".join(lines)
    if isinstance(node, str):
        plain = node and node.isascii() and node.replace("-", "").replace("/", "").isalnum()
        return f" {node}" if plain else f" {quoted(node)}"
    return f" {json.dumps(node)}"


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A site with up to five things wrong."""
    site = json.loads(json.dumps(SITE))
    for _ in range(draw(st.sampled_from((1, 1, 2, 3, 5)))):
        path = draw(st.sampled_from(PLACES))
        parent: Any = site
        try:
            for key in path[:-1]:
                parent = parent[key]
            old = parent[path[-1]]
        except (LookupError, TypeError):
            continue
        if not isinstance(parent, dict | list):
            continue
        match draw(st.sampled_from(("value", "value", "other", "gone", "key", "more", "list"))):
            case "value":
                parent[path[-1]] = draw(st.sampled_from(WORDS))
            case "other":
                other: Any = SITE
                for key in draw(st.sampled_from(PLACES)):
                    other = other[key]
                parent[path[-1]] = json.loads(json.dumps(other))
            case "gone":
                del parent[path[-1]]
            case "key" if isinstance(parent, dict):
                del parent[path[-1]]
                parent[draw(st.sampled_from(("", "Goal", "vcpu", "a b", "x" * 70, "1", "<<", "~", "goal")))] = old
            case "more" if isinstance(parent, dict):
                parent[draw(st.sampled_from([place[-1] for place in PLACES if isinstance(place[-1], str)]))] = old
            case _:
                parent[path[-1]] = [old, old]
    text = written(site) + "\n"
    if draw(st.sampled_from((False, False, False, True))):  # and a slip of the editor
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
        slip = draw(st.sampled_from(("", " ", "\n", "\t", ": ", "- ", '"', "\n  ", "#", "{", "\x00", "\ufeff")))
        text = text[:at] + slip + text[at + length :]
    return text


def check(text: str, facts: Facts = FACTS) -> str:
    """As `evenkeel plan` does it.  Any other exception fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "site.yaml"
        file.write_text(text, encoding="utf-8")
        lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + 2
        try:
            site = load_site(file)
            with placed_in(file):
                plan = make_plan(site, {"cell": facts})
        except EvenkeelError as error:
            for one in (error, *getattr(error, "others", ())):
                assert one.message
                assert isinstance(one.where, Where), one
                assert one.where.file == str(file)
                if one.message not in ("the site has no hosts", "the file is empty"):  # nothing to point at
                    assert one.where.line is not None and 1 <= one.where.line <= lines, one
            return "refused"
    assert plan.to_json()
    return "planned"


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(mutated())
def test_a_site_put_together_wrongly(text: str) -> None:
    check(text)


@pytest.mark.long
@settings(max_examples=4000, deadline=None, suppress_health_check=SLOW)
@given(mutated())
def test_a_site_put_together_wrongly_often(text: str) -> None:
    check(text)


def test_the_site_as_it_is_meant_is_planned() -> None:
    assert check(written(SITE)) == "planned"
    assert check(json.dumps(SITE)) == "planned"


def test_a_refusal_has_its_line() -> None:
    text = written(SITE).replace("256MiB", "256GiB")
    line = text[: text.index("  plc:")].count("\n") + 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "site.yaml"
        file.write_text(text)
        with pytest.raises(EvenkeelError) as caught, placed_in(file):
            make_plan(load_site(file), {"cell": FACTS})
    assert caught.value.where == Where(str(file), line, 3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, *SLOW])
@given(
    st.binary(max_size=200)
    | st.tuples(st.binary(max_size=20), st.sampled_from((b"\xff", b"\x00", b"\xc3("))).map(
        lambda parts: written(SITE).encode() + parts[0] + parts[1]
    )
)
def test_any_bytes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "site.yaml").write_bytes(content)
    (tmp_path / "facts.json").write_text(FACTS.to_json())
    code = main(["plan", str(tmp_path / "site.yaml"), "--facts", str(tmp_path / "facts.json")])
    assert code in (0, 2)
    if code:
        error = capsys.readouterr().err
        assert "Traceback" not in error and "site.yaml" in error


def test_an_exception_of_another_kind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("plc")

    monkeypatch.setattr("tests.plan.test_fuzz_site.make_plan", broken)
    with pytest.raises(KeyError):
        check(written(SITE))
