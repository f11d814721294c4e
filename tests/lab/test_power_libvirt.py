"""Power and console of a real kernel in a libvirt domain, by virtualbmc, sushy-tools and ipmi_sim, and with faults.

A BMC that is silent or slow is a frozen one; one that lies is wired to the machine beside it, as happens in racks: all
that it says is true there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from evenkeel.lab import console, power, secrets
from evenkeel.lab.console import Consoles
from evenkeel.lab.lab import Lab
from tests.lab.domain import NAME, NEIGHBOUR, POLICY, UUIDS, Domain, domain
from tests.lab.emulated import PASSWORD, EmulatedMachine, add_endpoint, add_machine, pdu_endpoint
from tests.lab.emulators import Bmc, Emulator, redfish, virtualbmc
from tests.lab.test_console import QUICK, Client, events, sol
from tests.lab.test_power import ADMIN, ANN, state_of, tried
from tests.machines.sshd import descendants
from tests.waiting import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.virtual,
    pytest.mark.skipif(os.getuid() != 0, reason="the emulators are contained in namespaces, which needs root"),
]
Kind = Literal["ipmi", "redfish"]
both = pytest.mark.parametrize("kind", ["ipmi", "redfish"])


@pytest.fixture(scope="module")
def machine() -> Iterator[Domain]:
    with domain() as made:
        yield made


@dataclass
class Bmcs:
    """Of each kind: the program, and where it stands for the machine, for its neighbour, and for that one on ::1."""

    programs: dict[str, Emulator]
    addresses: dict[tuple[str, str], str]

    def add(self, lab: Lab, kind: Kind, where: str, *, ssh: Domain | None = None) -> None:
        """host1 of the pool with such a BMC."""
        add_machine(lab, policy={"power": POLICY})
        if ssh is not None:
            ssh.ssh_endpoint(lab, "host1")
        address = self.addresses[kind, where]
        if kind == "ipmi":
            secrets.put(lab, ADMIN, "bmc", "admin", PASSWORD)
            add_endpoint(lab, "host1", "bmc", "ipmi", address, secret="bmc", cipher=3)
        else:
            system = UUIDS[NAME if where == NAME else NEIGHBOUR]
            add_endpoint(lab, "host1", "bmc", "redfish", address, system=f"/redfish/v1/Systems/{system}")


@pytest.fixture(scope="module")
def bmcs(machine: Domain) -> Iterator[Bmcs]:
    with contextlib.ExitStack() as stack:
        three = [Bmc(NAME), Bmc(NEIGHBOUR), Bmc(NEIGHBOUR, "::1")]
        places, vbmcd = stack.enter_context(virtualbmc(machine.folder, machine.uri, three))
        libvirt = ("--libvirt-uri", machine.uri)
        url, sushy = stack.enter_context(redfish(machine.folder, "127.0.0.1", *libvirt))
        url6, _ = stack.enter_context(redfish(machine.folder, "::1", *libvirt))
        addresses = {("ipmi", where): place for where, place in zip((NAME, NEIGHBOUR, "v6"), places, strict=True)}
        addresses |= {("redfish", NAME): url, ("redfish", NEIGHBOUR): url, ("redfish", "v6"): url6}
        yield Bmcs({"ipmi": vbmcd, "redfish": sushy}, addresses)


# -- a machine without an operating system: nobody but its BMC can be asked --------------------------------------------


@pytest.fixture
def bare(machine: Domain) -> Domain:
    """The neighbour is on; the other one is whatever it was."""
    if machine.state(NEIGHBOUR) == "shut off":
        machine.virsh("start", NEIGHBOUR)
    return machine


@pytest.mark.parametrize("where", [NEIGHBOUR, "v6"])
@both
def test_off_and_on_are_two_readings_also_by_ipv6_only(
    lab: Lab, bare: Domain, bmcs: Bmcs, kind: Kind, where: str
) -> None:
    bmcs.add(lab, kind, where)
    off = power.switch(lab, ANN, "host1", "off")
    assert (off.result, off.verified_by, tried(off)) == ("done", "two readings of bmc", ["bmc done"]), off
    assert bare.state(NEIGHBOUR) == "shut off" and state_of(lab) == "off"
    assert power.status(lab, ANN, "host1").power == "off"
    on = power.switch(lab, ANN, "host1", "on")
    assert (on.result, on.verified_by, tried(on)) == ("done", "two readings of bmc", ["bmc done"]), on
    assert bare.state(NEIGHBOUR) == "running" and state_of(lab) == "ready"


@both
def test_a_frozen_bmc_is_silent_not_off_and_does_nothing_afterwards(
    lab: Lab, bare: Domain, bmcs: Bmcs, kind: Kind
) -> None:
    bmcs.add(lab, kind, NEIGHBOUR)
    with bmcs.programs[kind].frozen():
        begin = time.monotonic()
        now = power.status(lab, ANN, "host1")
        assert (now.power, now.said[0].reading) == ("unknown", "unknown"), now
        assert time.monotonic() - begin < 7.0
        done = power.switch(lab, ANN, "host1", "off")
        assert (done.result, tried(done)) == ("failed", ["bmc silent"]), done
        assert done.tried[0].took_ns < 7e9
    # Awake again it gets what is on the way to it: nobody waits for that any more.
    time.sleep(3.0)
    assert bare.state(NEIGHBOUR) == "running"
    assert power.status(lab, ANN, "host1").power == "on"


@both
def test_a_bmc_that_has_lost_its_machine_does_not_say_off(lab: Lab, bare: Domain, bmcs: Bmcs, kind: Kind) -> None:
    bmcs.add(lab, kind, NEIGHBOUR)
    with bare.libvirtd.frozen():
        now = power.status(lab, ANN, "host1")
        assert (now.power, now.said[0].reading) == ("unknown", "unknown"), now
    until(lambda: power.status(lab, ANN, "host1").power == "on")


@both
def test_a_slow_bmc_is_not_a_dead_one(lab: Lab, bare: Domain, bmcs: Bmcs, kind: Kind) -> None:
    bmcs.add(lab, kind, NEIGHBOUR)
    with bmcs.programs[kind].slow(1.5):
        begin = time.monotonic()
        now = power.status(lab, ANN, "host1")
        assert now.power == "on", now
        assert time.monotonic() - begin > 1.9  # 0.5 s of them between the two readings


@both
def test_who_cannot_see_a_boot_does_not_say_that_there_was_one(lab: Lab, bare: Domain, bmcs: Bmcs, kind: Kind) -> None:
    bmcs.add(lab, kind, NEIGHBOUR)
    for action in ("reset", "cycle"):
        done = power.switch(lab, ANN, "host1", action)
        assert (done.result, tried(done)) == ("unknown", ["bmc unverified"]), done
    # Neither of the two knows a power cycle.
    assert ", then " in done.tried[0].detail


# -- a machine with a kernel, which tells its boot id -----------------------------------------------------------------


@pytest.fixture
def up(machine: Domain) -> str:
    """The boot id of the machine, which runs; its neighbour does not."""
    return machine.up()


@both
def test_a_power_cycle_is_proved_by_the_boot_id(lab: Lab, machine: Domain, bmcs: Bmcs, up: str, kind: Kind) -> None:
    bmcs.add(lab, kind, NAME, ssh=machine)
    done = power.switch(lab, ANN, "host1", "cycle", method="bmc")
    assert (done.result, tried(done)) == ("done", ["bmc done"]), done
    after = machine.boot_id()
    assert after and done.verified_by == f"boot id {up[:8]} became {after[:8]}"


def commands() -> bytes:
    """Command lines of all that this process started."""
    found = b""
    for number in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{number}/cmdline").read_bytes()
    return found


def test_a_bmc_that_obeys_late_is_seen_to_have_obeyed(lab: Lab, machine: Domain, bmcs: Bmcs, up: str) -> None:
    """It answers, and waits for its libvirt when it should obey."""
    bmcs.add(lab, "ipmi", NAME, ssh=machine)

    def thaw_late() -> None:
        try:
            until(lambda: b"\0power\0reset\0" in commands())  # what is asked before that takes its time, too
            time.sleep(POLICY["bmc_s"] + 3.0)
        finally:
            machine.libvirtd.freeze(False)

    thaw = threading.Thread(target=thaw_late)
    machine.libvirtd.freeze()
    thaw.start()
    try:
        done = power.switch(lab, ANN, "host1", "reset", method="bmc")
    finally:
        thaw.join()
    assert (done.result, tried(done)) == ("done", ["bmc done"]), done
    assert "no answer to 'chassis power reset' in time: boot id" in done.tried[0].detail
    assert machine.boot_id() not in (None, up)


def test_a_reset_by_its_own_operating_system(lab: Lab, machine: Domain, bmcs: Bmcs, up: str) -> None:
    bmcs.add(lab, "redfish", NAME, ssh=machine)
    done = power.switch(lab, ANN, "host1", "reset")
    assert (done.result, tried(done)) == ("done", ["ssh done"]), done
    assert machine.boot_id() not in (None, up)


@both
def test_a_bmc_that_is_wired_to_another_machine_lies(
    lab: Lab, machine: Domain, bmcs: Bmcs, up: str, kind: Kind
) -> None:
    bmcs.add(lab, kind, NEIGHBOUR, ssh=machine)
    now = power.status(lab, ANN, "host1")
    assert (now.power, now.lies, now.said[0].reading) == ("on", ("bmc",), "off"), now
    off = power.switch(lab, ANN, "host1", "off", method="bmc")
    assert (off.result, tried(off)) == ("failed", ["bmc lied"]), off
    assert off.tried[0].detail.endswith("bmc says off, and the host answers")
    assert state_of(lab) == "suspect" and len(events(lab, "power.lied")) == 1
    with machine.hung():
        assert power.status(lab, ANN, "host1").power == "unknown"  # it says off, which is not believed any more
    cycled = power.switch(lab, ANN, "host1", "cycle", method="bmc")
    assert (cycled.result, tried(cycled)) == ("failed", ["bmc lied"]), cycled
    assert f"still in boot {up[:8]}" in cycled.tried[0].detail
    assert machine.boot_id() == up


def test_the_outlet_is_left_when_host_and_bmc_are_silent_and_that_is_remembered(
    lab: Lab, machine: Domain, bmcs: Bmcs, up: str, tmp_path: Path
) -> None:
    bmcs.add(lab, "ipmi", NAME, ssh=machine)
    (tmp_path / "pdu").mkdir()
    pdu = EmulatedMachine(tmp_path / "pdu", chassis=machine.chassis)
    try:
        pdu_endpoint(lab, "host1", pdu.start_outlet())
        assert power.plan(lab, ANN, "host1").order == ("ssh", "bmc", "pdu")
        with bmcs.programs["ipmi"].frozen(), machine.hung():
            done = power.switch(lab, ANN, "host1", "cycle")
        assert (done.result, tried(done)) == ("done", ["bmc silent", "pdu done"]), done
        assert machine.boot_id() not in (None, up)
        assert power.plan(lab, ANN, "host1").order == ("ssh", "pdu", "bmc")
    finally:
        pdu.stop()


# -- the serial line ------------------------------------------------------------------------------------------------


@pytest.fixture
def chassis(lab: Lab, machine: Domain, up: str, tmp_path: Path) -> Iterator[EmulatedMachine]:
    """ipmi_sim before the same domain: its serial port is what serial over LAN carries.  host1 has no ssh."""
    (tmp_path / "sol").mkdir()
    emulated = EmulatedMachine(tmp_path / "sol", chassis=machine.chassis, serial_port=machine.serial_port)
    secrets.put(lab, ADMIN, "bmc", "admin", PASSWORD)
    add_machine(lab, policy={"power": POLICY})
    for kind in ("bmc", "console"):
        add_endpoint(lab, "host1", kind, "ipmi", f"127.0.0.1:{emulated.bmc_port}", secret="bmc", cipher=3)
    try:
        emulated.start_bmc()
        yield emulated
    finally:
        emulated.stop()


def test_a_held_serial_over_lan_is_freed_and_shows_a_reset(
    lab: Lab, machine: Domain, chassis: EmulatedMachine, up: str
) -> None:
    environment = {**os.environ, "IPMITOOL_PASSWORD": PASSWORD}
    with held_by_somebody_else(chassis, environment), Consoles(lab, QUICK):
        ann = Client(lab, ANN).hears("state", line="up")
        [freed] = events(lab, "console.freed")
        assert "another session" in freed["why"]
        ann.types_until_answered(b"\r", b"chassis login: ")
        assert not events(lab, "console.boot")
        # Nobody can ask this host over ssh which boot it is in: what its kernel prints is the proof.
        done = power.switch(lab, ANN, "host1", "reset")
        assert (done.result, done.verified_by) == ("done", "the console showed a boot"), done
        assert events(lab, "console.boot")[-1]["line"].startswith("Linux version 6.")
    assert machine.up() != up


@contextlib.contextmanager
def held_by_somebody_else(chassis: EmulatedMachine, environment: dict[str, str]) -> Iterator[None]:
    """A client that has the session, and was killed."""
    ours, its = os.openpty()
    holder = subprocess.Popen(sol(chassis, "sol", "activate"), stdin=its, stdout=its, stderr=its, env=environment)
    try:
        os.close(its)
        assert b"operational" in os.read(ours, 1000)
        holder.kill()
        holder.wait()
        yield
    finally:
        os.close(ours)


def test_a_serial_port_that_somebody_else_holds_is_told(lab: Lab, machine: Domain, up: str) -> None:
    """QEMU serves one at a time; the second one is connected all the same, and hears nothing."""
    add_machine(lab)
    add_endpoint(lab, "host1", "console", "tcp", f"127.0.0.1:{machine.serial_port}")
    with socket.create_connection(("127.0.0.1", machine.serial_port)) as holder:
        holder.sendall(b"\r")
        assert holder.recv(1)
        with Consoles(lab, QUICK):
            ann = Client(lab, ANN).hears("state", line="up").types(b"\r")
            until(lambda: events(lab, "console.freed"))
            until(lambda: "somebody else" in console.state(lab, ANN, "host1").why)
            holder.shutdown(socket.SHUT_RDWR)
            ann.types_until_answered(b"\r", b"login: ")
            until(lambda: console.state(lab, ANN, "host1").why == "")
