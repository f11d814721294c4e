"""The id of a boot, which the kernel draws anew each time it starts: another one proves a restart.  Decides nothing."""

from __future__ import annotations

import os

from evenkeel.probe.inside import inside

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id(root: str = "/") -> str:
    """Of the boot that runs; of this machine's where a constructed ``root`` has none.  Raises OSError."""
    where = inside(root, BOOT_ID)
    with open(where if os.path.exists(where) else BOOT_ID) as file:
        return file.read().strip()
