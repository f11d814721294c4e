"""The folder of a lab's state: who holds it, and how that one is ended.  One service a folder; the kernel locks it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab.words import cause


class HeldElsewhere(EvenkeelError):
    """A service runs in this folder already."""


@dataclass(frozen=True)
class Holder:
    """Who holds the lock of a folder.  ``since_ns``: 1970, by the clock of this machine."""

    pid: int
    since_ns: int
    listen: str


@contextlib.contextmanager
def locked(folder: Path, listen: str) -> Iterator[None]:
    """Hold the folder.  The kernel lets go of it, whatever ends the process."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for last in (False, False, True):  # somebody who only looks holds it for an instant
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    raise _held(folder, holder(folder)) from None
                time.sleep(0.05)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "since_ns": time.time_ns(), "listen": listen}).encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _held(folder: Path, found: Holder | None) -> HeldElsewhere:
    who = f"process {found.pid}, for {(time.time_ns() - found.since_ns) // 10**9} s" if found else "another process"
    return HeldElsewhere(
        f"a lab runs in {folder} already: {who}", hint="`evenkeel lab status` asks it, `evenkeel lab down` ends it"
    )


def holder(folder: Path) -> Holder | None:
    """Who holds the folder now; None: nobody."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WrongInput(f"the lock of {folder} cannot be read: {error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = json.loads(os.pread(handle, 4096, 0))
            return Holder(int(found["pid"]), int(found["since_ns"]), str(found["listen"]))
        return Holder(0, time.time_ns(), "")
    finally:
        os.close(handle)
    return None


def down(folder: Path, *, wait_s: float = 30) -> bool:
    """End the service of a folder and wait until it has ended.  False: none ran.  Raises EvenkeelError."""
    found = holder(folder)
    if found is None:
        return False
    if not found.pid:
        raise EvenkeelError("a lab starts or ends in that folder right now", hint="try again in a second")
    try:
        os.kill(found.pid, signal.SIGTERM)
    except PermissionError:
        raise WrongInput(
            f"the lab runs as another user (process {found.pid})", hint="as root, or as that user"
        ) from None
    except ProcessLookupError:
        return False
    end = time.monotonic() + wait_s
    while (now := holder(folder)) is not None and now.pid == found.pid:
        if time.monotonic() > end:
            raise EvenkeelError(
                f"process {found.pid} does not end", hint=f"kill -9 {found.pid} loses nothing that was acknowledged"
            )
        time.sleep(0.05)
    return True


def prepare(folder: Path) -> None:
    """Make it, for its owner only.  Raises WrongInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = folder.stat()
    except OSError as error:
        what = f"the lab's folder cannot be made: {cause(error)}"
        raise WrongInput(what, hint="--folder DIR names another") from None
    if mode.st_uid != os.geteuid():
        raise WrongInput(f"{folder} belongs to another user", hint="run the lab as that user, or name another folder")
    if stat.S_IMODE(mode.st_mode) & 0o077:
        folder.chmod(0o700)
