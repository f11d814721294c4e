"""Power as a verified state machine, against a real BMC emulator, a real sshd and a real fence agent, with faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, update

from evenkeel.errors import WrongInput
from evenkeel.lab import boots, power, schema, secrets, touch
from evenkeel.lab.actor import Conflict, Forbidden, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Method, PowerFailed, ipmi
from evenkeel.lab.power_drivers.ipmi import hello, watts_of
from evenkeel.lab.power_drivers.redfish import watts_of as redfish_watts_of
from tests.lab.conftest import Clock
from tests.lab.emulated import (
    PASSWORD,
    EmulatedMachine,
    Relay,
    add_endpoint,
    add_machine,
    emulated_machine,
    pdu_endpoint,
    ssh_endpoint,
)
from tests.waiting import until

ANN = with_roles("ann", ["user"])
BOB = with_roles("bob", ["user"])
ADMIN = with_roles("root", ["admin"])
#: An emulated host reboots in a moment; nobody waits for a real one's shutdown here.
QUICK = {"power": {"down_s": 1.5, "shutdown_s": 1.5, "boot_s": 60.0}}


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    with emulated_machine(tmp_path_factory.mktemp("chassis") / "m") as machine:
        machine.start_bmc()
        machine.start_ssh()
        yield machine


@pytest.fixture
def host(chassis: EmulatedMachine, lab: Lab) -> Iterator[EmulatedMachine]:
    """host1 of ann, with ssh and BMC, switched on and without faults."""
    for name in ("hung", "no-reboot", "deaf", "lies-off", "slow-outlet"):
        chassis.fault(name, False)
    (chassis.folder / "power").write_text("1\n")
    (chassis.folder / "commands").write_text("")
    secrets.put(lab, ADMIN, "bmc", "admin", PASSWORD)
    add_machine(lab, policy=QUICK)
    ssh_endpoint(lab, "host1", chassis._sshds[0])
    add_endpoint(lab, "host1", "bmc", "ipmi", f"127.0.0.1:{chassis.bmc_port}", secret="bmc")
    yield chassis


def state_of(lab: Lab, name: str = "host1") -> str:
    with lab.store.read() as connection:
        return str(connection.scalar(select(schema.machine.c.state).where(schema.machine.c.name == name)))


def events(lab: Lab) -> list[str]:
    with lab.store.read() as connection:
        return list(connection.scalars(select(schema.event.c.type).order_by(schema.event.c.seq)))


def tried(event: power.PowerEvent) -> list[str]:
    return [f"{attempt.method} {attempt.outcome}" for attempt in event.tried]


def test_a_reset_over_ssh_is_proved_by_the_boot_id(lab: Lab, host: EmulatedMachine) -> None:
    before = (host.folder / "boot_id").read_text()
    done = power.switch(lab, ANN, "host1", "reset")
    assert (done.result, tried(done)) == ("done", ["ssh done"])
    assert done.verified_by == f"boot id {before[:8]} became {(host.folder / 'boot_id').read_text()[:8]}"
    assert host.commands() == ["ssh reboot", "reset"]
    assert power.history(lab, BOB, "host1").items == (done,)


@pytest.mark.long
def test_a_host_that_will_not_reboot_is_reset_by_its_bmc(lab: Lab, host: EmulatedMachine) -> None:
    host.fault("no-reboot")
    done = power.switch(lab, ANN, "host1", "reset")
    assert (done.result, tried(done)) == ("done", ["ssh failed", "bmc done"])
    assert "still in boot" in done.tried[0].detail


@pytest.mark.long
def test_a_hung_host_has_no_boot_id_and_is_proved_by_a_boot_younger_than_the_command(
    lab: Lab, host: EmulatedMachine
) -> None:
    host.fault("hung")
    begun = power.request(lab, ANN, "host1", "reset")
    assert begun.result == "running"
    with pytest.raises(Conflict, match="is being switched"):
        power.request(lab, ANN, "host1", "off")
    until(lambda: "reset" in host.commands())
    host.fault("hung", False)
    done = _end_of(lab, begun)
    assert (done.result, tried(done)) == ("done", ["bmc done"])
    up = re.search(r" up for (\d+) s", done.verified_by)
    assert up and done.took_ns and int(up[1]) * 10**9 <= done.took_ns, done


def _end_of(lab: Lab, begun: power.PowerEvent) -> power.PowerEvent:
    until(lambda: power.event(lab, ANN, begun.id).result != "running")
    return power.event(lab, ANN, begun.id)


@pytest.mark.long
def test_off_and_on_need_two_readings_that_agree(lab: Lab, host: EmulatedMachine) -> None:
    off = power.switch(lab, ANN, "host1", "off")
    assert (off.result, tried(off), off.verified_by) == ("done", ["ssh done"], "two readings of bmc")
    assert not host.powered and state_of(lab) == "off"
    assert power.status(lab, BOB, "host1").power == "off"
    assert power.switch(lab, ANN, "host1", "off").verified_by == "was off before"
    on = power.switch(lab, ANN, "host1", "on")
    assert (on.result, tried(on)) == ("done", ["bmc done"])
    assert state_of(lab) == "ready"


def test_a_bmc_that_says_off_while_the_host_answers_is_told_and_believed_by_nobody(
    lab: Lab, host: EmulatedMachine
) -> None:
    host.fault("lies-off")
    host.fault("deaf")
    now = power.status(lab, ANN, "host1")
    assert (now.power, now.lies, [said.reading for said in now.said]) == ("on", ("bmc",), ["off"])
    done = power.switch(lab, ANN, "host1", "off", method="bmc")
    assert (done.result, tried(done)) == ("failed", ["bmc lied"])
    assert done.tried[0].detail.endswith("bmc says off, and the host answers")
    assert state_of(lab) == "suspect"
    assert "power.lied" in events(lab) and "machine.suspect" in events(lab)


@pytest.mark.long
def test_a_bmc_that_lied_is_not_believed_of_a_machine_that_nobody_can_log_in_to(
    lab: Lab, host: EmulatedMachine
) -> None:
    host.fault("lies-off")
    host.fault("deaf")
    assert tried(power.switch(lab, ANN, "host1", "off", method="bmc")) == ["bmc lied"]
    host.fault("hung")
    now = power.status(lab, ANN, "host1")
    assert (now.power, now.said[0].reading, now.said[0].detail) == ("unknown", "off", "not believed: it lied before")
    off = power.switch(lab, ANN, "host1", "off", method="bmc")
    assert (off.result, tried(off)) == ("unknown", ["bmc unverified"]) and host.powered
    for fault in ("lies-off", "deaf", "hung"):
        host.fault(fault, False)
    assert power.switch(lab, ANN, "host1", "cycle", method="bmc").result == "done"
    assert events(lab).count("power.honest") == 1
    assert power.switch(lab, ANN, "host1", "off", method="bmc").verified_by == "two readings of bmc"


@pytest.mark.long
def test_a_bmc_that_acknowledges_and_does_nothing_lied(lab: Lab, host: EmulatedMachine) -> None:
    host.fault("deaf")
    done = power.switch(lab, ANN, "host1", "cycle")
    assert (done.result, tried(done)) == ("failed", ["bmc lied"])
    assert "still in boot" in done.tried[0].detail


def test_a_lie_is_forgiven_once_and_not_twice_in_a_row(lab: Lab, host: EmulatedMachine) -> None:
    tries = [{"method": "bmc", "outcome": "lied"}, {"method": "pdu", "outcome": "done"}]
    found: list[str | None] = []

    def change(connection: Connection) -> None:
        machine = touch.find(connection, "host1")
        attempts = [power.Attempt.model_validate(each | {"driver": "x", "detail": "", "took_ns": 0}) for each in tries]
        for _ in range(2):
            row = {"machine_id": "host1", "action": "reset", "actor": "ann", "at_ns": 0, "result": "done"}
            connection.execute(insert(schema.power_event).values(row | {"tried": tries}))
            found.append(power._suspicious(connection, machine, "done", attempts, "reset"))

    lab.store.write(change)
    assert found == [None, "its BMC or PDU lied twice in a row"]


def test_a_silent_bmc_is_decided_within_5_seconds_and_silence_is_not_off(
    lab: Lab, host: EmulatedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that it is given, and nothing is asked by a program: how fast this machine is does not count."""
    given: list[float] = []

    def asked(host: str, port: int, deadline_s: float) -> float:
        given.append(deadline_s)
        return hello(host, port, deadline_s)

    def asked_more(*words: object) -> None:
        raise AssertionError(f"ipmitool is started for a BMC that is silent: {words}")

    monkeypatch.setattr(ipmi, "hello", asked)
    monkeypatch.setattr(ipmi.Ipmitool, "argv", asked_more)
    relay = Relay(("127.0.0.1", host.bmc_port))
    relay.silent = True
    try:
        lab.store.write(
            lambda c: c.execute(
                update(schema.endpoint).where(schema.endpoint.c.kind == "bmc").values(address=relay.address)
            )
        )
        host.fault("hung")
        now = power.status(lab, ANN, "host1")
        assert 0 < sum(given) < 5
        assert (now.power, now.said[0].reading) == ("unknown", "unknown")
        assert "is silent" in now.said[0].detail
        given.clear()
        done = power.switch(lab, ANN, "host1", "cycle")
        assert (done.result, tried(done)) == ("failed", ["bmc silent"])
        assert 0 < sum(given) < 5
    finally:
        relay.stop()
    assert state_of(lab) == "suspect"


