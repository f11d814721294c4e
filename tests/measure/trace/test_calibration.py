"""Costs as they are on this machine: measured once, kept, used by the planner, and no error where they cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.answer import Question
from evenkeel.documents.evidence import Conditions
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import Probe
from evenkeel.measure.trace import calibration
from evenkeel.measure.trace.ask import ask
from evenkeel.measure.trace.calibration import Calibration, at, correction, curve
from evenkeel.measure.trace.planner import TO_CALIBRATE, Each, ladder
from evenkeel.measure.trace.questions import WAKEUP, joined_by

CONDITIONS = Conditions(kernel="this one", preempt_rt=False, command_line="")
SWITCHES = Question(kind="count", events=("sched:sched_switch",))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Probe]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LocalMachine().probe() as one:
        yield one


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the costs of counting an event are, as they were measured here."""
    cache = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch, LocalMachine().probe() as probe:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        assert set(Calibration(probe).each(SWITCHES)) == set(TO_CALIBRATE)
    return cache


def the_file(measured: Path, cache: Path) -> Path:
    """A copy of what was measured, for a test that writes into it."""
    shutil.copytree(measured, cache, dirs_exist_ok=True)
    (file,) = (cache / "evenkeel" / "calibration").iterdir()
    return file


def test_it_is_measured_once_for_a_boot_and_again_when_asked(probe: Probe, measured: Path, tmp_path: Path) -> None:
    file = the_file(measured, tmp_path)
    assert file.stem == f"{probe.call('hello')['boot_id']}-{calibration._FORMAT}"
    assert all(each.ns > 0 and each.other_ns == 0 for each in Calibration(probe).each(SWITCHES).values())
    kept = json.loads(file.read_text())
    for one in kept["count event"].values():
        gaps = [at_["gap_ns"] for at_ in one["at"]]
        assert gaps == sorted(gaps), "from back to back to seldom"
        assert len(gaps) > 1
    for one in kept["count event"].values():
        one["again"] = 0  # on a disturbed machine it would be measured again by itself
    for at_ in kept["count event"]["perf"]["at"]:
        at_["ns"] = 1e6
    file.write_text(json.dumps(kept))
    assert 4e5 <= Calibration(probe).each(SWITCHES)["perf"].ns <= 4e6, "taken from the file, for the speed of now"
    assert Calibration(probe).each(SWITCHES, anew=True)["perf"].ns < 4e5


@pytest.mark.long
def test_of_calls_it_is_told_what_they_cost_and_what_all_others_do(
    probe: Probe, measured: Path, tmp_path: Path
) -> None:
    file = the_file(measured, tmp_path)
    calls = Calibration(probe).each(Question(kind="top", events=("syscalls:sys_enter_getuid",), by="process"))
    # Where the kernel lets programs hang on functions, there is that, too.
    assert set(calls) - {"fentry"} == {"raw_tp", "tp_btf", "tracepoint"}, "a counter does not tell by whom"
    assert all(each.other_ns > 0 for source, each in calls.items() if source != "fentry")
    assert set(json.loads(file.read_text())) == {"count event", "top call"}


def test_what_was_measured_on_a_disturbed_machine_is_measured_again(
    probe: Probe, measured: Path, tmp_path: Path
) -> None:
    """Only that, and not for ever: some machines are never alone."""
    file = the_file(measured, tmp_path)
    kept = json.loads(file.read_text())
    for source, one in kept["count event"].items():
        one["again"] = 2 if source == "perf" else 0
        one["at"] = [{**at_, "ns": 1e6} for at_ in one["at"]]
    file.write_text(json.dumps(kept))
    found = Calibration(probe).each(SWITCHES)
    assert found["perf"].ns < 4e5 < found["tracepoint"].ns
    assert json.loads(file.read_text())["count event"]["perf"]["again"] in (0, 1), "settled, or once less"


class Disturbed:
    """A machine whose loop of page faults varies by more than tracing adds to it, as nobody can make one at will."""

    def __init__(self) -> None:
        self.steady, self.loops, self.now_ns = False, list[str](), 100.0

    def call(self, operation: str, **asked: Any) -> dict[str, Any]:
        if operation != "trace_calibrate":
            return {"boot_id": "this", "ns": self.now_ns}
        self.loops.append(asked["loop"])
        ns, other_ns = {"fault": (40.0, 0.0), "event": (60.0, 0.0), "call": (70.0, 25.0)}[asked["loop"]]
        at_ = [{"gap_ns": 100.0, "ns": ns, "other_ns": other_ns, "timed_ns": None}]
        return {"at": at_, "speed_ns": 100.0, "settled": True, "steady": asked["loop"] != "fault" or self.steady}


