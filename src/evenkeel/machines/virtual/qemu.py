"""QEMU: which one, with what arguments, and how to talk to it (QMP).

Prefers QEMU 10 or newer, fetched from the backports suite of the Debian mirror that this machine's apt uses and run
from the cache without being installed; Debian 12's own 7.2 is the fallback.  Measured (virtual-host reference): 7.2
crashes 3 of 40 emulated SMP boots in the guest's code patching, 10.0.2 none of 40, and it forks three times faster.
Must not start or stop hosts; that is :mod:`.lifecycle`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from evenkeel.errors import EvenkeelError, NotAsWanted, Unreachable, WrongInput
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual import apt
from evenkeel.machines.virtual.places import cache_dir
from evenkeel.machines.virtual.run import run, tool
from evenkeel.machines.virtual.spec import MIB, Disk, HostSpec, Nic

#: The CPU of an emulated host, and what is odd about it.
EMULATED_CPU = ",".join(
    (
        "max",
        # The emulator would strip invtsc, without which KVM on a PREEMPT_RT kernel refuses to load.
        "+invtsc",
        "x-force-features=on",
        # AMD: the emulator emulates SVM, but not VMX.
        "vendor=AuthenticAMD",
        "family=25",
        "model=1",
        "stepping=1",
        "model-id=AMD EPYC 7543 32-Core Processor",
        # Without topoext and leaf 0x8000001e Linux 6.12 sees no SMT siblings and no shared caches.
        "topoext=on",
        # Fast in silicon, slow here: with them the kernel clears and copies memory byte by byte (measured: three
        # times as long, and 20 s of a boot with 192 huge pages).  A fifth level of page tables: one step more per walk.
        "-erms",
        "-fsrm",
        "-la57",
        # Hardware that needs no retpolines and no safe returns, which the emulator pays at each call; leaf 0x80000021.
        "+auto-ibrs",
        "+srso-no",
        "xlevel=0x80000021",
    )
)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: The management NIC, the same in every host: each has a user network of its own.
MANAGEMENT_MAC = "52:54:00:65:6b:00"
GUEST_ADDRESS = "10.0.2.15"
#: What QEMU says after it became a daemon: an assertion that failed, memory that it did not get, who ended it.
ERROR_LOG = "qemu-errors.log"
#: What the host wrote to its disk since it was made.
OVERLAY = "disk.qcow2"
#: All that the host's serial port said since QEMU was started.
SERIAL_LOG = "serial.log"


@dataclass(frozen=True)
class Qemu:
    """One QEMU.  ``prefix``: the folder it was unpacked in; None: installed in the system."""

    version: tuple[int, int, int]
    prefix: Path | None

    def program(self, name: str) -> str:
        """Path of ``qemu-system-x86_64`` or ``qemu-img``."""
        if self.prefix is None:
            return tool(name)
        return str(self.prefix / "usr/bin" / name)

    @property
    def data_options(self) -> list[str]:
        """Where an unpacked QEMU finds its firmware."""
        if self.prefix is None:
            return []
        share = self.prefix / "usr/share"
        folders = (share / "qemu", share / "seabios", Path("/usr/share/seabios"), Path("/usr/lib/ipxe/qemu"))
        return [word for folder in folders for word in ("-L", str(folder))]

    @property
    def environment(self) -> dict[str, str]:
        if self.prefix is None:
            return {}
        libraries = self.prefix / _LIBRARIES
        return {"QEMU_MODULE_DIR": str(libraries / "qemu"), "LD_LIBRARY_PATH": str(libraries)}

    @property
    def text(self) -> str:
        return ".".join(str(part) for part in self.version)

    @property
    def has_igb(self) -> bool:
        return self.version >= (8, 0, 0)

    @property
    def emulates_x2apic(self) -> bool:
        """Whether the emulator knows x2APIC, and the emulated IOMMU its interrupts (QEMU's release notes of 9.0)."""
        return self.version >= (9, 0, 0)


def _read_version(program: str, environment: dict[str, str]) -> tuple[int, int, int] | None:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **environment},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match and done.returncode == 0 else None


