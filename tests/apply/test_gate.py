"""The boot gate: pure comparison of what came up with what was planned."""

from __future__ import annotations

import pytest

from evenkeel.apply import gate
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import HostPlan
from evenkeel.plan import make_plan
from evenkeel.plan.order import command_line
from tests.plan.factories import make_facts, make_site


@pytest.fixture(scope="module")
def host() -> HostPlan:
    return make_plan(make_site(), {"cell": make_facts()}).hosts[0]


def booted(host: HostPlan) -> Facts:
    """Facts of a host that came up as planned."""
    line = command_line(make_facts().kernel.command_line, host.settings)
    return make_facts(command_line=line)


def values(host: HostPlan) -> dict[str, str]:
    """Every effective file as the kernel would show it."""
    found = {}
    for setting in host.settings:
        effective = getattr(setting.target, "effective", None)
        if effective:
            wanted = getattr(setting.target, "effective_value", None)
            found[effective.path] = (wanted if wanted is not None else setting.new or "") + "\n"
    return found


def failed(host: HostPlan, facts: Facts, shown: dict[str, str]) -> list[str]:
    return [check.id for check in gate.check_boot(host, facts, shown) if check.status != "passed"]


def test_a_host_that_came_up_as_planned_passes(host: HostPlan) -> None:
    assert gate.booted_with(host, booted(host).kernel.command_line)
    assert failed(host, booted(host), values(host)) == []
    assert set(gate.effective_paths(host)) == set(values(host))
    assert len(values(host)) >= 4


def test_every_single_argument_counts(host: HostPlan) -> None:
    """Take each one away, and give each one another value: the gate names it, and nothing else."""
    line = booted(host).kernel.command_line
    tried = 0
    for setting in host.settings:
        key = getattr(setting.target, "key", None)
        if key is None or setting.status == "absent":
            continue
        tried += 1
        word = f"{key}={setting.new}" if setting.new else key
        assert word in line.split()
        for other in ("", f"{key}=9"):
            spoiled = " ".join(other if part == word else part for part in line.split())
            assert failed(host, make_facts(command_line=spoiled), values(host)) == [setting.id]
            assert not gate.booted_with(host, spoiled)
    assert tried >= 8


def test_every_single_effect_counts(host: HostPlan) -> None:
    for path in gate.effective_paths(host):
        wrong = values(host) | {path: "1\n" if path.endswith("nohz_full") else "7fff\n"}
        assert len(failed(host, booted(host), wrong)) == 1
        missing = {name: text for name, text in values(host).items() if name != path}
        [line] = gate.failures(gate.check_boot(host, booted(host), missing))
        assert f"{path} does not exist or cannot be read" in line


def test_an_argument_behind_two_dashes_is_inits_and_not_the_kernels(host: HostPlan) -> None:
    line = booted(host).kernel.command_line
    moved = line.replace("nohz_full=", "-- nohz_full=")
    assert "H-ISO-2" in failed(host, make_facts(command_line=moved), values(host))


def test_a_host_in_its_rescue_entry_is_told_apart_from_one_that_lost_its_arguments(host: HostPlan) -> None:
    lost = make_facts()
    rescue = make_facts(command_line=f"{lost.kernel.command_line} evenkeel.rescue")
    assert "GATE-ENTRY" not in failed(host, lost, values(host))
    assert failed(host, rescue, values(host))[0] == "GATE-ENTRY"
    assert "the boot menu choose by itself" in gate.check_boot(host, rescue, values(host))[1].fix
    line = f"{booted(host).kernel.command_line} evenkeel.rescue"  # by hand, with everything else there
    assert failed(host, make_facts(command_line=line), values(host)) == ["GATE-ENTRY"]


def test_another_kernel(host: HostPlan) -> None:
    facts = booted(host)
    other = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"release": "6.1.0-1-amd64"})})
    assert failed(host, other, values(host)) == ["GATE-KERNEL"]


@pytest.mark.parametrize(("unknown", "wrong"), [(("rcu-nocbs=8-11",), True), (("BOOT_IMAGE=/x", "quietly"), False)])
def test_arguments_that_the_kernel_does_not_know(host: HostPlan, unknown: tuple[str, ...], wrong: bool) -> None:
    facts = booted(host)
    told = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"unknown_parameters": unknown})})
    assert failed(host, told, values(host)) == (["GATE-UNKNOWN"] if wrong else [])
