"""The planner: order by cost, reasons against what is cheaper, and what the rate of other system calls changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.answer import Kind, Question, Refused
from evenkeel.errors import WrongInput
from evenkeel.measure.trace import planner
from evenkeel.measure.trace.planner import Each

SWITCH, GETUID = "sched:sched_switch", "syscalls:sys_enter_getuid"


def count(event: str) -> Question:
    return Question(kind="count", events=(event,))


def top(event: str) -> Question:
    return Question(kind="top", events=(event,), by="process")


def names(question: Question, rates: dict[str, float]) -> list[str]:
    return [one.source for one in planner.ladder(question, rates)[0]]


def test_the_cheapest_comes_first() -> None:
    assert names(count(SWITCH), {SWITCH: 1e5}) == ["raw_tp", "tp_btf", "perf", "tracepoint", "ring"]


def test_what_cannot_tell_by_whom_is_no_candidate_and_has_its_reason() -> None:
    candidates, unable = planner.ladder(top(SWITCH), {SWITCH: 1e5})
    assert [one.source for one in candidates] == ["raw_tp", "tp_btf", "tracepoint"]
    tracepoint = candidates[-1]
    told = planner.cheaper(tracepoint, candidates, unable, ())
    assert told[0].source == "perf", "cheaper, and says why not"
    assert "by whom" in told[0].why
    assert "ring" not in {one.source for one in told}, "dearer than what was taken: nobody asks why not"


def test_other_system_calls_make_a_raw_tracepoint_dear() -> None:
    """It is called for each of them; a million other calls a second cost more than the event itself."""
    alone = {GETUID: 1e5, planner.SYSCALLS: 1e5}
    busy = {GETUID: 1e5, planner.SYSCALLS: 1.1e6}
    assert names(count(GETUID), alone)[:3] == ["fentry", "tp_btf", "raw_tp"]
    assert names(count(GETUID), busy)[:2] == ["fentry", "perf"]
    candidates, unable = planner.ladder(count(GETUID), busy)
    told = {one.source: one.why for one in planner.cheaper(candidates[1], candidates, unable, ())}
    assert "1,000,000 other system calls" in told["raw_tp"]


def test_the_function_of_a_system_call_costs_the_others_nothing() -> None:
    """So it is the cheapest even where it costs more for the call itself, if that is one of many."""
    each = {"fentry": Each(60.0), "raw_tp": Each(30.0, 25.0), "perf": Each(50.0, 10.0)}
    each["tp_btf"] = Each(28.0, 25.0)
    assert planner.ladder(count(GETUID), {GETUID: 1e5, planner.SYSCALLS: 1e5}, each)[0][0].source == "tp_btf"
    first = planner.ladder(count(GETUID), {GETUID: 1e5, planner.SYSCALLS: 1e6}, each)[0][0]
    assert first.source == "fentry" and "other system calls" not in first.cost.how


def test_what_was_not_measured_costs_other_system_calls_as_much_more_as_what_was() -> None:
    """Emulated, each costs 300 ns: a ring's 11 of the table would make it the cheapest of all."""
    each = {"perf": Each(60, 300), "tracepoint": Each(70, 300), "raw_tp": Each(50, 600)}
    found, _ = planner.ladder(count(GETUID), {GETUID: 10.0, planner.SYSCALLS: 1e6}, each)
    told = {one.source: one.cost for one in found}
    assert told["ring"].share_of_core > told["perf"].share_of_core
    assert "300 ns for each of" in told["ring"].how
    assert found[0].source == "fentry"


def test_what_only_a_tracepoint_tells_is_not_asked_of_a_function() -> None:
    """The end of a call is not at the entry of a function, nor are the fields of its record."""
    end = "syscalls:sys_exit_getuid"
    assert "fentry" not in names(count(end), {})
    assert "fentry" not in names(Question(kind="latency", events=(GETUID, end)), {})
    assert "fentry" not in names(Question(kind="record", events=(GETUID,)), {})
    assert planner.loop_of(count(GETUID)) == "call" and "fentry" in planner.calibrated(count(GETUID))


def test_the_kernels_refusals_are_told_with_their_errno() -> None:
    candidates, unable = planner.ladder(count(SWITCH), {SWITCH: 1e5})
    no = Refused(source="raw_tp", why="not permitted", errno="EPERM")
    assert no in planner.cheaper(candidates[1], candidates, unable, (no,))


