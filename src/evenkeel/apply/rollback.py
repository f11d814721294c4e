"""Undo what was written, newest first, from the journal on the host alone: no plan and no site file is needed.

An entry that cannot be undone does not keep the others from being undone; it stays outstanding and is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenkeel.apply.hosts import HostJournal, read_journal, read_values, require_root
from evenkeel.apply.interrupt import Interrupted, Stop, stop_on_interrupt
from evenkeel.apply.report import RollbackReport
from evenkeel.documents.journal import JournalEntry
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.machines.protocol import Machine, OnProgress, Probe, ProbeError
from evenkeel.probe.steps.boot.arguments import missing, word_of

UNDO_TIMEOUT_S = 720.0  # update-grub, or destroying a guest with all its memory
CMDLINE = "/proc/cmdline"


def rollback_host(
    host: str,
    machine: Machine,
    *,
    reboot: bool = False,
    on_progress: OnProgress | None = None,
) -> RollbackReport:
    """Bring a host back to the state before its first apply.

    A boot layer that is undone still runs until the next reboot; ``reboot`` does it at once, also when everything was
    undone before.
    Raises Unreachable, WrongInput (a recorded tree, not root) or EvenkeelError (interrupted).
    """
    if machine.read_only:
        raise WrongInput(f"{machine.address} is a recorded tree; nothing was ever written to it")
    with stop_on_interrupt() as stop:
        with machine.probe() as probe:
            require_root(probe, machine)
            journal = read_journal(probe)
            if journal.schedulable:
                probe.call("schedulable", schedulable=False)
            if not journal.outstanding:
                needed = _still_booted_with(probe, [entry for entry in journal.entries if entry.event == "intent"])
                undone = RollbackReport(host=host, address=machine.address, reboot_needed=needed)
                return _reboot(machine, undone, stop, on_progress) if reboot else undone
            undone = undo_entries(probe, journal.outstanding, host, machine.address, on_progress, stop)
            if not undone.problems:
                probe.call("not_ready", why=None)
            probe.call(
                "journal_note",
                event="end",
                plan_sha256=journal.outstanding[-1].plan_sha256,
                message="rolled back" if not undone.problems else "rolled back in part",
            )
        return _reboot(machine, undone, stop, on_progress) if reboot else undone


def _reboot(machine: Machine, undone: RollbackReport, stop: Stop, on_progress: OnProgress | None) -> RollbackReport:
    """Reboot when the running kernel still has what was undone."""
    if not undone.reboot_needed:
        return undone
    try:
        machine.reboot(on_progress=stop.watching(on_progress))
    except Interrupted:
        raise EvenkeelError(f"{machine.address}: interrupted while it reboots; everything is undone") from None
    return undone.model_copy(update={"reboot_needed": False, "rebooted": True})


def undo_entries(
    probe: Probe,
    entries: Sequence[JournalEntry],
    host: str,
    address: str,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
) -> RollbackReport:
    """Undo these intents, newest first.  Raises EvenkeelError when the user interrupts; Unreachable."""
    undone: list[str] = []
    gone: list[str] = []
    problems: list[str] = []
    for number, entry in enumerate(reversed(entries), 1):
        name = entry.setting or str((entry.step or {}).get("kind", entry.sequence))
        if stop:
            try:
                stop.check()
            except Interrupted:
                raise EvenkeelError(
                    f"{address}: interrupted; {len(entries) - number + 1} entries are not undone yet",
                    hint="run evenkeel rollback again: it goes on where it stopped",
                ) from None
        if on_progress:
            on_progress(number, len(entries), f"undo {name}")
        try:
            answer = probe.call("undo_step", sequence=entry.sequence, timeout_s=UNDO_TIMEOUT_S)
        except ProbeError as error:
            problems.append(f"{name}: {error.message}")
            continue
        (gone if answer["outcome"] == "gone" else undone).append(name)
    return RollbackReport(
        host=host,
        address=address,
        undone=tuple(undone),
        gone=tuple(gone),
        problems=tuple(problems),
        reboot_needed=_still_booted_with(probe, entries),
    )


def run_entries(journal: HostJournal, begin: int) -> tuple[JournalEntry, ...]:
    """The outstanding intents of the run whose ``begin`` has this number."""
    return tuple(entry for entry in journal.outstanding if entry.sequence > begin)


def _still_booted_with(probe: Probe, entries: Sequence[JournalEntry]) -> bool:
    """Whether the running kernel has arguments of a boot layer that the next boot will not have any more."""
    arguments = [
        argument
        for entry in entries
        if (entry.step or {}).get("kind") == "boot"
        for argument in (entry.step or {})["arguments"]
        if word_of(argument) is not None
    ]
    if not arguments:
        return False
    running = read_values(probe, [CMDLINE]).get(CMDLINE, "")
    next_boot = [entry["arguments"] for entry in probe.call("boot_menu")["entries"]]
    return any(
        not missing([argument], running) and any(missing([argument], line) for line in next_boot)
        for argument in arguments
    )
