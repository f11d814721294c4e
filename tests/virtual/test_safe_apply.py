"""Apply beside running guests on a real PREEMPT_RT kernel: what is left, what is drained, and the starvation canary."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.virtual.tuned import TunedHost
from tests.virtual.watcher import watching

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.report import ApplyReport
from evenkeel.apply.status import host_status
from evenkeel.documents.plan import Phase, Plan
from evenkeel.measure.guest import guest_exec
from evenkeel.plan.order import order_settings

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(2400)]

REFRESH = "/proc/sys/vm/stat_refresh"


def apply(host: TunedHost, plan: Plan | None = None, **options: Any) -> ApplyReport:
    plan = plan or host.plan
    return apply_plan(plan.hosts[0], plan, host.machine, **options)


def strict(host: TunedHost) -> Plan:
    """The plan of a guest that promised to go idle: no throttling, no fair server on its CPU."""
    settings = []
    for setting in host.host.settings:
        if setting.phase is Phase.THROTTLE:
            new = "-1" if setting.rule == "R-RT-1" else "0"
            setting = setting.model_copy(update={"new": new, "old": None, "status": "change"})
            setting = setting.model_copy(update={"old": host.run(f"cat {setting.target.path}")})  # type: ignore[union-attr]
        settings.append(setting)
    ordered = order_settings(settings)
    return host.plan.model_copy(update={"hosts": (host.host.model_copy(update={"settings": ordered}),)})


def throttling(host: TunedHost) -> list[str]:
    """Runtime of the fair server on the CPU of the real-time vCPU, and the throttle."""
    return host.run(
        f"cat /sys/kernel/debug/sched/fair_server/cpu{host.cpu}/runtime /proc/sys/kernel/sched_rt_runtime_us"
    ).split()


@contextlib.contextmanager
def spinning(host: TunedHost) -> Iterator[None]:
    """The real-time vCPU of plc does not let go of its CPU, whatever its owner promised."""
    loop = "while [ ! -e /tmp/stop ]; do :; done"
    argv = ["sh", "-c", f"rm -f /tmp/stop; timeout -s KILL 900 taskset -c 1 sh -c '{loop}' >/dev/null 2>&1 &"]
    with host.machine.probe() as probe:
        guest_exec(probe, "plc", argv)
        deadline = time.monotonic() + 60
        while _busy(host) < 0.8:
            assert time.monotonic() < deadline, "the guest does not spin"
        try:
            yield
        finally:
            guest_exec(probe, "plc", ["touch", "/tmp/stop"])


def _busy(host: TunedHost) -> float:
    """Share of its CPU that the vCPU's thread used in the last two seconds."""
    used = host.run("cat /proc/$qemu/task/$tid/schedstat; sleep 2; cat /proc/$qemu/task/$tid/schedstat").split()
    return (int(used[3]) - int(used[0])) / 2e9


def test_only_live_stays_away_from_the_cpus_of_the_guests(tuned_host: TunedHost) -> None:
    thread = f"ktimers/{tuned_host.cpu}"
    tuned_host.run(
        f"""
        echo 5 > /proc/sys/vm/swappiness
        echo 1 > /sys/kernel/mm/ksm/run
        chrt -f -p 3 $(pgrep -x {thread})
        chrt -o -p 0 $tid
        """
    )
    report = apply(tuned_host, live_only=True)
    assert {step.name for step in report.of("done")} == {"R-MM-2:swappiness"}
    left = {step.name: step.message or "" for step in report.of("left")}
    assert set(left) == {f"R-RT-4:{thread}", "G-3:plc/vcpu1", "R-MM-1"}
    assert f"a kernel thread of CPU {tuned_host.cpu}, and guest plc runs on CPUs" in left[f"R-RT-4:{thread}"]
    assert "it changes how that guest runs" in left["G-3:plc/vcpu1"]
    assert "--drain" in left["R-MM-1"]
    assert "SCHED_OTHER" in tuned_host.run("chrt -p $tid")  # and was not touched


