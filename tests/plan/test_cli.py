"""`evenkeel plan` and `evenkeel explain`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenkeel.cli import main
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import Plan
from evenkeel.documents.site import Site
from tests.plan.factories import STANDARD_KERNEL, make_facts

SITE = """\
version: 1
hosts:
  cell: {address: "virtual:nobody"}
guests:
  plc:
    goal: realtime
    latency: 100us
    vcpus: 2
    memory: 384MiB
    boot: {kernel: /k}
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "facts.json").write_text(make_facts().to_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_plan_prints_and_saves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "site.yaml", "--facts", "cell=facts.json", "-o", "plan.json"]) == 0
    out, err = capsys.readouterr()
    for text in (
        "housekeeping",
        "0-1,6-7",
        "H-ISO-2",
        "nohz_full",
        "R-IRQ-1 (2)",
        "0: 8, 1: 10 fifo 2",
        "note R-IRQ-2",
    ):
        assert text in out, text
    assert "cell: 27 changes (9 need a reboot, 1 should come before guests start), 8 already so" in out
    assert "H-THP" not in out
    assert "next: evenkeel apply plan.json" in err
    assert Plan.from_json((folder / "plan.json").read_text(), file="plan.json").hosts[0].name == "cell"


def test_plan_shows_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "site.yaml", "--facts", "facts.json", "--all"]) == 0
    out = capsys.readouterr().out
    assert "nothing to set" in out and "(already so)" in out


def test_json_is_the_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "site.yaml", "--facts", "facts.json", "--json"]) == 0
    first = capsys.readouterr().out
    assert Plan.from_json(first, file="-").to_json() == first
    assert main(["plan", "site.yaml", "--facts", "facts.json", "-o", "-"]) == 0
    assert capsys.readouterr().out == first


def test_against_an_older_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "site.yaml", "--facts", "facts.json", "-o", "old.json"]) == 0
    capsys.readouterr()
    assert main(["plan", "site.yaml", "--facts", "facts.json", "--against", "old.json"]) == 0
    assert "ask for the same" in capsys.readouterr().out
    (folder / "site.yaml").write_text(SITE.replace("100us", "40us"))
    assert main(["plan", "site.yaml", "--facts", "facts.json", "--against", "old.json"]) == 0
    assert "H-ISO-3:poll" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--facts", "cel=facts.json"], "did you mean cell?"),
        (["--facts", "facts.json", "--facts", "cell=facts.json"], "twice"),
        (["--facts", "facts.jsn"], "did you mean facts.json?"),
        (["--facts", "site.yaml"], "not JSON"),
    ],
)
def test_wrong_facts(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["plan", "site.yaml", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_every_problem_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "facts.json").write_text(make_facts(kernel=STANDARD_KERNEL, preempt_rt=False, programs={}).to_json())
    assert main(["plan", "site.yaml", "--facts", "facts.json"]) == 2
    err = capsys.readouterr().err
    assert "not PREEMPT_RT" in err and "not installed" in err and err.count("hint") == 2


def test_explain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "site.yaml", "--facts", "facts.json", "-o", "plan.json"])
    capsys.readouterr()
    assert main(["explain", "plan.json", "r-wq-2"]) == 0
    out = capsys.readouterr().out
    for text in ("fff -> c3", "housekeeping: 0-1,6-7", "verified by", "risk", "source", "performance, realtime"):
        assert text in out, text
    assert main(["explain", "plan.json", "plc"]) == 0
    assert "<domain" in capsys.readouterr().out
    for identifier in ("G-4", "R-IRQ-2", "H-TSC"):
        assert main(["explain", "plan.json", identifier]) == 0
        assert identifier in capsys.readouterr().out
    assert main(["explain", "plan.json", "R-WQ-2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["settings"][0]["new"] == "c3" and data["rule"]["disturbance"] == "live"


def test_explain_of_something_unknown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "site.yaml", "--facts", "facts.json", "-o", "plan.json"])
    assert main(["explain", "plan.json", "R-WQ-3"]) == 2
    assert "did you mean R-WQ-2?" in capsys.readouterr().err
    assert main(["explain", "site.yaml", "R-WQ-2"]) == 2
    assert "a plan is needed here" in capsys.readouterr().err


def test_facts_that_make_no_sense(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evenkeel.apply.hosts import ask_facts
    from evenkeel.errors import Unreachable
    from evenkeel.machines import address

    class Broken:
        def probe(self) -> Broken:
            return self

        def call(self, op: str, **_: object) -> dict[str, str]:
            return {"kind": "Facts"}

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(address, "resolve", lambda _: Broken())
    with pytest.raises(Unreachable, match=r"^local: the probe answers with facts that make no sense"):
        ask_facts("local")


def test_documents_agree() -> None:
    """Facts and site of the test are what the commands read."""
    assert Facts.from_json(make_facts().to_json(), file="f") == make_facts()
    assert Site.model_fields.keys() >= {"hosts", "guests"}
