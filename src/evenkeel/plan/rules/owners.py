"""Rules about other programs that tune the same machine: R-OWN.

Two owners of one value undo each other; on a live cluster that cost the network (seapath/ansible#985).
Source: reference host-tuning §3, failure mode F11.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Note, Phase, UnitState
from evenkeel.plan.rules.rule import ISOLATING, Alternative, Context, Rule, Wanted

#: Daemons that set what the plan sets, and what each of them would do to it.  irqbalance has its own rule, R-IRQ-4.
_DAEMONS = {
    "auto-cpufreq": "sets governors and turbo by load and battery (H-PM-3)",
    "ksmtuned": "switches page merging on when memory gets short (R-MM-1)",
    "numad": "moves processes and their memory between nodes, and sets cpusets",
    "power-profiles-daemon": "sets governors and preferences of all CPUs (H-PM-3)",
    "stalld": "boosts starving threads above a vCPU; the fair server and the priorities of this plan do its work",
    "tlp": "sets governors and preferences of all CPUs when the power source changes (H-PM-3)",
    "tuned": "writes sysctls, workqueue masks, interrupt affinities and boot arguments of its profile",
}


def daemons(context: Context) -> Iterable[Wanted]:
    for owner in context.facts.owners:
        if owner.name in _DAEMONS:
            yield Wanted(
                target=UnitState(unit=f"{owner.name}.service"),
                old="running" if owner.active else "stopped",
                new="stopped",
                reason=f"{owner.name} {_DAEMONS[owner.name]} ({owner.evidence}); each value has one owner",
                inputs={owner.name: owner.evidence},
                suffix=owner.name,
                status="change" if owner.active else "satisfied",
            )


def files_note(context: Context, paths: Iterable[str]) -> Iterable[Note]:
    """Files that set one of the plan's values again at the next boot.  ``paths``: the files that the plan sets."""
    keys = {path.removeprefix("/proc/sys/").replace("/", "."): path for path in paths if path.startswith("/proc/sys/")}
    for owner in context.facts.owners:
        if owner.name not in ("sysctl.d", "tmpfiles.d"):
            continue
        mine = sorted(
            key for key, path in keys.items() if f"{key} = " in owner.evidence or f"{path} = " in owner.evidence
        )
        if mine:
            yield Note(
                rule="R-OWN",
                text=f"{owner.name} sets {', '.join(mine)} too, at every boot ({owner.evidence}); Evenkeel writes its "
                "own value when it applies the plan, and verification tells when the other one is back.",
            )


RULES = (
    Rule(
        id="R-OWN",
        subject="owners",
        title="One owner for each value",
        levels=ISOLATING,
        phase=Phase.MEMORY,
        disturbance="live",
        when="runtime",
        risk="what the stopped program did besides is no longer done",
        verification="unit state; values stay as planned",
        source="host-tuning F11; seapath/ansible#985 (TuneD re-applied on a live cluster)",
        compute=daemons,
        inputs=(
            "daemons that run or start at boot",
            "sysctl.d, tmpfiles.d",
        ),
        value="stopped and masked; files are noted",
        alternatives=(
            Alternative(
                "import what they set",
                "host-tuning F11, for hosts that TuneD owns already",
                "two owners of one value undo each other at the next switch of a profile",
            ),
            Alternative("stop thermald too", "low-latency guides", "it guards against heat; the owner decides"),
        ),
    ),
)
