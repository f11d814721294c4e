"""Search: pages of it, facets that count right and follow changes, kept searches, and how machines were used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from evenkeel.lab import claims, flat, machines, search, usage
from evenkeel.lab import facets as facets_of_all
from evenkeel.lab.actor import Forbidden, NotFound, with_roles
from evenkeel.lab.claims import Request
from evenkeel.lab.facets import index_of
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import DAY, HOUR
from evenkeel.lab.machines import Edit, Policy
from evenkeel.lab.predicate import Predicate, PredicateError
from evenkeel.lab.schema import machine
from evenkeel.lab.search import Found, Save
from tests.lab.conftest import Clock
from tests.lab.pool import ANN, BOB, GIB, ROOT, add, facts

Ask = Callable[..., TestClient]


def names(found: Found) -> list[str]:
    return [line.name for line in found.items]


def counted_by_hand(lab: Lab, text: str) -> dict[str, Counter[str]]:
    """Facets by looking at each machine."""
    predicate = Predicate.parse(text)
    with lab.store.read() as connection:
        fitting = [one for one in machines.flat_of(connection).values() if predicate.matches(one)]
    keys = [key for key, known in flat.KEYS.items() if known.facet]
    counts = {key: Counter(flat.text_of(v) for one in fitting for v in one.get(key, ())) for key in keys}
    asked = {term.key for term in predicate.terms()}
    return {key: count for key, count in counts.items() if len(count) > (key not in asked)}


def facets(found: Found) -> dict[str, Counter[str]]:
    return {facet.key: Counter({value.value: value.count for value in facet.values}) for facet in found.facets}


@pytest.fixture
def pool(lab: Lab) -> Lab:
    for number in range(12):
        add(
            lab,
            f"host{number:02}",
            mem=(16 << number % 4) * GIB,
            driver=("ice", "igb", "mlx5_core")[number % 3],
            policy=Policy(tags=("fast",) if number % 5 == 0 else ("slow", "old")),
            team="kernel" if number % 2 else "virt",
        )
    machines.edit(lab, ROOT, "host03", Edit(site="nue"))
    machines.edit(lab, ROOT, "host04", Edit(site="prg"))
    machines.retire(lab, ROOT, "host11", "old")
    return lab


def test_pages_of_what_was_found(pool: Lab) -> None:
    first = search.find(pool, ANN, "mem>=32GiB", limit=3)
    assert (names(first), first.total) == (["host01", "host02", "host03"], 8)
    second = search.find(pool, ANN, "mem>=32GiB", limit=3, after=first.next)
    last = search.find(pool, ANN, "mem>=32GiB", limit=3, after=second.next)
    assert names(second) + names(last) == ["host05", "host06", "host07", "host09", "host10"]
    assert last.next is None
    line = first.items[0]
    assert line.told["mem"] == (32 * GIB,) and line.team == "kernel"


def test_retired_machines_are_found_when_asked_for(pool: Lab) -> None:
    assert "host11" not in names(search.find(pool, ANN))
    assert names(search.find(pool, ANN, "state:retired")) == ["host11"]


@pytest.mark.parametrize(
    "text",
    [
        "mem>=32GiB",
        "NOT nic.driver:igb state:*",
        "host0* state:ready",
        "(site:prg OR site:nue) NOT vendor:dell* cpu.threads:1..",
        "tag:old OR mem<32GiB",
    ],
)
def test_facets_are_what_looking_at_each_machine_counts(pool: Lab, text: str) -> None:
    if "state" not in text:
        text = f"({text}) state!=retired"
    assert facets(search.find(pool, ANN, text)) == counted_by_hand(pool, text)


def test_facets_follow_changes(pool: Lab) -> None:
    text = "state!=retired"
    assert facets(search.find(pool, ANN, text)) == counted_by_hand(pool, text)
    identity = machines.get(pool, ROOT, "host02").identity
    machines.update_facts(pool, ROOT, "host02", facts("host02", driver="bnxt_en", macs=identity.macs))
    machines.edit(pool, ROOT, "host03", Edit(policy=Policy(tags=("new",))))
    machines.mark(pool, ROOT, "host04", "broken", "fan")
    add(pool, "host20", driver="tg3")
    by_hand = counted_by_hand(pool, text)
    assert by_hand["nic.driver"]["bnxt_en"] == by_hand["tag"]["new"] == by_hand["nic.driver"]["tg3"] == 1
    assert facets(search.find(pool, ANN, text)) == by_hand
    assert names(search.find(pool, ANN, by_term(search.find(pool, ANN), "nic.driver", "tg3"))) == ["host20"]


def test_what_is_found_and_its_order_follow_changes(pool: Lab) -> None:
    text = "(nic.driver:ice OR tag:new) NOT site:nue"
    assert names(search.find(pool, ANN, text)) == ["host00", "host06", "host09"]
    machines.edit(pool, ROOT, "host06", Edit(name="zeus"))
    machines.edit(pool, ROOT, "host09", Edit(site="nue"))
    machines.edit(pool, ROOT, "host10", Edit(policy=Policy(tags=("new",))))
    add(pool, "ares", driver="ice")
    machines.retire(pool, ROOT, "host00", "old")
    assert names(search.find(pool, ANN, text)) == ["ares", "host10", "zeus"]
    first = search.find(pool, ANN, limit=3)
    assert names(first) == ["ares", "host01", "host02"]
    machines.edit(pool, ROOT, "host02", Edit(name="apollo"))  # the last one of the page goes before it
    assert names(search.find(pool, ANN, limit=3, after=first.next)) == ["host03", "host04", "host05"]
    machines.edit(pool, ROOT, "zeus", Edit(name="host06"))
    assert names(search.find(pool, ANN, text, limit=1, after=search.find(pool, ANN, text, limit=1).next)) == ["host06"]


@pytest.mark.parametrize("many", [200, 3])
def test_a_view_stays_as_it_is_while_others_follow(pool: Lab, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when so much changed that the index reads all anew."""
    monkeypatch.setattr(facets_of_all, "_MANY", many)
    index, text = index_of(pool), Predicate.parse("site:nue OR tag:fast")
    with pool.store.read() as connection:
        before = index.follow(connection)
        fit = search.fitting(before, connection, text)
    found, counted, told = before.by_name(fit, 0, 99), before.counts(fit), dict(before.told(before.by_name(fit, 0, 99)))
    for number in range(11):
        machines.edit(pool, ROOT, f"host{number:02}", Edit(site=f"site{number}"))
    add(pool, "ares", driver="tg3")
    machines.edit(pool, ROOT, "host03", Edit(name="zeus", policy=Policy(tags=("new",))))
    with pool.store.read() as connection:
        after = index.follow(connection)
    assert after.counts(fit) != counted
    assert (before.by_name(fit, 0, 99), before.counts(fit), before.told(found)) == (found, counted, told)
    # Bits of the older view mean the same machines in the newer one.
    assert set(after.by_name(fit, 0, 99)) == set(found)


