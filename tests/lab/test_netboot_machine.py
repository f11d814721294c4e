"""A whole installation by network: a real BMC emulator (ipmi_sim), BIOS, iPXE, kernel and sshd, before the application.

The machine is a QEMU that the BMC starts and ends.  It is told by IPMI to boot from the network, asks over HTTP what,
fetches kernel and initrd from its owner's server, and runs from memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from evenkeel.errors import NotAsWanted
from evenkeel.lab import secrets, touch
from evenkeel.lab.install import Installing
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Policy
from evenkeel.lab.netboot import Network
from evenkeel.lab.prepare import Job
from evenkeel.machines.virtual.run import tool
from tests.lab.conftest import an_app
from tests.lab.domain import bios_kernel, boot_files
from tests.lab.emulated import PASSWORD, EmulatedMachine, add_endpoint, free_port
from tests.lab.pool import ROOT, add
from tests.lab.serving import answering, serving
from tests.lab.test_media import Then

pytestmark = [pytest.mark.long, pytest.mark.virtual]
#: A boot from the network, with software emulation on a busy machine.
_BOOT_S = 300.0
#: Of its disk, which is empty, so all of it is waited for.
_DISK_S = 60.0
_POLICY = Policy.model_validate({"power": {"ssh_s": 8.0, "bmc_s": 60.0, "down_s": 30.0, "boot_s": _DISK_S}})

#: Power on starts QEMU, which boots as the BMC says; off ends it.
_CHASSIS = """#!/bin/sh
cd "$1" || exit 1
op=$3
shift 3
runs() { [ -e pid ] && kill -0 "$(cat pid)" 2>/dev/null; }
off() { runs && kill -KILL "$(cat pid)"; rm -f pid; }
on() { runs || ./qemu "$([ "$(cat boot)" = pxe ] && echo nc || echo c)"; echo none >boot; }
while [ $# -gt 0 ]; do
    case $op.$1 in
    get.power) if runs; then echo power:1; else echo power:0; fi; shift ;;
    get.boot) echo "boot:$(cat boot)"; shift ;;
    set.boot) echo "$2" >boot; shift 2 ;;
    get.*) echo "$1:0"; shift ;;
    set.power) if [ "$2" = 1 ]; then on; else off; fi; shift 2 ;;
    set.reset) off; on; shift 2 ;;
    *) shift ;;
    esac
done
"""
_QEMU = """#!/bin/sh
exec {qemu} -machine pc,accel=tcg -cpu max -m 256 -nodefaults -display none -serial file:{folder}/serial \\
    -daemonize -pidfile {folder}/pid -boot "order=$1" \\
    -netdev user,id=net,bootfile={url}/boot.ipxe,hostfwd=tcp:127.0.0.1:{port}-:22 \\
    -device virtio-net-pci,netdev=net,mac={mac}
"""


@dataclass
class Site:
    """The owner's web server.  ``folder``: what it serves; ``url``: as the machine reaches it."""

    folder: Path
    url: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Kernel, initrd, script and keys of what is installed; the port that its sshd is known by."""
    folder, port = tmp_path_factory.mktemp("site"), free_port("127.0.0.1", socket.SOCK_STREAM)
    boot_files(folder, port)
    bios_kernel(folder / "vmlinuz")
    (folder / "install.ipxe").write_text(
        "#!ipxe\nkernel vmlinuz console=ttyS0 panic=10 initrd=initrd.img\ninitrd initrd.img\nboot\n"
    )
    return folder, port


@pytest.fixture
def site(files: tuple[Path, int]) -> Iterator[Site]:
    with answering(partial(SimpleHTTPRequestHandler, directory=str(files[0]))) as port:
        yield Site(files[0], f"http://10.0.2.2:{port}")


@pytest.fixture
def machine(lab: Lab, site: Site, files: tuple[Path, int]) -> Iterator[EmulatedMachine]:
    """host1, off, in front of an application that answers its firmware."""
    with (
        tempfile.TemporaryDirectory(prefix="evenkeel-netboot-", dir="/tmp") as name,
        serving(an_app(lab, who=lambda _: None)) as url,
    ):
        folder, port = Path(name), files[1]
        host = EmulatedMachine(folder, chassis=_CHASSIS)
        made = add(lab, "host1", policy=_POLICY)
        with lab.store.read() as connection:
            (mac,) = Network(lab, touch.find(connection, made.id), site.url).macs
        there = url.replace("127.0.0.1", "10.0.2.2")
        text = _QEMU.format(qemu=tool("qemu-system-x86_64"), folder=folder, url=there, port=port, mac=mac)
        (folder / "qemu").write_text(text)
        (folder / "qemu").chmod(0o755)
        (folder / "boot").write_text("none\n")
        host.start_bmc()
        secrets.put(lab, ROOT, "bmc", "admin", PASSWORD)
        add_endpoint(lab, made.id, "bmc", "ipmi", f"127.0.0.1:{host.bmc_port}", secret="bmc", cipher=3)
        keys = {key: str(files[0] / file) for key, file in (("identity", "user"), ("known_hosts", "known_hosts"))}
        add_endpoint(lab, made.id, "ssh", "ssh", f"ssh://root@127.0.0.1:{port}", **keys)
        try:
            yield host
        finally:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
            host.stop()


def install(lab: Lab, site: Site, said: list[str], within_s: float = _BOOT_S, *, system_of: str = "") -> None:
    script = f"{site.url}/install.ipxe"
    job = Job("host1", "host1", "ssh://root@host1", "full", netboot=script, install_s=within_s, system_of=system_of)
    done = Installing(lab, Then()).prepare(job, said.append)
    assert (done.anew, done.facts is None) == (True, bool(system_of))


def test_a_bare_machine_is_installed_then_booted_by_a_holder_and_then_anew(
    lab: Lab, machine: EmulatedMachine, site: Site
) -> None:
    said: list[str] = []
    install(lab, site, said)
    assert said[0].startswith("it does not answer now") and "power on" in said[2]
    assert said[3].endswith(f"asked what to boot, and was told {site.url}/install.ipxe")
    install(lab, site, said, system_of="ann")
    said.clear()
    install(lab, site, said)  # of its disk nothing is known by now, and it is empty
    assert [one.partition(":")[0] for one in said if "power" in one] == ["booting its disk", "installing it"]
    assert said[2] == "its disk boots nothing that answers, so what does after its installation is new"
    assert (machine.folder / "boot").read_text().strip() == "none"


def test_a_script_that_fails_is_no_installation(lab: Lab, machine: EmulatedMachine, site: Site) -> None:
    """iPXE goes on with the disk, which is empty."""
    said: list[str] = []
    (site.folder / "install.ipxe").rename(site.folder / "away")
    try:
        with pytest.raises(NotAsWanted) as caught:
            install(lab, site, said, within_s=60.0)
    finally:
        (site.folder / "away").rename(site.folder / "install.ipxe")
    assert (
        caught.value.message.startswith("installing it: power on")
        or "nothing new answers within" in caught.value.message
    )
    assert lab.netboots._by_mac == {}
