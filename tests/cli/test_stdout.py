"""``-`` as the name of a written file: that document or page is all of stdout, once, with --json and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.plan.factories import make_facts
from tests.plan.test_cli import SITE
from tests.verify.nova import test_lint as nova
from tests.verify.record import load
from tests.verify.test_findings import judge

from evenkeel.cli import output, root
from evenkeel.documents.findings import Findings

PLAN, SEEN = load()
FINDINGS = judge(SEEN)

#: Verb -> its arguments, FOLDER being filled in, and what it saves.
DOCUMENTS = {
    "facts": (["{folder}/facts.json"], "Facts"),
    "doctor": (["{folder}/facts.json"], "Findings"),
    "plan": (["{folder}/site.yaml", "--facts", "{folder}/facts.json"], "Plan"),
    "place": (["{folder}/site.yaml", "--facts", "{folder}/facts.json"], "FleetPlan"),
    "verify": (["{folder}/plan.json"], "Findings"),
    "lint nova": ([str(nova.RECORDED / "healthy.jsonl")], "Findings"),
}
#: What is written besides: stdout then holds that, and no document.
PAGES = {
    "facts": ["--picture"],
    "place": ["--picture"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "facts.json").write_text(make_facts().to_json())
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    (other := tmp_path / "here").mkdir()
    monkeypatch.chdir(other)
    monkeypatch.setattr("evenkeel.cli.verify._verify", lambda host, *_: FINDINGS.model_copy(update={"host": host.name}))
    return tmp_path


class _Ran:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch

    def __call__(self, verb: str, *more: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(output, "_emitted", False)  # one process is one command, but for tests
        given = [word.format(folder=self._folder) for word in DOCUMENTS[verb][0]]
        code = root.run([*verb.split(), *given, *more])
        said = self._capsys.readouterr()
        assert not (self._folder / "here/-").exists(), "a file named -"
        return code, said.out, said.err


@pytest.fixture
def ran(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> _Ran:
    return _Ran(folder, capsys, monkeypatch)


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_a_document_on_stdout_is_alone_there(verb: str, ran: _Ran) -> None:
    plain = ran(verb, "--json")
    assert plain[0] in (0, 1) and json.loads(plain[1])["kind"] == DOCUMENTS[verb][1]
    for more in (["-o", "-"], ["-o", "-", "--json"]):
        code, out, err = ran(verb, *more)
        assert (code, json.loads(out)["kind"]) == (plain[0], DOCUMENTS[verb][1]), err


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb in PAGES for option in PAGES[verb]])
def test_a_picture_on_stdout_is_alone_there(verb: str, option: str, ran: _Ran) -> None:
    code, out, err = ran(verb, option, "-")
    assert code in (0, 1), err
    assert out.lstrip().startswith("<") and out.rstrip().endswith(">") and '"kind"' not in out
    for other in (["--json"], ["-o", "-"]):
        code, out, err = ran(verb, option, "-", *other)
        assert code == 2 and "both print on stdout" in err
        assert not out.lstrip().startswith("<")


@pytest.mark.parametrize("verb", ["doctor", "lint nova"])
def test_sarif_and_a_document_are_two(verb: str, ran: _Ran) -> None:
    for other in (["--json"], ["-o", "-"]):
        code, out, err = ran(verb, "--sarif", *other)
        assert code == 2 and "--sarif both print on stdout" in err and '"runs"' not in out


def test_a_page_on_stdout_is_alone_there(ran: _Ran, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["report", str(folder / "plan.json"), "-o", "-"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert root.run(["report", str(folder / "plan.json"), "-o", "-", "--json"]) == 2
    assert "both print on stdout" in capsys.readouterr().err


def test_the_findings_of_several_hosts_are_one_list(ran: _Ran, folder: Path) -> None:
    hosts = [PLAN.hosts[0].model_copy(update={"name": name}) for name in ("a", "b")]
    (folder / "plan.json").write_text(PLAN.model_copy(update={"hosts": tuple(hosts)}).to_json())
    for more in (["--json"], ["-o", "-"], ["-o", "-", "--json"]):
        found = json.loads(ran("verify", *more)[1])
        assert [Findings.model_validate(one).host for one in found] == ["a", "b"]


def test_an_error_after_the_document_adds_no_second_one(ran: _Ran) -> None:
    code, out, err = ran("facts", "-o", "-", "--json", "--picture", "/no/such/folder/machine.svg")
    assert code == 2 and "cannot write" in err
    assert json.loads(out)["kind"] == "Facts"
