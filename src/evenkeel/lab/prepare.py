"""Prepare a machine before it is offered: install it anew where the lab can, see it boot, compare its facts.

A :class:`Preparer` takes minutes and knows nothing of claims; :mod:`evenkeel.lab.keeper` runs it and writes down what
came of it.  What a machine lost since its last facts (memory, a disk, a card) fails it; what it gained is only noted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import ValidationError

from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.documents.quantity import format_size
from evenkeel.errors import EvenkeelError, NotAsWanted, Unreachable
from evenkeel.lab import flat, words
from evenkeel.lab.flat import Flat
from evenkeel.machines.protocol import OnProgress, Probe

#: Said while it goes on; for the holder who waits.
Say = Callable[[str], None]
#: What hardware is.  Kernels reserve some memory, and not always the same.
_NOT_LESS = ("cpu.threads", "cpu.sockets", "numa.nodes", "nic.count", "disk.count", "sriov.vfs")
_NOT_GONE = ("pci.id", "mac", "disk.size", "serial", "arch")
_MEMORY_PART = 0.98


@dataclass(frozen=True)
class Job:
    """A machine to prepare.  ``address``: as :func:`evenkeel.machines.address.resolve` takes it.

    ``image``, ``netboot``: what it is installed from (:mod:`evenkeel.lab.install`), as its owner says, or where it
    brings one as its next holder does, who is ``system_of``; ``install_s``: how long that may take.
    """

    machine_id: str
    name: str
    address: str
    method: Literal["full", "check"]
    image: str | None = None
    netboot: str | None = None
    install_s: float = 3600.0
    system_of: str = ""

    @property
    def installs(self) -> bool:
        """Whether it puts its owner's system on it; ``full`` of others only reboots them."""
        source = self.image or self.netboot or self.address.startswith("virtual:")
        return self.method == "full" and bool(source) and not self.system_of


@dataclass(frozen=True)
class Prepared:
    """``boot_id``: of the boot that was seen; ``anew``: whether it is another one than before.

    ``facts``: None where the system is its holder's own, which says nothing of the machine."""

    boot_id: str
    anew: bool
    facts: Facts | None
    inventory: Inventory | None


class WrongRequest(EvenkeelError):
    """What was asked for can be had of no machine that this preparer prepares.

    ``tried``: a machine was switched to find out."""

    def __init__(self, message: str, *, hint: str | None = None, tried: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.tried = tried


class Preparer(Protocol):
    """Raises EvenkeelError with the reason why the machine cannot be offered, Forbidden where only not for this, and
    WrongRequest where none could be.

    Whatever else it raises is taken for an error of the lab itself (:func:`blame`).
    """

    def prepare(self, job: Job, say: Say) -> Prepared: ...


def look(probe: Probe, on_progress: OnProgress | None = None) -> tuple[Facts, Inventory]:
    """What a machine is.  Raises Unreachable, also when it answers with something that makes no sense."""
    from evenkeel.apply.hosts import read_facts

    facts = read_facts(probe, on_progress)
    try:
        return facts, Inventory.model_validate(probe.call("inventory"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Unreachable(
            f"the probe answers with an inventory that makes no sense ({where}: {first['msg']})"
        ) from None


class ByAddress:
    """Virtual hosts get new disks and boot; machines over ssh are rebooted; with ``check`` they are only looked at.

    What installs machines is :mod:`evenkeel.lab.install`; other ways are preparers of their own, given to the keeper.
    """

    def prepare(self, job: Job, say: Say) -> Prepared:
        from evenkeel.machines.address import resolve

        if job.system_of:
            raise WrongRequest(f"{job.name} cannot be booted from a source of one's own", hint="reserve it without")
        anew = False
        with closing(resolve(job.address)) as machine:
            if job.method == "full":
                say("installing it anew" if job.address.startswith("virtual:") else "rebooting it")
                if job.address.startswith("virtual:"):
                    self._renew(job.address.removeprefix("virtual:"))
                else:
                    machine.reboot()  # returns when the boot id is another one
                anew = True
            elif job.address.startswith("virtual:"):
                self._start(job.address.removeprefix("virtual:"))
            say("reading its facts")
            with machine.probe() as probe:
                boot_id = str(probe.call("hello")["boot_id"])
                return Prepared(boot_id, anew, *look(probe))

    def _renew(self, name: str) -> None:
        from evenkeel.machines.virtual import lifecycle

        lifecycle.renew(name)
        lifecycle.start(name)

    def _start(self, name: str) -> None:
        from evenkeel.machines.virtual import lifecycle

        lifecycle.start(name)


def lost(before: Flat, after: Flat) -> list[str]:
    """What a machine had and does not have any more, one sentence each."""
    told = []
    for key in _NOT_LESS:
        old, new = _most(before, key), _most(after, key)
        if old is not None and (new or 0) < old:
            told.append(f"{key} was {old:g} and is {new or 0:g}")
    old, new = _most(before, "mem.usable"), _most(after, "mem.usable")
    if old is not None and (new or 0) < old * _MEMORY_PART:
        told.append(f"mem was {_size(old)} and is {_size(new or 0)}")
    for key in _NOT_GONE:
        gone = [value for value in before.get(key, ()) if value not in after.get(key, ())]
        if gone:
            told.append(f"{key} {', '.join(str(value) for value in gone[:5])} {'is' if len(gone) == 1 else 'are'} gone")
    return told


def _most(facts: Flat, key: str) -> float | None:
    return max((float(value) for value in facts.get(key, ()) if not isinstance(value, str)), default=None)


def _size(value: float) -> str:
    mebibytes = round(value / (1 << 20))
    return format_size(mebibytes << 20)


def judge(before: Flat, facts: Facts, inventory: Inventory | None) -> None:
    """Raises NotAsWanted when the machine is not what it was."""
    told = lost(before, flat.flatten(facts, inventory))
    if told:
        raise NotAsWanted("; ".join(told))


def blame(error: Exception) -> Literal["lab", "machine"]:
    """Whose fault it is that a preparation failed, where it is not the request's (:class:`WrongRequest`).

    What we can name is the machine's (a wrong address too: it was registered with that).  What we cannot name (a
    defect), and the lab's own disk, say nothing of it, and would fail with the next one too.
    """
    from evenkeel.machines.virtual.run import DiskFull

    return "machine" if isinstance(error, EvenkeelError) and not isinstance(error, DiskFull) else "lab"


def reason_of(error: Exception) -> str:
    """Why a preparation failed, for the machine's state and for the holder."""
    if isinstance(error, EvenkeelError):
        return error.message
    return words.cause(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
