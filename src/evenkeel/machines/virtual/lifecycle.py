"""Create, start, stop and remove virtual hosts.  A host is a folder; a running host is one QEMU process.

The folder holds ``host.json`` (what was asked for), the overlay and the empty disks, and while it runs ``run.json``
and QEMU's pid file, sockets and serial log.  Whatever fails or is interrupted leaves no process and no socket behind.
Must not know how facts are read or settings written.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.errors import NotAsWanted, Unreachable, WrongInput
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.ssh import SshTarget
from evenkeel.machines.virtual import booted, kvm
from evenkeel.machines.virtual import image as images
from evenkeel.machines.virtual import qemu as qemus
from evenkeel.machines.virtual.places import hosts_dir
from evenkeel.machines.virtual.run import disk_full, is_disk_full, run, tool
from evenkeel.machines.virtual.spec import BUILT_IN, Disk, HostSpec, check_name
from evenkeel.probe.boot_id import BOOT_ID

#: An emulated host with 12 CPUs answers in under a minute on two idle cores; a busy machine may take many times that.
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 120.0
#: The same for one that could not be told to: the connection may have ended with the answer on its way.
_DEAF_S = 5.0
#: What an overlay grows to in a demo run, with room to spare.
NEEDED_BYTES = 1024**3
#: In the folder of a host that was started once: its disk is no longer as the image.
_STARTED = "started"
#: Loading a state takes a second or two.
_RESUME_S = 60.0
_RUN_FILES = ("run.json", "qemu.pid", "qmp.sock", "console.sock")
#: A host that boots keeps QEMU busy; one that stands at its end idles at a few hundredths of a CPU.
_STUCK_S, _STUCK_SHARE = 60.0, 0.1
#: The kernel's words on a CPU that makes no progress: two of these a stall, the first after 21 s, the second after 63 s
#: more.  One stall may come from a busy machine.
_STALL = re.compile(rb"rcu: INFO: .* (?:detected stalls|self-detected stall)|kthread starved for|BUG: soft lockup")
_STALLS = 4


class BootFailed(Unreachable):
    """No boot will come of this try; a second one mostly works.

    Seen in emulation: QEMU ends; the host comes to rest without sshd; a CPU gets no interrupt any more, so that each
    RCU grace period takes 21 s ("rcu_preempt kthread starved"), without end.  The first and the last have one cause,
    which x2APIC avoids where the emulator has it: see .qemu.  Without, it is up to every third boot.
    """


class HostFile(Model):
    """``host.json``: what was asked for, and from which image."""

    name: str
    uuid: str
    image: str = Field(description="key of the image that the overlay stands on")
    spec: HostSpec
    accel: Literal["auto", "tcg"] = "auto"


class RunFile(Model):
    """``run.json``: how the running QEMU was started."""

    pid: int
    ssh_port: int
    qemu: str = Field(description="version of QEMU")
    kvm: bool = Field(description="false: software emulation, so latency numbers mean nothing")
    why: str = Field(description="why KVM is used or not")
    notes: tuple[str, ...] = Field(default=(), description="what differs from what was asked for")


@dataclass(frozen=True)
class HostState:
    """One line of `evenkeel virtual list`."""

    name: str
    state: Literal["running", "paused", "stopped", "broken"]
    spec: HostSpec | None
    run: RunFile | None

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "state": self.state,
            "cpus": self.spec.cpus if self.spec else None,
            "memory_bytes": self.spec.memory if self.spec else None,
            "nodes": len(self.spec.nodes) if self.spec else None,
            "pid": self.run.pid if self.run else None,
            "ssh_port": self.run.ssh_port if self.run else None,
            "kvm": self.run.kvm if self.run else None,
            "qemu": self.run.qemu if self.run else None,
        }


# -- reading ---------------------------------------------------------------------------------------------------


def folder_of(name: str) -> Path:
    return hosts_dir() / check_name(name)


def exists(name: str) -> bool:
    return (folder_of(name) / "host.json").is_file()


def read_host(name: str) -> HostFile:
    """What ``name`` was created as.  Raises WrongInput when there is no such host."""
    file = folder_of(name) / "host.json"
    try:
        return HostFile.model_validate_json(file.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(host.name for host in listing())) or "none"
        raise WrongInput(
            f"there is no virtual host {name!r} (known: {known})",
            hint=f"evenkeel virtual create {name}",
        ) from None
    except ValueError as error:
        raise WrongInput(
            f"{file} cannot be read: {error}",
            hint=f"evenkeel virtual rm {name}, then create it again",
        ) from None


def read_run(name: str) -> RunFile | None:
    """How ``name`` runs, or None when it does not.  A stale pid file, of a killed QEMU, counts as not running."""
    folder = folder_of(name)
    found = _last_run(folder)
    return found if found is not None and is_ours(found.pid, folder) else None


def _last_run(folder: Path) -> RunFile | None:
    """How QEMU was started last, whether it is still there or not; None once it was ended on purpose."""
    try:
        return RunFile.model_validate_json((folder / "run.json").read_text())
    except (OSError, ValueError):
        return None


def is_ours(pid: int, folder: Path) -> bool:
    """True when process ``pid`` is the QEMU of ``folder``, not a stranger with a reused number.

    Known by the path of its pid file on its command line: the working directory of a daemon is the root.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX" and os.fsencode(folder / "qemu.pid") in words


