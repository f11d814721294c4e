"""A host of the fleet out of its facts: what guests may have of it.  Pure.

The same housekeeping, data plane and memory books as the planner of one host uses, so that what is promised here is
what it finds.  Where the planner's rule for memory depends on who comes first (an idle pool of huge pages is given
back only once somebody asks for pages of that size), the smaller number is taken: it holds in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from evenkeel.documents.facts import Facts
from evenkeel.documents.fleet import Fleet, FleetFunction, FleetHost, FleetNode, PageRoom
from evenkeel.documents.site import GuestWish, HostWish, Site
from evenkeel.plan.books import Books, open_books
from evenkeel.plan.cores import PINNED
from evenkeel.plan.dataplane import choose_polling
from evenkeel.plan.ledger import choose_housekeeping
from evenkeel.plan.passthrough import offers
from evenkeel.plan.problems import Problems
from evenkeel.plan.seating import near_node
from evenkeel.plan.seats import Seats
from evenkeel.plan.topology import Topology

ORDINARY = 4096


def fleet_of(site: Site, facts: Mapping[str, Facts], seats: Mapping[str, Seats]) -> Fleet:
    """Every host of the site, in the order of their names.

    ``seats``: where guests sit now, by host.  Raises WrongInput for a host whose CPUs cannot be divided as its owner
    wishes.
    """
    problems = Problems()
    hosts = []
    for name, wish in sorted(site.hosts.items()):
        own = {guest: one for guest, one in site.guests.items() if one.host == name or len(site.hosts) == 1}
        hosts.append(_host(name, wish, facts[name], own, seats.get(name, Seats()), site.guests, problems))
    problems.raise_if_any()
    return Fleet(hosts=tuple(hosts))


def _host(
    name: str,
    wish: HostWish,
    facts: Facts,
    guests: Mapping[str, GuestWish],
    seats: Seats,
    known: Collection[str],
    problems: Problems,
) -> FleetHost:
    """``guests``: those that must be on this host, of which only CPUs that their owners name matter here.

    ``known``: all guests of the site.
    """
    topology = Topology(facts)
    named = {guest: one for guest, one in guests.items() if one.cpus}
    claimed = frozenset(cpu for one in named.values() for cpu in one.cpus or ()) & topology.online
    pinned = topology.whole(frozenset(c for o in named.values() if o.goal in PINNED for c in o.cpus or ()) & claimed)
    theirs = topology.whole(((wish.data_plane.cpus if wish.data_plane else None) or frozenset()) & topology.online)
    house = choose_housekeeping(topology, wish.housekeeping, pinned | theirs, name, problems, seats).cpus
    polling = choose_polling(topology, wish.data_plane, house, topology.whole(claimed), name, problems, seats).cpus
    floating = topology.whole(
        frozenset(cpu for one in named.values() if one.goal not in PINNED for cpu in one.cpus or ()) & topology.online
    )
    books = open_books(topology, house | polling)
    return FleetHost(
        name=name,
        architecture=facts.identity.architecture,
        features=tuple(sorted({*wish.place.features, *features_of(topology)})),
        owner=wish.place.owner,
        rack=wish.place.rack,
        power_watts=wish.place.power_watts,
        drained=wish.place.drain,
        overcommit=wish.place.overcommit,
        networks=tuple(sorted(wish.place.networks)),
        nodes=tuple(_node(topology, node, house, polling, floating, books) for node in topology.cpu_nodes),
        functions=_functions(topology, wish, known),
        places=_places(topology),
    )


def features_of(topology: Topology) -> set[str]:
    """What guests insist on by their goal: without these the planner of the host refuses them."""
    facts = topology.facts
    found: set[str] = {program for program in ("libvirt", "qemu") if program in facts.programs}
    if facts.kvm_usable is not False:
        found.add("kvm")
    if facts.kernel.preempt_rt:
        found.add("preempt-rt")
    if any(len(core.threads) > 1 for core in topology.cores):
        found.add("smt")
    return found


def _node(
    topology: Topology,
    node: int,
    house: frozenset[int],
    polling: frozenset[int],
    floating: frozenset[int],
    books: Books,
) -> FleetNode:
    cores = topology.cores_of(node)
    cpus = topology.node_cpus(node)
    groups = sorted({topology.l3_of(core) for core in cores}, key=min)
    memory, pages = _memory(topology, node, books)
    known = topology.cpu_nodes
    return FleetNode(
        id=node,
        socket=topology.package_of(node),
        cores=tuple(core.cpus for core in cores),
        l3=tuple(groups) if len(groups) > 1 else (),
        housekeeping=house & cpus,
        data_plane=polling & cpus,
        busy=floating & cpus,
        memory_bytes=memory,
        pages=pages,
        distances={other: far for other in known if (far := topology.distance(node, other)) is not None},
    )


def _memory(topology: Topology, node: int, books: Books) -> tuple[int, tuple[PageRoom, ...]]:
    """Bytes for guests on a node, and how many of them in pages of each size that the host offers."""
    facts = topology.facts
    if not books.capacity:  # nothing is known of the nodes: only guests that float over the whole host can have memory
        room = max(0, books.ordinary()) if node == topology.cpu_nodes[0] else 0
        return room, (PageRoom(page_bytes=ORDINARY, free_bytes=room),)
    capacity = books.capacity.get(node, 0)
    pools = facts.node(node).huge_pages if topology.numa else facts.huge_pages
    held = {pool.page_bytes: pool.total * pool.page_bytes for pool in pools}
    sizes = {pool.page_bytes for pool in facts.huge_pages} | {
        pool.page_bytes for one in facts.nodes for pool in one.huge_pages
    }
    rooms = {size: capacity - sum(other for page, other in held.items() if page != size) for size in sizes | {ORDINARY}}
    return capacity, tuple(PageRoom(page_bytes=size, free_bytes=max(0, room)) for size, room in sorted(rooms.items()))


def _functions(topology: Topology, wish: HostWish, known: Collection[str]) -> tuple[FleetFunction, ...]:
    """Functions that their owner offers, with what keeps one from being given."""
    found = []
    for address, offer in sorted(offers(topology.facts, wish, known).items()):
        node, _ = near_node(address, address, topology, Problems())
        parent = offer.pci.physical_function
        found.append(
            FleetFunction(
                address=address,
                node=node,
                pool=offer.pool or "",
                type="vf" if parent else "pf" if offer.pci.sriov_total_vfs else "pci",
                network=offer.network,
                iommu_group=offer.pci.iommu_group,
                physical_function=parent,
                busy=bool(offer.why_not),
                why_busy=offer.why_not,
            )
        )
    return tuple(found)


def _places(topology: Topology) -> dict[str, int]:
    facts = topology.facts
    found = {}
    for name in [*(nic.name for nic in facts.nics), *(pci.address for pci in facts.pci)]:
        node, _ = near_node("", name, topology, Problems())
        found[name] = -1 if node is None else node
    return found