def test_a_lab_that_got_the_right_to_write_reads_all_anew(pool: Lab) -> None:
    assert search.find(pool, ANN, "site:prg").total == 1
    # What a database brings that was taken over from a copy: other rows under the same numbers of events.
    pool.store.write(lambda connection: connection.execute(update(machine).values(site="brq")))
    assert search.find(pool, ANN, "site:brq").total == 0
    pool.store.holds += 1
    assert search.find(pool, ANN, "site:brq").total == 11


def by_term(found: Found, key: str, value: str) -> str:
    return next(v.predicate for facet in found.facets if facet.key == key for v in facet.values if v.value == value)


def test_a_word_that_is_no_name_is_looked_for_in_the_facts(pool: Lab) -> None:
    found = search.find(pool, ANN, "mlx5")
    assert found.total == 0
    assert [(one.predicate, one.count) for one in found.instead] == [("nic.driver:mlx5_core", 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mem>=9TiB", "mem>=9TiB alone finds none: mem is 16.0 GiB to 128 GiB here"),
        ("nic.driver:tg3 mem>=1GiB", "nic.driver:tg3 alone finds none: nic.driver is ice, igb, mlx5_core here"),
        ("site:brq", "site:brq alone finds none: site is nue, prg here"),
        ("sriov.vfs>=9", "sriov.vfs is 8 here"),
        ("cpu.flag:amx_tile", "others have other values"),
        ("tool:sparse", "no machine has tool"),
        ("host3", "did you mean host03"),
        ("zebra", "a bare word is a name"),
        ("name:host03 site:prg", "each term alone finds some"),
    ],
)
def test_who_finds_nothing_is_told_what_there_is(pool: Lab, text: str, said: str) -> None:
    found = search.find(pool, ANN, text)
    assert found.total == 0 and said in found.nearest


