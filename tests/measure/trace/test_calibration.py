"""Costs as they are on this machine: measured once, kept, used by the planner, and no error where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.documents.answer import Question
from evenkeel.documents.evidence import Conditions
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import Probe
from evenkeel.measure.trace.ask import ask
from evenkeel.measure.trace.calibration import Calibration
from evenkeel.measure.trace.planner import TO_CALIBRATE, Each, ladder
from evenkeel.measure.trace.questions import WAKEUP, joined_by

CONDITIONS = Conditions(kernel="this one", preempt_rt=False, command_line="")
SWITCHES = Question(kind="count", events=("sched:sched_switch",))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Probe]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LocalMachine().probe() as one:
        yield one


def test_it_is_measured_once_for_a_boot_and_again_when_asked(probe: Probe, tmp_path: Path) -> None:
    found = Calibration(probe).each(SWITCHES)
    assert set(found) == set(TO_CALIBRATE)
    assert all(each.ns > 0 and each.other_ns == 0 for each in found.values())
    (file,) = (tmp_path / "evenkeel" / "calibration").iterdir()
    assert file.stem == probe.call("hello")["boot_id"]
    kept = json.loads(file.read_text())
    kept["count event"]["perf"]["ns"] = 12345.0
    file.write_text(json.dumps(kept))
    assert Calibration(probe).each(SWITCHES)["perf"] == Each(12345.0), "taken from the file"
    assert Calibration(probe).each(SWITCHES, anew=True)["perf"].ns < 12345.0
    calls = Calibration(probe).each(Question(kind="top", events=("syscalls:sys_enter_getuid",), by="process"))
    assert set(calls) == {"raw_tp", "tp_btf", "tracepoint"}, "a counter does not tell by whom"
    assert all(each.other_ns > 0 for each in calls.values())
    assert set(json.loads(file.read_text())) == {"count event", "top call"}


@pytest.mark.parametrize("text", ["{", '{"count event": {"perf": {"ms": 1}}}'])
def test_a_file_that_is_broken_is_no_calibration(probe: Probe, tmp_path: Path, text: str) -> None:
    file = tmp_path / "evenkeel" / "calibration" / f"{probe.call('hello')['boot_id']}.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    found = Calibration(probe).each(SWITCHES)
    assert found == {} if "ms" in text else set(found) == set(TO_CALIBRATE)


def test_a_cache_that_cannot_be_written_is_no_error(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "evenkeel").write_text("a file where a folder should be")
    assert set(Calibration(probe).each(SWITCHES)) == set(TO_CALIBRATE)


def test_what_has_no_loop_is_not_measured(probe: Probe, tmp_path: Path) -> None:
    assert Calibration(probe).each(Question(kind="profile")) == {}
    assert not (tmp_path / "evenkeel").exists()
    Calibration(probe).remember(Question(kind="profile"), 2.0)
    assert list((tmp_path / "evenkeel" / "calibration").iterdir())


def test_what_the_kernel_timed_makes_the_next_prediction(probe: Probe) -> None:
    """Of seldom events one costs several times what it costs in a loop; the order of the sources stays."""
    known = Calibration(probe)
    assert known.factor(SWITCHES) == 1
    known.remember(SWITCHES, 8.04)
    again = Calibration(probe)
    assert again.factor(SWITCHES) == 8.04
    assert again.factor(Question(kind="count", events=("sched:sched_waking",))) == 1
    each = {"raw_tp": Each(25.0), "perf": Each(37.0)}
    before, _ = ladder(SWITCHES, {"sched:sched_switch": 1000.0}, each)
    after, _ = ladder(SWITCHES, {"sched:sched_switch": 1000.0}, each, again.factor(SWITCHES))
    assert [one.source for one in before] == [one.source for one in after]
    assert after[0].cost.share_of_core == pytest.approx(8.04 * before[0].cost.share_of_core)
    assert "times 8.04" in after[0].cost.how
    known.remember(SWITCHES, 0.5)
    assert Calibration(probe).factor(SWITCHES) == 1, "a loop is never dearer"


def test_an_answer_is_remembered(probe: Probe, tmp_path: Path) -> None:
    wakeups = Question(kind="wakeups", events=WAKEUP, key=joined_by(*WAKEUP), seconds=0.5)
    first = ask(probe, wakeups, host="here", conditions=CONDITIONS, online=2)
    factor = Calibration(probe).factor(wakeups)
    assert first.predicted and first.measured
    second = ask(probe, wakeups, host="here", conditions=CONDITIONS, online=2)
    assert second.predicted
    assert second.predicted.ns_per_event == pytest.approx(factor * first.predicted.ns_per_event)
