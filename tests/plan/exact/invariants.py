"""What must hold of the plan of any machine: told from the machine itself, never from the planner's idea of it.

:func:`violations` is the oracle of this folder; each sentence that it can say is provoked once in test_invariants.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from xml.etree import ElementTree as ET

from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.plan import BootArgument, FileValue, GuestPlan, HostPlan, Ledger, Setting
from evenkeel.documents.site import GuestWish
from tests.plan.topologies import Machine

PINNED = ("performance", "realtime")
ROLES = ("housekeeping", "data_plane", "realtime", "idle", "shared")
#: Reference host-tuning §2.2: a vCPU is above the kernel's FIFO 1 threads and below those raised to 11.
PRIORITIES = range(2, 10)


def violations(machine: Machine, guests: Mapping[str, GuestWish], plan: HostPlan) -> list[str]:
    """Broken invariants of the plan of one host, as sentences; empty when all hold."""
    found = list(_ledger(machine, plan.ledger))
    if [guest.name for guest in plan.guests] != sorted(guests):
        found.append("the guests of the plan are not those of the site")
        return found
    for guest in plan.guests:
        about = f"guest {guest.name} ({guest.goal})"
        found += [f"{about}: {text}" for text in _guest(machine, guests[guest.name], guest, plan.ledger)]
        found += [f"{about}: {text}" for text in _definition(machine, guest)]
    found += _owners(machine, plan)
    found += _memory(machine, plan)
    found += _boot(plan)
    return found


def _ledger(machine: Machine, ledger: Ledger) -> Iterable[str]:
    sets = {role: getattr(ledger, role) for role in ROLES}
    for one, two in combinations(ROLES, 2):
        if both := sets[one] & sets[two]:
            yield f"CPU {format_cpus(both)} is {one} and {two}"
    every = frozenset().union(*sets.values())
    if every != machine.online:
        yield f"the roles cover {format_cpus(every)}, online is {format_cpus(machine.online)}"
    cores = machine.cores().values()
    for name, cpus in {**sets, "realtime": ledger.realtime | ledger.idle, "idle": frozenset[int]()}.items():
        for core in cores:
            if core & cpus and not core <= cpus:
                yield f"{name} has a part of core {format_cpus(core)}"
    if min(machine.online) not in ledger.housekeeping:
        yield "the boot CPU is not housekeeping"
    for node, cpus in machine.node_cpus().items():
        if not any(core <= ledger.housekeeping & cpus for core in cores):
            yield f"node {node} has no whole core for housekeeping"


def _guest(machine: Machine, wish: GuestWish, guest: GuestPlan, ledger: Ledger) -> Iterable[str]:
    if [vcpu.index for vcpu in guest.vcpus] != list(range(wish.vcpus)):
        yield "its vCPUs are not those that were asked for"
    cpus = [cpu for vcpu in guest.vcpus for cpu in vcpu.cpus]
    nodes = machine.node_cpus()
    here = {node for node, members in nodes.items() if members & set(cpus)}
    home = machine.online if guest.node is None else nodes.get(guest.node, frozenset())
    if guest.goal in PINNED:
        if any(len(vcpu.cpus) != 1 for vcpu in guest.vcpus) or len(set(cpus)) != len(cpus):
            yield "its vCPUs are not pinned one to one"
        if len(here) != 1 or (machine.numa and here != {guest.node}):
            yield f"its vCPUs are on nodes {sorted(here)}, its node is {guest.node}"
        if not set(cpus) <= ledger.realtime:
            yield "its CPUs are not isolated"
        cores = [machine.core_of(cpu) for cpu in cpus]
        if guest.goal == "realtime" and len(set(cores)) != len(cores):
            yield "two of its vCPUs share a core"
        if not guest.page_bytes:
            yield "its memory is not in huge pages"
        if guest.goal == "realtime" and not any(vcpu.policy == "fifo" for vcpu in guest.vcpus):
            yield "none of its vCPUs is real-time"
    else:
        if not set(cpus) or not set(cpus) <= ledger.shared | ledger.housekeeping:
            yield "it floats over CPUs that are not shared"
        if wish.cpus is None and set(cpus) & ledger.housekeeping and ledger.shared & home:
            yield "it floats over housekeeping, though shared CPUs are left"
        if wish.cpus is not None and set(cpus) != wish.cpus:
            yield "it does not float where its owner says"
    for vcpu in guest.vcpus:
        if (vcpu.policy == "fifo") != (vcpu.priority in PRIORITIES) or (vcpu.policy != "fifo" and vcpu.priority):
            yield f"vCPU {vcpu.index} is {vcpu.policy} {vcpu.priority}"
        if vcpu.policy == "fifo" and guest.goal != "realtime":
            yield f"vCPU {vcpu.index} is real-time"
    if guest.goal != "flexible" and not (guest.emulator_cpus and guest.emulator_cpus <= ledger.housekeeping & home):
        yield f"its emulator is on {format_cpus(guest.emulator_cpus)}, not on housekeeping of its node"
    if guest.pages * (guest.page_bytes or 0) != (wish.memory if guest.page_bytes else 0):
        yield f"{guest.pages} pages of {guest.page_bytes} are not its memory"


def _definition(machine: Machine, guest: GuestPlan) -> Iterable[str]:
    """The XML says what the plan says, and shows the guest siblings only where the host has them."""
    domain = ET.fromstring(guest.xml)
    if guest.goal in PINNED:
        pins = {
            int(pin.get("vcpu", "")): parse_cpus(pin.get("cpuset", "")) for pin in domain.findall("cputune/vcpupin")
        }
        if pins != {vcpu.index: vcpu.cpus for vcpu in guest.vcpus}:
            yield "vcpupin says otherwise"
    scheduled = {int(one.get("vcpus", "")): int(one.get("priority", "")) for one in domain.findall("cputune/vcpusched")}
    if scheduled != {vcpu.index: vcpu.priority for vcpu in guest.vcpus if vcpu.policy == "fifo"}:
        yield "vcpusched says otherwise"
    topology = domain.find("cpu/topology")
    assert topology is not None
    threads = int(topology.get("threads", ""))
    count = threads * int(topology.get("cores", "")) * int(topology.get("sockets", ""))
    if count != len(guest.vcpus):
        yield f"its topology has {count} CPUs"
    for first in range(0, len(guest.vcpus), threads) if threads > 1 else ():
        group = guest.vcpus[first : first + threads]
        if len({machine.core_of(min(vcpu.cpus)) for vcpu in group}) > 1:
            yield f"vCPUs {group[0].index}-{group[-1].index} are siblings in the guest and not on the host"


def _owners(machine: Machine, plan: HostPlan) -> Iterable[str]:
    """Each isolated core has exactly one guest."""
    owner: dict[frozenset[int], str] = {}
    for guest in plan.guests:
        if guest.goal not in PINNED:
            continue
        for vcpu in guest.vcpus:
            for cpu in vcpu.cpus & machine.online:
                other = owner.setdefault(machine.core_of(cpu), guest.name)
                if other != guest.name:
                    yield f"guests {other} and {guest.name} are on one core"
    used = frozenset().union(*owner) if owner else frozenset()
    if used != plan.ledger.realtime | plan.ledger.idle:
        yield "isolated CPUs and those of the guests differ"


def _memory(machine: Machine, plan: HostPlan) -> Iterable[str]:
    """Guests, and huge pages of all sizes, those of others too, leave every node a part of its memory."""
    taken: dict[int, int] = {}
    for guest in plan.guests:
        if guest.page_bytes:
            taken[guest.node or 0] = taken.get(guest.node or 0, 0) + guest.memory_bytes
    wanted = {(node, size): total for (node, size), (total, _) in machine.pools.items()}
    if not machine.numa:
        wanted = {}
        for (_, size), (total, _) in machine.pools.items():
            wanted[0, size] = wanted.get((0, size), 0) + total
    for setting in plan.settings:
        if setting.rule == "R-MM-3":
            wanted[_pool(setting)] = int(setting.new or "0")
    pools: dict[int, int] = {}
    for (node, size), pages in wanted.items():
        pools[node] = pools.get(node, 0) + size * pages
    sizes = machine.node_memory()
    for node in taken.keys() | pools.keys():
        for what, amounts in (("guests", taken), ("huge pages", pools)):
            # 8 % or a quarter stay with the host (placement.memory_reserve); 5 % here leaves that its freedom.
            if amounts.get(node, 0) and amounts[node] > sizes.get(node, 0) * 95 // 100:
                yield f"{what} take {amounts[node] >> 20} MiB of node {node}, which has {sizes.get(node, 0) >> 20}"
        if pools.get(node, 0) < taken.get(node, 0):
            yield f"node {node} gets fewer huge pages than its guests need"


def _pool(setting: Setting) -> tuple[int, int]:
    """Node and page size in bytes of a setting of a pool."""
    assert isinstance(setting.target, FileValue)
    parts = setting.target.path.split("/")
    node = int(parts[5].removeprefix("node")) if parts[4] == "node" else 0
    return node, int(parts[-2].removeprefix("hugepages-").removesuffix("kB")) << 10


def _boot(plan: HostPlan) -> Iterable[str]:
    """Masks on the command line are those of the ledger."""
    isolated, home = plan.ledger.isolated, plan.ledger.housekeeping
    for setting in plan.settings:
        if not isinstance(setting.target, BootArgument) or setting.new is None:
            continue
        key, value = setting.target.key, setting.new
        if key == "irqaffinity" and parse_cpus(value) != home:
            yield f"irqaffinity={value} is not housekeeping"
        if key in ("nohz_full", "rcu_nocbs") and not parse_cpus(value) <= isolated:
            yield f"{key}={value} is not within {format_cpus(isolated)}"
        if key == "isolcpus" and parse_cpus(",".join(w for w in value.split(",") if w[:1].isdigit())) != isolated:
            yield f"isolcpus={value} is not {format_cpus(isolated)}"
