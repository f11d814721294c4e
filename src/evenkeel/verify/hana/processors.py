"""CPU model, topology, pins, cells and distances of a guest against those of its host.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evenkeel.documents.findings import Check
from evenkeel.verify.hana.domain import Element
from evenkeel.verify.hana.subject import Guest, Host, cpu_list, cpus

_FLAGS = ("rdtscp", "invtsc", "x2apic")
NO_HOST = "nothing is known of its host; name it with --host"


def check_model(guest: Guest) -> Iterator[Check]:
    """What the definition says of the CPU, host or not."""
    cpu = guest.domain.nearest("cpu")
    mode = cpu.get("mode") if cpu.tag == "cpu" else ""
    wrong = [] if mode == "host-passthrough" else [(cpu, f"mode is {mode or 'not said'}")]
    if guest.domain.get("type") != "kvm":
        wrong.append((guest.domain, f"the domain is {guest.domain.get('type') or 'of no type'}, not kvm"))
    yield guest.judge("HANA-CPU", "kvm, mode host-passthrough", wrong)
    check = cpu.get("check") if cpu.tag == "cpu" else ""
    yield guest.judge(
        "HANA-CPU-CHECK", "check none", [] if check == "none" else [(cpu, f"check is {check or 'not said'}")]
    )
    policies = {feature.get("name"): feature for feature in guest.domain.all("cpu/feature")}
    missing: list[tuple[Element, str]] = []
    for flag in _FLAGS:
        feature = policies.get(flag)
        policy = feature.get("policy", "require") if feature else ""
        if policy not in ("require", "force"):
            missing.append((feature or cpu, f"{flag} is {policy or 'not required'}"))
    yield guest.judge("HANA-FLAGS", "policy require for rdtscp, invtsc, x2apic", missing)
    cache = guest.domain.word("cpu/cache", "mode")
    yield guest.judge(
        "HANA-CACHE",
        "cache mode passthrough",
        [] if cache == "passthrough" else [(guest.domain.nearest("cpu/cache"), f"cache mode is {cache or 'not said'}")],
    )


def check_pins(guest: Guest, host: Host | None) -> Iterator[Check]:
    left = frozenset(range(guest.vcpus)) - guest.pins.keys()
    wrong = [(guest.domain.nearest("cputune"), f"vCPU {cpus(left)} is not pinned")] if left or not guest.vcpus else []
    for vcpu, chosen in sorted(guest.pins.items()):
        if host and (strange := chosen - host.topology.online):
            wrong.append((guest.pin(vcpu), f"vCPU {vcpu}: CPU {cpus(strange)} is not online on the host"))
    yield guest.judge("HANA-PIN", f"a vcpupin for each of {guest.vcpus} vCPUs", wrong)


def check_shape(guest: Guest, host: Host) -> Iterator[Check]:
    """Topology, siblings, sockets: needs every vCPU pinned to CPUs that the host has."""
    strange = guest.pinned - host.topology.online
    unpinned = frozenset(range(guest.vcpus)) - guest.pins.keys()
    if strange or unpinned:
        reason = f"CPU {cpus(strange)} is not online there" if strange else f"vCPU {cpus(unpinned)} is not pinned"
        for identifier, expected in (
            ("HANA-TOPOLOGY", "that of its sockets"),
            ("HANA-SIBLINGS", "each guest core on one host core"),
            ("HANA-BOTH-THREADS", "both threads at each vCPU"),
            ("HANA-SOCKETS", "whole sockets"),
            ("HANA-CELLS", "its cells as the host's nodes"),
        ):
            yield guest.unknown(identifier, expected, reason)
        return
    yield _topology(guest, host)
    yield from _siblings(guest, host)
    yield _sockets(guest, host)
    yield _cells(guest, host)


def _topology(guest: Guest, host: Host) -> Check:
    packages = host.packages_of(guest.pinned)
    cores = {len(host.packages[package]) // host.threads for package in packages}
    wanted = {"sockets": len(packages), "cores": max(cores, default=0), "threads": host.threads}
    expected = ", ".join(f"{number} {name}" for name, number in wanted.items())
    place = guest.domain.nearest("cpu/topology")
    if not guest.topology:
        return guest.judge("HANA-TOPOLOGY", expected, [(place, "no topology, so each vCPU is a socket of its own")])
    said = guest.topology
    wrong = [
        (place, f"{name} is {said[name] * (said['dies'] if name == 'cores' else 1)}, not {number}")
        for name, number in wanted.items()
        if said[name] * (said["dies"] if name == "cores" else 1) != number
    ]
    product = said["sockets"] * said["dies"] * said["cores"] * said["threads"]
    if product != guest.vcpus:
        wrong.append((place, f"it makes {product} vCPUs, the guest has {guest.vcpus}"))
    return guest.judge("HANA-TOPOLOGY", expected, wrong)


def _siblings(guest: Guest, host: Host) -> Iterator[Check]:
    split: list[tuple[Element, str]] = []
    single: list[tuple[Element, str]] = []
    owners: dict[int, int] = {}
    for core, vcpus in guest.cores().items():
        homes = {host.topology.core_of[cpu] for vcpu in vcpus for cpu in guest.pins[vcpu]}
        listed = cpus(frozenset(vcpus))
        if len(homes) > 1:
            places = ", ".join(cpus(home.cpus) for home in sorted(homes)[:4])
            split.append((guest.pin(vcpus[-1]), f"vCPU {listed} are one core, pinned to the cores {places}"))
            continue
        home = next(iter(homes))
        other = owners.setdefault(home.first, core)
        if other != core:
            split.append(
                (guest.pin(vcpus[0]), f"vCPU {listed} are on the core {cpus(home.cpus)} of another guest core")
            )
        single += [
            (guest.pin(vcpu), f"vCPU {vcpu} may use {cpus(guest.pins[vcpu])} of {cpus(home.cpus)}")
            for vcpu in vcpus
            if len(vcpus) > 1 and guest.pins[vcpu] != home.cpus
        ]
    yield guest.judge("HANA-SIBLINGS", "each guest core on a host core of its own", split)
    yield guest.judge("HANA-BOTH-THREADS", "the CPUs of the core at each of its vCPUs", single)


def _sockets(guest: Guest, host: Host) -> Check:
    packages = host.packages_of(guest.pinned)
    wrong = []
    for package in packages:
        if left := host.packages[package] - guest.pinned:
            note = f"socket {package}: CPU {cpus(left)} is not the guest's"
            if host.plan and left & host.plan.ledger.housekeeping:
                kept = left & host.plan.ledger.housekeeping
                note += f" (Evenkeel keeps {cpus(kept)} for the host; the guide asks for no CPU of the host's own)"
            wrong.append((guest.domain.nearest("vcpu"), note))
    return guest.judge("HANA-SOCKETS", f"all CPUs of socket {', '.join(map(str, packages))}", wrong)


def _cells(guest: Guest, host: Host) -> Check:
    nodes = host.nodes_of(guest.pinned)
    expected = f"a cell for each of node {cpus(frozenset(nodes))}"
    place = guest.domain.nearest("cpu/numa")
    if not guest.cells:
        wrong = [] if len(nodes) == 1 else [(place, f"no cells, and its CPUs are on {len(nodes)} nodes")]
        return guest.judge("HANA-CELLS", expected, wrong)
    wrong = []
    taken: dict[int, int] = {}
    for cell in guest.cells:
        homes = host.nodes_of(frozenset(cpu for vcpu in cell.vcpus for cpu in guest.pins.get(vcpu, ())))
        if len(homes) != 1:
            wrong.append((cell.element, f"cell {cell.id} is on nodes {cpus(frozenset(homes))}"))
        elif taken.setdefault(homes[0], cell.id) != cell.id:
            wrong.append((cell.element, f"cells {taken[homes[0]]} and {cell.id} are both on node {homes[0]}"))
    if len({len(cell.vcpus) for cell in guest.cells}) > 1:
        sizes = ", ".join(f"{len(cell.vcpus)} in cell {cell.id}" for cell in guest.cells)
        wrong.append((guest.cells[-1].element, f"vCPUs: {sizes}"))
    if lost := frozenset(range(guest.vcpus)) - frozenset(vcpu for cell in guest.cells for vcpu in cell.vcpus):
        wrong.append((place, f"vCPU {cpus(lost)} is in no cell"))
    return guest.judge("HANA-CELLS", expected, wrong)


def check_emulator(guest: Guest, host: Host | None) -> Iterator[Check]:
    expected = "no emulatorpin, or CPUs of each node of the guest"
    pin = guest.domain.first("cputune/emulatorpin")
    if pin is None:
        yield guest.judge("HANA-EMULATOR", expected, [])
        return
    if host is None:
        yield guest.unknown("HANA-EMULATOR", expected, NO_HOST)
        return
    nodes = frozenset(host.nodes_of(guest.pinned)) - frozenset(host.nodes_of(cpu_list(pin.get("cpuset"))))
    yield guest.judge("HANA-EMULATOR", expected, [(pin, f"no CPU of node {cpus(nodes)}")] if nodes else [])


def check_distances(guest: Guest, host: Host) -> Iterator[Check]:
    homes = {
        cell.id: host.nodes_of(frozenset(cpu for vcpu in cell.vcpus for cpu in guest.pins.get(vcpu, ())))
        for cell in guest.cells
    }
    expected = "as numactl --hardware prints them"
    if len(guest.cells) > 1 and any(len(nodes) != 1 for nodes in homes.values()):
        yield guest.unknown("HANA-DISTANCES", expected, "which cell is on which node is not clear (HANA-CELLS)")
        return
    wrong: list[tuple[Element, str]] = []
    for cell in guest.cells:
        for other in guest.cells:
            if len(guest.cells) == 1:
                continue
            said = cell.distances.get(other.id, 10 if cell.id == other.id else 20)
            real = host.distance(homes[cell.id][0], homes[other.id][0])
            if real is not None and said != real:
                how = "" if other.id in cell.distances else " (not said)"
                wrong.append((cell.element, f"cell {cell.id} to {other.id}: {said}{how}, the host has {real}"))
    yield guest.judge("HANA-DISTANCES", expected, wrong)


def check_overcommit(guests: Sequence[Guest], host: Host | None) -> Iterator[Check]:
    """Between the guests that are looked at together, and of each with itself."""
    for guest in guests:
        wrong: list[tuple[Element, str]] = []
        room = len(guest.pinned)
        if guest.pins and len(guest.pins) > room:
            wrong.append((guest.domain.nearest("cputune"), f"{len(guest.pins)} vCPUs are pinned to {room} CPUs"))
        mine = host.topology.whole(guest.pinned & host.topology.online) if host else guest.pinned
        for other in guests:
            if other.name != guest.name and (both := mine & other.reach(host)):
                wrong.append((guest.domain.nearest("cputune"), f"guest {other.name} may run on CPU {cpus(both)} too"))
        yield guest.judge("HANA-OVERCOMMIT", "no CPU of another vCPU or guest", wrong)