@pytest.mark.long
def test_a_slow_bmc_is_not_a_dead_one(lab: Lab, host: EmulatedMachine) -> None:
    relay = Relay(("127.0.0.1", host.bmc_port))
    relay.delay_s = 0.2
    try:
        add_machine(lab, "host2", policy=QUICK)
        add_endpoint(lab, "host2", "bmc", "ipmi", relay.address, secret="bmc", cipher=3)
        assert power.status(lab, ANN, "host2").power == "on"
    finally:
        relay.stop()


def test_the_cipher_suite_that_works_is_remembered(lab: Lab, host: EmulatedMachine) -> None:
    power.status(lab, ANN, "host1")
    with lab.store.read() as connection:
        options = connection.scalar(select(schema.endpoint.c.options).where(schema.endpoint.c.kind == "bmc"))
    assert options == {"cipher": 3}  # ipmi_sim 2.0.33 has no suite 17


@pytest.mark.long
def test_a_bmc_that_only_has_ipv6(lab: Lab, tmp_path: Path) -> None:
    with emulated_machine(tmp_path / "m", "::1") as machine:
        machine.start_bmc()
        secrets.put(lab, ADMIN, "bmc", "admin", PASSWORD)
        add_machine(lab, policy=QUICK)
        add_endpoint(lab, "host1", "bmc", "ipmi", f"[::1]:{machine.bmc_port}", secret="bmc", cipher=3)
        assert power.status(lab, ANN, "host1").power == "on"


