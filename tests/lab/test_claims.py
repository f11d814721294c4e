"""Claims: who gets which machine and when, what may not overlap, who is reminded, and what steps get."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, update

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import boots, claims, credits, machines, people, schema, search, settings
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, Stale, with_roles
from evenkeel.lab.claims import Claim, Request, Taken
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import DAY, HOUR
from evenkeel.lab.machines import Policy
from evenkeel.lab.predicate import Predicate
from tests.lab.conftest import Clock
from tests.lab.emulated import add_endpoint
from tests.lab.pool import ANN, BOB, CAT, GIB, ROOT, add


def ask(lab: Lab, actor: Any, predicate: str, hours: float = 24, **more: Any) -> Claim:
    length = None if more.get("kind") == "permanent" else round(hours * HOUR)
    return claims.request(lab, actor, Request(predicate=predicate, reason="to test it", length_ns=length, **more))


def events(lab: Lab, kind: str) -> list[dict[str, Any]]:
    with lab.store.read() as connection:
        chosen = select(schema.event.c.data).where(schema.event.c.type == kind).order_by(schema.event.c.seq)
        return list(connection.scalars(chosen))


def take(lab: Lab, step: int, predicate: str = "", **more: Any) -> Taken | None:
    def change(connection: Connection) -> Taken | None:
        wanted = Predicate.parse(predicate)
        return claims.take_for_step(
            lab, connection, step_id=step, predicate=wanted, holder=more.pop("holder", "ann"), **more
        )

    return lab.store.write(change)


def test_to_postgresql_no_time_is_a_number_of_four_bytes() -> None:
    """Nanoseconds of three seconds are more, and it refuses the whole question."""
    from sqlalchemy.dialects import postgresql

    dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
    asked = str(claims._with_ends(10**18).compile(dialect=dialect))
    assert "::BIGINT" in asked and "::INTEGER" not in asked


# -- now ----------------------------------------------------------------------------------------------------------


def test_a_free_machine_is_given_at_once_the_smallest_that_fits(lab: Lab) -> None:
    add(lab, "big", mem=512 * GIB)
    add(lab, "small", mem=16 * GIB)
    add(lab, "middle", mem=256 * GIB)
    got = ask(lab, ANN, "mem>=256GiB", 3)
    assert (got.state, got.machine, got.holder) == ("active", "middle", "ann")
    assert got.until_ns == lab.now() + 3 * HOUR
    assert machines.get(lab, BOB, "middle").state == "claimed"
    held = machines.get(lab, BOB, "middle").held
    assert held and (held.holder, held.reason, held.claim_id) == ("ann", "to test it", got.id)


def test_who_waits_gets_it_in_turn_with_position_and_estimate(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    first = ask(lab, ANN, "host1", 10)
    second, third = ask(lab, BOB, "host1", 5), ask(lab, CAT, "host1", 5)
    assert second.waits and third.waits
    assert (second.state, second.waits.position, third.waits.position) == ("waiting", 1, 2)
    assert second.waits.at_latest_ns == first.until_ns
    assert third.waits.at_latest_ns == (first.until_ns or 0) + 5 * HOUR
    assert second.waits.why == ("host1 is ann's",)
    clock.move(3600)
    claims.release(lab, ANN, first.id)
    assert claims.get(lab, ANN, second.id).state == "active"
    assert [one.holder for one in claims.waiting(lab, ANN)] == ["cat"]
    clock.move(5 * 3600)
    claims.tick(lab)
    ended = claims.get(lab, ANN, second.id)
    assert (ended.state, ended.end_cause) == ("ended", "its time is over")
    assert claims.get(lab, ANN, third.id).state == "active"


def test_a_claim_that_finds_nothing_does_not_keep_back_those_behind_it(lab: Lab) -> None:
    add(lab, "large", mem=512 * GIB)
    add(lab, "other", mem=16 * GIB)
    ask(lab, ANN, "large")
    ask(lab, BOB, "large")
    assert ask(lab, CAT, "mem<=16GiB").state == "active"


def test_urgent_ones_go_first_then_the_oldest(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    held = ask(lab, ROOT, "host1")
    ask(lab, ANN, "host1")
    clock.move(1)
    ask(lab, BOB, "host1", urgent=True)
    assert [one.holder for one in claims.waiting(lab, ANN)] == ["bob", "ann"]
    assert credits.credit(lab, BOB).left == 2
    claims.release(lab, ROOT, held.id)
    assert [one.holder for one in claims.waiting(lab, ANN)] == ["ann"]


def test_an_urgent_one_that_is_no_longer_wanted_gives_its_credit_back(lab: Lab) -> None:
    add(lab, "host1")
    ask(lab, ROOT, "host1")
    waits = ask(lab, BOB, "host1", urgent=True)
    assert waits.urgent
    claims.release(lab, BOB, waits.id)
    assert credits.credit(lab, BOB).left == 3
    for _ in range(4):
        last = ask(lab, BOB, "host1", urgent=True)
    assert not last.urgent  # beyond the credit: as any other


def test_the_likely_time_is_learned_from_what_people_kept(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    for _ in range(10):
        got = ask(lab, ANN, "host1", 10)
        clock.move(5 * 3600)
        claims.release(lab, ANN, got.id)
    held = ask(lab, ANN, "host1", 10)
    place = ask(lab, BOB, "host1").waits
    assert place and place.at_latest_ns == held.until_ns
    assert place.likely_ns == lab.now() + 5 * HOUR


@pytest.mark.parametrize("state", ["suspect", "broken", "off"])
def test_a_machine_that_is_not_well_is_not_given(lab: Lab, state: Any) -> None:
    add(lab, "host1")
    machines.mark(lab, ROOT, "host1", state, "no power")
    got = ask(lab, ANN, "host1")
    assert got.state == "waiting" and got.waits
    assert got.waits.why == (f"host1 is {state}: no power",)
    assert got.waits.likely_ns is None
    machines.mark(lab, ROOT, "host1", "ready")
    claims.tick(lab)
    assert claims.get(lab, ANN, got.id).state == "active"


def test_a_machine_that_breaks_while_it_is_held_stays_broken_after(lab: Lab) -> None:
    add(lab, "host1")
    got = ask(lab, ANN, "host1")
    machines.mark(lab, ROOT, "host1", "broken", "fire")
    claims.release(lab, ANN, got.id)
    assert machines.get(lab, ANN, "host1").state == "broken"
    got = ask(lab, ANN, "host1")
    machines.mark(lab, ROOT, "host1", "ready")
    claims.tick(lab)
    assert machines.get(lab, ANN, "host1").state == "claimed"
    machines.mark(lab, ROOT, "host1", "suspect", "smoke")
    assert machines.mark(lab, ROOT, "host1", "ready").state == "claimed"
    claims.release(lab, ANN, got.id)
    assert machines.get(lab, ANN, "host1").state == "ready"


def test_what_no_machine_is_and_which_term_it_is(lab: Lab) -> None:
    add(lab, "host1")
    with pytest.raises(NotFound) as raised:
        ask(lab, ANN, "cpu.flag:sse2 nic.driver:ixgbe")
    assert raised.value.hint == "nic.driver:ixgbe alone finds none: nic.driver is mlx5_core here"
    with pytest.raises(WrongInput, match="no such key"):
        ask(lab, ANN, "cpu.flags:sse2")
    with pytest.raises(WrongInput, match="what is it for"):
        claims.request(lab, ANN, Request(predicate="host1", reason=" "))


RESCUE: dict[str, Any] = {"netboot": "http://images.example.org/rescue.ipxe"}
INSTALLED: dict[str, Any] = {"netboot": "http://images.example.org/host.ipxe", "steps": False}


def test_only_a_machine_whose_owner_allows_it_is_booted_from_a_source_of_ones_own(lab: Lab) -> None:
    for number, own_boot in ((1, False), (2, True)):
        policy = Policy(**INSTALLED, own_boot=own_boot, longest_ns=2 * DAY)
        add_lent(lab, f"host{number}", policy, owner="ann")
    for who in (ANN, BOB, ROOT):  # its owner and admins too: whoever is next would get what they booted
        with pytest.raises(Forbidden, match=f"host1 may not be booted from a source of {who.name}'s") as raised:
            ask(lab, who, "host1", boot_source=RESCUE)
        assert str(raised.value.hint).endswith("edit host1 --own-boot --no-steps")
    assert claims.listing(lab, ROOT, state=None).items == ()
    first = ask(lab, BOB, "host*", boot_source=RESCUE)
    assert (first.machine, first.state, first.boot_source) == ("host2", "preparing", RESCUE)
    # host1 is free, and not for this.
    second = ask(lab, ANN, "host*", boot_source=RESCUE)
    assert second.state == "waiting" and machines.get(lab, ROOT, "host1").state == "ready"
    assert second.waits is not None
    assert second.waits.why == ("host1 may not be booted from a source of ann's own", "host2 is bob's")
    assert [one.name for one in search.find(lab, ANN, "boot.own:yes").items] == ["host2"]
    assert ask(lab, ANN, "host*").machine == "host1"
    plain = ask(lab, ANN, "host*")  # which waits for one of both
    assert plain.waits is not None and plain.waits.why[0] == "host1 is ann's"
    claims.release(lab, BOB, first.id)
    claims.let_go(lab, ())
    assert claims.get(lab, ANN, second.id).machine == "host2"


def add_lent(lab: Lab, name: str, policy: Policy, **more: Any) -> machines.Machine:
    """One that a script can be booted on."""
    made = add(lab, name, address=f"ssh://root@{name}", policy=policy, **more)
    add_endpoint(lab, made.id, "bmc", "ipmi", f"bmc-{name}")
    return made


def test_one_that_cannot_be_booted_so_is_not_given_as_it_is_in_place_of_booted(lab: Lab) -> None:
    """Not reached by the lab; without the drive that an image takes, until it has one."""
    add(lab, "host1", policy=Policy(**INSTALLED, own_boot=True))
    with pytest.raises(Forbidden, match="host1 has no ssh, no network card that its facts alone have, or neither"):
        ask(lab, ANN, "host1", boot_source=RESCUE)
    assert ask(lab, BOB, "host1").state == "active"
    found = add(lab, "host2", address="ssh://root@host2", policy=Policy(**INSTALLED, own_boot=True))
    image = {"image": "http://images.example.org/mine.iso"}
    with pytest.raises(Forbidden, match="host2 has no ssh, or no BMC that speaks Redfish") as raised:
        ask(lab, ANN, "host2", boot_source=image)
    assert "boot.own:yes" in str(raised.value.hint)
    add_endpoint(lab, found.id, "bmc", "redfish", "https://bmc-host2")
    assert ask(lab, ANN, "host2", boot_source=image).state == "preparing"


def test_of_several_bmcs_the_first_is_the_one_that_must_have_a_drive(lab: Lab) -> None:
    image = {"image": "http://images.example.org/mine.iso"}
    add_endpoint(lab, add_lent(lab, "host1", Policy(**INSTALLED, own_boot=True)).id, "bmc", "redfish", "https://bmc")
    with pytest.raises(Forbidden, match="host1 has no ssh, or no BMC that speaks Redfish"):
        ask(lab, ANN, "host1", boot_source=image)


def test_what_is_passed_over_and_would_be_given_again_ends(lab: Lab) -> None:
    add_lent(lab, "host1", Policy(**INSTALLED, own_boot=True))
    got = ask(lab, ANN, "host1", boot_source=RESCUE)
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
    assert claims.passed_over(lab, row.id, row.fencing, "it has no drive") == "cancelled"
    assert claims.get(lab, ANN, got.id).end_cause == "it has no drive"


def test_a_card_that_other_facts_have_too_is_booted_by_nobody(lab: Lab) -> None:
    for name in ("host1", "host2"):
        add_lent(lab, name, Policy(**INSTALLED, own_boot=True))
    stranger = add(lab, "host3")
    mac = machines.facts_of(lab, ROOT, "host1")["mac"][0]
    shared = {"machine_id": stranger.id, "key": "mac", "text": mac}
    lab.store.write(lambda c: c.execute(insert(schema.fact).values(shared)))
    assert ask(lab, ANN, "boot.own:yes", boot_source=RESCUE).machine == "host2"
    with pytest.raises(Forbidden, match="host1 has no ssh, no network card that its facts alone have"):
        ask(lab, BOB, "host1", boot_source=RESCUE)
    machines.retire(lab, ROOT, "host3", "gone")
    assert ask(lab, BOB, "host1", boot_source=RESCUE).state == "preparing"


def test_why_each_machine_is_not_had_is_said_of_each(lab: Lab) -> None:
    """Reserved for others, for too long, and not for a source of one's own."""
    own = Policy(**INSTALLED, own_boot=True)
    for number, policy in enumerate((own.model_copy(update={"users": ("cat",)}), Policy(longest_ns=HOUR), own)):
        add_lent(lab, f"host{number}", policy)
    ask(lab, BOB, "host2")
    place = ask(lab, ANN, "host*", boot_source=RESCUE).waits
    assert place and place.why == (
        "host0 may not be reserved by ann", "host1 may not be booted from a source of ann's own", "host2 is bob's"
    )  # fmt: skip
    place = ask(lab, ANN, "host*").waits
    assert place and place.why[:2] == (
        "host0 may not be reserved by ann",
        "host1 may not be reserved by ann for so long",
    )