def test_kept_searches(pool: Lab) -> None:
    search.save(pool, ANN, "mine", Save(predicate="mem>=32GiB"))
    search.save(pool, ANN, "ours", Save(predicate="site:prg", shared=True))
    search.save(pool, ANN, "mine", Save(predicate="mem>=64GiB"))
    assert [(one.name, one.predicate) for one in search.saved(pool, ANN)] == [
        ("mine", "mem>=64GiB"),
        ("ours", "site:prg"),
    ]
    assert [(one.owner, one.name) for one in search.saved(pool, BOB)] == [("ann", "ours")]
    with pytest.raises(PredicateError):
        search.save(pool, ANN, "bad", Save(predicate="mem>=64GB"))
    with pytest.raises(NotFound):
        search.forget(pool, BOB, "ours")
    search.forget(pool, ANN, "ours")
    assert search.saved(pool, BOB) == []


# -- use ----------------------------------------------------------------------------------------------------------


def test_use_is_counted_from_claims(lab: Lab, clock: Clock) -> None:
    for name in ("busy", "never", "once"):
        add(lab, name)
    begin = lab.now()
    once = claims.request(lab, ANN, Request(predicate="once", reason="x", length_ns=10 * HOUR))
    clock.move(10 * 3600)
    claims.tick(lab)
    assert claims.get(lab, ANN, once.id).state == "ended"
    claims.request(lab, BOB, Request(predicate="busy", reason="x", length_ns=10 * DAY))
    clock.move(30 * 3600)
    machines.mark(lab, ROOT, "never", "broken", "fan")
    clock.move(3600)
    pool = usage.use(lab, ANN, start_ns=begin, order="name")
    used = {one.machine: one for one in pool.machines}
    assert [used[name].claimed for name in ("busy", "never", "once")] == [31 / 41, 0, 10 / 41]
    assert [used[name].idle_ns for name in ("busy", "never", "once")] == [0, 41 * HOUR, 31 * HOUR]
    assert used["never"].not_green_ns == HOUR and used["busy"].not_green_ns is None
    assert (pool.never, pool.not_green) == (1, 1)
    half = usage.use(lab, ANN, "once", start_ns=begin + 5 * HOUR, end_ns=begin + 15 * HOUR).machines[0]
    assert half.claimed == 0.5
    assert [one.machine for one in usage.use(lab, ANN, order="idle").machines] == ["never", "once", "busy"]


def test_owners_see_their_machines_that_are_not_green(lab: Lab, clock: Clock) -> None:
    add(lab, "host1", owner="ann")
    add(lab, "host2", owner="", team="kernel")
    add(lab, "host3", owner="bob")
    for name in ("host1", "host2", "host3"):
        machines.mark(lab, ROOT, name, "suspect", "slow")
        clock.move(60)
    dan = with_roles("ann", ["user"], ["kernel"])
    assert [one.machine for one in usage.mine_not_green(lab, dan)] == ["host1", "host2"]
    assert [one.machine for one in usage.mine_not_green(lab, ANN)] == ["host1"]
    with pytest.raises(Forbidden):
        usage.use(lab, with_roles("eve", []))


