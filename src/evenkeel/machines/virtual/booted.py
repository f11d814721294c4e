"""Booted hosts, kept as QEMU's migration stream and the overlay of that moment, so that the next one of the same name
and topology answers seconds after its start.

A kept boot lies in the folder of its image and goes with it.  It is one boot: the hosts that go on from it have its
boot id, DMI tables and names until they are rebooted, which is why it belongs to one name.  Must not start QEMU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from evenkeel.documents.base import Model
from evenkeel.errors import NotAsWanted
from evenkeel.machines.virtual.image import Image
from evenkeel.machines.virtual.qemu import EMULATED_CPU, OVERLAY, Qemu, Qmp
from evenkeel.machines.virtual.run import disk_full
from evenkeel.machines.virtual.spec import HostSpec

STATE, META = "state", "booted.json"
#: More than a host with its memory full of page cache takes.
_SAVE_S = 120.0


class Booted(Model):
    """``booted.json``: which host it was, by which QEMU, and with which CPU."""

    name: str
    uuid: str
    qemu: str
    cpu: str
    spec: HostSpec


def folder_of(image: Image, name: str) -> Path:
    return image.folder / "booted" / name


def works_with(qemu: Qemu, kvm: bool) -> bool:
    """With KVM a boot takes seconds and its clock cannot be moved; before 8.2 QEMU does not migrate to a file."""
    return not kvm and qemu.version >= (8, 2, 0)


def find(image: Image, name: str, spec: HostSpec, qemu: Qemu) -> Booted | None:
    """The kept boot of just this host, or None."""
    folder = folder_of(image, name)
    try:
        kept = Booted.model_validate_json((folder / META).read_text())
    except (OSError, ValueError):
        return None
    same = (kept.name, kept.spec, kept.qemu, kept.cpu) == (name, spec, qemu.text, EMULATED_CPU)
    return kept if same else None


def forget(image: Image, name: str) -> None:
    shutil.rmtree(folder_of(image, name), ignore_errors=True)


def keep(image: Image, name: str, uuid: str, spec: HostSpec, qemu: Qemu, host: Path) -> None:
    """Save the running host of folder ``host``; it stands still for a second or two, and goes on.

    Raises NotAsWanted when QEMU cannot (a device without a state to save) or the disk is full; nothing is kept then.
    """
    folder = folder_of(image, name)
    work = folder.with_name(f".{name}-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, mode=0o700)
    try:
        free, needed = shutil.disk_usage(work).free, spec.memory + (host / OVERLAY).stat().st_size
        if free < needed:
            raise disk_full(f"keep the boot of {name}", needed, work, free)
        with Qmp(host, timeout_s=30.0) as qmp:
            qmp.call("stop")
            try:
                _migrate(qmp, work / STATE)
                shutil.copyfile(host / OVERLAY, work / OVERLAY)
            finally:
                qmp.call("cont")
        (work / META).write_text(
            Booted(name=name, uuid=uuid, qemu=qemu.text, cpu=EMULATED_CPU, spec=spec).model_dump_json() + "\n"
        )
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _migrate(qmp: Qmp, to: Path) -> None:
    # Unlimited, of what is by default a gentle rate for networks.
    qmp.call("migrate-set-parameters", **{"max-bandwidth": 0})
    qmp.call("migrate", uri=f"file:{to}")
    deadline = time.monotonic() + _SAVE_S
    while (state := qmp.call("query-migrate"))["status"] not in ("completed", "failed", "cancelled"):
        if time.monotonic() > deadline:
            with contextlib.suppress(NotAsWanted):
                qmp.call("migrate_cancel")
            raise NotAsWanted(f"saving a host took longer than {_SAVE_S:.0f} s")
        time.sleep(0.05)
    if state["status"] != "completed":
        raise NotAsWanted(f"QEMU could not save the host: {state.get('error-desc', state['status'])}")
