"""The folder of a run: documents find their place by what they say, and a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenkeel.cli import main
from evenkeel.errors import WrongInput
from evenkeel.report import folder
from evenkeel.report.folder import load_run
from tests.report import factories


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = factories.run()
    of_host = run.hosts["plc"]
    documents = {
        folder.PLAN: run.plan,
        folder.FACTS_BEFORE: of_host.facts_before,
        folder.FACTS_AFTER: of_host.facts_after,
        folder.FINDINGS_BEFORE: factories.findings(passed=2, failed=22),
        folder.FINDINGS: of_host.findings,
        folder.EVIDENCE_BEFORE: of_host.evidence_before,
        folder.EVIDENCE_AFTER: of_host.evidence_after,
        folder.JOURNAL: of_host.journal,
    }
    for name, document in documents.items():
        assert document is not None
        (tmp_path / name).write_text(document.to_json())
    return tmp_path


def test_every_document_comes_back_to_its_place(saved: Path) -> None:
    loaded = load_run([saved])
    wanted = factories.run()
    assert loaded.plan == wanted.plan
    found, expected = loaded.hosts["plc"], wanted.hosts["plc"]
    assert found.facts_before == expected.facts_before
    assert found.facts_after == expected.facts_after
    assert found.findings == expected.findings
    assert found.findings_before is not None and len(found.findings_before.failed) == 22
    assert found.evidence_before == expected.evidence_before
    assert found.evidence_after == expected.evidence_after
    assert found.journal == expected.journal


def test_names_of_files_do_not_matter_except_for_findings(saved: Path) -> None:
    (saved / folder.FACTS_AFTER).rename(saved / "a.json")
    (saved / folder.FACTS_BEFORE).rename(saved / "z.json")
    assert load_run([saved]).hosts["plc"].facts_before == factories.run().hosts["plc"].facts_before


def test_other_files_in_the_folder_are_passed_over(saved: Path) -> None:
    (saved / "notes.json").write_text('{"kind": "Shopping"}')
    (saved / "list.json").write_text("[1, 2]")
    (saved / "site.yaml").write_text("hosts: {}")
    assert load_run([saved]).plan == factories.run().plan


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: (path / folder.PLAN).unlink(), "no Plan document"),
        (lambda path: (path / folder.JOURNAL).write_text((path / folder.JOURNAL).read_text()[:200]), "not JSON"),
        (lambda path: (path / "deep.json").write_text("[" * 100_000), "not a Plan document"),
        (lambda path: (path / "huge.json").write_text("9" * 5000), "not a Plan document"),
        (lambda path: (path / "copy.json").write_text((path / folder.FINDINGS).read_text()), "both hold the findings"),
        (
            lambda path: (path / "other.json").write_text(factories.plan(address="ssh://root@elsewhere").to_json()),
            "two different Plan documents",
        ),
        (
            lambda path: (path / folder.EVIDENCE_AFTER).write_text(
                factories.evidence("after", host="stranger").to_json()
            ),
            "about host stranger",
        ),
        (
            lambda path: (path / folder.FACTS_AFTER).write_text(factories.facts(nodes=()).to_json()),
            "a machine that the plan is not about",
        ),
    ],
)
def test_a_folder_that_cannot_be_reported_is_refused(saved: Path, break_it: object, message: str) -> None:
    assert callable(break_it)
    break_it(saved)
    with pytest.raises(WrongInput, match=message):
        load_run([saved])


def test_a_named_file_must_be_a_document(tmp_path: Path, saved: Path) -> None:
    stray = tmp_path / "stray.json"
    stray.write_text('{"kind": "Shopping"}')
    with pytest.raises(WrongInput, match="not a document of a run"):
        load_run([saved / folder.PLAN, stray])
    with pytest.raises(WrongInput, match="cannot read"):
        load_run([tmp_path / "missing.json"])


def test_the_verb_writes_the_page_and_names_it(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(saved)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(saved / "report.html")
    first = (saved / "report.html").read_bytes()
    assert main(["report", str(saved), "--json", "-o", str(saved / "second.html")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "as planned"
    assert said["deadlines"][0]["state"] == "not provable"
    assert (saved / "second.html").read_bytes() == first


def test_the_verb_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "evenkeel plan SITE" in capsys.readouterr().err
