"""A machine that is a libvirt domain: a real kernel with ssh, a serial line, and the BMCs of others before it.

libvirtd, its user, its sockets and all that it starts are this module's own, in a temporary folder, and end with it;
a libvirt of the system is neither asked nor touched.  The kernel is that of the small guest in the image of virtual
hosts, so a boot takes seconds and every boot id is a real one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import PowerFailed, Way
from evenkeel.lab.power_drivers.ssh import Ssh
from evenkeel.machines.virtual import image
from evenkeel.machines.virtual.build import ROOT_OFFSET, _cpio
from evenkeel.machines.virtual.run import tool
from tests.lab.emulated import add_endpoint, free_port
from tests.lab.emulators import Emulator, running

#: The machine; another one of the same enclosure, without an operating system; one with an empty disk and a network.
NAME, NEIGHBOUR, BARE = "chassis", "neighbour", "bare"
UUIDS = {
    NAME: "6a1c2b1e-5a0e-4a55-8f5b-0d0b6b7d2a01",
    NEIGHBOUR: "6a1c2b1e-5a0e-4a55-8f5b-0d0b6b7d2a02",
    BARE: "6a1c2b1e-5a0e-4a55-8f5b-0d0b6b7d2a03",
}
#: A boot with software emulation takes 10 to 40 s, and a log-in right after it some seconds; a machine that obeys is
#: down at once.
POLICY = {"ssh_s": 8.0, "bmc_s": 5.0, "down_s": 12.0, "shutdown_s": 40.0, "boot_s": 180.0}

_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>{boot}<boot dev='hd'/></os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>{qemu}</emulator>
    <controller type='usb' model='none'/>
    <serial type='tcp'>
      <source mode='bind' host='127.0.0.1' service='{serial}'/><protocol type='raw'/><target port='0'/>
      <log file='{folder}/{name}.serial' append='on'/>
    </serial>
    <memballoon model='none'/>{disk}
  </devices>
  {more}
</domain>
"""
_BOOT = "<kernel>{folder}/vmlinux</kernel><initrd>{folder}/initrd.img</initrd><cmdline>console=ttyS0 panic=10</cmdline>"
_DISK = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{folder}/disk'/><target dev='hda' bus='ide'/>
    </disk>"""
_NETWORK = """<qemu:commandline>
    <qemu:arg value='-netdev'/><qemu:arg value='user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22'/>
    <qemu:arg value='-device'/><qemu:arg value='virtio-net-pci,netdev=net,addr=0x10,romfile='/>
  </qemu:commandline>"""
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s
exec /sbin/init
"""
_INITTAB = """::sysinit:/etc/rc
::respawn:/usr/sbin/dropbear -F -s -r /etc/host_key
ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100
"""
_RC = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
for module in $(cat /modules/order); do insmod /modules/$module; done
hostname chassis
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
"""
#: For ipmi_sim and for the outlet, instead of a chassis that is files.
_CHASSIS = """#!/bin/sh
op=$3
shift 3
domain() { what=$1; shift; virsh -q -c '{uri}' "$what" {name} "$@" </dev/null 2>/dev/null; }
while [ $# -gt 0 ]; do
    case $op.$1 in
    get.power)
        case $(domain domstate) in
        "shut off") echo power:0 ;;
        running | paused) echo power:1 ;;
        *) exit 1 ;;
        esac
        shift ;;
    get.*) echo "$1:0"; shift ;;
    set.power) if [ "$2" = 0 ]; then domain destroy; else domain start; fi >&2; shift 2 ;;
    set.reset) domain reset >&2; shift 2 ;;
    *) shift ;;
    esac
