"""Power and console of a real virtual host: a cycle and a reset proved by the boot id, its console recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.lab import console, health, power
from evenkeel.lab.actor import with_roles
from evenkeel.lab.console import Consoles
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Store, create, sqlite_url
from evenkeel.machines.virtual import VirtualMachine, lifecycle
from evenkeel.machines.virtual.spec import BUILT_IN
from tests.lab.emulated import add_endpoint, add_machine
from tests.lab.test_console import Client, events
from tests.lab.test_power import tried
from tests.virtual.conftest import remove_orphans, running_host
from tests.waiting import until

pytestmark = [pytest.mark.virtual, pytest.mark.long]
ANN = with_roles("ann", ["user"])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """With the clock of the wall: a real boot does not move ours."""
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        create(store)
        yield Lab(tmp_path, store)


@pytest.fixture
def host(lab: Lab) -> Iterator[VirtualMachine]:
    remove_orphans()
    with running_host("power", BUILT_IN["tiny"]) as machine:
        add_machine(lab, policy={"power": {"down_s": 60, "shutdown_s": 240, "boot_s": 420}})
        for kind, driver in (("ssh", "ssh"), ("hypervisor", "virtual")):
            add_endpoint(lab, "host1", kind, driver, machine.address)
        yield machine


def test_power_and_console_of_a_virtual_host(lab: Lab, host: VirtualMachine) -> None:
    with Consoles(lab):
        ann = Client(lab, ANN).hears("state", line="up", you_write=True)
        assert power.plan(lab, ANN, "host1").order == ("ssh", "hypervisor")
        begin_ns = lab.now()
        before = lifecycle.read_boot_id(host.ssh_target())
        cycled = power.switch(lab, ANN, "host1", "cycle")
        after = lifecycle.read_boot_id(host.ssh_target())
        assert (cycled.result, tried(cycled)) == ("done", ["hypervisor done"]), cycled
        # A busy emulated host may not have told its boot id in time before: then the age of the new one counts.
        assert after != before and after[:8] in cycled.verified_by
        booted = "Loading Linux "  # of its boot loader; the image's kernel is quiet
        until(lambda: booted in console.text(lab, ANN, "host1", begin_ns))
        [recorded] = console.recordings(lab, ANN, "host1")
        assert "boot" in [label for _, label in recorded.marks]
        assert events(lab, "console.boot")
        # The image logs root in on its console.
        seen = len(ann.until(lambda it: b"login: " in it.seen or b":~# " in it.seen, 240).seen)
        ann.types(b"\r").until(lambda it: len(it.seen) > seen)

        found = {one.probe: one for one in health.look(lab, "host1")}
        assert set(found) == {"ssh", "login", "console"} and all(one.ok for one in found.values()), found
        status = power.status(lab, ANN, "host1")
        assert (status.power, [said.reading for said in status.said]) == ("on", ["on"])

        reset = power.switch(lab, ANN, "host1", "reset")
        assert (reset.result, tried(reset)) == ("done", ["ssh done"]), reset
        begin = time.monotonic()
        off = power.switch(lab, ANN, "host1", "off", method="hypervisor")
        assert (off.result, off.verified_by) == ("done", "two readings of hypervisor")
        assert time.monotonic() - begin < 60
        assert power.status(lab, ANN, "host1").power == "off"
