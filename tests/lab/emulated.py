"""A machine behind a real BMC emulator: OpenIPMI's ipmi_sim with serial over LAN, a real sshd, an APC outlet over ssh.

What is emulated is the chassis itself: power, boots (a new boot id each) and what appears on its serial port.  Faults
are switched on by name.  Nothing is left running at the end.
"""

from __future__ import annotations

import contextlib
import getpass
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from tests.machines.sshd import Sshd

#: 16 bytes at most, in IPMI 1.5 as well.
PASSWORD = "opens-the-bmc"
_BOOTS = b"\r\nLinux version 6.12.0-rt (emulated)\r\nhost1 login: "

#: Run by ipmi_sim as ``chassis FOLDER MC get|set NAME [VALUE]``; and by the outlet's emulation.
_CHASSIS = """#!/bin/sh
cd "$1" || exit 1
op=$3
shift 3
boot() {
    if [ -e memory ]; then
        rm -f memory mark
        [ ! -e disk-mark ] || mv disk-mark mark
    fi
    if [ -e live ]; then
        mv live memory
        [ ! -e mark ] || mv mark disk-mark
    fi
    [ ! -x firmware ] || ./firmware
    cat /proc/sys/kernel/random/uuid >boot_id.new; date +%s.%N >booted; mv boot_id.new boot_id
}
while [ $# -gt 0 ]; do
    case $op.$1 in
    get.power)
        if [ -e lies-off ]; then echo power:0; else echo "power:$(cat power)"; fi
        shift ;;
    get.boot) echo "boot:$(cat boot 2>/dev/null || echo none)"; shift ;;
    set.boot) echo "$2" >boot; echo "boot $2" >>commands; shift 2 ;;
    get.*) echo "$1:0"; shift ;;
    set.power)
        [ -e deaf ] || { [ "$2" = "$(cat power)" ] || [ "$2" = 0 ] || boot; echo "$2" >power; }
        echo "power $2" >>commands; shift 2 ;;
    set.reset) [ -e deaf ] || [ "$(cat power)" = 0 ] || boot; echo reset >>commands; shift 2 ;;
    *) shift ;;
    esac
done
"""
#: Forced on every ssh session: a host that is off, hung or still boots does not answer.
_SHELL = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
now=$(date +%s.%N)
up=$(echo "$now $(cat booted)" | awk '{print $1 - $2}')
[ "$(cat power)" = 1 ] && [ ! -e hung ] && [ "$(echo "$up" | awk '{print ($1 > 0.3)}')" = 1 ] || exit 255
case $SSH_ORIGINAL_COMMAND in
cat*boot_id*) echo "$(cat boot_id)"; echo "$up 1.00"; echo "0.05 0.02 0.01 1/100 999" ;;
*touch*before-installation*) touch mark ;;
*before-installation*) if [ -e mark ]; then echo marked; else echo new; fi ;;
*reboot*) echo "ssh reboot" >>commands; [ -e no-reboot ] || ./chassis "$PWD" - set reset 1 ;;
*poweroff*) echo "ssh poweroff" >>commands; [ -e no-reboot ] || ./chassis "$PWD" - set power 0 ;;
esac
"""
#: The command line of an APC rack PDU, firmware 6, of one outlet; what fence_apc (4.12) needs of it.
_OUTLET = """
import pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
print("\\r\\nAPC OS v6.4.0\\r\\n", end="")
while True:
    print("\\napc>", end="", flush=True)
    while (line := sys.stdin.readline()) == "\\n":
        pass  # the terminal makes two line ends of a CR LF
    if not line:
        break
    words = line.split()
    if words[:1] in (["olOn"], ["olOff"]):
        on = words[0] == "olOn"
        (folder / "outlet").write_text("On" if on else "Off")
        subprocess.run([folder / "chassis", folder, "-", "set", "power", "1" if on else "0"], check=True)
        if not on and (folder / "slow-outlet").exists():
            time.sleep(20)
        print("E000: Success")
    elif words[:1] == ["olStatus"]:
        print("E000: Success")
        print("3: Outlet 3: " + (folder / "outlet").read_text() + "\\r")
    elif words[:1] == ["4"] or words[:1] == ["exit"]:
        break