def test_who_has_a_machine_booted_hands_it_over_whatever_its_owner_allows_by_now(lab: Lab) -> None:
    policy = Policy(**INSTALLED, own_boot=True)
    add_lent(lab, "host1", policy)
    person(lab, "bob")
    got = ask(lab, ANN, "host1", boot_source=RESCUE)
    machines.edit(lab, ROOT, "host1", machines.Edit(policy=policy.model_copy(update={"own_boot": False})))
    with pytest.raises(Forbidden, match="host1 may not be booted from a source of bob's own"):
        claims.hand_over(lab, ANN, got.id, "bob")
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
    assert claims.prepared(lab, row.id, row.fencing, None) == "active"
    assert claims.hand_over(lab, ANN, got.id, "bob").holder == "bob"


# -- whose system it has ------------------------------------------------------------------------------------------


def lend(lab: Lab, name: str, to: str) -> None:
    """As if they had booted it from a source of their own."""
    with lab.store.read() as connection:
        machine_id = machines.find(connection, name).id
    lab.store.write(lambda connection: machines.set_system(lab, connection, "lab", machine_id, to))


def test_what_a_holder_booted_is_installed_before_the_next_one_whatever_its_owner_says_by_now(lab: Lab) -> None:
    policy = Policy(**INSTALLED, own_boot=True)
    add(lab, "host1", address="ssh://root@host1", policy=policy)
    lend(lab, "host1", "ann")
    machines.edit(lab, ROOT, "host1", machines.Edit(policy=Policy(netboot=policy.netboot, prepare="none")))
    got = ask(lab, BOB, "host1")
    assert got.state == "preparing"
    with lab.store.read() as connection:
        assert claims.how_prepared(connection, machines.find(connection, "host1")) == "full"


