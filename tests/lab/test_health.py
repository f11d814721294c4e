"""Health: what is an event, who becomes suspect, lies, enclosures, hours; what idle machines draw, and their sleep."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, select, update

from evenkeel.lab import boots, claims, energy, health, power, schema, secrets, submissions, touch
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.health import _Found
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers.ssh import Boot
from evenkeel.lab.step import graph_of
from tests.lab.emulated import PASSWORD, EmulatedMachine, add_endpoint, add_machine, emulated_machine, ssh_endpoint
from tests.lab.test_power import events, state_of

ANN = with_roles("ann", ["user"])
MINUTE_NS = 60 * 10**9


def keep(lab: Lab, clock: Any, name: str = "host1", watts: float | None = None, **answers: bool | str) -> None:
    """What a look would have found, five minutes after the last one.  A text is the detail of an answer."""
    clock.move(300)
    with lab.store.read() as connection:
        machine = touch.find(connection, name)
    found = [
        _Found(probe, answer is not False, 10**6 if answer else None, answer if isinstance(answer, str) else "")  # type: ignore[arg-type]
        for probe, answer in answers.items()
    ]
    health._keep(lab, machine, found, None if watts is None else (watts, "ipmi"))


def test_one_failure_is_chance_two_are_an_event_and_three_make_suspect(lab: Lab, clock: Any) -> None:
    add_machine(lab)
    for answer in (True, False, True, False, False, False):
        keep(lab, clock, login=answer)
        assert state_of(lab) == ("suspect" if len(_rows(lab)) == 6 else "ready")
    assert events(lab) == ["health.down", "machine.state"]
    keep(lab, clock, login=True)
    assert (state_of(lab), events(lab)[-1]) == ("suspect", "health.up")
    keep(lab, clock, login=True)
    assert state_of(lab) == "ready"  # it is checked before anybody gets it


def _rows(lab: Lab) -> list[Any]:
    with lab.store.read() as connection:
        return list(connection.execute(select(schema.health)))


def test_what_a_holder_booted_may_let_nobody_in_and_its_machine_is_installed_all_the_same(lab: Lab, clock: Any) -> None:
    add_machine(lab, system_of="bob")
    for _ in range(5):
        keep(lab, clock, login=False)
    assert (state_of(lab), events(lab)) == ("ready", ["health.down"])
    with lab.store.read() as connection:
        found = touch.find(connection, "host1")
    assert found.system_of == "bob"
    lab.store.write(lambda c: c.execute(update(schema.machine).values(system_of="")))
    keep(lab, clock, login=False)
    assert state_of(lab) == "suspect"


def test_a_machine_that_somebody_judged_stays_as_it_is(lab: Lab, clock: Any) -> None:
    add_machine(lab, state="suspect", state_reason="it smells")
    for _ in range(3):
        keep(lab, clock, login=True)
    assert state_of(lab) == "suspect"


def test_a_dead_management_module_is_told_once(lab: Lab, clock: Any) -> None:
    add_machine(lab, "chassis")
    for blade in ("blade1", "blade2", "blade3"):
        add_machine(lab, blade, enclosure_id="chassis")
    for _ in range(3):
        for name in ("chassis", "blade1", "blade2", "blade3"):
            keep(lab, clock, name, bmc=False)
    assert events(lab) == ["health.down"]
    said = health.show(lab, ANN, "blade2").probes[0]
    assert said.detail == "the management module of chassis is dead"
    keep(lab, clock, "chassis", bmc=True)
    keep(lab, clock, "blade1", bmc=False)
    assert health.show(lab, ANN, "blade1").probes[0].detail == ""


def test_a_bmc_that_says_off_while_we_are_logged_in_is_told_once(lab: Lab, clock: Any) -> None:
    add_machine(lab)
    for bmc in ("power on", "power off", "power off", "power on", "power off"):
        keep(lab, clock, bmc=bmc, login="boot 12345678")
    assert events(lab) == ["power.lied", "power.honest", "power.lied"]
    keep(lab, clock, bmc="power on", login=False)  # nobody can tell whether that is true
    assert events(lab) == ["power.lied", "power.honest", "power.lied"]


def test_hours_are_rolled_up_and_the_history_stays_the_same(lab: Lab, clock: Any) -> None:
    add_machine(lab)
    since = lab.now()
    for number in range(30):
        keep(lab, clock, login=number % 10 != 0, ssh=True)
    before = health.history(lab, ANN, "host1", since)
    assert [(hour.probe, hour.asked, hour.ok) for hour in before][:2] == [("login", 11, 9), ("ssh", 11, 11)]
    assert health.roll_up(lab) == 0
    clock.move(13 * 3600)
    assert health.roll_up(lab) == 60
    assert (health.roll_up(lab), _rows(lab)) == (0, [])
    assert health.history(lab, ANN, "host1", since) == before


def test_a_real_look(lab: Lab, tmp_path: Path) -> None:
    with emulated_machine(tmp_path / "m") as machine:
        sshd = machine.start_ssh()
        add_machine(lab)
        ssh_endpoint(lab, "host1", sshd)
        found = {one.probe: one for one in health.look(lab, "host1")}
        assert set(found) == {"v4", "ssh", "login"} and all(one.ok for one in found.values()), found
        assert found["login"].detail.endswith("load 0.05") and found["ssh"].detail.startswith("SSH-2.0")
        assert health.check(lab, "host1") is None
        machine.fault("hung")
        assert (health.check(lab, "host1") or "").startswith("login: ssh ")
        assert health.show(lab, ANN, "host1").well is True  # the clock stands: the first look at a moment counts


def test_addresses_that_do_not_answer(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        add_machine(lab)
        add_endpoint(lab, "host1", "ssh", "ssh", f"ssh://root@127.0.0.1:{other.getsockname()[1]}")
        add_machine(lab, "host2")
        add_endpoint(lab, "host2", "ssh", "ssh", "ssh://root@[::1]:9")
        add_endpoint(lab, "host2", "bmc", "ipmi", "127.0.0.1:9", secret="gone")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(health, "_DEADLINE_S", 0.3)
            patch.setattr(health, "_LOGIN_S", 0.6)
            assert not {one.probe: one for one in health.look(lab, "host1")}["ssh"].ok
        found = {one.probe: one for one in health.look(lab, "host2")}
        assert set(found) == {"v6", "ssh", "login", "bmc"}
        assert (found["v6"].ok, found["ssh"].ok, found["bmc"].detail) == (True, False, "no secret gone")


# -- energy ---------------------------------------------------------------------------------------------------------


def claim(lab: Lab, state: str, began_ns: int | None, ended_ns: int | None = None, **more: Any) -> int:
    row: dict[str, Any] = {
        "kind": "reservation",
        "state": state,
        "holder": "ann",
        "predicate": "host1",
        "machine_id": "host1",
    }
    row |= {"reason": "test", "requested_ns": 0, "not_before_ns": 0, "began_ns": began_ns, "ended_ns": ended_ns} | more
    done = lab.store.write(lambda c: c.execute(insert(schema.claim).values(row)).inserted_primary_key)
    return int(done[0])  # type: ignore[index]


def test_what_idle_machines_draw(lab: Lab, clock: Any) -> None:
    now = lab.now()
    for name in ("host1", "host2", "host3"):
        add_machine(lab, name, registered_ns=now - 10 * energy.DAY_NS)
    claim(lab, "ended", now - 5 * energy.DAY_NS, now)
    keep(lab, clock, "host1", watts=100, login="boot 1, load 0.02")
    keep(lab, clock, "host2", watts=200, login="boot 1, load 0.02")
    keep(lab, clock, "host3", login="boot 1, load 7.50")
    clock.at_ns = now
    keep(lab, clock, "host2", watts=999)  # within a quarter of an hour
    clock.at_ns = now
    found = energy.report(lab, ANN, 10 * energy.DAY_NS)
    assert [(one.machine, one.idle, one.idle_kwh, one.candidate) for one in found.machines] == [
        ("host2", 1.0, 48.0, True),
        ("host1", 0.5, 12.0, False),
        ("host3", 1.0, None, False),
    ]
    assert (found.idle_kwh, found.untold) == (60.0, 1)


def test_only_what_its_owner_allows_and_nobody_wants_is_switched_off(lab: Lab, clock: Any) -> None:
    policy = {"auto_off": {"after": "4h"}}
    since = {"state_since_ns": lab.now(), "policy": policy}
    for name in ("host1", "host2", "busy", "wanted", "held"):
        add_machine(lab, name, **since)
    add_machine(lab, "other", policy={"auto_off": {"after": "soon"}})
    keep(lab, clock, "busy", login="boot 1, load 3.00")
    claim(lab, "waiting", None, predicate="name:wanted", machine_id=None)
    claim(lab, "active", lab.now(), machine_id="held")
    clock.move(3 * 3600)
    assert energy.spare(lab) == []
    claim(lab, "ended", 0, lab.now(), machine_id="host2")
    clock.move(3600)
    assert energy.spare(lab) == ["host1"]
    clock.move(3 * 3600)
    assert energy.spare(lab) == ["host1", "host2"]


@pytest.fixture
def chassis(lab: Lab, tmp_path: Path) -> Iterator[EmulatedMachine]:
    with emulated_machine(tmp_path / "m") as machine:
        machine.start_bmc()
        secrets.put(lab, with_roles("root", ["admin"]), "bmc", "admin", PASSWORD)
        add_machine(lab, policy={"auto_off": {"after": "4h"}, "prepare": "none", "power": {"down_s": 3}})
        add_endpoint(lab, "host1", "bmc", "ipmi", f"127.0.0.1:{machine.bmc_port}", secret="bmc", cipher=3)
        yield machine


@pytest.mark.long
def test_it_sleeps_and_wakes_before_the_claim_gets_it(lab: Lab, chassis: EmulatedMachine) -> None:
    def now(work: Callable[[Lab, str], object], lab: Lab, machine_id: str) -> None:
        work(lab, machine_id)

    energy.tend(lab, now)
    assert (chassis.powered, state_of(lab)) == (False, "off")
    energy.tend(lab, now)
    assert not chassis.powered
    got = claims.request(lab, ANN, claims.Request(predicate="host1", reason="work", length_ns=energy.HOUR_NS))
    assert got.state == "waiting"
    assert energy.wanted(lab) == ["host1"]
    energy.tend(lab, now)
    assert chassis.powered and state_of(lab) == "claimed"
    with lab.store.read() as connection:
        assert connection.scalar(select(schema.claim.c.state)) == "active"
    assert [event.action for event in power.history(lab, ANN, "host1").items] == ["on", "off"]


def test_a_machine_that_a_person_switched_off_is_not_woken(lab: Lab) -> None:
    add_machine(lab, state="off", state_reason="switched off", policy={"auto_off": {"after": "4h"}})
    claim(lab, "waiting", None, machine_id=None)
    assert energy.wanted(lab) == []
    lab.store.write(lambda c: c.execute(update(schema.machine).values(state_reason=boots.ASLEEP)))
    assert energy.wanted(lab) == ["host1"]


@pytest.mark.parametrize(
    ("written", "seconds"), [({"boot_s": "1200"}, 1200), ({"boot_s": "soon"}, 900), ({"boot_s": -1}, 900), ("no", 900)]
)
def test_one_policy_that_cannot_be_read_stops_no_look_at_the_pool(lab: Lab, written: object, seconds: int) -> None:
    add_machine(lab, state="off", state_reason=boots.ASLEEP, policy={"power": written})
    with lab.store.read() as connection:
        assert boots.wakes(connection, lab.now())["host1"].at_latest == seconds * 10**9


def test_one_that_sleeps_and_is_in_maintenance_is_foretold_to_nobody(lab: Lab) -> None:
    add_machine(lab, state="off", state_reason=boots.ASLEEP)
    claim(lab, "active", lab.now(), kind="maintenance", holder="bob")
    number = claim(lab, "waiting", None, machine_id=None, predicate="name:host1", length_ns=energy.HOUR_NS)
    waits = claims.get(lab, ANN, number).waits
    assert waits is not None
    assert (waits.why, waits.likely_ns) == (("host1 is bob's for good",), None)
    assert energy.wanted(lab) == []


def step(lab: Lab, machine: str, who: Actor = ANN) -> None:
    """A step that waits for a machine."""
    made = {"kind": "boot", "command": ["true"], "machine": machine}
    submissions.submit(lab, who, graph_of({"version": 1, "name": "test", "steps": {"boot": {"step": made}}}))


def test_a_step_wakes_a_machine(lab: Lab) -> None:
    add_machine(lab, "host1", state="off", state_reason=boots.ASLEEP)
    add_machine(lab, "host2", state="off", state_reason=boots.ASLEEP)
    assert energy.wanted(lab) == []
    step(lab, "host2")
    assert energy.wanted(lab) == ["host2"]


def test_who_would_boot_a_source_of_their_own_wakes_a_machine_where_they_may(lab: Lab) -> None:
    add_machine(lab, "host1")
    asleep = {"state": "off", "state_reason": boots.ASLEEP}
    policy = {"netboot": "http://images.example.org/host.ipxe", "own_boot": True, "steps": False}
    add_machine(lab, "host2", policy=policy, **asleep)
    add_endpoint(lab, "host2", "ssh", "ssh", "ssh://root@host2")
    add_endpoint(lab, "host2", "bmc", "ipmi", "bmc-host2")
    told = [{"machine_id": "host2", "key": key, "text": key} for key in ("boot.own", "mac")]
    lab.store.write(lambda c: c.execute(insert(schema.fact), told))
    add_machine(lab, "host3", **asleep)
    number = claim(lab, "waiting", None, machine_id=None, predicate="name:host*", length_ns=energy.HOUR_NS)
    assert energy.wanted(lab) == []  # host1 is awake
    own = {"netboot": "http://images.example.org/rescue.ipxe"}
    lab.store.write(lambda c: c.execute(update(schema.claim).values(boot_source=own)))
    assert energy.wanted(lab) == ["host2"]
    waits = claims.get(lab, ANN, number).waits
    assert waits is not None and waits.why[0] == "host1 may not be booted from a source of ann's own"


@pytest.mark.parametrize("kind", ["claim", "step"])
@pytest.mark.parametrize("why", ["none", "only-for", "no-steps", "booked"])
def test_a_ready_machine_that_the_waiter_may_not_have_leaves_none_asleep(lab: Lab, kind: str, why: str) -> None:
    policies: dict[str, dict[str, Any]] = {"only-for": {"users": ["bob"]}, "no-steps": {"steps": False}}
    add_machine(lab, "awake", policy=policies.get(why, {}), owner="bob")
    add_machine(
        lab,
        "barred",
        policy={"users": ["bob"], "steps": False},
        owner="bob",
        state="off",
        state_reason=boots.ASLEEP,
    )
    add_machine(lab, "sleeps", state="off", state_reason=boots.ASLEEP)
    if why == "booked":
        claim(lab, "waiting", None, machine_id="awake", holder="bob", not_before_ns=lab.now() + MINUTE_NS, length_ns=1)
    if kind == "step":
        step(lab, "name:awake OR name:sleeps OR name:barred")
    else:
        claim(lab, "waiting", None, predicate="name:awake OR name:sleeps OR name:barred", machine_id=None,
              length_ns=energy.HOUR_NS)  # fmt: skip
    enough = why == "none" or (kind, why) == ("claim", "no-steps")
    assert energy.wanted(lab) == ([] if enough else ["sleeps"])


def test_a_machine_is_not_kept_awake_for_who_may_not_have_it(lab: Lab) -> None:
    policy = {"auto_off": {"after": "4h"}}
    add_machine(lab, "host1", policy=policy | {"users": ["bob"]}, owner="bob")
    add_machine(lab, "host2", policy=policy | {"steps": False}, owner="bob")
    assert energy.spare(lab) == ["host1", "host2"]
    claim(lab, "waiting", None, machine_id=None)
    step(lab, "host2")
    assert energy.spare(lab) == ["host1", "host2"]
    step(lab, "host1", with_roles("bob", ["user"]))
    assert energy.spare(lab) == ["host2"]


@pytest.fixture
def switched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], power.Result]]:
    """What happens while a machine is switched off, and what comes of it; each begun switching takes the first one."""
    add_machine(lab, policy={"auto_off": {"after": "4h"}, "prepare": "none"})
    add_endpoint(lab, "host1", "bmc", "ipmi", "127.0.0.1:1")
    todo: list[Callable[[], power.Result]] = []
    monkeypatch.setattr(power, "_run", lambda lab, begun: power._end(lab, begun, [], todo.pop(0)(), "", 0, None))
    return todo


def reserve(lab: Lab) -> claims.Claim:
    return claims.request(lab, ANN, claims.Request(predicate="host1", reason="work", length_ns=energy.HOUR_NS))


def test_a_machine_that_was_claimed_since_it_looked_spare_is_not_switched_off(
    lab: Lab, switched: list[Callable[[], power.Result]]
) -> None:
    assert energy.spare(lab) == ["host1"]
    assert reserve(lab).state == "active"
    energy.rest(lab, "host1")
    assert power.history(lab, ANN, "host1").items == ()
    assert state_of(lab) == "claimed"


def test_nobody_gets_a_machine_while_it_is_switched_off(lab: Lab, switched: list[Callable[[], power.Result]]) -> None:
    def meanwhile() -> power.Result:
        assert reserve(lab).state == "waiting"
        energy.rest(lab, "host1")  # a second one changes nothing
        assert state_of(lab) == "off"
        return "done"

    switched.append(meanwhile)
    energy.rest(lab, "host1")
    assert (state_of(lab), energy.wanted(lab)) == ("off", ["host1"])
    assert [event.action for event in power.history(lab, ANN, "host1").items] == ["off"]


def test_a_machine_that_nobody_knows_to_be_off_goes_to_who_waits(
    lab: Lab, switched: list[Callable[[], power.Result]]
) -> None:
    def meanwhile() -> power.Result:
        reserve(lab)
        return "unknown"

    switched.append(meanwhile)
    energy.rest(lab, "host1")
    assert state_of(lab) == "claimed"


@pytest.fixture
def woken(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that sleeps, for which ann waits; its BMC switches it on at once.  The states in which it was asked."""
    policy = {"prepare": "none", "power": {"boot_s": 300}}
    add_machine(lab, state="off", state_reason=boots.ASLEEP, policy=policy)
    add_endpoint(lab, "host1", "bmc", "ipmi", "127.0.0.1:1")
    add_endpoint(lab, "host1", "ssh", "ssh", "ssh://root@127.0.0.1:1")

    def climb(lab: Lab, begun: Any, tried: list[power.Attempt]) -> tuple[power.Result, str, float | None]:
        tried.append(power.Attempt(method="bmc", driver="ipmi", outcome="done", detail="", took_ns=1))
        return "done", "two readings of bmc", None

    monkeypatch.setattr(power, "_climb", climb)
    monkeypatch.setattr(power, "_POLL_S", 0.01)
    assert reserve(lab).state == "waiting"
    return []