def _installed() -> Qemu | None:
    program = shutil.which("qemu-system-x86_64")
    version = _read_version(program, {}) if program else None
    return Qemu(version, None) if version else None


def _unpacked(folder: Path) -> Qemu | None:
    candidate = Qemu((0, 0, 0), folder)
    version = _read_version(candidate.program("qemu-system-x86_64"), candidate.environment)
    return Qemu(version, folder) if version else None


def find(on_progress: OnProgress | None = None) -> Qemu:
    """The best QEMU of this machine: installed if it is 10 or newer, else fetched, else installed.

    Raises WrongInput when there is none and none can be had.
    """
    return _find(on_progress)


@functools.lru_cache(maxsize=1)
def _find(on_progress: OnProgress | None) -> Qemu:
    installed = _installed()
    if installed is not None and installed.version >= (10, 0, 0):
        return installed
    cache = cache_dir() / "qemu"
    if (cached := _unpacked(cache / "10")) is not None:
        return cached
    try:
        return _fetch(cache, on_progress)
    except (EvenkeelError, OSError) as error:
        if installed is None:
            raise WrongInput(
                f"no QEMU: none is installed, and fetching one failed: {error}",
                hint="apt-get install qemu-system-x86 qemu-utils",
            ) from None
        if on_progress is not None:
            on_progress(0, 0, f"QEMU 10 could not be fetched; using the installed {installed.text}")
        return installed


