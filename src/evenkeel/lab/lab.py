"""What a running lab consists of: its folder, its database, and the parts that other modules hang in.

Built once by the service and by tests; handed to every service function as its first argument.  Parts that need a
thread or a loop are started by :mod:`evenkeel.lab.service`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evenkeel.lab.store import Store

if TYPE_CHECKING:
    from evenkeel.lab.console import Consoles


@dataclass
class Lab:
    """``folder``: of the state (database, artifacts, console recordings, key).  ``consoles``: while they are owned."""

    folder: Path
    store: Store
    consoles: Consoles | None = None

    def now(self) -> int:
        """Nanoseconds since 1970, by the clock of the store."""
        return self.store.clock()
