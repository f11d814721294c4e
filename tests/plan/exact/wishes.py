"""Guests for generated machines: any goal, size and tie, told by hypothesis or by a number."""

from __future__ import annotations

from hypothesis import strategies as st

from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import HostPlan
from evenkeel.documents.site import CellWish, GuestWish
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from tests.plan.factories import GIB, MIB, guest, make_site
from tests.plan.topologies import Machine

GOALS = ("flexible", "balanced", "performance", "realtime")
OFTEN = ("realtime", "performance", "realtime", "performance", "balanced", "flexible")
LATENCIES = (None, 30_000, 50_000, 100_000, 200_000, 1_000_000)


def plan_or_refusal(
    machine: Machine | Facts, guests: dict[str, GuestWish], **host: object
) -> tuple[HostPlan | None, WrongInput | None]:
    """The plan of the one host, or why there is none.  Any other exception is a failure of the test."""
    facts = machine.facts() if isinstance(machine, Machine) else machine
    try:
        return make_plan(make_site(guests, **host), {"cell": facts}).hosts[0], None
    except WrongInput as error:
        for one in (error, *getattr(error, "others", ())):
            assert one.message and one.hint, one
        return None, error


def most_that_fit(machine: Machine, guests: dict[str, GuestWish]) -> tuple[dict[str, GuestWish], HostPlan | None]:
    """The guests that are left when those that the planner complains of are sent away, and their plan."""
    guests = dict(guests)
    while True:
        plan, error = plan_or_refusal(machine, guests)
        if error is None:
            return guests, plan
        told = [one.message.split(":")[0] for one in (error, *getattr(error, "others", ()))]
        blamed = {about.removeprefix("guest ") for about in told if about.startswith("guest ")}
        assert blamed <= guests.keys()
        if not blamed:
            return guests, None
        guests = {name: wish for name, wish in guests.items() if name not in blamed}


@st.composite
def wishes(draw: st.DrawFn, machine: Machine | None = None) -> GuestWish:
    """One guest.  With a machine now and then tied to a NIC or to CPUs of it."""
    goal = draw(st.sampled_from(OFTEN))
    wish: dict[str, object] = {
        "vcpus": draw(st.sampled_from((1, 1, 2, 2, 3, 4, 6))),
        "memory": draw(st.sampled_from((64 * MIB, 256 * MIB, GIB, 2 * GIB, 20 * GIB))),
        "trust": draw(st.sampled_from(("yields", "spins"))),
    }
    if goal == "realtime":
        wish["latency"] = draw(st.sampled_from(LATENCIES))
    if goal in ("performance", "realtime") and draw(st.sampled_from((False, False, True))):
        wish |= draw(spreads())
    tie = draw(st.sampled_from(("", "", "", "", "", "", "near", "cpus"))) if machine is not None else ""
    if machine is not None and tie == "near":
        wish["near"] = draw(st.sampled_from(("ens2", "0000:10:01.0")))
    elif machine is not None and tie == "cpus":
        cpus = draw(st.frozensets(st.sampled_from(sorted(machine.online)), min_size=1, max_size=4))
        wish |= {"cpus": cpus} if "numa" in wish else {"cpus": cpus, "vcpus": draw(st.integers(1, len(cpus)))}
        wish.pop("cells", None)
    return guest(goal, **wish)


@st.composite
def spreads(draw: st.DrawFn) -> dict[str, object]:
    """The part of a wish that spreads a guest over several nodes."""
    kind = draw(st.sampled_from(("numa", "numa", "auto", "auto", "cells")))
    if kind == "cells":
        parts = draw(st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from((1, 2))), min_size=1, max_size=3))
        cells = tuple(CellWish(vcpus=vcpus, memory=gib * GIB) for vcpus, gib in parts)
        return {
            "cells": cells,
            "vcpus": sum(cell.vcpus for cell in cells),
            "memory": sum(cell.memory for cell in cells),
        }
    count = draw(st.sampled_from((1, 2, 2, 3, 4)))
    size = draw(st.sampled_from((64 * MIB, GIB, 20 * GIB)))
    return {
        "numa": count if kind == "numa" else "auto",
        "vcpus": count * draw(st.sampled_from((1, 2, 3))),
        "memory": count * size,
    }


@st.composite
def sites(draw: st.DrawFn, machine: Machine) -> dict[str, GuestWish]:
    """Guests of one host.  Their number is drawn first, or hypothesis would mostly try none at all."""
    count = draw(st.sampled_from((1, 2, 3, 4, 5, 6, 8)))
    return {f"g{number}": draw(wishes(machine)) for number in range(count)}


def small(count: int, goal: str = "realtime", **wish: object) -> dict[str, GuestWish]:
    """``count`` equal guests named g00, g01, ..."""
    return {f"g{n:02}": guest(goal, **({"vcpus": 1, "memory": 64 * MIB} | wish)) for n in range(count)}
