"""Look at a host for verification: everything that the judging modules need, taken through the probe.

Reads and samples only.  An operation that the machine refuses leaves its reason in :class:`Observation`, so that the
checks that depend on it can say why they were not made; a lost connection is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import GuestPlan, HostPlan, UnitState
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError
from evenkeel.verify.steps import Steps


@dataclass(frozen=True)
class Options:
    """How long and how hard to look.

    ``load``: what runs on the host beside the second spinner.  ``spinners`` False: settings, threads, pages and
    interrupts only; the checks of spinners are then not made.
    """

    seconds: float = 4.0
    load: Literal["hackbench", "none"] = "hackbench"
    spinners: bool = True
    thread_samples: int = 5
    #: Seconds to wait at most for a guest that is neither idle nor busy, because it boots.
    settle_s: float = 90.0


@dataclass(frozen=True)
class GuestSeen:
    """A guest as it is.  ``threads`` and ``memory`` are None when it has no QEMU process; ``trouble`` says more."""

    state: str
    live: str | None = None
    defined: str | None = None
    threads: list[dict[str, Any]] | None = None
    memory: dict[str, Any] | None = None
    trouble: str = ""

    def vcpu(self, index: int) -> dict[str, Any] | None:
        return next((thread for thread in self.threads or () if thread["vcpu"] == index), None)


@dataclass(frozen=True)
class Observation:
    """All that was seen.  ``quiet`` and ``loaded``: the spinners alone, and beside a load (None: not run)."""

    facts: Facts
    units: dict[str, dict[str, str]] = field(default_factory=dict)
    guests: dict[str, GuestSeen] = field(default_factory=dict)
    intruders: list[dict[str, Any]] | None = None
    interrupts: dict[str, Any] | None = None
    quiet: dict[str, Any] | None = None
    loaded: dict[str, Any] | None = None
    #: Housekeeping CPU that had a spinner of its own beside the load, for comparison.
    control: int | None = None
    #: Operation -> why it gave nothing.
    trouble: dict[str, str] = field(default_factory=dict)

    def spun(self) -> list[dict[str, Any]]:
        """What the spinners on real-time CPUs gave, as :func:`evenkeel.measure.measure_host` takes it.

        Empty unless both ran.
        """
        if self.quiet is None or self.loaded is None:
            return []
        ours = [spin for spin in self.loaded["spins"] if spin["cpu"] != self.control]
        return [self.quiet, {**self.loaded, "spins": ours}]


def hackbench(host: HostPlan) -> dict[str, Any]:
    """The load that goes wherever the scheduler puts it, as the probe takes it.

    A group is 40 processes that wake each other: with one for four housekeeping CPUs each of them always has some that
    wait.  More only make it longer until the load, and all that is started beside it, gets going.
    """
    return {"tool": "hackbench", "groups": max(1, len(host.ledger.housekeeping) // 4)}


def observe(
    host: HostPlan, probe: Probe, facts: Facts, options: Options, on_progress: OnProgress | None = None
) -> Observation:
    """Look at everything once.  Raises Unreachable when the connection is lost."""
    steps = Steps(_length(host, options), on_progress)
    trouble: dict[str, str] = {}

    def attempt(op: str, name: str, length_s: float, what: str, /, **arguments: Any) -> Any:
        """One operation; None, with the reason in ``trouble``, when the machine refuses it."""
        inner = steps.begin(length_s, what)
        try:
            return probe.call(op, on_progress=inner, **arguments)
        except ProbeError as error:
            trouble[name] = error.message
            return None

    units = sorted({setting.target.unit for setting in host.settings if isinstance(setting.target, UnitState)})
    states = attempt("units", "units", 1, "units", names=units) if units else {}
    guests = {guest.name: _see_guest(guest, attempt, trouble, options) for guest in host.guests}
    realtime = sorted(vcpu_cpus(host))
    intruders = (
        attempt("intruders", "intruders", 1, "all other threads", cpus=realtime, guests=list(guests))
        if realtime
        else []
    )
    interrupts = quiet = loaded = control = None
    places = spin_places(host, guests, facts)
    if options.spinners and places:
        places["settle_s"] = options.settle_s
        quiet = attempt("spin", "quiet", options.seconds + 1, "a spinner", seconds=options.seconds, **places)
        if options.load != "none":
            control = max(host.ledger.housekeeping, default=None)
            cpus = [*places["cpus"], *([] if control is None else [control])]
            # It came to rest before the first one, or it never will.
            places["settle_s"] = min(10.0, options.settle_s)
            load = hackbench(host)
            loaded = attempt(
                "spin",
                "loaded",
                options.seconds + 4,
                "a spinner under load",
                seconds=options.seconds,
                load=load,
                **{**places, "cpus": cpus},
            )
    else:
        interrupts = attempt("interrupts", "interrupts", 1, "interrupts", seconds=1.0)
    steps.end()
    return Observation(
        facts=facts,
        units=states or {},
        guests=guests,
        intruders=intruders,
        interrupts=interrupts,
        quiet=quiet,
        loaded=loaded,
        control=control,
        trouble=trouble,
    )


def vcpu_cpus(host: HostPlan) -> frozenset[int]:
    """CPUs of vCPUs at real-time priority; where there are none, of all vCPUs that have isolated CPUs."""
    pinned = [vcpu for guest in host.guests for vcpu in guest.vcpus if vcpu.cpus <= host.ledger.isolated]
    urgent = [vcpu for vcpu in pinned if vcpu.policy == "fifo"]
    return frozenset(cpu for vcpu in urgent or pinned for cpu in vcpu.cpus)


def spin_places(host: HostPlan, guests: dict[str, GuestSeen], facts: Facts) -> dict[str, Any]:
    """Arguments of the probe's ``spin``: on which CPUs, beside which vCPU, in which cgroup or partition.

    Empty: there is no such CPU.

    Beside the vCPU where its guest runs, because nobody else may use that CPU then: its cgroup is the condition that
    is to be checked.  In a partition of its own where the host is tuned and no guest runs.  On a host that is not
    tuned yet plainly pinned, or the partition would hide what is missing.
    """
    cpus = sorted(vcpu_cpus(host) or host.ledger.realtime)  # never beside what polls: two busy threads prove nothing
    if not cpus:
        return {}
    beside: dict[str, dict[str, Any]] = {}
    for guest in host.guests:
        for vcpu in guest.vcpus:
            thread = guests[guest.name].vcpu(vcpu.index) if guest.name in guests else None
            alone = len(vcpu.cpus) == 1 and min(vcpu.cpus) in cpus
            if thread and thread["cgroup"] and alone and parse_cpus(thread["cpus"]) == vcpu.cpus:
                beside[str(min(vcpu.cpus))] = thread
    isolate = [cpu for cpu in cpus if str(cpu) not in beside and cpu in facts.nohz_full]
    return {
        "cpus": cpus,
        "isolate": isolate,
        "cgroups": {cpu: thread["cgroup"] for cpu, thread in beside.items()},
        "vcpus": {cpu: thread["tid"] for cpu, thread in beside.items()},
    }


def _see_guest(guest: GuestPlan, attempt: Callable[..., Any], trouble: dict[str, str], options: Options) -> GuestSeen:
    name = guest.name
    state = attempt("guest_state", name, 1, f"guest {name}", guest=name)
    if state is None:
        return GuestSeen("unknown", trouble=trouble[name])
    if state["live"] is None:
        return GuestSeen(state["state"], defined=state["defined"])
    threads = attempt(
        "threads", name, 1, f"threads of {name}", guest=name, samples=options.thread_samples, interval_s=0.1
    )
    memory = attempt("numa_maps", name, 1, f"memory of {name}", guest=name)
    return GuestSeen(
        state=state["state"],
        live=state["live"],
        defined=state["defined"],
        threads=threads["threads"] if threads else None,
        memory=memory,
        trouble=trouble.get(name, ""),
    )


def _length(host: HostPlan, options: Options) -> float:
    spinning = options.seconds + 1 + (options.seconds + 4 if options.load != "none" else 0)
    return 2 + 3 * len(host.guests) + (spinning if options.spinners and host.ledger.isolated else 1)