@pytest.mark.parametrize("change", [{"policy": Policy()}, {"address": ""}])
def test_one_that_cannot_be_installed_again_is_nobody_s_until_its_owner_did_it(
    lab: Lab, change: dict[str, Any]
) -> None:
    """Nothing to install it from any more, and no way to it."""
    add(lab, "host1", address="ssh://root@host1", policy=Policy(**INSTALLED, own_boot=True), owner="cat")
    lend(lab, "host1", "ann")
    machines.edit(lab, ROOT, "host1", machines.Edit(**change))
    got = ask(lab, BOB, "host1")
    assert got.state == "waiting" and got.waits is not None
    assert got.waits.why == ("host1 still has a system that ann booted, and nothing to install it from",)
    assert got.waits.at_latest_ns is None
    with pytest.raises(WrongInput, match="what is suspect is not installed"):
        machines.mark(lab, CAT, "host1", "suspect", "test", installed=True)
    with pytest.raises(Forbidden):
        machines.mark(lab, BOB, "host1", "ready", installed=True)
    machines.mark(lab, CAT, "host1", "ready")  # says nothing of its system
    claims.tick(lab)
    assert claims.get(lab, BOB, got.id).state == "waiting"
    machines.mark(lab, CAT, "host1", "ready", installed=True)
    claims.tick(lab)
    assert claims.get(lab, BOB, got.id).state != "waiting"
    assert machines.get(lab, BOB, "host1").system_of == ""


def test_nobody_says_that_it_is_theirs_again_while_a_holder_boots_it(lab: Lab) -> None:
    add_lent(lab, "host1", Policy(**INSTALLED, own_boot=True), owner="cat")
    got = ask(lab, ANN, "host1", boot_source=RESCUE)
    lend(lab, "host1", "ann")
    with pytest.raises(Conflict, match="host1 is prepared for ann now"):
        machines.mark(lab, CAT, "host1", "ready", installed=True)
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
    claims.prepared(lab, row.id, row.fencing, None)
    with pytest.raises(Conflict, match="host1 is booted by ann now"):
        machines.mark(lab, CAT, "host1", "ready", installed=True)
    claims.release(lab, ANN, got.id)
    assert machines.mark(lab, CAT, "host1", "ready", installed=True).system_of == ""


@pytest.mark.parametrize("kind", ["maintenance", "permanent"])
def test_its_owner_gets_it_with_what_a_holder_booted(lab: Lab, kind: Any) -> None:
    add(lab, "host1", address="ssh://root@host1", policy=Policy(**INSTALLED, own_boot=True))
    lend(lab, "host1", "ann")
    assert ask(lab, ROOT, "host1", kind=kind).state == "active"
    assert machines.get(lab, BOB, "host1").system_of == "ann"  # who comes after them


def test_steps_take_nothing_that_a_holder_booted(lab: Lab) -> None:
    add(lab, "host1")
    lend(lab, "host1", "ann")
    assert take(lab, 1) is None
    lend(lab, "host1", "")
    assert take(lab, 1) is not None


@pytest.mark.parametrize("kind", ["maintenance", "permanent"])
def test_what_is_given_as_it_is_is_booted_from_nothing(lab: Lab, kind: Any) -> None:
    add(lab, "host1", address="ssh://root@host1", policy=Policy(**INSTALLED, own_boot=True))
    with pytest.raises(WrongInput, match=f"nothing is done with a machine before a {kind} claim"):
        ask(lab, ROOT, "host1", kind=kind, boot_source=RESCUE)
    assert ask(lab, ROOT, "host1", kind=kind).state == "active"


