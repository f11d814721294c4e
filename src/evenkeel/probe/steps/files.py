"""Step ``file``: one value of procfs, sysfs, debugfs or cgroupfs.

``{"kind": "file", "path": "/proc/sys/vm/stat_interval", "value": "10", "compare": "integer"}``
"""

from __future__ import annotations

import os
import time
from typing import Any

from evenkeel.probe.compare import matches, writable
from evenkeel.probe.failure import StepFailed, from_os_error, require_below
from evenkeel.probe.inside import inside

PERSISTENT = False
FOLDERS = ("/proc/", "/sys/")

#: The kernel gives fewer huge pages than asked where memory is fragmented; a further write compacts some more.
_PAGES_FILE = "/nr_hugepages"
_PAGES_ATTEMPTS = 8


def read_value(path: str, root: str) -> str | None:
    """The exact content, or None when there is no such file.  Raises StepFailed for one that cannot be read."""
    try:
        descriptor = os.open(inside(root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, "cannot read", path) from None
    try:
        parts: list[bytes] = []
        while True:
            part = os.read(descriptor, 1 << 16)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    except OSError as error:
        raise from_os_error(error, "cannot read", path) from None
    except UnicodeDecodeError:
        raise StepFailed("is no text", None, path) from None
    finally:
        os.close(descriptor)


def write_value(path: str, content: str, root: str) -> None:
    """One unbuffered write, so that the kernel's answer reaches us.  Raises OSError.

    A buffered file object swallows the EPERM with which a managed interrupt answers (measured on 6.12).
    """
    # O_TRUNC is what a shell's > does; kernel files ignore it, a regular file must not keep a longer old value's tail.
    descriptor = os.open(inside(root, path), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        data = content.encode()
        if os.write(descriptor, data) != len(data):
            raise OSError(5, "the kernel took only a part of the value")
    finally:
        os.close(descriptor)


def snapshot(step: dict[str, Any], root: str) -> str | None:
    require_below(step["path"], FOLDERS)
    return read_value(step["path"], root)


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    return state is not None and matches(state, step["value"], step.get("compare", "text"))


def shown(step: dict[str, Any], state: str | None) -> str | None:
    return state.rstrip("\n") if state is not None else None


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    path, value = step["path"], step["value"]
    if state is None:
        raise StepFailed("there is no such file; make the plan anew from fresh facts", 2, path)
    attempts = _PAGES_ATTEMPTS if path.endswith(_PAGES_FILE) else 1
    for attempt in range(attempts):
        try:
            write_value(path, value + "\n", root)
        except OSError as error:
            raise from_os_error(error, "cannot write %r" % value, path) from None
        if attempts == 1 or satisfied(step, snapshot(step, root)):
            return
        time.sleep(0.1 * attempt)


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    path = step["path"]
    now = snapshot(step, root)
    if state is None or now is None or now == state:
        return  # it was not there before, or is gone with its device or guest, or nothing was written
    try:
        write_value(path, writable(state), root)
        if snapshot(step, root) != state:
            write_value(path, state, root)
    except OSError as error:
        raise from_os_error(error, "cannot write back %r" % state.rstrip("\n"), path) from None
    now = snapshot(step, root)
    if now != state and not matches(now, state.strip(), step.get("compare", "text")):
        raise StepFailed("wrote back %r and reads %r" % (state.rstrip("\n"), (now or "").rstrip("\n")), None, path)