def test_what_needs_a_drain_is_left_and_with_drain_the_guests_come_back_to_their_places(tuned_host: TunedHost) -> None:
    tuned_host.run("echo 1 > /sys/kernel/mm/ksm/run")
    before = tuned_host.run("cat /run/libvirt/qemu/*.pid; echo; cat /sys/kernel/mm/ksm/run")
    report = apply(tuned_host)
    assert {step.name for step in report.of("left")} == {"R-MM-1"}
    assert before.endswith("\n1")
    assert tuned_host.run("cat /run/libvirt/qemu/*.pid; echo; cat /sys/kernel/mm/ksm/run") == before

    report = apply(tuned_host, drain=True)
    done = [step.name for step in report.of("done")]
    assert {"hmi/drain", "plc/drain", "R-MM-1", "plc/start", "C-1:plc/vcpu1", "plc/resume", "hmi/start"} <= set(done)
    assert done.index("plc/drain") < done.index("R-MM-1") < done.index("plc/start")
    told = host_status(tuned_host.host, tuned_host.plan.sha256(), tuned_host.machine)
    assert (told.state, told.schedulable) == ("as planned", True)
    assert tuned_host.run("cat $scope/vcpu1/cpuset.cpus.partition; virsh list --name | sort | xargs") == (
        "isolated\nhmi plc"
    )


def test_a_guest_that_yields_does_not_trip_the_canary(tuned_host: TunedHost) -> None:
    _wait_until_quiet(tuned_host)
    report = apply(tuned_host, strict(tuned_host))
    assert report.findings == ()
    assert {step.outcome for step in report.steps if step.phase == "throttle"} == {"done"}
    assert throttling(tuned_host) == ["0", "-1"]
    report = apply(tuned_host)  # and back: the fair server first, or the kernel answers EBUSY
    assert {step.outcome for step in report.steps if step.phase == "throttle"} == {"done"}
    assert throttling(tuned_host) == ["50000000", "950000"]


def test_a_guest_that_spins_trips_it_and_the_fair_server_is_back_on(tuned_host: TunedHost) -> None:
    with spinning(tuned_host):
        report = apply(tuned_host, strict(tuned_host))
        assert throttling(tuned_host) == ["50000000", "950000"]
        [finding] = report.findings
        assert finding.id == "CANARY"
        assert REFRESH in finding.observed
        server = f"R-RT-2:cpu{tuned_host.cpu}"
        assert {step.name for step in report.of("taken_back")} >= {server}
        assert f"{server} reads 50000000 again" in finding.evidence[0].value
        # The host is alive although the guest spins on.
        assert _busy(tuned_host) > 0.7
        tuned_host.run(f"timeout 60 sh -c 'echo 1 > {REFRESH}'")
    assert host_status(tuned_host.host, tuned_host.plan.sha256(), tuned_host.machine).state == "as planned"


def test_a_guest_that_spins_a_week_later_is_found_by_the_watcher(tuned_host: TunedHost) -> None:
    _wait_until_quiet(tuned_host)
    plan = strict(tuned_host)
    assert apply(tuned_host, plan).findings == ()
    assert throttling(tuned_host) == ["0", "-1"]
    watched = dataclasses.replace(tuned_host, plan=plan)
    with watching(watched, repair=True) as watcher:
        with spinning(tuned_host):
            told = watcher.wait("drifted", "W-CANARY")
            assert REFRESH in told.text
            back = watcher.wait("repaired", "W-CANARY")
            assert "real-time throttling taken back" in back.text
            assert throttling(tuned_host) == ["50000000", "950000"]
            assert _busy(tuned_host) > 0.7  # it spins on, and the host is alive
            watcher.wait("gone again", "W-CANARY")
        watcher.wait("not repaired", f"R-RT-2:cpu{tuned_host.cpu}")
        assert throttling(tuned_host) == ["50000000", "950000"]
    apply(tuned_host)


def test_without_the_canary_the_same_change_hangs_the_host(tuned_host: TunedHost) -> None:
    """The danger is real: the same writes by hand, and the host-wide operation does not end until they are undone."""
    server = f"/sys/kernel/debug/sched/fair_server/cpu{tuned_host.cpu}/runtime"
    with spinning(tuned_host):
        said = tuned_host.run(
            f"""
            echo -1 > /proc/sys/kernel/sched_rt_runtime_us
            echo 0 > {server}
            (echo 1 > {REFRESH}) & child=$!
            sleep 12
            [ -d /proc/$child ] && echo hangs || echo done
            echo 50000000 > {server}
            echo 950000 > /proc/sys/kernel/sched_rt_runtime_us
            wait $child
            """
        )
    assert said == "hangs"


def _wait_until_quiet(host: TunedHost) -> None:
    deadline = time.monotonic() + 180
    while _busy(host) > 0.1:
        assert time.monotonic() < deadline, "the guest does not come to rest"
