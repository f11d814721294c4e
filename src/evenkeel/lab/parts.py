"""What runs beside the web server while a service is active: each part is a context manager, entered in this order.

A part is a function ``(lab, app) -> context manager`` that starts a thread and ends it; it must end within seconds, and
what it was told to do before must be in the database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from fastapi import FastAPI

from evenkeel.lab import dispatching, forecasts, keeper, local_agent
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import sync as netbox

Part = Callable[[Lab, FastAPI], AbstractContextManager[object]]
#: People's claims come before steps: what is free when both begin is theirs.
PARTS: tuple[tuple[str, Part], ...] = (
    ("claims", keeper.part),
    ("dispatcher", dispatching.part),
    ("forecasts", forecasts.part),
    ("agent", local_agent.part),
    ("netbox", netbox.part),
)


@contextlib.contextmanager
def running(lab: Lab, app: FastAPI) -> Iterator[None]:
    """All parts.  One that does not start ends those before it, and raises."""
    names: list[str] = []
    app.state.parts = names
    with contextlib.ExitStack() as stack:
        stack.callback(names.clear)
        for name, part in PARTS:
            stack.enter_context(part(lab, app))
            names.append(name)
        yield
