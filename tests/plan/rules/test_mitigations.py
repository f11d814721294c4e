"""What weakens the host: never without a consent by its own name."""

from __future__ import annotations

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.documents.site import Consent
from evenkeel.plan.rules import CATALOGUE
from tests.plan.factories import guest, make_facts
from tests.plan.rules.ask import notes_of, of, one, plan

L1D = "/sys/module/kvm_intel/parameters/vmentry_l1d_flush"
CE = "/sys/devices/system/machinecheck/machinecheck0/ignore_ce"
BUFFERS = {"tsx_async_abort": "Mitigation: Clear CPU buffers; SMT vulnerable"}


def old_intel(**vulnerabilities: str) -> Facts:
    files = {L1D: "cond", CE: "0", "/sys/module/kvm/parameters/nx_huge_pages": "Y"}
    return make_facts(settings=files, vulnerabilities=vulnerabilities or BUFFERS)


@pytest.mark.parametrize("goal", ["flexible", "balanced", "performance", "realtime"])
def test_no_goal_gives_consent(goal: str) -> None:
    """The strictest deadline there is does not weaken anything either."""
    wish = guest(goal, latency=10_000) if goal == "realtime" else guest(goal)
    host = plan(old_intel(), {"plc": wish})
    needing = {rule.id for rule in CATALOGUE if rule.consent}
    assert len(needing) >= 5
    assert not needing & {setting.rule for setting in host.settings}
    told = {note.rule for note in host.notes if "no goal implies it" in note.text}
    expected = {"flexible": set(), "balanced": set(), "performance": {"R-KVM-2", "H-MIT-1", "H-MIT-2"}}
    assert told == expected.get(goal, needing)


@pytest.mark.parametrize(
    ("consent", "identifier", "value"),
    [
        ("mitigations-off:l1tf", "H-MIT-1", "never"),
        ("mitigations-off:itlb-multihit", "R-KVM-2", "N"),
        ("no-transactional-memory", "H-MIT-2", "off"),
        ("ignore-corrected-memory-errors", "H-MCE", "1"),
        ("no-audit", "H-AUD", "0"),
    ],
)
def test_each_consent_is_for_one_thing(consent: str, identifier: str, value: str) -> None:
    host = plan(old_intel(), consents={consent: Consent(because="all guests are our own")})
    setting = one(host, identifier)
    assert (setting.new, setting.status) == (value, "change")
    assert "all guests are our own" in setting.reason
    others = {rule.id for rule in CATALOGUE if rule.consent} - {identifier}
    assert not others & {setting.rule for setting in host.settings}


def test_nothing_to_consent_to_on_a_processor_without_the_fault() -> None:
    facts = make_facts(settings={L1D: "not required"}, vulnerabilities={"tsx_async_abort": "Mitigation: TSX disabled"})
    consents = {key: Consent(because="x") for key in ("mitigations-off:l1tf", "no-transactional-memory")}
    host = plan(facts, consents=consents)
    assert of(host, "H-MIT-1") == of(host, "H-MIT-2") == []
    assert "has nothing to change on this host" in notes_of(host, "H-MIT-1")[0]
    # Set before, it stays: the kernel reads "TSX disabled" because of this very argument.
    there = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"command_line": "ro tsx=off"})})
    assert one(plan(there, consents=consents), "H-MIT-2").status == "satisfied"


def test_mitigations_that_are_all_off_are_noted_and_left() -> None:
    host = plan(make_facts(command_line="ro mitigations=off"))
    assert "mitigations=off" in notes_of(host, "H-MIT")[0]
    assert of(host, "H-MIT") == []
    assert notes_of(plan(), "H-MIT") == []
