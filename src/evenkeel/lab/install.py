"""Install a machine before it is offered, and prove that it was: what boots it once, and a mark that must be gone.

What it is booted from is a source: an image in the virtual drive of its BMC (:mod:`evenkeel.lab.media`), or a script by
network (:mod:`evenkeel.lab.netboot`).  A step of its own for each, with its own deadline; what was set is taken back,
whatever happens.  A boot alone proves nothing, because a machine that was told in vain boots its old system: so a file
is left on the disk before, and must be gone after.  It is then looked at by the preparer that comes behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from evenkeel.errors import NotAsWanted
from evenkeel.lab import power, touch
from evenkeel.lab.actor import SERVICE, Conflict
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Action, Method, PowerFailed
from evenkeel.lab.power_drivers.ssh import Boot, Ssh
from evenkeel.lab.prepare import Job, Prepared, Preparer, Say, WrongRequest, reason_of
from evenkeel.lab.touch import Touched
from evenkeel.lab.words import duration

#: What is left when it cannot be undone, and how it is.
Undo = tuple[str, Callable[[], None]]

#: Reading and setting takes BMCs longer than a command: several requests, each with a log-in.  Writing a mark waits for
#: a disk that may be busy.
SET_S = 30.0
#: Somebody else switches the machine: its holder may, who waits for it.
_OTHERS_S = 120.0
_LOOK_S = 1.0


class Source(Protocol):
    """What one machine is installed from.  ``method``: the only way to switch it meanwhile; None: any."""

    method: Method | None

    def offer(self, say: Say, undo: list[Undo]) -> None:
        """Have the next boot be from it.  How to undo each thing is noted before it is done: a BMC may obey after its
        deadline.  Raises NotAsWanted with the step that failed."""

    def switching(self) -> None:
        """It is being switched this moment: whoever asks for what was offered, from now on, is likely to be it."""

    def refuted(self) -> str:
        """When it is in another boot: ``""``, or why that can be none from this source."""

    def forgot(self) -> str:
        """Why it is likely to have booted its old system."""


class Installing:
    """A machine whose owner says what from is installed; then, and all others, go on with ``then``.

    One that its next holder has booted from something of their own is seen in another boot, and that is all: what
    their system is, and has, is theirs.  If that fails it says nothing of the machine, which whoever is next gets
    installed from its owner's source."""

    def __init__(self, lab: Lab, then: Preparer) -> None:
        self.lab = lab
        self.then = then

    def prepare(self, job: Job, say: Say) -> Prepared:
        if (job.image or job.netboot) is None or job.method != "full":
            return self.then.prepare(job, say)
        with self.lab.store.read() as connection:
            machine = touch.find(connection, job.machine_id)
        if not job.own:
            self._installation(machine, job, say).run()
            return replace(self.then.prepare(replace(job, method="check"), say), anew=True)
        try:
            boot = self._installation(machine, job, say).run(mark_after=False)
        except NotAsWanted as error:
            raise WrongRequest(
                f"{job.name} was not booted from {job.image or job.netboot}: {error.message}",
                hint="reserve it without, and it is as its owner has it",
            ) from None
        return Prepared(boot.id, True, None, None)

    def _installation(self, machine: Touched, job: Job, say: Say) -> _Installation:
        return _Installation(self.lab, machine, _source(self.lab, machine, job), job.install_s, say)


def _source(lab: Lab, machine: Touched, job: Job) -> Source:
    """Raises NotAsWanted: the machine has not what that takes."""
    if job.image is not None:
        from evenkeel.lab.media import Drive

        return Drive(lab, machine, job.image)
    from evenkeel.lab.netboot import Network

    assert job.netboot is not None
    return Network(lab, machine, job.netboot)


