"""REST of webhooks: whom else the lab tells of its events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from evenkeel.lab import webhooks
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.webhooks import Made, Wanted, Webhook

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])
Name = Annotated[str, Path(max_length=80)]


@router.get("")
def webhook_list(caller: Caller) -> tuple[Webhook, ...]:
    """All, by name, with how they do."""
    return webhooks.listing(caller.lab, caller.actor)


@router.post("", status_code=201)
def add_webhook(caller: Caller, wanted: Wanted) -> Made:
    """Tell an address of events from now on; the secret is shown this once."""
    return webhooks.add(caller.lab, caller.actor, wanted)


@router.post("/{name}/test")
def test_webhook(caller: Caller, name: Name) -> Webhook:
    """Send a message without events, now."""
    return webhooks.test(caller.lab, caller.actor, name)


@router.post("/{name}/pause")
def pause_webhook(caller: Caller, name: Name) -> Webhook:
    """Tell it nothing for now; it loses nothing."""
    return webhooks.pause(caller.lab, caller.actor, name)


@router.post("/{name}/resume")
def resume_webhook(caller: Caller, name: Name) -> Webhook:
    """Go on where it was, at once."""
    return webhooks.resume(caller.lab, caller.actor, name)


@router.delete("/{name}", status_code=204)
def remove_webhook(caller: Caller, name: Name) -> None:
    """Forget it."""
    webhooks.remove(caller.lab, caller.actor, name)
