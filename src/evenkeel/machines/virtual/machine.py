"""A virtual host as a :class:`~evenkeel.machines.protocol.Machine`: facts, settings and reboots go over ssh.

Thin on purpose: the conversation is :mod:`evenkeel.machines.ssh`, starting and stopping is :mod:`.lifecycle`.
"""

from __future__ import annotations

from evenkeel.machines.protocol import OnProgress, Probe
from evenkeel.machines.ssh import SshMachine, SshTarget
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.spec import check_name

__all__ = ["SshTarget", "VirtualMachine"]


class VirtualMachine:
    """The virtual host ``name``.  It must run to be talked to; :meth:`start` boots it."""

    read_only = False

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.address = f"virtual:{name}"
        self._ssh: SshMachine | None = None

    def ssh_target(self) -> SshTarget:
        """How OpenSSH reaches it.  Raises WrongInput (no such host) or Unreachable (not running)."""
        return lifecycle.ssh_target(self.name)

    def emulated(self) -> bool:
        """True when it runs by software emulation: its latency numbers mean nothing.  Raises like ssh_target."""
        lifecycle.ssh_target(self.name)
        running = lifecycle.read_run(self.name)
        return running is None or not running.kvm

    def start(self, *, on_progress: OnProgress | None = None) -> None:
        """Boot it, if it does not run, and return when ssh answers."""
        lifecycle.start(self.name, on_progress=on_progress)

    def probe(self) -> Probe:
        """Open a conversation with the probe.  The caller closes it.  Raises Unreachable."""
        return self._connection().probe()

    def _connection(self) -> SshMachine:
        if self._ssh is None:
            self._ssh = SshMachine(self.ssh_target(), address=self.address)
        return self._ssh

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        """Reboot through its own GRUB and return when ssh answers with a new boot id.

        Raises Unreachable when it does not come back in time; it is left running, so that its console can be read.
        """
        self.close()
        lifecycle.reboot(self.name, on_progress=on_progress, timeout_s=timeout_s)

    def power_cut(self) -> None:
        """End it as a power cut would."""
        self.close()
        lifecycle.power_cut(self.name)

    def close(self) -> None:
        """End connections.  Never stops the host itself."""
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None