@pytest.mark.long
def test_a_wrong_password_is_told_from_a_dead_bmc(lab: Lab, host: EmulatedMachine) -> None:
    secrets.put(lab, ADMIN, "bmc", "admin", "another")
    said = power.status(lab, ANN, "host1").said[0]
    assert said.reading == "unknown"
    assert "answers, but opens no session" in said.detail and "another" not in said.detail


def test_nothing_there_is_silent_in_the_time_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("evenkeel.lab.power_drivers.ipmi.time.sleep", rests.append)
    with pytest.raises(PowerFailed) as failed:
        hello("127.0.0.1", 9, 1.0)
    assert failed.value.silent and sum(rests) == pytest.approx(1.0)


@pytest.mark.long
def test_an_outlet_by_a_fence_agent_is_the_last_rung(lab: Lab, host: EmulatedMachine) -> None:
    outlet = host.start_outlet() if len(host._sshds) == 1 else host._sshds[1]
    pdu_endpoint(lab, "host1", outlet)
    host.fault("no-reboot")
    # On a busy machine its agent takes longer than it is usually given, and another says on a second time.
    policy = {"power": QUICK["power"] | {"pdu_s": 120.0}}
    lab.store.write(lambda c: c.execute(update(schema.machine).values(policy=policy)))
    done = power.switch(lab, ANN, "host1", "cycle", method="pdu")
    assert (done.result, tried(done)) == ("done", ["pdu done"])
    assert host.commands() == ["power 0", "power 1"]
    assert power.status(lab, ANN, "host1").power == "on"


