"""Looking things up in a plan, and comparing two plans."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evenkeel.documents.plan import Plan
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from evenkeel.plan.diff import diff_plans
from evenkeel.plan.explain import explain, scope
from evenkeel.plan.guest import ELEMENTS
from evenkeel.plan.rules import CATALOGUE, rule_by_id
from tests.plan.factories import guest, make_facts, make_site


@pytest.fixture(name="plan")
def _plan() -> Plan:
    return make_plan(make_site(), {"cell": make_facts()})


def test_a_setting(plan: Plan) -> None:
    found = explain(plan, "R-RT-4:ktimers/10")
    assert found.rule is not None and found.rule.id == "R-RT-4"
    assert [(host, setting.id) for host, setting in found.settings] == [("cell", "R-RT-4:ktimers/10")]


def test_a_rule_in_small_letters(plan: Plan) -> None:
    found = explain(plan, "r-rt-4")
    assert found.id == "R-RT-4"
    assert len(found.settings) == 3


def test_a_guest_and_an_element(plan: Plan) -> None:
    assert [one.name for _, one in explain(plan, "plc").guests] == ["plc"]
    found = explain(plan, "G-4")
    assert found.element is not None
    assert [one.name for _, one in found.guests] == ["plc"]


def test_a_note(plan: Plan) -> None:
    found = explain(plan, "R-IRQ-2")
    assert found.notes and not found.settings


def test_a_rule_that_this_plan_does_not_use(plan: Plan) -> None:
    found = explain(plan, "H-TSC")
    assert found.rule is not None and not found.settings


@pytest.mark.parametrize(("wrong", "right"), [("R-WQ-3", "R-WQ-2"), ("R-RT-4:ktimers/11", "R-RT-4:ktimers/10")])
def test_did_you_mean(plan: Plan, wrong: str, right: str) -> None:
    with pytest.raises(WrongInput, match=f"nothing named {wrong}") as caught:
        explain(plan, wrong)
    assert f"did you mean {right}?" in str(caught.value.hint)


def test_an_unknown_host(plan: Plan) -> None:
    with pytest.raises(WrongInput, match="no host cel"):
        explain(plan, "R-WQ-1", "cel")
    assert explain(plan, "R-WQ-1", "cell").settings


def test_scope() -> None:
    fair, boot = rule_by_id("R-RT-2"), rule_by_id("H-ISO-1")
    assert fair is not None and boot is not None
    assert scope(fair) == "realtime; Linux 6.12 and later"
    assert scope(boot) == "performance, realtime; a data plane"


def test_equal_plans_do_not_differ(plan: Plan) -> None:
    assert diff_plans(plan, plan) == ()


def test_differences(plan: Plan) -> None:
    after = make_plan(
        make_site({"plc": guest(latency=40_000, near="ens2"), "log": guest("flexible")}), {"cell": make_facts()}
    )
    found = {difference.what: difference for difference in diff_plans(plan, after)}
    assert (found["cpus realtime"].before, found["cpus realtime"].after) == ("8,10", "2,4")
    assert (found["H-ISO-2"].kind, found["H-ISO-2"].after) == ("changed", "2-5")
    assert found["H-ISO-3:poll"].kind == "added"
    assert found["R-RT-4:ktimers/10"].kind == "removed"
    assert found["guest hmi: goal"].kind == "removed"
    assert found["guest log: goal"].kind == "added"
    assert "R-WQ-2" not in found
    backwards = {difference.what: difference for difference in diff_plans(after, plan)}
    assert backwards.keys() == found.keys()
    assert backwards["H-ISO-3:poll"].kind == "removed"


def test_a_host_comes_and_goes(plan: Plan) -> None:
    empty = plan.model_copy(update={"hosts": ()})
    assert [(one.kind, one.what) for one in diff_plans(plan, empty)] == [("removed", "host")]
    assert [(one.kind, one.what) for one in diff_plans(empty, plan)] == [("added", "host")]


def test_the_explanation_page_names_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "why-these-settings.md").read_text()
    ids = [rule.id for rule in CATALOGUE] + [rule.id for rule in ELEMENTS] + ["R-IRQ-2", "R-KVM-2"]
    assert [identifier for identifier in ids if not re.search(rf"{identifier}(?![\w-])", page)] == []