def test_what_was_calibrated_on_the_machine_goes_before_the_table() -> None:
    candidates, _ = planner.ladder(count(SWITCH), {SWITCH: 1e5}, {"perf": Each(5.0), "raw_tp": Each(25.0)})
    assert candidates[0].source == "perf"
    assert candidates[0].cost.how == "calibrated here"
    calls = {GETUID: 1e5, planner.SYSCALLS: 2e5}
    found, _ = planner.ladder(count(GETUID), calls, {"raw_tp": Each(20.0, 1.0)})
    raw = next(one for one in found if one.source == "raw_tp")
    assert raw.cost.share_of_core == pytest.approx((20e5 + 1e5) / 1e9)


def test_a_dear_machine_does_not_make_what_was_not_measured_cheap() -> None:
    """Seldom events cost many times the table's; a ring, which nobody measured, is dearer by as much."""
    here = {"raw_tp": Each(200.0), "tp_btf": Each(200.0), "perf": Each(310.0), "tracepoint": Each(390.0)}
    candidates, _ = planner.ladder(count(SWITCH), {SWITCH: 40.0}, here)
    assert [one.source for one in candidates] == ["raw_tp", "tp_btf", "perf", "tracepoint", "ring"]
    assert candidates[-1].cost.ns_per_event == pytest.approx(8 * 65, rel=0.05)
    assert candidates[-1].cost.how == f"{planner.TABLE}, times 8 like what was measured here"
    assert planner.ladder(count(SWITCH), {SWITCH: 40.0})[0][-1].cost.how == planner.TABLE


def test_other_calls_are_as_dear_by_what_was_not_measured_as_by_what_is_alike() -> None:
    """The trace ring takes the same slow path as perf and a tracepoint's record.

    By the table's number for it a kernel whose slow path is dear counted records, whatever an event costs.
    """
    busy = {GETUID: 10.0, planner.SYSCALLS: 30_000.0}
    each = {
        "raw_tp": planner.Each(110.0, 370.0),
        "tp_btf": planner.Each(112.0, 360.0),
        "perf": planner.Each(400.0, 90.0),
        "tracepoint": planner.Each(420.0, 80.0),
    }
    order = [one.source for one in planner.ladder(count(GETUID), busy, each)[0]]
    assert [one for one in order if one != "fentry"] == ["tracepoint", "ring", "perf", "tp_btf", "raw_tp"]
    ring = next(one for one in planner.ladder(count(GETUID), busy, each)[0] if one.source == "ring")
    assert "85 ns for each of 29,990 other system calls" in ring.cost.how


def test_only_questions_like_a_loop_are_calibrated() -> None:
    assert planner.loop_of(count(GETUID)) == "call"
    assert planner.loop_of(top(SWITCH)) == "event"
    assert planner.loop_of(count("exceptions:page_fault_user")) == "fault"
    assert planner.loop_of(Question(kind="latency", events=(GETUID, "syscalls:sys_exit_getuid"))) == "call"
    assert planner.loop_of(Question(kind="wakeups", events=(SWITCH, SWITCH))) == "switch"
    assert planner.loop_of(Question(kind="profile")) == "profile"
    assert planner.loop_of(count("uprobe:/bin/true:main")) == "uprobe"
    for other in (
        count("function:vfs_read"),
        count("software:page-faults"),
        Question(kind="latency", events=("uprobe:/bin/true:main", "uprobe:/bin/true:0x10")),
        Question(kind="noise", cpus=frozenset({1})),
        Question(kind="exits", guest="plc"),
    ):
        assert planner.loop_of(other) is None


def test_what_is_calibrated_is_what_could_answer() -> None:
    assert planner.calibrated(count(SWITCH)) == planner.TO_CALIBRATE
    assert planner.calibrated(top(SWITCH)) == ("raw_tp", "tp_btf", "tracepoint")
    assert planner.calibrated(Question(kind="record", events=(SWITCH,)))[-1] == "ring"
    assert planner.calibrated(Question(kind="profile")) == ("sampling",)
    assert planner.calibrated(count("uprobe:/bin/true:main")) == ("uprobe",)


def test_the_distance_of_events_is_that_on_their_cpu() -> None:
    """Without what counting them took: a loop of calls is slower by it, and its calls are no further apart."""
    assert planner.gap_ns(count(SWITCH), {SWITCH: 1e5}, 1.0) == 1e4 - 37
    assert planner.gap_ns(count(SWITCH), {SWITCH: 1e5}, 4.0) == 4e4 - 37
    pair = Question(kind="wakeups", events=("sched:sched_waking", SWITCH))
    assert planner.gap_ns(pair, {"sched:sched_waking": 5e4, SWITCH: 5e4}, 1.0) == 1e4 - 37 / 2
    assert planner.gap_ns(count(GETUID), {GETUID: 1e7}, 1.0) == pytest.approx(100 - 37 - 16)
    assert planner.gap_ns(count(SWITCH), {SWITCH: 1e9}, 1.0) == 1
    assert planner.gap_ns(count(SWITCH), {}, 1.0) == 0


