"""Power, endpoints, secrets and consoles over REST, on pages and in the terminal; another's machine is out of reach."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evenkeel.cli.lab_console import Keys
from evenkeel.lab.console import Consoles, Times
from evenkeel.lab.lab import Lab
from tests.lab.emulated import add_endpoint, add_machine
from tests.lab.service import evenkeel, up
from tests.lab.test_console import Serial
from tests.waiting import until

Ask = Callable[..., TestClient]
ENDPOINT = {"kind": "bmc", "driver": "ipmi", "address": "127.0.0.1:9", "secret": "bmc"}


@pytest.fixture
def host(lab: Lab) -> str:
    return add_machine(lab)


def test_endpoints_and_secrets(lab: Lab, ask: Ask, host: str) -> None:
    ann, root = ask("ann"), ask("root", "admin")
    refused = root.post("/api/v1/machines/host1/endpoints", json=ENDPOINT)
    assert (refused.status_code, refused.json()["detail"]) == (422, "no secret bmc")
    assert ann.put("/api/v1/secrets/bmc", json={"password": "x"}).status_code == 403
    kept = root.put("/api/v1/secrets/bmc", json={"user": "admin", "password": "hidden-word"})
    assert kept.status_code == 200 and "hidden-word" not in kept.text
    assert "hidden-word" not in root.get("/api/v1/secrets").text
    # An owner says how it is reached, but not where a password is sent, nor what the lab by itself may reach.
    for beyond in (
        ENDPOINT,
        {"kind": "console", "driver": "unix", "address": str(lab.folder / "lab.sock")},
        {"kind": "console", "driver": "ssh", "address": "ssh://root@host2"},
        {"kind": "console", "driver": "tcp", "address": "127.0.0.1:9", "options": {"watch": {"x": "panic"}}},
        {
            "kind": "pdu",
            "driver": "pdu",
            "address": "127.0.0.1",
            "options": {"agent": "fence_apc", "password_script": "id"},
        },
    ):
        assert ann.post("/api/v1/machines/host1/endpoints", json=beyond).status_code == 403, beyond
    plain = {"kind": "console", "driver": "tcp", "address": "127.0.0.1:9"}
    own = ann.post("/api/v1/machines/host1/endpoints", json=plain)
    assert own.status_code == 200
    assert ann.delete(f"/api/v1/machines/host1/endpoints/{own.json()['id']}").status_code == 204
    made = root.post("/api/v1/machines/host1/endpoints", json=ENDPOINT)
    assert made.status_code == 200
    again = root.post("/api/v1/machines/host1/endpoints", json=ENDPOINT | {"options": {"cipher": 3}}).json()
    assert again["id"] == made.json()["id"] and again["options"] == {"cipher": 3}
    assert ask("bob").post("/api/v1/machines/host1/endpoints", json=ENDPOINT).status_code == 403
    for wrong in (
        {"driver": "telnet"},
        {"address": "a b"},
        {"kind": "pdu", "driver": "pdu", "options": {"agent": "rm -rf"}},
        {"kind": "console", "driver": "tcp", "options": {"watch": {"x": "("}}},
        {"kind": "bmc", "driver": "redfish", "address": "ftp://x"},
    ):
        assert ann.post("/api/v1/machines/host1/endpoints", json=ENDPOINT | wrong).status_code == 422, wrong
    assert root.delete("/api/v1/secrets/bmc").status_code == 409
    assert root.post("/api/v1/secrets/rotate").json() == {"sealed": 1}
    assert ann.delete(f"/api/v1/machines/host1/endpoints/{again['id']}").status_code == 204
    assert ann.get("/api/v1/machines/host1/endpoints").json() == []
    assert root.delete("/api/v1/secrets/bmc").status_code == 204


def test_switching_over_rest_and_on_the_page(ask: Ask, lab: Lab, host: str) -> None:
    ann, bob = ask("ann"), ask("bob")
    add_endpoint(lab, "host1", "hypervisor", "virtual", "no-such-virtual-host")
    assert ann.post("/api/v1/machines/host1/power", json={"action": "explode"}).status_code == 422
    assert bob.post("/api/v1/machines/host1/power", json={"action": "off"}).status_code == 403
    begun = ann.post("/api/v1/machines/host1/power", json={"action": "reset"})
    assert begun.status_code == 202
    ended = ann.get(begun.headers["location"], params={"wait_ns": 10**10}).json()
    assert ended["result"] == "failed" and ended["tried"][0]["method"] == "hypervisor"
    assert [one["id"] for one in bob.get("/api/v1/machines/host1/power/events").json()["items"]] == [ended["id"]]
    assert bob.get("/api/v1/machines/host1/power").json()["power"] == "unknown"
    assert ann.get("/api/v1/machines/host1/power/plan").json()["order"] == ["hypervisor"]
    page = ann.get("/machines/host1/power").text
    assert "Power cycle" in page and "hypervisor" in page and "0 of 1 worked" in page
    assert "Power cycle" not in bob.get("/machines/host1/power").text
    assert "<html" not in ann.get("/machines/host1/power", headers={"HX-Request": "true"}).text
    assert ann.post("/machines/host1/power", data={"action": "on"}).status_code == 303
    assert bob.post("/machines/host1/power", data={"action": "on"}).status_code == 403
    until(lambda: ann.get("/api/v1/machines/host1/power/events").json()["items"][0]["result"] == "failed")


def test_a_console_over_a_websocket(ask: Ask, lab: Lab, host: str, tmp_path: Path) -> None:
    serial = Serial(tmp_path / "console.sock")
    add_endpoint(lab, "host1", "console", "unix", str(serial.path))
    ann = ask("ann")
    with Consoles(lab, Times(retry_s=(0.1, 0.5))):
        serial.says(b"host1 login: ")
        with ann.websocket_connect("/api/v1/machines/host1/console/attach") as line:
            seen = b""
            told: list[dict[str, Any]] = []
            while b"login" not in seen or not any(one["you_write"] and one["line"] == "up" for one in told):
                message = line.receive()
                if message.get("bytes"):
                    seen += message["bytes"]
                elif message.get("text"):
                    told.append(json.loads(message["text"]))
            line.send_text('{"do": "resize", "columns": 120, "rows": 40}')
            line.send_text("nonsense")
            line.send_bytes(b"root\r")
            until(lambda: serial.got == b"root\r")
            [state] = ask("bob").get("/api/v1/consoles").json()
            assert (state["writer"], state["line"]) == ("ann", "up")
        with ask("eve", "viewer").websocket_connect("/api/v1/machines/host1/console/attach") as line:
            refused = json.loads(line.receive()["text"])
            # As the terminal and the page look for it.
            assert (refused["type"], refused["title"]) == ("error", "Forbidden")
        assert ask("bob").post("/api/v1/machines/host1/console/reset").status_code == 403
        page = ann.get("/machines/host1/console").text
        assert "Reset a stuck line" in page and "writer ann" in page
        assert "Reset a stuck line" not in ask("bob").get("/machines/host1/console").text
        [recorded] = ann.get("/api/v1/machines/host1/console/recordings").json()
        cast = ann.get(f"/api/v1/machines/host1/console/recordings/{recorded['name']}").text
        assert '"r", "120x40"' in cast and "login" in cast and "root" not in cast
        assert ann.get("/api/v1/machines/host1/console/text").text == "host1 login: "
        serial.stop()


def test_escapes_are_cut_out_of_what_is_typed() -> None:
    keys = Keys()
    assert keys.typed(b"~.") == ["."]
    assert keys.typed(b"a~.b\r~") == [b"a~.b\r"]
    assert keys.typed(b"~") == [b"~"]
    assert keys.typed(b"x\r~a~?") == [b"x\r", "a", "?"]
    assert keys.typed(b"~x\r") == [b"~x\r"]
    assert keys.typed(b"one\r~gtwo") == [b"one\r", "g", b"two"]


class _Terminal:
    """A command in a terminal of its own, as a person has it."""

    def __init__(self, *argv: str) -> None:
        self.screen = b""
        self._ours, its = pty.openpty()
        self._process = subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, start_new_session=True)
        os.close(its)

    def sees(self, text: bytes) -> _Terminal:
        end = time.monotonic() + 120
        while text not in self.screen:
            assert time.monotonic() < end, self.screen
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    self.screen += os.read(self._ours, 65536)
                except OSError:
                    assert text in self.screen, self.screen
        return self

    def types(self, data: bytes) -> _Terminal:
        os.write(self._ours, data)
        return self

    def ends(self) -> int:
        code = self._process.wait(120)
        os.close(self._ours)
        return code


@pytest.mark.long
def test_a_console_in_the_terminal_of_a_real_service(tmp_path: Path) -> None:
    serial = Serial(tmp_path / "console.sock")
    threading.Thread(target=_echo, args=(serial,), daemon=True).start()
    with up(tmp_path / "lab") as service:
        base = [sys.executable, "-m", "evenkeel", "lab"]
        at = ["--lab", str(tmp_path / "lab")]
        with service.client() as lab:
            lab.post("/machines", {"name": "host1"})
            lab.post("/machines/host1/endpoints", {"kind": "console", "driver": "unix", "address": str(serial.path)})
        terminal = _Terminal(*base, "console", "host1", *at)
        terminal.sees(b"[line is up]").sees(b"[you write]").types(b"uname\r").sees(b"echo uname")
        second = _Terminal(*base, "console", "host1", "--read-only", *at).sees(b"writes, you read; ~a asks]")
        second.sees(b"echo uname").types(b"\r~.")
        assert second.ends() == 0
        terminal.types(b"~?").sees(b"hand over to who asked").types(b"~.")
        assert terminal.ends() == 0
        assert "echo uname" in evenkeel("lab", "console", "host1", "--log", "1h", *at).stdout
        assert json.loads(evenkeel("lab", "consoles", "--json", *at).stdout)[0]["line"] == "up"
    serial.stop()


def _echo(serial: Serial) -> None:
    """A host that says what it heard."""
    heard = 0
    while True:
        time.sleep(0.02)
        if serial.got.count(b"\r") > heard:
            heard = serial.got.count(b"\r")
            serial.says(b"\r\necho " + serial.got.split(b"\r")[heard - 1] + b"\r\n")
