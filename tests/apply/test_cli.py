"""`evenkeel apply`, `rollback` and `status` as a person and as a script see them: text, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli import main
from evenkeel.documents.plan import Plan
from evenkeel.errors import Unreachable
from tests.apply.test_engine import STUBBORN
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS, TreeHost, make_plan


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TreeHost:
    made = TreeHost(tmp_path)
    monkeypatch.setattr("evenkeel.cli.output._emitted", False)  # once a process, and this is one for all tests
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: made)
    return made


def save(tmp_path: Path, plan: Plan) -> str:
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    return str(file)


def test_apply_status_apply_rollback(host: TreeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = save(tmp_path, make_plan(host, *BOOT_SETTINGS, *RUNTIME_SETTINGS))
    assert main(["status", plan]) == 1
    assert "nothing applied" in capsys.readouterr().out
    assert main(["apply", plan, "--dry-run"]) == 0
    assert "dry run: 6 changes, a reboot; nothing was written" in capsys.readouterr().out

    assert main(["apply", plan]) == 1
    said = capsys.readouterr()
    assert "reboot pending" in said.out
    assert "--reboot" in said.out

    assert main(["apply", plan, "--reboot"]) == 0
    said = capsys.readouterr()
    assert "applied: 5 written and read back, 1 as planned already" in said.out
    assert "R-WQ-1" in said.out
    assert "R-WQ-1" not in said.err  # the result is on stdout, progress on stderr

    assert main(["apply", plan, "--reboot"]) == 0
    assert "nothing to change: all 6 are as planned already" in capsys.readouterr().out
    assert main(["status", plan]) == 0
    assert "as planned" in capsys.readouterr().out

    assert main(["rollback", plan]) == 0
    said = capsys.readouterr()
    assert "rolled back: 6 undone; its kernel runs with the arguments of the plan until the next reboot" in said.out
    assert main(["rollback", "ssh://root@somewhere", "--reboot"]) == 0
    assert "nothing to undo; rebooted without the arguments of the plan" in capsys.readouterr().out


def test_json_is_alone_on_stdout(host: TreeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = save(tmp_path, make_plan(host, *RUNTIME_SETTINGS))

    def answer(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) in (0, 1)
        [one] = json.loads(capsys.readouterr().out)["hosts"]
        return one

    assert answer("status", plan)["pending"] == ["H-THP", "R-IRQ-1", "R-WQ-1", "R-TIM-2", "R-RT-1"]
    applied = answer("apply", plan)
    assert applied["outcome"] == "applied"
    assert applied["steps"][3] == {
        "name": "R-TIM-2",
        "title": "title of R-TIM-2",
        "phase": "kernel",
        "disturbance": "live",
        "outcome": "done",
        "old": "1",
        "wanted": "10",
        "read_back": "10",
        "message": None,
    }
    assert answer("status", plan)["pending"] == []
    assert answer("rollback", plan)["undone"] == ["R-RT-1", "R-TIM-2", "R-WQ-1", "R-IRQ-1", "H-THP"]


# -- several hosts, of which one is away ---------------------------------------------------------------------------


@pytest.fixture
def three(host: TreeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plan for a host that answers, one that does not, and the first once more (as a site would have three)."""

    def resolve(address: str) -> TreeHost:
        if address == "virtual:away":
            raise Unreachable("virtual:away: no route to host")
        return host

    monkeypatch.setattr("evenkeel.machines.address.resolve", resolve)
    plan = make_plan(host, *RUNTIME_SETTINGS)
    (one,) = plan.hosts
    hosts = (("first", one.address), ("second", "virtual:away"), ("third", one.address))
    named = tuple(one.model_copy(update={"name": name, "address": address}) for name, address in hosts)
    return save(tmp_path, plan.model_copy(update={"hosts": named}))


def test_apply_tells_what_it_wrote_before_a_host_was_away(three: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", three, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert [(one["host"], one["outcome"]) for one in said["hosts"]] == [("first", "applied")]
    assert (said["error"]["host"], said["error"]["exit_code"]) == ("second", 3)
    assert main(["apply", three]) == 3
    assert "first: nothing to change" in capsys.readouterr().out


def test_rollback_goes_on_behind_a_host_that_is_away(three: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", three]) == 3
    capsys.readouterr()
    assert main(["rollback", three, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)["hosts"]
    assert {one["host"]: len(one["undone"]) for one in said if "undone" in one} == {"first": 5, "third": 0}
    assert [(one["host"], one["error"]["exit_code"]) for one in said if "error" in one] == [("second", 3)]
    assert main(["rollback", three]) == 3
    told = capsys.readouterr()
    assert "first: nothing to undo" in told.out and "third: nothing to undo" in told.out
    assert "virtual:away: no route to host" in told.err


def test_exit_codes_of_what_goes_wrong(
    host: TreeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.root / "proc/self").symlink_to("/proc/self")
    bad = STUBBORN.model_copy(update={"old": "50000"})
    plan = save(tmp_path, make_plan(host, *RUNTIME_SETTINGS, bad))
    assert main(["apply", plan]) == 4
    said = capsys.readouterr()
    assert "Rolled back" in said.err
    assert "Traceback" not in said.err

    (host.root / "proc/sys/vm/stat_interval").write_text("3\n")
    assert main(["apply", plan, "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["exit_code"] == 2

    def away() -> Any:
        raise Unreachable("tree: no route to host")

    monkeypatch.setattr(host, "probe", away)
    assert main(["apply", plan]) == 3
    assert main(["rollback", plan]) == 3
    capsys.readouterr()
    assert main(["status", plan]) == 3
    assert "no route to host" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["apply", "rollback", "status"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"    evenkeel {verb} " in capsys.readouterr().out


def test_a_plan_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", str(tmp_path / "nowhere.json")]) == 2
    (tmp_path / "x.json").write_text("{}")
    assert main(["apply", str(tmp_path / "x.json")]) == 2
    assert "Plan" in capsys.readouterr().err