# -- REST ---------------------------------------------------------------------------------------------------------


def test_machines_over_rest(ask: Ask) -> None:
    root, ann = ask("root", "admin"), ask("ann")
    made = root.post("/api/v1/machines", json={"name": "host1", "facts": facts("host1").model_dump(mode="json")})
    assert made.status_code == 201 and made.json()["was"] == "new"
    assert ann.post("/api/v1/machines", json={"name": "host2"}).status_code == 403
    found = ann.get("/api/v1/machines", params={"q": "nic.driver:mlx5_core mem>=32GiB"}).json()
    assert [line["name"] for line in found["items"]] == ["host1"]
    wrong = ann.get("/api/v1/machines", params={"q": "mem>=32GB"})
    assert wrong.status_code == 422
    assert (wrong.json()["where"]["column"], wrong.json()["hint"]) == (6, "did you mean 32GiB?")
    etag = ann.get("/api/v1/machines/host1").headers["etag"]
    assert root.patch("/api/v1/machines/host1", json={"site": "prg"}).status_code == 428
    changed = root.patch("/api/v1/machines/host1", json={"site": "prg"}, headers={"If-Match": etag})
    assert changed.status_code == 200 and changed.json()["site"] == "prg"
    assert root.patch("/api/v1/machines/host1", json={"site": "nue"}, headers={"If-Match": etag}).status_code == 412
    assert root.patch("/api/v1/machines/host1", json={"state": "ready"}, headers={"If-Match": "*"}).status_code == 422
    new = {"facts": facts("host1", mem=32 * GIB).model_dump(mode="json")}
    assert root.post("/api/v1/machines/host1/facts", json=new).json()[0]["key"] == "mem"
    assert ann.get("/api/v1/machines/host1/facts").json()["mem"] == [32 * GIB]
    assert ann.get("/api/v1/machines/host1/snapshot").json()["facts"]["kind"] == "Facts"
    assert (
        root.post("/api/v1/machines/host1/state", json={"state": "broken", "reason": "fan"}).json()["state"] == "broken"
    )
    kinds = [one["type"] for one in ann.get("/api/v1/machines/host1/history").json()["items"]]
    assert kinds == ["machine.state", "machine.facts", "machine.edited", "machine.facts", "machine.registered"]
    assert ann.get("/api/v1/use/not-green").json() == []
    assert root.get("/api/v1/use/not-green").json()[0]["machine"] == "host1"
    assert ann.put("/api/v1/searches/big", json={"predicate": "mem>=1TiB"}).status_code == 200
    assert ann.delete("/api/v1/searches/big").status_code == 204
    assert root.post("/api/v1/machines/host1/retire", json={}).json()["state"] == "retired"


def test_claims_over_rest(ask: Ask, lab: Lab) -> None:
    add(lab, "host1")
    ann, bob = ask("ann"), ask("bob")
    made = ann.post("/api/v1/claims", json={"predicate": "host1", "reason": "a bug", "length_ns": "2h"})
    assert made.status_code == 201 and made.json()["length_ns"] == 2 * HOUR
    number = made.json()["id"]
    waits = bob.post("/api/v1/claims", json={"predicate": "mem>=1GiB", "reason": "another"}).json()
    assert (waits["state"], waits["waits"]["position"]) == ("waiting", 1)
    assert [one["holder"] for one in ann.get("/api/v1/claims/waiting").json()] == ["bob"]
    assert bob.post(f"/api/v1/claims/{number}/extend", json={"by_ns": "1h"}).status_code == 403
    assert ann.post(f"/api/v1/claims/{number}/extend", json={"by_ns": "1h"}).status_code == 409
    assert ann.post(f"/api/v1/claims/{number}/release", json={}, headers={"If-Match": '"1"'}).status_code == 412
    assert ann.post(f"/api/v1/claims/{number}/release", json={}).json()["state"] == "ended"
    assert bob.get("/api/v1/claims", params={"holder": "bob"}).json()["items"][0]["state"] == "active"
    assert [lane["machine"] for lane in ann.get("/api/v1/calendar").json()] == ["host1"]
    assert len(ann.get("/api/v1/machines/host1/claims").json()["items"]) == 2
    assert ann.post("/api/v1/claims", json={"predicate": "host1", "reason": "x", "length_ns": 0}).status_code == 422


