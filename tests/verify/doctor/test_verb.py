"""The verb: what it prints, saves and exits with; on recorded trees, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenkeel.cli.root import run
from evenkeel.documents.findings import Findings
from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, EXIT_WRONG_INPUT
from tests.verify.doctor.tree import BASES, Tree

GUEST = """<domain type='kvm'><name>new</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>
<cputune><vcpusched vcpus='0-4' scheduler='fifo' priority='1'/></cputune></domain>"""


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A recording of a host with one harmful fault."""
    tree = Tree("guests")
    tree.thread("CPU 1/KVM", policy="fifo", priority=1, guest=True)
    path = tmp_path / "broken.tar.bz2"
    path.write_bytes(tree.tarball())
    return str(path)


def test_a_healthy_host_is_0_and_a_harmful_finding_is_1(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(BASES["guests"])]) == EXIT_DONE
    assert "0 harmful, 1 warning" in capsys.readouterr().out
    assert run(["doctor", broken]) == EXIT_NOT_AS_WANTED
    said = capsys.readouterr().out
    assert "D-RT-ONE:plc" in said and "why:" in said and "fix:" in said
    assert "guest plc, thread CPU 1/KVM: policy: fifo 1" in said
    assert "1 harmful" in said


def test_an_accepted_finding_is_shown_and_not_counted(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", broken, "--accept", "D-RT-ONE"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "harmful (accepted)" in said and "(1 accepted)" in said
    assert run(["doctor", broken, "--accept", "D-RT-ONE:plc"]) == EXIT_DONE
    assert run(["doctor", broken, "--accept", "D-RT-ONE:hmi"]) == EXIT_NOT_AS_WANTED
    capsys.readouterr()
    assert run(["doctor", broken, "--accept", "D-RT-WON"]) == EXIT_WRONG_INPUT
    assert "did you mean D-RT-ONE?" in capsys.readouterr().err


def test_json_is_a_findings_document_and_o_saves_the_same(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "findings.json"
    assert run(["doctor", broken, "--json", "-o", str(saved)]) == EXIT_NOT_AS_WANTED
    printed = capsys.readouterr().out
    assert printed == saved.read_text()
    findings = Findings.from_json(printed, file="findings.json")
    assert [check.id for check in findings.failed if check.severity == "harmful"] == ["D-RT-ONE:plc"]
    assert findings.checks[0].id == "D-RT-ONE:plc", "the worst comes first"


def test_sarif_is_printed_and_excludes_json(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", broken, "--sarif"]) == EXIT_NOT_AS_WANTED
    assert json.loads(capsys.readouterr().out)["version"] == "2.1.0"
    assert run(["doctor", broken, "--sarif", "--json"]) == EXIT_WRONG_INPUT


def test_saved_facts_say_the_same_as_the_machine(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tmp_path / "facts.json"
    assert run(["facts", broken, "-o", str(facts)]) == EXIT_DONE
    capsys.readouterr()
    run(["doctor", broken, "--json"])
    first = capsys.readouterr().out
    run(["doctor", str(facts), "--json"])
    assert capsys.readouterr().out == first


def test_a_definition_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml = tmp_path / "new.xml"
    xml.write_text(GUEST)
    assert run(["doctor", str(BASES["guests"]), "--xml", str(xml), "--json"]) == EXIT_NOT_AS_WANTED
    found = {check["id"] for check in json.loads(capsys.readouterr().out)["checks"] if check["status"] == "failed"}
    assert {"D-XML-REFUSED:new", "D-RT-ONE:new", "D-EMULATOR:new"} <= found
    assert run(["doctor", str(BASES["guests"]), "--xml", str(tmp_path / "none.xml")]) == EXIT_WRONG_INPUT


def test_what_is_no_host_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "nowhere"]) == EXIT_WRONG_INPUT
    (tmp_path / "x.json").write_text("{}")
    assert run(["doctor", str(tmp_path / "x.json")]) == EXIT_WRONG_INPUT


def test_all_lists_what_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", str(BASES["guests"]), "--all"])
    said = capsys.readouterr().out
    assert "D-ISO-CORE" in said and "No isolated CPU shares a core" in said