@pytest.mark.parametrize(
    "source", [{}, {"image": "x"}, {"image": "http://x/y.iso", **RESCUE}, {"netboot": "http://a:b@x/y"}]
)
def test_a_boot_source_is_one_address_that_all_may_read(source: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Request(predicate="host1", reason="test", boot_source=source)


@pytest.mark.parametrize(
    "policy", [{}, {"steps": False}, {**INSTALLED, "prepare": "check"}, {**INSTALLED, "steps": True}]
)
def test_a_machine_that_is_not_installed_for_the_next_one_is_nobodys_to_boot(lab: Lab, policy: dict[str, Any]) -> None:
    given = Policy(**policy, own_boot=True)
    assert not given.lends_boot
    with pytest.raises(WrongInput, match="that steps do not take, may be booted from a source of somebody's own"):
        add(lab, "host1", policy=given)


# -- later --------------------------------------------------------------------------------------------------------


def test_what_is_booked_does_not_overlap_and_begins_by_itself(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    start = lab.now() + 10 * HOUR
    booked = ask(lab, ANN, "host1", 5, not_before_ns=start)
    assert (booked.state, booked.machine) == ("waiting", "host1")
    assert booked.waits and (booked.waits.position, booked.waits.likely_ns) == (0, start)
    for begin, hours in ((8, 3), (10, 5), (14, 2), (11, 1), (9, 20)):
        with pytest.raises(Conflict, match="host1 is taken then; host1 by ann") as raised:
            ask(lab, BOB, "host1", hours, not_before_ns=lab.now() + begin * HOUR)
        assert "free for so long from" in (raised.value.hint or "")
    before = ask(lab, BOB, "host1", 2, not_before_ns=lab.now() + 8 * HOUR)
    after = ask(lab, BOB, "host1", 2, not_before_ns=lab.now() + 15 * HOUR)
    assert before.machine == after.machine == "host1"
    # Now, but longer than until the first booking: it waits behind all of them.
    long = ask(lab, CAT, "host1", 9)
    assert long.waits and long.waits.at_latest_ns == lab.now() + 17 * HOUR
    assert long.waits.why == ("host1 is booked by bob",)
    assert ask(lab, CAT, "host1", 8).state == "active"
    clock.move(8 * 3600)
    claims.tick(lab)
    assert claims.get(lab, ANN, before.id).state == "active"
    clock.move(2 * 3600)
    claims.tick(lab)
    got = claims.get(lab, ANN, booked.id)
    assert (got.state, got.until_ns) == ("active", start + 5 * HOUR)


def test_a_booking_by_what_it_must_be_gets_another_machine_when_its_own_broke(lab: Lab, clock: Clock) -> None:
    add(lab, "host1", mem=16 * GIB)
    add(lab, "host2", mem=32 * GIB)
    booked = ask(lab, ANN, "cpu.flag:sse2", 5, not_before_ns=lab.now() + HOUR)
    named = ask(lab, BOB, "host1", 5, not_before_ns=lab.now() + 6 * HOUR)
    assert booked.machine == "host1"
    machines.mark(lab, ROOT, "host1", "broken", "fire")
    clock.move(3600)
    claims.tick(lab)
    assert claims.get(lab, ANN, booked.id).machine == "host2"
    clock.move(5 * 3600)
    claims.tick(lab)
    got = claims.get(lab, BOB, named.id)
    assert got.state == "waiting" and got.waits and got.waits.why == ("host1 is broken: fire",)
    clock.move(5 * 3600)
    claims.tick(lab)
    got = claims.get(lab, BOB, named.id)
    assert (got.state, got.end_cause) == ("cancelled", "its time went by before the machine could be given")


def test_several_machines_are_booked_one_after_the_other(lab: Lab) -> None:
    add(lab, "host1")
    add(lab, "host2")
    start = lab.now() + HOUR
    assert {ask(lab, ANN, "host*", not_before_ns=start).machine for _ in range(2)} == {"host1", "host2"}
    with pytest.raises(Conflict, match="all 2 machines that fit are taken then"):
        ask(lab, BOB, "host*", not_before_ns=start)


@pytest.mark.parametrize("requests", [20, pytest.param(150, marks=pytest.mark.long)])
def test_many_at_once_never_overlap(lab: Lab, clock: Clock, requests: int) -> None:
    """Random requests of many threads, random time: no two claims hold or booked one machine at a time."""
    for number in range(4):
        add(lab, f"host{number}")
    dice = random.Random(6)

    def one(number: int) -> None:
        actor = with_roles(f"user{number % 17}", ["user"])
        start = lab.now() + dice.randrange(0, 100) * HOUR if number % 3 else None
        wanted = dice.choice(["host*", f"host{number % 4}"])
        length = dice.randrange(1, 30) * HOUR
        with contextlib.suppress(Conflict):
            claims.request(lab, actor, Request(predicate=wanted, reason="x", length_ns=length, not_before_ns=start))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(requests)))
    began = 0
    for _ in range(min(60, requests)):
        clock.move(4 * 3600)
        claims.tick(lab)
        held = [one for one in claims.listing(lab, ANN, limit=1000).items if one.machine_id]
        spans = sorted(
            (
                one.machine or "",
                one.began_ns or one.not_before_ns,
                one.until_ns or one.not_before_ns + (one.length_ns or 0),
            )
            for one in held
        )
        for (this, _, end), (that, begin, _) in itertools.pairwise(spans):
            assert this != that or end <= begin, spans
        began = max(began, *(one.id for one in held if one.state == "active"), 0)
    assert began >= requests // 4


# -- who may, and how much ----------------------------------------------------------------------------------------


def test_limits_of_number_and_length(lab: Lab) -> None:
    text = "reservations: {most: 2, longest: 48h, ahead: 10d}"
    (lab.folder / "lab.yaml").write_text(text)
    lab.settings = settings.read(lab.folder / "lab.yaml")
    for number in range(3):
        add(lab, f"host{number}")
    with pytest.raises(Forbidden, match="3 days is longer than 2 days"):
        ask(lab, ANN, "host0", 72)
    with pytest.raises(Conflict, match="more than 10 days ahead"):
        ask(lab, ANN, "host0", not_before_ns=lab.now() + 11 * DAY)
    ask(lab, ANN, "host0")
    with pytest.raises(Conflict, match="host0 is yours already: reservation 1"):
        ask(lab, ANN, "host0")
    with pytest.raises(WrongInput, match="that time is past"):
        ask(lab, ANN, "host1", not_before_ns=lab.now() - HOUR)
    ask(lab, ANN, "host1")
    with pytest.raises(Conflict, match="ann has 2 reservations, of 2 at most"):
        ask(lab, ANN, "host2")
    for _ in range(3):
        ask(lab, ROOT, "host*", 72)


