"""The protocol `Machine`, and the typed conversation with the probe that runs on it.

Implementations: :mod:`evenkeel.machines.local`, :mod:`~evenkeel.machines.ssh`, :mod:`~evenkeel.machines.virtual`,
:mod:`~evenkeel.machines.tree`; :mod:`evenkeel.machines.address` turns what a user writes into one of them.
This module must not start anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

from evenkeel.errors import EvenkeelError

#: Called with (done, total, what) while something long is under way; total 0 means "not known".
OnProgress = Callable[[int, int, str], None]


class ProbeError(EvenkeelError):
    """An operation of the probe failed on the machine.  ``errno`` is the name (EPERM) or None."""

    def __init__(self, machine: str, op: str, error: dict[str, Any]) -> None:
        self.op = op
        self.errno: str | None = error.get("errno")
        self.path: str | None = error.get("path")
        self.said: str = error.get("message", "failed")
        self.read_back: str | None = error.get("read_back")  # of a value that was taken and changed
        place = f" {self.path}" if self.path else ""
        code = f" ({self.errno})" if self.errno else ""
        super().__init__(f"{machine}: {op}{place}: {error.get('message', 'failed')}{code}")


class Probe(Protocol):
    """A conversation with the probe on a machine: one JSON request a line, one JSON answer a line."""

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        """Run the operation ``op`` of :mod:`evenkeel.probe` with typed arguments and return its JSON result.

        Raises ProbeError when the operation fails on the machine, Unreachable when the connection is lost or
        nothing came for ``timeout_s`` seconds.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Machine(Protocol):
    """A machine that facts can be read from and, unless ``read_only``, settings written to."""

    #: As the user writes it: ``local``, ``ssh://root@host:22``, ``virtual:NAME``, ``/path/tree.tar.bz2``.
    address: str
    #: True for a recorded tree: it can be read, never written or measured.
    read_only: bool

    def probe(self) -> Probe:
        """Send the zipapp and open a conversation.  The caller closes it.  Raises Unreachable."""

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        """Reboot through the machine's own boot loader and return when the probe answers with a new boot id."""

    def close(self) -> None:
        """End connections.  Leaves no process, socket or file behind.  Never stops the machine itself."""