@pytest.mark.long
def test_an_outlet_does_not_stay_off_because_its_agent_was_ended(lab: Lab, host: EmulatedMachine) -> None:
    outlet = host.start_outlet() if len(host._sshds) == 1 else host._sshds[1]
    pdu_endpoint(lab, "host1", outlet)
    policy = {"power": QUICK["power"] | {"pdu_s": 6.0, "boot_s": 30.0}}
    lab.store.write(lambda c: c.execute(update(schema.machine).values(policy=policy)))
    host.fault("slow-outlet")
    done = power.switch(lab, ANN, "host1", "cycle", method="pdu")
    first, *then = host.commands()
    assert host.powered and (first, {*then}) == ("power 0", {"power 1"})  # a slow agent says on twice
    assert (done.result, tried(done)) == ("done", ["pdu done"]), done
    assert "no answer within 6 s: boot id" in done.tried[0].detail


@pytest.mark.long
def test_an_outlet_that_only_has_ipv6(lab: Lab, host: EmulatedMachine) -> None:
    outlet = host.start_outlet() if len(host._sshds) == 1 else host._sshds[1]
    pdu_endpoint(lab, "host1", outlet, "[::1]")
    said = {said.method: said for said in power.status(lab, ANN, "host1").said}
    assert said["pdu"].reading == "on", said


@pytest.mark.long
def test_an_outlet_that_nobody_reaches_does_not_answer_and_its_agent_says_why(lab: Lab, host: EmulatedMachine) -> None:
    outlet = host.start_outlet() if len(host._sshds) == 1 else host._sshds[1]
    outlet.stop()
    pdu_endpoint(lab, "host1", outlet)
    said = {said.method: said for said in power.status(lab, ANN, "host1").said}
    assert said["pdu"].reading == "unknown" and "fence_apc ended with 1: " in said["pdu"].detail, said


def test_who_may_switch_it(lab: Lab, host: EmulatedMachine) -> None:
    with pytest.raises(Forbidden, match="it is not reserved"):
        power.switch(lab, BOB, "host1", "off")
    with pytest.raises(Forbidden, match="scope 'power'"):
        power.switch(lab, with_roles("eve", ["viewer"]), "host1", "off")
    with pytest.raises(WrongInput, match="no way pdu"):
        power.switch(lab, ANN, "host1", "off", method="pdu")
    assert host.powered and events(lab) == ["secret.set"]


def test_the_order_is_learned_by_what_worked() -> None:
    have: tuple[Method, ...] = ("ssh", "bmc", "pdu")
    assert power.order_of(None, {}, have) == ("ssh", "bmc", "pdu")
    assert power.order_of(None, {"ssh": (9, 10), "bmc": (10, 10), "pdu": (10, 10)}, have) == ("ssh", "bmc", "pdu")
    assert power.order_of(None, {"bmc": (0, 3)}, have) == ("ssh", "pdu", "bmc")
    assert power.order_of(None, {"ssh": (0, 9), "bmc": (9, 9)}, have)[0] == "bmc"
    # Cycled by others, because ssh cannot: no reason to reset it less gently.
    assert power.order_of(None, {"hypervisor": (1, 1), "bmc": (9, 9)}, ("ssh", "hypervisor", "bmc"))[0] == "ssh"
    assert power.order_of(("pdu", "bmc"), {"bmc": (0, 9)}, have) == ("pdu", "bmc")


def test_what_failed_long_ago_is_forgotten(lab: Lab, clock: Clock) -> None:
    add_machine(lab)
    for kind, driver in (("bmc", "ipmi"), ("pdu", "pdu")):
        add_endpoint(lab, "host1", kind, driver, "192.0.2.1", agent="fence_apc")
    tries = [{"method": "bmc", "outcome": "silent"}, {"method": "pdu", "outcome": "done"}]
    row = {"machine_id": "host1", "action": "cycle", "actor": "ann", "at_ns": lab.now(), "result": "done"}
    lab.store.write(lambda c: c.execute(insert(schema.power_event).values(row | {"tried": tries})))
    assert power.plan(lab, ANN, "host1").order == ("pdu", "bmc")
    clock.move(31 * 86400)
    now = power.plan(lab, ANN, "host1")
    assert (now.order, now.success) == (("bmc", "pdu"), {})


