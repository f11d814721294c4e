"""Each fault of the table is made on a healthy recorded host: the doctor names it, and nothing else.

Healthy hosts of each kind have no harmful finding.  Break the doctor anywhere, and a row here turns red.
"""

from __future__ import annotations

import functools

import pytest

from evenkeel.documents.findings import Check, Findings
from evenkeel.verify.doctor import AILMENTS, examine
from tests.verify.doctor.faults import FAULTS, Fault
from tests.verify.doctor.tree import BASES, Tree


def kind(check: Check) -> str:
    return check.id.partition(":")[0]


@functools.cache
def healthy(base: str) -> Findings:
    return examine(Tree(base).facts(), base)


def found(findings: Findings) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for check in findings.failed:
        kinds.setdefault(kind(check), set()).add(check.observed)
    return kinds


@pytest.mark.parametrize("base", BASES)
def test_a_healthy_host_has_no_harmful_finding(base: str) -> None:
    assert [check for check in healthy(base).failed if check.severity == "harmful"] == []


def test_the_tuned_host_with_guests_has_no_finding_at_all_and_everything_was_looked_at() -> None:
    findings = healthy("guests")
    assert [(check.id, check.status) for check in findings.checks if check.status != "passed"] == []
    assert len(findings.checks) == len(AILMENTS)


def test_what_the_healthy_hosts_are_warned_of() -> None:
    """On the host with two threads a core the runtime settings were never written; the installed one has no tuning."""
    assert set(found(healthy("smt"))) == {"D-WORKQUEUE", "D-IRQ-MANAGED"}
    assert set(found(healthy("fresh"))) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_the_doctor_names_the_fault_and_no_other(fault: Fault) -> None:
    tree = Tree(fault.base)
    fault.make(tree)
    findings = examine(tree.facts(), fault.base)
    before, after = found(healthy(fault.base)), found(findings)
    # What the healthy host is warned of stays, though it may be worded for other CPUs now.
    assert set(after) - set(before) == {fault.finding}, after
    assert set(before) <= set(after)
    named = [check for check in findings.failed if kind(check) == fault.finding]
    rank = {"harmful": 0, "warning": 1, "note": 2}
    assert min((check.severity for check in named), key=lambda one: rank[one]) == fault.severity
    for check in named:
        assert check.evidence and all(item.where and item.value for item in check.evidence)
        assert check.why and check.fix and check.observed


def test_every_ailment_has_a_fault_and_every_fault_an_ailment() -> None:
    assert {fault.finding for fault in FAULTS} == {ailment.id for ailment in AILMENTS}
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
    worst = {ailment.id: ailment.severity for ailment in AILMENTS}
    for ailment in AILMENTS:
        assert worst[ailment.id] in {fault.severity for fault in FAULTS if fault.finding == ailment.id}, ailment.id


def test_the_same_facts_give_the_same_bytes() -> None:
    assert examine(Tree("guests").facts(), "x").to_json() == examine(Tree("guests").facts(), "x").to_json()
