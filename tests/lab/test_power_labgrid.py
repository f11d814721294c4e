"""Outlets by labgrid's own drivers: the real package, in an environment of its own, before a PDU that is a web page."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from tools.environment import environment

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import endpoints, power, secrets
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Credentials, PowerFailed, Way
from evenkeel.lab.power_drivers.labgrid import Labgrid
from tests.lab.emulated import EmulatedMachine, add_machine, emulated_machine, ssh_endpoint
from tests.lab.serving import answering
from tests.lab.test_power import ADMIN, ANN, tried

PASSWORD = "opens:the/outlet!"


@dataclass
class Outlets:
    """What two of labgrid's backends ask of a PDU: the resource of ``rest``, and the pages of ``gude``.

    ``wired``: switches the chassis behind outlet 3, if there is one; ``slow_s``: before each answer; ``slow_on``: the
    first time that it is told on; ``asks``: for a password at the resource.
    """

    url: str = ""
    on: dict[str, bool] = field(default_factory=lambda: {"3": True, "4": False})
    wired: EmulatedMachine | None = None
    slow_s: float = 0.0
    slow_on: bool = False
    asks: bool = False
    seen: list[str] = field(default_factory=list)

    def switch(self, outlet: str, on: bool) -> None:
        self.on[outlet] = on
        if self.wired is not None and outlet == "3":
            folder = str(self.wired.folder)
            subprocess.run([f"{folder}/chassis", folder, "-", "set", "power", "1" if on else "0"], check=True)


@pytest.fixture
def outlets() -> Iterator[Outlets]:
    made = Outlets()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(made.slow_s)
            made.seen.append(f"{self.command} {self.path}")
            parts = urlsplit(self.path)
            if parts.path.startswith("/relay/"):
                outlet = parts.path.split("/")[2]
                wanted = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
                if made.asks and self.headers.get("Authorization") != wanted:
                    self._answer(401, "")
                elif outlet not in made.on:
                    self._answer(404, "")
                else:
                    if self.command == "PUT":
                        size = int(self.headers["Content-Length"])
                        on = self.rfile.read(size) == b"1"
                        if on and made.slow_on:
                            made.slow_on = False
                            time.sleep(30)
                        made.switch(outlet, on)
                    self._answer(200, "1" if made.on[outlet] else "0")
            elif parts.path == "/switch.html":
                asked = parse_qs(parts.query)
                made.switch(asked["p"][0], asked["s"] == ["1"])
                self._answer(200, "")
            else:
                lines = (f"<td>Power Port {n}</td> <b>{'ON' if on else 'OFF'}</b>" for n, on in made.on.items())
                self._answer(200, "\n".join(lines))

        do_PUT = do_GET

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # who asked was ended by its deadline
                self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    with answering(Handler) as port:
        made.url = f"http://127.0.0.1:{port}"
        yield made


@pytest.fixture
def labgrid(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = environment(".venv-labgrid", Path(__file__).with_name("labgrid.txt"), "labgrid")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


def outlet(address: str, model: str, index: str = "3", credentials: Credentials | None = None) -> Labgrid:
    options = {"model": model, "index": index}
    return Labgrid(Way("pdu", "labgrid", address, options, credentials or Credentials()))


def resource(outlets: Outlets) -> str:
    return f"{outlets.url}/relay/{{index}}/value"


@pytest.mark.long
@pytest.mark.parametrize("model", ["rest", "gude"])
def test_on_off_and_what_it_reads(labgrid: None, outlets: Outlets, model: str) -> None:
    address = resource(outlets) if model == "rest" else outlets.url.removeprefix("http://")
    driver = outlet(address, model, "4")
    assert driver.status(60) == "off"
    assert driver.act("on", 60) == f"labgrid {model} on"
    assert (driver.status(60), outlets.on) == ("on", {"3": True, "4": True})
    assert outlet(address, model).act("off", 60) == f"labgrid {model} off"
    assert outlets.on == {"3": False, "4": True}


@pytest.mark.long
def test_a_power_cycle_is_off_then_on_and_proved_by_the_boot_id(
    labgrid: None, outlets: Outlets, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with emulated_machine(tmp_path_factory.mktemp("chassis") / "m") as chassis:
        outlets.wired = chassis
        add_machine(lab, policy={"power": {"ssh_s": 60.0, "pdu_s": 60.0, "down_s": 5.0}})
        ssh_endpoint(lab, "host1", chassis.start_ssh())
        wanted = endpoints.NewEndpoint(
            kind="pdu", driver="labgrid", address=resource(outlets), options={"model": "rest", "index": "3"}
        )
        endpoints.put(lab, ANN, "host1", wanted)
        done = power.switch(lab, ANN, "host1", "cycle")
        assert (done.result, tried(done)) == ("done", ["pdu done"]), done
        assert chassis.commands() == ["power 0", "power 1"]
        assert "labgrid rest off, then labgrid rest on" in done.tried[0].detail


@pytest.mark.long
def test_an_outlet_that_does_not_answer_to_on_is_not_left_off(labgrid: None, outlets: Outlets) -> None:
    outlets.slow_on = True
    assert "labgrid rest on" in outlet(resource(outlets), "rest").act("cycle", 10)
    assert outlets.on["3"]


@pytest.mark.long
def test_a_password_goes_into_the_url_and_no_further(labgrid: None, outlets: Outlets) -> None:
    outlets.asks = True
    right = Credentials("admin", PASSWORD)
    assert outlet(resource(outlets), "rest", credentials=right).status(60) == "on"
    with pytest.raises(PowerFailed, match="401") as caught:
        outlet(resource(outlets), "rest", credentials=Credentials("admin", "a/wrong:one")).status(60)
    assert "wrong" not in caught.value.message
    with pytest.raises(PowerFailed, match="only for an address that is a URL"):
        outlet("127.0.0.1", "gude", credentials=right).status(60)


@pytest.mark.long
def test_what_does_not_answer_or_is_not_there(labgrid: None, outlets: Outlets) -> None:
    with pytest.raises(PowerFailed, match="labgrid rest: HTTPError: 404"):
        outlet(resource(outlets), "rest", "9").status(60)
    with pytest.raises(PowerFailed, match="labgrid has no model 'toaster'"):
        outlet("127.0.0.1", "toaster").status(60)
    outlets.slow_s = 30.0
    for act in (True, False):
        with pytest.raises(PowerFailed, match="no answer within 8 s") as caught:
            _ = outlet(resource(outlets), "rest").act("off", 8) if act else outlet(resource(outlets), "rest").status(8)
        assert (caught.value.silent, caught.value.late) == (True, act)


def test_without_labgrid_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PowerFailed, match="labgrid is not installed") as caught:
        outlet("127.0.0.1", "gude").status(5)
    assert caught.value.hint == "pipx install labgrid"


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("127.0.0.1", {}),
        ("127.0.0.1", {"model": "../rest"}),
        ("pdu:door", {"model": "apc"}),
        ("http://admin:secret@pdu/relay", {"model": "rest"}),
        ("file:///etc/passwd", {"model": "rest"}),
    ],
)
def test_wrong_input_is_refused_when_it_is_set(lab: Lab, address: str, options: dict[str, str]) -> None:
    add_machine(lab)
    with pytest.raises(WrongInput):
        endpoints.put(
            lab, ANN, "host1", endpoints.NewEndpoint(kind="pdu", driver="labgrid", address=address, options=options)
        )
    secrets.put(lab, ADMIN, "pdu", "admin", PASSWORD)
    with pytest.raises(EvenkeelError, match="only for an address that is a URL"):
        endpoints.put(
            lab,
            ADMIN,
            "host1",
            endpoints.NewEndpoint(
                kind="pdu", driver="labgrid", address="127.0.0.1", secret="pdu", options={"model": "gude"}
            ),
        )
