"""``Prefer: wait=N`` (RFC 7240) and ``If-None-Match``: a GET of one object that is answered when there is news of it.

``Prefer: wait=30`` alone: when the object has ended, at the latest after 30 seconds, as it is then.  With
``If-None-Match``: when it has another ETag; 304 after 30 seconds without.  No thread is held meanwhile, and nothing for
who goes away.  Nothing here knows what the objects are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from evenkeel.documents.base import Model
from evenkeel.lab.lab import Lab
from evenkeel.lab.set_within import set_within

T = TypeVar("T")
#: Whoever wants to wait for longer asks again.  Proxies mostly give up after a minute.
MOST_S = 60
#: However much happens in the lab, an object is read so often at most for each who waits.
_REST_S = 0.25
#: So often it is looked whether who asked is still there, and the service goes on.
_LOOK_S = 1.0
#: To be put into ``responses`` of a handler.
SAME: dict[int | str, dict[str, Any]] = {304: {"description": "It has the ETag of If-None-Match still"}}


def tag(version: int, of: Model | None = None) -> str:
    """An ETag.  ``of``: what is answered, where that changes without a new version; If-Match goes by the version."""
    if of is None:
        return f'"{version}"'
    return f'"{version}-{hashlib.sha256(of.model_dump_json().encode()).hexdigest()[:16]}"'


class Conditional:
    """A dependency of a handler; see :meth:`answer`."""

    def __init__(
        self,
        request: Request,
        prefer: Annotated[
            str | None, Header(description=f"`wait=N`: answer when it has ended, or after N seconds; {MOST_S} at most.")
        ] = None,
        if_none_match: Annotated[
            str | None, Header(description="ETags that are known already: 304 as long as it has one of them.")
        ] = None,
    ) -> None:
        self._request = request
        self._wait_s = _wait_of(prefer or "")
        self._known = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",") if one.strip()}

    async def answer(
        self, lab: Lab, response: Response, read: Callable[[], T], etag: Callable[[T], str], over: Callable[[T], bool]
    ) -> Any:
        """What ``read`` returns (in a thread; it may raise), or 304.  ``over``: whether nothing more is to come."""

        def known(found: T) -> bool:
            return "*" in self._known or etag(found) in self._known

        def done(found: T) -> bool:
            return not known(found) if self._known else over(found)

        found = await run_in_threadpool(read)
        headers = {}
        if self._wait_s is not None:
            if not done(found):
                found = await self._until(lab, read, done, self._wait_s)
            if not lab.stopping.is_set():
                headers["Preference-Applied"] = f"wait={self._wait_s}"
        headers["ETag"] = etag(found)
        if known(found):
            return Response(status_code=304, headers=headers)
        response.headers.update(headers)
        return found

    async def _until(self, lab: Lab, read: Callable[[], T], done: Callable[[T], bool], wait_s: int) -> T:
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def told(_: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(more.set)

        deadline = loop.time() + wait_s
        end = lab.store.listen(told)
        try:
            found = await run_in_threadpool(read)  # it may have changed before anybody listened
            while not done(found) and (left := deadline - loop.time()) > 0:
                await set_within(more, min(left, _LOOK_S))
                if lab.stopping.is_set() or await self._request.is_disconnected():
                    break
                if more.is_set():
                    more.clear()
                    found = await run_in_threadpool(read)
                    if not done(found):
                        await asyncio.sleep(min(_REST_S, max(0.0, deadline - loop.time())))
            return found
        finally:
            end()


#: ``def handler(..., conditional: IfNews)``.
IfNews = Annotated[Conditional, Depends(Conditional)]


def _wait_of(prefer: str) -> int | None:
    """Seconds of ``wait=N`` among the preferences.  What cannot be read is no preference: RFC 7240 has no error."""
    for one in prefer.split(","):
        name, _, value = one.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isascii() and value.isdigit() and len(value) < 9:
            return min(int(value), MOST_S)
    return None
