"""A BMC that speaks as much Redfish as an installation by virtual media needs, before the chassis of files.

sushy-tools' emulator, which is somebody else's, is in test_power_redfish.py; this one has faults that it cannot have.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.lab.emulated import EmulatedMachine
from tests.lab.serving import answering

_SYSTEM = "/redfish/v1/Systems/1"
_DRIVE = f"{_SYSTEM}/VirtualMedia/Cd"
_SETTLED = {"BootSourceOverrideTarget": "None", "BootSourceOverrideEnabled": "Disabled"}


@dataclass
class StandIn:
    """``faults``: ``refuses`` images, has an ``empty`` drive whatever it says, ``forgets`` to boot from it, ``deaf`` to
    resets, ``keeps`` an image that it says it ejected, ``no-drive``; ``dead``: what was installed does not boot.

    An image named ``live`` runs from memory: its mark goes with the next boot, and the disk is as it was.  A disk that
    is ``blank`` boots nothing that answers, until something is installed."""

    machine: EmulatedMachine
    faults: set[str] = field(default_factory=set)
    image: str | None = None
    boot: dict[str, str] = field(default_factory=lambda: dict(_SETTLED))
    #: What it was told, in order.
    told: list[str] = field(default_factory=list)
    url: str = ""

    def read(self, path: str) -> Any:
        power = "On" if self.machine.powered else "Off"
        inserted = self.image is not None and "empty" not in self.faults
        cd = {"Id": "Cd", "Name": "Virtual CD", "MediaTypes": ["CD", "DVD"], "Inserted": inserted}
        cd |= {"Image": self.image if inserted else None, "ConnectedVia": "URI" if inserted else "NotConnected"}
        cd["Actions"] = {
            f"#VirtualMedia.{what}": {"target": f"{_DRIVE}/{what}"} for what in ("InsertMedia", "EjectMedia")
        }
        stick = {"Id": "Usb", "Name": "Virtual stick", "MediaTypes": ["USBStick"], "Inserted": False}
        system: dict[str, Any] = {"Id": "1", "Name": "host1", "PowerState": power, "Boot": self.boot}
        system["Boot"] |= {"BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe", "Hdd", "Cd"]}
        kinds = ["On", "ForceOff", "ForceRestart", "PowerCycle"]
        reset = {"target": f"{_SYSTEM}/Reset", "ResetType@Redfish.AllowableValues": kinds}
        system["Actions"] = {"#ComputerSystem.Reset": reset}
        system["Links"] = {"ManagedBy": []}
        if "no-drive" not in self.faults:
            system["VirtualMedia"] = {"@odata.id": f"{_SYSTEM}/VirtualMedia"}
        root = {"Id": "Root", "Name": "Root", "RedfishVersion": "1.6.0", "UUID": "1"}
        root |= {"Systems": {"@odata.id": "/redfish/v1/Systems"}}  # type: ignore[dict-item]
        return {
            "/redfish/v1": root,
            "/redfish/v1/Systems": _members("Systems", _SYSTEM),
            _SYSTEM: system,
            f"{_SYSTEM}/VirtualMedia": _members("VirtualMedia", f"{_SYSTEM}/VirtualMedia/Usb", _DRIVE),
            f"{_SYSTEM}/VirtualMedia/Usb": stick,
            _DRIVE: cd,
        }.get(path.rstrip("/"))

    def write(self, path: str, body: dict[str, Any]) -> int:
        match path:
            case "/redfish/v1/Systems/1":
                self.boot = _SETTLED | body["Boot"]
                self.told.append("boot {BootSourceOverrideTarget} {BootSourceOverrideEnabled}".format_map(self.boot))
            case "/redfish/v1/Systems/1/Reset":
                self.told.append(body["ResetType"])
                self._reset(body["ResetType"])
            case "/redfish/v1/Systems/1/VirtualMedia/Cd/InsertMedia":
                self.told.append("insert")
                if "refuses" in self.faults:
                    return 400
                self.image = body["Image"]
            case "/redfish/v1/Systems/1/VirtualMedia/Cd/EjectMedia":
                self.told.append("eject")
                if "keeps" not in self.faults:
                    self.image = None
            case _:
                return 404
        return 204

    def _reset(self, kind: str) -> None:
        if "deaf" in self.faults:
            return
        (self.machine.folder / "boot").write_text(self.boot["BootSourceOverrideTarget"].lower())
        if kind != "ForceOff" and self.boot["BootSourceOverrideTarget"] == "Cd" and self.image:
            self.boot = dict(_SETTLED)
            if "forgets" not in self.faults:
                self._run(self.image)
                self.machine.fault("hung", "dead" in self.faults)
        elif kind != "ForceOff" and "blank" in self.faults:
            self.machine.fault("hung")
        for state in {"ForceOff": "0", "On": "1"}.get(kind, "01"):
            subprocess.run(
                [self.machine.folder / "chassis", self.machine.folder, "-", "set", "power", state], check=True
            )

    def _run(self, image: str) -> None:
        folder = self.machine.folder
        if "live" in image:
            (folder / "live").touch()
            return
        for gone in ("memory", "disk-mark", "mark"):  # as all that was on its disk
            (folder / gone).unlink(missing_ok=True)
        self.faults.discard("blank")


def _members(name: str, *paths: str) -> dict[str, Any]:
    members = [{"@odata.id": path} for path in paths]
    return {"Name": name, "Members": members, "Members@odata.count": len(members)}


@contextlib.contextmanager
def stand_in(machine: EmulatedMachine) -> Iterator[StandIn]:
    bmc = StandIn(machine)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = bmc.read(self.path)
            self._answer(200 if found is not None else 404, found or {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(bmc.write(self.path, json.loads(body or b"{}")), {})

        do_PATCH = do_POST

        def _answer(self, status: int, data: Any) -> None:
            text = json.dumps(data | {"@odata.id": self.path}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text) if status != 204 else 0))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if status != 204:
                self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None: ...

    with answering(Handler) as port:
        bmc.url = f"http://127.0.0.1:{port}"
        yield bmc
