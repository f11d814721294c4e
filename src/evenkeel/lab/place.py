"""Where a lab's state lies, and where its socket is.  Names only; nothing is made here."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM_FOLDER = Path("/var/lib/evenkeel/lab")
SYSTEM_SOCKET = Path("/run/evenkeel/lab.sock")


def default_folder() -> Path:
    """Of the service that this user would start: the machine's for root, a folder of their own for others."""
    if os.geteuid() == 0:
        return SYSTEM_FOLDER
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evenkeel" / "lab"


def socket_of(folder: Path) -> Path:
    """The Unix socket of the service whose state is in ``folder``."""
    return SYSTEM_SOCKET if folder == SYSTEM_FOLDER else folder / "lab.sock"
