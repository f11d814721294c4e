"""oslat's JSON as it was recorded, and what the timerlat tracer gives: into Latency, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.measure.host import Wish
from evenkeel.measure.oslat import oslat_latencies
from evenkeel.measure.tracer import tracer_latencies
from tests.measure.test_cyclictest import JSON, spoilt
from tests.measure.test_host import CPU, Replay, measure

OSLAT: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "oslat.json").read_text())
ONE = {"counts": {"900": 1900, "1792": 100}, "samples": 2000, "sum": 1_890_000, "min": 903, "max": 1799, "lost": 2}
TIMERLAT: dict[str, Any] = {
    "argv": ["timerlat", "cpus=1"],
    "kernel": "6.12",
    "cpus": {"1": {"irq": ONE, "thread": ONE}},
}


def test_oslat_counts_the_turns_of_a_loop() -> None:
    (found,) = oslat_latencies(OSLAT, [1], guest="plc", emulated=True)
    assert (found.tool, found.where, found.guest, found.cpus) == ("oslat", "guest", "plc", frozenset({1}))
    assert found.max_ns == 104_066_000 and found.label == EMULATION_NOTE and found.tool_version == "2.40"
    assert found.histogram.counts[1] == 33_349_886
    assert found.histogram.overflows == 297, "its last bucket holds whatever was later, too"
    assert found.samples == found.histogram.samples == sum(OSLAT["json"]["thread"]["0"]["histogram"].values())


def test_timerlat_tells_the_interrupt_from_the_thread() -> None:
    thread, irq = tracer_latencies(TIMERLAT, interval_us=1000, seconds=2, emulated=False)
    assert (thread.tool, irq.tool) == ("timerlat", "timerlat irq")
    assert (thread.samples, thread.lost, thread.expected, thread.min_ns, thread.max_ns) == (2000, 2, 2000, 903, 1799)
    assert thread.avg_ns == 945 and thread.histogram.bucket_ns == 1 and thread.label == ""
    assert thread.tool_version == "6.12"
    with pytest.raises(EvenkeelError, match="took no sample"):
        tracer_latencies({"argv": [], "kernel": "x", "cpus": {}}, interval_us=1000, seconds=1, emulated=False)


@given(JSON, st.sampled_from(["json", "thread", "0", "histogram", "max", "avg"]))
def test_any_other_shape_of_oslat_is_told(value: Any, place: str) -> None:
    try:
        oslat_latencies(spoilt(OSLAT, ("json", "thread", "0"), place, value), [1], guest=None, emulated=None)
    except EvenkeelError as error:
        assert "oslat" in error.message


@given(JSON, st.sampled_from(["cpus", "1", "thread", "counts", "samples", "lost"]))
def test_any_other_shape_of_timerlat_is_told(value: Any, place: str) -> None:
    answer = spoilt(TIMERLAT, ("cpus", "1", "thread"), place, value)
    try:
        tracer_latencies(answer, interval_us=1000, seconds=1, emulated=None)
    except EvenkeelError as error:
        assert "tracer" in error.message or "took no sample" in error.message


# -- which tool goes where ----------------------------------------------------------------------------------------


def jobs(probe: Replay) -> list[list[str]]:
    """Of each run the tools, and where."""
    return [
        [f"{job['tool']} in {job['guest']}" if "guest" in job else job["tool"] for job in args["jobs"]]
        for op, args in probe.asked
        if op == "together"
    ]


def test_host_and_guest_are_measured_at_the_same_time() -> None:
    probe = Replay()
    measure(probe, Wish(tools=("cyclictest",)))
    assert jobs(probe) == [["cyclictest", "cyclictest in plc"]]


def test_timerlat_on_the_host_and_in_the_guest_at_the_same_time() -> None:
    probe = Replay()
    evidence = measure(probe, Wish(tools=("timerlat",)))
    assert jobs(probe) == [["timerlat", "timerlat in plc"]]
    found = [(one.tool, one.where, one.guest, one.tool_version) for one in evidence.latencies]
    assert found == [
        ("timerlat", "host", None, "6.12-on-host"),
        ("timerlat irq", "host", None, "6.12-on-host"),
        ("timerlat", "guest", "plc", "6.1-in-guest"),
        ("timerlat irq", "guest", "plc", "6.1-in-guest"),
    ]
    # Of the interrupt there are as many samples, which are a part of the same way: they are not counted again.
    (deadline,) = (one for one in evidence.deadlines if one.guest == "plc")
    assert deadline.samples == 2000 and deadline.max_ns == 900
    both = Replay()
    measure(both, Wish(tools=("cyclictest", "timerlat")))
    assert jobs(both) == [["cyclictest", "cyclictest in plc"], ["timerlat", "timerlat in plc"]]


def test_timerlat_in_a_guest_by_name_leaves_the_host_in_peace() -> None:
    probe, notes = Replay(), list[str]()
    evidence = measure(probe, Wish(tools=("timerlat",), guest="plc"), on_note=notes.append)
    assert notes == []
    assert jobs(probe) == [["timerlat in plc"]] and {one.where for one in evidence.latencies} == {"guest"}


def test_a_guest_whose_kernel_has_no_timerlat_is_a_note_and_no_evidence() -> None:
    notes: list[str] = []
    evidence = measure(Replay(timerlat_guest="ENOTSUP"), Wish(tools=("timerlat",)), on_note=notes.append)
    assert {one.where for one in evidence.latencies} == {"host"}
    assert [note.split(":")[0] for note in notes] == ["no timerlat in guest plc"]
    (deadline,) = (one for one in evidence.deadlines if one.guest == "plc")
    assert deadline.state in ("not measured", "not provable") and deadline.samples is None
    with pytest.raises(EvenkeelError, match="refused"):
        measure(Replay(timerlat_guest="ENOTSUP"), Wish(tools=("timerlat",), guest="plc"))


class Elsewhere(Replay):
    """The guest runs, and not on the CPUs that the plan has for it: they are free."""

    def call(self, op: str, /, **args: Any) -> Any:
        found = super().call(op, **args)
        if op == "threads":
            found["threads"] = [{**thread, "cpus": "0-3"} for thread in found["threads"]]
        return found


def test_in_a_guest_beside_osnoise_runs_cyclictest_where_nothing_else_does() -> None:
    probe = Replay()
    notes: list[str] = []
    steps: list[str] = []
    more: dict[str, Any] = {"on_note": notes.append, "on_progress": lambda *what: steps.append(what[2])}
    measure(probe, Wish(tools=("timerlat", "osnoise")), **more)
    assert jobs(probe) == [["timerlat", "timerlat in plc"]]
    assert any("timerlat on host and plc" in step for step in steps)
    assert notes == ["no osnoise on the host: a busy loop would take the CPUs of the guests that run there"]
    alone = Replay()
    measure(alone, Wish(tools=("osnoise",)), **more)
    assert jobs(alone) == [["cyclictest in plc"]]
    assert not any("osnoise" in step for step in steps), "no step has the name of what is not run"
    off = Elsewhere(osnoise_host="ENOENT")
    measure(off, Wish(tools=("timerlat", "osnoise")), **more)
    assert jobs(off) == [["timerlat", "timerlat in plc"], ["osnoise"]], "also where both have CPUs on the host"
    own = Elsewhere(osnoise_host="ENOENT")
    measure(own, Wish(tools=("osnoise",)), **more)
    assert jobs(own) == [["osnoise", "cyclictest in plc"]]


@pytest.mark.parametrize("tools", [("osnoise",), ("cyclictest", "osnoise")])
def test_a_tool_of_the_host_and_a_guest_by_name_do_not_go_together(tools: tuple[str, ...]) -> None:
    probe = Replay()
    with pytest.raises(WrongInput, match="of the host's kernel") as caught:
        measure(probe, Wish(guest="plc", tools=tools))
    assert "leave the guest out" in str(caught.value.hint) and "timerlat runs inside" in str(caught.value.hint)
    assert not jobs(probe), "before anything is run"


def test_a_busy_loop_never_stands_beside_a_vcpu() -> None:
    """The CPU of plc's vCPU: oslat there would take it away, so it runs in the guest only."""
    probe = Replay(oslat_guest="ENOENT")
    notes: list[str] = []
    measure(probe, Wish(tools=("cyclictest", "oslat")), on_note=notes.append)
    assert jobs(probe) == [["cyclictest", "cyclictest in plc"], ["oslat in plc"]]
    assert len(notes) == 1 and notes[0].startswith("no oslat in guest plc:")
    assert "spin_guest" in {op for op, _ in probe.asked}, "the rest goes on"
    off = Replay(threads="ESRCH", oslat_host="EPROTO")
    measure(off, Wish(tools=("oslat",)), on_note=notes.append)
    assert jobs(off) == [["oslat"]]


