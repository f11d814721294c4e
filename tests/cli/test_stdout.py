"""``-`` as the name of a written file: that document or page is all of stdout, once, with --json and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.measure.explain.constructed import recording
from tests.plan.factories import make_facts
from tests.plan.test_cli import SITE
from tests.report import factories
from tests.report.test_flame import STACKS, answer
from tests.verify.nova import test_lint as nova
from tests.verify.record import load
from tests.verify.test_findings import judge

from evenkeel.cli import output, root
from evenkeel.documents.findings import Findings
from evenkeel.measure.explain.recording import to_bytes

PLAN, SEEN = load()
FINDINGS = judge(SEEN)

#: Verb -> its arguments, FOLDER being filled in, and what it saves.
DOCUMENTS = {
    "facts": (["{folder}/facts.json"], "Facts"),
    "doctor": (["{folder}/facts.json"], "Findings"),
    "plan": (["{folder}/site.yaml", "--facts", "{folder}/facts.json"], "Plan"),
    "place": (["{folder}/site.yaml", "--facts", "{folder}/facts.json"], "FleetPlan"),
    "verify": (["{folder}/plan.json"], "Findings"),
    "measure": (["{folder}/evidence.json"], "Evidence"),
    "spikes": (["{folder}/plan.json", "plc", "--from", "{folder}/kept.zip", "--over", "1ms"], "Explanation"),
    "trace profile": ([], "Answer"),
    "lint nova": ([str(nova.RECORDED / "healthy.jsonl")], "Findings"),
}
#: What is written besides: stdout then holds that, and no document.
PAGES = {
    "facts": ["--picture"],
    "place": ["--picture"],
    "measure": ["--heat-map"],
    "spikes": ["--report", "--heat-map"],
    "trace profile": ["--flame"],
}


class _Probe:
    def call(self, *_: object, **__: object) -> Any:
        return make_facts().model_dump(mode="json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "facts.json").write_text(make_facts().to_json())
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    (tmp_path / "evidence.json").write_text(factories.evidence("after").to_json())
    (tmp_path / "kept.zip").write_bytes(to_bytes(recording()))
    (other := tmp_path / "here").mkdir()
    monkeypatch.chdir(other)
    monkeypatch.setattr("evenkeel.cli.verify._verify", lambda host, *_: FINDINGS.model_copy(update={"host": host.name}))
    monkeypatch.setattr("evenkeel.cli.trace._probe", lambda _: nullcontext(_Probe()))
    monkeypatch.setattr("evenkeel.measure.trace.ask.ask", lambda *_, **__: answer(STACKS))
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


def test_a_comparison_and_the_evidence_are_two(ran: _Ran, folder: Path) -> None:
    against = ["--against", str(folder / "evidence.json")]
    assert json.loads(ran("measure", *against, "--json")[1])["kind"] != "Evidence"
    assert json.loads(ran("measure", *against, "-o", "-")[1])["kind"] == "Evidence"
    code, out, err = ran("measure", *against, "-o", "-", "--json")
    assert code == 2 and "both print on stdout" in err and '"latencies"' not in out


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


# -- no verb is forgotten -----------------------------------------------------------------------------------------

#: What is named by -o is no document: a folder; a file that is fetched beside it first, so that `-` is refused.
OTHERS = {"demo", "lab run", "lab artifact get"}


def _written(command: Any, call: str) -> Iterator[str]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _written(below, f"{call} {name}")
    if any("-o" in option.opts for option in command.params):
        yield call


def test_every_verb_that_writes_a_document_is_in_this_table() -> None:
    root_command = root.root_command()
    found: set[str] = set()
    for verb in root.VERBS:
        context: typer.Context = root_command.make_context("evenkeel", [verb], resilient_parsing=True)
        found |= set(_written(root_command.resolve_command(context, [verb])[1], verb))
    # All questions of trace are answered by one function.
    asked = {call for call in found if call.startswith("trace ") and call != "trace profile"}
    assert asked and found - asked - OTHERS - {"report"} == set(DOCUMENTS)
