"""From settings to steps: the order, the one boot step, the steps around a guest."""

from __future__ import annotations

import pytest

from evenkeel.apply.steps import Step, boot_words, host_steps
from evenkeel.documents.plan import HostPlan, Phase
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS
from tests.plan.factories import make_facts, make_site


@pytest.fixture(scope="module")
def host() -> HostPlan:
    """A real plan: one real-time and one ordinary guest."""
    site = make_site()
    return make_plan(site, {name: make_facts() for name in site.hosts}).hosts[0]


def names(steps: tuple[Step, ...]) -> list[str]:
    return [step.name for step in steps]


def test_every_setting_is_in_exactly_one_step_in_the_order_of_the_phases(host: HostPlan) -> None:
    steps = host_steps(host)
    covered = [setting.id for step in steps for setting in step.settings]
    assert sorted(covered) == sorted(setting.id for setting in host.settings if setting.status != "absent")
    phases = [list(Phase).index(step.phase) for step in steps]
    assert phases == sorted(phases)
    assert len(set(names(steps))) == len(steps)


def test_all_boot_arguments_are_one_step_in_the_order_of_the_plan(host: HostPlan) -> None:
    boot = [step for step in host_steps(host) if step.phase is Phase.BOOT]
    assert [step.name for step in boot] == ["boot"]
    keys = [argument["key"] for argument in boot[0].body["arguments"]]
    assert keys.index("isolcpus") < keys.index("nohz_full") < keys.index("default_hugepagesz") < keys.index("hugepages")
    assert boot[0].wanted == " ".join(boot_words(boot[0].settings))
    assert "hugepagesz=2M hugepages=" in boot[0].wanted


def test_a_realtime_guest_is_started_paused_placed_and_only_then_resumed(host: HostPlan) -> None:
    realtime = next(guest for guest in host.guests if guest.goal == "realtime")
    mine = [step for step in host_steps(host) if step.body.get("guest") == realtime.name]
    kinds = [step.body["kind"] for step in mine]
    vcpus = len(realtime.vcpus)
    placed = ["partition"] * vcpus + ["guest_thread"] * vcpus
    assert kinds == ["guest", "guest_power", *placed, "guest_power", "guest_helpers"]
    assert [step.body["value"] for step in mine if step.body["kind"] == "guest_power"] == ["paused", "running"]
    assert mine[0].body["xml"] == realtime.xml
    assert mine[-1].body["cpus"] == "6-7"


def test_an_ordinary_guest_is_just_started(host: HostPlan) -> None:
    ordinary = next(guest for guest in host.guests if guest.goal == "flexible")
    mine = [step for step in host_steps(host) if step.body.get("guest") == ordinary.name]
    assert [step.body["kind"] for step in mine] == ["guest", "guest_power"]
    assert mine[1].body["value"] == "running"


def test_throttling_comes_after_the_guests(host: HostPlan) -> None:
    phases = [step.phase for step in host_steps(host)]
    assert phases[-1] is Phase.THROTTLE
    assert phases.index(Phase.THROTTLE) > max(index for index, phase in enumerate(phases) if phase is Phase.GUEST)


def test_what_a_kernel_lacks_on_purpose_is_no_step() -> None:
    plan = make_plan(make_site(), {"cell": make_facts()}).hosts[0]
    plan = plan.model_copy(update={"settings": RUNTIME_SETTINGS, "guests": ()})
    assert "R-GONE" not in names(host_steps(plan))


def test_removing_a_value_is_refused_and_removing_an_argument_is_not() -> None:
    plan = make_plan(make_site(), {"cell": make_facts()}).hosts[0]
    bad = RUNTIME_SETTINGS[1].model_copy(update={"new": None})
    with pytest.raises(WrongInput, match="R-WQ-1: a value of the kind 'file' can be set, not removed"):
        host_steps(plan.model_copy(update={"settings": (bad,), "guests": ()}))
    gone = BOOT_SETTINGS[0].model_copy(update={"new": None})
    [step] = host_steps(plan.model_copy(update={"settings": (gone,), "guests": ()}))
    assert step.body["arguments"] == [{"key": "isolcpus", "value": None, "after": None}]
    assert step.wanted == ""


def test_a_setting_of_a_guest_that_the_plan_does_not_have_is_refused(host: HostPlan) -> None:
    with pytest.raises(WrongInput, match="belongs to no guest of the plan"):
        host_steps(host.model_copy(update={"guests": ()}))


def test_throttling_keeps_the_order_of_the_plan_and_is_watched_by_the_canary(host: HostPlan) -> None:
    planned = [setting.id for setting in host.settings if setting.phase is Phase.THROTTLE]
    steps = [step for step in host_steps(host) if step.phase is Phase.THROTTLE]
    assert names(tuple(steps)) == planned == ["R-RT-2:cpu10", "R-RT-1"]  # another order is refused with EBUSY
    assert all(step.body["canary"] for step in steps)
    assert not any("canary" in step.body for step in host_steps(host) if step.phase is not Phase.THROTTLE)
