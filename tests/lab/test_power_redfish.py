"""Redfish against the real emulator of OpenStack (sushy-tools) with its fake chassis."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from evenkeel.lab import endpoints, power
from evenkeel.lab.actor import with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import PowerFailed, Way
from evenkeel.lab.power_drivers.redfish import Redfish
from tests.lab.emulated import add_machine
from tests.lab.emulators import redfish
from tests.lab.serving import answering
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


def test_an_image_is_put_in_booted_from_and_taken_out(emulator: str, tmp_path: Path) -> None:
    """What an installation does (test_media.py), with somebody else's idea of virtual media."""
    (tmp_path / "host.iso").write_bytes(b"\0" * 4096)
    bmc = Redfish(Way("bmc", "redfish", emulator))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with answering(handler) as port:
        url = f"http://127.0.0.1:{port}"
        usual, before = bmc.usual_boot(60), _boot_target(emulator)
        for _ in range(2):  # the second one takes the place of what is in the drive
            bmc.insert(f"{url}/host.iso", 60)
        bmc.boot_from_media(60)
        assert _boot_target(emulator) == "Cd"
        bmc.boot_from_network(60)
        assert _boot_target(emulator) == "Pxe"
        usual(60)
        assert _boot_target(emulator) == before
        bmc.eject(60)
        bmc.eject(60)  # of an empty drive is no mistake
        with pytest.raises(PowerFailed, match="404"):
            bmc.insert(f"{url}/no-such.iso", 60)


def _boot_target(emulator: str) -> str:
    system = httpx.get(f"{emulator}/redfish/v1/Systems").json()["Members"][0]["@odata.id"]
    return str(httpx.get(f"{emulator}{system}").json()["Boot"]["BootSourceOverrideTarget"])


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
