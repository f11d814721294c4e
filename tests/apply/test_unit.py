"""The unit that applies a plan at boot: systemd takes it, and the command in it does what it says, gate first."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from evenkeel.apply.unit import unit
from evenkeel.cli import main
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS, TreeHost, make_plan


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TreeHost:
    made = TreeHost(tmp_path)
    made.address = "local"
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: made)
    return made


def verify(file: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "apt-get install systemd"
    return subprocess.run([program, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False)


def test_at_boot_the_gate_is_asked_and_the_values_come_back(
    host: TreeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan $1 50%.json"
    plan.write_text(make_plan(host, *BOOT_SETTINGS, *RUNTIME_SETTINGS).to_json())
    assert main(["apply", str(plan), "--reboot", "--yes"]) == 0
    capsys.readouterr()
    assert main(["apply", str(plan), "--print-unit"]) == 0
    text = capsys.readouterr().out
    file = tmp_path / "evenkeel-apply.service"
    file.write_text(text)
    done = verify(file)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert found
    words = shlex.split(found[1].replace("%%", "%").replace("$$", "$"))
    assert words[1:4] == ["-m", "evenkeel", "apply"]

    host.reboot()
    assert (host.root / "proc/sys/vm/stat_interval").read_text() == "1\n"
    assert main(words[3:]) == 0
    assert (host.root / "proc/sys/vm/stat_interval").read_text() == "10\n"
    assert (host.root / "run/evenkeel/schedulable").exists()

    host.spoil_command_line = ("nohz_full=2-3", "nohz_full=2")
    host.reboot()
    assert main(words[3:]) == 1
    assert (host.root / "proc/sys/vm/stat_interval").read_text() == "1\n"  # not on a kernel that did not take the plan
    assert not (host.root / "run/evenkeel/schedulable").exists()
    assert host.boots == 3  # and it did not reboot by itself


def test_only_a_saved_plan_of_the_host_itself(
    host: TreeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(host, *RUNTIME_SETTINGS)
    away = plan.model_copy(update={"hosts": (plan.hosts[0].model_copy(update={"address": "ssh://root@cell"}),)})
    (tmp_path / "away.json").write_text(away.to_json())
    assert main(["apply", str(tmp_path / "away.json"), "--print-unit"]) == 2
    assert "at its boot a host applies its own plan" in capsys.readouterr().err
    (tmp_path / "site.yaml").write_text("version: 1\nhosts:\n  cell:\n    address: local\n")
    assert main(["apply", str(tmp_path / "site.yaml"), "--print-unit"]) == 2
    assert "is no saved plan" in capsys.readouterr().err


def test_systemd_analyze_sees_a_broken_unit(tmp_path: Path) -> None:
    file = tmp_path / "evenkeel-apply.service"
    file.write_text(unit("x", ["/nowhere/evenkeel"]).replace("Type=oneshot", "Type=sometimes"))
    done = verify(file)
    assert "sometimes" in done.stderr and "/nowhere/evenkeel" in done.stderr
