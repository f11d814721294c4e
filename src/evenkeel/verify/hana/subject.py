"""What the checks look at: a guest as its definition has it, and a host as its facts (and its plan) have it.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.documents.plan import FileValue, HostPlan, UnitState
from evenkeel.errors import Where
from evenkeel.plan.order import boot_value, command_line
from evenkeel.plan.topology import Topology
from evenkeel.verify.hana.catalogue import HanaRule, rule
from evenkeel.verify.hana.domain import Element, size_of

GIB = 1 << 30
MOST_VCPUS = 4096  # KVM_MAX_VCPUS
#: Where a finding about an element is shown: its own line in a definition; the key that decides it in a site file.
Place = Callable[[HanaRule, Element], Where]


def own_line(rule: HanaRule, element: Element) -> Where:
    return element.where


@dataclass(frozen=True)
class Cell:
    id: int
    vcpus: frozenset[int]
    bytes: int | None
    distances: Mapping[int, int]
    element: Element


@dataclass(frozen=True)
class Guest:
    """A domain definition, read.  What cannot be read counts as not said."""

    name: str
    domain: Element
    place: Place = own_line
    planned: bool = False  # made from a site file, so what to do is said of that

    def judge(
        self, identifier: str, expected: str, found: list[tuple[Element, str]], fine: str = "as it should be"
    ) -> Check:
        """One check; ``found``: everything that is not as expected, each with its element."""
        one = rule(identifier)
        evidence = tuple(EvidenceItem(where=str(self.place(one, element)), value=text) for element, text in found)
        observed = "; ".join(dict.fromkeys(text for _, text in found[:3])) + (
            f"; and {len(found) - 3} more" if len(found) > 3 else ""
        )
        check = one.judge(not found, self.name, expected, observed if found else fine, _unique(evidence))
        return check.model_copy(update={"fix": one.planner}) if self.planned and one.planner else check

    def unknown(self, identifier: str, expected: str, reason: str) -> Check:
        return rule(identifier).not_checked(self.name, expected, reason)

    @cached_property
    def vcpus(self) -> int:
        element = self.domain.first("vcpu")
        number = _number(element.text.strip()) if element else None
        return number if number is not None and number <= MOST_VCPUS else 0

    @cached_property
    def topology(self) -> dict[str, int]:
        """``sockets``, ``dies``, ``cores``, ``threads``; empty where nothing is said."""
        element = self.domain.first("cpu/topology")
        if element is None:
            return {}
        return {name: _number(element.get(name, "1")) or 0 for name in ("sockets", "dies", "cores", "threads")}

    @cached_property
    def pins(self) -> dict[int, frozenset[int]]:
        """vCPU -> host CPUs, of each ``<vcpupin>``."""
        found: dict[int, frozenset[int]] = {}
        for element in self.domain.all("cputune/vcpupin"):
            vcpu, cpus = _number(element.get("vcpu")), cpu_list(element.get("cpuset"))
            if vcpu is not None and cpus:
                found[vcpu] = cpus
        return found

    @cached_property
    def pinned(self) -> frozenset[int]:
        """All host CPUs that its vCPUs are pinned to."""
        return frozenset(cpu for cpus in self.pins.values() for cpu in cpus)

    def reach(self, host: Host | None) -> frozenset[int]:
        """Host CPUs that any of its vCPUs may run on: the pins, and for vCPUs without one what ``<vcpu>`` says, or all
        of the host.
        """
        if all(vcpu in self.pins for vcpu in range(self.vcpus)):
            return self.pinned
        element = self.domain.first("vcpu")
        said = cpu_list(element.get("cpuset")) if element else frozenset()
        return self.pinned | (said or (host.topology.online if host else frozenset()))

    def pin(self, vcpu: int) -> Element:
        """The ``<vcpupin>`` of a vCPU, or where it belongs."""
        for element in self.domain.all("cputune/vcpupin"):
            if element.get("vcpu") == str(vcpu):
                return element
        return self.domain.nearest("cputune")

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        found = []
        for index, element in enumerate(self.domain.all("cpu/numa/cell")):
            distances = {}
            for sibling in element.all("distances/sibling"):
                other, value = _number(sibling.get("id")), _number(sibling.get("value"))
                if other is not None and value is not None:
                    distances[other] = value
            number = _number(element.get("id"))
            found.append(
                Cell(
                    id=index if number is None else number,
                    vcpus=cpu_list(element.get("cpus")),
                    bytes=size_of(element, "memory"),
                    distances=distances,
                    element=element,
                )
            )
        return tuple(found)

    @cached_property
    def memory(self) -> int | None:
        """Bytes."""
        element = self.domain.first("memory")
        return size_of(element) if element else None

    def cores(self) -> dict[int, list[int]]:
        """Guest core -> its vCPUs: QEMU counts threads of a core side by side."""
        threads = max(1, self.topology.get("threads", 1))
        found: dict[int, list[int]] = {}
        for vcpu in range(self.vcpus):
            found.setdefault(vcpu // threads, []).append(vcpu)
        return found

    def devices(self) -> list[tuple[str, Element]]:
        """PCI functions passed through, by address (``0000:85:00.0``), as hostdev or as interface."""
        found = []
        for element in (*self.domain.all("devices/hostdev"), *self.domain.all("devices/interface")):
            if element.get("type") in ("pci", "hostdev") and (source := element.first("source/address")):
                found.append((_pci(source), element))
        return found


@dataclass(frozen=True)
class Host:
    """A machine.  With a plan: as it will be when the plan has been applied."""

    name: str
    facts: Facts
    plan: HostPlan | None = None

    @cached_property
    def topology(self) -> Topology:
        return Topology(self.facts)

    @cached_property
    def packages(self) -> dict[int, frozenset[int]]:
        """Socket -> its online CPUs."""
        found: dict[int, set[int]] = {}
        for cpu in self.facts.cpus:
            if cpu.online and cpu.package is not None:
                found.setdefault(cpu.package, set()).add(cpu.id)
        return {package: frozenset(cpus) for package, cpus in sorted(found.items())}

    @cached_property
    def threads(self) -> int:
        """Threads of a core, online."""
        return max((len(core.threads) for core in self.topology.cores), default=1)

    def nodes_of(self, cpus: frozenset[int]) -> tuple[int, ...]:
        return tuple(sorted({self.topology.node_of[cpu] for cpu in cpus if cpu in self.topology.node_of}))

    def distance(self, one: int, other: int) -> int | None:
        """Between two nodes; None where the facts do not have it."""
        return next((node.distances.get(other) for node in self.facts.nodes if node.id == one), None)

    def packages_of(self, cpus: frozenset[int]) -> tuple[int, ...]:
        return tuple(package for package, members in self.packages.items() if members & cpus)

    def setting(self, path: str) -> str | None:
        """Content of a file; None: there is no such file, or the facts do not know it."""
        if self.plan:
            for one in self.plan.settings:
                if isinstance(one.target, FileValue) and one.target.path == path and one.status != "absent":
                    return one.new
        return self.facts.settings.get(path)

    @cached_property
    def command_line(self) -> str:
        line = self.facts.kernel.command_line
        return command_line(line, self.plan.settings) if self.plan else line

    def argument(self, key: str) -> str | None:
        return boot_value(self.command_line, key)

    def runs(self, unit: str) -> bool:
        """Whether a tuning service is at work."""
        if self.plan and any(
            isinstance(one.target, UnitState) and one.target.unit.startswith(unit) and one.new == "stopped"
            for one in self.plan.settings
        ):
            return False
        return any(owner.active and owner.name.startswith(unit) for owner in self.facts.owners)

    def pages(self, node: int) -> int | None:
        """Huge pages of 1 GiB on a node; None where the machine offers none."""
        planned = f"/sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages"
        text = self.setting(planned)
        if text is not None and text.isdigit():
            return int(text)
        pools = next((one.huge_pages for one in self.facts.nodes if one.id == node), self.facts.huge_pages)
        return next((pool.total for pool in pools if pool.page_bytes == GIB), None)


def cpus(numbers: frozenset[int]) -> str:
    return format_cpus(numbers) or "none"


def _unique(evidence: tuple[EvidenceItem, ...]) -> tuple[EvidenceItem, ...]:
    return tuple(dict.fromkeys(evidence))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def cpu_list(text: str) -> frozenset[int]:
    """A list of CPUs; libvirt's ``^3`` takes one out again."""
    parts = [part.strip() for part in text.split(",")]
    try:
        out = parse_cpus(",".join(part[1:] for part in parts if part.startswith("^")))
        return parse_cpus(",".join(part for part in parts if not part.startswith("^"))) - out
    except ValueError:
        return frozenset()


def _pci(address: Element) -> str:
    """``0000:85:00.0``, as sysfs writes it."""

    def part(name: str) -> int:
        text = address.get(name, "0")
        try:
            return int(text, 16 if text.lower().startswith("0x") else 10)
        except ValueError:
            return 0

    return f"{part('domain'):04x}:{part('bus'):02x}:{part('slot'):02x}.{part('function'):x}"
