"""Consoles: one owner, many readers, one writer, recorded; a held or stuck serial over LAN frees itself."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from evenkeel.lab import console, power, recording, schema, secrets
from evenkeel.lab.actor import Actor, Conflict, Forbidden, NotFound, with_roles
from evenkeel.lab.console import Consoles, Times
from evenkeel.lab.events import last_seq
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Credentials, Way
from evenkeel.lab.power_drivers.ipmi import Ipmitool
from evenkeel.machines.virtual import lifecycle, qemu
from tests.lab.emulated import PASSWORD, EmulatedMachine, Relay, add_endpoint, add_machine, emulated_machine
from tests.waiting import until

ANN = with_roles("ann", ["user"])
BOB = with_roles("bob", ["user"])
KIM = with_roles("kim", ["maintainer"])
ADMIN = with_roles("root", ["admin"])
QUICK = Times(probe_s=1.0, answer_s=0.5, retry_s=(0.2, 1.0), idle_s=0.6, refresh_s=0.3)


class Client:
    """A session, with what it was sent."""

    def __init__(self, lab: Lab, actor: Actor, *, write: bool = True) -> None:
        self._came: queue.SimpleQueue[bytes | dict[str, Any]] = queue.SimpleQueue()
        self.seen = b""
        self.told: list[dict[str, Any]] = []
        self.session = console.attach(lab, actor, "host1", self._came.put, write=write)

    def until(self, enough: Callable[[Client], object], timeout_s: float = 120.0) -> Client:
        end = time.monotonic() + timeout_s
        while not enough(self):
            try:
                came = self._came.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"seen {self.seen[-300:]!r}, told {self.told[-3:]}") from None
            if isinstance(came, bytes):
                self.seen += came
            else:
                self.told.append(came)
        return self

    def sees(self, text: bytes) -> Client:
        return self.until(lambda it: text in it.seen)

    def hears(self, type_: str, **more: object) -> Client:
        return self.until(lambda it: any(t["type"] == type_ and more.items() <= t.items() for t in it.told))

    def types(self, data: bytes) -> Client:
        self.session.type(data)
        return self

    def types_until_answered(self, data: bytes, answer: bytes) -> Client:
        """Again and again: the first byte after a session was opened can be lost."""
        for _ in range(240):
            self.types(data)
            try:
                return self.until(lambda it: answer in it.seen, 0.5)
            except AssertionError:
                continue
        raise AssertionError(f"{data!r} is not answered")


def events(lab: Lab, type_: str) -> list[dict[str, Any]]:
    with lab.store.read() as connection:
        return list(connection.scalars(select(schema.event.c.data).where(schema.event.c.type == type_)))


# -- over a Unix socket: the seat, the recording, the patterns --------------------------------------------------------


class Serial:
    """What a virtual machine's serial port is: a Unix socket, one client at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self.client: socket.socket | None = None
        self.got = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.client = client
            while data := client.recv(4096):
                self.got += data

    def says(self, data: bytes) -> None:
        until(lambda: self.client)
        assert self.client
        self.client.sendall(data)

    def stop(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        if self.client:
            with contextlib.suppress(OSError):  # a thread that still reads keeps a closed one open
                self.client.shutdown(socket.SHUT_RDWR)
            self.client.close()


@pytest.fixture
def serial(lab: Lab, tmp_path: Path) -> Iterator[Serial]:
    serial = Serial(tmp_path / "console.sock")
    add_machine(lab)
    add_endpoint(lab, "host1", "console", "unix", str(serial.path), watch={"mine": "FLAGS=(.*)"})
    with Consoles(lab, QUICK):
        yield serial
        serial.stop()


def test_what_a_virtual_host_says_before_anybody_can_connect_is_not_lost(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU does it: a log anew for each run, which gets each byte after the socket."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = lifecycle.folder_of("host")
    folder.mkdir(parents=True)
    log = folder / qemu.SERIAL_LOG

    def run(number: int, said: bytes) -> Serial:
        log.write_bytes(said)
        made = Serial(tmp_path / f"{number}.sock")
        (folder / "console.sock").symlink_to(made.path)
        return made

    def says(data: bytes) -> None:
        port.says(data)
        with log.open("ab") as stream:
            stream.write(data)

    add_machine(lab)
    add_endpoint(lab, "host1", "hypervisor", "virtual", "host")
    port = run(1, b"before the lab was there\r\n")
    with Consoles(lab, QUICK):
        ann = Client(lab, ANN).hears("state", line="up")
        says(b"one\r\n")
        says(b"two\r\n")
        ann.sees(b"two\r\n")
        (folder / "console.sock").unlink()
        port.stop()
        log.rename(log.with_suffix(".old"))
        port = run(2, b"Loading Linux 6.1.0-rt ...\r\n")
        says(b"three\r\n")
        ann.sees(b"three\r\n")
        assert ann.seen == b"one\r\ntwo\r\nLoading Linux 6.1.0-rt ...\r\nthree\r\n"
        until(lambda: events(lab, "console.boot"))
        port.stop()


def test_many_read_one_writes_and_the_seat_is_handed_over(lab: Lab, serial: Serial) -> None:
    ann, kim = Client(lab, ANN), Client(lab, KIM)
    ann.hears("state", line="up", you_write=True)
    kim.hears("state", writer="ann", you_write=False)
    serial.says(b"host1 login: ")
    ann.sees(b"login: ")
    kim.sees(b"login: ").types(b"nobody hears this")
    ann.types(b"root\r")
    until(lambda: serial.got == b"root\r")
    kim.session.ask()
    ann.hears("asked", by="kim").session.give()
    kim.hears("state", writer="kim", you_write=True).types(b"mine")
    until(lambda: serial.got.endswith(b"mine"))
    ann.types(b"not any more").session.ask()
    kim.hears("asked", by="ann").session.keep()
    ann.hears("refused", why="kim goes on writing").session.ask()
    ann.hears("state", writer="ann", you_write=True)  # kim is idle
    assert serial.got == b"root\rmine"
    until(lambda: [event["writer"] for event in events(lab, "console.writer")] == ["ann", "kim", "ann"])


def test_who_may_not_touch_the_machine_reads_only(lab: Lab, serial: Serial) -> None:
    serial.says(b"before\r\n")
    Client(lab, ANN).sees(b"before").session.close()
    bob = Client(lab, BOB).sees(b"before")  # what came before he was there
    bob.hears("state", you_write=False).types(b"x").session.ask()
    bob.hears("refused", why="only who holds or owns the machine may write: ann")
    with pytest.raises(Forbidden, match="scope 'console'"):
        Client(lab, with_roles("eve", ["viewer"]))
    with pytest.raises(Forbidden, match="reset the console of host1"):
        console.reset(lab, BOB, "host1")
    assert serial.got == b""


def test_a_writer_whose_claim_ended_loses_the_seat(lab: Lab, serial: Serial) -> None:
    ann = Client(lab, ANN).hears("state", you_write=True)
    lab.store.write(lambda c: c.execute(update(schema.machine).values(owner="somebody else")))
    ann.hears("refused", why="the machine is not yours any more").hears("state", writer=None)
    ann.types(b"reboot\r").session.ask()
    ann.hears("refused", why="only who holds or owns the machine may write: somebody else")
    assert serial.got == b""


def test_what_happens_on_it_is_an_event_and_a_mark_in_the_recording(lab: Lab, serial: Serial, clock: Any) -> None:
    ann = Client(lab, ANN)
    begin_ns = lab.now()
    serial.says(b"\x1b[0mLinux version 6.12.0-rt\r\n[    0.0] Kernel panic - not sync")
    serial.says(b"ing: VFS: no root\r\nFLAGS=3\r\nhost1 log")
    ann.sees(b"host1 log")
    clock.move(2.5)
    serial.says(b"in: ")
    ann.sees(b"login: ")
    until(lambda: events(lab, "console.login"))
    assert [event["line"] for event in events(lab, "console.boot")] == ["Linux version 6.12.0-rt"]
    assert [event["line"] for event in events(lab, "console.panic")] == ["Kernel panic - not syncing: VFS: no root"]
    assert [event["line"] for event in events(lab, "console.mine")] == ["FLAGS=3"]
    [recorded] = console.recordings(lab, ANN, "host1")
    assert [label for _, label in recorded.marks] == ["writer ann", "boot", "panic", "mine", "login"]
    header, *lines = console.recording_file(lab, ANN, "host1", recorded.name).read_text().splitlines()
    assert json.loads(header)["version"] == 2 and json.loads(header)["title"] == "host1"
    shown = [json.loads(line) for line in lines]
    assert "".join(text for _, kind, text in shown if kind == "o").endswith("FLAGS=3\r\nhost1 login: ")
    assert shown[-1][0] == 2.5 and {kind for _, kind, _ in shown} == {"o", "m"}
    assert console.text(lab, ANN, "host1", begin_ns + 10**9) == "in: "
    ann.types(b"a password")
    assert "a password" not in console.recording_file(lab, ANN, "host1", recorded.name).read_text()
    for name in ("../lab.db", "1.cast", "x"):
        with pytest.raises(NotFound):
            console.recording_file(lab, ANN, "host1", name)


def _ends_with(lab: Lab, text: str) -> bool:
    return console.text(lab, ANN, "host1", lab.now()).endswith(text)


def test_a_boot_is_seen_of_a_quiet_kernel_too_and_of_a_loud_one_once(lab: Lab, serial: Serial, clock: Any) -> None:
    """As GRUB 2.06 of Debian 12 prints it, on a virtual host with ``quiet``."""
    grub = b"\x1b[1;1H  Booting `Debian GNU/Linux'\r\n\r\nLoading Linux 6.12.117+deb12-rt-amd64 ...\r\n"
    quiet, loud = b"Loading initial ramdisk ...\r\nroot@h:~# ", b"[    0.0] Linux version 6.12.117\r\n"
    for said in (grub, quiet, grub, loud, grub):
        clock.move(30)
        serial.says(said)
        until(partial(_ends_with, lab, said[-12:].decode()))
    until(lambda: len(events(lab, "console.boot")) == 3)
    assert {event["line"] for event in events(lab, "console.boot")} == {"Loading Linux 6.12.117+deb12-rt-amd64"}


def test_a_reset_without_ssh_is_proved_by_the_console(lab: Lab, serial: Serial) -> None:
    from evenkeel.lab import touch

    with lab.store.read() as connection:
        machine = touch.find(connection, "host1")
    assert not power._booted_on_console(lab, machine, 0)
    serial.says(b"Linux version 6.1.0\r\n")
    until(lambda: power._booted_on_console(lab, machine, 0))
    assert not power._booted_on_console(lab, machine, last_seq(lab))


def test_a_stuck_line_is_found_by_a_newline_but_only_after_a_prompt(lab: Lab, serial: Serial) -> None:
    ann = Client(lab, ANN)
    serial.says(b"GNU GRUB  version 2.06\r\n   *Debian GNU/Linux")
    ann.sees(b"*Debian")
    time.sleep(2 * (QUICK.probe_s + QUICK.answer_s))  # the watchdog's own time: there is no clock to move
    assert serial.got == b"" and not events(lab, "console.freed")
    serial.says(b"\r\nhost1 login: ")
    until(lambda: events(lab, "console.freed"))
    assert serial.got == b"\r\r"
    assert events(lab, "console.freed")[0]["why"] == "a newline at a prompt brought nothing back in 1 s"
    ann.hears("state", line="up", freed=1)


def test_a_machine_that_is_switched_has_no_prompt_any_more(lab: Lab, serial: Serial) -> None:
    ann = Client(lab, ANN)
    serial.says(b"host1 login: ")
    ann.sees(b"login: ")
    assert lab.consoles
    lab.consoles.forget_prompt("host1")
    time.sleep(QUICK.probe_s + 2 * QUICK.answer_s)
    assert serial.got == b"" and not events(lab, "console.freed")


def test_a_return_without_an_answer_frees_the_line(lab: Lab, serial: Serial) -> None:
    ann = Client(lab, ANN).hears("state", line="up")
    time.sleep(1.5 * QUICK.probe_s)  # it was asked in between whether it lives, which is no answer to a return
    ann.types(b"ls").types(b"\r")
    until(lambda: events(lab, "console.freed"))
    assert events(lab, "console.freed")[0]["why"] == "a return was typed, and nothing came back"


def test_a_machine_without_a_console_and_a_lab_without_its_service(lab: Lab) -> None:
    add_machine(lab)
    with pytest.raises(Conflict, match="no consoles are owned"):
        console.state(lab, ANN, "host1")
    with Consoles(lab, QUICK), pytest.raises(Conflict, match="has no console"):
        console.state(lab, ANN, "host1")


def test_old_recordings_go_and_the_newest_stays(tmp_path: Path) -> None:
    now = [10**18]
    for day in range(4):
        recorder = recording.Recorder(tmp_path, "host1", lambda: now[0])
        recorder.output(f"day {day}".encode())
        recorder.close()
        now[0] += 86400 * 10**9
    assert recording.prune(tmp_path, 10**18 + 86400 * 10**9 + 1) == 1
    assert [text for _, _, text in recording.since(tmp_path, 0)] == ["day 1", "day 2", "day 3"]
    assert recording.prune(tmp_path, 10**19) == 2
    assert [text for _, _, text in recording.since(tmp_path, 0)] == ["day 3"]


def test_a_recording_that_a_crash_cut_off_can_be_read_and_bytes_that_are_no_text_are_kept_apart(tmp_path: Path) -> None:
    recorder = recording.Recorder(tmp_path, "host1", lambda: 10**18)
    recorder.output("ü".encode()[:1])
    recorder.output("ü".encode()[1:] + b"\xff")
    recorder.close()
    [recorded] = recording.listing(tmp_path)
    with (tmp_path / recorded.name).open("ab") as file:
        file.write(b'[1.0, "o", "cut')
    assert "".join(text for _, _, text in recording.since(tmp_path, 0)) == "ü\ufffd"


# -- other lines ----------------------------------------------------------------------------------------------------


def test_a_serial_device(lab: Lab) -> None:
    ours, its = pty.openpty()
    tty.setraw(ours)
    try:
        add_machine(lab)
        add_endpoint(lab, "host1", "console", "tty", os.ttyname(its))
        with Consoles(lab, QUICK):
            ann = Client(lab, ANN).hears("state", line="up")
            os.write(ours, b"hello")
            ann.sees(b"hello").types(b"there\xff")
            assert os.read(ours, 100) == b"there\xff"
            ann.session.close()
    finally:
        os.close(ours)
        os.close(its)


def test_telnet_to_a_terminal_server(lab: Lab) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    add_machine(lab)
    add_endpoint(lab, "host1", "console", "telnet", f"127.0.0.1:{server.getsockname()[1]}")
    with Consoles(lab, QUICK):
        client, _ = server.accept()
        # WILL ECHO, DO TERMINAL-TYPE, half of a subnegotiation, its end, an escaped 255
        client.sendall(b"\xff\xfb\x01he\xff\xfd\x18l\xff\xfa\x18")
        ann = Client(lab, ANN).sees(b"hel")
        client.sendall(b"x\xff\xf0lo\r\x00\xff\xff")
        ann.sees(b"hello\r\xff").types(b"a\r\xff")
        wanted = b"\xff\xfd\x01\xff\xfc\x18a\r\x00\xff\xff"
        got = b""
        while len(got) < len(wanted):
            got += client.recv(100)
        assert got == wanted
        client.close()
    server.close()


# -- serial over LAN ------------------------------------------------------------------------------------------------


@pytest.fixture
def chassis(lab: Lab, tmp_path: Path) -> Iterator[EmulatedMachine]:
    secrets.put(lab, ADMIN, "bmc", "admin", PASSWORD)
    add_machine(lab)
    with emulated_machine(tmp_path / "m") as machine:
        machine.start_bmc()
        yield machine


def sol(machine: EmulatedMachine, *words: str) -> list[str]:
    way = Way("bmc", "ipmi", f"127.0.0.1:{machine.bmc_port}", {"cipher": 3}, Credentials("admin", PASSWORD))
    return Ipmitool(way).argv(3, *words)


def test_a_session_that_a_killed_client_left_is_freed_and_none_of_ours_stays(
    lab: Lab, chassis: EmulatedMachine
) -> None:
    environment = {**os.environ, "IPMITOOL_PASSWORD": PASSWORD}
    ours, its = pty.openpty()
    holder = subprocess.Popen(sol(chassis, "sol", "activate"), stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    assert b"operational" in os.read(ours, 1000)
    holder.kill()
    holder.wait()
    os.close(ours)
    refused = subprocess.run(sol(chassis, "sol", "activate"), env=environment, capture_output=True, timeout=120)
    assert b"already active on another session" in refused.stdout + refused.stderr

    add_endpoint(lab, "host1", "console", "ipmi", f"127.0.0.1:{chassis.bmc_port}", secret="bmc", cipher=3)
    with Consoles(lab, QUICK):
        ann = Client(lab, ANN).hears("state", line="up")
        ann.types_until_answered(b"\r", b"login")
    [freed] = events(lab, "console.freed")
    assert freed["how"] == "serial over LAN deactivated" and "another session" in freed["why"]
    left = subprocess.run(sol(chassis, "raw", "6", "0x4a", "1"), env=environment, capture_output=True, timeout=120)
    assert left.stdout.split()[1] == b"00"


@pytest.mark.long
def test_a_stuck_session_is_found_within_30_seconds_and_freed_with_the_usual_times(
    lab: Lab, chassis: EmulatedMachine
) -> None:
    relay = Relay(("127.0.0.1", chassis.bmc_port))
    add_endpoint(lab, "host1", "console", "ipmi", relay.address, secret="bmc", cipher=3)
    try:
        with Consoles(lab):
            ann = Client(lab, ANN).hears("state", line="up")
            chassis.print(b"host1 login: ")
            ann.sees(b"login: ")
            ann.told.clear()
            relay.no_sol = True
            begin = time.monotonic()
            # Either our newline is not answered, or ipmitool gives the session up because it is not acknowledged.
            ann.until(lambda it: any(told.get("line") == "down" for told in it.told), 40)
            assert time.monotonic() - begin < 30
            relay.no_sol = False
            ann.hears("state", line="up").seen = b""
            ann.types_until_answered(b"\r", b"login")
    finally:
        relay.stop()


def test_the_button_frees_a_line(lab: Lab, chassis: EmulatedMachine) -> None:
    add_endpoint(lab, "host1", "console", "ipmi", f"127.0.0.1:{chassis.bmc_port}", secret="bmc", cipher=3)
    with Consoles(lab, QUICK):
        ann = Client(lab, ANN).hears("state", line="up")
        ann.told.clear()
        console.reset(lab, ANN, "host1")
        ann.hears("state", line="down").hears("state", line="up", freed=1)
    assert events(lab, "console.freed")[0]["why"] == "somebody asked for it"


@pytest.mark.long
def test_a_bmc_that_goes_away_and_comes_back(lab: Lab, chassis: EmulatedMachine) -> None:
    relay = Relay(("127.0.0.1", chassis.bmc_port))
    relay.silent = True
    add_endpoint(lab, "host1", "console", "ipmi", relay.address, secret="bmc", cipher=3)
    try:
        with Consoles(lab, QUICK):
            ann = Client(lab, ANN).hears("state", line="down", why="BMC 127.0.0.2 is silent: 3 questions in 2.4 s")
            relay.silent = False
            ann.hears("state", line="up")
    finally:
        relay.stop()
