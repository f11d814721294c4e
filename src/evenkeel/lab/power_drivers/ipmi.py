"""A BMC that speaks IPMI over LAN, by the program ipmitool.  Also the words that its serial console is reached with.

Measured with ipmitool 1.8.19: a silent BMC takes it 20 s by default, 6.2 s with ``-N 1 -R 2``, and that for each cipher
suite tried.  So the BMC is first asked by one packet of our own whether it is there, which is decided in 2.4 s, and
how long it takes: slow is not dead, it gets more time.  The cipher suite that worked is remembered.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable

from evenkeel.errors import WrongInput
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way, off_and_on

#: SHA-256 as IPMI 2.0 has it since 2013, then SHA-1, which every BMC with RMCP+ has.
CIPHERS = (17, 3)
_PORT = 623
_ASKED = 3
_FLAGS = re.compile(r"Boot parameter data: ([0-9a-f]{10})\b")
#: Of byte 1 of the boot flags: they are for all boots, not for the next.
_FOR_ALL_BOOTS = 0x40
#: Parameter 3: without it the flags are cleared 60 s after they were set, if nothing was switched by then.
_KEPT_UNTIL_BOOT = b"\x08"
_WATTS = re.compile(r"Instantaneous power reading:\s*([\d.]+)\s*Watts")
#: ipmitool's words for the completion codes C1h, CCh and D5h (table 5-2).  virtualbmc 3.3.0 answers CCh.
_KNOWS_NO_CYCLE = ("Invalid command", "Invalid data field in request", "not supported in present state")
#: Its words for: a session, but no answer to the command; and what it says besides, for nobody hears the end either.
_NO_ANSWER = ("Unable to set Chassis Power Control", "Unable to get Chassis Power Status")
_NO_END = "Close Session command failed"
#: ipmitool's own words for: no session.
_NO_SESSION = "Unable to establish IPMI v2 / RMCP+ session"


def hello(host: str, port: int, deadline_s: float) -> float:
    """Seconds until a BMC answered "Get Channel Authentication Capabilities" (IPMI 2.0, 22.13), asked without log-in.

    Raises PowerFailed (silent).
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    except socket.gaierror as error:
        raise PowerFailed(f"BMC {host}: {error.strerror}", silent=True) from None
    packet = _capabilities_request()
    with socket.socket(family, socket.SOCK_DGRAM) as line:
        start = time.monotonic()
        try:
            line.connect(address)
            for _ in range(_ASKED):
                line.settimeout(deadline_s / _ASKED)
                try:
                    line.send(packet)
                    if line.recv(1024)[:4] == b"\x06\x00\xff\x07":
                        return time.monotonic() - start
                except TimeoutError:
                    continue
                except ConnectionRefusedError:
                    # It comes at once, and the next would too; a BMC that restarts its network gets its time.
                    time.sleep(deadline_s / _ASKED)
        except OSError as error:
            raise PowerFailed(f"BMC {host}: {error.strerror}", silent=True) from None
    raise PowerFailed(f"BMC {host} is silent: {_ASKED} questions in {deadline_s:.1f} s", silent=True)


def _capabilities_request() -> bytes:
    """RMCP header, an IPMI 1.5 session header without authentication, and the request with its two check sums."""
    head = bytes((0x20, 0x06 << 2))
    body = bytes((0x81, 0x00, 0x38, 0x8E, 0x04))
    message = head + _check(head) + body + _check(body)
    return b"\x06\x00\xff\x07" + bytes(9) + bytes((len(message),)) + message


def _check(data: bytes) -> bytes:
    return bytes((-sum(data) & 0xFF,))


