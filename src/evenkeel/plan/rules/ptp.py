"""The rule about services of the host that must not wait: R-PTP.

Where everything of the host is pressed onto few CPUs, clock synchronisation, the virtual switch and the cluster compete
with all the rest (seapath/ansible#857).  Source: reference host-tuning §3, failure mode F13.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Daemon
from evenkeel.documents.plan import Note, Phase, ServicePlacement
from evenkeel.plan.rules.rule import ISOLATING, Alternative, Context, Rule, Wanted, cpus_input

#: FIFO priority of what follows a clock: above ordinary work, below the kernel's own threads that the plan raises (11)
#: and below interrupt threads (50).  OpenShift's PTP operator documents 10 too (ptpSchedulingPriority).
CLOCK_PRIORITY = 10
_CLOCKS = ("phc2sys", "ptp4l", "ts2phc")
_WHAT = {
    "corosync": "corosync loses its membership when its heartbeat is late; it sets a priority itself",
    "ovs-vswitchd": "ovs-vswitchd carries the guests' packets; its polling threads keep the CPUs that they have",
    "phc2sys": "phc2sys steers the system clock",
    "ptp4l": "ptp4l follows the network's clock",
    "ts2phc": "ts2phc follows the clock of a receiver",
}


def placements(context: Context) -> Iterable[Wanted]:
    seen: set[str] = set()
    # CONFIG_RT_GROUP_SCHED: a unit in a cgroup without a real-time budget would not start with a FIFO policy.
    grouped = context.facts.kernel.config.get("RT_GROUP_SCHED") == "y"
    for daemon in context.facts.daemons:
        if daemon.unit is None or daemon.unit in seen:
            continue
        seen.add(daemon.unit)
        clock = daemon.name in _CLOCKS
        cpus = format_cpus(context.housekeeping)
        schedule = f"fifo:{CLOCK_PRIORITY}" if clock and not grouped else ""
        if schedule and daemon.policy in ("fifo", "rr") and daemon.priority > CLOCK_PRIORITY:
            schedule = f"{daemon.policy}:{daemon.priority}"  # its owner wants more
        new = f"{cpus} {schedule}".strip()
        now = f"{format_cpus(daemon.cpus)} {daemon.policy}:{daemon.priority}"
        fits = daemon.cpus <= context.housekeeping and schedule in ("", f"{daemon.policy}:{daemon.priority}")
        yield Wanted(
            target=ServicePlacement(unit=daemon.unit, process=daemon.name),
            old=now if schedule else format_cpus(daemon.cpus),
            new=new,
            reason=f"{_WHAT[daemon.name]}; it runs on housekeeping {cpus}"
            + (f" at {schedule}, before ordinary work of the host" if schedule else "")
            + (
                "; no priority, since this kernel was built with RT_GROUP_SCHED and would refuse to start the unit"
                if clock and grouped
                else ""
            ),
            inputs={
                "runs as": now,
                "clocks of interfaces": _clocks(context),
                "housekeeping": cpus_input(context.housekeeping),
            },
            suffix=daemon.unit,
            status="satisfied" if fits and daemon.kept == new else "change",
        )


def _clocks(context: Context) -> str:
    found = [f"{nic.name} /dev/ptp{nic.ptp_clock}" for nic in context.facts.nics if nic.ptp_clock is not None]
    return ", ".join(found) or "none"


def without_unit(context: Context) -> Iterable[Note]:
    loose: dict[str, Daemon] = {daemon.name: daemon for daemon in context.facts.daemons if daemon.unit is None}
    for name, daemon in sorted(loose.items()):
        yield Note(
            rule="R-PTP",
            text=f"{name} runs on CPUs {format_cpus(daemon.cpus)} as {daemon.policy}:{daemon.priority}, but not as a "
            "service of systemd, so nothing here can keep it in its place; whoever starts it should keep it on "
            f"housekeeping {format_cpus(context.housekeeping)}.",
        )


RULES = (
    Rule(
        id="R-PTP",
        subject="services",
        title="Clock, switch and cluster of the host are not kept waiting",
        levels=ISOLATING,
        phase=Phase.THREADS,
        disturbance="live",
        when="runtime",
        risk=f"a clock daemon that spins would keep ordinary work off one housekeeping CPU (FIFO {CLOCK_PRIORITY})",
        verification="CPUs, policy and priority of the service's threads; the drop-in of its unit",
        source="systemd.exec(5): CPUAffinity, CPUSchedulingPolicy; seapath/ansible#857, #985; OpenShift PTP operator "
        "(ptpSchedulingPriority 10); host-tuning F13",
        compute=placements,
        inputs=("running ptp4l, phc2sys, ts2phc, ovs-vswitchd, corosync", "their units", "housekeeping CPUs"),
        value=f"housekeeping CPUs; clock daemons FIFO {CLOCK_PRIORITY}, or what they have where that is more",
        alternatives=(
            Alternative(
                "a restart of the service, so that systemd places it",
                "the usual way with drop-ins",
                "it costs the clock its lock and the cluster a member; the threads that run are moved instead",
            ),
            Alternative(
                "AllowedCPUs= of the unit",
                "SEAPATH",
                "it is a cpuset, which binds the polling threads of OVS-DPDK too",
            ),
        ),
        note=without_unit,
    ),
)
