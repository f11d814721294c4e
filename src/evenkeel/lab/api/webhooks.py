"""REST of webhooks: which programs are told of which events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.lab import webhooks as hooks
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit
from evenkeel.lab.paging import Page

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])
Number = Annotated[int, Path(ge=1, lt=1 << 63)]


class Wanted(Model):
    url: str = Field(max_length=2000)
    types: tuple[str, ...] = Field(description="of events; `claim.*` for all of a kind")


@router.get("")
def webhooks(caller: Caller) -> tuple[hooks.Webhook, ...]:
    """All of them, with what their receivers last answered."""
    return hooks.webhooks(caller.lab, caller.actor)


@router.post("", status_code=201)
def add(caller: Caller, wanted: Wanted) -> hooks.NewWebhook:
    """Tell an address of what is written from now on; the key to check signatures with is told this once."""
    return hooks.add(caller.lab, caller.actor, wanted.url, wanted.types)


@router.get("/{number}")
def webhook(caller: Caller, number: Number) -> hooks.Webhook:
    """One of them."""
    return hooks.webhook(caller.lab, caller.actor, number)


@router.get("/{number}/deliveries")
def deliveries(caller: Caller, number: Number, after: After = None, limit: Limit = 100) -> Page[hooks.Delivery]:
    """What was sent to it lately and what became of that, the newest first; the last hundred are kept."""
    return hooks.deliveries(caller.lab, caller.actor, number, after=after, limit=limit)


@router.post("/{number}/test")
def test(caller: Caller, number: Number) -> hooks.Delivery:
    """Send one signed event `webhook.test` now, and say what the receiver answered (5 s at most)."""
    return hooks.test(caller.lab, caller.actor, number)


@router.delete("/{number}", status_code=204)
def remove(caller: Caller, number: Number) -> None:
    """Tell it no more."""
    hooks.remove(caller.lab, caller.actor, number)


@router.post("/{number}/resume")
def resume(caller: Caller, number: Number) -> hooks.Webhook:
    """Try again now, with what was missed."""
    return hooks.resume(caller.lab, caller.actor, number)
