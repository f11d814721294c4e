"""Waiting for an event with a bound: what it says, and that a cancellation in the moment of the event is not lost."""

from __future__ import annotations

import asyncio

import pytest

from evenkeel.lab.set_within import set_within


def test_it_says_whether_the_event_came() -> None:
    async def both() -> tuple[bool, bool, bool]:
        event = asyncio.Event()
        late = await set_within(event, 0.001)
        asyncio.get_running_loop().call_soon(event.set)
        return late, await set_within(event, 60), await set_within(event, 0)

    assert asyncio.run(both()) == (False, True, True)


def test_a_cancellation_that_comes_with_the_event_ends_the_task() -> None:
    async def waits() -> None:
        event = asyncio.Event()
        task = asyncio.ensure_future(set_within(event, 60))
        await asyncio.sleep(0)
        event.set()
        task.cancel()  # it has not run since
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(waits())