def test_owners_decide_who_may_have_their_machine_and_for_how_long(lab: Lab) -> None:
    add(lab, "host1", owner="ann", policy=Policy(users=("bob",), teams=("kernel",), longest_ns=2 * HOUR))
    with pytest.raises(Forbidden, match="host1 may not be reserved by cat") as raised:
        ask(lab, CAT, "host1", 1)
    assert raised.value.hint == "ask ann"
    with pytest.raises(Forbidden, match="longer than"):
        ask(lab, BOB, "host1", 3)
    assert ask(lab, BOB, "host1", 2).state == "active"
    dan = with_roles("dan", ["user"], ["kernel"])
    assert ask(lab, dan, "host1", 1, team="kernel").state == "waiting"
    with pytest.raises(Forbidden, match="not in team kernel"):
        ask(lab, BOB, "host1", 1, team="kernel")


def test_permanent_ones_are_for_owners(lab: Lab) -> None:
    add(lab, "host1", owner="ann")
    with pytest.raises(Forbidden, match="host1 belongs to ann"):
        ask(lab, BOB, "host1", kind="permanent")
    with pytest.raises(WrongInput, match="names one machine"):
        ask(lab, ANN, "host*", kind="permanent")
    later = ask(lab, BOB, "host1", 1, not_before_ns=lab.now() + 5 * HOUR)
    assert ask(lab, ANN, "host1", kind="permanent").state == "waiting"
    claims.release(lab, BOB, later.id)
    (mine,) = claims.listing(lab, ANN, holder="ann").items
    assert (mine.state, mine.until_ns) == ("active", None)
    with pytest.raises(Conflict, match="host1 is taken then"):
        ask(lab, BOB, "host1", not_before_ns=lab.now() + 5 * HOUR)
    waits = ask(lab, BOB, "host1").waits
    assert waits and waits.at_latest_ns is None and waits.why == ("host1 is ann's for good",)


def test_maintenance_gets_a_broken_machine(lab: Lab) -> None:
    add(lab, "host1", owner="ann")
    machines.mark(lab, ANN, "host1", "broken", "fan")
    assert ask(lab, ANN, "host1", 2, kind="maintenance").state == "active"
    assert machines.get(lab, ANN, "host1").state == "broken"


# -- changing -----------------------------------------------------------------------------------------------------


def test_only_the_holder_changes_a_reservation_and_the_owner_takes_it_back_with_a_reason(lab: Lab) -> None:
    add(lab, "host1", owner="cat")
    got = ask(lab, ANN, "host1")
    acts: list[Callable[[], Claim]] = [
        lambda: claims.release(lab, BOB, got.id, "mine"),
        lambda: claims.extend(lab, BOB, got.id, HOUR),
        lambda: claims.hand_over(lab, BOB, got.id, "bob"),
    ]
    for act in acts:
        with pytest.raises(Forbidden, match="belongs to ann, not to bob"):
            act()
    with pytest.raises(WrongInput, match="why is it taken away"):
        claims.release(lab, CAT, got.id)
    assert claims.release(lab, CAT, got.id, "it burns").end_cause == "it burns"
    with pytest.raises(Conflict, match="ended already"):
        claims.release(lab, ANN, got.id)


def test_extending(lab: Lab) -> None:
    add(lab, "host1")
    got = ask(lab, ANN, "host1", 24)
    longer = claims.extend(lab, ANN, got.id, 24 * HOUR)
    assert longer.until_ns == lab.now() + 48 * HOUR
    with pytest.raises(Stale):
        claims.extend(lab, ANN, got.id, HOUR, got.version)
    with pytest.raises(Forbidden, match="the longest is 14 days"):
        claims.extend(lab, ANN, got.id, 13 * DAY)
    booked = ask(lab, BOB, "host1", 1, not_before_ns=lab.now() + 50 * HOUR)
    claims.extend(lab, ANN, got.id, 2 * HOUR)
    with pytest.raises(Conflict, match="host1 is booked by bob then"):
        claims.extend(lab, ANN, got.id, HOUR)
    claims.release(lab, BOB, booked.id)
    ask(lab, CAT, "host1")
    with pytest.raises(Conflict, match="cat waits for host1"):
        claims.extend(lab, ANN, got.id, HOUR)
    assert claims.extend(lab, ROOT, got.id, HOUR).until_ns == lab.now() + 51 * HOUR


def test_handing_over(lab: Lab) -> None:
    add(lab, "host1", policy=Policy(users=("ann", "bob")))
    got = ask(lab, ANN, "host1")
    with pytest.raises(NotFound, match="nobody here is called 'bob'"):
        claims.hand_over(lab, ANN, got.id, "bob")
    for name in ("bob", "cat"):
        row = {"name": name, "kind": "person", "roles": ["user"], "teams": []}
        change = insert(schema.principal).values(row)
        lab.store.write(lambda connection, change=change: connection.execute(change))  # type: ignore[misc]
    with pytest.raises(Forbidden, match="host1 may not be reserved by cat"):
        claims.hand_over(lab, ANN, got.id, "cat")
    theirs = claims.hand_over(lab, ANN, got.id, "bob")
    assert (theirs.holder, theirs.until_ns) == ("bob", got.until_ns)
    with pytest.raises(Forbidden):
        claims.release(lab, ANN, got.id)


# -- reminding ----------------------------------------------------------------------------------------------------


