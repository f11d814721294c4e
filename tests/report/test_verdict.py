"""What a run proves: never a deadline in emulation, never a pass for what was not checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.evidence import Evidence
from evenkeel.report.verdict import HostRun, Run, judge
from tests.report import factories


def with_evidence(run: Run, evidence: Evidence | None) -> Run:
    return replace(run, hosts={"plc": replace(run.hosts["plc"], evidence_after=evidence)})


def on_hardware(*, max_us: int, **changes: object) -> Run:
    run = factories.run(emulated=False)
    guest = factories.latency(
        "guest", factories.histogram(floor_us=4, peak=9000, decay=0.6, last_us=max_us), label="", cpus="1"
    )
    evidence = factories.evidence("after", emulated=False, plan_sha256=run.plan.sha256(), latencies=(guest,))
    return with_evidence(run, evidence.model_copy(update=changes))


def test_all_checks_passed_is_as_planned() -> None:
    verdict = judge(factories.run(passed=7))
    assert (verdict.state, verdict.counts.passed, verdict.reasons) == ("as planned", 7, ())


@pytest.mark.parametrize(
    ("statuses", "state"),
    [
        ({"passed": 5, "failed": 1}, "not as planned"),
        ({"passed": 5, "not_checked": 1}, "incomplete"),
        ({"passed": 5, "failed": 1, "not_checked": 1}, "not as planned"),
    ],
)
def test_one_check_decides(statuses: dict[str, int], state: str) -> None:
    assert judge(factories.run(emulated=True, **statuses)).state == state


def test_a_host_without_findings_is_not_a_pass() -> None:
    run = factories.run(passed=5)
    verdict = judge(replace(run, hosts={}))
    assert verdict.state == "incomplete"
    assert verdict.reasons == ("plc was not verified.",)


def test_findings_without_checks_are_not_a_pass() -> None:
    run = factories.run(passed=1)
    findings = run.hosts["plc"].findings
    assert findings is not None
    emptied = findings.model_copy(update={"checks": ()})
    assert judge(replace(run, hosts={"plc": HostRun(findings=emptied)})).state == "incomplete"


def test_a_run_that_stopped_early_is_incomplete_and_says_why() -> None:
    verdict = judge(replace(factories.run(passed=5), stopped="QEMU was killed."))
    assert verdict.state == "incomplete"
    assert "QEMU was killed." in verdict.reasons


def test_findings_of_another_plan_do_not_count_as_proof() -> None:
    run = factories.run(passed=5)
    other = factories.findings("0" * 64, passed=5)
    assert judge(replace(run, hosts={"plc": replace(run.hosts["plc"], findings=other)})).state == "incomplete"


@settings(deadline=None)  # a busy machine is not a defect
@given(max_us=st.integers(min_value=30, max_value=100_000))
def test_no_number_proves_a_deadline_in_emulation(max_us: int) -> None:
    run = with_evidence(
        factories.run(emulated=True),
        factories.evidence(
            "after",
            latencies=(factories.latency("guest", factories.histogram(floor_us=4, peak=9, decay=1, last_us=max_us)),),
        ),
    )
    (deadline,) = judge(run).deadlines
    assert deadline.state == "not provable"
    assert "emulated" in deadline.why


def test_one_document_that_says_emulated_is_enough() -> None:
    run = on_hardware(max_us=80)
    facts = factories.facts(emulated=True)
    assert judge(run).deadlines[0].state == "met"
    doubted = replace(run, hosts={"plc": replace(run.hosts["plc"], facts_before=facts)})
    assert judge(doubted).deadlines[0].state == "not provable"


def test_nobody_knows_whether_it_is_emulated() -> None:
    run = factories.run(emulated=None)
    assert judge(run).deadlines[0].state == "not provable"


@pytest.mark.parametrize(("max_us", "state"), [(99, "met"), (100, "met"), (101, "missed")])
def test_on_hardware_the_largest_sample_decides(max_us: int, state: str) -> None:
    (deadline,) = judge(on_hardware(max_us=max_us)).deadlines
    assert (deadline.state, deadline.max_ns) == (state, max_us * 1000)


def test_lost_samples_or_another_plan_prove_nothing() -> None:
    run = on_hardware(max_us=80)
    evidence = run.hosts["plc"].evidence_after
    assert evidence is not None
    lossy = evidence.latencies[0].model_copy(update={"lost": 3})
    assert judge(with_evidence(run, evidence.model_copy(update={"latencies": (lossy,)}))).deadlines[0].state == (
        "not provable"
    )
    conditions = evidence.conditions.model_copy(update={"plan_sha256": "0" * 64})
    other = evidence.model_copy(update={"conditions": conditions})
    assert judge(with_evidence(run, other)).deadlines[0].state == "not provable"


def test_without_a_measurement_in_the_guest_nothing_is_said_about_it() -> None:
    run = on_hardware(
        max_us=80, latencies=(factories.latency("host", factories.histogram(floor_us=4, peak=9, decay=1, last_us=40)),)
    )
    assert judge(run).deadlines[0].state == "not measured"
    assert judge(with_evidence(run, None)).deadlines[0].state == "not measured"
