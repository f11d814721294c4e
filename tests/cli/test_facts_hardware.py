"""`evenkeel facts` shows hardware that only some machines have, and says nothing of it on the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plan.factories import make_facts
from tests.plan.test_ways import xeon

from evenkeel.cli.root import run
from evenkeel.documents.facts import Channels, Daemon, Facts, Resctrl


def shown(folder: Path, facts: Facts, capsys: pytest.CaptureFixture[str]) -> str:
    file = folder / "facts.json"
    file.write_text(facts.to_json())
    assert run(["facts", str(file)]) == 0
    return capsys.readouterr().out


def test_each_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = xeon()
    nic, *others = machine.nics
    nic = nic.model_copy(update={"channels": Channels(combined=8, most_combined=16), "rx_queues": 8})
    daemon = Daemon(name="ptp4l", unit="ptp4l.service", policy="fifo", priority=10, cpus=frozenset({0, 1}))
    text = shown(
        tmp_path,
        machine.model_copy(
            update={"nics": (nic, *others), "daemons": (daemon,), "speed_select": {"base-freq": "enabled"}}
        ),
        capsys,
    )
    for words in ("L3 in 11 ways, 16 classes; groups: 0 besides", "8 of 16", "base-freq enabled", "fifo:10", "0-1"):
        assert words in text, words


def test_one_that_could(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    could = make_facts().model_copy(update={"resctrl": Resctrl(mounted=False)})
    assert "resctrl is not mounted" in shown(tmp_path, could, capsys)


def test_nothing_where_it_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(tmp_path, make_facts(), capsys)
    for word in ("caches divided", "Speed Select", "must not wait"):
        assert word not in text, word
