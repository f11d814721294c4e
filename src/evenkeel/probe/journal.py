"""The journal on the host: /var/lib/evenkeel/journal.jsonl, one JSON object a line, synced before anything is written.

A line is a `JournalEntry` of the documents.  ``intent`` holds the exact old state and is on disk before the write;
``done``, ``refused`` and ``undone`` carry the sequence number of their intent.  Every intent without ``undone`` is
outstanding: rolling back means to undo those, newest first.  ``begin``, ``reboot``, ``gate`` and ``end`` frame a run.

Only one process may write: it holds a lock (flock) until it ends, however it ends.  A line cut off in the middle
(power loss, kill) was never acknowledged, so nothing was written for it, and it is dropped.
This module must not know what a step does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import Any

from evenkeel.probe.boot_id import boot_id
from evenkeel.probe.failure import StepFailed, from_os_error
from evenkeel.probe.inside import inside

DIRECTORY = "/var/lib/evenkeel"
FILE = DIRECTORY + "/journal.jsonl"
LOCK = DIRECTORY + "/lock"
NOT_READY = DIRECTORY + "/not-ready"
#: The mark of a host that may run its guests.  /run is empty after every boot, so the mark never outlives a kernel.
SCHEDULABLE = "/run/evenkeel/schedulable"
FIELDS = ("setting", "phase", "step", "old", "wanted", "read_back", "errno", "message")

_writers: dict[str, Writer] = {}


def sync_directory(path: str) -> None:
    """Make a created, renamed or removed name in ``path`` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: str, mode: int) -> list[str]:
    """``mkdir -p``, each level synced.  Returns what was created, outermost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        os.mkdir(folder, mode)
        sync_directory(os.path.dirname(folder))
    return missing[::-1]


def write_all(descriptor: int, data: bytes) -> None:
    """Every byte, or OSError.  For regular files; a kernel file wants its value in one write."""
    while data:
        data = data[os.write(descriptor, data) :]


class Writer:
    """The one process that may append.  Holds the lock from its creation until :meth:`close` or its end."""

    def __init__(self, root: str, wait_s: float) -> None:
        self._root = root
        try:
            make_directory(inside(root, DIRECTORY), 0o700)
            self.lock = _take_lock(inside(root, LOCK), wait_s)
            try:
                self._file = self._open()
            except BaseException:
                os.close(self.lock)
                raise
        except OSError as error:
            raise from_os_error(error, "cannot keep a journal", DIRECTORY) from None

    def _open(self) -> int:
        path = inside(self._root, FILE)
        created = not os.path.exists(path)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            data = _read_all(descriptor)
            whole = data.rfind(b"\n") + 1
            if whole != len(data):
                os.ftruncate(descriptor, whole)
                os.fsync(descriptor)
            self.entries = parse(data[:whole])
            if created:
                os.fsync(descriptor)
                sync_directory(os.path.dirname(path))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def append(self, event: str, plan_sha256: str, sequence: int | None = None, **fields: Any) -> int:
        """Write one line and sync it.  Without ``sequence`` a new number is given.  Returns the number."""
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ValueError("a journal entry has no %s" % ", ".join(sorted(unknown)))
        number = sequence if sequence is not None else self._next()
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + ".%06dZ" % int(now % 1 * 1e6)
        entry = {"sequence": number, "at": at, "event": event, "plan_sha256": plan_sha256}
        if event in ("begin", "intent", "reboot", "gate"):
            # So that what vanished with a reboot is not undone a second time by hand.
            fields["step"] = dict(fields.get("step") or {}, boot_id=boot_id(self._root))
        entry.update((name, value) for name, value in fields.items() if value is not None)
        line = json.dumps(entry, ensure_ascii=True, sort_keys=True).encode() + b"\n"
        size = os.fstat(self._file).st_size
        try:
            write_all(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)  # a full disk must not leave half a line in the middle of the file
            raise from_os_error(error, "cannot write the journal, so nothing else was written", FILE) from None
        self.entries.append(entry)
        return number

    def _next(self) -> int:
        return max((int(entry["sequence"]) for entry in self.entries), default=0) + 1

    def intent(self, sequence: int) -> dict[str, Any]:
        """The intent with this number.  Raises StepFailed when there is none."""
        for entry in self.entries:
            if entry["sequence"] == sequence and entry["event"] == "intent":
                return entry
        raise StepFailed("the journal has no intent with the number %d" % sequence, None, FILE)

    def outstanding(self) -> list[dict[str, Any]]:
        """Intents that were not undone, oldest first."""
        undone = {entry["sequence"] for entry in self.entries if entry["event"] == "undone"}
        return [entry for entry in self.entries if entry["event"] == "intent" and entry["sequence"] not in undone]

    def close(self) -> None:
        os.close(self._file)
        os.close(self.lock)


def writer(root: str = "/", wait_s: float = 3.0) -> Writer:
    """The writer of this process; takes the lock at the first call and keeps it."""
    if root not in _writers:
        _writers[root] = Writer(root, wait_s)
    return _writers[root]


def release(root: str = "/") -> None:
    """Give the lock back before this process ends."""
    if root in _writers:
        _writers.pop(root).close()


def children_keep_lock() -> tuple[int, ...]:
    """File descriptors that a child must inherit.

    A program that we started and that outlives us (update-grub after a kill) is still writing, so it keeps the lock.
    """
    return tuple(one.lock for one in _writers.values())


def parse(data: bytes) -> list[dict[str, Any]]:
    """The entries of a journal.  Raises StepFailed for a line in the middle that is no entry: that is damage."""
    entries = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):
            break  # nothing, or a line cut off in the middle: never acknowledged
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("sequence"), int) or "event" not in entry:
                raise ValueError
        except ValueError:
            raise StepFailed(
                "line %d is damaged; keep the file, and undo by hand what its other lines say was written" % number,
                None,
                FILE,
            ) from None
        entries.append(entry)
    return entries


def read_journal(root: str = "/") -> dict[str, Any]:
    """Operation: everything that is known about earlier runs, without taking the lock.

    ``entries``; ``boot_id`` of the running boot; ``writer``: process id of who applies right now, or None;
    ``not_ready``: why the boot gate refused this host, or None; ``schedulable``: whether it passed in this boot.
    """
    return {
        "entries": parse(_read_file(inside(root, FILE)) or b""),
        "boot_id": boot_id(root),
        "writer": _lock_holder(inside(root, LOCK)),
        "not_ready": (_read_file(inside(root, NOT_READY)) or b"").decode(errors="replace").strip() or None,
        "schedulable": is_schedulable(root),
    }


def is_schedulable(root: str = "/") -> bool:
    """Whether the boot gate passed since this kernel started."""
    return (_read_file(inside(root, SCHEDULABLE)) or b"").decode(errors="replace").strip() == boot_id(root)


def set_schedulable(schedulable: bool, root: str = "/") -> None:
    """Operation: leave the mark of a host that may run its guests, or take it away.  Holds the id of the boot."""
    path = inside(root, SCHEDULABLE)
    writer(root)
    if schedulable:
        make_directory(os.path.dirname(path), 0o755)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(descriptor, boot_id(root).encode() + b"\n")
        finally:
            os.close(descriptor)
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)
    with contextlib.suppress(OSError):  # somebody else put something there
        os.rmdir(os.path.dirname(path))


def note(
    event: str, plan_sha256: str, message: str | None = None, step: dict[str, Any] | None = None, root: str = "/"
) -> int:
    """Operation: write a frame entry and keep the lock.  Returns its sequence number."""
    if event not in ("begin", "reboot", "gate", "end"):
        raise ValueError("%r is not an event that frames a run" % event)
    return writer(root).append(event, plan_sha256, message=message, step=step)


def set_not_ready(why: str | None, root: str = "/") -> None:
    """Operation: leave the mark of a host that failed its boot gate, or take it away (None)."""
    path = inside(root, NOT_READY)
    writer(root)
    if why is None:
        if os.path.exists(path):
            os.unlink(path)
            sync_directory(os.path.dirname(path))
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, why.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(os.path.dirname(path))


def _take_lock(path: str, wait_s: float) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)  # the probe of a lost connection ends after the step that it is in
                continue
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StepFailed(
                "another evenkeel is applying to this machine right now (process %s); wait for it" % (holder or "?"),
                error.errno,
                LOCK,
            ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _lock_holder(path: str) -> int | None:
    if any(inside(root, LOCK) == path for root in _writers):
        return os.getpid()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).strip()
        return int(holder) if holder.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _read_file(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, "cannot read the journal", path) from None


def _read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    offset = 0
    while True:
        part = os.pread(descriptor, 1 << 20, offset)
        if not part:
            return b"".join(parts)
        parts.append(part)
        offset += len(part)
