"""A BMC that speaks Redfish, by the library sushy.

Every command opens its own connection: BMCs forget sessions, and restart under one.  sushy's own retries are off; the
ladder has the next rung.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from evenkeel.errors import WrongInput
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way, off_and_on, within

T = TypeVar("T")
#: ResetType of Redfish's ComputerSystem.Reset.
_RESETS: dict[str, tuple[str, ...]] = {
    "on": ("On", "ForceOn"),
    "off": ("ForceOff",),
    "reset": ("ForceRestart",),
    "cycle": ("PowerCycle",),
}


class Redfish:
    """``address``: ``https://HOST[:PORT]``.  ``options``: ``system`` (path, when there are several), ``verify``."""

    actions: frozenset[Action] = frozenset({"on", "off", "reset", "cycle"})
    reads_machine = True

    def __init__(self, way: Way) -> None:
        parts = urlsplit(way.address if "://" in way.address else f"https://{way.address}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WrongInput(f"{way.address!r} is no address of a Redfish service", hint="https://HOST[:PORT]")
        self._way = way
        self._url = f"{parts.scheme}://{parts.netloc}"
        self._where = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)

    def status(self, deadline_s: float) -> Reading:
        state = str(self._ask(deadline_s, lambda system: system.json.get("PowerState")))
        # PoweringOn and PoweringOff are neither.
        return "on" if state == "On" else "off" if state == "Off" else "unknown"

    def act(self, action: Action, deadline_s: float) -> str:
        if action == "cycle" and not self._ask(deadline_s, _knows_cycle):
            # A restart would not cut the power.
            return off_and_on(self, f"BMC {self._where[0]}", deadline_s)

        end = time.monotonic() + deadline_s
        sent = threading.Event()

        def command(system: Any) -> str:
            reset = system.json["Actions"]["#ComputerSystem.Reset"]
            can = reset.get("ResetType@Redfish.AllowableValues") or _RESETS[action]
            kind = next((kind for kind in _RESETS[action] if kind in can), None)
            if kind is None:
                raise PowerFailed(f"BMC {self._where[0]} knows no {action}, only {', '.join(can)}")
            if time.monotonic() > end:
                # Who asked has gone on: to another way, or to telling that it failed.
                raise PowerFailed(f"BMC {self._where[0]}: too late to {action}", silent=True)
            sent.set()
            system._conn.post(reset["target"], data={"ResetType": kind})
            return f"Redfish ResetType {kind}"

        try:
            return self._ask(deadline_s, command)
        except PowerFailed as error:
            error.late = error.silent and sent.is_set()
            raise

    def watts(self, deadline_s: float) -> float | None:
        def read(system: Any) -> float | None:
            for chassis in system.json.get("Links", {}).get("Chassis", []):
                power = system._conn.get(chassis["@odata.id"]).json().get("Power")
                if power:
                    found = watts_of(system._conn.get(power["@odata.id"]).json())
                    if found is not None:
                        return found
            return None

        return self._ask(deadline_s, read)

    def _ask(self, deadline_s: float, ask: Callable[[Any], T]) -> T:
        try:
            # A silent address is told apart before a library with its own idea of patience is in it.
            socket.create_connection(self._where, timeout=min(2.4, deadline_s)).close()
        except OSError as error:
            raise PowerFailed(f"BMC {self._where[0]}: {error.strerror or 'silent'}", silent=True) from None

        def talk() -> T:
            import requests
            import sushy

            try:
                root = sushy.Sushy(
                    self._url,
                    username=self._way.credentials.user or None,
                    password=self._way.credentials.password or None,
                    verify=bool(self._way.options.get("verify", True)),
                    server_side_retries=0,
                    read_timeout=deadline_s,
                    connect_timeout=deadline_s,
                )
                return ask(root.get_system(self._way.options.get("system")))
            except (sushy.exceptions.SushyError, requests.exceptions.RequestException, KeyError) as error:
                mute = isinstance(error, sushy.exceptions.ConnectionError)  # a time-out as well
                raise PowerFailed(f"BMC {self._where[0]}: {str(error)[:300]}", silent=mute) from None

        return within(deadline_s, f"BMC {self._where[0]}", talk)


def _knows_cycle(system: Any) -> bool:
    reset = system.json["Actions"]["#ComputerSystem.Reset"]
    return "PowerCycle" in reset.get("ResetType@Redfish.AllowableValues", [])


def watts_of(power: dict[str, Any]) -> float | None:
    """Of a Redfish ``Power`` resource: the sum of what its controls read; None when none does."""
    found = [control.get("PowerConsumedWatts") for control in power.get("PowerControl", [])]
    told = [float(watts) for watts in found if watts is not None]
    return sum(told) if told else None
