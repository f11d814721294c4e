"""A BMC that speaks Redfish, by the library sushy.

Every command opens its own connection: BMCs forget sessions, and restart under one.  sushy's own retries are off; the
ladder has the next rung.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from evenkeel.errors import WrongInput
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way, off_and_on, within

T = TypeVar("T")
_LOOK_S = 0.4
#: Option ``drive`` of an endpoint that was seen to have none.
NO_DRIVE = "none"
#: ResetType of Redfish's ComputerSystem.Reset.
_RESETS: dict[str, tuple[str, ...]] = {
    "on": ("On", "ForceOn"),
    "off": ("ForceOff",),
    "reset": ("ForceRestart",),
    "cycle": ("PowerCycle",),
}


@dataclass(frozen=True)
class Before:
    """Where a machine was to boot from, in the words of Redfish; None: its BMC does not say."""

    target: str | None
    enabled: str | None


class Redfish:
    """``address``: ``https://HOST[:PORT]``.  ``options``: ``system`` (path, when there are several), ``verify``."""

    actions: frozenset[Action] = frozenset({"on", "off", "reset", "cycle"})
    reads_machine = True

    def __init__(self, way: Way) -> None:
        parts = urlsplit(way.address if "://" in way.address else f"https://{way.address}")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            hint = "https://HOST[:PORT], with the password as a secret"
            raise WrongInput(f"{way.address!r} is no address of a Redfish service", hint=hint)
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

    # -- what it boots

    def has_drive(self, deadline_s: float) -> bool:
        """Whether it has a virtual CD drive; kept with its endpoint, as option ``drive``.  Raises PowerFailed."""
        has = self._ask(deadline_s, lambda system: _drive_of(system) is not None)
        if has == (self._way.options.get("drive") == NO_DRIVE):
            self._way.learned("drive", "" if has else NO_DRIVE)
        return has

    def insert(self, image: str, deadline_s: float) -> None:
        """Put the image of a URL into the virtual CD drive, instead of what is in it, and see it there.

        The BMC fetches it, some before they answer.  Raises PowerFailed.
        """
        end = time.monotonic() + deadline_s

        def command(system: Any) -> None:
            drive = _drive(system)
            _empty(drive, end)
            _in_time(end)
            try:
                drive.insert_media(image)
            except TypeError as error:  # sushy 5.14, of a refusal that does not say why (is_transfer_method_required)
                raise PowerFailed(f"BMC {self._where[0]}: {error.__context__ or error}") from None
            while not (_loaded(drive) and _is_in(image, drive)):
                _wait(end, f"BMC {self._where[0]} took the image, and its drive has {drive.image or 'nothing'}")
                drive.refresh(force=True)

        self._ask(deadline_s, command)

    def eject(self, deadline_s: float, only: str = "") -> None:
        """Empty the virtual CD drive, if it has one, and see that it is.  Raises PowerFailed.

        ``only``: not where something else than this image is in it."""
        end = time.monotonic() + deadline_s

        def command(system: Any) -> None:
            drive = _drive_of(system)
            if drive is not None and _is_in(only, drive):
                _empty(drive, end)

        self._ask(deadline_s, command)

    def usual_boot(self, deadline_s: float) -> Callable[[float], None]:
        """Read what is set for the next boot, and give what sets it again (called with a deadline).

        Raises PowerFailed, both."""

        before = self._ask(deadline_s, _set)
        return lambda within_s: self._boot_as(before, within_s)

    def boot_from_media(self, deadline_s: float) -> None:
        """Have the next boot, and only that, from the virtual CD drive.  Raises PowerFailed.

        What the BMC says of it afterwards is not looked at: some show what they always showed until that boot, and some
        say ``Continuous`` whatever they were told.
        """
        self._boot_once("Cd", deadline_s)

    def boot_from_network(self, deadline_s: float) -> None:
        """Have the next boot, and only that, from the network.  Raises PowerFailed."""
        self._boot_once("Pxe", deadline_s)

    def clear(self, deadline_s: float) -> None:
        """Have the next boot be a usual one: empty the drive, and take back what was left set for one boot.  Raises
        PowerFailed."""
        self.eject(deadline_s)
        self._boot_as(self._ask(deadline_s, _set_for_all_boots), deadline_s)

    def _boot_once(self, source: str, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s

        def command(system: Any) -> None:
            import sushy

            _in_time(end)
            system.set_system_boot_options(sushy.BootSource(source), sushy.BOOT_SOURCE_ENABLED_ONCE)

        self._ask(deadline_s, command)

    def _boot_as(self, before: Before, deadline_s: float) -> None:
        def command(system: Any) -> None:
            import sushy

            # What was left set by somebody who was killed, or what sushy does not know, is not set again.
            known = {one.value: one for one in sushy.BootSource if one.value not in ("None", "Cd", "UsbCd")}
            left = (before.target, before.enabled) == ("Pxe", "Once")
            if before.enabled in ("Once", "Continuous") and before.target in known and not left:
                system.set_system_boot_options(known[before.target], before.enabled)
            else:
                system.set_system_boot_options(enabled=sushy.BOOT_SOURCE_ENABLED_DISABLED)

        self._ask(deadline_s, command)

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


def _set(system: Any) -> Before:
    boot = system.json.get("Boot") or {}
    return Before(boot.get("BootSourceOverrideTarget"), boot.get("BootSourceOverrideEnabled"))


def _set_for_all_boots(system: Any) -> Before:
    found = _set(system)
    return found if found.enabled == "Continuous" else Before(None, None)


def _knows_cycle(system: Any) -> bool:
    reset = system.json["Actions"]["#ComputerSystem.Reset"]
    return "PowerCycle" in reset.get("ResetType@Redfish.AllowableValues", [])


def _drive(system: Any) -> Any:
    """The virtual CD drive.  Raises PowerFailed."""
    drive = _drive_of(system)
    if drive is None:
        raise PowerFailed("its BMC has no virtual CD drive")
    return drive


def _drive_of(system: Any) -> Any | None:
    """The virtual CD drive, if it has one; newer BMCs have it below the system, older ones below the manager."""
    import sushy

    for owners in (lambda: [system], lambda: system.managers):
        with contextlib.suppress(sushy.exceptions.MissingAttributeError):
            for drive in (drive for owner in owners() for drive in owner.virtual_media.get_members()):
                if {sushy.VIRTUAL_MEDIA_CD, sushy.VIRTUAL_MEDIA_DVD} & set(drive.media_types):
                    return drive
    return None


def _is_in(image: str, drive: Any) -> bool:
    """Whether what the drive says that it has may be this image: BMCs tell addresses, or names of files."""
    return image.rpartition("/")[2] in (drive.image or drive.image_name or image)


def _loaded(drive: Any) -> bool:
    return bool(drive.image) if drive.inserted is None else bool(drive.inserted)


def _empty(drive: Any, end: float) -> None:
    if _loaded(drive):
        drive.eject_media()
        while drive.refresh(force=True) or _loaded(drive):
            _wait(end, f"its BMC says that the drive is ejected, and {drive.image or 'something'} is in it")


def _in_time(end: float) -> None:
    """Who asked has gone on otherwise, and may have undone it.  Raises PowerFailed."""
    if time.monotonic() > end:
        raise PowerFailed("too late", silent=True)


def _wait(end: float, late: str) -> None:
    """A moment.  Raises PowerFailed when ``end`` is near: before the caller stops waiting, and hears no cause."""
    if time.monotonic() > end - 2 * _LOOK_S:
        raise PowerFailed(late)
    time.sleep(_LOOK_S)


def watts_of(power: dict[str, Any]) -> float | None:
    """Of a Redfish ``Power`` resource: the sum of what its controls read; None when none does."""
    found = [control.get("PowerConsumedWatts") for control in power.get("PowerControl", [])]
    told = [float(watts) for watts in found if watts is not None]
    return sum(told) if told else None
