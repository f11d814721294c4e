"""Redfish against the real emulator of OpenStack (sushy-tools), in an environment of its own, with its fake chassis."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.lab import endpoints, power
from evenkeel.lab.actor import with_roles
from evenkeel.lab.lab import Lab
from tests.lab.emulated import add_machine
from tests.lab.test_power import tried

pytestmark = pytest.mark.long
ANN = with_roles("ann", ["user"])
VERSION = "sushy-tools==2.2.0"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL.  Its chassis takes some seconds to switch, as real ones do."""
    folder = tmp_path_factory.mktemp("sushy")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    subprocess.run([folder / "venv/bin/pip", "install", "-q", VERSION], check=True, timeout=600)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Its state is a file in the temporary folder.
    environment = {"TMPDIR": str(folder), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    argv = [str(folder / "venv/bin/sushy-emulator"), "--fake", "-i", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, folder / "log")
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_until_up(url: str, log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/redfish/v1/", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


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
