"""Run a program inside a guest, through libvirt and the guest agent; failures become words with a cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evenkeel.errors import EvenkeelError
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError


@dataclass(frozen=True)
class Ran:
    """How a program in a guest ended.  ``exit``: None when a signal ended it."""

    exit: int | None
    stdout: str
    stderr: str


def guest_exec(
    probe: Probe, guest: str, argv: Sequence[str], timeout_s: float = 30.0, on_progress: OnProgress | None = None
) -> Ran:
    """Run ``argv`` in ``guest`` and wait for its end.

    Raises EvenkeelError when the guest has no agent, the program is not there, or it takes longer than ``timeout_s``.
    """
    answer = guest_call(probe, guest, "guest_exec", on_progress, argv=list(argv), limit_s=timeout_s)
    return Ran(exit=answer["exit"], stdout=answer["stdout"], stderr=answer["stderr"])


def guest_call(probe: Probe, guest: str, op: str, on_progress: OnProgress | None = None, /, **arguments: Any) -> Any:
    """An operation of the probe that needs the agent of ``guest``.  Raises EvenkeelError with the cure."""
    try:
        return probe.call(op, on_progress=on_progress, guest=guest, **arguments)
    except ProbeError as error:
        raise EvenkeelError(error.message, hint=cure(guest, error)) from None


def cure(guest: str, error: ProbeError) -> str | None:
    """What to do when something could not be run in a guest."""
    match error.errno:
        case "ENOTCONN":
            return (
                f"install qemu-guest-agent in guest {guest} and give its definition the channel "
                "org.qemu.guest_agent.0; is the guest still booting?"
            )
        case "ENOENT":
            return "install libvirt-clients (virsh) on the host"
        case "EPROTO" if any(word in error.message for word in ("execute", "No such file", "not found")):
            return f"install rt-tests (cyclictest, oslat) in guest {guest}"
        case "ESRCH":
            return f"is guest {guest} running? evenkeel apply starts it"
        case "ETIMEDOUT":
            return f"is guest {guest} overloaded or stopped?"
        case _:
            return None