def test_osnoise_goes_only_where_no_guest_runs() -> None:
    probe = Replay()
    measure(probe, Wish(tools=("cyclictest", "osnoise")))
    assert jobs(probe) == [["cyclictest", "cyclictest in plc"]]
    off = Replay(threads="ESRCH", osnoise_host="ENOENT")
    measure(off, Wish(tools=("osnoise",)))
    assert jobs(off) == [["osnoise"]]
    (found,) = tracer_latencies(
        {"argv": ["osnoise"], "kernel": "x", "cpus": {"5": {"noise": ONE}}},
        interval_us=1000,
        seconds=7,
        emulated=True,
    )
    assert (found.tool, found.interval_ns, found.expected, found.lost) == ("osnoise", 1_000_000_000, 7, None)


def test_a_host_without_timerlat_is_a_note() -> None:
    notes: list[str] = []
    evidence = measure(Replay(timerlat_host="ENOENT"), Wish(tools=("cyclictest", "timerlat")), on_note=notes.append)
    assert {one.tool for one in evidence.latencies if one.where == "host"} == {"cyclictest"}
    assert len(notes) == 1 and notes[0].startswith("no timerlat on the host:")
    assert "install" not in notes[0], "it is a part of the kernel"
    assert CPU in {cpu for one in evidence.latencies for cpu in one.cpus}
