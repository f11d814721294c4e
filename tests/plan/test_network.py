"""Queues of network interfaces: how many the plan wants, where it leaves them alone, and what is checked."""

from __future__ import annotations

from typing import Any

import pytest

from evenkeel.apply.steps import host_steps
from evenkeel.documents.cpuset import parse_mask
from evenkeel.documents.facts import Channels, Facts, Nic
from evenkeel.documents.plan import HostPlan, NicChannels
from evenkeel.plan import make_plan
from evenkeel.verify.observe import Observation
from evenkeel.verify.settings import check
from tests.plan.factories import guest, make_facts, make_site

EIGHT = Channels(combined=8, most_combined=16)


def facts(channels: Channels | None = EIGHT, *, node: int | None = 0, **settings: str) -> Facts:
    """The demo's machine (housekeeping 0-1 and 6-7), its first interface with these channels."""
    found = make_facts(settings=settings)
    first, *others = found.nics
    nic = first.model_copy(update={"channels": channels, "node": node, "driver": "ice"})
    return found.model_copy(update={"nics": (nic, *others)})


def plan(machine: Facts, goal: str = "realtime") -> HostPlan:
    return make_plan(make_site({"plc": guest(goal)}), {"cell": machine}).hosts[0]


def wanted(machine: Facts, goal: str = "realtime") -> tuple[str | None, str | None, str] | None:
    setting = plan(machine, goal).setting("R-IRQ-3:ens2")
    return None if setting is None else (setting.old, setting.new, setting.status)


def test_as_many_queues_as_housekeeping_cpus_on_its_node() -> None:
    assert wanted(facts()) == ("combined=8", "combined=2", "change")
    assert wanted(facts(node=None)) == ("combined=8", "combined=4", "change")  # firmware that does not tell: all four


def test_never_more_than_it_has() -> None:
    assert wanted(facts(Channels(combined=1, most_combined=16))) == ("combined=1", "combined=1", "satisfied")
    assert wanted(facts(Channels(combined=2, most_combined=16))) == ("combined=2", "combined=2", "satisfied")


def test_receive_and_transmit_apart() -> None:
    assert wanted(facts(Channels(rx=8, tx=8, most_rx=8, most_tx=8))) == ("rx=8 tx=8", "rx=2 tx=2", "change")
    assert wanted(facts(Channels(rx=8, tx=1, most_rx=8, most_tx=1))) == ("rx=8", "rx=2", "change")


def test_what_cannot_have_too_many_or_does_not_tell_is_left_alone() -> None:
    assert wanted(facts(Channels(combined=2, most_combined=2))) is None
    assert wanted(facts(None)) is None
    assert wanted(facts(), "balanced") is None


def test_it_comes_before_the_interrupts_that_it_makes_anew_and_disturbs() -> None:
    host = plan(facts())
    places = {setting.rule: index for index, setting in reversed(list(enumerate(host.settings)))}
    assert places["R-IRQ-3"] < places["R-IRQ-1"]
    setting = host.setting("R-IRQ-3:ens2")
    assert setting is not None and setting.disturbance == "drain" and isinstance(setting.target, NicChannels)
    step = next(step for step in host_steps(host) if step.name == setting.id)
    assert step.body == {"kind": "channels", "nic": "ens2", "value": "combined=2"}


def test_it_is_checked() -> None:
    host = plan(facts())

    def status(machine: Facts) -> tuple[str, str]:
        (one,) = (one for one in check(host, Observation(facts=machine)) if one.id == "R-IRQ-3:ens2")
        return one.status, one.observed

    assert status(facts(Channels(combined=2, most_combined=16))) == ("passed", "combined=2")
    assert status(facts()) == ("failed", "combined=8")  # the driver went back to its own number
    assert status(facts(None))[0] == "not_checked"
    gone = facts().model_copy(update={"nics": (Nic(name="other"),)})
    assert status(gone) == ("failed", "no such interface")


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ("0", None),  # not steered at all
        ("3f", None),  # 0-5: none of them isolated
        ("fff", {0, 1, 6, 7}),
        ("f00", {0, 1, 6, 7}),  # only isolated ones: all of housekeeping
        ("301", {0}),
        ("no mask", None),
    ],
)
def test_steering_leaves_isolated_cpus_out(mask: str, kept: set[int] | None) -> None:
    path = "/sys/class/net/ens2/queues/rx-0/rps_cpus"
    machine = make_facts(settings={path: mask})
    setting = plan(machine).setting("R-NET-Q:ens2/rx-0")
    if kept is None:
        assert setting is None
    else:
        assert setting is not None and setting.new is not None
        assert parse_mask(setting.new) == kept and setting.status == "change"


def test_transmit_masks_are_left_alone() -> None:
    untouched: dict[str, Any] = {"/sys/class/net/ens2/queues/tx-0/xps_cpus": "fff"}
    assert not [s for s in plan(make_facts(settings=untouched)).settings if "xps" in s.target.model_dump_json()]
