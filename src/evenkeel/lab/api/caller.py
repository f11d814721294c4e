"""Who asks, for handlers and pages: ``def handler(caller: Caller)`` gives ``caller.lab`` and ``caller.actor``.

Who it is was found out before, by the middleware of :mod:`evenkeel.lab.api.app`; what is missing here is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from evenkeel.lab.actor import Actor, NotLoggedIn
from evenkeel.lab.lab import Lab


@dataclass(frozen=True)
class Asked:
    """``lab``: the one that is asked; ``actor``: who asks, known by socket, session or token."""

    lab: Lab
    actor: Actor


def asked(connection: HTTPConnection) -> Asked:
    """Raises NotLoggedIn (401)."""
    actor = actor_of(connection)
    if actor is None:
        raise NotLoggedIn(
            "who asks is not known",
            hint="`evenkeel lab login URL` for people; programs have a token in EVENKEEL_LAB_TOKEN, or send it as"
            " `Authorization: Bearer TOKEN`",
        )
    return Asked(connection.app.state.lab, actor)


def actor_of(connection: HTTPConnection) -> Actor | None:
    actor = connection.scope.get("state", {}).get("actor")
    return actor if isinstance(actor, Actor) else None


Caller = Annotated[Asked, Depends(asked)]
