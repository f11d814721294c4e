"""`evenkeel plan --keep`, as a user runs it: a guest is added and the one that is there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.cli import main
from evenkeel.documents.plan import Plan
from tests.plan.factories import make_facts

SITE = """\
version: 1
hosts:
  cell: {address: "virtual:nobody"}
guests:
  plc: {goal: realtime, vcpus: 2, memory: 384MiB, boot: {kernel: /k}}
"""
MORE = "  axis: {goal: realtime, latency: 50us, vcpus: 2, memory: 384MiB, boot: {kernel: /k}}\n"
WIDE = "  wide: {goal: realtime, vcpus: 4, memory: 384MiB, boot: {kernel: /k}}\n"
PLAN = ["plan", "site.yaml", "--facts", "facts.json"]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "facts.json").write_text(make_facts(cores=5).to_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def cpus(folder: Path, name: str, file: str = "plan.json") -> list[int]:
    (host,) = Plan.from_json((folder / file).read_text(), file=file).hosts
    (one,) = (one for one in host.guests if one.name == name)
    return [min(vcpu.cpus) for vcpu in one.vcpus]


def test_the_running_guest_stays(folder: Path) -> None:
    assert main([*PLAN, "-o", "plan.json"]) == 0
    before = cpus(folder, "plc")
    (folder / "site.yaml").write_text(SITE + MORE)
    assert main([*PLAN, "-o", "fresh.json"]) == 0
    assert cpus(folder, "plc", "fresh.json") != before, "else this test proves nothing"
    assert main([*PLAN, "--keep", "plan.json", "-o", "plan.json"]) == 0
    assert cpus(folder, "plc") == before


def test_a_move_that_cannot_be_helped_is_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guests = SITE + MORE
    (folder / "site.yaml").write_text(guests)
    assert main([*PLAN, "-o", "plan.json"]) == 0
    (folder / "site.yaml").write_text(guests + WIDE)
    capsys.readouterr()
    assert main([*PLAN, "--keep", "plan.json"]) == 0
    out = capsys.readouterr().out
    assert "note G-1: guest plc moves from CPUs" in out
    assert "there is no room for guest wide otherwise" in " ".join(out.split())


def test_only_a_plan_can_be_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--keep", "facts.json"]) == 2
    assert "this is a Facts document, a Plan document is needed here" in capsys.readouterr().err
