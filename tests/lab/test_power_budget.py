"""Power budgets of sites: what is beyond is neither given nor woken, waits with numbers, and begins in its turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, insert

from evenkeel.errors import EvenkeelError
from evenkeel.lab import boots, claims, energy, machines, power, power_budget, schema
from evenkeel.lab.actor import Forbidden, NotFound
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Edit, Policy
from evenkeel.lab.power_budget import Wanted
from evenkeel.lab.step_machines import StepMachines
from tests.lab.conftest import Clock
from tests.lab.pool import ANN, BOB, CAT, ROOT, add
from tests.lab.test_claims import ask, events, take
from tests.lab.test_dispatcher import Player, dispatcher, reason, run, send

__all__ = ["dispatcher"]  # fixture


def stand(lab: Lab, *names: str, draw: float | None = 400, idle: float | None = 100, site: str = "rack-a") -> None:
    """Machines at a site."""
    for name in names:
        add(lab, name, policy=Policy(draw_watts=draw, idle_watts=idle))
        machines.edit(lab, ROOT, name, Edit(site=site))


def limit(lab: Lab, watts: int, assumed: int = 500, site: str = "rack-a") -> power_budget.Budget:
    return power_budget.put(lab, ROOT, site, Wanted(watts=watts, assumed_watts=assumed))


def sleep(lab: Lab, *names: str) -> None:
    for name in names:
        machines.mark(lab, ROOT, name, "off", boots.ASLEEP)


def counted(lab: Lab) -> float:
    (found,) = power_budget.budgets(lab, ANN)
    return found.counted_watts


def test_what_is_beyond_the_budget_waits_and_begins_when_enough_is_given_back(lab: Lab) -> None:
    stand(lab, "host1", "host2")
    assert limit(lab, 700).counted_watts == 200
    first, second = ask(lab, ANN, "host1", 4), ask(lab, BOB, "host2", 4)
    assert (first.state, second.state, counted(lab)) == ("active", "waiting", 500)
    assert second.waits is not None
    assert second.waits.why == (
        "the power budget of rack-a keeps host2 back: it would count for 300 W more, and 500 of 700 W are taken",
    )
    # Likely when ann's time is over; others may be first, so it is nothing to rely on.
    assert (second.waits.likely_ns, second.waits.at_latest_ns) == (first.until_ns, None)
    claims.release(lab, ANN, first.id)
    assert claims.get(lab, ANN, second.id).state == "active"


def test_an_exact_fit_is_given_and_another_site_is_free(lab: Lab) -> None:
    stand(lab, "host1", "host2")
    stand(lab, "far", site="rack-b")
    limit(lab, 500)
    assert [ask(lab, ANN, name).state for name in ("host1", "host2", "far")] == ["active", "waiting", "active"]
    limit(lab, 800)
    claims.tick(lab)  # the keeper's, after the event
    assert claims.listing(lab, ANN, state="waiting").items == ()


def test_who_can_have_another_machine_gets_that_one(lab: Lab) -> None:
    stand(lab, "host1", "host2")
    stand(lab, "other", site="rack-b")
    limit(lab, 600)
    ask(lab, ANN, "host1")
    assert ask(lab, BOB, "mem>=1GiB").machine == "other"


def test_two_that_wait_do_not_get_the_room_of_one(lab: Lab) -> None:
    stand(lab, "host1", "host2", "host3")
    limit(lab, 600)
    first = ask(lab, ANN, "host1")
    for who, name in ((BOB, "host2"), (CAT, "host3")):
        assert ask(lab, who, name).state == "waiting"
    claims.release(lab, ANN, first.id)
    assert sorted(one.state for one in claims.listing(lab, ANN).items) == ["active", "waiting"]


def test_one_that_does_not_tell_counts_as_assumed_in_use_or_not(lab: Lab) -> None:
    stand(lab, "host1", draw=None, idle=None)
    found = limit(lab, 499)
    assert (found.counted_watts, found.assumed) == (500, 1)
    got = ask(lab, ANN, "host1")
    assert got.waits is not None
    assert got.waits.why[0].endswith("0 W more, as is assumed of what does not tell, and 500 of 499 W are taken")
    limit(lab, 499, assumed=300)
    claims.tick(lab)
    assert claims.get(lab, ANN, got.id).state == "active"


def test_readings_count_where_nothing_is_stated(lab: Lab, clock: Clock) -> None:
    stand(lab, "host1", "host2", draw=None, idle=None)
    machines.edit(lab, ROOT, "host2", Edit(policy=Policy(draw_watts=200)))
    host1 = machines.get(lab, ANN, "host1").id

    def read(connection: Connection, watts: float) -> None:
        energy.keep_reading(lab, connection, host1, watts, "ipmi")

    for watts in (120, 350, 180):
        lab.store.write(partial(read, watts=watts))
        clock.move(3600)
    found = limit(lab, 1000)
    assert (found.counted_watts, found.assumed) == (320, 0)  # of host2 what it draws idle is not known
    ask(lab, ANN, "host1")
    assert counted(lab) == 550
    clock.move(31 * 86400)
    lab.store.write(partial(read, watts=90))
    assert counted(lab) == 290  # the old ones are forgotten


def test_maintenance_is_counted_and_not_refused(lab: Lab) -> None:
    stand(lab, "host1")
    limit(lab, 10)
    assert ask(lab, ROOT, "host1", kind="maintenance").state == "active"
    assert counted(lab) == 400


def test_what_is_switched_counts_until_it_is_done(lab: Lab) -> None:
    stand(lab, "host1")
    limit(lab, 1000)
    sleep(lab, "host1")
    assert counted(lab) == 0
    row = {"machine_id": machines.get(lab, ANN, "host1").id, "actor": "lab", "at_ns": lab.now(), "tried": []}
    for action, watts in (("off", 100), ("on", 400)):
        begun = insert(schema.power_event).values({**row, "action": action, "result": "running"})
        lab.store.write(methodcaller("execute", begun))
        assert counted(lab) == watts, action
        lab.store.write(lambda c: c.execute(schema.power_event.update().values(result="done")))


# -- waking -----------------------------------------------------------------------------------------------------------


def test_none_is_woken_beyond_the_budget(lab: Lab) -> None:
    stand(lab, "host1", "host2")
    limit(lab, 750)
    sleep(lab, "host1", "host2")
    for who, name in ((ANN, "host1"), (BOB, "host2")):
        ask(lab, who, name)
    # Each alone would fit.
    assert energy.wanted(lab) == [machines.get(lab, ANN, "host1").id]
    limit(lab, 399)
    assert energy.wanted(lab) == []
    (said,) = next(one for one in claims.waiting(lab, ANN) if one.holder == "ann").waits.why  # type: ignore[union-attr]
    assert said.endswith("400 W more, and 0 of 399 W are taken")


def test_one_that_became_too_much_meanwhile_is_not_switched_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stand(lab, "host1")
    limit(lab, 399)
    sleep(lab, "host1")
    said: list[str] = []

    def switch(lab: Lab, actor: Any, machine: str, action: str, *, first: Callable[..., None], answering: bool) -> Any:
        from evenkeel.lab import touch

        with lab.store.read() as connection:
            try:
                first(connection, touch.find(connection, machine))
            except EvenkeelError as error:
                said.append(error.message)
                raise
        raise AssertionError("it was switched on")

    monkeypatch.setattr(power, "switch", switch)
    energy.wake(lab, machines.get(lab, ANN, "host1").id)
    assert "keeps host1 back" in said[0]


def test_one_that_nobody_can_have_for_its_power_may_be_switched_off(lab: Lab, clock: Clock) -> None:
    stand(lab, "host1", "host2")
    machines.edit(lab, ROOT, "host2", Edit(policy=Policy.model_validate(
        {"draw_watts": 400, "idle_watts": 100, "auto_off": {"after": "1h"}})))  # fmt: skip
    limit(lab, 600)
    ask(lab, ANN, "host1", 50)
    ask(lab, BOB, "host2", 50)
    clock.move(2 * 3600)
    assert energy.spare(lab) == [machines.get(lab, ANN, "host2").id]


# -- the queue --------------------------------------------------------------------------------------------------------


def test_a_step_waits_for_power_says_so_and_begins_when_it_is_given_back(lab: Lab, dispatcher: Dispatcher) -> None:
    stand(lab, "host1", "host2")
    limit(lab, 600)
    held = ask(lab, ANN, "host1")
    agent = Player(dispatcher)
    agent.hello()
    sent = send(lab, boot={"step": {"machine": "host2"}})
    run(dispatcher)
    assert agent.starts() == []
    said = reason(dispatcher, sent.id)
    assert (said.code, said.number) == ("machines-power", 1)
    assert "keeps host2 back: it would count for 300 W more, and 500 of 600 W" in said.text
    claims.release(lab, ANN, held.id)
    run(dispatcher)
    assert len(agent.starts()) == 1


def test_the_writer_refuses_a_step_what_the_dispatcher_thought_free(lab: Lab) -> None:
    stand(lab, "host1", "host2")
    limit(lab, 500)
    assert take(lab, 1, "host1") is not None
    assert take(lab, 2, "host2") is None


def test_of_several_steps_of_a_turn_as_many_begin_as_have_room(lab: Lab) -> None:
    stand(lab, "host1", "host2", "host3")
    stand(lab, "far", site="rack-b")
    limit(lab, 650)
    pool = StepMachines(lab)
    pool.want(0, "", pool.whose("ann", ""))
    pool.look(facts=True)
    names = {machines.get(lab, ANN, name).id: name for name in ("host1", "host2", "host3", "far")}
    assert {names[one] for one in pool.free} == set(names.values())
    got = [names[one] for one in iter(lambda: pool.use(0), None)]
    assert got == ["far", "host1"]
    assert pool.free == frozenset() and pool.available == 0


@pytest.mark.parametrize("pool", [63, 630])
def test_a_budget_costs_a_choice_nothing_that_grows_with_the_pool(pool: int) -> None:
    """In lines of Python that run, which a busy machine does not make more."""
    draws = {f"m{n}": power_budget._Draw(f"m{n}", "rack-a", 100, 100, 400 + n, False, True) for n in range(pool)}
    found = power_budget.Rooms({"rack-a": 10**6}, draws)
    found.watch(draws)
    lines = 0

    def line(frame: object, event: str, arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        for one in draws:
            assert found.lets(one)
            found.take(one)
    finally:
        sys.settrace(before)
    assert 0 < lines / pool < 150


# -- who sets it ------------------------------------------------------------------------------------------------------


def test_only_an_admin_sets_it_and_the_log_says_who_and_what(lab: Lab) -> None:
    stand(lab, "host1")
    for change in (
        lambda: power_budget.put(lab, ANN, "rack-a", Wanted(watts=1)),
        lambda: power_budget.remove(lab, ANN, "rack-a"),
    ):
        with pytest.raises(Forbidden):
            change()
    with pytest.raises(NotFound) as wrong:
        limit(lab, 100, site="rack-q")
    assert wrong.value.hint == "sites are rack-a"
    limit(lab, 100)
    limit(lab, 200)
    power_budget.remove(lab, ROOT, "rack-a")
    assert [one["watts"] for one in events(lab, "power.budget")] == [
        {"old": None, "new": 100},
        {"old": 100, "new": 200},
        {"old": 200, "new": None},
    ]
    with pytest.raises(NotFound):
        power_budget.remove(lab, ROOT, "rack-a")


def test_by_rest_and_on_the_page(lab: Lab, ask: Callable[..., TestClient]) -> None:
    stand(lab, "host1")
    root, ann = ask("root", "admin"), ask("ann")
    assert root.put("/api/v1/power-budgets/rack-a", json={"watts": 0}).status_code == 422
    assert ann.put("/api/v1/power-budgets/rack-a", json={"watts": 900}).status_code == 403
    assert root.put("/api/v1/power-budgets/rack-a", json={"watts": 900}).json()["counted_watts"] == 100
    assert "900 W" in ann.get("/health/energy").text
    assert 'action="/health/energy/budgets"' not in ann.get("/health/energy").text
    done = root.post("/health/energy/budgets", data={"site": "rack-a", "watts": "50", "assumed_watts": "300"})
    assert done.status_code in (200, 303), done.text
    assert [one["watts"] for one in ann.get("/api/v1/power-budgets").json()] == [50]
    assert '<span class="chip warn">100 W</span>' in root.get("/health/energy").text
    assert "400 W, as its owner states; idle 100 W" in ann.get("/machines/host1").text
    assert root.post("/health/energy/budgets", data={"site": "rack-a", "watts": "-1"}).status_code == 422
    root.post("/health/energy/budgets/rack-a/remove")
    assert power_budget.budgets(lab, ANN) == []


def test_a_site_may_have_any_name(lab: Lab, ask: Callable[..., TestClient]) -> None:
    stand(lab, "host1", site="Prague 2/rack A")
    root = ask("root", "admin")
    path = "/api/v1/power-budgets/Prague%202%2Frack%20A"
    assert root.put(path, json={"watts": 900}).json()["site"] == "Prague 2/rack A"
    assert 'action="/health/energy/budgets/Prague%202/rack%20A/remove"' in root.get("/health/energy").text
    assert root.post("/health/energy/budgets/Prague%202/rack%20A/remove").status_code in (200, 303)
    assert root.delete(path).status_code == 404
