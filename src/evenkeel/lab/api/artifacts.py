"""REST of artifacts and of the contents behind them: bring, fetch (whole or by range), pin, see what is used."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab import artifacts
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit
from evenkeel.lab.paging import Page

router = APIRouter(prefix="/api/v1", tags=["artifacts"])
Number = Annotated[int, Path(ge=1, lt=1 << 63)]
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
_CHUNK = 1 << 20
#: What somebody else's step made must not run in the browser as a page of the lab.
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
_BYTES = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The bytes that the header Range asked for"},
    416: {"description": "No such range"},
}


class Missing(Model):
    sha256: tuple[str, ...] = Field(max_length=1000)


class Stored(Model):
    sha256: str
    size: int


@router.put(
    "/contents/{sha256}",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "required": True,
        }
    },
)
async def bring(request: Request, caller: Caller, sha256: Sha256) -> Stored:
    """Bring bytes that a submission or a result is going to name; kept for a day if none does."""
    artifacts.need_to_bring(caller.actor)  # before a disk is filled for somebody who may not
    with tempfile.TemporaryFile(
        dir=caller.lab.folder
    ) as spool:  # the service's disk, not its memory: some are gigabytes
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > artifacts.MOST_BYTES:
                raise WrongInput(f"larger than {artifacts.MOST_BYTES} bytes, which is the most that is kept")
            await run_in_threadpool(spool.write, piece)
        spool.seek(0)
        await run_in_threadpool(artifacts.upload, caller.lab, caller.actor, sha256, _pieces(spool))
    return Stored(sha256=sha256, size=size)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_CHUNK):
        yield piece


@router.post("/contents/missing")
def missing(caller: Caller, wanted: Missing) -> Missing:
    """Which of these are not here and must be brought; the others are kept as if they were brought now."""
    return Missing(sha256=artifacts.missing(caller.lab, caller.actor, wanted.sha256))


@router.get("/contents/{sha256}", response_class=Response, responses=_BYTES)  # type: ignore[arg-type]
def content(caller: Caller, sha256: Sha256) -> FileResponse:
    """Bytes by their SHA-256; a range with the header Range."""
    caller.actor.need("read", "fetch files", "agent")
    path = artifacts.contents(caller.lab).need(sha256)
    return FileResponse(path, media_type="application/octet-stream", headers={**_SAFE, "ETag": f'"{sha256}"'})


@router.get("/artifacts")
def find(
    caller: Caller,
    same: Annotated[str, Query(max_length=1000)] = "",
    name: Annotated[str, Query(max_length=100)] = "",
    after: After = None,
    limit: Limit = 100,
) -> Page[artifacts.Artifact]:
    """The latest first.  `same`: begins with that, as in `kernel-module branch=main`."""
    return artifacts.find(caller.lab, caller.actor, same=same, name=name, after=after, limit=limit)


@router.get("/artifacts/usage")
def usage(caller: Caller) -> artifacts.Usage:
    """How much is kept."""
    return artifacts.usage(caller.lab, caller.actor)


@router.post("/artifacts/collect")
def collect(caller: Caller) -> artifacts.Collected:
    """Remove now what the policy does not keep: artifacts, logs, results and events; the service does so each hour."""
    return artifacts.collect(caller.lab, caller.actor)


@router.get("/artifacts/{number}")
def show(caller: Caller, number: Number) -> artifacts.Artifact:
    return artifacts.show(caller.lab, caller.actor, number)


@router.get("/artifacts/{number}/content", response_class=Response, responses=_BYTES)  # type: ignore[arg-type]
def download(caller: Caller, number: Number) -> FileResponse:
    """The bytes of an artifact, with its name; a range with the header Range."""
    return file_of(caller, artifacts.show(caller.lab, caller.actor, number))


def file_of(caller: Caller, found: artifacts.Artifact) -> FileResponse:
    name = found.name + (".tar" if found.media.endswith("+tar") else "")
    path = artifacts.contents(caller.lab).need(found.sha256)
    inline = found.media == "text/plain"
    return FileResponse(
        path,
        media_type="text/plain; charset=utf-8" if inline else "application/octet-stream",
        filename=name,
        content_disposition_type="inline" if inline else "attachment",
        headers={**_SAFE, "ETag": f'"{found.sha256}"'},
    )


@router.post("/artifacts/{number}/pin")
def pin(caller: Caller, number: Number) -> artifacts.Artifact:
    """Keep it until it is unpinned."""
    return artifacts.pin(caller.lab, caller.actor, number)


@router.delete("/artifacts/{number}/pin")
def unpin(caller: Caller, number: Number) -> artifacts.Artifact:
    return artifacts.unpin(caller.lab, caller.actor, number)
