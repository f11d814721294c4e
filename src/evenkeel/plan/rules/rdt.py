"""The rule about the shared caches: H-RDT.  Who gets which ways is :mod:`evenkeel.plan.ways`; guests get theirs through
their definition (G-13).  Source: reference host-tuning §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Note, Phase
from evenkeel.plan.rules.rule import ONLY_REALTIME, Alternative, Context, Rule, Wanted, file_value, guests
from evenkeel.plan.ways import divisible

SCHEMATA = "/sys/fs/resctrl/schemata"


def default_group(context: Context) -> Iterable[Wanted]:
    """What everybody keeps who is in no group: written before a guest starts, or libvirt finds no free way for it."""
    ways = context.ways
    for resource in ways.resources if ways.rest else ():
        parts = []
        for cache, mask in sorted(ways.rest.items()):
            cpus = next(c.cpus for c in context.facts.caches if c.level == 3 and c.id == cache)
            theirs = ", ".join(f"{share.guest} {share.ways}" for share in ways.shares if share.cache == cache)
            parts.append(f"of the L3 of CPUs {format_cpus(cpus)} {theirs} of its ways, the host keeps {mask:x}")
        users = {share.guest for share in ways.shares}
        yield file_value(
            context,
            SCHEMATA,
            f"{resource}:" + ";".join(f"{cache}={mask:x}" for cache, mask in sorted(ways.rest.items())),
            f"{guests([p for p in context.realtime if p.name in users])} real-time vCPUs have ways of their own: "
            + "; ".join(parts),
            compare="schemata",
            inputs={
                resource: " ".join(
                    f"mask {one.mask}, at least {one.least_bits}, shared with devices {one.shareable}"
                    for one in divisible(context.facts)
                    if one.name == resource
                )
            },
            suffix="" if len(ways.resources) == 1 else resource,
        )


def not_divided(context: Context) -> Iterable[Note]:
    """Why a machine that could divide its cache does not."""
    resctrl = context.facts.resctrl
    if context.ways.rest or "H-RDT" in context.wish.overrides:
        return  # it is divided; or what the override did is said there
    asking = [placement for placement in context.realtime if placement.wish.l3 is not None]
    if resctrl is None:
        if asking:
            yield Note(
                rule="H-RDT",
                text="this CPU, or its kernel, cannot divide its L3 (there is no /sys/fs/resctrl), so "
                f"{guests(asking)} wish for a part of it cannot be met.",
            )
        return
    if not resctrl.mounted:
        yield Note(
            rule="H-RDT",
            text=f"this CPU can divide its L3, so that {guests(context.realtime)} real-time vCPUs keep theirs, but "
            "resctrl is not mounted and what it offers cannot be read. To use it: put the line `resctrl "
            "/sys/fs/resctrl resctrl defaults 0 0` into /etc/fstab, mount it, and plan again.",
        )
    elif divisible(context.facts) and context.realtime:
        yield Note(
            rule="H-RDT",
            text="the L3 can be divided, but the kernel gives its caches no number (cache/index3/id), and resctrl "
            "knows them by that; nothing is set.",
        )


RULES = (
    Rule(
        id="H-RDT",
        subject="cache",
        title="Ways of the L3 cache for real-time vCPUs alone",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="less cache for the host and for all other guests, who slow down; so does a realtime guest that runs "
        "already, until it is started again from a definition that gives it ways of its own",
        verification="/sys/fs/resctrl/schemata, and the schemata of each guest's group there",
        source="kernel: filesystems/resctrl.rst; libvirt: virresctrl.c (takes ways that no group has, the default one "
        "included); host-tuning H-RDT, G-13",
        compute=default_group,
        inputs=("L3 caches and their CPUs", "info of resctrl: mask, least bits, shareable bits, classes", "its groups"),
        value="the default group keeps what the guests do not have: one piece at the other end of each L3, with the "
        "ways that devices use; each guest gets ways for its `l3`, or in proportion to its cores, at least 2",
        alternatives=(
            Alternative(
                "a cap on the memory bandwidth of everybody else (MB:)",
                "Intel's guides to real-time virtual machines",
                "the throttle is coarse and delays the emulator threads of the same guests too; no number for it can "
                "be derived from facts, it needs a measurement",
            ),
            Alternative(
                "pseudo-locked regions",
                "kernel: filesystems/resctrl.rst",
                "they hold the lines of one program that maps them, not the memory of a guest",
            ),
        ),
        note=not_divided,
    ),
)
