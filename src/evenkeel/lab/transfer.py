"""Contents to and from a lab, by its REST API: for the command line and for agents on other machines.

:class:`Here` is the same for an agent on the lab's own machine: no copy goes over a socket.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from evenkeel.documents.result import Result
from evenkeel.errors import EvenkeelError
from evenkeel.lab.client import PREFIX, Client
from evenkeel.lab.contents import Contents

_CHUNK = 1 << 20
#: Tries of one file; each goes on where the one before ended.
_TRIES = 5
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


class Broken(EvenkeelError):
    """The bytes that came are not those that were asked for, or stopped coming."""


@dataclass(frozen=True)
class Here:
    """Fetch and bring for a runner on the lab's own machine."""

    contents: Contents

    def fetch(self, sha256: str, target: Path) -> None:
        shutil.copyfile(self.contents.need(sha256), target)

    def bring(self, files: Mapping[str, Path], result: Result) -> None:
        for one in result.artifacts:
            self.contents.put_file(files[one.name], sha256=one.sha256)


@dataclass(frozen=True)
class There:
    """Fetch and bring for a runner that reaches the lab by its REST API."""

    client: Client

    def fetch(self, sha256: str, target: Path) -> None:
        download(self.client, f"/contents/{sha256}", sha256, target)

    def bring(self, files: Mapping[str, Path], result: Result) -> None:
        upload(self.client, {one.sha256: files[one.name] for one in result.artifacts})


def upload(client: Client, files: Mapping[str, Path]) -> int:
    """Bring what is not there yet (SHA-256 -> file); how many bytes went over.  Raises as the client does."""
    names = list(files)
    sent = 0
    for start in range(0, len(names), 1000):
        absent = client.post("/contents/missing", {"sha256": names[start : start + 1000]})["sha256"]
        for sha256 in absent:
            try:
                answer = client.http.put(
                    f"{PREFIX}/contents/{sha256}", content=_pieces(files[sha256]), timeout=_TIMEOUT
                )
            except httpx.TransportError as error:
                raise client.unreachable(error) from None
            if answer.is_error:
                client.refuse(answer)
            sent += answer.json()["size"]
    return sent


def download(client: Client, path: str, sha256: str, target: Path) -> None:
    """Fetch into ``target``, which appears when it is whole and right.  Raises Broken, and as the client does."""
    part = target.with_name(f".{target.name}.{sha256[:12]}.part")
    try:
        for left in reversed(range(_TRIES)):
            try:
                _download_rest(client, path, part)
                break
            except httpx.TransportError as error:
                if left == 0:
                    raise Broken(f"{path} stopped coming: {error}", hint="try again: it goes on there") from None
        with part.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise Broken(f"{path} came as {found[:12]}…, not {sha256[:12]}…", hint="try again")
        part.replace(target)
    except OSError as error:
        raise EvenkeelError(f"cannot write {target}: {error.strerror}") from None


def _download_rest(client: Client, path: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.http.stream("GET", PREFIX + path, headers=headers, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416:  # there is no more: it is whole, or of another file
            return
        if answer.is_error:
            answer.read()
            client.refuse(answer)
        with part.open("ab" if answer.status_code == 206 else "wb") as stream:
            for piece in answer.iter_bytes(_CHUNK):
                stream.write(piece)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            yield piece
