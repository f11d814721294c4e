"""The pool on a real PostgreSQL: predicates mean the same, and claims, search and use work as on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select

from evenkeel.lab import claims, energy, flat, machines, migrate, power_budget, schema, search, usage
from evenkeel.lab.actor import Conflict
from evenkeel.lab.claims import Request
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import HOUR
from evenkeel.lab.machines import Edit, Policy
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.store import Store
from tests.lab.conftest import Clock
from tests.lab.pool import ANN, BOB, GIB, ROOT, add
from tests.lab.postgres import BIN
from tests.lab.test_postgres import server

__all__ = ["server"]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(BIN is None, reason="no PostgreSQL (Debian package postgresql)"),
]


@pytest.fixture
def team(server: Callable[[], str], tmp_path: Path, clock: Clock) -> Iterator[Lab]:
    """A lab on PostgreSQL."""
    with Store(server(), clock=clock, steady=clock.steady) as store:
        migrate.migrate(store)
        yield Lab(tmp_path, store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NIC.driver:A",
        'nic.driver:"a%b"',
        "nic.driver:a*",
        "nic.driver:?",
        "nic.driver:a\\*",
        "nic.driver:*%*",
        "nic.driver:*_b",
        "nic.driver!=ab",
        "nic.driver:*",
        "NOT site:prg",
        "site:PRG OR mem>=8GiB",
        "mem:1GiB..8GiB",
        "mem<8GiB NOT nic.driver:ab",
        "kernel.version>=6.12 kernel.version<6.13",
        "kernel.version:6.*",
        "label.x>=8",
        "label.x:8",
        'nic.driver:"a\\\\b" OR nic.driver:é',
        "(site:prg OR site:nue) cpu.threads:1..2.5",
    ],
)
def test_predicates_mean_the_same(team: Lab, text: str) -> None:
    pool: list[dict[str, list[str | float]]] = [
        {
            "name": ["m0"],
            "site": ["PRG"],
            "nic.driver": ["a", "ab"],
            "mem": [8 * GIB],
            "kernel.version": ["6.12.3-rt5"],
        },
        {"name": ["m1"], "site": ["nue"], "nic.driver": ["a%b", "a_b"], "mem": [GIB], "label.x": ["8"]},
        {"name": ["m2"], "nic.driver": ["a\\b", "é"], "cpu.threads": [1, 2.5], "label.x": ["nan"]},
        {"name": ["m3"], "kernel.version": ["6.1", "none"], "mem": [4 * GIB]},
    ]

    def fill(connection: Connection) -> None:
        row = {"state": "ready", "state_since_ns": 0, "identity": {}, "policy": {}, "registered_ns": 0}
        for facts in pool:
            name, site = str(facts["name"][0]), str(facts.get("site", [""])[0])
            connection.execute(insert(schema.machine).values(row | {"id": name, "name": name, "site": site}))
            rows = [
                {"machine_id": name, "key": key, "text": flat.text_of(one), "num": flat.number_of(key, one)}
                for key, values in facts.items()
                for one in values
            ]
            connection.execute(insert(schema.fact), rows)

    team.store.write(fill)
    predicate = Predicate.parse(text)
    with team.store.read() as connection:
        found = set(connection.scalars(select(schema.machine.c.id).where(predicate.where())))
    assert found == {str(facts["name"][0]) for facts in pool if predicate.matches(facts)}


def test_a_day_of_the_pool(team: Lab, clock: Clock) -> None:
    for number in range(4):
        add(team, f"host{number}", mem=(16 << number) * GIB, driver=("ice", "igb")[number % 2], owner="ann")
    machines.edit(team, ROOT, "host1", Edit(site="prg", policy=Policy(tags=("fast",), labels={"rack": "7"})))
    found = search.find(team, BOB, "mem>=32GiB NOT nic.driver:mlx5_core", limit=2)
    assert ([line.name for line in found.items], found.total) == (["host1", "host2"], 3)
    assert {facet.key for facet in found.facets} >= {"nic.driver"}
    assert [line.name for line in search.find(team, BOB, "label.rack>=7 tag:fast").items] == ["host1"]
    assert search.find(team, BOB, "igb").instead[0].predicate == "nic.driver:igb"

    first = claims.request(team, BOB, Request(predicate="host0", reason="x", length_ns=4 * HOUR))
    waits = claims.request(team, ANN, Request(predicate="host0", reason="y", length_ns=HOUR))
    assert (first.state, waits.state) == ("active", "waiting")
    assert waits.waits and waits.waits.at_latest_ns == first.until_ns
    start = team.now() + 10 * HOUR
    claims.request(team, BOB, Request(predicate="host1", reason="z", length_ns=HOUR, not_before_ns=start))
    with pytest.raises(Conflict):
        claims.request(team, ANN, Request(predicate="host1", reason="z", length_ns=HOUR, not_before_ns=start))

    def take(connection: Connection) -> claims.Taken | None:
        wanted = Predicate.parse("mem>=64GiB")
        return claims.take_for_step(team, connection, step_id=1, predicate=wanted, holder="bob")

    taken = team.store.write(take)
    assert taken and taken.machine == "host2"
    clock.move(5 * 3600)
    assert claims.tick(team) is not None
    assert claims.get(team, ANN, waits.id).state == "active"
    assert team.store.write(lambda connection: claims.release_step(team, connection, 1, "passed")) == [taken.machine_id]
    assert [lane.machine for lane in claims.calendar(team, ANN) if lane.spans] == ["host0", "host1"]
    used = {one.machine: one for one in usage.use(team, ANN).machines}
    assert used["host3"].claimed == 0 and used["host2"].claimed > 0.9
    machines.retire(team, ROOT, "host3", "old")
    assert search.find(team, ANN).total == 3


def test_a_letter_that_is_not_ascii_is_the_same_for_search_and_reservations(
    server: Callable[..., str], tmp_path: Path, clock: Clock
) -> None:
    # Not the locale of whoever runs the test: this one has more capital letters than A to Z.
    url = server("--locale=C.UTF-8", "--template=template0", "--encoding=UTF8")
    with Store(url, clock=clock, steady=clock.steady) as store:
        migrate.migrate(store)
        lab = Lab(tmp_path, store)
        with store.read() as connection:
            assert connection.scalar(select(func.lower("ÚSTÍ"))) == "ústí"
        add(lab, "host1")
        machines.edit(lab, ROOT, "host1", Edit(site="ÚSTí", team="Kernel"))
        for text, count in (("site:Ústí", 1), ("site:ÚS*", 1), ("site:ústí", 0), ("team:KERNEL", 1)):
            assert search.find(lab, ANN, text).total == count, text
            with store.read() as connection:
                where = search.condition(Predicate.parse(text))
                assert len(connection.execute(select(schema.machine.c.id).where(where)).all()) == count, text
        made = claims.request(lab, ANN, Request(predicate="site:Ústí", reason="x", length_ns=HOUR))
        assert made.machine == "host1"


def test_a_power_budget_holds(team: Lab) -> None:
    for name in ("host1", "host2"):
        add(team, name)
        machines.edit(team, ROOT, name, Edit(site="rack-a"))
    host1 = machines.get(team, ANN, "host1").id
    team.store.write(lambda connection: energy.keep_reading(team, connection, host1, 350.5, "ipmi"))
    found = power_budget.put(team, ROOT, "rack-a", power_budget.Wanted(watts=700, assumed_watts=400))
    assert (found.counted_watts, found.assumed) == (750.5, 1)
    asked = Request(predicate="host1", reason="to test it", length_ns=HOUR)
    waiting = claims.request(team, ANN, asked)
    assert waiting.waits is not None and waiting.waits.why[0].endswith("and 750 of 700 W are taken")
    power_budget.put(team, ROOT, "rack-a", power_budget.Wanted(watts=800, assumed_watts=400))
    claims.tick(team)
    assert claims.get(team, ANN, waiting.id).state == "active"
    machines.edit(team, ROOT, "host2", Edit(policy=Policy(draw_watts=300, idle_watts=120.5)))
    assert power_budget.budgets(team, ANN)[0].counted_watts == 471
    power_budget.remove(team, ROOT, "rack-a")
    assert power_budget.budgets(team, ANN) == []
