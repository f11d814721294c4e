"""Where the guests of a host sit now, so that a new plan moves nothing that need not move.  Pure.

A seat comes from a plan that is to be kept, or from the domain definitions that the facts found on the host.  It is a
preference, never a duty: :mod:`evenkeel.plan.placement` gives it up where the site or the machine does not allow it
any more, and the plan then says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from xml.etree import ElementTree as ET

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import HostPlan
from evenkeel.plan.passthrough import passed_in


@dataclass(frozen=True)
class Seat:
    """One guest.  ``cpus``: host CPU of each vCPU, empty for one that floats; ``priority``: FIFO of its vCPUs, or 0.

    ``because``: what the plan says of a guest that keeps it; ``functions``: addresses of PCI functions that it has.
    """

    cpus: tuple[int, ...] = ()
    node: int | None = None
    priority: int = 0
    because: str = "it is there already"
    functions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seats:
    """All guests of a host by name, the CPUs that its emulators are on (housekeeping), and those that poll."""

    guests: Mapping[str, Seat] = field(default_factory=dict)
    housekeeping: frozenset[int] = frozenset()
    data_plane: frozenset[int] = frozenset()

    def without(self, names: Iterable[str]) -> Seats:
        gone = frozenset(names)
        return replace(self, guests={name: seat for name, seat in self.guests.items() if name not in gone})


NONE = Seats()


def seats_of_plan(plan: HostPlan) -> Seats:
    """As an earlier plan has it."""
    guests = {
        guest.name: Seat(
            cpus=tuple(min(vcpu.cpus) for vcpu in guest.vcpus) if all(len(v.cpus) == 1 for v in guest.vcpus) else (),
            node=guest.node,
            priority=max((vcpu.priority for vcpu in guest.vcpus), default=0),
            functions=guest.functions,
        )
        for guest in plan.guests
    }
    return Seats(guests, plan.ledger.housekeeping, plan.ledger.data_plane)


def seats_of_facts(facts: Facts, names: Iterable[str]) -> Seats:
    """As libvirt has defined these guests; as they run where there is no definition that outlives the run.

    A live change of a running guest is drift to be noticed, not a seat to be kept.  A definition that names no CPU for
    each vCPU, no node and no function is no seat; one that cannot be read is none either.
    """
    wanted = frozenset(names)
    found: dict[str, Seat] = {}
    housekeeping: set[int] = set()
    # The lasting ones last, so that they count.
    for definition in sorted(facts.definitions, key=lambda one: (not one.running, one.path)):
        if definition.guest not in wanted:
            continue
        try:
            domain = ET.fromstring(definition.xml)
            seat = _seat(domain)
            emulator = parse_cpus(_attribute(domain, "cputune/emulatorpin", "cpuset"))
        except (ET.ParseError, ValueError):
            continue
        if seat.cpus or seat.node is not None or seat.functions:
            found[definition.guest] = seat
            housekeeping |= emulator
    return Seats(found, frozenset(housekeeping))


def _seat(domain: ET.Element) -> Seat:
    """Raises ValueError for a number or a CPU list that is none."""
    pins = {int(pin.get("vcpu", "")): parse_cpus(pin.get("cpuset", "")) for pin in domain.findall("cputune/vcpupin")}
    ranks = [int(one.get("priority", "")) for one in domain.findall("cputune/vcpusched[@scheduler='fifo']")]
    node = _attribute(domain, "numatune/memory", "nodeset")
    one_each = sorted(pins) == list(range(len(pins))) and all(len(cpus) == 1 for cpus in pins.values())
    return Seat(
        cpus=tuple(min(pins[index]) for index in sorted(pins)) if one_each else (),
        node=int(node) if node.isdecimal() else None,
        priority=max(ranks, default=0),
        functions=passed_in(domain),
    )


def _attribute(domain: ET.Element, path: str, name: str) -> str:
    element = domain.find(path)
    return "" if element is None else element.get(name, "")


def merge(first: Seats, second: Seats) -> Seats:
    """``first``, and of ``second`` the guests that it does not know."""
    return Seats(
        {**second.guests, **first.guests},
        first.housekeeping or second.housekeeping,
        first.data_plane or second.data_plane,
    )