def _pid_of(folder: Path) -> int | None:
    """The QEMU of this folder by its pid file, even when no run.json was written yet."""
    try:
        pid = int((folder / "qemu.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if is_ours(pid, folder) else None


def listing() -> list[HostState]:
    """All virtual hosts of this user, by name."""
    found = []
    base = hosts_dir()
    for folder in sorted(base.iterdir()) if base.is_dir() else ():
        if not (folder / "host.json").is_file():
            continue
        try:
            spec: HostSpec | None = HostFile.model_validate_json((folder / "host.json").read_text()).spec
        except ValueError:
            found.append(HostState(folder.name, "broken", None, None))
            continue
        running = read_run(folder.name)
        state: Literal["running", "paused", "stopped"] = "running" if running else "stopped"
        if running and why_paused(folder.name):
            state = "paused"
        found.append(HostState(folder.name, state, spec, running))
    return found


#: Why QEMU stopped the clock of a host, in words (RunState of qapi/run-state.json); other states are no trouble.
_PAUSED = {
    "io-error": "a disk of it could not be written: this machine's disk is full, or broken",
    "internal-error": "QEMU met an error of its own",
    "paused": "somebody paused it through its control socket",
}


def why_paused(name: str) -> str | None:
    """Why the CPUs of a host stand still although its QEMU is there; None when they do not, or it does not say."""
    with contextlib.suppress(Unreachable, NotAsWanted), qemus.Qmp(folder_of(name), timeout_s=2.0) as qmp:
        return _PAUSED.get(qmp.call("query-status")["status"])
    return None


def ssh_target(name: str) -> SshTarget:
    """How to reach ``name``.  Raises WrongInput (no such host) or Unreachable (not running)."""
    host = read_host(name)
    running = read_run(name)
    if running is None:
        raise Unreachable(f"virtual host {name} is not running", hint=f"evenkeel virtual start {name}")
    return _target(host, running.ssh_port)


def _target(host: HostFile, port: int) -> SshTarget:
    folder = folder_of(host.name)
    return SshTarget(
        host="127.0.0.1",
        user="root",
        port=port,
        identity=folder / "id_ed25519",
        known_hosts=folder / "known_hosts",
    )


def ssh_command(target: SshTarget, *words: str, options: Sequence[str] = ()) -> list[str]:
    """The ssh command line for a virtual host: the user's own ssh configuration has no say in it."""
    own = ["-F", "/dev/null", "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60"]
    return ["ssh", *own, *options, *target.options(), "--", target.destination, *words]


@contextlib.contextmanager
def _lock(name: str, on_progress: OnProgress | None = None) -> Iterator[None]:
    """One create, start, stop or rm of a host at a time.  Beside the folder, because rm removes the folder."""
    hosts_dir().mkdir(parents=True, exist_ok=True)
    file = hosts_dir() / f".{name}.lock"
    with images.locked(file, on_progress, f"waiting for another command on {name}"):
        try:
            yield
        finally:
            if not (hosts_dir() / name).exists():
                file.unlink(missing_ok=True)


# -- create and remove -----------------------------------------------------------------------------------------


def create(
    name: str,
    spec: HostSpec | None = None,
    *,
    accel: Literal["auto", "tcg"] = "auto",
    on_progress: OnProgress | None = None,
) -> HostFile:
    """Define a host and give it its disks; builds the image when this recipe's is not there (about a minute).

    Raises WrongInput (name taken or bad, tools missing) and NotAsWanted (disk full).
    """
    check_name(name)
    qemu = qemus.find(on_progress)
    picture = images.ensure(on_progress)
    with _lock(name, on_progress):
        folder = folder_of(name)
        if (folder / "host.json").exists():
            raise WrongInput(f"there is already a virtual host {name!r}", hint=f"evenkeel virtual rm {name}")
        host = HostFile(
            name=name,
            uuid=str(uuid.uuid4()),
            image=picture.key,
            spec=spec or BUILT_IN["default"],
            accel=accel,
        )
        shutil.rmtree(folder, ignore_errors=True)  # left by a create that was killed
        try:
            folder.mkdir(parents=True, mode=0o700)
            free = shutil.disk_usage(folder).free
            if free < NEEDED_BYTES:
                raise disk_full(f"create virtual host {name}", NEEDED_BYTES, folder, free)
            _make_disks(folder, host, picture, qemu)
            # Last, and in one step: a folder with this file is a host.
            _write_host(folder, host)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and is_disk_full(error):
                raise disk_full(f"create virtual host {name}", NEEDED_BYTES, hosts_dir()) from None
            raise
    return host


def _write_host(folder: Path, host: HostFile) -> None:
    (folder / "host.json.new").write_text(host.model_dump_json(indent=2) + "\n")
    (folder / "host.json.new").rename(folder / "host.json")


def _make_disks(folder: Path, host: HostFile, picture: images.Image, qemu: qemus.Qemu) -> None:
    run(
        [
            qemu.program("qemu-img"),
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            str(picture.disk),
            "-F",
            "raw",
            str(folder / qemus.OVERLAY),
        ],
        what="make the host's overlay",
        env=qemu.environment,
    )
    for number, device in enumerate(host.spec.devices):
        if isinstance(device, Disk):
            with (folder / qemus.data_disk(number)).open("wb") as handle:
                handle.truncate(device.size)
    shutil.copyfile(picture.identity, folder / "id_ed25519")
    (folder / "id_ed25519").chmod(0o600)


def renew(name: str, *, on_progress: OnProgress | None = None) -> HostFile:
    """Stop ``name`` at once and give it its disks anew, from the image of today; it stays the same machine.

    What is told of it in firmware (serial number, UUID) and its devices are as before.  Raises WrongInput (no such
    host) and NotAsWanted (disk full).
    """
    read_host(name)
    qemu = qemus.find(on_progress)
    picture = images.ensure(on_progress)
    with _lock(name, on_progress):
        folder = folder_of(name)
        host = read_host(name).model_copy(update={"image": picture.key})
        _kill(folder)
        try:
            (folder / "disk.qcow2").unlink(missing_ok=True)
            _make_disks(folder, host, picture, qemu)
            (folder / "host.json.new").write_text(host.model_dump_json(indent=2) + "\n")
            (folder / "host.json.new").rename(folder / "host.json")
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(f"renew virtual host {name}", NEEDED_BYTES, folder) from None
            raise
    return host


def remove(name: str, *, on_progress: OnProgress | None = None) -> None:
    """Stop ``name`` at once and remove all that is its own.  The image stays.  Raises WrongInput: no such host."""
    folder = folder_of(name)
    if not folder.exists():
        read_host(name)
    _kill(folder)  # a command that waits for its boot ends now, and lets go of the lock
    with _lock(name, on_progress):
        _kill(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise NotAsWanted(f"{folder} could not be removed whole", hint="is a file in it in use by another user?")


# -- start -----------------------------------------------------------------------------------------------------


def start(
    name: str,
    *,
    reuse_boot: bool = False,
    on_progress: OnProgress | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> RunFile:
    """Boot ``name`` and return when ssh answers.  A host that already runs is left alone.

    ``reuse_boot``: go on from the first boot of an earlier host of this name, topology and image, when there was one
    and this host was never started; else keep this boot for the next.  The boot id is then that of the earlier host.

    Raises Unreachable when it does not answer in time; it is then stopped again, and the serial log kept.
    """
    host = read_host(name)
    with _lock(name, on_progress):
        running = read_run(name)
        if running is not None:
            return running
        folder = folder_of(name)
        _kill(folder)
        picture = images.Image(images.images_dir() / host.image)
        if not picture.disk.is_file():
            raise WrongInput(
                f"the image {host.image} that virtual host {name} stands on is gone",
                hint=f"evenkeel virtual rm {name}, then create it again",
            )
        images.mark_used(picture)
        qemu = qemus.find(on_progress)
        verdict = (
            kvm.probe(qemu, picture.kernel, on_progress) if host.accel == "auto" else kvm.Verdict(False, "as asked for")
        )
        reuse = reuse_boot and booted.works_with(qemu, verdict.works) and not (folder / _STARTED).exists()
        (folder / _STARTED).touch()
        notes = qemus.replaced(qemu, host.spec)
        try:
            kept = booted.find(picture, name, host.spec, qemu) if reuse else None
            if kept is None or not _resume(host, kept, qemu, verdict, picture, notes, on_progress):
                _launch(host, qemu, verdict, picture, notes, late=reuse)
                _come_up(name, contextlib.nullcontext(), on_progress, timeout_s, late=reuse)
                if reuse:
                    _keep(host, qemu, picture, on_progress)
            running = read_run(name)
            if running is None:
                raise BootFailed(f"QEMU of virtual host {name} ended as soon as it had booted: {_why_ended(folder)}")
        except BaseException:
            _kill(folder)
            raise
        return running


def _keep(host: HostFile, qemu: qemus.Qemu, picture: images.Image, on_progress: OnProgress | None) -> None:
    """Keep a boot that was launched without its late devices, and plug those in."""
    folder = folder_of(host.name)
    if on_progress is not None:
        on_progress(0, 0, f"{host.name}: keeping this boot for the next time")
    try:
        running = read_run(host.name)
        if running is not None:
            _meet_qemu(_target(host, running.ssh_port))
        booted.keep(picture, host.name, host.uuid, host.spec, qemu, folder)
    except (NotAsWanted, OSError) as error:  # the next start boots again; that is all
        if on_progress is not None:
            on_progress(0, 0, f"{host.name}: this boot is not kept: {error}")
    _plug_late(host)


def _meet_qemu(target: SshTarget) -> None:
    """Have libvirt in the host find out what its QEMU can, which it does at the first guest and remembers on disk."""
    # Without it the first guest of each host that goes on from this boot starts ten seconds later; that is all.
    _tell(target, "virsh", "-q", "domcapabilities", within_s=120)


def _tell(target: SshTarget, *words: str, within_s: float) -> bool:
    """Run a command on a host; whether it came to its end there, and well."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = ssh_command(target, *words)
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=within_s, check=False)
        return done.returncode == 0
    return False


def _resume(
    host: HostFile,
    kept: booted.Booted,
    qemu: qemus.Qemu,
    verdict: kvm.Verdict,
    picture: images.Image,
    notes: tuple[str, ...],
    on_progress: OnProgress | None,
) -> bool:
    """Go on from a kept boot.  When that does not work: False, all is as before, and the kept boot is forgotten."""
    folder = folder_of(host.name)
    if on_progress is not None:
        on_progress(0, 0, f"{host.name}: going on from a kept boot")
    place = booted.folder_of(picture, host.name)
    same = host.model_copy(update={"uuid": kept.uuid})  # the DMI tables in its memory say so
    try:
        _write_host(folder, same)
        shutil.copyfile(place / qemus.OVERLAY, folder / qemus.OVERLAY)
        _launch(
            same, qemu, verdict, picture, (*notes, "went on from a kept boot"), incoming=f"file:{place / booted.STATE}"
        )
        with qemus.Qmp(folder) as qmp:
            deadline = time.monotonic() + _RESUME_S
            while (status := qmp.call("query-status")["status"]) == "inmigrate" and time.monotonic() < deadline:
                time.sleep(0.05)
            if status != "paused":  # as it was saved
                raise NotAsWanted(f"QEMU could not go on from it ({status})")
            qmp.call("cont")
        running = read_run(host.name)
        if running is None:
            raise NotAsWanted(f"QEMU could not go on from it: {_why_ended(folder)}")
        _set_clock(_target(same, running.ssh_port))
        _plug_late(same)
    except (NotAsWanted, Unreachable, OSError) as error:
        _kill(folder)
        booted.forget(picture, host.name)
        if on_progress is not None:
            on_progress(0, 0, f"{host.name}: the kept boot is of no use ({error}); booting")
        _write_host(folder, host)
        _make_disks(folder, host, picture, qemu)
        return False
    return True


def _set_clock(target: SshTarget) -> None:
    """The host's clock stood still while it was kept.  Raises Unreachable when it does not answer."""
    done = subprocess.run(
        ssh_command(target, "date", "-s", f"@{time.time():.3f}"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_RESUME_S,
        check=False,
    )
    if done.returncode:
        raise Unreachable(f"the clock cannot be set: {done.stderr.strip()[-200:]}")


def _plug_late(host: HostFile) -> None:
    """Plug in what was left out, and wait until the host has it.  Raises Unreachable when it does not take it.

    One after the other: the kernel numbers NVMe controllers as it meets them.
    """
    folder = folder_of(host.name)
    running = read_run(host.name)
    for count, (drive, device) in enumerate(qemus.late_devices(host.spec, folder), 1):
        with qemus.Qmp(folder) as qmp:
            qmp.call("blockdev-add", **drive)
            qmp.call("device_add", **device)
        if running is None or not _shows(_target(host, running.ssh_port), "/sys/block/nvme[0-9]n1", count):
            raise Unreachable(f"virtual host {host.name} does not take its NVMe devices")


def _shows(target: SshTarget, files: str, count: int) -> bool:
    """Whether so many of ``files`` (a shell's pattern) come to be within a minute, and udev is done with them."""
    there = f"[ $(ls -d {files} 2>/dev/null | wc -l) = {count} ]"
    script = f"for i in $(seq 300); do {there} && break; sleep 0.2; done; udevadm settle --timeout=60; {there}"
    try:
        done = subprocess.run(
            ssh_command(target, script), capture_output=True, stdin=subprocess.DEVNULL, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _come_up(
    name: str,
    alone: AbstractContextManager[None],
    on_progress: OnProgress | None,
    timeout_s: float,
    *,
    late: bool = False,
) -> str:
    """Wait for a host that boots, with a second try, and return its boot id.  ``alone``: held while it is relaunched.

    The first try has half of the time: ten times what it needs on an idle machine.  ``late``: the second is launched
    without its late devices, as the first was; whoever keeps the boot plugs them in.
    """
    deadline = time.monotonic() + timeout_s
    try:
        return wait_for_ssh(name, on_progress=on_progress, timeout_s=timeout_s / 2)
    except BootFailed as failure:
        with alone:
            _relaunch(name, failure, on_progress, late)
    return wait_for_ssh(name, on_progress=on_progress, timeout_s=deadline - time.monotonic())


def _relaunch(name: str, failure: BootFailed, on_progress: OnProgress | None, late: bool) -> None:
    """Switch a host on again whose boot came to no end: mostly the emulator's fault.

    Once, and never silently: the run's notes keep it.  Only for a host that had not finished booting, whose disks are
    therefore as its last orderly shutdown left them.  Raises ``failure`` again when the host was stopped on purpose.
    """
    folder = folder_of(name)
    before = _last_run(folder)
    if before is None:  # stop, rm and power_cut remove it
        raise failure
    if on_progress is not None:
        on_progress(0, 0, f"{name}: the boot came to no end; switching it on again")
    host = read_host(name)
    _kill(folder)
    _launch(
        host,
        qemus.find(on_progress),
        kvm.Verdict(before.kvm, before.why),
        images.Image(images.images_dir() / host.image),
        (*before.notes, f"switched on again once: {failure.message}"),
        before.ssh_port,
        late=late,
    )


def _launch(
    host: HostFile,
    qemu: qemus.Qemu,
    verdict: kvm.Verdict,
    picture: images.Image,
    notes: tuple[str, ...],
    port: int | None = None,
    *,
    incoming: str | None = None,
    late: bool = False,
) -> None:
    """Start QEMU; on ``port`` of this machine's loopback if that is still free, else on a port of its own choice."""
    folder = folder_of(host.name)
    problem = ""
    for _attempt in range(5):
        port = port or _free_port()
        launch = qemus.Launch(
            name=host.name,
            uuid=host.uuid,
            kvm=verdict.works,
            ssh_port=port,
            folder=folder,
            incoming=incoming,
            late=late or incoming is not None,
        )
        with contextlib.suppress(FileNotFoundError):
            (folder / qemus.SERIAL_LOG).replace(folder / f"{qemus.SERIAL_LOG}.old")
        (folder / qemus.ERROR_LOG).unlink(missing_ok=True)
        with (folder / "qemu.log").open("w+") as log:
            # -daemonize: this command returns when the machine is made, with QEMU's complaint if it could not be.
            done = subprocess.run(
                qemus.arguments(qemu, host.spec, launch),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **qemu.environment},
                check=False,
                start_new_session=True,
            )
            log.seek(0)
            said = log.read() + _errors(folder)
        problem = "\n".join(line for line in said.splitlines() if "warning: TCG doesn't support" not in line)
        pid = _pid_of(folder)
        if done.returncode == 0 and pid is not None:
            running = RunFile(
                pid=pid,
                ssh_port=port,
                qemu=qemu.text,
                kvm=verdict.works,
                why=verdict.reason,
                notes=notes,
            )
            (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {picture.host_key}\n")
            (folder / "run.json").write_text(running.model_dump_json(indent=2) + "\n")
            return
        if "host forwarding rule" not in problem:
            break
        port = None  # it was taken between the look and QEMU
    raise NotAsWanted(f"QEMU {qemu.text} did not start virtual host {host.name}: {problem[-800:] or 'no message'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_ssh(name: str, *, on_progress: OnProgress | None = None, timeout_s: float) -> str:
    """Wait until a command runs over ssh and return the host's boot id.

    Raises BootFailed when nothing more will come or the time is over, with the last lines of the serial console, and
    Unreachable when a second try would be in vain.
    """
    host = read_host(name)
    folder = folder_of(name)
    begin = time.monotonic()
    said_before = len(_STALL.findall(_console(folder)))
    problem = "sshd does not answer"
    marked_s, marked_cpu_s = begin, 0.0
    while (spent := time.monotonic() - begin) < timeout_s:
        running = read_run(name)
        if running is None:
            raise BootFailed(
                f"QEMU of virtual host {name} ended while it booted: {_why_ended(folder)}; "
                f"the console ends with: {_last_words(folder)}"
            )
        if trouble := why_paused(name):
            raise Unreachable(
                f"virtual host {name} stands still: {trouble}",
                hint="make room, or point XDG_STATE_HOME to a larger disk; then stop and start the host",
            )
        if on_progress is not None:
            on_progress(min(int(spent), 99), 0, f"{name}: booting ({_stage(folder)})")
        if _banner(running.ssh_port, timeout_s=min(20.0, timeout_s - spent)):
            try:
                left = timeout_s - (time.monotonic() - begin)
                return read_boot_id(_target(host, running.ssh_port), settled=True, timeout_s=max(0.1, left))
            except Unreachable as error:
                problem = error.message
        if (now := time.monotonic()) - marked_s > _STUCK_S:
            used = _cpu_seconds(running.pid) - marked_cpu_s
            if used < _STUCK_SHARE * (now - marked_s):
                raise BootFailed(
                    f"virtual host {name} does nothing any more and has no sshd, after {spent:.0f} s; the console ends "
                    f"with: {_last_words(folder)}",
                    hint="see `evenkeel virtual console`",
                )
            marked_s, marked_cpu_s = now, marked_cpu_s + used
        if len(_STALL.findall(_console(folder))) - said_before >= _STALLS:
            raise BootFailed(
                f"a CPU of virtual host {name} makes no progress, after {spent:.0f} s; the console ends with: "
                f"{_last_words(folder)}",
                hint="see `evenkeel virtual console`",
            )
        time.sleep(0.25)
    raise BootFailed(
        f"virtual host {name} did not answer within {timeout_s:.0f} s ({problem}); the console ends with: "
        f"{_last_words(folder)}",
        hint="is this machine very busy? see `evenkeel virtual console`, or use --topology small",
    )


#: Also waits until no boot job and no device event is left: facts read earlier would change under the reader.
_SETTLED = "systemctl is-system-running --wait >/dev/null; udevadm settle --timeout=60; "


def read_boot_id(target: SshTarget, *, settled: bool = False, timeout_s: float = 60.0) -> str:
    """The random id of the host's present boot; ``settled``: not before the boot is finished.  Raises Unreachable."""
    try:
        done = subprocess.run(
            ssh_command(target, (_SETTLED if settled else "") + f"cat {BOOT_ID}"),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"ssh to port {target.port} hangs") from None
    if done.returncode or not re.fullmatch(r"[0-9a-f-]{36}", done.stdout.strip()):
        raise Unreachable(f"ssh to port {target.port} failed: {done.stderr.strip()[-200:]}")
    return done.stdout.strip()


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far; 0.0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _banner(port: int, *, timeout_s: float) -> bool:
    """True when sshd in the host says its version.  QEMU accepts for a host that is not listening, then hangs up."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(timeout_s)
            return connection.recv(4).startswith(b"SSH")
    except OSError:
        return False


#: What the console shows of a boot; the kernel itself is quiet.
_STAGES = ((b"Loading initial ramdisk", "kernel and services"), (b"Booting", "boot loader"))


def _console(folder: Path) -> bytes:
    """All that the console said since QEMU was started."""
    try:
        return (folder / qemus.SERIAL_LOG).read_bytes()
    except OSError:
        return b""


def _stage(folder: Path) -> str:
    tail = _console(folder)[-16384:]
    return next((stage for words, stage in _STAGES if words in tail), "firmware")


def _last_words(folder: Path) -> str:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[^\x20-\x7e\n]", "", _console(folder)[-4096:].decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:] or "nothing"


#: The kernel of this machine on the end of a process: a crash of one of QEMU's threads, or too little memory.
_KERNEL_WORDS = re.compile(r"(?:qemu-system-x86|CPU \d+/(?:TCG|KVM))\[\d+\].*(?:segfault|traps|general protection).*")


def _errors(folder: Path) -> str:
    try:
        return (folder / qemus.ERROR_LOG).read_text(errors="replace")
    except OSError:
        return ""


def _why_ended(folder: Path) -> str:
    """What QEMU said last, and what this machine's kernel says of it; a guess is named as one."""
    words = [line.strip() for line in _errors(folder).splitlines() if line.strip()][-2:]
    try:
        started = time.localtime((folder / "run.json").stat().st_mtime)
    except OSError:
        started = None
    last = _last_run(folder)
    if last is None or started is None:
        return "; ".join(words) or "it was stopped"
    # Since this QEMU was started, so that nothing is said of an earlier one.  Without the right to read it: nothing.
    done = subprocess.run(
        [tool("dmesg"), "--since", time.strftime("%Y-%m-%d %H:%M:%S", started)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    for line in done.stdout.splitlines():
        if (found := _KERNEL_WORDS.search(line)) or (found := re.search(rf".*Killed process {last.pid} .*", line)):
            words.append(f"kernel log: {found[0].strip()[:200]}")
    return "; ".join(words) or "neither it nor the kernel said why; was it killed?"


# -- stop ------------------------------------------------------------------------------------------------------


def stop(name: str, *, on_progress: OnProgress | None = None, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Shut ``name`` down through its operating system, or, when that takes too long, by force.

    True when it went down by itself.  A host that does not run is left alone.
    """
    host = read_host(name)
    with _lock(name, on_progress):
        folder = folder_of(name)
        running = read_run(name)
        graceful = True
        if running is not None:
            # Not by the power button: nobody in the host listens to it, for logind is masked there.
            if on_progress is not None:
                on_progress(0, 0, f"{name}: shutting down")
            told = _tell(_target(host, running.ssh_port), "systemctl", "poweroff", "--no-block", within_s=60)
            if not told:  # it boots, or hangs: whoever does not hear it will not do it
                timeout_s = min(_DEAF_S, timeout_s)
            begin = time.monotonic()
            while is_ours(running.pid, folder) and (spent := time.monotonic() - begin) < timeout_s:
                if on_progress is not None:
                    on_progress(int(spent), 0, f"{name}: shutting down")
                time.sleep(0.1)
            graceful = not is_ours(running.pid, folder)
        _kill(folder)
        return graceful


def power_cut(name: str) -> None:
    """End QEMU as a power cut would: nothing in the host gets a say.  The disks keep what was written to them."""
    read_host(name)
    _kill(folder_of(name))  # as in remove
    with _lock(name):
        _kill(folder_of(name))


def _kill(folder: Path) -> None:
    """End the QEMU of this folder, if there is one, and remove what only a running host has."""
    last = _last_run(folder)
    named = (_pid_of(folder), last.pid if last is not None else None)
    pids = {pid for pid in named if pid is not None and is_ours(pid, folder)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(is_ours(pid, folder) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    for name in _RUN_FILES:
        (folder / name).unlink(missing_ok=True)


#: From the request to the reset: services get 90 s each to end.
_SHUTDOWN_S = 180.0


def reboot(name: str, *, on_progress: OnProgress | None = None, timeout_s: float = START_TIMEOUT_S) -> str:
    """Reboot through the host's own GRUB and return the new boot id once the boot is finished.

    Raises Unreachable when it does not reset, or does not come back in time; it is left as it is, so that its console
    can be read.  A boot that comes to no end is tried once more, see :func:`_relaunch`.
    """
    target = ssh_target(name)
    before = read_boot_id(target)
    # QEMU tells of the reset: polling over ssh would now and then hang for a minute on a connection without its host.
    with qemus.Qmp(folder_of(name)) as qmp:
        _tell(target, "systemctl", "reboot", "--no-block", within_s=60)
        if on_progress is not None:
            on_progress(0, 0, f"{name}: shutting down")
        if not qmp.wait_for_event("RESET", timeout_s=min(_SHUTDOWN_S, timeout_s)):
            raise Unreachable(f"virtual host {name} was asked to reboot and did not", hint="look at its console")
    after = _come_up(name, _lock(name, on_progress), on_progress, timeout_s)
    if after == before:
        raise Unreachable(f"virtual host {name} was reset and still has its old boot id")
    return after