def test_the_boot_time_out_is_learned_by_type(lab: Lab) -> None:
    add_machine(lab)
    machine = touch.Touched("host1", "host1", "ready", "ann", "", None, {}, "", "")
    assert power.boot_deadline_s(lab, machine, power.Policy()) == 900
    for boot_s in (40.0, 90.0, 50.0):
        lab.store.write(partial(boots.learn, type_="machine host1", boot_s=boot_s))
    assert power.boot_deadline_s(lab, machine, power.Policy()) == 270
    assert power.boot_deadline_s(lab, machine, power.Policy(boot_s=10)) == 10


def test_what_a_killed_service_left_running_ended_unknown(lab: Lab, host: EmulatedMachine) -> None:
    begun = power._begin(lab, ANN, "host1", "reset", None)
    assert power.tidy(lab) == 1
    assert power.event(lab, ANN, begun.event_id).result == "unknown"
    assert power.tidy(lab) == 0


def test_readings_of_power_drawn() -> None:
    # As ipmitool 1.8.19 prints it (lib/ipmi_dcmi.c), and the example of DSP0268.
    said = (
        "\n    Instantaneous power reading:                   104 Watts\n    Minimum during sampling period: 2 Watts\n"
    )
    assert watts_of(said) == 104
    assert watts_of("DCMI request failed because: Invalid command (c1)") is None
    assert redfish_watts_of({"PowerControl": [{"PowerConsumedWatts": 344}, {"PowerConsumedWatts": None}]}) == 344
    assert redfish_watts_of({}) is None


# -- secrets --------------------------------------------------------------------------------------------------------


def test_a_password_is_sealed_shown_to_nobody_and_in_no_argument_or_event(lab: Lab, host: EmulatedMachine) -> None:
    with pytest.raises(Forbidden):
        secrets.put(lab, ANN, "bmc", "admin", "x")
    with pytest.raises(Forbidden):
        secrets.listing(lab, ANN)
    [kept] = secrets.listing(lab, ADMIN)
    assert (kept.name, kept.used_by) == ("bmc", ("host1",))
    with pytest.raises(Conflict, match="used by host1"):
        secrets.remove(lab, ADMIN, "bmc")
    power.status(lab, ANN, "host1")
    lab.store.close()
    everything = b"".join(path.read_bytes() for path in lab.folder.glob("lab.db*"))
    assert PASSWORD.encode() not in everything and b"secret.set" in everything
    assert secrets.key_file(lab).stat().st_mode & 0o777 == 0o600
    from evenkeel.lab.power_drivers import Credentials, Way
    from evenkeel.lab.power_drivers.ipmi import Ipmitool

    way = Way("bmc", "ipmi", "127.0.0.1", {}, Credentials("admin", PASSWORD))
    assert PASSWORD not in " ".join(Ipmitool(way).argv(3, "chassis")) and PASSWORD not in repr(way)


def test_the_key_is_rotated_and_a_wrong_one_opens_nothing(lab: Lab) -> None:
    secrets.put(lab, ADMIN, "bmc", "admin", PASSWORD)
    before = secrets.key_file(lab).read_bytes()
    assert secrets.rotate(lab, ADMIN) == 1
    assert secrets.key_file(lab).read_bytes() != before
    assert secrets.credentials(lab, "bmc").password == PASSWORD
    secrets.key_file(lab).write_bytes(before)
    with pytest.raises(Exception, match="does not open with"):
        secrets.credentials(lab, "bmc")
    secrets.key_file(lab).chmod(0o644)
    with pytest.raises(Exception, match="others may read"):
        secrets.credentials(lab, "bmc")
    secrets.key_file(lab).unlink()
    with pytest.raises(Exception, match="is gone"):
        secrets.credentials(lab, "bmc")
