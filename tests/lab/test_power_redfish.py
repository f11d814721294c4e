"""Redfish against the real emulator of OpenStack (sushy-tools) with its fake chassis."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from evenkeel.lab import endpoints, power
from evenkeel.lab.actor import with_roles
from evenkeel.lab.lab import Lab
from tests.lab.emulated import add_machine
from tests.lab.emulators import redfish
from tests.lab.test_power import tried

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.getuid() != 0, reason="the emulator is contained in namespaces, which needs root"),
]
ANN = with_roles("ann", ["user"])


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL.  Its chassis takes some seconds to switch, as real ones do."""
    with redfish(tmp_path_factory.mktemp("sushy"), "127.0.0.1", "--fake") as (url, _):
        yield url


def test_on_off_and_cycle_by_redfish(lab: Lab, emulator: str) -> None:
    add_machine(lab, policy={"power": {"down_s": 30}})
    endpoints.put(lab, ANN, "host1", endpoints.NewEndpoint(kind="bmc", driver="redfish", address=emulator))
    on = power.switch(lab, ANN, "host1", "on")
    assert (on.result, on.verified_by) == ("done", "two readings of bmc"), on
    assert on.tried[0].detail.startswith("Redfish ResetType On")
    off = power.switch(lab, ANN, "host1", "off")
    assert (off.result, tried(off)) == ("done", ["bmc done"]), off
    # Its chassis knows no power cycle; and without ssh and console nobody can say whether the machine started.
    cycled = power.switch(lab, ANN, "host1", "cycle")
    assert (cycled.result, tried(cycled)) == ("unknown", ["bmc unverified"]), cycled
    assert cycled.tried[0].detail.startswith("Redfish ResetType ForceOff, then Redfish ResetType On")


def test_a_service_that_is_not_there_is_silent(lab: Lab) -> None:
    add_machine(lab)
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = server.getsockname()[1]
    endpoints.put(
        lab, ANN, "host1", endpoints.NewEndpoint(kind="bmc", driver="redfish", address=f"http://127.0.0.1:{gone}")
    )
    begin = time.monotonic()
    off = power.switch(lab, ANN, "host1", "off")
    assert (off.result, tried(off)) == ("failed", ["bmc silent"])
    assert time.monotonic() - begin < 30
