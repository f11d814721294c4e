"""The verdict on a deadline: what is met is met, and each single thing that forbids it, forbids it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.evidence import EMULATION_NOTE, Deadline, Evidence, Latency, LoadRun
from evenkeel.documents.histogram import Histogram
from evenkeel.measure.verdict import deadlines, judge, proven
from tests.report import factories

PLAN = factories.plan()
SHA = PLAN.sha256()
(GUEST,) = [guest for guest in PLAN.hosts[0].guests if guest.latency_ns is not None]
LOAD = LoadRun(
    kind="cpu",
    cpus=frozenset({0, 4}),
    seen=frozenset({0, 4}),
    processes=2,
    operations=900,
    cpu_seconds=119.0,
    seconds=60.0,
)


def run(values: dict[int, int] | None = None, **changes: Any) -> Latency:
    """60,000 samples in microseconds, all within 80, in a real guest."""
    histogram = Histogram.log_linear(values or {5: 59_000, 80: 1_000}, limit=20_000)
    samples = histogram.samples
    top = max(values or {80: 1})
    fields: dict[str, Any] = {
        "tool": "cyclictest", "argv": ("cyclictest",), "where": "guest", "guest": GUEST.name, "cpus": frozenset({1}),
        "interval_ns": 1_000_000, "samples": samples, "lost": 0, "expected": samples, "min_ns": 5000, "avg_ns": 6000,
        "max_ns": top * 1000, "histogram": histogram, "loads": (LOAD,),
    }  # fmt: skip
    return Latency.model_validate(fields | changes)


def evidence(*runs: Latency, conditions: dict[str, Any] | None = None, **changes: Any) -> Evidence:
    found = factories.evidence(
        "after", emulated=False, plan_sha256=SHA, latencies=runs or (run(),), spins=(), **changes
    )
    return found.model_copy(update={"conditions": found.conditions.model_copy(update=conditions or {})})


def verdict(found: Evidence | None, emulated: bool | None = False, **more: Any) -> Deadline:
    return judge("plc", GUEST, found, plan_sha256=SHA, emulated=emulated, **more)


def test_met_with_its_arithmetic() -> None:
    found = verdict(evidence())
    assert (found.state, found.samples, found.misses, found.max_ns) == ("met", 60_000, 0, 80_000)
    assert "hackbench on 0-1,4-5" in found.why
    assert "no miss in 60,000 samples" in found.arithmetic and "3/60,000" in found.arithmetic
    assert "95 %" in found.arithmetic
    assert found.rate_bound == pytest.approx(3 / 60_000, rel=0.01)
    assert proven([found]) and proven([]) and not proven([found, verdict(None)])


def test_one_late_sample_is_a_miss_and_its_rate_has_two_bounds() -> None:
    found = verdict(evidence(run({5: 60_000, 101: 1})))
    assert (found.state, found.misses) == ("missed", 1)
    assert "1 of 60,001 samples were late" in found.arithmetic and "Clopper-Pearson" in found.arithmetic
    assert found.rate_bound == pytest.approx(4.74 / 60_001, rel=0.01)


def test_a_miss_is_a_miss_whatever_else_is_wrong() -> None:
    late = run({5: 10, 101: 1}, lost=3, expected=60_000, loads=(LOAD.model_copy(update={"trouble": "x"}),))
    assert verdict(evidence(late, conditions={"dma_latency_holders": ("tuned (pid 1)",)})).state == "missed"


def test_the_deadline_itself_is_in_time() -> None:
    assert verdict(evidence(run({100: 60_000}))).state == "met"


@given(st.integers(2, 10_000_000), st.integers(1, 2000))
def test_the_exact_maximum_decides_also_where_its_bucket_is_wide(late_us: int, wanted_us: int) -> None:
    guest = GUEST.model_copy(update={"latency_ns": wanted_us * 1000})
    found = judge("plc", guest, evidence(run({1: 60_000, late_us: 1})), plan_sha256=SHA, emulated=False)
    assert found.state == ("missed" if late_us > wanted_us else "met")
    assert bool(found.misses) == (late_us > wanted_us)


#: Each of these alone, in evidence that would be met without it.
FORBIDS: dict[str, tuple[Evidence, str]] = {
    "lost": (evidence(run(lost=1)), "1 events were lost"),
    "loss unknown": (evidence(run(lost=None)), "not known whether events were lost"),
    "too few": (evidence(run({5: 29_000})), "29,000 samples are too few"),
    "gaps": (evidence(run(expected=70_000)), "10,000 of 70,000 periods have no sample"),
    "holder": (evidence(conditions={"dma_latency_holders": ("tuned (pid 812)",)}), "tuned (pid 812) held"),
    "holders unknown": (evidence(conditions={"dma_latency_holders": None}), "not known who held"),
    "holder in the guest": (
        evidence(conditions={"guest_dma_latency_holders": {GUEST.name: ("tuned (pid 9)",)}}),
        "tuned (pid 9) held /dev/cpu_dma_latency in the guest",
    ),
    "holders in the guest unknown": (
        evidence(conditions={"guest_dma_latency_holders": {"another": ()}}),
        "not known who held /dev/cpu_dma_latency in the guest",
    ),
    "holders in guests not looked for": (
        evidence(conditions={"guest_dma_latency_holders": None}),
        "not known who held /dev/cpu_dma_latency in the guest",
    ),
    "load elsewhere": (
        evidence(run(loads=(LOAD, LOAD.model_copy(update={"kind": "io", "trouble": "ran on CPU 3"})))),
        "io: ran on CPU 3",
    ),
    "label": (evidence(run(label=EMULATION_NOTE)), "labelled"),
    "a vCPU left out": (evidence(run(cpus=frozenset({0}))), "vCPU 1 was not measured"),
    "oslat": (evidence(run(), run({5: 10, 200: 1}, tool="oslat")), "oslat saw vCPU 1 taken away for 200us"),
    "before": (evidence().model_copy(update={"moment": "before"}), "before the plan was applied"),
    "another plan": (evidence(conditions={"plan_sha256": "0" * 64}), "another plan"),
}


@pytest.mark.parametrize("name", FORBIDS)
def test_each_of_these_alone_forbids_met(name: str) -> None:
    found, words = FORBIDS[name]
    answer = verdict(found)
    assert answer.state == "not provable" and words in answer.why
    assert not proven([answer])


@pytest.mark.parametrize(("emulated", "words"), [(True, "emulated"), (None, "not known whether")])
def test_emulation_forbids_met_and_missed_alike(emulated: bool | None, words: str) -> None:
    for found in (evidence(), evidence(run({5: 60_000, 900: 5}))):
        answer = verdict(found, emulated)
        assert answer.state == "not provable" and words in answer.why


def test_not_measured_is_not_met() -> None:
    assert verdict(None).state == verdict(evidence(run(where="host", guest=None))).state == "not measured"
    assert verdict(evidence(run(tool="oslat"))).state == "not measured", "a gap in a busy loop is no wake-up"


def test_how_long_to_measure_is_said() -> None:
    short = verdict(evidence(run({5: 10_000})))
    assert "29,956 are needed, --for 30s" in short.why
    assert verdict(evidence(run({5: 29_956}))).state == "met"
    assert "2,995,731 are needed, --for 2996s" in verdict(evidence(), rate=1e-6).why


def test_periods_that_passed_while_a_sample_was_late_are_no_gap() -> None:
    """One sample 30 s late: cyclictest took 29,999 fewer, and each of them is explained."""
    guest = GUEST.model_copy(update={"latency_ns": 60_000_000_000})
    late = run({5: 60_000, 30_000_000: 1}, expected=90_000)
    assert judge("plc", guest, evidence(late), plan_sha256=SHA, emulated=False).state == "met"


def test_the_vcpu_of_which_least_is_known_decides() -> None:
    guest = GUEST.model_copy(
        update={"vcpus": tuple(vcpu.model_copy(update={"policy": "fifo"}) for vcpu in GUEST.vcpus)}
    )
    found = judge("plc", guest, evidence(run(), run({5: 31_000}, cpus=frozenset({0}))), plan_sha256=SHA, emulated=False)
    assert found.state == "met" and found.rate_bound == pytest.approx(3 / 31_000, rel=0.01)
    assert found.samples == 91_000


def test_every_guest_with_a_goal_on_this_host_is_judged() -> None:
    (host,) = PLAN.hosts
    assert [(one.guest, one.state) for one in deadlines(host, evidence())] == [(GUEST.name, "met")]
    assert deadlines(host, evidence(), guest="historian") == ()
    assert deadlines(host, evidence().model_copy(update={"moment": "before"})) == (), "nothing is promised there"
    (silent,) = deadlines(host, evidence(run(where="host", guest=None)))
    assert silent.state == "not measured"
