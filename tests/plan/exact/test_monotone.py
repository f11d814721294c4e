"""A stricter goal or deadline never gives up a setting that a laxer one had; the order of telling changes nothing."""

from __future__ import annotations

import random
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.plan import HostPlan
from evenkeel.documents.site import GuestWish, Site
from evenkeel.plan import make_plan
from tests.plan.exact.wishes import plan_or_refusal, sites
from tests.plan.factories import guest, make_facts, make_site
from tests.plan.topologies import NAMED, Machine, machines

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
#: From the laxest to the strictest: goal, latency, trust.
LADDER = (
    ("flexible", None, "yields"),
    ("balanced", None, "yields"),
    ("performance", None, "yields"),
    ("realtime", None, "yields"),
    ("realtime", 100_000, "yields"),
    ("realtime", 40_000, "yields"),
)
#: Parts of the definition that a stricter goal leaves out on purpose.  Of the host's rules there are none.
DROPPED = {
    "devices/memballoon[@model='virtio']": "locked memory in huge pages cannot be given back piece by piece",
    "cpu[@migratable='on']": "the invariant TSC, which a pinned guest gets, keeps it from migrating live",
    "vcpu[@cpuset]": "a pinned guest has a vcpupin for each vCPU instead",
    "numatune/memory[@mode='preferred']": "strict instead",
    "numatune/memnode[@mode='preferred']": "strict instead",
}


def step(rung: int, **wish: object) -> GuestWish:
    goal, latency, trust = LADDER[rung]
    return guest(goal, latency=latency, trust=trust, **wish)


def given_up(lax: HostPlan, strict: HostPlan) -> set[str]:
    """Rules with a setting that the laxer plan wants and the stricter one does not.

    By rule, since a setting that is kept may name other pages, nodes or CPUs.
    """
    return {setting.rule for setting in lax.settings} - {setting.rule for setting in strict.settings}


def parts(plan: HostPlan) -> set[str]:
    """What the definition of guest g has: paths of elements with their modes and states."""
    found: set[str] = set()

    def walk(element: ET.Element, path: str) -> None:
        for key in ("mode", "state", "model", "migratable", "cpuset"):
            if key in element.attrib and element.tag not in ("vcpupin", "emulatorpin"):
                value = "" if key == "cpuset" else f"='{element.get(key)}'"
                found.add(f"{path}[@{key}{value}]")
        found.add(path)
        for child in element:
            walk(child, f"{path}/{child.tag}" if path else child.tag)

    (one,) = (one for one in plan.guests if one.name == "g")
    walk(ET.fromstring(one.xml), "")
    return found - DROPPED.keys()


@pytest.mark.parametrize("kernel", ["5.15.0-rt", "6.6.0-rt", "6.12.1-rt"])
@pytest.mark.parametrize("rung", range(1, len(LADDER)))
def test_each_rung_keeps_what_the_one_below_has(rung: int, kernel: str) -> None:
    facts = make_facts(kernel=kernel)
    lax, strict = (make_plan(make_site({"g": step(number)}), {"cell": facts}).hosts[0] for number in (rung - 1, rung))
    assert given_up(lax, strict) == set()
    assert parts(lax) - parts(strict) == set()


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data())
def test_on_any_machine_beside_any_guests(machine: Machine, data: st.DataObject) -> None:
    if not machine.online:
        return
    lower = data.draw(st.integers(0, len(LADDER) - 2))
    upper = data.draw(st.integers(lower + 1, len(LADDER) - 1))
    others = data.draw(sites(machine)) if data.draw(st.booleans()) else {}
    lax, _ = plan_or_refusal(machine, others | {"g": step(lower, vcpus=1)})
    strict, _ = plan_or_refusal(machine, others | {"g": step(upper, vcpus=1)})
    if lax is not None and strict is not None:
        assert given_up(lax, strict) == set()