done
exit 0
"""


@dataclass
class Domain:
    """The machine.  ``folder``: of libvirtd's user."""

    folder: Path
    uri: str
    libvirtd: Emulator
    ssh_port: int
    serial_port: int

    def virsh(self, *words: str) -> str:
        done = subprocess.run(
            [tool("virsh"), "-q", "-c", self.uri, *words], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, name: str = NAME) -> str:
        """``running``, ``paused`` (its operating system is hung) or ``shut off``."""
        return self.virsh("domstate", name)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Its CPU stands still for the time of the block, or until it is reset."""
        self.virsh("suspend", NAME)
        try:
            yield
        finally:
            if self.state() == "paused":
                self.virsh("resume", NAME)

    @property
    def chassis(self) -> str:
        """The script of :class:`tests.lab.emulated.EmulatedMachine`."""
        return _CHASSIS.replace("{uri}", self.uri).replace("{name}", NAME)

    def files(self) -> dict[str, str]:
        return {"identity": str(self.folder / "user"), "known_hosts": str(self.folder / "known_hosts")}

    def boot_id(self) -> str | None:
        """Of the kernel that answers now; None: none does."""
        try:
            return Ssh(Way("ssh", "ssh", self._ssh, self.files())).boot(POLICY["ssh_s"]).id
        except PowerFailed:
            return None

    def up(self) -> str:
        """Start it if it is not, wait until ssh answers, and return the boot id."""
        for name in (NEIGHBOUR, NAME):
            if (self.state(name) == "shut off") is (name == NAME):
                self.virsh("start" if name == NAME else "destroy", name)
        end = time.monotonic() + POLICY["boot_s"]
        while (found := self.boot_id()) is None:
            assert time.monotonic() < end, (self.folder / f"{NAME}.serial").read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        return found

    def ssh_endpoint(self, lab: Lab, machine: str) -> None:
        add_endpoint(lab, machine, "ssh", "ssh", self._ssh, **self.files())

    @property
    def _ssh(self) -> str:
        return f"ssh://root@127.0.0.1:{self.ssh_port}"


@contextlib.contextmanager
def domain() -> Iterator[Domain]:
    """Both domains defined, none of them on."""
    folder = Path(tempfile.mkdtemp(prefix="evenkeel-bmc-", dir="/tmp"))  # short, for sockets
    try:
        port, serial = (free_port("127.0.0.1", socket.SOCK_STREAM) for _ in range(2))
        boot_files(folder, port)
        for name in ("run", "config/libvirt", "cache", "data"):
            (folder / name).mkdir(parents=True)
        (folder / "libvirtd.conf").write_text('log_level = 2\nlog_outputs = "2:stderr"\n')
        # Without virtlogd, which would be one more daemon; without what root alone may do.
        (folder / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\nsecurity_driver = "none"\n')
        _give(folder)
        homes = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CONFIG", "CACHE", "DATA")}
        # libvirt's daemon of a user, not of the system, is only had by a user who is not root.
        nobody = [tool("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        argv = [*nobody, tool("libvirtd"), "--config", str(folder / "libvirtd.conf")]
        with running(argv, folder, homes | {"XDG_RUNTIME_DIR": str(folder / "run")}, "libvirtd") as libvirtd:
            uri = f"qemu:///session?socket={folder}/run/libvirt/libvirt-sock"
            made = Domain(folder, uri, libvirtd, port, serial)
            _wait_until_up(made)
            for name in (NAME, NEIGHBOUR):
                _define(made, name)
            yield made
    finally:
        shutil.rmtree(folder)


def _wait_until_up(made: Domain) -> None:
    end = time.monotonic() + 180
    while True:
        try:
            made.virsh("version")
            return
        except AssertionError:
            assert made.libvirtd.process.poll() is None and time.monotonic() < end, made.libvirtd.log.read_text()
            time.sleep(0.2)


def define_bare(made: Domain) -> int:
    """A machine that boots whatever its BMC says, and has no kernel of its own; the port at which its sshd would be."""
    port = free_port("127.0.0.1", socket.SOCK_STREAM)
    (made.folder / "disk").write_bytes(b"")
    os.truncate(made.folder / "disk", 1 << 20)
    os.chown(made.folder / "disk", 65534, 65534)
    _define(made, BARE, port)
    return port


def _define(made: Domain, name: str, port: int | None = None) -> None:
    ours = name == NAME
    port = made.ssh_port if ours else port
    text = _DOMAIN.format(
        name=name,
        uuid=UUIDS[name],
        memory=16 if port is None else 192,
        boot=_BOOT.format(folder=made.folder) if ours else "",
        folder=made.folder,
        qemu=tool("qemu-system-x86_64"),
        serial=made.serial_port if ours else free_port("127.0.0.1", socket.SOCK_STREAM),
        more="" if port is None else _NETWORK.format(port=port),
        disk=_DISK.format(folder=made.folder) if name == BARE else "",
    )
    file = made.folder / f"{name}.xml"
    file.write_text(text)
    made.virsh("define", str(file))


def _give(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)


def bios_kernel(to: Path) -> None:
    """The kernel of virtual hosts, as boot loaders take it: that of the small guest is for QEMU to load."""
    disk = f"{image.ensure().disk}?offset={ROOT_OFFSET}"
    asked = [tool("debugfs"), "-R", "ls -p /boot", disk]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    (kernel,) = (word for word in said.split("/") if word.startswith("vmlinuz-") and "-rt-" in word)
    subprocess.run([tool("debugfs"), "-R", f"dump /boot/{kernel} {to}", disk], check=True, capture_output=True)


def boot_files(folder: Path, port: int) -> None:
    """Kernel and initrd of the small guest, with an sshd beside what is there, and its keys."""
    disk = f"{image.ensure().disk}?offset={ROOT_OFFSET}"
    for name in ("vmlinux", "initrd.img"):
        dump = f"dump /var/lib/evenkeel/guest/{name} {folder}/{name}"
        subprocess.run([tool("debugfs"), "-R", dump, disk], check=True, capture_output=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "user"], check=True)
    key = ["dropbearkey", "-t", "ed25519", "-f", str(folder / "host_key")]
    said = subprocess.run(key, check=True, capture_output=True, text=True).stdout
    public = re.search(r"^ssh-ed25519 \S+", said, re.MULTILINE)
    assert public, said
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]}\n")
    files: dict[str, tuple[int, bytes]] = {"root/.ssh": (stat.S_IFDIR | 0o700, b"")}

    def add(name: str, mode: int, data: bytes) -> None:
        files[name] = (stat.S_IFREG | mode, data)

    add("init", 0o755, _INIT.encode())
    add("etc/inittab", 0o644, _INITTAB.encode())
    add("etc/rc", 0o755, _RC.encode())
    add("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
    add("etc/host_key", 0o600, (folder / "host_key").read_bytes())
    add("root/.ssh/authorized_keys", 0o600, (folder / "user.pub").read_bytes())
    sshd = tool("dropbear")
    add("usr/sbin/dropbear", 0o755, Path(sshd).read_bytes())
    said = subprocess.run(["ldd", sshd], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", said):
        add(library.removeprefix("/usr").lstrip("/"), 0o755, Path(library).read_bytes())
    with (folder / "initrd.img").open("ab") as initrd:  # a second archive adds to the first, and wins
        initrd.write(b"\0" * (-initrd.tell() % 4) + _cpio(files))