class Ipmitool:
    """One BMC by ipmitool.  Passwords go by the environment, which only the same user and root can read."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.host, self.port = way.host_and_port(_PORT)
        self._kept: int | None = way.options.get("cipher")
        self._trip_s = 0.0

    @property
    def cipher(self) -> int | None:
        """The cipher suite that worked last; None before the first command that did."""
        return self._kept

    def argv(self, cipher: int, *words: str, wait_s: int = 1) -> list[str]:
        program = shutil.which("ipmitool")
        if program is None:
            raise WrongInput("ipmitool is not installed", hint="apt-get install ipmitool")
        argv = [program, "-I", "lanplus", "-H", self.host, "-p", str(self.port), "-N", str(wait_s), "-R", "2"]
        return [*argv, "-U", self._way.credentials.user, "-E", "-C", str(cipher), *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "IPMITOOL_PASSWORD": self._way.credentials.password, "LC_ALL": "C"}

    def run(self, *words: str, deadline_s: float) -> str:
        """Run a command of ipmitool and return what it wrote on stdout.

        Raises PowerFailed, silent: nothing came within ``deadline_s``.  A BMC that answers slowly, but does, gets more
        time: some 40 round trips, so 30 s for one that takes 0.75 s for each.
        """
        begin = time.monotonic()
        # A slow one answers fast now and then: what was slow before gets time for a while.
        self._trip_s = trip_s = max(self._trip_s / 2, hello(self.host, self.port, min(deadline_s, 2.4)))
        wait_s = 1 + math.ceil(2 * trip_s)
        end = begin + max(deadline_s, 40 * trip_s)
        ciphers = CIPHERS if self._kept is None else (self._kept, *(c for c in CIPHERS if c != self._kept))
        for cipher in ciphers:
            try:
                done = subprocess.run(
                    self.argv(cipher, *words, wait_s=wait_s),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    env=self.environment(),
                    timeout=max(0.5, end - time.monotonic()),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise PowerFailed(
                    f"BMC {self.host}: no answer to {' '.join(words)!r} in time", silent=True, late=True
                ) from None
            if _NO_SESSION not in done.stderr:
                if cipher != self._kept:
                    self._kept = cipher
                    self._way.learned("cipher", cipher)
                if done.returncode:
                    said = [line for line in (done.stderr or done.stdout).strip().splitlines() if line != _NO_END]
                    mute = any(line.startswith(_NO_ANSWER) for line in said)
                    message = f"BMC {self.host}: {said[-1][:200] if said else 'refused'}"
                    raise PowerFailed(message, silent=mute, late=mute)
                return done.stdout
        raise PowerFailed(
            f"BMC {self.host} answers, but opens no session (cipher suites {', '.join(map(str, ciphers))} tried)",
            hint="user or password may be wrong: evenkeel lab secret set NAME",
        )


class Ipmi:
    """Chassis commands of IPMI 2.0, chapter 28; power readings of DCMI 1.5, 6.6.1."""

    actions: frozenset[Action] = frozenset({"on", "off", "reset", "cycle"})
    reads_machine = True

    def __init__(self, way: Way) -> None:
        self.tool = Ipmitool(way)
        self._boot = str(way.options.get("boot", "legacy"))
        if self._boot not in ("efi", "legacy"):
            raise WrongInput(f"boot={self._boot} of an IPMI endpoint", hint="boot=efi or boot=legacy")

    def status(self, deadline_s: float) -> Reading:
        said = self.tool.run("chassis", "power", "status", deadline_s=deadline_s)
        return "on" if "Power is on" in said else "off" if "Power is off" in said else "unknown"

    def act(self, action: Action, deadline_s: float) -> str:
        try:
            self.tool.run("chassis", "power", action, deadline_s=deadline_s)
        except PowerFailed as error:
            # A power cycle is optional (28.3), and may be refused while the power is off.
            if action != "cycle" or not any(words in error.message for words in _KNOWS_NO_CYCLE):
                raise
            return off_and_on(self, f"BMC {self.tool.host}", deadline_s)
        return f"ipmitool chassis power {action}, cipher suite {self.tool.cipher}"

    def watts(self, deadline_s: float) -> float | None:
        try:
            said = self.tool.run("dcmi", "power", "reading", deadline_s=deadline_s)
        except PowerFailed as error:
            if error.silent:
                raise
            return None  # many BMCs have no DCMI
        return watts_of(said)

    # -- what it boots: system boot options, IPMI 2.0, 28.12 and 28.13

    def usual_boot(self, deadline_s: float) -> Callable[[float], None]:
        """Read what is set for all boots (parameter 5), and give what sets it again (called with a deadline).

        What is set for one boot alone is left over from somebody, and not set again.  Raises PowerFailed, both.
        """
        said = self.tool.run("chassis", "bootparam", "get", "5", deadline_s=deadline_s)
        found = _FLAGS.search(said)
        if found is None:
            raise PowerFailed(f"BMC {self.tool.host} does not tell what it is set to boot from")
        flags = bytes.fromhex(found[1])
        flags = flags if flags[0] & _FOR_ALL_BOOTS else bytes(len(flags))

        def again(within_s: float) -> None:
            self._set(5, flags, within_s)
            with contextlib.suppress(PowerFailed):  # a BMC that does not know it has not changed it
                self._set(3, b"\0", within_s)

        return again

    def clear(self, deadline_s: float) -> None:
        """Have the next boot be a usual one: take back what was left set for one boot.  Raises PowerFailed."""
        self.usual_boot(deadline_s)(deadline_s)

    def boot_from_network(self, deadline_s: float) -> None:
        """Have the next boot, and only that, from the network.  Raises PowerFailed.

        The endpoint's option ``boot`` says which kind, ``efi`` or ``legacy``: IPMI has the machine told, and some
        firmware boots the other kind when it is told the wrong one (the flag is bit 5 of byte 1)."""
        with contextlib.suppress(PowerFailed):  # optional
            self._set(3, _KEPT_UNTIL_BOOT, deadline_s)
        efi = ("options=efiboot",) if self._boot == "efi" else ()
        said = self.tool.run("chassis", "bootdev", "pxe", *efi, deadline_s=deadline_s)
        if "Set Boot Device to pxe" not in said:  # ipmitool 1.8.19 ends with 0 when the BMC refused it
            raise PowerFailed(f"BMC {self.tool.host} refuses to boot from the network")

    def _set(self, parameter: int, data: bytes, deadline_s: float) -> None:
        words = [f"0x{byte:02x}" for byte in (0x00, 0x08, parameter, *data)]
        self.tool.run("raw", *words, deadline_s=deadline_s)


def watts_of(said: str) -> float | None:
    """The reading in the output of ``ipmitool dcmi power reading``; None when there is none."""
    found = _WATTS.search(said)
    return float(found[1]) if found else None
