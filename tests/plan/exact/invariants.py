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
    homes = [nodes.get(node, frozenset[int]()) for node in guest.nodes]
    home = frozenset().union(*homes) if homes else machine.online
    yield from _cells(machine, wish, guest)
    if guest.goal in PINNED:
        if any(len(vcpu.cpus) != 1 for vcpu in guest.vcpus) or len(set(cpus)) != len(cpus):
            yield "its vCPUs are not pinned one to one"
        if machine.numa and here != set(guest.nodes):
            yield f"its vCPUs are on nodes {sorted(here)}, its nodes are {sorted(guest.nodes)}"
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
    if any(not guest.emulator_cpus & cpus for cpus in homes if guest.goal != "flexible"):
        yield "its emulator has no CPU of one of its nodes"
    if guest.pages * (guest.page_bytes or 0) != (wish.memory if guest.page_bytes else 0):
        yield f"{guest.pages} pages of {guest.page_bytes} are not its memory"


def _cells(machine: Machine, wish: GuestWish, guest: GuestPlan) -> Iterable[str]:
    """As many cells as were asked for, together the whole guest, each on a node of its own with its CPUs."""
    if wish.cells:
        wanted = {tuple((cell.vcpus, cell.memory) for cell in wish.cells)}
    else:
        counts = range(1, 1 + len(machine.node_cpus())) if wish.numa == "auto" else (wish.numa or 1,)
        wanted = {
            ((wish.vcpus // int(count), wish.memory // int(count)),) * int(count)
            for count in counts
            if wish.vcpus % int(count) == wish.memory % int(count) == 0
        }
    found = tuple((len(cell.vcpus), cell.memory_bytes) for cell in guest.cells)
    if (found or ((len(guest.vcpus), guest.memory_bytes),)) not in wanted:
        yield f"its cells are {found}, wanted were {wanted}"
    if not guest.cells:
        return
    if len({cell.node for cell in guest.cells}) < len(guest.cells):
        yield "two of its cells are on one node"
    if [vcpu for cell in guest.cells for vcpu in sorted(cell.vcpus)] != list(range(len(guest.vcpus))):
        yield "its cells do not hold each vCPU once, in order"
    if sum(cell.pages for cell in guest.cells) != guest.pages:
        yield "pages of its cells are not its pages"
    for number, cell in enumerate(guest.cells):
        cpus = {cpu for vcpu in guest.vcpus if vcpu.index in cell.vcpus for cpu in vcpu.cpus}
        if not cpus <= machine.node_cpus().get(cell.node, frozenset()):
            yield f"cell {number} is on node {cell.node}, its vCPUs on {format_cpus(cpus)}"
        if cell.pages * (guest.page_bytes or 0) != cell.memory_bytes:
            yield f"{cell.pages} pages are not the memory of cell {number}"


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
    if guest.goal in PINNED and machine.numa:
        yield from _defined_cells(machine, guest, domain)
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


def _defined_cells(machine: Machine, guest: GuestPlan, domain: ET.Element) -> Iterable[str]:
    """numatune and numa say what the plan says, at the distances of the machine; sockets are nobody's in part."""
    cells = domain.findall("cpu/numa/cell")
    said = [
        (cell.get("id"), parse_cpus(cell.get("cpus", "")), int(cell.get("memory", "")) << 10, cell.get("unit"))
        for cell in cells
    ]
    every = [(cell.vcpus, cell.memory_bytes) for cell in guest.cells]
    every = every or [(frozenset(range(len(guest.vcpus))), guest.memory_bytes)]
    if said != [(str(number), vcpus, size, "KiB") for number, (vcpus, size) in enumerate(every)]:
        yield "cells of the definition say otherwise"
    bound = [(one.get("cellid"), one.get("nodeset")) for one in domain.findall("numatune/memnode[@mode='strict']")]
    if bound != [(str(number), str(node)) for number, node in enumerate(guest.nodes)]:
        yield "memnode says otherwise"
    memory = domain.find("numatune/memory[@mode='strict']")
    if memory is None or parse_cpus(memory.get("nodeset", "")) != set(guest.nodes):
        yield "numatune says otherwise"
    for one, cell in zip(guest.nodes, cells, strict=False):
        told = {sibling.get("id"): sibling.get("value") for sibling in cell.findall("distances/sibling")}
        real = {str(number): str(machine.distance(one, other)) for number, other in enumerate(guest.nodes)}
        if told != (real if len(guest.nodes) > 1 else {}):
            yield f"distances of cell {cell.get('id')} are {told}, of the machine {real}"
    topology = domain.find("cpu/topology")
    assert topology is not None
    width = len(guest.vcpus) // int(topology.get("sockets", ""))
    for first in range(0, len(guest.vcpus) if len(guest.nodes) > 1 else 0, width):
        cpus = {cpu for vcpu in guest.vcpus[first : first + width] for cpu in vcpu.cpus}
        if len({thread.package for thread in machine.threads if thread.cpu in cpus}) > 1:
            yield f"the socket of vCPU {first} is on two sockets of the host"


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
        for node, pages in guest.pages_on.items():
            taken[node] = taken.get(node, 0) + pages * (guest.page_bytes or 0)
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
