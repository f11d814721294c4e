"""The right to write: one service is the active one on a database.  Waits for it, keeps it, gets it back.

On PostgreSQL the right ends with the connection that holds it.  When the database was only away, the same service asks
for it again and goes on, with all that runs on its agents; when another service took over meanwhile, this one ends.
Decides nothing else, and knows no web server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from evenkeel.errors import EvenkeelError
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Away, LostHold

Say = Callable[[str], None]
#: Between two looks whether the right is still there, and between two tries to get it.
_LOOK_S = 2.0
_STANDBY_S = 1.0
_AGAIN_S = 0.5


class TakenOver(EvenkeelError):
    """Another service became the active one while the database was away for this one."""


def wait_for(lab: Lab, name: str, say: Say, waits: Callable[[], None] = lambda: None) -> bool:
    """Until this service may write.  False: it stopped before.

    ``name``: told to the others; ``waits``: called once it is known that this one has to wait.
    """
    told = ""

    def not_yet(holder: str | None, away: Away | None) -> None:
        nonlocal told
        why = f"another service is active ({holder or 'unknown'}); standing by, for readers only"
        if away is not None:
            why = f"{away.message}; waiting for it"
        if why != told:
            say(why)
            waits()
            told = why

    if not _held(lab, name, _STANDBY_S, not_yet):
        return False
    if told:
        say("the other service is gone; this one is active now" if "standing by" in told else "the database answers")
    return True


def keep(lab: Lab, name: str, say: Say, check: Callable[[], None], may_write: threading.Event) -> None:
    """Until the service stops.  ``check``: called at each look; ``may_write``: cleared while the right is lost.

    Raises TakenOver when another service is the active one.
    """
    while not lab.stopping.wait(_LOOK_S):
        check()
        try:
            lab.store.check_hold()
        except LostHold as error:
            may_write.clear()
            say(f"{error.message}; asking for it again, what runs goes on")
            if not _again(lab, name):
                return
            may_write.set()
            say("the database answers again, and this service is the active one; going on")


def _again(lab: Lab, name: str) -> bool:
    """False: the service stopped before."""

    def not_yet(holder: str | None, away: Away | None) -> None:
        # Its own session may live on in the server for a while, which has not noticed that the line was cut.
        if away is None and holder not in (None, name[:63]):
            raise TakenOver(
                f"the connection to the database was lost, and the right to write with it: {holder} has it now",
                hint="start this service again, and it stands by; systemd does so by itself",
            )

    return _held(lab, name, _AGAIN_S, not_yet)


def _held(lab: Lab, name: str, pause_s: float, not_yet: Callable[[str | None, Away | None], None]) -> bool:
    """Try until it is; False: the service stopped before.  ``not_yet``: told who holds it, or why nobody answers."""
    while True:
        try:
            if lab.store.try_hold(name):
                return True
            not_yet(lab.store.holder(), None)
        except Away as error:
            not_yet(None, error)
        if lab.stopping.wait(pause_s):
            return False
