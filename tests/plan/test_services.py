"""Services that must not wait: what the plan wants of them, where it leaves them alone, and what is checked."""

from __future__ import annotations

from typing import Any

from evenkeel.apply.steps import host_steps
from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Daemon, Facts
from evenkeel.documents.plan import HostPlan
from evenkeel.plan import make_plan
from evenkeel.plan.placement import KERNEL_PRIORITY
from evenkeel.plan.rules.ptp import CLOCK_PRIORITY
from evenkeel.probe.steps import services
from evenkeel.verify.observe import Observation
from evenkeel.verify.settings import check
from tests.plan.factories import guest, make_facts, make_site

HOUSE = "0-1,6-7"  # of the demo's machine


def daemon(name: str = "ptp4l", **more: Any) -> Daemon:
    body: dict[str, Any] = {"unit": f"{name}.service", "policy": "other", "priority": 0, "cpus": "0-11"}
    return Daemon(name=name, **(body | more))


def facts(*daemons: Daemon, **update: Any) -> Facts:
    return make_facts(daemons=daemons, **update)


def plan(machine: Facts, goal: str = "realtime") -> HostPlan:
    return make_plan(make_site({"plc": guest(goal)}), {"cell": machine}).hosts[0]


def wanted(machine: Facts, unit: str = "ptp4l.service") -> tuple[str | None, str | None, str]:
    setting = plan(machine).setting(f"R-PTP:{unit}")
    assert setting is not None
    return setting.old, setting.new, setting.status


def test_a_clock_has_housekeeping_and_a_priority_of_its_own() -> None:
    assert wanted(facts(daemon())) == ("0-11 other:0", f"{HOUSE} fifo:10", "change")
    assert CLOCK_PRIORITY < KERNEL_PRIORITY


def test_more_than_that_is_left_to_its_owner() -> None:
    assert wanted(facts(daemon(policy="rr", priority=40)))[1] == f"{HOUSE} rr:40"
    assert wanted(facts(daemon(policy="fifo", priority=2)))[1] == f"{HOUSE} fifo:10"


def test_switch_and_cluster_keep_their_schedule() -> None:
    machine = facts(daemon("corosync", policy="rr", priority=99), daemon("ovs-vswitchd"))
    assert wanted(machine, "corosync.service") == ("0-11", HOUSE, "change")
    assert wanted(machine, "ovs-vswitchd.service") == ("0-11", HOUSE, "change")


def test_satisfied_only_when_it_is_kept_for_the_next_start_too() -> None:
    placed: dict[str, Any] = {"cpus": HOUSE, "policy": "fifo", "priority": 10}
    assert wanted(facts(daemon(**placed)))[2] == "change"
    assert wanted(facts(daemon(**placed, kept=f"{HOUSE} fifo:10")))[2] == "satisfied"
    assert wanted(facts(daemon(**placed, kept="0-1 fifo:10")))[2] == "change"


def test_a_kernel_that_would_not_start_the_unit_gets_cpus_only() -> None:
    machine = facts(daemon())
    kernel = machine.kernel.model_copy(update={"config": {"RT_GROUP_SCHED": "y"}})
    host = plan(machine.model_copy(update={"kernel": kernel}))
    setting = host.setting("R-PTP:ptp4l.service")
    assert setting is not None and setting.new == HOUSE and "RT_GROUP_SCHED" in setting.reason


def test_one_without_a_unit_is_a_note() -> None:
    host = plan(facts(daemon(unit=None)))
    assert not [setting for setting in host.settings if setting.rule == "R-PTP"]
    assert ["ptp4l runs on CPUs 0-11" in note.text for note in host.notes if note.rule == "R-PTP"] == [True]


def test_nothing_where_nothing_is_isolated() -> None:
    host = plan(facts(daemon()), "balanced")
    assert not [setting for setting in host.settings if setting.rule == "R-PTP"]


def test_the_probe_understands_the_value() -> None:
    host = plan(facts(daemon("ptp4l", unit="ptp4l@eth0.service")))
    step = next(step for step in host_steps(host) if step.name == "R-PTP:ptp4l@eth0.service")
    assert step.body["kind"] == "service" and step.body["process"] == "ptp4l"
    assert services.parse(step.body["value"]) == (set(parse_cpus(HOUSE)), "fifo:10")


def test_it_is_checked() -> None:
    host = plan(facts(daemon()))

    def status(*now: Daemon) -> str:
        (one,) = (one for one in check(host, Observation(facts=facts(*now))) if one.id == "R-PTP:ptp4l.service")
        return one.status

    right: dict[str, Any] = {"cpus": HOUSE, "policy": "fifo", "priority": 10, "kept": f"{HOUSE} fifo:10"}
    assert status(daemon(**right)) == "passed"
    assert status(daemon(**{**right, "cpus": "0-2"})) == "failed"
    assert status(daemon(**{**right, "priority": 1})) == "failed"
    assert status(daemon(**{**right, "kept": None})) == "failed"
    assert status() == "not_checked"
