"""Where a lab's state lies, and where its socket is.  Names only; nothing is made here."""

from __future__ import annotations

import os
from pathlib import Path

from evenkeel.errors import WrongInput

SYSTEM_FOLDER = Path("/var/lib/evenkeel/lab")
SOCKET = "lab.sock"
SYSTEM_SOCKET = Path("/run/evenkeel") / SOCKET


def default_folder() -> Path:
    """Of the service that this user would start: the machine's for root, a folder of their own for others."""
    if os.geteuid() == 0:
        return SYSTEM_FOLDER
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evenkeel" / "lab"


def folder_of(at: str) -> Path:
    """Of the lab on this machine that somebody named by its folder or by its socket.  Raises WrongInput for a URL."""
    if "://" in at:
        raise WrongInput(
            f"{at} names no folder of this machine", hint="--folder DIR names the folder of a lab that runs here"
        )
    path = Path(at).expanduser().absolute()
    if path == SYSTEM_SOCKET:
        return SYSTEM_FOLDER
    return path.parent if path.name == SOCKET else path


def socket_of(folder: Path) -> Path:
    """The Unix socket of the service whose state is in ``folder``."""
    return SYSTEM_SOCKET if folder == SYSTEM_FOLDER else folder / SOCKET
