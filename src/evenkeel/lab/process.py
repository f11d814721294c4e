"""A process of this machine, known so that another service can still tell later whether it lives.  Ends none.

A number alone is used again; with the moment at which the process began, and the boot in which, it is one process.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from evenkeel.probe.boot_id import boot_id


@dataclass(frozen=True)
class Process:
    """``began``: clock ticks after the boot (proc(5), /proc/pid/stat, field 22); 0: it could not be read."""

    boot: str
    pid: int
    began: int

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(_boot(), pid, (_looked_at(pid) or ("", 0))[1])

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """What ``str`` made of one; None: nothing is known."""
        boot, _, rest = text.partition(":")
        pid, _, began = rest.partition(":")
        return cls(boot, int(pid), int(began)) if began else None

    def __str__(self) -> str:
        return f"{self.boot}:{self.pid}:{self.began}"

    def gone(self) -> bool:
        """Whether it has surely ended.  One that this user may not look at lives for as long as its number does."""
        if self.boot != _boot():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        seen = _looked_at(self.pid)
        return seen is not None and (seen[0] in "ZX" or seen[1] != self.began != 0)


def _looked_at(pid: int) -> tuple[str, int] | None:
    """State and begin; None: it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


#: Asked for each process that is looked at.
_boot = functools.cache(boot_id)
