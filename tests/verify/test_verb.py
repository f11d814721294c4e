"""The verbs verify and measure without a virtual host: exit codes, wrong input, and what a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from evenkeel.cli import main, measure, output, verify
from evenkeel.documents.evidence import Evidence
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Findings
from evenkeel.documents.plan import HostPlan
from evenkeel.errors import (
    EXIT_NOT_AS_WANTED,
    EXIT_UNREACHABLE,
    EXIT_WRONG_INPUT,
    NotAsWanted,
    Unreachable,
    WrongInput,
)
from evenkeel.verify.observe import Options
from tests.plan.factories import make_facts
from tests.report import factories
from tests.verify.record import load
from tests.verify.test_findings import judge, setting

PLAN, SEEN = load()
RECORDED = Path(__file__).parents[1] / "measure" / "recorded"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan whose host nobody answers for."""
    away = PLAN.hosts[0].model_copy(update={"address": "ssh://root@127.0.0.1:1"})
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_copy(update={"hosts": (away,)}).to_json())
    return file


@pytest.mark.parametrize("verb", [["verify"], ["verify", "--quick"], ["measure"], ["measure", "--for", "2s"]])
def test_a_host_that_does_not_answer(
    verb: Sequence[str], plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_emitted", False)  # one process is one command, but for tests
    code = main([verb[0], str(plan), *verb[1:], "--json"])
    said = capsys.readouterr()
    assert code == EXIT_UNREACHABLE, said.err
    assert json.loads(said.out)["error"]["exit_code"] == EXIT_UNREACHABLE
    assert "Traceback" not in said.err and "ssh://root@127.0.0.1:1" in said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify", "no-such-plan.json"], "no-such-plan.json"),
        (["verify", "PLAN", "--load", "stress"], "stress"),
        (["measure", "PLAN", "nobody"], "no guest nobody"),
        (["measure", "PLAN", "--for", "10"], "--for"),
        (["measure", "PLAN", "--for", "1500ms"], "whole seconds"),
        (["measure", "PLAN", "--for", "0s"], "whole seconds"),
        (["measure", "PLAN", "--for", "9999h"], "720h"),
        (["measure", "PLAN", "--moment", "during"], "during"),
    ],
)
def test_wrong_input(arguments: list[str], told: str, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(plan) if word == "PLAN" else word for word in arguments])
    said = capsys.readouterr()
    assert code == EXIT_WRONG_INPUT, said.err
    assert told in said.err and "Traceback" not in said.err


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plan of three hosts; the second does not answer, the third has something to find."""

    def look(host: HostPlan, *_: object) -> Findings:
        if host.name == "second":
            raise Unreachable("virtual:second: connection lost")
        seen = setting("/proc/sys/vm/stat_interval", "1")(SEEN) if host.name == "third" else SEEN
        return judge(seen).model_copy(update={"host": host.name})

    monkeypatch.setattr(verify, "_verify", look)
    monkeypatch.setattr(output, "_emitted", False)
    hosts = tuple(PLAN.hosts[0].model_copy(update={"name": name}) for name in ("first", "second", "third"))
    (tmp_path / "plan.json").write_text(PLAN.model_copy(update={"hosts": hosts}).to_json())
    return str(tmp_path / "plan.json")


def test_a_host_that_is_away_hides_no_findings_of_the_others(
    three: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", three, "-o", str(tmp_path / "findings.json")]) == EXIT_UNREACHABLE
    said = capsys.readouterr()
    assert "first: as planned" in said.out and "third: not as planned" in said.out
    assert "virtual:second: connection lost" in said.err
    saved = sorted(path.name for path in tmp_path.glob("findings*"))
    assert saved == ["findings-first.json", "findings-third.json"]
    assert main(["verify", three, "--json"]) == EXIT_UNREACHABLE
    first, third, second = json.loads(capsys.readouterr().out)
    assert [Findings.model_validate(one).host for one in (first, third)] == ["first", "third"]
    assert second["host"] == "second" and second["error"]["exit_code"] == EXIT_UNREACHABLE


def test_a_host_that_is_away_hides_no_evidence_of_the_others(
    three: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = factories.evidence("after", emulated=False)

    def take(host: HostPlan, *_: object) -> Evidence:
        if host.name == "second":
            raise Unreachable("virtual:second: connection lost")
        return taken.model_copy(update={"host": host.name})

    monkeypatch.setattr(measure, "_measure", take)
    assert main(["measure", three, "-o", str(tmp_path / "evidence.json")]) == EXIT_UNREACHABLE
    assert "virtual:second: connection lost" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("evid*")) == ["evidence-first.json", "evidence-third.json"]
    assert main(["measure", three, "--json"]) == EXIT_UNREACHABLE
    first, third, second = json.loads(capsys.readouterr().out)
    assert [Evidence.model_validate(one).host for one in (first, third)] == ["first", "third"]
    assert (second["host"], second["error"]["exit_code"]) == ("second", EXIT_UNREACHABLE)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], list[str]]:
    """Put a function in the place of measuring: it is given the name of the host first.  Gives the hosts asked."""

    def install(before: Callable[[str], None]) -> list[str]:
        asked: list[str] = []

        def take(host: HostPlan, *_: object) -> Evidence:
            asked.append(host.name)
            before(host.name)
            return factories.evidence("after", emulated=False).model_copy(update={"host": host.name})

        monkeypatch.setattr(measure, "_measure", take)
        return asked

    return install


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NotAsWanted("host third has no cyclictest")], ids=type)
def test_what_stops_the_third_measurement_loses_none_of_the_first_two(
    error: BaseException,
    three: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    taken: Callable[[Callable[[str], None]], list[str]],
) -> None:
    """Each is saved before the next begins, and stdout has what there is, also where it is one document."""
    code = 130 if isinstance(error, KeyboardInterrupt) else EXIT_NOT_AS_WANTED
    there: dict[str, list[str]] = {}

    def before(host: str) -> None:
        there[host] = sorted(path.name for path in tmp_path.glob("evidence*"))
        if host == "third":
            raise error

    taken(before)
    assert main(["measure", three, "-o", str(tmp_path / "evidence.json")]) == code
    assert there["second"] == ["evidence-first.json"]
    assert there["third"] == ["evidence-first.json", "evidence-second.json"]
    said = capsys.readouterr()
    assert "first, after the plan is applied" in said.out and "second, after the plan" in said.out
    assert "Traceback" not in said.err and (str(error) or "interrupted") in said.err
    assert main(["measure", three, "--json"]) == code
    first, second, *failed = json.loads(capsys.readouterr().out)
    assert [Evidence.model_validate(one).host for one in (first, second)] == ["first", "second"]
    assert [one["host"] for one in failed] == ([] if isinstance(error, KeyboardInterrupt) else ["third"])


def test_a_measurement_that_fails_on_one_host_goes_on_with_the_next(
    three: str, capsys: pytest.CaptureFixture[str], taken: Callable[[Callable[[str], None]], list[str]]
) -> None:
    def before(host: str) -> None:
        if host == "first":
            raise NotAsWanted("host first has no cyclictest", hint="apt install rt-tests")

    asked = taken(before)
    assert main(["measure", three]) == EXIT_NOT_AS_WANTED
    said = capsys.readouterr()
    assert asked == ["first", "second", "third"]
    assert "apt install rt-tests" in said.err and "third, after the plan" in said.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "hgrm"], "--format hgrm is about one host, this plan has 3"),
        (["--against", "EARLIER"], "the earlier evidence is about host plc, which is not measured now"),
    ],
)
def test_what_several_hosts_cannot_give_is_refused_before_the_hours(
    options: list[str],
    told: str,
    three: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    taken: Callable[[Callable[[str], None]], list[str]],
) -> None:
    (tmp_path / "earlier.json").write_text(factories.evidence("before").to_json())
    words = [str(tmp_path / "earlier.json") if word == "EARLIER" else word for word in options]
    asked = taken(lambda host: None)
    assert main(["measure", three, *words]) == EXIT_WRONG_INPUT
    assert told in capsys.readouterr().err and asked == []


@pytest.mark.parametrize("verb", ["verify", "measure"])
def test_of_a_site_those_that_answer_are_looked_at(
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    taken: Callable[[Callable[[str], None]], list[str]],
) -> None:
    def ask(address: str, *_: object) -> Facts:
        if address == "virtual:second":
            raise Unreachable("virtual:second: no route to host")
        return make_facts()

    monkeypatch.setattr("evenkeel.apply.hosts.ask_facts", ask)
    monkeypatch.setattr(verify, "_verify", lambda host, *_: judge(SEEN).model_copy(update={"host": host.name}))
    hosts = "".join(f"  {name}: {{address: 'virtual:{name}'}}\n" for name in ("first", "second"))
    (tmp_path / "site.yaml").write_text(f"version: 1\nhosts:\n{hosts}")
    taken(lambda host: None)
    assert main([verb, str(tmp_path / "site.yaml")]) == EXIT_UNREACHABLE
    said = capsys.readouterr()
    assert {"verify": "first: as planned", "measure": "first, after the plan is applied"}[verb] in said.out
    assert "virtual:second: no route to host" in said.err


@pytest.mark.parametrize(
    ("earlier", "hosts", "code", "wanted"),
    [
        ("second", ("first", "second", "third"), EXIT_UNREACHABLE, ["first", "third"]),
        ("other", ("first", "second"), EXIT_WRONG_INPUT, []),
    ],
)
def test_a_host_to_compare_with_may_be_away_and_must_be_of_the_site(
    earlier: str,
    hosts: tuple[str, ...],
    code: int,
    wanted: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    taken: Callable[[Callable[[str], None]], list[str]],
) -> None:
    def ask(address: str, *_: object) -> Facts:
        if address == "virtual:second":
            raise Unreachable("virtual:second: no route to host")
        return make_facts()

    monkeypatch.setattr("evenkeel.apply.hosts.ask_facts", ask)
    lines = "".join(f"  {name}: {{address: 'virtual:{name}'}}\n" for name in hosts)
    (tmp_path / "site.yaml").write_text(f"version: 1\nhosts:\n{lines}")
    before = factories.evidence("before").model_copy(update={"host": earlier})
    (tmp_path / "earlier.json").write_text(before.to_json())
    asked = taken(lambda host: None)
    assert main(["measure", str(tmp_path / "site.yaml"), "--against", str(tmp_path / "earlier.json")]) == code
    said = capsys.readouterr().err
    assert asked == wanted and "virtual:second: no route to host" in said
    assert ("the earlier evidence is about host other" in said) == (earlier == "other")


def test_a_recorded_tree_can_be_neither_verified_nor_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tree"
    (folder / "sys/devices/system/cpu/cpu0").mkdir(parents=True)
    (folder / "sys/devices/system/cpu/online").write_text("0\n")
    tree = PLAN.hosts[0].model_copy(update={"address": str(folder)})
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_copy(update={"hosts": (tree,)}).to_json())
    for verb in ("verify", "measure"):
        assert main([verb, str(file)]) == EXIT_WRONG_INPUT, capsys.readouterr().err


def test_what_a_person_reads_of_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    verify._print(judge(setting("/proc/sys/vm/stat_interval", "1")(SEEN)), show_all=False)
    said = capsys.readouterr().out
    assert "R-TIM-2:stat_interval" in said and "/proc/sys/vm/stat_interval: 1" in said
    assert "why: " in said and "fix: evenkeel apply" in said
    assert "not as planned" in said and "1 failed" in said
    assert "V-KERNEL" not in said, "what passed is counted, not listed"
    assert "nothing here is a latency" in said


def test_all_lists_what_passed_too(capsys: pytest.CaptureFixture[str]) -> None:
    verify._print(judge(SEEN), show_all=True)
    said = capsys.readouterr().out
    assert "V-KERNEL" in said and "as planned" in said and "failed" not in said


def test_what_quick_leaves_out_alone_does_not_change_the_answer() -> None:
    window = {"rows": [], "seconds": 1.0}
    quick = replace(SEEN, quiet=None, loaded=None, interrupts=window)
    left_out = judge(quick, options=Options(spinners=False))
    assert left_out.verdict == "incomplete"
    assert verify._good(left_out, quick=True) and not verify._good(left_out, quick=False)
    more = judge(replace(quick, units={}, trouble={"units": "no systemd"}), options=Options(spinners=False))
    assert not verify._good(more, quick=True)
    assert verify._good(judge(SEEN), quick=False)


def test_a_file_a_host_where_there_are_several() -> None:
    assert verify.file_for("cell", "out/findings.json", several=False) == "out/findings.json"
    assert verify.file_for("cell", "out/findings.json", several=True) == "out/findings-cell.json"
    assert verify.file_for("cell", "-", several=True) == "-"


def test_durations_are_whole_seconds() -> None:
    assert [measure._seconds(text) for text in ("1s", "2000ms", "5min", "1h")] == [1, 2, 300, 3600]
    with pytest.raises(WrongInput):
        measure._seconds("10")


def test_a_measurement_from_emulation_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    evidence = Evidence.model_validate(json.loads((RECORDED / "evidence.json").read_text()))
    measure._print(evidence)
    said = capsys.readouterr().out
    assert "taken in emulation, says nothing about latency" in said
    assert "guest plc, vCPU 1" in said and "guest plc, on CPU 5" in said and "99.9%" in said
