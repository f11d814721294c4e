"""Bytes by their SHA-256, as files in a folder: written whole or not at all, the same content once.

Knows no database: who names a content is :mod:`evenkeel.lab.artifacts`' to say.  Several processes may use one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import EvenkeelError, WrongInput

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


class NoSuchContent(EvenkeelError):
    """It is not here (any more).  HTTP 404."""

    http_status = 404


@dataclass(frozen=True)
class Contents:
    """``folder``: made when something is put into it.  ``clock``: when something was brought or touched."""

    folder: Path
    clock: Callable[[], int] = time.time_ns

    def path(self, sha256: str) -> Path:
        """Where it is, or would be.  Raises WrongInput for what is no SHA-256."""
        if not _SHA256.fullmatch(sha256):
            raise WrongInput(f"{sha256[:80]!r} is no SHA-256", hint="64 hexadecimal digits, small letters")
        return self.folder / sha256[:2] / sha256[2:]

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def need(self, sha256: str) -> Path:
        path = self.path(sha256)
        if not path.is_file():
            raise NoSuchContent(f"there is no content {sha256[:12]}… here", hint="it may have been too old to keep")
        return path

    def put(self, pieces: Iterable[bytes], *, sha256: str | None = None, most: int | None = None) -> tuple[str, int]:
        """Keep these bytes; their SHA-256 and how many there are.

        Raises WrongInput when they are not ``sha256``, or more than ``most``, OSError when the disk is full; then
        nothing is left of them."""
        if sha256 is not None:
            self.path(sha256)
        incoming = self.folder / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=incoming)
        temporary = Path(name)
        try:
            digest, size = hashlib.sha256(), 0
            with os.fdopen(descriptor, "wb") as stream:
                for piece in pieces:
                    size += len(piece)
                    if most is not None and size > most:
                        raise WrongInput(f"larger than {most} bytes, which is the most that is kept")
                    digest.update(piece)
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            found = digest.hexdigest()
            if sha256 is not None and found != sha256:
                raise WrongInput(f"the content is {found[:12]}…, not {sha256[:12]}…", hint="it was changed on the way")
            self._keep(temporary, self.path(found))
        finally:
            temporary.unlink(missing_ok=True)
        return found, size

    def put_file(self, file: Path, *, sha256: str | None = None) -> tuple[str, int]:
        with file.open("rb") as stream:
            return self.put(iter(lambda: stream.read(_CHUNK), b""), sha256=sha256)

    def _keep(self, temporary: Path, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with self._lock(fcntl.LOCK_SH):
            temporary.chmod(0o444)
            self._now(temporary)
            temporary.replace(path)  # the same bytes, with the time of now: nobody removes them as old
            _sync_folder(path.parent)

    def touch(self, sha256: str) -> None:
        """Somebody is about to use it: it is not old.  Raises NoSuchContent."""
        with self._lock(fcntl.LOCK_SH):
            self._now(self.need(sha256))

    def _now(self, path: Path) -> None:
        at = self.clock()
        os.utime(path, ns=(at, at))

    def old(self, before_ns: int) -> Iterator[tuple[str, int]]:
        """(SHA-256, size) of all that was put or touched before that moment."""
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for file in sorted(folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    found = file.stat()
                    if found.st_mtime_ns < before_ns:
                        yield folder.name + file.name, found.st_size

    def remove(self, sha256: str, *, before_ns: int) -> bool:
        """Unless it was put again or touched since ``before_ns``; whether it is gone."""
        path = self.path(sha256)
        with self._lock(fcntl.LOCK_EX), contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns < before_ns:
                path.unlink()
                return True
        return False

    def sweep(self, before_ns: int) -> None:
        """Remove what uploads that broke off left."""
        for file in (self.folder / "incoming").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime_ns < before_ns:
                    file.unlink()

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        """Shared for those who bring, exclusive for those who remove: nothing is removed while it is brought anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