"""


class EmulatedMachine:
    """One chassis.  ``folder``: short, for sockets.  ``address``: what the BMC listens on, IPv4 or IPv6.

    ``chassis`` and ``serial_port``: another chassis' script and the TCP port of its serial line, instead of our own.
    """

    def __init__(
        self, folder: Path, address: str = "127.0.0.1", chassis: str = _CHASSIS, serial_port: int | None = None
    ) -> None:
        self.folder = folder
        self.address = address
        self.bmc_port = free_port(address, socket.SOCK_DGRAM)
        self._bmc: subprocess.Popen[bytes] | None = None
        self._sshds: list[Sshd] = []
        self._ended = threading.Event()
        self._clients: list[socket.socket] = []
        self._serial = None if serial_port else socket.create_server(("127.0.0.1", 0))
        self._serial_port = serial_port or self._serial.getsockname()[1]  # type: ignore[union-attr]
        self.echo = True
        for name, text in (("chassis", chassis), ("shell", _SHELL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "outlet.py").write_text(_OUTLET)
        (folder / "outlet").write_text("On")
        (folder / "power").write_text("1\n")
        (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        (folder / "booted").write_text(f"{time.time() - 100}\n")

    # -- faults ---------------------------------------------------------------------------------------------------

    def fault(self, name: str, on: bool = True) -> None:
        """``hung`` (host), ``no-reboot`` (its systemd), ``deaf`` (chassis), ``lies-off`` (BMC), ``slow-outlet``."""
        if on:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink(missing_ok=True)

    @property
    def powered(self) -> bool:
        return (self.folder / "power").read_text().strip() == "1"

    def commands(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "commands").read_text().splitlines()
        return []

    # -- parts ----------------------------------------------------------------------------------------------------

    def start_bmc(self) -> None:
        program = shutil.which("ipmi_sim")
        assert program, "ipmi_sim is not installed (Debian: openipmi)"
        (self.folder / "bmc").mkdir(exist_ok=True)
        auth = "none md2 md5 straight"
        (self.folder / "lan.conf").write_text(
            f"""name "evenkeel"
set_working_mc 0x20
  startlan 1
    addr {self.address} {self.bmc_port}
    priv_limit admin
    allowed_auths_callback {auth}
    allowed_auths_user {auth}
    allowed_auths_operator {auth}
    allowed_auths_admin {auth}
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{self.folder}/chassis {self.folder} 0x20"
  sol "tcp:127.0.0.1:{self._serial_port}" 115200
  user 1 true "" "{PASSWORD}" user 10 {auth}
  user 2 true "admin" "{PASSWORD}" admin 10 {auth}
