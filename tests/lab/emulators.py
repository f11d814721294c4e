"""BMC emulators of others, over a libvirt domain or none: virtualbmc (IPMI), sushy-emulator (Redfish).

They run in an environment of their own (``.venv-bmc``), made from Debian's Python: its ``python3-libvirt`` is for no
other.  Each can be frozen, which is what a BMC that hangs looks like: the port is there, and nothing comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.environment import environment

from evenkeel.lab.power_drivers import PowerFailed
from evenkeel.lab.power_drivers.ipmi import hello
from evenkeel.machines.virtual.run import contained, tool
from tests.lab.emulated import PASSWORD, free_port
from tests.machines.sshd import descendants

_UP_S = 120.0


def programs() -> Path:
    """The folder of programs of the environment with both emulators, made on the first call (half a minute)."""
    return environment(
        ".venv-bmc",
        Path(__file__).with_name("emulators.txt"),
        "virtualbmc and sushy-tools",
        python="/usr/bin/python3",
        options=("--system-site-packages",),
    )


@dataclass
class Emulator:
    """A running program.  ``log``: where its words are."""

    process: subprocess.Popen[bytes]
    log: Path

    def freeze(self, on: bool = True) -> None:
        """It stays, and does nothing any more."""
        for number in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGSTOP if on else signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.freeze(False)

    @contextlib.contextmanager
    def slow(self, frozen_s: float, awake_s: float = 0.05) -> Iterator[None]:
        """Awake for a moment, again and again."""
        ended = threading.Event()

        def doze() -> None:
            while not ended.is_set():
                with self.frozen():
                    ended.wait(frozen_s)
                ended.wait(awake_s)

        thread = threading.Thread(target=doze, daemon=True)
        thread.start()
        time.sleep(awake_s)  # asleep when the block begins
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def running(argv: Sequence[str], folder: Path, environment: dict[str, str], name: str) -> Iterator[Emulator]:
    """``argv`` in ``folder``, its home.  Needs root: it and all that it starts end with the block, or with us."""
    log = folder / f"{name}.log"
    home = {"HOME": str(folder), "TMPDIR": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    with log.open("wb") as words:
        process = subprocess.Popen(
            # The first process of a namespace must be one that reaps, and that stays root: a change of user would
            # undo that it ends with its parent.
            contained([tool("sh"), "-c", '"$@" & wait', "sh", *argv]),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=home | {"PYTHONUNBUFFERED": "1"} | environment,
            cwd=folder,
        )
    emulator = Emulator(process, log)
    try:
        yield emulator
    finally:
        process.kill()  # with it its namespace, and so what it started
        process.wait()


@contextlib.contextmanager
def redfish(folder: Path, address: str, *backend: str) -> Iterator[tuple[str, Emulator]]:
    """sushy-emulator and its URL.  ``backend``: ``--fake``, or ``--libvirt-uri URI``."""
    host = f"[{address}]" if ":" in address else address
    port = free_port(address, socket.SOCK_STREAM)
    argv = [str(programs() / "sushy-emulator"), *backend, "-i", address, "-p", str(port)]
    with running(argv, folder, {}, f"sushy-{port}") as emulator:
        url = f"http://{host}:{port}"
        end = time.monotonic() + _UP_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/redfish/v1/", timeout=5).close()
                break
            except OSError:
                assert emulator.process.poll() is None and time.monotonic() < end, emulator.log.read_text()
                time.sleep(0.1)
        yield url, emulator


@dataclass(frozen=True)
class Bmc:
    """Of virtualbmc: on which address it stands for which domain."""

    domain: str
    address: str = "127.0.0.1"


@contextlib.contextmanager
def virtualbmc(folder: Path, uri: str, bmcs: Sequence[Bmc]) -> Iterator[tuple[list[str], Emulator]]:
    """vbmcd with these BMCs, which know ``admin`` and his password; ``HOST:PORT`` of each."""
    places, ports = [], []
    for bmc in bmcs:
        port = free_port(bmc.address, socket.SOCK_DGRAM)
        config = folder / "vbmc" / f"{bmc.domain}-{port}"
        config.mkdir(parents=True)
        (config / "config").write_text(
            f"[VirtualBMC]\nusername = admin\npassword = {PASSWORD}\ndomain_name = {bmc.domain}\nactive = True\n"
            f"libvirt_uri = {uri}\naddress = {bmc.address}\nport = {port}\n"
        )
        host = f"[{bmc.address}]" if ":" in bmc.address else bmc.address
        places.append(f"{host}:{port}")
        ports.append(port)
    settings = folder / "virtualbmc.conf"
    server = free_port("127.0.0.1", socket.SOCK_STREAM)
    settings.write_text(
        f"[default]\nconfig_dir = {folder}/vbmc\npid_file = {folder}/vbmc.pid\nserver_port = {server}\n[log]\n"
    )
    argv = [str(programs() / "vbmcd"), "--foreground"]
    with running(argv, folder, {"VIRTUALBMC_CONFIG": str(settings)}, "vbmcd") as emulator:
        for bmc, port in zip(bmcs, ports, strict=True):
            end = time.monotonic() + _UP_S
            while True:
                try:
                    hello(bmc.address, port, 1.0)
                    break
                except PowerFailed:
                    assert emulator.process.poll() is None and time.monotonic() < end, emulator.log.read_text()
        yield places, emulator
