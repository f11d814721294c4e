"""Rules about the queues of network interfaces: R-IRQ-3 (how many), R-NET-Q (steering that is switched on).

They come before the interrupts: a driver that changes its queues makes their interrupts anew.
Source: reference host-tuning §2.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus, format_mask, parse_mask
from evenkeel.documents.facts import Nic
from evenkeel.documents.plan import NicChannels, Phase
from evenkeel.plan.rules.rule import ISOLATING, Alternative, Context, Rule, Wanted, cpus_input, file_value

_RPS = re.compile(r"/sys/class/net/([^/]+)/queues/rx-(\d+)/rps_cpus")


def near(context: Context, nic: Nic) -> frozenset[int]:
    """Housekeeping CPUs of the interface's node; all of them where the firmware does not tell."""
    if nic.node is None or nic.node not in context.topology.cpu_nodes:
        return context.housekeeping
    return (context.housekeeping & context.topology.node_cpus(nic.node)) or context.housekeeping


def channels(context: Context) -> Iterable[Wanted]:
    """One queue for each housekeeping CPU near the interface, where it could have more; never more than it has now."""
    for nic in context.facts.nics:
        if nic.channels is None:
            continue
        cpus = near(context, nic)
        now = {kind: getattr(nic.channels, kind) for kind in ("combined", "rx", "tx")}
        most = {kind: getattr(nic.channels, f"most_{kind}") for kind in now}
        kinds = [kind for kind in now if now[kind] and most[kind] > len(cpus)]
        if not kinds:
            continue  # it cannot have too many
        old = " ".join(f"{kind}={now[kind]}" for kind in kinds)
        new = " ".join(f"{kind}={min(now[kind], len(cpus))}" for kind in kinds)
        where = f" on node {nic.node}" if nic.node is not None else ""
        yield Wanted(
            target=NicChannels(nic=nic.name),
            old=old,
            new=new,
            reason=f"{context.who()}, so {nic.name}{where} is served by housekeeping {format_cpus(cpus)}: "
            + (
                "each queue more is one more interrupt for the same CPUs"
                if new != old
                else "it has no more queues than those"
            ),
            inputs={
                "housekeeping near it": cpus_input(cpus),
                "it could have": " ".join(f"{kind}={most[kind]}" for kind in kinds),
                "driver": nic.driver or "unknown",
            },
            suffix=nic.name,
            status="satisfied" if new == old else "change",
        )


def steered(context: Context) -> Iterable[Wanted]:
    """Queues that somebody steers to isolated CPUs.  A mask of 0 is no steering: the interrupt's CPU does the work."""
    for path, text in sorted(context.facts.settings.items()):
        match = _RPS.fullmatch(path)
        if match is None:
            continue
        try:
            now = parse_mask(text)
        except ValueError:
            continue
        reaching = now & context.isolated
        if not reaching:
            continue
        nic, queue = match.groups()
        kept = (now & context.housekeeping) or context.housekeeping
        yield file_value(
            context,
            path,
            format_mask(kept),
            f"{context.who()}, but packets of {nic} rx-{queue} are steered to CPU {format_cpus(reaching)} among others",
            compare="cpumask",
            inputs={"steered to": format_cpus(now), "housekeeping": cpus_input(context.housekeeping)},
            suffix=f"{nic}/rx-{queue}",
        )


RULES = (
    Rule(
        id="R-IRQ-3",
        subject="network",
        title="No more queues than housekeeping CPUs near the interface",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.INTERRUPTS,
        disturbance="drain",
        when="runtime",
        risk="the driver resets the device: the link is down for seconds, and a cluster may take the host for dead; "
        "the driver may go back to its own number at the next reset or when it is loaded again",
        verification="ethtool -l",
        source="kernel: networking/scaling.rst; TuneD (plugin net, channels); host-tuning R-IRQ-3, F14",
        compute=channels,
        inputs=("channels of each interface on PCI", "its node", "housekeeping CPUs of that node"),
        value="combined (or rx and tx) = number of housekeeping CPUs on its node, where it has more",
        alternatives=(
            Alternative(
                "one queue for each CPU of the host",
                "the default of most drivers",
                "their interrupts all end on housekeeping CPUs, and their buffers are touched from all of them",
            ),
            Alternative(
                "no change on a host that is in use",
                "SEAPATH: ethtool -L took the link away and Corosync lost its heartbeat",
                "it is asked for with the settings that disturb, and never where it is so already",
            ),
        ),
    ),
    Rule(
        id="R-NET-Q",
        subject="network",
        title="Packets of a queue are not steered to isolated CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.INTERRUPTS,
        disturbance="live",
        when="runtime",
        risk="the CPUs that remain process more packets",
        verification="/sys/class/net/NIC/queues/rx-N/rps_cpus",
        source="kernel: networking/scaling.rst; cluster-node-tuning-operator; host-tuning R-NET",
        compute=steered,
        inputs=("rps_cpus of each receive queue", "isolated CPUs"),
        value="the housekeeping CPUs of the mask; all of them where none is left; a mask of 0 stays",
        alternatives=(
            Alternative(
                "xps_cpus on housekeeping CPUs too",
                "host-tuning R-NET",
                "that mask only says which queue a CPU sends through, and an isolated CPU does not send",
            ),
        ),
    ),
)