def test_what_cannot_be_told_by_a_loop_that_is_dear_itself_is_told_by_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And measured again by its own, until that is steady."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    faults, machine = Question(kind="top", events=("exceptions:page_fault_user",), by="process"), Disturbed()
    assert {one.ns for one in Calibration(machine).each(faults).values()} == {60.0}  # type: ignore[arg-type]
    assert machine.loops == ["fault", "event", "fault", "event"], "raw_tp, which stands for tp_btf, and tracepoint"
    machine.steady, machine.loops = True, []
    for _ in range(2):
        assert {one.ns for one in Calibration(machine).each(faults).values()} == {40.0}  # type: ignore[arg-type]
    assert machine.loops == ["fault", "fault"], "it is steady now, and not measured a third time"


def test_a_machine_whose_system_calls_are_slower_now_is_dearer_by_as_much(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither by what is within the noise of a moment, nor by more than machines differ from themselves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine, found = Disturbed(), {}
    for now_ns in (100.0, 140.0, 75.0, 200.0, 60.0, 1000.0):
        machine.now_ns = now_ns
        each = Calibration(machine).each(SWITCHES)  # type: ignore[arg-type]
        found[now_ns] = each["raw_tp"].ns
        assert ("as the machine is now" in each["raw_tp"].how) == (each["raw_tp"].ns != 60)
    assert found == {100.0: 60, 140.0: 60, 75.0: 60, 200.0: 120, 60.0: 36, 1000.0: 180}


def test_a_function_leaves_other_calls_alone_whatever_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a busy machine adds to them by chance made the function of a call dearer than a record of each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Disturbed()
    each = Calibration(machine).each(Question(kind="count", events=("syscalls:sys_enter_getuid",)))  # type: ignore[arg-type]
    assert each["fentry"].other_ns == 0
    assert each["raw_tp"].other_ns == each["perf"].other_ns == 25


def test_nobody_waits_longer_than_there_is_patience_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have the CPU nearly all the time the rounds took a minute and a half."""
    from evenkeel.probe.trace import calibrate

    monkeypatch.setattr(calibrate, "ROUNDS", 10**6)
    monkeypatch.setattr(calibrate, "PATIENCE_S", 0.0)
    found = calibrate.calibrate("perf", "count", "event")
    assert found["at"][0]["ns"] >= 0
    assert found["events"] > 0


def test_what_is_measured_is_said_while_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[tuple[int, int, str]] = []
    for _ in range(2):
        Calibration(Disturbed(), lambda *told: said.append(told)).each(SWITCHES)  # type: ignore[arg-type]
    assert [one[:2] for one in said] == [(number, len(TO_CALIBRATE)) for number in range(len(TO_CALIBRATE))]
    assert "what an event costs by raw_tp" in said[0][2], "once, and not at the second question"


def test_beside_a_busy_neighbour_a_machine_is_not_taken_for_as_slow_as_what_only_computes(
    monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> None:
    """Trap: a neighbour on the same core doubles the time of what computes, and adds a fifth to a system call."""
    from evenkeel.probe.trace import calibrate, pace

    before = calibrate.speed(0.05)["ns"]
    monkeypatch.setattr(pace, "now", lambda: 1e9)
    assert before / 2 < calibrate.speed(0.05)["ns"] < before * 2
    assert 5 < before < 20_000, "nanoseconds of one system call"
    assert probe.call("trace_speed", within_s=0.05)["ns"] < 20_000


@pytest.mark.parametrize("text", ["{", '{"count event": {"perf": {"ms": 1}}}'])
def test_a_file_that_is_broken_is_no_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "evenkeel" / "calibration" / f"this-{calibration._FORMAT}.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    found = Calibration(Disturbed()).each(SWITCHES)  # type: ignore[arg-type]
    assert found == {} if "ms" in text else set(found) == set(TO_CALIBRATE)


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "evenkeel").write_text("a file where a folder should be")
    machine = Disturbed()
    assert set(Calibration(machine).each(SWITCHES)) == set(TO_CALIBRATE)  # type: ignore[arg-type]
    assert set(machine.loops) == {"event"}


def test_what_has_no_loop_is_not_measured(probe: Probe, tmp_path: Path) -> None:
    exits = Question(kind="exits", guest="plc")
    assert Calibration(probe).each(exits) == {}
    assert not (tmp_path / "evenkeel").exists()
    Calibration(probe).remember(exits, 2.0)
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
    assert Calibration(probe).factor(SWITCHES) == 0.5, "in bursts they are cheaper than their rate tells"


def test_an_answer_is_remembered(probe: Probe, tmp_path: Path) -> None:
    wakeups = Question(kind="wakeups", events=WAKEUP, key=joined_by(*WAKEUP), seconds=0.5)
    first = ask(probe, wakeups, host="here", conditions=CONDITIONS, online=2)
    factor = Calibration(probe).factor(wakeups)
    assert first.predicted and first.measured
    assert "as when this was asked before" not in first.predicted.how
    second = ask(probe, wakeups, host="here", conditions=CONDITIONS, online=2)
    assert second.predicted
    assert ("as when this was asked before" in second.predicted.how) == (factor != 1)
    (file,) = (tmp_path / "evenkeel" / "calibration").iterdir()
    points = curve(json.loads(file.read_text())["wakeups switch"][second.source]["at"])
    least, most = factor * points[0].ns * 0.4, factor * points[-1].ns * 4
    assert least <= second.predicted.ns_per_event <= most, "on the curve, times what was learnt and the speed of now"


POINTS = curve(
    [
        {"gap_ns": 100.0, "ns": 30.0, "other_ns": 10.0, "timed_ns": 20.0},
        {"gap_ns": 10_000.0, "ns": 90.0, "other_ns": 20.0, "timed_ns": 40.0},
        {"gap_ns": 1e6, "ns": 300.0, "other_ns": 20.0, "timed_ns": 140.0},
    ]
)


def test_a_cost_lies_between_those_that_were_measured() -> None:
    assert at(POINTS, 0) == at(POINTS, 50) == POINTS[0]
    assert at(POINTS, 10_000.0).ns == pytest.approx(90), "where it was measured"
    assert at(POINTS, 1e9) == POINTS[-1]
    half = at(POINTS, 1000)
    assert (half.ns, half.other_ns, half.timed_ns) == pytest.approx((60, 15, 30)), "half-way by the logarithm"


def test_noise_makes_nothing_cheaper_by_being_seldom_nor_than_its_program() -> None:
    found = curve([{"gap_ns": 1e4, "ns": 0.0, "timed_ns": 75.0}, {"gap_ns": 100.0, "ns": 30.0, "timed_ns": 20.0}])
    assert [point.ns for point in found] == [30.0, 60.0]


def test_what_the_kernel_timed_says_where_on_the_curve_events_lie() -> None:
    """The kernel times the program only; the way to it gets dearer by more, and that is in the curve."""
    assert correction(POINTS, 100.0, 22.0) == correction(POINTS, 100.0, 49.0) == 1, "about as expected"
    assert correction(POINTS, 100.0, 60.0) == pytest.approx(132 / 30)
    assert correction(POINTS, 10_000.0, 110.0) == pytest.approx(237 / 90)
    assert correction(POINTS, 1e6, 420.0) == pytest.approx(3), "behind the curve as its last point"
    assert correction(POINTS, 1e6, 40.0) == pytest.approx(90 / 300), "in bursts"
    assert correction(POINTS, 1e6, 10.0) == pytest.approx(30 / 300), "not cheaper than back to back"
    assert correction(curve([{"gap_ns": 100.0, "ns": 30.0}]), 100.0, 90.0) is None, "nothing is timed there"


def test_events_that_are_further_apart_are_expected_to_cost_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By what was measured of events so far apart; what noise made of that is no matter here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Disturbed()
    Calibration(machine).each(SWITCHES)  # type: ignore[arg-type]
    (file,) = (tmp_path / "evenkeel" / "calibration").iterdir()
    kept = json.loads(file.read_text())
    for one in kept["count event"].values():
        (near,) = one["at"]
        one["at"].append({**near, "gap_ns": 1e6, "ns": 9 * near["ns"]})
    file.write_text(json.dumps(kept))
    known = Calibration(machine)  # type: ignore[arg-type]
    each = [known.each(SWITCHES, gap_ns) for gap_ns in (100.0, 1e6)]
    assert [round(one["raw_tp"].ns) for one in each] == [60, 540]
    assert "us apart" in each[1]["raw_tp"].how
