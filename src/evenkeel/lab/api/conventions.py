"""What all handlers of REST share: the version of an object as ETag and If-Match, and pages by cursor.

A handler that changes an existing object takes ``version: Version`` and hands it to its service function, which raises
Stale (412) by :func:`evenkeel.lab.actor.need_version` when the row has another one.  One that *replaces* fields takes
``version: NeededVersion``: without If-Match it answers 428, so that no update is lost.  Both answer with the new ETag
by :func:`set_etag`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Query, Response

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab.actor import Stale
from evenkeel.lab.api.prefer import tag
from evenkeel.lab.paging import MOST

#: Of a list: the cursor of the last page, and how many items.
After = Annotated[str | None, Query(max_length=1000, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=MOST, description="Items of a page.")]
_IF_MATCH = Header(alias="If-Match", description='The ETag of the object as it was read, as in `"3"`.')


class NeedsVersion(WrongInput):
    """A change that replaces fields came without If-Match.  HTTP 428."""

    http_status = 428


def set_etag(response: Response, version: int, of: Model | None = None) -> None:
    """``of``: see :func:`evenkeel.lab.api.prefer.tag`."""
    response.headers["ETag"] = tag(version, of)


def _version(if_match: Annotated[str | None, _IF_MATCH] = None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"').partition("-")[0]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Stale(f"If-Match {if_match} is no ETag of ours", hint="send the ETag as it was answered")
    return int(text)


def _needed_version(if_match: Annotated[str | None, _IF_MATCH] = None) -> int | None:
    if if_match is None:
        raise NeedsVersion(
            "this change needs the header If-Match",
            hint="send the ETag that you read, or * to overwrite whatever is there",
        )
    return _version(if_match)


#: The version that the caller saw, or None: whatever it is now.
Version = Annotated[int | None, Depends(_version)]
NeededVersion = Annotated[int | None, Depends(_needed_version)]
