"""What a rule is: data plus one small pure function that yields the wanted values.

No rule reads anything but its :class:`Context`.  The catalogue is assembled in :mod:`evenkeel.plan.rules`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import BootArgument, Disturbance, FileValue, Ledger, Note, Phase, Target
from evenkeel.documents.site import ConsentKey, GoalLevel, HostWish
from evenkeel.plan.order import boot_value
from evenkeel.plan.placement import Placement
from evenkeel.plan.topology import Topology
from evenkeel.plan.ways import WayLedger

ALL: frozenset[GoalLevel] = frozenset({"flexible", "balanced", "performance", "realtime"})
HUGE: frozenset[GoalLevel] = frozenset({"balanced", "performance", "realtime"})
ISOLATING: frozenset[GoalLevel] = frozenset({"performance", "realtime"})
ONLY_REALTIME: frozenset[GoalLevel] = frozenset({"realtime"})

Version = tuple[int, ...]
Status = Literal["change", "satisfied", "absent"]


@dataclass(frozen=True)
class Context:
    """All that a rule may look at, for one host."""

    host: str
    wish: HostWish
    facts: Facts
    topology: Topology
    ledger: Ledger
    placements: tuple[Placement, ...]
    #: Digest of each guest's domain definition, by name.
    definitions: dict[str, str] = field(default_factory=dict)
    #: Who owns which ways of the L3 caches; empty where they cannot be divided.
    ways: WayLedger = field(default_factory=WayLedger)
    #: CPUs of the data plane that poll; the rest of its cores are their empty siblings.
    polling: frozenset[int] = frozenset()

    @cached_property
    def kernel(self) -> Version:
        return kernel_version(self.facts.kernel.release)

    @property
    def preempt_rt(self) -> bool:
        return self.facts.kernel.preempt_rt

    @cached_property
    def levels(self) -> frozenset[str]:
        return frozenset(placement.goal for placement in self.placements)

    @property
    def housekeeping(self) -> frozenset[int]:
        return self.ledger.housekeeping

    @property
    def isolated(self) -> frozenset[int]:
        return self.ledger.isolated

    @cached_property
    def realtime(self) -> tuple[Placement, ...]:
        return tuple(placement for placement in self.placements if placement.goal == "realtime")

    @cached_property
    def pinned(self) -> tuple[Placement, ...]:
        return tuple(placement for placement in self.placements if placement.pinned)

    @cached_property
    def realtime_cpus(self) -> frozenset[int]:
        """CPUs of realtime guests, their empty siblings included."""
        return frozenset(cpu for placement in self.realtime for cpu in placement.cpus | placement.idle)

    @cached_property
    def fifo_cpus(self) -> frozenset[int]:
        return frozenset(cpu for placement in self.realtime for cpu in placement.fifo_cpus)

    @property
    def strict(self) -> bool:
        return any(placement.strict for placement in self.realtime)

    @cached_property
    def partitions(self) -> bool:
        """Whether remote cpuset partitions exist: cgroup v2 and cpuset.cpus.exclusive, Linux 6.7."""
        return self.kernel >= (6, 7) and self.facts.cgroup_version in (2, None)

    def who(self, placements: Iterable[Placement] | None = None) -> str:
        """``"CPUs 8-11 carry guest plc's vCPUs and their empty siblings"``: what most reasons begin with.

        Without ``placements``: all that is isolated, CPUs that poll for packets among them.
        """
        chosen = tuple(self.pinned if placements is None else placements)
        if self.ledger.data_plane and placements is None:
            polls = f"CPU {format_cpus(self.ledger.data_plane)} polls for packets"
            return f"{self.who(chosen)}, and {polls}" if chosen else polls
        cpus = frozenset(cpu for placement in chosen for cpu in placement.cpus | placement.idle)
        idle = " and their empty siblings" if any(placement.idle for placement in chosen) else ""
        plural = "s" if len(cpus) > 1 else ""
        verb = "carry" if plural else "carries"
        return f"CPU{plural} {format_cpus(cpus)} {verb} {guests(chosen)} vCPUs{idle}"


def guests(placements: Iterable[Placement]) -> str:
    """``"guest plc's"``, ``"guests a and b's"``."""
    names = [placement.name for placement in placements]
    if len(names) == 1:
        return f"guest {names[0]}'s"
    return f"guests {', '.join(names[:-1])} and {names[-1]}'s"


def kernel_version(release: str) -> Version:
    """``"6.12.117+deb12-rt-amd64"`` -> ``(6, 12, 117)``; the empty tuple when it does not start with numbers."""
    match = re.match(r"\d+(\.\d+)*", release)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


@dataclass(frozen=True)
class Wanted:
    """One value that a rule asks for.  ``suffix`` makes its id unique; "" when the rule yields one value only.

    ``on_request``: left alone by default, since vendors contradict each other and neither side is right everywhere; it
    becomes a setting when an override of the owner gives it a value.
    """

    target: Target
    old: str | None
    new: str | None
    reason: str
    inputs: dict[str, str] = field(default_factory=dict)
    suffix: str = ""
    status: Status = "change"
    on_request: bool = False


@dataclass(frozen=True)
class Alternative:
    """Another value that somebody recommends, and why it is not the default.  The owner may still set it: overrides."""

    value: str
    by: str  # who recommends it
    rejected: str  # why the rule does otherwise


def nothing(_context: Context) -> Iterable[Wanted]:
    """``compute`` of a rule that can only be reported."""
    return ()


def silence(_context: Context) -> Iterable[Note]:
    """``note`` of a rule that has nothing to say beside its settings."""
    return ()


@dataclass(frozen=True)
class Rule:
    """One line of the catalogue (reference host-tuning §2).

    ``levels``: it is asked when a guest of such a goal is on the host.  ``since`` and ``before``: the kernel versions
    for which it is true.  ``when``: how it can take effect; ``report``: not at all, ``note`` tells what was found.
    ``inputs``: which facts and wishes it looks at, a few words each.  ``value``: what it asks for, in words.
    ``consent``: the key under ``consents`` of a host without which it sets nothing, since it weakens security or hides
    errors of the hardware; no goal implies it.  ``brings``: what the owner gains by that consent, and what it costs.
    """

    id: str
    subject: str
    title: str
    levels: frozenset[GoalLevel]
    phase: Phase
    disturbance: Disturbance
    when: Literal["boot", "runtime", "define", "live", "report"]
    risk: str
    verification: str
    source: str
    compute: Callable[[Context], Iterable[Wanted]] = nothing
    since: Version = ()
    before: Version | None = None
    inputs: tuple[str, ...] = ()
    value: str = ""
    alternatives: tuple[Alternative, ...] = ()
    consent: ConsentKey | None = None
    brings: str = ""
    note: Callable[[Context], Iterable[Note]] = silence
    data_plane: bool = False  # asked, too, where CPUs poll for packets, whatever the guests

    def applies(self, context: Context) -> bool:
        return (
            (bool(self.levels & context.levels) or (self.data_plane and bool(context.ledger.data_plane)))
            and context.kernel >= self.since
            and (self.before is None or context.kernel < self.before)
        )


ABSENT = "; this kernel ({release}) has no such file, so there is nothing to set"
ABSENT_ON_RT = "; a PREEMPT_RT kernel lacks this on purpose, so it is off already"


def file_value(
    context: Context,
    path: str,
    new: str,
    reason: str,
    *,
    compare: Literal["text", "integer", "cpulist", "cpumask", "choice", "schemata", "words"] = "text",
    inputs: dict[str, str] | None = None,
    suffix: str = "",
    absent: str = ABSENT,
    on_request: bool = False,
) -> Wanted:
    """A value in a kernel file.  A file that the facts do not know does not exist: status ``absent``."""
    target = FileValue(path=path, compare=compare)
    old = context.facts.settings.get(path)
    inputs = inputs or {}
    if old is None and path not in context.facts.unreadable:
        reason += absent.format(release=context.facts.kernel.release)
        return Wanted(target, None, new, reason, inputs, suffix, "absent", on_request)
    if old is not None and compare == "words":
        old = " ".join(old.split())  # tabs tear a table apart
    status: Status = "satisfied" if target.matches(old, new) else "change"
    return Wanted(target, old, new, reason, inputs, suffix, status, on_request)


def boot_argument(
    context: Context,
    key: str,
    new: str,
    reason: str,
    *,
    effective: FileValue | None = None,
    effective_value: str | None = None,
    after: str | None = None,
    inputs: dict[str, str] | None = None,
    suffix: str = "",
    on_request: bool = False,
) -> Wanted:
    """An argument of the kernel command line.  Satisfied when it is there and its effective file agrees."""
    target = BootArgument(key=key, after=after, effective=effective, effective_value=effective_value)
    old = boot_value(context.facts.kernel.command_line, key, after)
    satisfied = old == new
    if satisfied and effective is not None and effective.path in context.facts.settings:
        wanted = new if effective_value is None else effective_value
        satisfied = effective.matches(context.facts.settings[effective.path], wanted)
    status: Status = "satisfied" if satisfied else "change"
    return Wanted(target, old, new, reason, inputs or {}, suffix, status, on_request)


def module_parameter(
    context: Context, module: str, name: str, new: str, shown: str, reason: str, *, inputs: dict[str, str] | None = None
) -> Iterable[Wanted]:
    """A module's parameter that only the command line can set, since its file is read-only.  ``shown``: as it reads.

    modprobe looks for ``module.name=`` in /proc/cmdline (modprobe(8)), so built in or not is the same.  Nothing where
    the module is not loaded or has the value by itself; what is on the command line already stays there.
    """
    path = f"/sys/module/{module}/parameters/{name}"
    now = context.facts.settings.get(path)
    there = boot_value(context.facts.kernel.command_line, f"{module}.{name}") is not None
    if now is None or (now == shown and not there):
        return
    yield boot_argument(
        context,
        f"{module}.{name}",
        new,
        reason,
        effective=FileValue(path=path),
        effective_value=shown,
        inputs=inputs,
        suffix=name,
    )


def cpus_input(cpus: frozenset[int]) -> str:
    """A CPU set as it stands in ``inputs``: the list, or a word for the empty set."""
    return format_cpus(cpus) or "none"
