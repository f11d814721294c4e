"""What a running lab consists of: its folder, its database, and the parts that other modules hang in.

Built once by the service and by tests; handed to every service function as its first argument.  Parts that need a
thread or a loop are started by :mod:`evenkeel.lab.service`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evenkeel.lab.logs import Logs
from evenkeel.lab.netboot_offers import Offers
from evenkeel.lab.settings import Settings
from evenkeel.lab.store import Store

if TYPE_CHECKING:
    from evenkeel.lab.console import Consoles
    from evenkeel.lab.dispatching import Dispatching
    from evenkeel.lab.forecasts import Forecaster


@dataclass
class Lab:
    """``folder``: of the state (database, artifacts, console recordings, key); ``settings``: of its owner.

    ``stopping``: set when the service goes down; what runs for long looks at it.
    """

    folder: Path
    store: Store
    settings: Settings = field(default_factory=Settings)
    stopping: threading.Event = field(default_factory=threading.Event)
    #: While it runs in this process; None on a standby, in tools and in most tests.
    dispatching: Dispatching | None = None
    consoles: Consoles | None = None
    forecaster: Forecaster | None = None
    #: What machines that boot by network are given.
    netboots: Offers = field(default_factory=Offers)

    @property
    def logs(self) -> Logs:
        return Logs(self.folder / "logs")

    def now(self) -> int:
        """Nanoseconds since 1970, by the clock of the store: for people and for dates, as somebody may set it."""
        return self.store.clock()

    def steady(self) -> int:
        """Nanoseconds that passed since some moment of this machine's boot: for how long something takes.

        Means nothing to another process, so it is never written to the database."""
        return self.store.steady()
