"""Wrong input as a user meets it: the real program, a site file, and what stands on stderr.

From the reading of the file to what only shows against the facts of a host; each with its place and a cure.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plan.factories import STANDARD_KERNEL, make_facts

from evenkeel.cli import main

SITE = """\
version: 1
hosts:
  cell:
    address: virtual:plc
guests:
  plc:
    goal: realtime
    latency: 100us
    vcpus: 2
    memory: 384MiB
    boot: {kernel: /vmlinuz}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    facts = make_facts()
    (tmp_path / "facts.json").write_text(facts.to_json())
    (tmp_path / "arm.json").write_text(
        facts.model_copy(update={"identity": facts.identity.model_copy(update={"architecture": "aarch64"})}).to_json()
    )
    (tmp_path / "standard.json").write_text(make_facts(kernel=STANDARD_KERNEL, preempt_rt=False).to_json())
    (tmp_path / "bare.json").write_text(facts.model_copy(update={"programs": {}}).to_json())
    return tmp_path


def test_the_site_is_right(folder: Path) -> None:
    """Else the errors below could come from something else."""
    (folder / "site.yaml").write_text(SITE)
    assert main(["plan", "site.yaml", "--facts", "facts.json", "-o", "plan.json"]) == 0
    assert (folder / "plan.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "facts", "place", "words"),
    [
        # the file alone
        ("memory:", "memroy:", "facts.json", "10:5", "did you mean"),
        ("384MiB", "4096", "facts.json", "10:13", "no unit"),
        ("memory: 384MiB", "memory: 384MiB\n    cpus: 4-N", "facts.json", "11:11", "'4-N'"),
        # the file against the facts
        ("384MiB", "64GiB", "facts.json", "6:3", "64GiB"),
        ("vcpus: 2", "vcpus: 40", "facts.json", "6:3", "40 whole cores"),
        ("    boot: {kernel: /vmlinuz}\n", "", "facts.json", "6:3", "nothing to start from"),
        ("memory: 384MiB", "memory: 384MiB\n    near: enp9s9", "facts.json", "11:11", "enp9s9"),
        ("memory: 384MiB", "memory: 384MiB\n    cpus: 90-91", "facts.json", "11:11", "90"),
        ("address: virtual:plc", "address: virtual:plc\n    housekeeping: 0-90", "facts.json", "5:19", "90"),
        ("vcpus: 2", "vcpus: 2", "standard.json", "3:3", "PREEMPT_RT"),
        ("vcpus: 2", "vcpus: 2", "arm.json", "6:3", "aarch64"),
        ("vcpus: 2", "vcpus: 2", "bare.json", "3:3", "libvirt"),
    ],
)
def test_wrong_input_is_told_with_its_place(
    old: str, new: str, facts: str, place: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in SITE
    (folder / "site.yaml").write_text(SITE.replace(old, new))
    assert main(["plan", "site.yaml", "--facts", facts, "-o", "plan.json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert f"  --> site.yaml:{place}\n" in printed.err
    assert words in printed.err
    assert "\nhint: " in printed.err or "did you mean" in printed.err or "units are" in printed.err
    assert "Traceback" not in printed.err
    assert not (folder / "plan.json").exists()


def test_two_guests_on_one_cpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "site.yaml").write_text(
        SITE.replace("    boot:", "    cpus: 2,4\n    boot:")
        + "  hmi:\n    vcpus: 1\n    memory: 256MiB\n    cpus: 4\n"
    )
    assert main(["plan", "site.yaml", "--facts", "facts.json"]) == 2
    told = capsys.readouterr().err
    assert 'both claim CPU 4 of host "cell"; "plc" does at site.yaml:11:11\n  --> site.yaml:16:11\n' in told


def test_broken_facts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "site.yaml").write_text(SITE)
    whole = (folder / "facts.json").read_text()
    (folder / "half.json").write_text(whole[: len(whole) // 2])
    assert main(["plan", "site.yaml", "--facts", "half.json"]) == 2
    assert "not JSON" in capsys.readouterr().err
    assert main(["plan", "site.yaml", "--facts", "site.yaml"]) == 2
    assert main(["plan", "site.yaml", "--facts", "gone.json"]) == 2
