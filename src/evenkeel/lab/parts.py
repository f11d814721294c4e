"""What runs beside the web server while a service is active: each part is a context manager, entered in this order.

A part is a function ``(lab, app) -> context manager`` that starts a thread and ends it; it must end within seconds, and
what it was told to do before must be in the database.  What it gives may have ``failed``: the error that ended it by
itself, or None.  A service does not go on without one of its parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from fastapi import FastAPI

from evenkeel.errors import EvenkeelError
from evenkeel.lab import artifacts, console, dispatching, forecasts, health, keeper, local_agent, webhooks
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import sync as netbox

Part = Callable[[Lab, FastAPI], AbstractContextManager[object]]
#: People's claims come before steps: what is free when both begin is theirs.
PARTS: tuple[tuple[str, Part], ...] = (
    ("artifacts", artifacts.part),
    ("claims", keeper.part),
    ("dispatcher", dispatching.part),
    ("forecasts", forecasts.part),
    ("agent", local_agent.part),
    ("netbox", netbox.part),
    ("consoles", console.part),
    ("health", health.part),
    ("webhooks", webhooks.part),
)


@contextlib.contextmanager
def running(lab: Lab, app: FastAPI) -> Iterator[Callable[[], None]]:
    """All parts.  One that does not start ends those before it, and raises.

    Gives what raises the error of a part that ended by itself.
    """
    made: dict[str, object] = {}
    names: list[str] = []
    app.state.parts = names
    with contextlib.ExitStack() as stack:
        stack.callback(names.clear)
        for name, part in PARTS:
            made[name] = stack.enter_context(part(lab, app))
            names.append(name)

        def check() -> None:
            for name, one in made.items():
                failed = getattr(one, "failed", None)
                if isinstance(failed, EvenkeelError):
                    raise failed
                if failed is not None:
                    raise EvenkeelError(f"the part {name!r} of the service failed: {failed}") from failed

        yield check