def test_holders_are_reminded_once_before_the_end(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    got = ask(lab, ANN, "host1", 48)
    due = claims.tick(lab)
    assert due == (got.until_ns or 0) - 4 * HOUR
    clock.move(43.9 * 3600)
    claims.tick(lab)
    assert events(lab, "claim.ends-soon") == []
    clock.move(0.1 * 3600)
    claims.tick(lab)
    claims.tick(lab)
    assert [(one["to"], one["machine"]) for one in events(lab, "claim.ends-soon")] == [("ann", "host1")]
    claims.extend(lab, ANN, got.id, 24 * HOUR)
    clock.move(24 * 3600)
    claims.tick(lab)
    assert len(events(lab, "claim.ends-soon")) == 2


def test_who_holds_a_machine_for_three_days_is_asked_when_somebody_waits(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    add(lab, "host2", mem=512 * GIB)
    ask(lab, ANN, "host1", 14 * 24)
    ask(lab, CAT, "host2", 14 * 24)
    clock.move(4 * 86400)
    claims.tick(lab)
    assert events(lab, "claim.wanted") == []
    ask(lab, BOB, "mem<512GiB")
    claims.tick(lab)
    assert events(lab, "claim.wanted") == []
    clock.move(3600)
    claims.tick(lab)
    claims.tick(lab)
    assert events(lab, "claim.wanted") == [{"to": "ann", "machine": "host1", "waits": ["bob"]}]
    clock.move(86400)
    claims.tick(lab)
    assert len(events(lab, "claim.wanted")) == 2


# -- steps --------------------------------------------------------------------------------------------------------


def test_a_step_gets_a_machine_or_none_and_gives_it_back(lab: Lab) -> None:
    add(lab, "host1", mem=64 * GIB)
    add(lab, "host2", mem=32 * GIB)
    first, second = take(lab, 1), take(lab, 2)
    assert first and second
    assert (first.machine, second.machine) == ("host2", "host1")
    assert first.fencing < second.fencing
    assert take(lab, 3) is None
    assert machines.get(lab, ANN, "host2").state == "claimed"
    waits = ask(lab, BOB, "host2")
    assert waits.state == "waiting"
    freed = lab.store.write(lambda connection: claims.release_step(lab, connection, 1, "passed"))
    assert freed == [first.machine_id]
    # Who waited has it now, before any other step.
    assert claims.get(lab, BOB, waits.id).state == "active"
    assert take(lab, 3, "host2") is None
    with pytest.raises(Conflict, match="a step has it"):
        claims.release(lab, ROOT, second.claim_id, "mine")


def test_steps_keep_to_the_calendar_and_to_owners(lab: Lab) -> None:
    add(lab, "host1")
    add(lab, "own", mem=512 * GIB, policy=Policy(steps=False))
    ask(lab, BOB, "host1", 5, not_before_ns=lab.now() + 2 * HOUR)
    assert take(lab, 1, "own") is None
    assert take(lab, 1, "host1", length_ns=3 * HOUR) is None
    short = take(lab, 1, "host1", length_ns=2 * HOUR)
    assert short and short.machine == "host1"
    assert take(lab, 2) is None


def person(lab: Lab, name: str, *teams: str, role: str = "user") -> None:
    row = {"name": name, "kind": "person", "roles": [role], "teams": list(teams)}
    lab.store.write(lambda connection: connection.execute(insert(schema.principal).values(row)) and None)


def test_a_step_takes_no_machine_that_its_owner_does_not_let_its_sender_have(lab: Lab) -> None:
    """Who has a step on a machine holds it, with its power and console."""
    add(lab, "host1", owner="ann", policy=Policy(users=("ann",), teams=("kernel",)))
    person(lab, "cat", "kernel")
    person(lab, "dan", "kernel-too")
    person(lab, "eve", role="admin")
    assert take(lab, 1, "host1", holder="bob") is None
    assert take(lab, 1, "", holder="bob") is None
    assert take(lab, 1, "host1", holder="dan", team="kernel-too") is None
    assert machines.get(lab, ROOT, "host1").held is None
    for step, more in enumerate(({"holder": "ann"}, {"holder": "cat"}, {"holder": "bob", "team": "kernel"}), 1):
        assert take(lab, step, "host1", **more), more
        lab.store.write(lambda connection, step=step: claims.release_step(lab, connection, step, "passed"))  # type: ignore[misc]
    assert take(lab, 4, "host1", holder="eve")


def test_who_runs_the_service_is_an_admin_without_being_a_principal(lab: Lab) -> None:
    """Their claim was taken as an admin's, and waited for ever as somebody's whom nobody knows."""
    for name in ("host1", "host2"):
        add(lab, name, owner="ann", policy=Policy(users=("ann",)))
    me = people.local_actor(lab, os.geteuid())
    assert ask(lab, me, "host1").state == "active"
    assert take(lab, 1, "host2", holder=me.name)
    assert take(lab, 2, "host2", holder="uid-0") is None


def test_an_owner_who_wants_no_steps_gets_none_whoever_sends_them(lab: Lab) -> None:
    add(lab, "host1", owner="ann", policy=Policy(steps=False))
    person(lab, "eve", role="admin")
    assert take(lab, 1, "host1", holder="ann") is None
    assert take(lab, 1, "host1", holder="eve") is None


def test_a_free_machine_that_somebody_may_not_have_is_no_reason_to_foretell_now(lab: Lab) -> None:
    add(lab, "free", owner="ann", policy=Policy(users=("ann",)))
    add(lab, "other", mem=512 * GIB)
    held = ask(lab, CAT, "other", 5)
    place = ask(lab, BOB, "mem>=1GiB").waits
    assert place and place.likely_ns == place.at_latest_ns == held.until_ns
    assert place.why == ("free may not be reserved by bob", "other is cat's")
    assert ask(lab, CAT, "mem>=1GiB").waits == claims.get(lab, CAT, 3).waits
    waits = claims.get(lab, CAT, 3).waits
    assert waits and waits.position == 2


def test_who_may_not_have_a_machine_does_not_keep_its_holder_from_extending(lab: Lab) -> None:
    add(lab, "mine", owner="cat", policy=Policy(users=("ann",)))
    add(lab, "other", mem=512 * GIB)
    got, _ = ask(lab, ANN, "mine", 5), ask(lab, CAT, "other", 5)
    assert ask(lab, BOB, "mem>=1GiB").state == "waiting"
    assert claims.extend(lab, ANN, got.id, HOUR).until_ns == lab.now() + 6 * HOUR


def test_what_a_team_may_have_is_not_handed_to_somebody_outside(lab: Lab) -> None:
    add(lab, "host1", policy=Policy(teams=("kernel",)))
    person(lab, "bob")
    got = ask(lab, with_roles("ann", ["user"], ["kernel"]), "host1", team="kernel")
    with pytest.raises(Forbidden, match="host1 may not be reserved by bob"):
        claims.hand_over(lab, ANN, got.id, "bob")


def test_a_step_is_not_ended_by_time(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    took = take(lab, 1, length_ns=HOUR)
    clock.move(7200)
    claims.tick(lab)
    assert took and claims.get(lab, ANN, took.claim_id).state == "active"


def test_the_time_that_a_machine_takes_to_wake_belongs_to_the_estimate(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    asleep = {"state": "off", "state_reason": boots.ASLEEP}
    lab.store.write(lambda connection: connection.execute(update(schema.machine).values(asleep)))
    waits = ask(lab, ANN, "host1").waits
    assert waits and waits.why == (
        "host1 sleeps, and takes about 5 min to wake (as most do; none like it has been seen to)",
    )
    assert (waits.likely_ns, waits.at_latest_ns) == (lab.now() + 300 * 10**9, lab.now() + 900 * 10**9)
    for boot_s in (100.0, 120.0, 180.0):
        lab.store.write(partial(boots.learn, type_="machine host1", boot_s=boot_s))
    known = claims.get(lab, ANN, 1).waits
    assert known and known.why == ("host1 sleeps, and takes about 2 min to wake",)
    assert (known.likely_ns, known.at_latest_ns) == (lab.now() + 120 * 10**9, lab.now() + 540 * 10**9)
    # It is being switched on: what is gone of that is not waited for again, and a boot that it outlasted tells nothing.
    machine_id, began = machines.get(lab, ANN, "host1").id, lab.now()
    row = {"machine_id": machine_id, "action": "on", "actor": "lab", "at_ns": began, "tried": [], "result": "running"}
    lab.store.write(lambda connection: connection.execute(insert(schema.power_event).values(row)))
    clock.move(110)
    on = claims.get(lab, ANN, 1).waits
    assert on and (on.likely_ns, on.at_latest_ns) == (began + 150 * 10**9, began + 540 * 10**9)
    clock.move(900)  # it should have answered long ago
    late = claims.get(lab, ANN, 1).waits
    assert late and late.likely_ns == late.at_latest_ns == lab.now()


def test_a_machine_that_is_off_for_another_reason_is_not_waited_for(lab: Lab) -> None:
    add(lab, "host1")
    off = {"state": "off", "state_reason": "switched off"}
    lab.store.write(lambda connection: connection.execute(update(schema.machine).values(off)))
    waits = ask(lab, ANN, "host1").waits
    assert waits and (waits.likely_ns, waits.at_latest_ns) == (None, None)
    assert waits.why == ("host1 is off: switched off",)


def _plain_end(row: dict[str, Any], now: int) -> int | None:
    """When a claim ends, in words of Python; the lab has it in words of SQL only."""
    if row["until_ns"] is not None:
        return int(row["until_ns"])
    if row["length_ns"] is not None:
        return int(row["not_before_ns"] + row["length_ns"])
    if row["kind"] != "step":
        return None
    hours_gone = max(0, now - row["began_ns"]) // HOUR
    return int(row["began_ns"] + (hours_gone + 1) * HOUR)


def test_when_a_claim_ends_is_one_rule(lab: Lab) -> None:
    now = lab.now()
    # To the nanosecond around whole hours, and from a clock that was set back.
    moments = [now + hours * HOUR + off for hours in (-30, -2, -1, 0, 1, 3) for off in (-1, 0, 1)]
    rows = [
        {"kind": kind, "state": "ended", "holder": "ann", "predicate": "", "reason": "", "requested_ns": now,
         "not_before_ns": now, "began_ns": began, "length_ns": length, "until_ns": until}
        for kind in ("reservation", "step", "maintenance", "permanent")
        for began in moments
        for length in (None, 1, 5 * HOUR)
        for until in (None, now - HOUR, now + 7 * HOUR)
    ]  # fmt: skip
    with lab.store.engine.begin() as connection:
        connection.execute(insert(schema.claim), rows)
        told = [claims._until(row) for row in connection.execute(claims._with_ends(now).order_by(schema.claim.c.id))]
        after = select(schema.claim.c.id).where(claims._ends(now) > now + HOUR)
        later = set(connection.scalars(after))
    expected = [_plain_end(row, now) for row in rows]
    assert told == expected
    assert later == {number for number, end in enumerate(expected, 1) if end is None or end > now + HOUR}


def test_a_step_without_a_time_limit_has_its_machine_for_an_hour_and_not_for_good(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    began = lab.now()
    assert take(lab, 1, "host1")
    waits = ask(lab, BOB, "host1", 5).waits
    assert waits and (waits.likely_ns, waits.at_latest_ns) == (began + HOUR, None)
    assert waits.why == ("host1 is ann's, for a step without a time limit",)
    (lane,) = claims.calendar(lab, BOB)
    assert [(span.kind, span.end_ns, span.about) for span in lane.spans] == [("step", began + HOUR, True)]
    with pytest.raises(Conflict) as raised:
        ask(lab, CAT, "host1", 1, not_before_ns=began + HOUR // 2)
    assert raised.value.hint == "probably free for so long from 2026-11-29 11:00 UTC"
    assert ask(lab, CAT, "host1", 8, not_before_ns=began + 24 * HOUR).machine == "host1"
    # It runs on: another hour.
    clock.move(3600)
    place = claims.get(lab, BOB, 2).waits
    assert place and (place.likely_ns, place.at_latest_ns) == (began + 2 * HOUR, None)
    (lane,) = claims.calendar(lab, BOB, "", lab.now(), lab.now() + HOUR)
    assert [(span.end_ns, span.about) for span in lane.spans] == [(began + 2 * HOUR, True)]
    with pytest.raises(Conflict):
        ask(lab, CAT, "host1", 1, not_before_ns=began + HOUR + HOUR // 2)
    lab.store.write(lambda connection: claims.release_step(lab, connection, 1, "passed"))
    (lane,) = claims.calendar(lab, BOB, "", began, lab.now() + HOUR)
    assert (lane.spans[0].kind, lane.spans[0].end_ns, lane.spans[0].about) == ("step", lab.now(), False)


def test_a_step_with_a_time_limit_and_a_claim_for_good_are_no_estimates(lab: Lab) -> None:
    add(lab, "limited")
    add(lab, "owned", owner="ann")
    took = take(lab, 1, "limited", length_ns=2 * HOUR)
    ask(lab, ANN, "owned", kind="permanent")
    waits = ask(lab, BOB, "limited", 5).waits
    assert took and waits and waits.likely_ns == waits.at_latest_ns == lab.now() + 2 * HOUR
    assert waits.why == ("limited is ann's",)
    with pytest.raises(Conflict) as raised:
        ask(lab, CAT, "limited", 1, not_before_ns=lab.now() + HOUR)
    assert raised.value.hint == "free for so long from 2026-11-29 12:00 UTC"
    with pytest.raises(Conflict) as raised:
        ask(lab, CAT, "owned", 1, not_before_ns=lab.now() + 24 * HOUR)
    assert raised.value.hint == "nothing is free later either"
    spans = [span for lane in claims.calendar(lab, BOB) for span in lane.spans]
    assert [(span.end_ns, span.about) for span in spans] == [(lab.now() + 2 * HOUR, False), (None, False)]


def test_a_step_gets_the_machine_that_was_thought_of_if_it_can_be_had(lab: Lab) -> None:
    small, big = add(lab, "host2", mem=32 * GIB), add(lab, "host1", mem=64 * GIB)
    kept = add(lab, "host3", mem=64 * GIB, owner="cat", policy=Policy(users=("cat",)))
    first = take(lab, 1, likely=big.id)
    assert first and first.machine_id == big.id
    assert take(lab, 2, "mem>=64GiB", likely=small.id) is None  # it is not as the step wants
    assert take(lab, 2, "mem>=64GiB", likely=kept.id) is None  # its owner does not let the step have it
    second = take(lab, 2, likely=big.id)  # somebody has it meanwhile: another one
    assert second and second.machine_id == small.id


# -- preparing ----------------------------------------------------------------------------------------------------


def test_a_machine_that_fails_is_suspect_and_the_next_is_tried(lab: Lab, clock: Clock) -> None:
    add(lab, "host1", mem=16 * GIB, address="ssh://root@host1")
    add(lab, "host2", mem=32 * GIB, address="ssh://root@host2")
    got = ask(lab, ANN, "host*", 10)
    assert (got.state, got.machine) == ("preparing", "host1")
    assert machines.get(lab, ANN, "host1").state == "preparing"
    assert claims.prepared(lab, got.id, got.fencing, "mem 16GiB is 8GiB now") == "preparing"
    first = machines.get(lab, ANN, "host1")
    assert (first.state, first.state_reason) == ("suspect", "was prepared for ann: mem 16GiB is 8GiB now")
    again = claims.get(lab, ANN, got.id)
    assert again.machine == "host2" and again.fencing > got.fencing
    # What comes late of the first try is of no account.
    assert claims.prepared(lab, got.id, got.fencing, None) is None
    clock.move(600)
    assert claims.prepared(lab, again.id, again.fencing, None) == "active"
    done = claims.get(lab, ANN, got.id)
    # The time that preparing took is not the holder's.
    assert (done.state, done.until_ns) == ("active", lab.now() + 10 * HOUR)
    assert [one["reason"] for one in events(lab, "claim.next")] == ["mem 16GiB is 8GiB now"]


def test_when_all_fail_it_waits_and_says_so(lab: Lab) -> None:
    add(lab, "host1", address="virtual:host1")
    got = ask(lab, ANN, "host1")
    assert claims.prepared(lab, got.id, got.fencing, "does not boot") == "waiting"
    waits = claims.get(lab, ANN, got.id).waits
    assert waits and waits.why == ("host1 is suspect: was prepared for ann: does not boot",)


def test_a_release_while_it_is_prepared(lab: Lab) -> None:
    add(lab, "host1", address="ssh://root@host1")
    got = ask(lab, ANN, "host1")
    claims.release(lab, ANN, got.id)
    # Somebody may still be at work on it: nobody else gets it until that is over.
    number = machines.get(lab, ANN, "host1").id
    claims.let_go(lab, {number})
    assert machines.get(lab, ANN, "host1").state == "preparing"
    claims.let_go(lab, set())
    assert machines.get(lab, ANN, "host1").state == "ready"
    assert claims.prepared(lab, got.id, got.fencing, None) is None


@pytest.mark.parametrize(
    ("address", "policy", "method"),
    [
        (None, Policy(), "none"),
        ("ssh://root@host1", Policy(), "check"),
        ("virtual:host1", Policy(), "full"),
        ("virtual:host1", Policy(prepare="none"), "none"),
        ("ssh://root@host1", Policy(prepare="full"), "full"),
    ],
)
def test_how_a_machine_is_prepared(lab: Lab, address: str | None, policy: Policy, method: str) -> None:
    add(lab, "host1", address=address, policy=policy)
    with lab.store.read() as connection:
        assert claims.how_prepared(connection, machines.find(connection, "host1")) == method


# -- calendar -----------------------------------------------------------------------------------------------------


def test_the_calendar_has_what_was_is_and_will_be(lab: Lab, clock: Clock) -> None:
    add(lab, "host1")
    add(lab, "host2")
    past = ask(lab, ANN, "host1", 10)
    clock.move(3600)
    claims.release(lab, ANN, past.id)
    now = ask(lab, BOB, "host1", 10)
    later = ask(lab, CAT, "host1", 2, not_before_ns=lab.now() + 20 * HOUR)
    lanes = claims.calendar(lab, ANN, "host*", lab.now() - DAY, lab.now() + DAY)
    assert [lane.machine for lane in lanes] == ["host1", "host2"]
    assert [(span.claim_id, span.holder) for span in lanes[0].spans] == [
        (past.id, "ann"),
        (now.id, "bob"),
        (later.id, "cat"),
    ]
    assert [lane.spans for lane in claims.calendar(lab, ANN, "", lab.now() + 11 * HOUR, lab.now() + 12 * HOUR)] == [
        (),
        (),
    ]


def test_nobody_without_a_role_reserves(lab: Lab) -> None:
    add(lab, "host1")
    with pytest.raises(Forbidden):
        ask(lab, with_roles("eve", ["viewer"]), "host1")
    with pytest.raises(EvenkeelError):
        claims.waiting(lab, with_roles("eve", []))
