"""What a run may touch while guests run: pure decisions, each with its opposite."""

from __future__ import annotations

from typing import Any

import pytest

from evenkeel.apply import scope
from evenkeel.apply.scope import RunningGuest
from evenkeel.apply.steps import Step, host_steps
from evenkeel.documents.plan import HostPlan, Phase
from evenkeel.plan import make_plan
from tests.plan.factories import make_facts, make_site

OTHER = RunningGuest("other", frozenset({2, 3}))


@pytest.fixture(scope="module")
def host() -> HostPlan:
    """A real plan: one real-time and one ordinary guest."""
    site = make_site()
    return make_plan(site, {name: make_facts() for name in site.hosts}).hosts[0]


def step(body: dict[str, Any], phase: Phase = Phase.KERNEL, disturbance: Any = "live") -> Step:
    return Step("S-1", "title", phase, disturbance, body)


def left(host: HostPlan, *steps: Step, guests: tuple[RunningGuest, ...] = (OTHER,), old: str | None = None) -> Any:
    found = [{"outcome": "would_change", "old": old} for _ in steps]
    return scope.live_only(host, steps, found, guests, None)


STAT = {"kind": "file", "path": "/proc/sys/vm/stat_interval", "value": "10", "compare": "integer"}


@pytest.mark.parametrize(
    ("body", "old", "why"),
    [
        ({"kind": "thread", "name": "ktimers/2", "value": "fifo:11"}, None, "a kernel thread of CPU 2"),
        ({"kind": "file", "path": "/sys/devices/system/cpu/cpu3/power/x", "value": "0"}, "1", "a setting of CPU 3"),
        ({"kind": "interrupt", "action": "eth0", "value": "0-2"}, "0-1 4", "it sends interrupts to CPU 2"),
        (
            {"kind": "file", "path": "/sys/x/cpumask", "value": "ff", "compare": "cpumask"},
            "f3",
            "it sends work to CPU 2-3",
        ),
        ({"kind": "partition", "guest": "new", "vcpu": 0, "value": "3"}, None, "a partition takes CPU 3"),
        ({"kind": "guest_thread", "guest": "other", "vcpu": 0, "value": "fifo:2"}, None, "how that guest runs"),
        ({"kind": "guest_helpers", "guest": "other", "cpus": "0"}, None, "how that guest runs"),
    ],
)
def test_what_reaches_the_cpus_of_a_running_guest_is_left_with_the_reason(
    host: HostPlan, body: dict[str, Any], old: str | None, why: str
) -> None:
    reason = left(host, step(body), old=old)["S-1"]
    assert why in reason
    assert "guest other runs on CPUs 2-3" in reason
    assert left(host, step(body), old=old, guests=()) == {}
    elsewhere = RunningGuest("elsewhere", frozenset({6, 7}))
    assert left(host, step(body), old=old, guests=(elsewhere,)) == {}


@pytest.mark.parametrize(
    ("body", "old"),
    [
        (STAT, "1"),
        ({"kind": "thread", "name": "ktimers/1", "value": "fifo:11"}, None),
        ({"kind": "thread", "name": "rcu_preempt", "value": "fifo:11"}, None),
        ({"kind": "interrupt", "action": "eth0", "value": "0-1"}, "0-7 4"),  # away from the guest's CPUs
        ({"kind": "file", "path": "/sys/x/cpumask", "value": "f3", "compare": "cpumask"}, "ff"),
        ({"kind": "unit", "unit": "irqbalance.service", "value": "stopped"}, None),
        ({"kind": "partition", "guest": "new", "vcpu": 0, "value": "4"}, None),
    ],
)
def test_what_stays_away_from_them_is_taken(host: HostPlan, body: dict[str, Any], old: str | None) -> None:
    assert left(host, step(body), old=old) == {}


def test_disturbance_classes(host: HostPlan) -> None:
    assert left(host, step(STAT, disturbance="reboot")) == {"S-1": "needs a reboot"}
    assert "--drain" in left(host, step(STAT, disturbance="drain"), guests=())["S-1"]
    assert "real-time thread" in left(host, step(STAT, Phase.THROTTLE))["S-1"]
    assert left(host, step(STAT, Phase.THROTTLE), guests=()) == {}


def test_what_is_right_already_is_neither_taken_nor_left(host: HostPlan) -> None:
    one = step({"kind": "thread", "name": "ktimers/2", "value": "fifo:11"})
    assert scope.live_only(host, [one], [{"outcome": "unchanged", "old": "fifo:11"}], [OTHER], None) == {}


def test_a_guest_is_taken_whole_or_left_whole(host: HostPlan) -> None:
    steps = host_steps(host)
    plc = next(guest for guest in host.guests if guest.goal == "realtime")
    found = [
        {"outcome": "would_change" if s.body.get("guest") == plc.name else "unchanged", "old": None} for s in steps
    ]
    mine = [s.name for s in steps if s.body.get("guest") == plc.name]
    # Its definition is no live setting, so nothing of it is.
    assert list(scope.live_only(host, steps, found, [], None)) == [mine[0], *mine[1:]]

    defined = [
        a if s.body["kind"] != "guest" else {**a, "outcome": "unchanged"} for s, a in zip(steps, found, strict=True)
    ]
    assert scope.live_only(host, steps, defined, [], None) == {}
    floating = RunningGuest("floating", frozenset(plc.vcpus[-1].cpus))
    reasons = scope.live_only(host, steps, defined, [floating], None)
    assert set(reasons) == set(mine[1:])
    assert any("another step for" in reason for reason in reasons.values())

    assert set(scope.live_only(host, steps, defined, [], "boot gate")) == set(mine[1:])
    assert set(scope.live_only(host, steps, defined, [], "boot gate").values()) == {
        "the host is not schedulable: boot gate"
    }


def test_without_drain(host: HostPlan) -> None:
    drain = step(STAT, disturbance="drain")
    definition = step({"kind": "guest", "guest": "new"}, Phase.GUEST, "drain")
    assert scope.needs_drain([drain, definition]) == [drain]  # a definition concerns its own guest alone
    assert scope.without_drain([drain, definition], [OTHER]) == {
        "S-1": "disturbs what runs (other); --drain shuts it down first"
    }
    assert scope.without_drain([drain], []) == {}