def _fetch(cache: Path, on_progress: OnProgress | None) -> Qemu:
    """Fetch QEMU 10 (15 MB, seconds) and unpack it into ``cache/10``, atomically."""
    from evenkeel.machines.virtual.image import locked

    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / ".lock", on_progress, "waiting for another download of QEMU"):
        if (cached := _unpacked(cache / "10")) is not None:
            return cached
        for leftover in cache.glob(".fetch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        work = cache / f".fetch-{os.getpid()}"
        try:
            work.mkdir()
            if on_progress is not None:
                on_progress(0, 3, "QEMU: reading the list of backports")
            options = apt.private_apt(work, apt.backports_lines(apt.sources()))
            run([tool("apt-get"), *options, "-q", "update"], what="read the list of Debian backports")
            if on_progress is not None:
                on_progress(1, 3, "QEMU: fetching QEMU 10")
            # --download-only resolves against what is installed here: exactly the missing libraries come along.
            run(
                [
                    tool("apt-get"),
                    *options,
                    "-q",
                    "-y",
                    "--download-only",
                    "--no-install-recommends",
                    "-t",
                    f"{apt.RELEASE}-backports",
                    "install",
                    "qemu-system-x86",
                    "qemu-utils",
                ],
                what="fetch QEMU 10",
            )
            if on_progress is not None:
                on_progress(2, 3, "QEMU: unpacking")
            for package in sorted((work / "archives").glob("*.deb")):
                run([tool("dpkg-deb"), "-x", str(package), str(work / "root")], what=f"unpack {package.name}")
            found = _unpacked(work / "root")
            if found is None or found.version < (10, 0, 0):
                raise NotAsWanted("the QEMU of Debian's backports does not run here")
            shutil.rmtree(cache / "10", ignore_errors=True)
            (work / "root").rename(cache / "10")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Qemu(found.version, cache / "10")


# -- arguments -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """What one start needs besides the spec.

    Sockets are relative to the host's ``folder``, in which QEMU is started, because a socket's path may have 107 bytes
    only.  Other paths are absolute: the pid file's is what the process is known by, and disks are opened again when
    the host is saved, by a daemon that is in the root by then.  ``incoming``: a saved state to go on from.
    ``late``: devices whose state cannot be saved are plugged in afterwards (:func:`late_devices`).
    """

    name: str
    uuid: str
    kvm: bool
    ssh_port: int
    folder: Path
    qmp: str = "qmp.sock"
    console: str = "console.sock"
    serial_log: str = SERIAL_LOG
    error_log: str = ERROR_LOG
    incoming: str | None = None
    late: bool = False


def arguments(qemu: Qemu, spec: HostSpec, launch: Launch) -> list[str]:
    """The whole command line.  Pure: same input, same list."""
    argv = [qemu.program("qemu-system-x86_64"), "-name", f"{launch.name},debug-threads=on", *qemu.data_options]
    argv += [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-daemonize",
        "-pidfile",
        str(launch.folder / "qemu.pid"),
    ]
    # A daemon's complaints go to /dev/null unless something is logged; "strace" logs nothing in a whole machine.
    argv += ["-d", "strace", "-D", launch.error_log]
    argv += [
        "-machine",
        "q35,sata=off,smbus=off" + (",kernel-irqchip=split" if launch.kvm else ""),
        "-uuid",
        launch.uuid,
    ]
    if launch.kvm:
        # invtsc: KVM on a PREEMPT_RT kernel refuses to load without a constant TSC, nested as well.
        argv += ["-accel", "kvm", "-cpu", "host,migratable=off,+invtsc"]
    else:
        argv += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", EMULATED_CPU]
    argv += _memory_and_cpus(spec)
    argv += _firmware(spec, launch)
    argv += [
        "-chardev",
        f"socket,id=qmp,path={launch.qmp},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        f"socket,id=console,path={launch.console},server=on,wait=off,logfile={launch.serial_log}",
        "-device",
        "isa-serial,chardev=console",
    ]
    if spec.iommu == "intel":
        # eim: the kernel talks to its local APICs by x2APIC, so by MSR.  By xAPIC, so by memory, QEMU's emulator now
        # and then gives that write to another device while BARs are being mapped (a failed assertion in its
        # msix_table_mmio_write showed it); without its end of interrupt a CPU stays deaf.  Measured with QEMU 10.0.2,
        # 12 CPUs on 2 cores: 8 of 36 boots of the kernel without eim, 0 of 37 with it.
        eim = ",eim=on" if qemu.emulates_x2apic and not launch.kvm else ""
        argv += ["-device", f"intel-iommu,intremap=on{eim},caching-mode=on,device-iotlb=on"]
    argv += [
        "-drive",
        f"if=none,id=root,file={_option(launch.folder / OVERLAY)},format=qcow2,cache=unsafe,discard=unmap",
        "-device",
        "virtio-blk-pci,drive=root,bus=pcie.0,addr=0x2,bootindex=0,serial=root",
        "-device",
        "virtio-rng-pci,bus=pcie.0,addr=0x3",
        "-netdev",
        f"user,id=management,hostfwd=tcp:127.0.0.1:{launch.ssh_port}-{GUEST_ADDRESS}:22",
    ]
    argv += _devices(qemu, spec, launch)
    return [*argv, "-incoming", launch.incoming] if launch.incoming else argv


def _memory_and_cpus(spec: HostSpec) -> list[str]:
    argv = [
        "-m",
        f"{spec.memory // MIB}M",
        "-smp",
        f"{spec.cpus},sockets={spec.sockets},cores={spec.cores},threads={spec.threads}",
    ]
    for number, node in enumerate(spec.nodes):
        if node.memory:
            argv += [
                "-object",
                f"memory-backend-ram,id=memory{number},size={node.memory // MIB}M",
                "-numa",
                f"node,nodeid={number},memdev=memory{number}",
            ]
        else:
            argv += ["-numa", f"node,nodeid={number}"]
    for socket_ in range(spec.sockets):
        for core in range(spec.cores):
            for thread in range(spec.threads):
                argv += [
                    "-numa",
                    f"cpu,node-id={spec.node_of_core(socket_, core)},"
                    f"socket-id={socket_},core-id={core},thread-id={thread}",
                ]
    for source in range(len(spec.nodes)):
        for target in range(len(spec.nodes)):
            if source != target:
                argv += ["-numa", f"dist,src={source},dst={target},val={spec.distance(source, target)}"]
    return argv


def _firmware(spec: HostSpec, launch: Launch) -> list[str]:
    """DMI tables.  The serial number is the host's name: a service in the image makes it the host name."""
    return [
        "-smbios",
        "type=0,vendor=SeaBIOS,version=evenkeel-1,date=01/01/2025",
        "-smbios",
        f"type=1,manufacturer=Evenkeel,product=Virtual Host,version=1,serial={launch.name},uuid={launch.uuid}",
        "-smbios",
        f"type=2,manufacturer=Evenkeel,product=Virtual Board,serial={launch.name}",
        "-smbios",
        f"type=3,manufacturer=Evenkeel,serial={launch.name}",
    ]


def _devices(qemu: Qemu, spec: HostSpec, launch: Launch) -> list[str]:
    """The management NIC on node 0, then the devices of the spec, each on a root port of its node's own PCI bus.

    When ``launch.late``, without the NVMe devices and their drives, whose ports are there all the same.
    """
    argv: list[str] = []
    for node in range(len(spec.nodes)):
        argv += [
            "-device",
            f"pxb-pcie,id=node{node},bus_nr={_bus_number(node)},bus=pcie.0,addr={0x10 + node:#x},numa_node={node}",
        ]
    ports = iter(range(1, 256))
    slots = [0] * len(spec.nodes)

    def port(node: int) -> str:
        number = next(ports)
        argv.extend(
            [
                "-device",
                f"pcie-root-port,id={_port_name(number)},bus=node{node},addr={slots[node]:#x},chassis={number},slot={number}",
            ]
        )
        slots[node] += 1
        return _port_name(number)

    queues = f"mq=on,vectors={2 * spec.cpus + 2}"
    argv += ["-device", f"virtio-net-pci,netdev=management,mac={MANAGEMENT_MAC},bus={port(0)},{queues},romfile="]
    models = {"virtio-net": f"virtio-net-pci,{queues}", "e1000e": "e1000e", "igb": "igb" if qemu.has_igb else "e1000e"}
    for number, device in enumerate(spec.devices):
        if isinstance(device, Nic):
            # restrict: the link is up and leads nowhere.
            argv += [
                "-netdev",
                f"user,id=net{number},restrict=on",
                "-device",
                f"{models[device.model]},netdev=net{number},mac=52:54:00:65:6c:{number:02x},bus={port(device.node)},"
                "romfile=",
            ]
        else:
            name, properties = _disk(number, device, port(device.node), spec)
            if not (launch.late and device.kind == "nvme"):
                file = _option(launch.folder / data_disk(number))
                argv += ["-drive", f"if=none,id=disk{number},file={file},format=raw,cache=unsafe"]
                argv += ["-device", ",".join([name, *(f"{key}={value}" for key, value in properties.items())])]
    return argv


def _option(path: Path) -> str:
    """A path within an option of QEMU, where a comma is written twice."""
    return str(path).replace(",", ",,")


def late_devices(spec: HostSpec, folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What QMP's ``blockdev-add`` and ``device_add`` take for each device that ``late`` left out.

    The drives come late too: QEMU saves nothing while there is one without a device (EPERM of bdrv_inactivate_all).
    """
    found = []
    for number, device in enumerate(spec.devices):
        if isinstance(device, Disk) and device.kind == "nvme":
            name, properties = _disk(number, device, _port_name(number + 2), spec)
            file = {"driver": "file", "filename": str(folder / data_disk(number))}
            cache = {"direct": False, "no-flush": True}  # "unsafe"
            drive = {"driver": "raw", "node-name": f"disk{number}", "file": file, "cache": cache}
            found.append((drive, {"driver": name, "id": f"late{number}", **properties}))
    return found


def _port_name(number: int) -> str:
    """Root ports are counted from 1, which the management NIC has; ``devices[0]`` has 2."""
    return f"port{number}"


def replaced(qemu: Qemu, spec: HostSpec) -> tuple[str, ...]:
    """What of the spec this QEMU cannot be, in words."""
    igb = any(isinstance(device, Nic) and device.model == "igb" for device in spec.devices)
    return (
        (f"QEMU {qemu.text} has no igb (8.0 brought it): it is an e1000e, without SR-IOV",)
        if igb and not qemu.has_igb
        else ()
    )


def _disk(number: int, device: Disk, bus: str, spec: HostSpec) -> tuple[str, dict[str, Any]]:
    """Name and properties of the device on drive ``number``."""
    place = {"drive": f"disk{number}", "serial": f"evenkeel-{number}", "bus": bus}
    if device.kind == "nvme":
        return "nvme", {**place, "max_ioqpairs": spec.cpus, "msix_qsize": spec.cpus + 1}
    return "virtio-blk-pci", {**place, "num-queues": spec.cpus}


def data_disk(number: int) -> str:
    """File name of the empty disk of ``devices[number]``, in the host's folder."""
    return f"disk-{number}.raw"


def _bus_number(node: int) -> int:
    """PCI bus of a node's host bridge: 0x20 apart, so that its ports' buses fit behind it."""
    return 0x20 * (node + 1) if node < 7 else 0xF0


# -- QMP -------------------------------------------------------------------------------------------------------


class Qmp:
    """A conversation with a running QEMU (docs/interop/qmp-spec).  Raises Unreachable when QEMU does not answer."""

    def __init__(self, folder: Path, name: str = "qmp.sock", *, timeout_s: float = 10.0) -> None:
        self._socket = connect(folder, name, timeout_s=timeout_s)
        self._events: list[str] = []
        self._buffer = b""
        self._read()  # greeting
        self.call("qmp_capabilities")

    def call(self, command: str, /, **arguments: Any) -> Any:
        """Run one command and return what it returns.  Raises NotAsWanted with QEMU's own words."""
        try:
            request: dict[str, Any] = {"execute": command}
            if arguments:
                request["arguments"] = arguments
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._read()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise NotAsWanted(f"QEMU refuses {command}: {answer['error'].get('desc')}")
                self._note(answer)
        except OSError as error:
            raise Unreachable(f"QEMU does not answer {command}: {error}") from None

    def wait_for_event(self, name: str, *, timeout_s: float) -> bool:
        """Wait for an event such as ``RESET`` and say whether it came.  Raises Unreachable when QEMU ends."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if name in self._events:
                return True
            if b"\n" in self._buffer or select.select([self._socket], [], [], left)[0]:
                self._note(self._read())
        return False

    def _note(self, answer: dict[str, Any]) -> None:
        if "event" in answer:
            self._events.append(str(answer["event"]))

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise Unreachable(f"QEMU does not answer: {error}") from None
            if not data:
                raise Unreachable("QEMU closed its control socket")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(folder: Path, name: str, *, timeout_s: float = 10.0) -> socket.socket:
    """Connect to the UNIX socket ``folder/name``.

    Through a descriptor of the folder, because a socket's path may have 107 bytes only (unix(7)) and a state folder
    can be deep.  Raises Unreachable.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise Unreachable(f"no running virtual host in {folder}: {error.strerror}") from None
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(timeout_s)
        try:
            client.connect(f"/proc/self/fd/{descriptor}/{name}")
            return client
        except BlockingIOError:  # somebody else is connected, and QEMU serves one
            client.close()
            if time.monotonic() > deadline:
                raise Unreachable(f"{name} of {folder.name} is in use", hint="is a console open elsewhere?") from None
            time.sleep(0.1)
        except OSError as error:
            client.close()
            raise Unreachable(f"virtual host {folder.name} does not answer on {name}: {error.strerror}") from None
        finally:
            os.close(descriptor)
