"""From a site and the facts of its hosts to a plan: the one place where the parts of planning meet.

Pure: no I/O, no clock, no randomness; the same input gives the same bytes, in whatever order it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import CellPlan, GuestPlan, HostPlan, Ledger, Note, Plan
from evenkeel.documents.site import GuestWish, HostWish, Site
from evenkeel.errors import WrongInput
from evenkeel.plan import rules
from evenkeel.plan.checks import assign_hosts, check_facts, check_guest, check_host
from evenkeel.plan.dataplane import export
from evenkeel.plan.guest import definition_digest, domain_xml, guest_arguments
from evenkeel.plan.inside import cloud_config
from evenkeel.plan.ledger import check_ledger
from evenkeel.plan.order import order_settings
from evenkeel.plan.passthrough import pass_functions
from evenkeel.plan.placement import Placement, lay_out
from evenkeel.plan.problems import Problems
from evenkeel.plan.rules.rule import Context
from evenkeel.plan.seats import Seats, merge, seats_of_facts, seats_of_plan
from evenkeel.plan.topology import Topology
from evenkeel.plan.ways import WayLedger, share_ways


def make_plan(
    site: Site, facts: Mapping[str, Facts], keep: Plan | None = None, chosen: Mapping[str, Seats] | None = None
) -> Plan:
    """See :func:`evenkeel.plan.make_plan`."""
    kept = {host.name: host for host in keep.hosts} if keep else {}
    problems = Problems()
    guests = assign_hosts(site, problems)
    check_facts(site, facts, problems)
    hosts = [
        plan
        for host in sorted(site.hosts)
        if host in facts
        and facts[host].online
        and (
            plan := _plan_host(
                site, host, facts[host], guests[host], kept.get(host), (chosen or {}).get(host), problems
            )
        )
    ]
    problems.raise_if_any()
    return Plan(site_sha256=site.sha256(), hosts=tuple(hosts))


def _plan_host(
    site: Site,
    host: str,
    facts: Facts,
    guests: Mapping[str, GuestWish],
    kept: HostPlan | None,
    chosen: Seats | None,
    problems: Problems,
) -> HostPlan | None:
    """The plan of one host; None when something is in the way, which is in ``problems`` then."""
    before = len(problems.found)
    wish = site.hosts[host]
    check_host(host, facts, guests, problems)
    for name, guest in sorted(guests.items()):
        check_guest(name, host, guest, facts, problems)
    topology = Topology(facts)
    seats = seats_of_facts(facts, guests)
    if kept is not None:
        seats = merge(seats_of_plan(kept), seats)
    if chosen is not None:
        seats = merge(seats, chosen)
    given = {name: seat.functions for name, seat in chosen.guests.items()} if chosen else {}
    passed = pass_functions(host, wish, facts, guests, given, site.guests, problems)
    layout = lay_out(host, wish, topology, guests, problems, seats)
    if layout is None or len(problems.found) > before:
        return None
    _check(layout.ledger, facts, host, wish)
    placements = tuple(replace(one, passed=passed[one.name]) for one in layout.placements)
    off = "H-RDT" in wish.overrides and wish.overrides["H-RDT"].off
    ways = WayLedger() if off else share_ways(host, facts, placements, problems)
    if len(problems.found) > before:
        return None
    plans = tuple(_plan_guest(host, placement, ways, topology) for placement in placements)
    context = Context(
        host=host,
        wish=wish,
        facts=facts,
        topology=topology,
        ledger=layout.ledger,
        placements=placements,
        definitions={plan.name: definition_digest(plan.xml) for plan in plans},
        ways=ways,
        polling=layout.data_plane.polling,
    )
    settings, notes = rules.settings(context, problems)
    return HostPlan(
        name=host,
        address=wish.address,
        fingerprint=facts.fingerprint(),
        facts_sha256=facts.sha256(),
        kernel_release=facts.kernel.release,
        preempt_rt=facts.kernel.preempt_rt,
        ledger=layout.ledger,
        settings=order_settings(settings),
        guests=plans,
        data_plane=export(layout.data_plane, layout.ledger.housekeeping),
        notes=(*(Note(rule="G-1", text=f"{sentence}.") for sentence in layout.moves), *notes),
    )


def _check(ledger: Ledger, facts: Facts, host: str, wish: HostWish) -> None:
    broken = check_ledger(ledger, facts)
    if not broken:
        return
    if wish.housekeeping is not None:
        raise WrongInput(
            f"host {host}: the CPUs cannot be divided as wished: {'; '.join(broken)}",
            hint="leave `housekeeping` out and let the planner choose",
        )
    raise AssertionError(f"the planner made a ledger of host {host} that breaks its own rules: {'; '.join(broken)}")


def _plan_guest(host: str, placement: Placement, ways: WayLedger, topology: Topology) -> GuestPlan:
    arguments = guest_arguments(placement)
    own = placement.cpus | placement.idle if placement.pinned else frozenset()
    return GuestPlan(
        name=placement.name,
        owner=placement.wish.place.owner,
        goal=placement.wish.goal,
        trust=placement.wish.trust,
        latency_ns=placement.wish.latency,
        node=placement.cells[0].node if len(placement.cells) == 1 else None,
        cells=tuple(
            CellPlan(node=cell.node, vcpus=cell.vcpus, memory_bytes=cell.memory, pages=cell.pages)
            for cell in placement.cells
            if cell.node is not None and len(placement.cells) > 1
        ),
        vcpus=placement.vcpus,
        idle=placement.idle,
        cores=sum(core.cpus <= own for core in topology.cores),
        emulator_cpus=placement.emulator,
        memory_bytes=placement.wish.memory,
        page_bytes=placement.page_bytes,
        pages=placement.pages,
        functions=placement.passed.functions,
        guest_arguments=arguments,
        cloud_config=cloud_config(placement),
        xml=domain_xml(host, placement, arguments, ways),
        why=placement.why,
    )