class _Installation:
    """Of one machine.  Raises NotAsWanted with the step that failed."""

    def __init__(self, lab: Lab, machine: Touched, source: Source, install_s: float, say: Say) -> None:
        ssh = power.driver(lab, machine, "ssh")
        if not isinstance(ssh, Ssh):
            raise NotAsWanted(f"{machine.name} is to be installed, and has no ssh to see it by")
        self.lab, self.machine, self.source, self.install_s, self.say = lab, machine, source, install_s, say
        self.ssh = ssh
        self.ssh_s = power.policy_of(machine).ssh_s

    def run(self, *, mark_after: bool = True) -> Boot:
        """The boot in which it was seen.  ``mark_after``: so that it is known again where nothing answers next time."""
        before = self._mark()
        undo: list[Undo] = []
        try:
            begun = self._offer_and_switch(before, undo)
            boot = self._see_it_new(before, begun + self.install_s)
        except NotAsWanted as error:
            raise NotAsWanted("; ".join([error.message, *_undone(undo)]), hint=error.hint) from None
        except BaseException:  # the lab ends, or its database is away: it begins anew, with nothing set
            _undone(undo)
            raise
        if left := _undone(undo):
            raise NotAsWanted(f"it is installed, but {'; '.join(left)}")
        if mark_after:
            with step("leaving a mark for the next installation"):
                self.ssh.mark(SET_S)
        return boot

    def _mark(self) -> Boot | None:
        """On its old system; which boot that is in."""
        try:
            before = self.ssh.boot(self.ssh_s)
        except PowerFailed:
            self.say("it does not answer now, so its old system is known by the mark of the last installation only")
            return None
        with step("leaving a mark on its old system"):
            self.ssh.mark(SET_S)
        return before

    def _offer_and_switch(self, before: Boot | None, undo: list[Undo]) -> float:
        """When it was switched.  Not while somebody else switches it, as its holder may: that boot would be theirs."""
        end = time.monotonic() + _OTHERS_S
        while True:
            while self._is_being_switched():
                if time.monotonic() > end:
                    raise NotAsWanted(f"{self.machine.name} is being switched by somebody else")
                time.sleep(_LOOK_S)
            action = self._action(before)
            self.source.offer(self.say, undo)
            begun = time.monotonic()
            try:
                self._switch(action)
                return begun
            except Conflict as error:  # begun meanwhile
                if (left := _undone(undo)) or time.monotonic() > end:
                    raise NotAsWanted("; ".join([error.message, *left])) from None

    def _is_being_switched(self) -> bool:
        newest = power.history(self.lab, SERVICE, self.machine.id, limit=1).items
        return any(one.result == "running" for one in newest)

    def _action(self, before: Boot | None) -> Action:
        """Where the BMC is told what to boot, its power is cycled, by that alone: another way would not boot it, and
        the PDU cuts an installation in two."""
        if power.status(self.lab, SERVICE, self.machine.id).power == "off":
            return "on"
        if self.source.method is None and before is not None:
            return "reset"
        if self.source.method is None and power.driver(self.lab, self.machine, "pdu") is None:
            raise NotAsWanted("it does not answer, and there is neither a BMC nor an outlet to start it by")
        return "cycle"

    def _switch(self, action: Action) -> None:
        """Raises Conflict: somebody else switches it."""
        self.say(
            f"installing it: power {action}, then at most {duration(round(self.install_s * 1e9))} until it answers"
        )
        done = power.switch(
            self.lab,
            SERVICE,
            self.machine.id,
            action,
            method=self.source.method,
            boot_s=self.install_s,
            acting=self.source.switching,
        )
        if done.result != "done":
            why = done.tried[-1].detail if done.tried else done.verified_by or "no way to do that"
            raise NotAsWanted(f"power {action} for its installation: {why}")

    def _see_it_new(self, before: Boot | None, end: float) -> Boot:
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
        if wrong := self.source.refuted():
            raise NotAsWanted(wrong)
        with step("looking for the mark of its old system"):
            marked = self.ssh.marked(SET_S)
        if marked:
            raise NotAsWanted(f"it booted its old system: {self.source.forgot()}")
        return boot


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """What a driver cannot do, said with what it was for."""
    try:
        yield
    except PowerFailed as error:
        raise NotAsWanted(f"{what}: {error.message}", hint=error.hint) from None


def _undone(undo: list[Undo]) -> list[str]:
    """Undo all of it, the last first, and forget it; what could not be, one sentence each."""
    left = []
    while undo:
        what, action = undo.pop()
        try:
            action()
        except Exception as error:  # noqa: BLE001  the others are undone all the same
            left.append(f"{what}: {reason_of(error)}")
    return left
