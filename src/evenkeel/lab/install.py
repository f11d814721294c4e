"""Install a machine before it is offered, and prove that it was: what boots it once, and a mark that must be gone.

What it is booted from is a source: an image in the virtual drive of its BMC (:mod:`evenkeel.lab.media`), or a script by
network (:mod:`evenkeel.lab.netboot`).  A step of its own for each, with its own deadline; what was set is taken back,
whatever happens.  A boot alone proves nothing, because a machine that was told in vain boots its old system: so a file
is left on the disk before, and must be gone after.  It is then looked at by the preparer that comes behind.

What a holder has a machine booted from may run from memory, or write to the disk after it was looked at, so no mark can
be told from it: the lab remembers whose it was, and boots the disk alone before the next installation, to mark that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from evenkeel.errors import NotAsWanted
from evenkeel.lab import machines, power, touch
from evenkeel.lab.actor import SERVICE, Conflict, Forbidden
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Action, Method, PowerFailed
from evenkeel.lab.power_drivers.ssh import Boot, Ssh
from evenkeel.lab.prepare import Job, Prepared, Preparer, Say, WrongRequest, reason_of
from evenkeel.lab.touch import Touched
from evenkeel.lab.words import duration


@dataclass(frozen=True)
class Undo:
    """``left``: what is when it cannot be undone; ``with_system``: what was booted may need it while it runs."""

    left: str
    action: Callable[[], None]
    with_system: bool = False


#: Reading and setting takes BMCs longer than a command: several requests, each with a log-in.  Writing a mark waits for
#: a disk that may be busy.
SET_S = 30.0
#: Somebody else switches the machine: its holder may, who waits for it.
_OTHERS_S = 120.0
_LOOK_S = 1.0


class Source(Protocol):
    """What one machine is installed from.  ``method``: the only way to switch it meanwhile; None: any.

    ``asked``: whether the machine asks the lab for it (:meth:`refuted`), so that nothing else is needed to know whether
    it was booted."""

    method: Method | None
    asked: bool

    def clear(self) -> None:
        """Have the next boot be a usual one, whatever was left set.  Raises PowerFailed."""

    def offer(self, say: Say, undo: list[Undo]) -> None:
        """Have the next boot be from it.  How to undo each thing is noted before it is done: a BMC may obey after its
        deadline.  Raises NotAsWanted with the step that failed, NotBooted where what is offered is to blame."""

    def switching(self) -> None:
        """It is being switched this moment: whoever asks for what was offered, from now on, is likely to be it."""

    def refuted(self) -> str:
        """When it is in another boot: ``""``, or why that can be none from this source."""

    def forgot(self) -> str:
        """Why it is likely to have booted its old system."""


class NotBooted(NotAsWanted):
    """What a machine was to be booted from cannot be had, or does not come up: another machine would not boot it."""


class Unable(NotAsWanted):
    """A machine has not what such a source takes; another one may have it."""


class _NotSwitched(NotAsWanted):
    """Its power was not switched, or nobody can say."""


class Installing:
    """A machine whose owner says what from is installed; then, and all others, go on with ``then``.

    One that its next holder has booted from something of their own is seen in another boot, and that is all: what
    their system is, and has, is theirs.  If it does not come up that says nothing of the machine, which whoever is next
    gets installed from its owner's source."""

    def __init__(self, lab: Lab, then: Preparer) -> None:
        self.lab = lab
        self.then = then

    def prepare(self, job: Job, say: Say) -> Prepared:
        if (job.image or job.netboot) is None or job.method != "full":
            return self.then.prepare(job, say)
        with self.lab.store.read() as connection:
            machine = touch.find(connection, job.machine_id)
        source = _source(self.lab, machine, job)
        if machine.medium:
            with step("emptying its virtual drive"):
                source.clear()
            self._is_of(machine, machine.system_of, "")
        theirs = bool(job.system_of)
        installation = _Installation(self.lab, machine, source, job.install_s, say, theirs=theirs)
        if theirs:
            return self._lend(machine, job, installation)
        installation.run()
        return replace(self.then.prepare(replace(job, method="check"), say), anew=True)

    def _lend(self, machine: Touched, job: Job, installation: _Installation) -> Prepared:
        """Boot what its next holder brings.  From before it is offered the machine counts as theirs."""
        self._is_of(machine, job.system_of, job.image or "")
        try:
            boot = installation.run()
        except NotAsWanted as error:
            if not installation.left:
                self._is_of(machine, job.system_of if installation.switched else machine.system_of, "")
            if isinstance(error, Unable):
                raise Forbidden(f"{job.name} cannot be booted from that: {error.message}") from None
            if installation.left or not isinstance(error, NotBooted):
                raise
            raise WrongRequest(
                f"{job.name} was not booted from {job.image or job.netboot}: {error.message}",
                hint="reserve it without, and it is as its owner has it",
                tried=installation.switched,
            ) from None
        return Prepared(boot.id, True, None, None)

    def _is_of(self, machine: Touched, whose: str, medium: str) -> None:
        self.lab.store.write(lambda c: machines.set_system(self.lab, c, "lab", machine.id, whose, medium))


