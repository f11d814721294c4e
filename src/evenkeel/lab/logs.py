"""Logs of attempts: files below the lab's folder that grow while a step runs.

An agent sends bytes with their offset, so that what was sent twice is written once and nothing is left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

#: A log that is longer says so at its end, and the rest is dropped.
MOST = 256 << 20
#: Of a disk that is full: it may have room again later.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
CUT = b"\n[the log is longer than 256 MiB; the rest was not kept]\n"


class Logs:
    """``folder``: of this lab's logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, attempt: int) -> Path:
        return self.folder / f"{attempt // 1000:06d}" / f"{attempt}.log"

    def size(self, attempt: int) -> int:
        """Bytes that are here; 0 when there is none."""
        try:
            return self.path(attempt).stat().st_size
        except FileNotFoundError:
            return 0

    def remove(self, attempt: int) -> int:
        """Bytes that it had; 0 when there is none.  Raises OSError."""
        path = self.path(attempt)
        size = self.size(attempt)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of a thousand attempts, which others may still have
            path.parent.rmdir()
        return size

    def write(self, attempt: int, offset: int, data: bytes) -> int:
        """Bytes from ``offset`` on; returns how many there are now.  What would leave a gap is not taken.

        Raises OSError; on a full disk what there was room for is kept."""
        path = self.path(attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if offset > size or offset + len(data) <= size or size >= MOST:
                return size if size < MOST else max(size, offset + len(data))
            fresh = data[size - offset :]
            kept = fresh if size + len(fresh) <= MOST else fresh[: MOST - size] + CUT
            done = 0
            while done < len(kept):  # a disk that is nearly full takes a part, and says so by the number alone
                done += os.pwrite(descriptor, kept[done:], size + done)
            return size + len(fresh)
        finally:
            os.close(descriptor)

    def read(self, attempt: int, offset: int = 0, most: int = 1 << 20) -> bytes:
        """At most ``most`` bytes from ``offset`` on (negative: from the end)."""
        try:
            with self.path(attempt).open("rb") as stream:
                stream.seek(max(0, offset if offset >= 0 else self.size(attempt) + offset))
                return stream.read(most)
        except FileNotFoundError:
            return b""
