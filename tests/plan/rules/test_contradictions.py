"""Where vendors contradict each other: both sides are named, one is the default, and the owner may take another."""

from __future__ import annotations

import pytest

from evenkeel.documents.facts import Facts, Frequency, Idle
from evenkeel.documents.site import Override
from evenkeel.plan.rules import CATALOGUE, rule_by_id
from tests.plan.factories import make_facts
from tests.plan.rules.ask import metal, one, plan


def bare() -> Facts:
    files = {"/sys/devices/system/cpu/cpu8/power/pm_qos_resume_latency_us": "0"}
    files |= {"/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc"}
    return metal(make_facts(settings=files), idle=Idle(driver="intel_idle"), frequency=Frequency(driver="intel_pstate"))


@pytest.mark.parametrize(
    ("identifier", "default", "other"),
    [
        ("H-CLK", "tsc", "hpet"),
        ("R-TIM-1", "1", "0"),
        ("R-KVM-1", "200000", "0"),
        ("H-PM-1:cpu8", "25", "2"),
        ("H-C:processor", None, "1"),
        ("H-C:idle", None, "poll"),
        ("H-SMT", None, ""),
        ("H-P:intel_pstate", None, "disable"),
        ("R-RT-1", "950000", "-1"),
        ("H-ISO-1", "managed_irq,8-11", "managed_irq,domain,8-11"),
    ],
)
def test_default_sides_and_override(identifier: str, default: str | None, other: str) -> None:
    rule = rule_by_id(identifier.partition(":")[0])
    assert rule is not None and rule.alternatives
    by_default = plan(bare()).setting(identifier)
    assert (by_default.new if by_default else None) == default
    taken = one(plan(bare(), overrides={identifier: Override(value=other, because="our own measurement")}), identifier)
    assert taken.new == other
    assert "our own measurement" in taken.reason
    assert ("leave it alone" in taken.reason) == (default is None)


def test_every_rule_is_told_whole() -> None:
    for rule in CATALOGUE:
        assert rule.inputs and rule.value, f"{rule.id} does not say what it looks at and what it asks for"
        for alternative in rule.alternatives:
            assert alternative.value and alternative.by and alternative.rejected, rule.id
    assert sum(bool(rule.alternatives) for rule in CATALOGUE) > 30
