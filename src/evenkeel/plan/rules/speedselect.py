"""The rule about Intel Speed Select: H-SST, a report.  It sets nothing: the profile is the owner's.

Cores with the higher base frequency (SST-BF) are preferred for guests by :mod:`evenkeel.plan.topology`.
Source: reference host-tuning §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Note, Phase
from evenkeel.plan.order import boot_value
from evenkeel.plan.rules.rule import ISOLATING, Alternative, Context, Rule, guests

_STATUS = "/sys/devices/system/cpu/intel_pstate/status"
_NAMES = {"base-freq": "SST-BF", "turbo-freq": "SST-TF", "core-power": "SST-CP"}


def not_active(context: Context) -> str | None:
    """Why intel_pstate is not in active mode, in a few words; None: it is."""
    wish = boot_value(context.facts.kernel.command_line, "intel_pstate")
    if wish in ("disable", "passive", "no_hwp"):
        return f"intel_pstate={wish} is on the command line"
    status = context.facts.settings.get(_STATUS)
    if status is not None:
        return None if status == "active" else f"{_STATUS} reads {status}"
    driver = context.facts.frequency.driver
    return None if driver == "intel_pstate" else f"the frequency driver is {driver or 'none'}"


def report(context: Context) -> Iterable[Note]:
    fast = context.topology.high_base
    features = context.facts.speed_select or {}
    enabled = [_NAMES[name] for name, state in sorted(features.items()) if state == "enabled"]
    if fast and "SST-BF" not in enabled:
        enabled.insert(0, "SST-BF")
    if enabled and (why := not_active(context)):
        yield Note(
            rule="H-SST",
            text=f"{' and '.join(enabled)} is switched on, but {why}: the hardware's own choice of frequencies (HWP), "
            "which it works through, is then not in use. Take intel_pstate in active mode, or switch it off; H-P sets "
            "neither by itself.",
        )
    if fast:
        mine = frozenset(cpu for placement in context.pinned for cpu in placement.cpus)
        slow = mine - fast
        where = (
            f"{guests(context.pinned)} vCPUs are all on them"
            if not slow
            else f"of {guests(context.pinned)} vCPUs those on CPU {format_cpus(slow)} are not on them; name their "
            "`cpus`, or let fewer guests choose before them"
        )
        yield Note(
            rule="H-SST",
            text=f"CPUs {format_cpus(fast)} have a higher base frequency than the others (SST-BF): {where}.",
        )
    elif features.get("base-freq") == "disabled":
        yield Note(
            rule="H-SST",
            text="this CPU could give some cores a higher base frequency at the cost of the others (SST-BF, switched "
            "off): `intel-speed-select base-freq enable -a`, then read the facts and plan again, and the guests' vCPUs "
            "are placed on those cores. It changes the whole machine, so no goal implies it.",
        )


RULES = (
    Rule(
        id="H-SST",
        subject="power",
        title="Cores that Intel Speed Select makes faster",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="report",
        risk="what makes some cores faster makes the others slower",
        verification="/sys/devices/system/cpu/cpuN/cpufreq/base_frequency; intel-speed-select perf-profile info",
        source="kernel: admin-guide/pm/intel-speed-select.rst; host-tuning H-SST. Not tried on such a machine",
        inputs=(
            "base frequency of each CPU",
            "what intel-speed-select says, where it is installed",
            "mode of intel_pstate",
        ),
        value="nothing is set; guests are placed on the cores with the higher base frequency",
        alternatives=(
            Alternative(
                "the profile, SST-TF and the classes of SST-CP set by the plan",
                "Intel's guides",
                "they change power and frequency of the whole package, survive no reboot, and could not be tried",
            ),
            Alternative(
                "intel_pstate=disable",
                "TuneD realtime",
                "Speed Select works through it (active mode); where it is in use the two contradict each other",
            ),
        ),
        note=report,
    ),
)