"""
        )
        (self.folder / "emu").write_text(
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"
        )
        with (self.folder / "bmc.log").open("ab") as log:
            self._bmc = subprocess.Popen(
                [program, "-c", self.folder / "lan.conf", "-f", self.folder / "emu", "-s", self.folder / "bmc", "-n"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if self._serial is not None:
            threading.Thread(target=self._serve_serial, args=(self._serial,), daemon=True).start()
        from evenkeel.lab.power_drivers.ipmi import hello

        hello(self.address, self.bmc_port, 10.0)

    def start_ssh(self) -> Sshd:
        sshd = self._sshd("host-ssh", f"ForceCommand {self.folder}/shell")
        return sshd

    def start_outlet(self) -> Sshd:
        """On 127.0.0.1 and ::1."""
        command = f"ForceCommand {sys.executable} {self.folder}/outlet.py {self.folder}"
        sshd = self._sshd("pdu-ssh", "ListenAddress ::1", command)
        known = sshd.folder / "known_hosts"
        known.write_text(known.read_text() + known.read_text().replace("127.0.0.1", "::1"))
        return sshd

    def _sshd(self, name: str, *more: str) -> Sshd:
        (self.folder / name).mkdir()
        sshd = Sshd(self.folder / name, *more)
        sshd.start()
        self._sshds.append(sshd)
        return sshd

    def stop(self) -> None:
        self._ended.set()
        for sshd in self._sshds:
            sshd.stop()
        if self._bmc is not None:
            self._bmc.send_signal(signal.SIGKILL)
            self._bmc.wait()
        if self._serial is not None:
            self._serial.close()
        for client in self._clients:
            client.close()

    # -- the serial port --------------------------------------------------------------------------------------------

    def print(self, text: bytes) -> None:
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.sendall(text)

    def _serve_serial(self, serial: socket.socket) -> None:
        """A getty that echoes, and a kernel that says hello at each boot."""
        boot_id = (self.folder / "boot_id").read_text()
        while not self._ended.is_set():
            try:
                ready, _, _ = select.select([serial, *self._clients], [], [], 0.05)
                for line in ready:
                    if line is serial:
                        self._clients.append(serial.accept()[0])
                    elif data := line.recv(4096):
                        if self.echo:
                            line.sendall(data.replace(b"\r", b"\r\nhost1 login: "))
                    else:
                        self._clients.remove(line)
            except (OSError, ValueError):
                return
            now = (self.folder / "boot_id").read_text()
            if now != boot_id:
                boot_id = now
                self.print(_BOOTS)


class Relay:
    """UDP between a client and a BMC, with faults: ``silent``, ``delay_s``, ``no_sol`` (its serial line is lost)."""

    def __init__(self, to: tuple[str, int]) -> None:
        self.to = to
        self.silent = self.no_sol = False
        self.delay_s = 0.0
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # The same port at another address: ipmitool refuses serial over LAN when the BMC tells another port.
        self._front.bind(("127.0.0.2", to[1]))
        self.address = f"127.0.0.2:{to[1]}"
        self._backs: dict[Any, socket.socket] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        for line in (self._front, *self._backs.values()):
            line.close()

    def _lost(self, packet: bytes) -> bool:
        # RMCP+ (authentication type 6), payload type 1: serial over LAN (IPMI 2.0, table 13-16).
        sol = len(packet) > 5 and packet[3] == 7 and packet[4] == 6 and packet[5] & 0x3F == 1
        return self.silent or (self.no_sol and sol)

    def _carry(self) -> None:
        late: list[tuple[float, socket.socket, bytes, Any]] = []
        while not self._ended.is_set():
            ready, _, _ = select.select([self._front, *self._backs.values()], [], [], 0.02)
            for line in ready:
                packet, sender = line.recvfrom(65536)
                if self._lost(packet):
                    continue
                if line is self._front:
                    if sender not in self._backs:
                        self._backs[sender] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    late.append((time.monotonic() + self.delay_s, self._backs[sender], packet, self.to))
                else:
                    client = next(who for who, back in self._backs.items() if back is line)
                    late.append((time.monotonic() + self.delay_s, self._front, packet, client))
            due = [entry for entry in late if entry[0] <= time.monotonic()]
            late = [entry for entry in late if entry[0] > time.monotonic()]
            for _, line, packet, to in due:
                with contextlib.suppress(OSError):
                    line.sendto(packet, to)


def free_port(address: str, kind: int) -> int:
    """Of this kind of socket, on this address."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def emulated_machine(folder: Path, address: str = "127.0.0.1") -> Iterator[EmulatedMachine]:
    folder.mkdir()
    machine = EmulatedMachine(folder, address)
    try:
        yield machine
    finally:
        machine.stop()


def add_machine(lab: Lab, name: str = "host1", **more: Any) -> str:
    """A row of the pool, without facts; returns its id."""
    row = {"id": name, "name": name, "state": "ready", "state_since_ns": 0, "identity": {}, "policy": {}}
    row |= {"registered_ns": 0, "owner": "ann"} | more
    lab.store.write(lambda connection: connection.execute(insert(schema.machine).values(row)))
    return name


def add_endpoint(lab: Lab, machine: str, kind: str, driver: str, address: str, **options: Any) -> None:
    """``secret`` among the options names one."""
    row: dict[str, Any] = {"machine_id": machine, "kind": kind, "driver": driver, "address": address}
    row |= {"secret": options.pop("secret", None), "options": options}
    lab.store.write(lambda connection: connection.execute(insert(schema.endpoint).values(row)))


def ssh_endpoint(lab: Lab, machine: str, sshd: Sshd) -> None:
    files = {"identity": str(sshd.folder / "user"), "known_hosts": str(sshd.folder / "known_hosts")}
    add_endpoint(lab, machine, "ssh", "ssh", f"ssh://{getpass.getuser()}@127.0.0.1:{sshd.port}", **files)


def pdu_endpoint(lab: Lab, machine: str, sshd: Sshd, host: str = "127.0.0.1") -> None:
    options = {"agent": "fence_apc", "plug": "3", "ssh": "1", "identity_file": str(sshd.folder / "user")}
    # The agent's own patience, 3 and 5 s, is shorter than the lab's: here a busy machine is not what is looked at.
    patience = {"shell_timeout": "15", "login_timeout": "15"}
    options |= {"username": getpass.getuser(), "power_wait": "0", **patience}
    options["ssh_options"] = f"-o UserKnownHostsFile={sshd.folder}/known_hosts"
    add_endpoint(lab, machine, "pdu", "pdu", f"{host}:{sshd.port}", **options)
