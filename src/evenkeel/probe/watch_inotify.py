"""inotify through ctypes, because the standard library has none: which watched file or folder something happened to.

Must not read what it watches.  Source: inotify(7); the kernel sends IN_MODIFY for cpuset.cpus.partition when a
partition becomes invalid (cgroup-v2.rst; measured on 6.12).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Iterator, NamedTuple

MODIFY, CLOSE_WRITE, MOVED_TO, CREATE, DELETE, DELETE_SELF = 0x2, 0x8, 0x80, 0x100, 0x200, 0x400
OVERFLOW, IGNORED = 0x4000, 0x8000
#: A file that a tool replaces or removes in a folder; half-written files and renames away are left out.
FOLDER = CLOSE_WRITE | MOVED_TO | DELETE
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name


class Happened(NamedTuple):
    """``path``: what was watched; ``name``: of the file in a watched folder, else empty.  Overflow: path is empty."""

    path: str
    name: str
    mask: int


class Inotify:
    """Watches by path.  A watch whose file is removed ends by itself, and :meth:`keep` makes it anew."""

    def __init__(self) -> None:
        """Raises OSError where the kernel or the user's limit says no."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify: " + os.strerror(ctypes.get_errno()))
        self._paths: dict[int, str] = {}

    def keep(self, wanted: dict[str, int]) -> None:
        """Watch exactly these paths (path -> mask).  One that is not there (yet) is left out."""
        for number, path in list(self._paths.items()):
            if path not in wanted:
                self._libc.inotify_rm_watch(self.descriptor, number)
                del self._paths[number]
        watched = set(self._paths.values())
        for path, mask in wanted.items():
            if path not in watched:
                number = self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), ctypes.c_uint32(mask))
                if number >= 0:
                    self._paths[number] = path

    @property
    def watched(self) -> list[str]:
        return sorted(self._paths.values())

    def receive(self) -> list[Happened]:
        """What has happened since the last call."""
        found: list[Happened] = []
        while True:
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return found
            for number, mask, name in parse(data):
                path = self._paths.get(number, "")
                if mask & IGNORED:
                    self._paths.pop(number, None)
                if path or mask & OVERFLOW:
                    found.append(Happened(path, name, mask))

    def close(self) -> None:
        os.close(self.descriptor)


def parse(data: bytes) -> Iterator[tuple[int, int, str]]:
    """(watch, mask, name) of each event that is whole."""
    while len(data) >= _EVENT.size:
        number, mask, _cookie, length = _EVENT.unpack_from(data)
        end = _EVENT.size + length
        if len(data) < end:
            return
        yield number, mask, os.fsdecode(data[_EVENT.size : end].rstrip(b"\0"))
        data = data[end:]
