"""Install a machine by its BMC: an image in the virtual drive, booted once, and proof that it was that.

A step of its own for each, with its own deadline; what was put in or set is taken back, whatever happens.  A boot alone
proves nothing, because a BMC that forgot to boot from the drive boots the old system: so a file is left on the disk
before, and must be gone after.  The machine itself is looked at by the preparer that comes behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from evenkeel.errors import EvenkeelError, NotAsWanted
from evenkeel.lab import power, touch
from evenkeel.lab.actor import SERVICE, Conflict
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import PowerFailed
from evenkeel.lab.power_drivers.redfish import Redfish
from evenkeel.lab.power_drivers.ssh import Boot, Ssh
from evenkeel.lab.prepare import Job, Prepared, Preparer, Say
from evenkeel.lab.touch import Touched
from evenkeel.lab.words import duration

#: What is left when it cannot be undone, and how it is.
_Undo = tuple[str, Callable[[], None]]

#: Some BMCs fetch the whole image before they answer.
INSERT_S = 300.0
#: Reading and setting takes BMCs longer than a command: several requests, each with a log-in.  Writing a mark waits for
#: a disk that may be busy.
_SET_S = 30.0
#: Somebody else switches the machine: its holder may, who waits for it.
_OTHERS_S = 120.0
_LOOK_S = 1.0


class ByMedia:
    """A machine whose owner names an image is installed from it; then, and all others, go on with ``then``."""

    def __init__(self, lab: Lab, then: Preparer) -> None:
        self.lab = lab
        self.then = then

    def prepare(self, job: Job, say: Say) -> Prepared:
        if job.image is None or job.method != "full" or job.boot_source is not None:
            return self.then.prepare(job, say)
        with self.lab.store.read() as connection:
            machine = touch.find(connection, job.machine_id)
        _Installation(self.lab, machine, job.image, job.install_s, say).run()
        return replace(self.then.prepare(replace(job, method="check"), say), anew=True)


class _Installation:
    """Of one machine.  Raises NotAsWanted with the step that failed."""

    def __init__(self, lab: Lab, machine: Touched, image: str, install_s: float, say: Say) -> None:
        bmc = power.driver(lab, machine, "bmc")
        if not isinstance(bmc, Redfish):
            raise NotAsWanted(
                f"{machine.name} is to be installed from an image, and has no BMC that speaks Redfish",
                hint="give it that endpoint, or take the image out of its policy",
            )
        ssh = power.driver(lab, machine, "ssh")
        if not isinstance(ssh, Ssh):
            raise NotAsWanted(f"{machine.name} is to be installed from an image, and has no ssh to see it by")
        self.lab, self.machine, self.image, self.install_s, self.say = lab, machine, image, install_s, say
        self.bmc, self.ssh = bmc, ssh
        self.ssh_s = power.policy_of(machine).ssh_s

    def run(self) -> None:
        before = self._mark()
        undo: list[_Undo] = []
        try:
            self._insert(undo)
            begun = time.monotonic()
            self._switch()
            self._see_it_new(before, begun + self.install_s)
        except NotAsWanted as error:
            raise NotAsWanted("; ".join([error.message, *_undone(undo)]), hint=error.hint) from None
        except BaseException:  # the lab ends, or its database is away: it begins anew, from an empty drive
            _undone(undo)
            raise
        if left := _undone(undo):
            raise NotAsWanted(f"it is installed, but {'; '.join(left)}")
        with _step("leaving a mark for the next installation"):
            self.ssh.mark(_SET_S)

    def _mark(self) -> Boot | None:
        """On its old system; which boot that is in."""
        try:
            before = self.ssh.boot(self.ssh_s)
        except PowerFailed:
            self.say("it does not answer now, so its old system is known by the mark of the last installation only")
            return None
        with _step("leaving a mark on its old system"):
            self.ssh.mark(_SET_S)
        return before

    def _insert(self, undo: list[_Undo]) -> None:
        """What is undone is noted before it is done: a BMC may obey after its deadline."""
        self.say(f"putting {self.image} into its virtual drive")
        undo.append(("the image may still be in its drive", lambda: self.bmc.eject(_SET_S)))
        with _step("inserting the image"):
            self.bmc.insert(self.image, INSERT_S)
        with _step("having it boot from its virtual drive"):
            usual = self.bmc.boots_from(_SET_S)
            undo.append(("it may still be set to boot from its drive", lambda: self.bmc.boot_as(usual, _SET_S)))
            self.bmc.boot_from_media(_SET_S)

    def _switch(self) -> None:
        """By the BMC alone: another way would not boot what it was told, and the PDU cuts an installation in two."""
        now = power.status(self.lab, SERVICE, self.machine.id).power
        action: Literal["on", "cycle"] = "on" if now == "off" else "cycle"
        self.say(
            f"installing it: power {action}, then at most {duration(round(self.install_s * 1e9))} until it answers"
        )
        end = time.monotonic() + _OTHERS_S
        while True:
            try:
                done = power.switch(self.lab, SERVICE, self.machine.id, action, method="bmc", boot_s=self.install_s)
                break
            except Conflict as error:
                if time.monotonic() > end:
                    raise NotAsWanted(error.message) from None
                time.sleep(_LOOK_S)
        if done.result != "done":
            why = done.tried[-1].detail if done.tried else done.verified_by
            raise NotAsWanted(f"power {action} for its installation: {why}")

    def _see_it_new(self, before: Boot | None, end: float) -> None:
        why = ""
        while True:
            try:
                boot = self.ssh.boot(self.ssh_s)
                if before is None or boot.id != before.id:
                    break
                why = f"still in boot {boot.id[:8]}"
            except PowerFailed as error:
                why = error.message
            if time.monotonic() > end:
                raise NotAsWanted(f"not installed within {duration(round(self.install_s * 1e9))}: {why}")
            time.sleep(_LOOK_S)
        with _step("looking for the mark of its old system"):
            marked = self.ssh.marked(_SET_S)
        if marked:
            raise NotAsWanted("it booted its old system: its BMC took the image, and did not boot it")


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except PowerFailed as error:
        raise NotAsWanted(f"{what}: {error.message}", hint=error.hint) from None


def _undone(undo: list[_Undo]) -> list[str]:
    """Undo all of it, the last first; what could not be, one sentence each."""
    left = []
    for what, action in reversed(undo):
        try:
            action()
        except EvenkeelError as error:
            left.append(f"{what}: {error.message}")
    return left
