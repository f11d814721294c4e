"""tracefs: where it is, what an event looks like, and an instance of our own in it.

An instance is the one thing that would survive this process, so its name says whose it is (process id and start time)
and :func:`remove_orphans` removes those whose process is gone.  The top instance, which everybody shares, is never
written to.  Must not decide which events to use.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from typing import NamedTuple, Sequence

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.sample_proc import parse_stat
from evenkeel.probe.trace import syscall

_PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_FIELD = re.compile(r"\tfield:(.*);\toffset:(\d+);\tsize:(\d+);\tsigned:(\d);")
_WORD = re.compile(r"[A-Za-z0-9_-]+\Z")
_OURS = re.compile(r"evenkeel-(\d+)-(\d+)\Z")
_FSCONFIG_CREATE = 6


class Field(NamedTuple):
    """Where a field of an event is in its record.  ``kind``: the C type, as the kernel writes it."""

    name: str
    offset: int
    size: int
    signed: bool
    kind: str


@functools.lru_cache(maxsize=None)
def detached(kind: str) -> str:
    """A file system (tracefs, debugfs) mounted nowhere: a path that only this process can use, gone with it.

    Raises OSError: ENODEV when the kernel lacks it, ENOSYS before 5.2, EPERM without rights.
    """
    context = syscall.call(syscall.FSOPEN, kind.encode(), 1)
    try:
        syscall.call(syscall.FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        return "/proc/self/fd/%d" % syscall.call(syscall.FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


def root() -> str:
    """The folder of tracefs: where the machine has it mounted, else a mount that nobody else sees.  Raises OSError."""
    for place in _PLACES:
        if os.path.isdir(place + "/events"):
            return place
    return detached("tracefs")


def read(path: str) -> str:
    """A file below :func:`root`.  Raises OSError."""
    with open("%s/%s" % (root(), path), errors="replace") as file:
        return file.read()


def write(path: str, text: str, *, append: bool = False) -> None:
    """One write(2), so that the kernel's refusal is the error of this call and not of a buffer's flush later on.

    Python's append mode seeks, which kprobe_events refuses with EINVAL, hence a flag.  Raises OSError.
    """
    target = "%s/%s" % (root(), path)
    mode = os.O_APPEND if append else os.O_TRUNC
    descriptor = os.open(target, os.O_WRONLY | mode | os.O_CLOEXEC)
    try:
        data = (text + "\n").encode()
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.EIO, "the kernel took only a part", target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None
    finally:
        os.close(descriptor)


def event_folder(event: str) -> str:
    """``events/sched/sched_switch`` for ``sched:sched_switch``.  Raises StepFailed for what is no name of an event."""
    system, _, name = event.partition(":")
    if not _WORD.match(system) or not _WORD.match(name):
        message = "%r is not the name of an event; write SYSTEM:NAME, as in sched:sched_switch" % event
        raise StepFailed(message, errno.EINVAL)
    return "events/%s/%s" % (system, name)


def event_id(event: str) -> int:
    """The number by which perf_event_open(2) knows an event.  Raises StepFailed ENOENT, with names that are like it."""
    folder = event_folder(event)
    try:
        return int(read(folder + "/id"))
    except FileNotFoundError:
        near = similar(event)
        message = "this kernel has no event %s%s" % (event, "; there are %s" % ", ".join(near) if near else "")
        raise StepFailed(message, errno.ENOENT) from None


def similar(event: str) -> list[str]:
    """Up to three events whose names contain what was asked for, or are close to it."""
    import difflib

    system, _, name = event.partition(":")
    with contextlib.suppress(OSError):
        folder = "%s/events/%s" % (root(), system)
        if os.path.isdir(folder):
            names = sorted(one for one in os.listdir(folder) if os.path.isdir(folder + "/" + one))
            found = [one for one in names if name in one][:3] or difflib.get_close_matches(name, names, 3)
            return ["%s:%s" % (system, one) for one in found]
        return ["%s:..." % one for one in difflib.get_close_matches(system, os.listdir(root() + "/events"), 3)]
    return []


def events(word: str = "") -> list[str]:
    """Operation: every event whose name has ``word`` in it, sorted.  Raises OSError."""
    place = root() + "/events"
    found = []
    for system in os.listdir(place):
        if os.path.isdir("%s/%s" % (place, system)):
            names = ("%s:%s" % (system, one) for one in os.listdir("%s/%s" % (place, system)))
            found += [one for one in names if word in one and os.path.isdir("%s/%s" % (place, one.replace(":", "/")))]
    return sorted(found)


def fields(event: str) -> dict[str, Field]:
    """The fields of an event's record, from its format file; the layout is the kernel's promise.  Raises OSError."""
    found = {}
    for declaration, offset, size, signed in _FIELD.findall(read(event_folder(event) + "/format")):
        kind, _, name = declaration.rpartition(" ")
        name = name.partition("[")[0]
        found[name] = Field(name, int(offset), int(size), signed == "1", kind)
    return found


class Instance:
    """A trace buffer of our own.  Nobody else's tracing sees it, and it sees nobody else's."""

    def __init__(self, *, buffer_kb: int = 1408, clock: str = "mono") -> None:
        """``buffer_kb``: for each CPU.  Raises OSError."""
        remove_orphans()
        self.name = "instances/evenkeel-%d-%d" % (os.getpid(), _started(os.getpid()) or 0)
        self.path = "%s/%s" % (root(), self.name)
        os.mkdir(self.path)
        try:
            self.set("tracing_on", "0")
            self.set("trace_clock", clock)
            self.set("buffer_size_kb", str(buffer_kb))
        except OSError:
            self.close()
            raise

    def set(self, name: str, text: str) -> None:
        write("%s/%s" % (self.name, name), text)

    def get(self, name: str) -> str:
        return read("%s/%s" % (self.name, name))

    def enable(self, event: str) -> None:
        """Raises StepFailed where the kernel took the word and does not record the event."""
        place = event_folder(event) + "/enable"
        self.set(place, "1")
        if not self.get(place).startswith("1"):
            raise StepFailed("the kernel did not switch on %s" % event)

    def stats(self) -> dict[str, int]:
        """``entries``, ``overrun``, ``dropped``, ``read``: summed over the CPUs."""
        total = {"entries": 0, "overrun": 0, "dropped": 0, "read": 0}
        words = {"entries": "entries", "overrun": "overrun", "dropped events": "dropped", "read events": "read"}
        for folder in os.listdir(self.path + "/per_cpu"):
            for line in self.get("per_cpu/%s/stats" % folder).splitlines():
                key, _, value = line.partition(":")
                if key in words:
                    total[words[key]] += int(value)
        return total

    def close(self) -> None:
        """Switch off and remove.  Safe to call twice."""
        _remove(self.path)


def _remove(path: str) -> None:
    for name, text in (("tracing_on", b"0\n"), ("events/enable", b"0\n"), ("current_tracer", b"nop\n")):
        with contextlib.suppress(OSError):
            descriptor = os.open("%s/%s" % (path, name), os.O_WRONLY)
            try:
                os.write(descriptor, text)
            finally:
                os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat: with it a process id is unique until the next boot."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            found = parse_stat(file.read())
    except OSError:
        return None
    return found.began if found else None


def orphans() -> list[str]:
    """Names of instances of ours whose process is gone: it was killed."""
    try:
        names = os.listdir(root() + "/instances")
    except OSError:
        return []
    found = []
    for name in sorted(names):
        match = _OURS.match(name)
        if match and _started(int(match.group(1))) != int(match.group(2)):
            found.append(name)
    return found


def remove_orphans() -> Sequence[str]:
    """Operation: remove what a killed probe left, and say what it was."""
    names = orphans()
    for name in names:
        _remove("%s/instances/%s" % (root(), name))
    return names
