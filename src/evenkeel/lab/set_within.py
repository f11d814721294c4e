"""Waiting for an event of asyncio, but not for ever.  Must not swallow that its task was cancelled."""

from __future__ import annotations

import asyncio


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether it is set when this ends: at once when it is, after ``seconds`` at the latest.

    Not by ``wait_for``: up to Python 3.11 that loses a cancellation which comes together with what it waits for.
    """
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()
