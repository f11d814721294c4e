"""What a plan costs: what its owner gives up, and what stays possible.

Read off the plan itself (the ledger, the settings, the domain definition of each guest), never off the name of a goal:
a definition that changes changes its cost with it.  Pure; it decides nothing.  Sources stand beside each judgement.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evenkeel.documents.cost import Cost, CostItem, GuestCost, HostCost, State
from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import BootArgument, FileValue, GuestPlan, HostPlan, Plan, Setting, UnitState
from evenkeel.documents.quantity import format_size
from evenkeel.plan.levels import is_strict
from evenkeel.plan.placement import PINNED, memory_reserve
from evenkeel.plan.rules import rule_by_id
from evenkeel.plan.topology import Topology


def cost_of(plan: Plan, facts: Mapping[str, Facts]) -> Cost:
    """What each host and guest of a plan gives up.  ``facts``: those that the plan was made from, by host name."""
    return Cost(
        plan_sha256=plan.sha256(),
        hosts=tuple(_host(host, Topology(facts[host.name])) for host in plan.hosts),
    )


def _host(host: HostPlan, topology: Topology) -> HostCost:
    items = [*_cpus_of_host(host, topology), *_memory_of_host(host, topology), *_settings_of_host(host)]
    return HostCost(
        name=host.name, items=tuple(items), guests=tuple(_guest(guest, host, topology) for guest in host.guests)
    )


def _guest(guest: GuestPlan, host: HostPlan, topology: Topology) -> GuestCost:
    domain = ET.fromstring(guest.xml)
    items = [
        *_migration(guest, domain),
        *_saving(domain),
        *_cpus(guest, host, topology),
        *_memory(guest, domain),
        *_cache(domain),
        *_devices(domain),
        *_changes(guest, domain),
    ]
    return GuestCost(
        name=guest.name, goal=guest.goal, strict=is_strict(guest.goal, guest.latency_ns), items=tuple(items)
    )


# -- one guest: whether it can leave its host -------------------------------------------------------------------------


def _anchors(domain: ET.Element) -> list[str]:
    """What makes QEMU refuse to write down the state of this guest, as sentences."""
    found = []
    cpu = domain.find("cpu")
    invariant = cpu is not None and any(
        feature.get("name") == "invtsc" and feature.get("policy", "require") in ("require", "force")
        for feature in cpu.findall("feature")
    )
    unmigratable = cpu is not None and cpu.get("mode") == "host-passthrough" and cpu.get("migratable") == "off"
    if (invariant or unmigratable) and domain.find("clock/timer[@name='tsc'][@frequency]") is None:
        # libvirt's commit that added invtsc: "Migration and saving the domain does not work with this flag"; QEMU,
        # kvm_arch_init_vcpu(): "State blocked by non-migratable CPU device (invtsc flag)" without a fixed frequency.
        found.append("its CPU is the host's own with the invariant TSC, which QEMU neither migrates nor saves")
    passed = len(domain.findall("devices/hostdev")) + len(domain.findall("devices/interface[@type='hostdev']"))
    if passed:
        found.append(f"{_count(passed, 'device')} passed through, whose state QEMU cannot read")
    return found


def _migration(guest: GuestPlan, domain: ET.Element) -> Iterable[CostItem]:
    if anchors := _anchors(domain):
        yield CostItem(
            id="migration",
            what="live migration",
            state="given up",
            because="; ".join(anchors),
            instead="shut it down, plan it on the other host, start it there",
        )
        return
    limits = []
    cpu = domain.find("cpu")
    if cpu is not None and cpu.get("mode") == "host-passthrough":
        limits.append("only to a host with the same CPU")
    if guest.page_bytes:
        limits.append(f"which has {_count(guest.pages, 'free page')} of {format_size(guest.page_bytes)}")
    local = [source.get("file") or source.get("dev") or "" for source in domain.findall("devices/disk/source")]
    if local:
        limits.append(f"which reaches {', '.join(local)} too, or gets a copy")
    if kernel := domain.findtext("os/kernel"):
        limits.append(f"which has {kernel} at the same path")
    yield CostItem(
        id="migration",
        what="live migration",
        state="limited" if limits else "kept",
        because=", ".join(limits) or "nothing ties it to this host",
        instead="its pins are those of this host: plan it on the other one first",
    )


def _saving(domain: ET.Element) -> Iterable[CostItem]:
    anchors = _anchors(domain)
    disks = domain.findall("devices/disk")
    yield CostItem(
        id="saving",
        what="saving its running state (save, snapshots with memory)",
        state="given up" if anchors else "kept",
        because="; ".join(anchors) or "it stands still while its memory is written",
        instead="snapshots of the disks alone" if anchors and disks else "",
    )
    passed = domain.findall("devices/hostdev")
    if not disks and not passed:
        return
    formats = {driver.get("type", "raw") for driver in domain.findall("devices/disk/driver")}
    if not disks:
        yield CostItem(
            id="disk-snapshots",
            what="snapshots of its disks, by the host",
            state="given up",
            because="its storage is passed through: the host never sees a block of it",
            instead="by the storage itself, or inside the guest",
        )
        return
    yield CostItem(
        id="disk-snapshots",
        what="snapshots of its disks, by the host",
        state="limited",
        because="external ones: from then on it writes to a qcow2 overlay, which is slower and allocates as it goes"
        if formats == {"raw"}
        else "external ones, each a qcow2 overlay more; the state of its memory is in none of them"
        if anchors
        else "external ones, each a qcow2 overlay more",
        instead="merge the overlay back (blockcommit) before it has to be fast again",
    )


# -- one guest: CPUs and memory ---------------------------------------------------------------------------------------


def _cpus(guest: GuestPlan, host: HostPlan, topology: Topology) -> Iterable[CostItem]:
    mine = frozenset(cpu for vcpu in guest.vcpus for cpu in vcpu.cpus)
    if guest.goal not in PINNED:
        others = [one for one in host.guests if one.name != guest.name and _cpus_of(one) & mine]
        vcpus = len(guest.vcpus) + sum(len(one.vcpus) for one in others)
        yield CostItem(
            id="cpu-overcommit",
            what="CPU overcommit",
            state="kept",
            amount=f"{_count(vcpus, 'vCPU')} on {_count(len(mine), 'CPU')} ({format_cpus(mine)})",
            because="its vCPUs go wherever one of these CPUs is free"
            + (f", and so do those of {', '.join(one.name for one in others)}" if others else ""),
            cpus=mine,
        )
        return
    yield CostItem(
        id="cpu-overcommit",
        what="CPU overcommit",
        state="given up",
        amount=f"{_count(len(mine), 'CPU')} ({format_cpus(mine)})",
        because="one vCPU each; nothing else runs there, also while the vCPU is idle",
        cpus=mine,
    )
    if idle := topology.whole(mine) & host.ledger.idle:
        yield CostItem(
            id="idle-cpus",
            what="CPUs that stand empty",
            state="given up",
            amount=f"{_count(len(idle), 'CPU')} ({format_cpus(idle)})",
            because="siblings of its cores: a busy one would take execution units and caches away"
            if guest.goal == "realtime"
            else f"its {_count(len(guest.vcpus), 'vCPU')} do not fill the last core",
            instead="" if guest.goal == "realtime" else "as many vCPUs as its cores have threads",
            cpus=idle,
        )


def _cpus_of(guest: GuestPlan) -> frozenset[int]:
    return frozenset(cpu for vcpu in guest.vcpus for cpu in vcpu.cpus)


def _memory(guest: GuestPlan, domain: ET.Element) -> Iterable[CostItem]:
    locked = domain.find("memoryBacking/locked") is not None
    shared = domain.find("memoryBacking/nosharepages") is None and not guest.page_bytes
    size = format_size(guest.memory_bytes)
    if guest.page_bytes:
        because = f"{_count(guest.pages, 'huge page')} of {format_size(guest.page_bytes)}, taken whole"
        because += " at its start and never swapped" if domain.find("memoryBacking/allocation") is not None else ""
        because += ", locked as well" if locked else ""
        yield CostItem(
            id="memory-overcommit",
            what="memory overcommit",
            state="given up",
            amount=size,
            because=because + "; nobody else gets a page that it does not use",
            bytes=guest.memory_bytes,
        )
    else:
        yield CostItem(
            id="memory-overcommit",
            what="memory overcommit",
            state="kept",
            amount=f"up to {size}",
            because="ordinary pages: they are taken when they are first written, and may be swapped",
        )
    balloon = domain.find("devices/memballoon")
    has = balloon is None or balloon.get("model") != "none"  # libvirt adds one when the element is left out
    yield CostItem(
        id="ballooning",
        what="giving memory back while it runs (ballooning)",
        state="kept" if has and not guest.page_bytes else "given up",
        because="it has a balloon device"
        if has
        else "it has no balloon device: huge pages cannot be given back singly",
    )
    yield CostItem(
        id="page-merging",
        what="sharing equal pages with other guests (KSM)",
        state="kept" if shared else "given up",
        because="its pages may be merged, where the host does it"
        if shared
        else "huge pages are never merged"
        + (", and the definition forbids it" if domain.find("memoryBacking/nosharepages") is not None else ""),
    )


def _cache(domain: ET.Element) -> Iterable[CostItem]:
    """Ways of a shared cache that the definition keeps for its vCPUs; code and data of one cache are the same bytes."""
    shares: dict[str, int] = {}
    for cache in domain.findall("cputune/cachetune/cache"):
        factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}.get(cache.get("unit", "B"), 0)
        shares[cache.get("id", "0")] = int(cache.get("size", "0")) * factor
    if total := sum(shares.values()):
        yield CostItem(
            id="cache",
            what="last-level cache for others",
            state="given up",
            amount=format_size(total),
            because="its real-time vCPUs have ways of their own; nobody else fills them, also while it is idle",
            bytes=total,
        )


# -- one guest: the rest ----------------------------------------------------------------------------------------------


def _devices(domain: ET.Element) -> Iterable[CostItem]:
    if domain.find("devices/graphics") is None:
        yield CostItem(
            id="graphics",
            what="graphical console",
            state="given up",
            because="each emulated device is a timer or a thread of QEMU",
            instead="its serial console, or its own network",
        )
    pmu = domain.find("features/pmu")
    if pmu is not None and pmu.get("state") == "off":
        yield CostItem(
            id="performance-counters",
            what="hardware counters inside it (perf)",
            state="given up",
            because="a virtual PMU is saved and restored at every switch",
            instead="perf kvm on the host",
        )


def _changes(guest: GuestPlan, domain: ET.Element) -> Iterable[CostItem]:
    memory = domain.find("numatune/memory")
    strict = memory is not None and memory.get("mode") == "strict"
    yield CostItem(
        id="re-pin",
        what="moving its vCPUs to other CPUs while it runs",
        state="kept",
        because="pins can be changed at any time (virsh vcpupin); Evenkeel itself never moves a running vCPU"
        if guest.goal in PINNED
        else "the scheduler does it all the time",
    )
    if strict and memory is not None:
        yield CostItem(
            id="re-place",
            what="moving its memory to another NUMA node while it runs",
            state="given up",
            because=f"it is bound strictly to node{'s' * (len(guest.nodes) > 1)} {memory.get('nodeset')}, and huge "
            "pages stay where they are",
            instead="restart it with a new plan",
        )


# -- the host ---------------------------------------------------------------------------------------------------------


def _cpus_of_host(host: HostPlan, topology: Topology) -> Iterable[CostItem]:
    ledger, online = host.ledger, len(topology.online)

    def share(cpus: frozenset[int]) -> str:
        return f"{_count(len(cpus), 'CPU')} of {online} ({format_cpus(cpus)})"

    if ledger.isolated:
        yield CostItem(
            id="isolated-cpus",
            what="CPUs for anything but these guests",
            state="given up",
            amount=share(ledger.isolated),
            because="no other guest and no interrupt that can be moved goes there, also while its guest is off",
            cpus=ledger.isolated,
            settings=_ids(host, lambda key, path: key in ("isolcpus", "nohz_full")),
        )
        if ledger.data_plane:
            yield CostItem(
                id="polling-cpus",
                what="CPUs that poll for packets",
                state="given up",
                amount=share(ledger.data_plane),
                because="they are busy at all times, whether a packet comes or not",
                instead="interrupts serve a card of low rate as well: take `data_plane` out",
                cpus=ledger.data_plane,
            )
        if ledger.idle:
            yield CostItem(
                id="idle-cpus",
                what="CPUs that stand empty",
                state="given up",
                amount=share(ledger.idle),
                because="the other threads of cores that run one thread only",
                cpus=ledger.idle,
            )
        yield CostItem(
            id="housekeeping",
            what="CPUs for the host itself",
            state="limited",
            amount=share(ledger.housekeeping),
            because="all interrupts, kernel threads, emulator and I/O threads of all guests share them",
            instead="`housekeeping:` in the site file gives it more",
            cpus=ledger.housekeeping,
        )
    yield CostItem(
        id="shared-cpus",
        what="CPUs for further guests",
        state="kept" if ledger.shared else "given up" if ledger.isolated else "kept",
        amount=share(ledger.shared),
        because="flexible and balanced guests float there; others can be given cores of it"
        if ledger.shared
        else "none is left beside the guests and the host",
        cpus=ledger.shared,
    )


def _memory_of_host(host: HostPlan, topology: Topology) -> Iterable[CostItem]:
    taken: dict[int, int] = {}
    for guest in host.guests:
        for node, pages in guest.pages_on.items():
            taken[node] = taken.get(node, 0) + pages * (guest.page_bytes or 0)
    if not taken:
        return
    parts = []
    for node, size in sorted(taken.items()):
        whole = topology.memory_of(node) if topology.numa else topology.facts.memory_bytes
        percent = f", {100 * size / whole:.0f} %" if whole else ""
        left = whole - memory_reserve(whole) - size
        parts.append(
            (f"node {node}: " if topology.numa else "")
            + f"{format_size(size)}{percent}; {_whole_mib(left)} more could be taken"
        )
    total = sum(taken.values())
    yield CostItem(
        id="huge-pages",
        what="memory for anything but these guests",
        state="given up",
        amount=f"{format_size(total)} ({'; '.join(parts)})",
        because="huge pages belong to the pool from boot on, also while their guest is switched off",
        bytes=total,
        settings=_ids(host, lambda key, path: key == "hugepages" or path.endswith("/nr_hugepages")),
    )


def _whole_mib(size: int) -> str:
    return format_size(max(0, size) >> 20 << 20)


Key = Callable[[str, str], bool]  # of a boot argument's key and a file's path, one of them ""


@dataclass(frozen=True)
class _Group:
    """Settings that together take one thing away from the host.  ``value``: of a setting, whether it takes it away."""

    id: str
    what: str
    state: State
    of: Key
    because: str
    instead: str = ""
    value: Callable[[str], bool] = lambda value: True
    amount: Callable[[Sequence[Setting]], str] = lambda settings: ""


def _cpus_in_paths(settings: Sequence[Setting]) -> str:
    """``"4 CPUs (8-11)"``: the CPUs whose own files these are, and the values where they are telling."""
    by_value: dict[str, set[int]] = {}
    for setting in settings:
        found = re.search(r"(?:cpu|policy)(\d+)/", getattr(setting.target, "path", ""))
        if found:
            by_value.setdefault(setting.new or "", set()).add(int(found[1]))
    return "; ".join(
        f"{_count(len(cpus), 'CPU')} ({format_cpus(cpus)})"
        + (": none at all" if value == "n/a" else f": at most {value} us" if value.isdigit() and int(value) else "")
        for value, cpus in sorted(by_value.items())
    )


GROUPS = (
    _Group(
        "idle-states",
        "power saved by idle CPUs",
        "given up",
        lambda key, path: (
            path.endswith("/pm_qos_resume_latency_us")
            or key in ("intel_idle.max_cstate", "processor.max_cstate", "idle", "cpuidle.off")
        ),
        "waking up takes longer than the deadline allows; warmer CPUs also leave less turbo to others",
        amount=_cpus_in_paths,
    ),
    _Group(
        "second-threads",
        "the second thread of every core",
        "given up",
        lambda key, path: key == "nosmt" or path.endswith("/smt/control"),
        "a busy sibling takes execution units away; without SMT there is none, on no core of this host",
        "each core's sibling can be kept empty where it matters",
        value=lambda value: value in ("", "off", "force", "forceoff"),
    ),
    _Group(
        "frequency",
        "power saved by slow clocks",
        "given up",
        lambda key, path: path.endswith("/scaling_governor"),
        "these CPUs always run at full clock",
        amount=_cpus_in_paths,
    ),
    _Group(
        "fair-server",
        "the guard that keeps ordinary tasks alive beside a real-time one",
        "given up",
        lambda key, path: "/fair_server/" in path,
        "a vCPU that never goes idle stops the kernel's own work on its CPU, and who waits for that, waits forever",
        "trust: spins, or a deadline longer than 50us",
        value=lambda value: value == "0",
        amount=_cpus_in_paths,
    ),
    _Group(
        "throttling",
        "the brake on real-time tasks (throttling)",
        "given up",
        lambda key, path: path.endswith("/sched_rt_runtime_us"),
        "a real-time task may run without a pause; the fair server, where it is on, still gives 5 % to others",
        value=lambda value: value == "-1",
    ),
    _Group(
        "lockup-detection",
        "detection of lockups on these CPUs",
        "limited",
        lambda key, path: (
            key in ("nosoftlockup", "nmi_watchdog") or path.endswith(("/nmi_watchdog", "/watchdog_cpumask"))
        ),
        "the watchdog is a timer on each CPU; it watches the host's own CPUs only",
    ),
    _Group(
        "merging",
        "automatic care for memory, for all guests of this host",
        "given up",
        lambda key, path: (
            path
            in (
                "/sys/kernel/mm/ksm/run",
                "/sys/kernel/mm/transparent_hugepage/enabled",
                "/proc/sys/kernel/numa_balancing",
                "/proc/sys/vm/compaction_proactiveness",
            )
        ),
        "merging, transparent huge pages, NUMA balancing and compaction all stop whoever uses the page",
        amount=lambda settings: ", ".join(
            {
                "run": "KSM",
                "enabled": "transparent huge pages",
                "numa_balancing": "NUMA balancing",
                "compaction_proactiveness": "compaction",
            }[getattr(setting.target, "path", "").rsplit("/", 1)[-1]]
            for setting in settings
        ),
    ),
)


def _settings_of_host(host: HostPlan) -> Iterable[CostItem]:
    for group in GROUPS:
        mine = [
            setting
            for setting in host.settings
            if setting.status != "absent" and _is_of(setting, group.of) and group.value(setting.new or "")
        ]
        if mine:
            yield CostItem(
                id=group.id,
                what=group.what,
                state=group.state,
                amount=group.amount(mine),
                because=group.because,
                instead=group.instead,
                settings=tuple(setting.id for setting in mine),
            )
    stopped = [
        setting for setting in host.settings if isinstance(setting.target, UnitState) and setting.new == "stopped"
    ]
    if stopped:
        yield CostItem(
            id="stopped-units",
            what="services that tune by themselves",
            state="given up",
            amount=", ".join(s.target.unit for s in stopped if isinstance(s.target, UnitState)),
            because="two owners of one setting undo each other",
            settings=tuple(setting.id for setting in stopped),
        )
    boot = [setting for setting in host.settings if isinstance(setting.target, BootArgument)]
    if boot:
        yield CostItem(
            id="reboot",
            what="changing which CPUs are isolated, without a reboot",
            state="given up",
            amount=_count(len(boot), "kernel argument"),
            because="the kernel reads them at boot",
            instead="cgroup partitions move at any time, within the CPUs that these arguments name",
            settings=tuple(setting.id for setting in boot),
        )
    for setting in host.settings:
        rule = rule_by_id(setting.rule)
        if rule is not None and rule.consent is not None:
            yield CostItem(
                id=f"consent:{rule.consent}",
                what=rule.title,
                state="given up",
                because=f"the owner consents to it; the risk: {rule.risk}",
                instead=f"take {rule.consent} out of the host's `consents`",
                settings=(setting.id,),
            )


def _is_of(setting: Setting, of: Key) -> bool:
    match setting.target:
        case FileValue(path=path):
            return of("", path)
        case BootArgument(key=key):
            return of(key, "")
    return False


def _ids(host: HostPlan, of: Key) -> tuple[str, ...]:
    return tuple(setting.id for setting in host.settings if _is_of(setting, of))


def _count(number: int, noun: str) -> str:
    """``"1 CPU"``, ``"2 CPUs"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