@pytest.mark.parametrize("rung", range(3, len(LADDER)))
def test_each_rung_keeps_what_the_one_below_has_over_two_nodes_too(rung: int) -> None:
    facts = make_facts()
    wish = {"numa": 2, "vcpus": 2}
    lax, strict = (
        make_plan(make_site({"g": step(number, **wish)}), {"cell": facts}).hosts[0] for number in (rung - 1, rung)
    )
    assert given_up(lax, strict) == set()
    assert parts(lax) - parts(strict) == set()
    # Nor does a guest give up anything by being spread.
    one = make_plan(make_site({"g": step(rung, vcpus=2)}), {"cell": facts}).hosts[0]
    assert given_up(one, strict) == set()
    assert parts(one) - parts(strict) == set()


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data(), st.sampled_from((1, 2, 3, 4)), st.sampled_from((1, 2, 3)), st.sampled_from((64, 20480)))
def test_auto_fits_wherever_a_number_fits(
    machine: Machine, data: st.DataObject, count: int, each: int, mib: int
) -> None:
    """To leave the number of nodes open refuses nothing, beside whatever guests."""
    if not machine.online:
        return
    others = data.draw(sites(machine)) if data.draw(st.booleans()) else {}
    goal = data.draw(st.sampled_from(("performance", "realtime")))
    wish = guest(goal, vcpus=count * each, memory=count * mib << 20, numa=count)
    fixed, _ = plan_or_refusal(machine, others | {"g": wish})
    if fixed is not None:
        left_open, error = plan_or_refusal(machine, others | {"g": wish.model_copy(update={"numa": "auto"})})
        assert left_open is not None, error


def test_a_setting_given_up_is_seen() -> None:
    lax, strict = (make_plan(make_site({"g": step(rung)}), {"cell": make_facts()}).hosts[0] for rung in (2, 3))
    less = tuple(setting for setting in strict.settings if setting.rule != "H-ISO-1")
    assert given_up(lax, strict.model_copy(update={"settings": less})) == {"H-ISO-1"}
    (one,) = strict.guests
    bare = one.model_copy(update={"xml": one.xml.replace("<nosharepages />", "")})
    assert bare != one
    assert parts(lax) - parts(strict.model_copy(update={"guests": (bare,)})) == {"memoryBacking/nosharepages"}
    assert given_up(strict, lax) != set(), "the ladder goes up"


# -- the same input, the same bytes -----------------------------------------------------------------------------------


def shuffled(site: Site, seed: int) -> Site:
    """The same site, written in another order."""
    dice = random.Random(seed)
    return Site(
        hosts=dict(dice.sample(list(site.hosts.items()), len(site.hosts))),
        guests=dict(dice.sample(list(site.guests.items()), len(site.guests))),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data(), st.integers(0, 1 << 30))
def test_the_order_of_guests_changes_nothing(machine: Machine, data: st.DataObject, seed: int) -> None:
    if not machine.online:
        return
    guests = data.draw(sites(machine))
    plan, error = plan_or_refusal(machine, guests)
    again, again_error = plan_or_refusal(machine, dict(random.Random(seed).sample(list(guests.items()), len(guests))))
    assert (plan and plan.model_dump_json()) == (again and again.model_dump_json())
    assert str(error) == str(again_error)


def test_a_saved_and_read_input_gives_the_same_bytes() -> None:
    from evenkeel.documents.facts import Facts

    for name, machine in NAMED.items():
        facts = machine.facts()
        site = make_site({"a": guest(vcpus=1), "b": guest("balanced"), "c": guest("flexible", vcpus=1)})
        if plan_or_refusal(machine, site.guests)[0] is None:
            continue
        read = Facts.from_json(facts.to_json(), file=name)
        saved = Site.from_json(site.to_json(), file=name)
        one = make_plan(site, {"cell": facts})
        assert make_plan(shuffled(saved, 7), {"cell": read}).to_json() == one.to_json(), name
        assert make_plan(saved, {"cell": read}, one).to_json() == make_plan(site, {"cell": facts}, one).to_json(), name