def test_a_machine_that_wakes_is_offered_when_its_system_answers(
    lab: Lab, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(ssh: Any, deadline_s: float) -> Boot | None:
        del ssh, deadline_s
        woken.append(state_of(lab))
        return Boot("b" * 36, 5.0, 0.0) if len(woken) == 3 else None

    monkeypatch.setattr(power, "_boot", boot)
    energy.wake(lab, "host1")
    assert (woken, state_of(lab)) == (["off"] * 3, "claimed")
    with lab.store.read() as connection:
        assert len(boots.known(connection, "machine host1")) == 1, "how long it took is known from now on"


def test_a_machine_that_does_not_answer_after_waking_is_suspect(
    lab: Lab, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "_boot", lambda ssh, deadline_s: None)
    monkeypatch.setattr(power, "boot_deadline_s", lambda lab, machine, policy: 0.1)
    energy.wake(lab, "host1")
    assert state_of(lab) == "suspect"
    assert energy.wanted(lab) == []
    with lab.store.read() as connection:
        assert connection.scalar(select(schema.claim.c.state)) == "waiting"
        reason = connection.scalar(select(schema.machine.c.state_reason))
    assert reason == "power on failed: bmc done, ssh silent"


def test_one_that_a_holder_left_without_a_system_is_woken_and_goes_to_its_installation(
    lab: Lab, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "_boot", lambda ssh, deadline_s: None)
    policy = {"netboot": "http://images.example.org/host.ipxe", "power": {"boot_s": 300}}
    lab.store.write(lambda c: c.execute(update(schema.machine).values(system_of="bob", policy=policy)))
    energy.wake(lab, "host1")
    assert state_of(lab) == "preparing"


def test_one_without_a_system_whose_outlet_tells_nothing_is_not_woken_for_ever(
    lab: Lab, woken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "_climb", lambda lab, begun, tried: ("unknown", "", None))
    policy = {"netboot": "http://images.example.org/host.ipxe", "power": {"boot_s": 300}}
    lab.store.write(lambda c: c.execute(update(schema.machine).values(policy=policy)))
    energy.wake(lab, "host1")
    assert state_of(lab) == "off"  # of its owner's system it is not known to be on
    lab.store.write(lambda c: c.execute(update(schema.machine).values(system_of="bob")))
    energy.wake(lab, "host1")
    assert state_of(lab) == "preparing"


# -- over REST and on pages -----------------------------------------------------------------------------------------


def test_health_and_energy_over_rest_and_on_pages(ask: Callable[..., TestClient], lab: Lab, clock: Any) -> None:
    add_machine(lab, registered_ns=lab.now() - energy.DAY_NS)
    add_machine(lab, "host2")
    keep(lab, clock, login="boot 1, load 0.02", bmc=False, watts=100)
    bob = ask("bob", "viewer")
    assert [(one["machine"], one["well"]) for one in bob.get("/api/v1/health").json()] == [
        ("host1", False),
        ("host2", None),
    ]
    assert bob.get("/api/v1/machines/host1/health").json()["probes"][0]["probe"] == "login"
    hours = bob.get("/api/v1/machines/host1/health/hours", params={"since_ns": 0}).json()
    assert [(hour["probe"], hour["ok"]) for hour in hours] == [("bmc", 0), ("login", 1)]
    assert bob.get("/api/v1/energy").json()["machines"][0]["watts"] == 100
    assert bob.get("/api/v1/energy", params={"length_ns": 10**30}).status_code == 422
    assert bob.post("/api/v1/machines/host2/health").json()["well"] is None
    assert "1 of 2 machines did not answer everything" in bob.get("/health").text
    assert "1 of 1" in bob.get("/machines/host1/health").text
    assert "<html" not in bob.get("/machines/host1/health", headers={"HX-Request": "true"}).text
    assert "100 W" in bob.get("/health/energy").text