# -- how text is compared, and what is told of a search that finds nothing ------------------------------------------


def test_a_word_with_an_underline_is_looked_for_as_it_is(pool: Lab) -> None:
    assert [one.predicate for one in search.find(pool, ANN, "mlx5_core").instead] == ["nic.driver:mlx5_core"]
    # Neither of the two signs that LIKE knows stands for anything else.
    assert search.find(pool, ANN, "mlx5xcore").instead == search.find(pool, ANN, "i_e").instead == ()
    assert search.find(pool, ANN, '"i%"').instead == ()


def test_facets_count_what_their_terms_find(pool: Lab) -> None:
    for name, site, team in (("host00", "PRG", "Kernel"), ("host01", "Ústí", "virt"), ("host02", "ústí", "virt")):
        machines.edit(pool, ROOT, name, Edit(site=site, team=team))
    found = search.find(pool, ANN)
    counted = {facet.key: {one.predicate: one.count for one in facet.values} for facet in found.facets}
    assert counted["site"] == {"site:prg": 2, "site:nue": 1, "site:Ústí": 1, "site:ústí": 1}
    assert sum(counted["team"].values()) == found.total
    for predicate, count in (counted["site"] | counted["team"]).items():
        assert search.find(pool, ANN, predicate).total == count, predicate
        with pool.store.read() as connection:  # as reservations and steps ask it
            wanted = search.condition(Predicate.parse(predicate))
            assert len(connection.execute(select(machine.c.id).where(wanted)).all()) == count, predicate
    machines.edit(pool, ROOT, "host00", Edit(site="nue"))  # the index follows
    assert facets(search.find(pool, ANN))["site"] == {"prg": 1, "nue": 2, "Ústí": 1, "ústí": 1}


@pytest.mark.parametrize(
    ("text", "retired"),
    [
        ("state!=broken", False),
        ("NOT state:ready", False),
        ("state:ready,broken", False),
        ("NOT (NOT (state:retired OR state:ready) OR site:nue)", True),
        ("state:*", True),
        ("state:ret*", True),
        ("state:ready OR state:retired", True),
    ],
)
def test_only_who_asks_for_retired_machines_finds_them(pool: Lab, text: str, retired: bool) -> None:
    assert ("host11" in names(search.find(pool, ANN, text))) is retired
    with pool.store.read() as connection:
        found = connection.scalars(select(machine.c.name).where(search.condition(Predicate.parse(text))))
        assert ("host11" in list(found)) is retired


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NOT tag:foo site:prg cpu.threads>=999", "cpu.threads>=999 alone finds none: cpu.threads is 8 here"),
        ("NOT arch:* site:prg", "NOT arch:* leaves none: all machines here are so"),
        ("state:retired cpu.threads>=999", "cpu.threads>=999 alone finds none"),
        ("state:retired site:prg", "each term alone finds some"),
        ("(tag:foo OR tag:fast) site:brq", "site:brq alone finds none"),
        ("(tag:foo OR tag:bar) site:prg", "tag:bar OR tag:foo alone finds none: tag is old, slow, fast here"),
        ("(tag:foo OR site:brq) state:ready", "site:brq OR tag:foo alone finds none"),
    ],
)
def test_what_is_blamed_for_finding_nothing_is_to_blame(pool: Lab, text: str, said: str) -> None:
    found = search.find(pool, ANN, text)
    assert found.total == 0
    assert said in found.nearest
