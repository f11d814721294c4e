"""The schemas: valid, complete, and true of what they describe."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from evenkeel.cli import main
from evenkeel.cli.schema import DIALECT, KINDS, schema_of
from evenkeel.documents.base import Document
from evenkeel.documents.journal import Journal, JournalEntry

EXAMPLE = Path(__file__).parents[2] / "examples" / "plc" / "site.yaml"


@pytest.fixture
def example() -> Any:
    return YAML(typ="safe", pure=True).load(EXAMPLE.read_text(encoding="utf-8"))


def refused(data: Any) -> bool:
    return not jsonschema.Draft202012Validator(schema_of("Site")).is_valid(data)


@pytest.mark.parametrize("kind", KINDS)
def test_each_schema_is_a_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", kind.lower()]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == DIALECT
    version = Document.registry[kind].model_fields["version"].default
    assert schema["$id"] == f"urn:evenkeel:schema:{kind}:{version}"
    assert refused([]) and not jsonschema.Draft202012Validator(schema).is_valid({"kind": kind, "nonsense": 1})


def test_every_document_has_a_schema() -> None:
    for kind in KINDS:
        schema_of(kind)
    own = {name for name, model in Document.registry.items() if model.__module__.startswith("evenkeel.documents.")}
    assert own == set(KINDS)


def test_without_a_name_the_documents_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(KINDS)
    assert main(["schema", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == list(KINDS)


def test_the_example_site_fits_the_schema(example: Any) -> None:
    jsonschema.Draft202012Validator(schema_of("Site")).validate(example)


def test_the_schema_of_a_site_is_the_one_of_the_file(example: Any) -> None:
    """What the reader of site files refuses, an editor with this schema refuses too; and the reverse."""
    wrong: list[tuple[tuple[str, ...], object]] = [
        (("guests", "plc", "memory"), 4096),
        (("guests", "plc", "latency"), 100),
        (("guests", "plc", "memroy"), "4GiB"),
        (("guests", "plc", "cpus"), "4-N"),
        (("guests", "plc", "vcpus"), 0),
        (("guests", "plc", "goal"), "fast"),
        (("version",), 2),
        (("kind",), "Site"),
    ]
    for path, value in wrong:
        data = copy.deepcopy(example)
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert refused(data), path
    del example["version"]
    assert refused(example)
    example["version"] = 1
    example["guests"]["plc"]["cpus"] = 3
    assert not refused(example)


def test_a_saved_document_fits_its_schema() -> None:
    entry = JournalEntry(sequence=0, at="2025-01-01T00:00:00Z", event="begin", plan_sha256="0")
    data = json.loads(Journal(host="cell", entries=(entry,)).to_json())
    jsonschema.Draft202012Validator(schema_of("Journal")).validate(data)
