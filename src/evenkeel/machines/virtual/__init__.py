"""A virtual host: a real Debian with a real PREEMPT_RT kernel in QEMU, with any sockets, NUMA nodes and devices.

Read :mod:`.spec` for what a host can look like, :mod:`.image` for how its disk is made, :mod:`.qemu` for how QEMU
is found and called, :mod:`.lifecycle` for create, start, stop and rm, :mod:`.machine` for the `Machine` protocol.
This package must not be imported by `plan/` or `documents/`.
"""

from evenkeel.machines.virtual.machine import SshTarget, VirtualMachine

__all__ = ["SshTarget", "VirtualMachine"]
