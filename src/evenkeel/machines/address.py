"""From what a user writes to a machine: ``local``, ``ssh://root@host:22``, ``virtual:NAME``, a recorded tree."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from evenkeel.errors import WrongInput
from evenkeel.machines.paths import kind_of
from evenkeel.machines.protocol import Machine


def resolve(address: str) -> Machine:
    """The machine at ``address``.  Nothing is contacted yet.  Raises WrongInput for anything else."""
    if address == "local":
        from evenkeel.machines.local import LocalMachine

        return LocalMachine()
    if address.startswith("virtual:"):
        from evenkeel.machines.virtual import VirtualMachine

        return VirtualMachine(address.removeprefix("virtual:"))
    if address.startswith("ssh://"):
        return _ssh(address)
    if address and kind_of(address):
        from evenkeel.machines.tree import TreeMachine

        return TreeMachine(Path(address))
    raise WrongInput(
        f"{address!r} is neither a machine nor a recorded tree",
        hint="write local, ssh://root@HOST[:PORT], virtual:NAME, or the path of a recorded tree (folder or tarball)",
    )


def _ssh(address: str) -> Machine:
    from evenkeel.machines.ssh import SshMachine, SshTarget

    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise WrongInput(f"{address!r}: {error}", hint="write ssh://root@HOST[:PORT]") from None
    host = parts.hostname or ""
    # A host or user that begins with a dash would be read by ssh as an option.
    dashed = host.startswith("-") or (parts.username or "").startswith("-")
    strange = not address.isprintable() or " " in address
    if not host or strange or dashed or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise WrongInput(f"{address!r} is not an ssh address", hint="write ssh://root@HOST[:PORT]")
    if parts.password:
        raise WrongInput("a password in an address would end up in logs", hint="use an ssh key")
    return SshMachine(SshTarget(host=host, user=parts.username, port=port), address=address)