def test_an_unknown_rate_is_said() -> None:
    candidates, _ = planner.ladder(count(SWITCH), {})
    assert "assumed" in candidates[0].cost.how


def test_counters_are_asked_of_perf_alone() -> None:
    assert names(count("software:page-faults"), {}) == ["perf"]


@given(st.floats(0, 1e8), st.floats(0, 1e8))
def test_costs_never_fall_along_the_ladder(rate: float, all_calls: float) -> None:
    for event in (SWITCH, GETUID):
        found = planner.ladder(count(event), {event: rate, planner.SYSCALLS: all_calls})[0]
        shares = [one.cost.share_of_core for one in found]
        assert shares == sorted(shares)
        assert all(share >= 0 for share in shares)


@pytest.mark.parametrize("question", [count(SWITCH), top(SWITCH), count(GETUID), top(GETUID)])
def test_every_source_of_the_table_is_a_candidate_or_has_a_reason(question: Question) -> None:
    candidates, unable = planner.ladder(question, {})
    assert {one.source for one in candidates} | {one.source for _, one in unable} >= {"raw_tp", "perf", "ring"}


def test_the_ladder_of_a_function() -> None:
    event = "function:vfs_read"
    assert names(count(event), {}) == ["fentry", "function", "kprobe"]
    assert names(top(event), {}) == ["fentry", "kprobe"]
    assert names(count("uprobe:/bin/true:main"), {}) == ["uprobe"]


def test_the_budget_is_kept_by_windows_and_durations_are_never_cut() -> None:
    question = count(SWITCH).model_copy(update={"seconds": 10.0})  # 1 % of a core for ten seconds: 0.1 s of one
    assert planner.pace(question, 0.0098, 0, 0, 10) == 1
    assert planner.pace(question, 0.1, 0, 0, 10) == pytest.approx(0.1)
    assert planner.pace(question, 0.1, 0.5, 0.1, 4) == pytest.approx(0.1), "0.4 s are left of the second that it may be"
    assert planner.pace(question, 0.1, 0.1, 0.1, 1) == pytest.approx(0.8), "what was saved may be spent"
    assert planner.pace(question, 0.1, 0.95, 0.1, 4) == 0, "nothing is left but for the end"
    assert planner.pace(question, 1e6, 0, 0, 10) < 1e-6, "there is no least"
    latency = Question(kind="latency", events=(SWITCH, SWITCH))
    assert planner.pace(latency, 0.1, 5, 0, 1) == 1


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (
            Question(kind="latency", events=(GETUID, "function:vfs_read")),
            "function:vfs_read is a function of the kernel",
        ),
        (Question(kind="latency", events=("uprobe:/bin/true:main", SWITCH)), f"{SWITCH} is a tracepoint"),
        (Question(kind="latency", events=(SWITCH, "software:page-faults")), "software:page-faults is a counter"),
        (top("software:page-faults"), "neither by whom nor when"),
        (Question(kind="record", events=("hardware:cycles",)), "neither by whom nor when"),
        (
            Question(kind="latency", events=("sched:sched_waking", SWITCH), key="pid=next_pid", process=1),
            "in other threads",
        ),
    ],
)
def test_what_no_kernel_can_answer_is_said_before_one_is_asked(question: Question, says: str) -> None:
    """By sources tried in vain it would be "the kernel has no such event", or "root is needed"."""
    with pytest.raises(WrongInput, match=says) as caught:
        planner.check(question)
    assert caught.value.hint


def test_both_ends_of_one_kind_are_no_mixture() -> None:
    for events in (
        (GETUID, "syscalls:sys_exit_getuid"),
        ("function:vfs_read", "function:fsnotify"),
        ("uprobe:/bin/true:main", "uprobe:/bin/sh:main"),
    ):
        planner.check(Question(kind="latency", events=events, key="thread", process=1))
    planner.check(count("software:page-faults"))


#: What a word of a question is, besides its events.
_OF_KIND = {"wakeups": ("sched:sched_waking", SWITCH), "noise": (SWITCH,), "exits": ("kvm:kvm_exit",), "profile": ()}


def test_the_reference_has_the_order_in_which_sources_are_tried() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "trace-sources.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, re.MULTILINE)
    assert len(rows) >= 20
    told = {asked: re.findall(r"`(\w+)`", tried) for asked, tried in rows}
    found = {}
    for asked in told:
        kind, *events = asked.split()
        question = Question.model_validate({"kind": kind, "by": "process", "events": _OF_KIND.get(kind, tuple(events))})
        found[asked] = names(question, {})
    assert told == found
    assert {asked.split()[0] for asked in told} == set(get_args(Kind))