def _source(lab: Lab, machine: Touched, job: Job) -> Source:
    """Raises NotAsWanted: the machine has not what that takes; Forbidden: which only a holder asks of it."""
    try:
        return _source_of(lab, machine, job)
    except NotAsWanted as error:
        if not job.system_of:
            raise
        raise Forbidden(error.message, hint="reserve it without") from None


def _source_of(lab: Lab, machine: Touched, job: Job) -> Source:
    if job.image is not None:
        from evenkeel.lab.media import Drive

        return Drive(lab, machine, job.image)
    from evenkeel.lab.netboot import Network

    assert job.netboot is not None
    return Network(lab, machine, job.netboot)


class _Disk:
    """A :class:`Source`: nothing but what is on the disk."""

    asked = False

    def __init__(self, source: Source) -> None:
        self.method = source.method
        self.clear = source.clear

    def offer(self, say: Say, undo: list[Undo]) -> None:
        with step("taking back what an earlier boot was from"):
            self.clear()

    def switching(self) -> None:
        """Nobody asks for it."""

    def refuted(self) -> str:
        return ""

    def forgot(self) -> str:
        return ""


class _Installation:
    """Of one machine; of what is its next holder's with ``theirs``.  Raises NotAsWanted with the step that failed.

    ``switched``: whether it was, from the source; ``left``: what was set and could not be taken back."""

    def __init__(
        self, lab: Lab, machine: Touched, source: Source, install_s: float, say: Say, *, theirs: bool = False
    ) -> None:
        ssh = power.driver(lab, machine, "ssh")
        if not isinstance(ssh, Ssh):
            raise NotAsWanted(f"{machine.name} is to be installed, and has no ssh to see it by")
        self.lab, self.machine, self.source, self.install_s, self.say = lab, machine, source, install_s, say
        self.ssh = ssh
        self.policy = power.policy_of(machine)
        self.theirs = theirs
        self.switched = False
        self.left: list[str] = []

    def run(self) -> Boot:
        """The boot in which it was seen."""
        undo: list[Undo] = []
        try:
            before = self._before()
            what = "booting it" if self.theirs else "installing it"
            begun = self._offer_and_switch(self.source, before, undo, what, self.install_s)
            boot = self._see_it_new(before, begun + self.install_s)
        except NotAsWanted as error:
            self.left += _undone(undo)
            if not self.left:
                raise
            raise NotAsWanted("; ".join([error.message, *self.left]), hint=error.hint) from None
        except BaseException:  # the lab ends, or its database is away: it begins anew, with nothing set
            _undone(undo)
            raise
        kept = [one for one in undo if one.with_system] if self.theirs else []
        self.left += _undone([one for one in undo if one not in kept])
        if self.left:
            self.left += _undone(kept)
            raise NotAsWanted(f"it is {'booted' if self.theirs else 'installed'}, but {'; '.join(self.left)}")
        if not self.theirs:
            with step("leaving a mark for the next installation"):
                self.ssh.mark(SET_S)
        return boot

    def _before(self) -> Boot | None:
        """Which boot it is in, with a mark on its disk where one will tell."""
        if self.theirs and self.source.asked:
            before = self._answers()
            if before is not None and not self.machine.system_of:
                with contextlib.suppress(PowerFailed):  # only to tell them where they are
                    self.ssh.mark(SET_S)
            return before
        if self.machine.system_of:
            return self._boot_its_disk()
        before = self._answers()
        if before is None:
            self.say("it does not answer now, so its old system is known by the mark of the last installation only")
        else:
            self._mark()
        return before

    def _answers(self) -> Boot | None:
        try:
            return self.ssh.boot(self.policy.ssh_s)
        except PowerFailed:
            return None

    def _mark(self) -> None:
        with step("leaving a mark on its old system"):
            self.ssh.mark(SET_S)

    def _boot_its_disk(self) -> Boot | None:
        """What answers now may be in memory alone, where a mark goes with the next boot."""
        self.say(f"its system is one that {self.machine.system_of} booted, so its disk is booted first, to mark that")
        before = self._answers()
        within_s = min(self.install_s, power.boot_deadline_s(self.lab, self.machine, self.policy))
        try:
            begun = self._offer_and_switch(_Disk(self.source), before, [], "booting its disk", within_s)
            found = self._another_boot(before, begun + within_s)
        except (NotBooted, _NotSwitched) as error:
            # Where nothing answered before either, a BMC that does nothing looks like an empty disk; what it does for
            # the installation is seen then.
            if before is not None and isinstance(error, _NotSwitched):
                raise
            self.say("its disk boots nothing that answers, so what does after its installation is new")
            return None
        try:
            self.ssh.mark(SET_S)
        except PowerFailed as error:
            raise NotAsWanted(
                f"what {self.machine.system_of} left on its disk takes no mark: {error.message}",
                hint=f"install it, and say so: evenkeel lab machine mark {self.machine.name} ready --installed",
            ) from None
        return found

    def _offer_and_switch(
        self, source: Source, before: Boot | None, undo: list[Undo], what: str, within_s: float
    ) -> float:
        """When it was switched.  Not while somebody else switches it, as its holder may: that boot would be theirs."""
        end = time.monotonic() + _OTHERS_S
        while True:
            while self._is_being_switched():
                if time.monotonic() > end:
                    raise NotAsWanted(f"{self.machine.name} is being switched by somebody else")
                time.sleep(_LOOK_S)
            action = self._action(before)
            source.offer(self.say, undo)
            begun = time.monotonic()
            try:
                self._switch(source, action, what, within_s)
                return begun
            except Conflict as error:  # begun meanwhile
                self.left += _undone(undo)
                if self.left or time.monotonic() > end:
                    raise NotAsWanted(error.message) from None

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

    def _switch(self, source: Source, action: Action, what: str, within_s: float) -> None:
        """Raises Conflict: somebody else switches it; NotBooted: it was switched, and nothing came up."""
        self.say(f"{what}: power {action}, then at most {duration(round(within_s * 1e9))} until it answers")

        def acting() -> None:
            self.switched |= source is self.source
            source.switching()

        done = power.switch(
            self.lab, SERVICE, self.machine.id, action, method=source.method, boot_s=within_s, acting=acting
        )
        if done.result == "done":
            return
        why = done.tried[-1].detail if done.tried else done.verified_by or "no way to do that"
        raise (NotBooted if done.result == "unknown" else _NotSwitched)(f"{what}: power {action}: {why}")

    def _another_boot(self, before: Boot | None, end: float) -> Boot:
        """Raises NotBooted: there is none by then."""
        begun = time.monotonic()
        while True:
            try:
                boot = self.ssh.boot(self.policy.ssh_s)
                if before is None or boot.id != before.id:
                    return boot
                why = f"still in boot {boot.id[:8]}"
            except PowerFailed as error:
                why = error.message
            if time.monotonic() > end:
                raise NotBooted(f"nothing new answers within {duration(round((end - begun) * 1e9))}: {why}")
            time.sleep(_LOOK_S)

    def _see_it_new(self, before: Boot | None, end: float) -> Boot:
        boot = self._another_boot(before, end)
        if wrong := self.source.refuted():
            raise NotBooted(wrong)
        with step("looking for the mark of its old system"):
            marked = self.ssh.marked(SET_S)
        if self.theirs and self.source.asked:
            if marked:
                self.say("its root is the disk of before; if that is not meant, the script could not be fetched")
            elif before is None or self.machine.system_of:
                self.say("its firmware was told the script; whether it could fetch that, only its system tells")
        elif marked:
            raise NotBooted(f"it booted its old system: {self.source.forgot()}")
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
        one = undo.pop()
        try:
            one.action()
        except Exception as error:  # noqa: BLE001  the others are undone all the same
            left.append(f"{one.left}: {reason_of(error)}")
    return left
