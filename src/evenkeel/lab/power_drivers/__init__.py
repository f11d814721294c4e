"""Ways to switch a machine, one module each: ssh, redfish, ipmi, pdu, labgrid, virtual.  They command and read only.

Whether a command was obeyed is not a driver's to say: :mod:`evenkeel.lab.power` looks for itself.  A driver never
takes silence for off, keeps to the deadline that it is given, and puts no password into arguments, messages or logs.
"""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from evenkeel.errors import EvenkeelError, WrongInput

#: What a machine can be told.  ``reset``: without a cut of its power; ``cycle``: with one.
Action = Literal["on", "off", "reset", "cycle"]
#: What is known of it.  ``unknown`` is never ``off``.
Reading = Literal["on", "off", "unknown"]
#: A rung of the ladder; the kind of the endpoint that it goes through.
Method = Literal["ssh", "hypervisor", "bmc", "pdu"]

T = TypeVar("T")
#: Between off and on of a chassis that knows no power cycle.
_LOOK_S, _OFF_S, _ON_TRIES = 0.5, 15.0, 3


class PowerFailed(EvenkeelError):
    """A driver could not do it.  ``silent``: nothing answered at all, which tells nothing about the machine.

    ``late``: the command went out and was not answered in time, so it may be obeyed yet.
    """

    def __init__(self, message: str, *, silent: bool = False, late: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.silent = silent
        self.late = late


@dataclass(frozen=True)
class Credentials:
    """Opened only for the time of one command; never shown, not even in a traceback."""

    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class Way:
    """An endpoint of a machine, as a driver needs it.  ``learned``: called with what it found out, to be kept."""

    method: Method
    driver: str
    address: str
    options: Mapping[str, Any] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    learned: Callable[[str, Any], None] = lambda key, value: None

    def host_and_port(self, port: int) -> tuple[str, int]:
        """``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address.  Raises WrongInput."""
        host, found = self.address, str(port)
        if host.startswith("["):
            host, _, rest = host[1:].partition("]")
            found = rest.removeprefix(":") or found
        elif host.count(":") == 1:
            host, _, found = host.partition(":")
        if not host or not found.isdecimal():
            raise WrongInput(
                f"{self.address!r} is no address of a {self.driver} endpoint", hint="HOST, HOST:PORT or [V6]:PORT"
            )
        return host, int(found)


class Driver(Protocol):
    """One way to one machine."""

    #: What it can do; ``reset`` is missing where only the power can be cut.
    actions: frozenset[Action]
    #: Whether ``on`` says that the machine has power, not only that its outlet has.
    reads_machine: bool

    def status(self, deadline_s: float) -> Reading:
        """Read once.  Raises PowerFailed."""

    def act(self, action: Action, deadline_s: float) -> str:
        """Command, and return how in a few words.  Raises PowerFailed."""

    def watts(self, deadline_s: float) -> float | None:
        """Power drawn now; None when it is not told."""


def driver_for(way: Way) -> Driver:
    """The driver that an endpoint names.  Raises WrongInput."""
    # The module of a driver is loaded when a machine has such a thing: sushy alone is half a second.
    if way.driver == "ssh":
        from evenkeel.lab.power_drivers.ssh import Ssh

        return Ssh(way)
    if way.driver == "redfish":
        from evenkeel.lab.power_drivers.redfish import Redfish

        return Redfish(way)
    if way.driver == "ipmi":
        from evenkeel.lab.power_drivers.ipmi import Ipmi

        return Ipmi(way)
    if way.driver == "pdu":
        from evenkeel.lab.power_drivers.pdu import Pdu

        return Pdu(way)
    if way.driver == "labgrid":
        from evenkeel.lab.power_drivers.labgrid import Labgrid

        return Labgrid(way)
    if way.driver == "virtual":
        from evenkeel.lab.power_drivers.virtual import Virtual

        return Virtual(way)
    raise WrongInput(f"no power driver {way.driver!r}", hint="ssh, redfish, ipmi, pdu, labgrid or virtual")


def off_and_on(driver: Driver, what: str, deadline_s: float, *, rest_s: float = 0.0) -> str:
    """Cut the power of a chassis that knows no power cycle.  Raises PowerFailed.

    ``rest_s``: without power, at least: power supplies go on for a moment behind an outlet that is off.
    Once ``off`` was sent, ``on`` is too, whatever is heard meanwhile: a machine is not left without power.
    """
    end = time.monotonic() + _OFF_S
    try:
        how = driver.act("off", deadline_s)
    except PowerFailed as error:
        if not error.late:
            raise
        how = error.message
    while not (is_off := _says_off(driver, deadline_s)) and time.monotonic() < end:
        time.sleep(_LOOK_S)
    time.sleep(rest_s)
    for tries in range(_ON_TRIES):
        try:
            how = f"{how}, then {driver.act('on', deadline_s)}"
            break
        except PowerFailed:
            if tries == _ON_TRIES - 1:
                raise
        time.sleep(_LOOK_S)
    if not is_off:
        raise PowerFailed(f"{what}: not off {_OFF_S:g} s after {how}")
    return how


def _says_off(driver: Driver, deadline_s: float) -> bool:
    try:
        return driver.status(deadline_s) == "off"
    except PowerFailed:
        return False


def program(
    argv: Sequence[str], deadline_s: float, what: str, *, told: str = "", late: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with ``told`` on its standard input.

    Raises PowerFailed when it does not end in time, silent and as ``late`` as is said; OSError when it does not start.
    """
    try:
        return subprocess.run(
            argv, input=told, capture_output=True, text=True, errors="replace", timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise PowerFailed(f"{what}: no answer within {deadline_s:g} s", silent=True, late=late) from None


def within(deadline_s: float, what: str, function: Callable[[], T]) -> T:
    """Call ``function`` in a thread that is left behind when it is late.  Raises PowerFailed (silent), or its error."""
    answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def call() -> None:
        try:
            answer.put((True, function()))
        except Exception as error:  # noqa: BLE001  it is raised in the thread that asked
            answer.put((False, error))

    threading.Thread(target=call, name=what, daemon=True).start()
    try:
        fine, value = answer.get(timeout=deadline_s)
    except queue.Empty:
        raise PowerFailed(f"{what}: no answer within {deadline_s:g} s", silent=True) from None
    if not fine:
        raise value
    result: T = value
    return result
