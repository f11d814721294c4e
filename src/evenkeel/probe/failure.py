"""The one way in which a step fails on a machine: what happened, where, the kernel's error, and the cure in words.

Must not import anything of the probe.
"""

from __future__ import annotations

import errno
import os
from typing import Any

#: What a person can do about an error of the kernel.  A step's own message comes first, this is appended.
CURES = {
    errno.EPERM: "the kernel does not allow it; is the probe root, and is the kernel locked down (Secure Boot)?",
    errno.EACCES: "not permitted; log in as root, or look for a security module that forbids it",
    errno.EIO: "the kernel took the write and refused the value; a managed interrupt answers so before 6.12",
    errno.EBUSY: "something uses it; stop what holds it, or write it in another order",
    errno.EINVAL: "the kernel does not take this value; was the plan made for another kernel or another machine?",
    errno.ENOENT: "this kernel or machine does not have it; make the plan anew from fresh facts",
    errno.EROFS: "the file system is read-only; is this a container?",
    errno.ENOSPC: "the disk is full; make room on the machine",
    errno.ENODEV: "the device is gone; make the plan anew from fresh facts",
}


class StepFailed(Exception):
    """A step could not be done, undone or looked at.

    ``code``: errno, or None; ``read_back``: what is there instead of the value that was written.
    """

    def __init__(
        self, message: str, code: int | None = None, path: str | None = None, read_back: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.path = path
        self.read_back = read_back

    def describe(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"message": self.message}
        if self.code is not None:
            answer["errno"] = errno.errorcode.get(self.code, str(self.code))
        if self.path is not None:
            answer["path"] = self.path
        if self.read_back is not None:
            answer["read_back"] = self.read_back
        return answer


def from_os_error(error: OSError, doing: str, path: str | None = None) -> StepFailed:
    """``cannot write 3: Invalid argument; the kernel does not take ...``"""
    reason = error.strerror or str(error)
    cure = CURES.get(error.errno or 0)
    return StepFailed("%s: %s%s" % (doing, reason, "; " + cure if cure else ""), error.errno, path)


def require_below(path: str, folders: tuple[str, ...]) -> None:
    """Raise StepFailed for a path outside of the folders that a kind of step is for, whoever asks for it."""
    if os.path.normpath(path) != path or not path.startswith(folders):
        raise StepFailed("is not below %s" % " or ".join(folders), errno.EACCES, path)


class Refused(Exception):
    """The kernel says no and means it: not a failure of the step, but a fact about this machine.  ``code``: errno."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
