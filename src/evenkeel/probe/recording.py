"""Record trace events of this machine in a tracefs instance of its own, as raw pages.

What is recorded stays in the memory of the probe, up to a limit, and is fetched piece by piece.  The instance is
removed at the end, also when the connection is lost; one that a killed probe left behind is known by its name and
removed by the next.  Nothing outside the instance is changed, so other tracers go on.  Must not decode or judge.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import errno
import math
import os
import re
import resource
import time
import zlib
from contextlib import closing
from typing import Any, Callable, Iterator, Mapping, Sequence

from evenkeel.probe import recording_guest
from evenkeel.probe.trace import tracefs

OnProgress = Callable[[int, int, str], None]

_NAME = re.compile(r"evenkeel-(\d+)\Z")
_EVENT = re.compile(r"[a-z0-9_]+/[a-z0-9_]+\Z")
_FILTER = re.compile(r"[A-Za-z0-9_ =!&|()<>~\"*-]*\Z")
#: Clocks that may be asked for.  x86-tsc is the processor's own counter, the same on all CPUs of a machine.
CLOCKS = ("x86-tsc", "mono", "mono_raw", "boot", "local", "global")
PAGE = 4096
#: Between two readings of the rings; a ring must hold what comes meanwhile.
DRAIN_S = 0.1
#: Between two looks of the flight recorder.
_LOOK_S = 0.5
_MOST_MARKS = 200
#: Round trips to a guest: at the begin and at the end of a recording so many, between them one now and then.  A flight
#: recorder, which does not know its end, takes one now and then.
_TRIPS, _TRIP_S, _FLIGHT_TRIP_S = 8, 5.0, 1.0
#: When a flight recorder asks a guest again that was silent: what comes hours later is to be explained, too.
_AGAIN_S = 10.0
#: How long a guest may take to answer a round trip, or before its host is frozen for the time being, and until it is
#: given up.
_ANSWER_S, _PATIENCE_S = 3, 20
#: What one answer carries of a recording, before compression.
PIECE = 1 << 20

#: Recordings that wait to be fetched: number -> pages a CPU.
_kept: dict[int, dict[int, bytearray]] = {}


def remove_orphans(folder: str) -> list[str]:
    """Remove instances of probes that are no more, and return their names."""
    removed = []
    for name in sorted(os.listdir(folder + "/instances")):
        match = _NAME.match(name)
        if match and not os.path.isdir("/proc/" + match.group(1)):
            _remove(folder + "/instances/" + name)
            removed.append(name)
    return removed


def _remove(instance: str) -> None:
    """The events of an instance must be off before it can go, and nobody may read it."""
    with contextlib.suppress(OSError):
        _write(instance + "/tracing_on", "0")
        _write(instance + "/set_event", "")
    for _ in range(50):
        try:
            os.rmdir(instance)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.1)
    raise OSError(errno.EBUSY, "somebody reads this trace instance, it cannot be removed", instance)


def _write(path: str, text: str) -> None:
    """Unbuffered, so that the kernel's refusal is ours.  A line always ends: a filter without an end is ignored."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, text.encode() + b"\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


@contextlib.contextmanager
def instance(
    folder: str, events: Mapping[str, str], clock: str, buffer_kb: int, cpus: Sequence[int] | None = None
) -> Iterator[str]:
    """A trace instance with ``events`` (``sched/sched_switch`` -> filter or "") enabled, not yet recording.

    Every value is read back.  Raises ENOENT for an event that this kernel does not have, EINVAL for a value that it
    does not take.
    """
    if clock not in CLOCKS or not 4 <= buffer_kb <= 1 << 20:
        raise OSError(errno.EINVAL, "clock %r, %r kB a CPU" % (clock, buffer_kb))
    remove_orphans(folder)
    place = "%s/instances/evenkeel-%d" % (folder, os.getpid())
    os.mkdir(place)
    try:
        _write(place + "/tracing_on", "0")
        _write(place + "/trace_clock", clock)
        if "[%s]" % clock not in _read(place + "/trace_clock"):
            raise OSError(errno.EINVAL, "the kernel does not take the clock %s" % clock, place + "/trace_clock")
        _write(place + "/buffer_size_kb", str(buffer_kb))
        if cpus is not None:
            _write(place + "/tracing_cpumask", _mask(cpus))
        for event, condition in events.items():
            if not _EVENT.match(event) or not _FILTER.match(condition):
                raise OSError(errno.EINVAL, "not an event with a filter: %r %r" % (event, condition))
            if condition:
                _write("%s/events/%s/filter" % (place, event), condition)
                if _read("%s/events/%s/filter" % (place, event)).strip() == "none":
                    raise OSError(errno.EINVAL, "the kernel did not take the filter %r" % condition, event)
            _write("%s/events/%s/enable" % (place, event), "1")
            if _read("%s/events/%s/enable" % (place, event)).strip() != "1":
                raise OSError(errno.EINVAL, "the kernel did not enable this event", event)
        yield place
    finally:
        _remove(place)


def _mask(cpus: Sequence[int]) -> str:
    """The kernel's mask format: groups of 32 bits, the highest first."""
    number = sum(1 << cpu for cpu in set(cpus))
    groups: list[str] = []
    while number or not groups:
        groups.append("%08x" % (number & 0xFFFFFFFF))
        number >>= 32
    return ",".join(reversed(groups))


class Rings:
    """Reads the pages of all CPUs of an instance without waiting, up to ``most_bytes`` in all."""

    def __init__(self, place: str, most_bytes: int) -> None:
        self.pages: dict[int, bytearray] = {}
        self.left = most_bytes
        self.full = False
        self._pipes: dict[int, int] = {}
        for name in os.listdir(place + "/per_cpu"):
            if name.startswith("cpu"):
                path = "%s/per_cpu/%s/trace_pipe_raw" % (place, name)
                self._pipes[int(name[3:])] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                self.pages[int(name[3:])] = bytearray()

    def drain(self) -> None:
        """Read what is there.  Once full nothing more is read: CPUs are then kept to different times."""
        for cpu, pipe in self._pipes.items():
            kept = self.pages[cpu]
            while self.left >= PAGE:
                try:
                    page = os.read(pipe, PAGE)
                except BlockingIOError:
                    break
                if not page:
                    break
                kept += page
                self.left -= len(page)
            else:
                self.full = True
                return

    def close(self) -> None:
        for pipe in self._pipes.values():
            os.close(pipe)
        self._pipes = {}


class RoundTrips:
    """Marks in the recording of a guest, each between two of this one: they bind the clocks where KVM tells no offset.

    ``guest`` "": none are taken.  ``taken``: numbers of the marks, here ``before``, in the ``guest``, here ``after``;
    of the last ``most``, None: of all.  ``again_s``: when a guest that did not answer is asked again.
    """

    def __init__(self, place: str, guest: str, most: int | None = None, again_s: float = math.inf) -> None:
        self.taken: collections.deque[dict[str, int]] = collections.deque(maxlen=most)
        self._guest, self._again_s, self._silent_until, self._last = guest, again_s, 0.0, 0.0
        self._marker = os.open(place + "/trace_marker", os.O_WRONLY)

    def close(self) -> None:
        os.close(self._marker)

    def take(self) -> None:
        """One.  A guest that does not answer is left alone for a time: each question stops the reading of the rings."""
        self._last = time.monotonic()
        if not self._guest or self._last < self._silent_until:
            return
        number, edges = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), []
        try:
            recording_guest.stamp(self._guest, number, lambda: edges.append(_mark(self._marker)), _ANSWER_S)
        except OSError:
            self._silent_until = time.monotonic() + self._again_s
            return
        self.taken.append({"before": edges[0], "guest": number, "after": edges[1]})

    def take_when_due(self, every_s: float, at_once: int = 0) -> None:
        """The first ``at_once`` whenever this is called, then one each ``every_s``."""
        if len(self.taken) < at_once or time.monotonic() - self._last >= every_s:
            self.take()

    def end(self, on_each: Callable[[], None]) -> None:
        """The last ones; one that was silent once has another chance."""
        self._silent_until = 0.0
        for _ in range(_TRIPS if self._guest else 0):
            self.take()
            on_each()


def record(
    seconds: float,
    events: Mapping[str, str],
    clock: str = "x86-tsc",
    buffer_kb: int = 4096,
    cpus: Sequence[int] | None = None,
    most_bytes: int = 256 << 20,
    optional: Mapping[str, str] | None = None,
    until: str = "",
    trips_to: str = "",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Operation: record for ``seconds``, or until a file ``until`` is there, and keep the pages for :func:`fetch`.

    ``optional``: events that are left out where the kernel has none such.  ``cpus`` None: all.  ``trips_to``: a guest
    that records meanwhile (:mod:`.recording_guest`), to which round trips are timed.  Ends early, and says so in
    ``full``, when ``most_bytes`` are kept.  Returns ``id``, ``bytes`` a CPU, ``overrun`` a CPU (what the kernel says
    that it overwrote), the texts of ``formats`` and ``header_page``, ``marks``: the first was written when the
    recording began, which on a loaded machine is long after it was asked for, the last when it ended.  Of all CPUs
    everything is kept that came until the last mark.  ``cost``: CPU time that this took, as :func:`_spent` has it.
    ``trips``: as of :class:`RoundTrips`.
    """
    folder = tracefs.root()
    wanted = _available(folder, events, optional)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(instance(folder, wanted, clock, buffer_kb, cpus))
        rings = stack.enter_context(closing(Rings(place, most_bytes)))
        trips = stack.enter_context(closing(RoundTrips(place, trips_to)))
        _write(place + "/tracing_on", "1")
        before = _spent()
        begun, start = mark(place), time.monotonic()
        marks: list[dict[str, int]] = []
        while True:
            spent = time.monotonic() - start
            if on_progress:  # also notices a lost connection
                on_progress(int(min(spent, seconds) * 10), int(seconds * 10), "recording")
            if spent >= seconds or (until and os.path.exists(until)):
                break
            time.sleep(min(DRAIN_S, seconds - spent))
            trips.take_when_due(_TRIP_S, at_once=_TRIPS)
            # A mark at each reading: when it fills what may be kept, the one before is the last that all CPUs have.
            last = mark(place)
            rings.drain()
            if rings.full:
                break
            marks = [*marks[-_MOST_MARKS:], last]
        if not rings.full:
            trips.end(rings.drain)
        if not rings.full:
            marks.append(mark(place))
        return {**_keep(folder, place, wanted, rings, [begun, *marks], before), "trips": list(trips.taken)}


def fly(
    limit_s: float,
    events: Mapping[str, str],
    guest: str,
    clock: str = "x86-tsc",
    buffer_kb: int = 4096,
    cpus: Sequence[int] | None = None,
    most_bytes: int = 256 << 20,
    optional: Mapping[str, str] | None = None,
    round_trips: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Operation: record over and over into rings of ``buffer_kb`` a CPU, and freeze them when something has happened.

    That is a late sample in ``guest`` (whose recorder was started with a threshold), a guest that does not answer or
    run any more, or an oops of this kernel; ``reason`` says which, None after ``limit_s`` without any.  Memory is what
    the rings have, ``most_bytes`` of all CPUs together, and as much again of the probe at the end.  ``round_trips``:
    time them to that guest.  Returns as :func:`record` does.
    """
    folder = tracefs.root()
    wanted = _available(folder, events, optional)
    buffer_kb = max(4, min(buffer_kb, (most_bytes >> 10) // (os.cpu_count() or 1)))
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(instance(folder, wanted, clock, buffer_kb, cpus))
        rings = stack.enter_context(closing(Rings(place, 1 << 40)))
        trips = stack.enter_context(closing(RoundTrips(place, guest if round_trips else "", _MOST_MARKS, _AGAIN_S)))
        oopses, reason, before = _oopses(), None, _spent()
        _write(place + "/tracing_on", "1")
        marks, start = [mark(place)], time.monotonic()
        armed = False
        while reason is None:
            spent = time.monotonic() - start
            if on_progress:
                on_progress(int(min(spent, limit_s) * 10), int(limit_s * 10), "waiting for a late sample")
            if spent >= limit_s:
                break
            time.sleep(_LOOK_S)
            # A mark at each look: whatever part of the trace is left has two of them.
            marks = [*marks[-_MOST_MARKS:], mark(place)]
            if _oopses() != oopses:
                reason = "host oops"
                continue
            try:
                if not armed:
                    recording_guest.arm(guest)
                    armed = True
                trips.take_when_due(_FLIGHT_TRIP_S)
                reason = recording_guest.happened(guest, _ANSWER_S)
            except OSError:
                # It is slow, or dead: until that is known nothing of what led to it is overwritten.
                _freeze(place, marks)
                reason = _dead(guest)
                if reason is None:
                    marks = [_begin_anew(place)]
        _freeze(place, marks)
        kept = _keep(folder, place, wanted, rings, marks, before)
        return {**kept, "trips": list(trips.taken), "reason": reason}


def keep(pages: dict[int, bytearray]) -> int:
    """Keep it until it is dropped; its number is what :func:`fetch` is asked for."""
    number = max(_kept, default=0) + 1
    _kept[number] = pages
    return number


def _freeze(place: str, marks: list[dict[str, int]]) -> None:
    """The last mark is written now: what comes after it is not judged."""
    if _read(place + "/tracing_on").strip() == "1":
        marks.append(mark(place))
        _write(place + "/tracing_on", "0")


def _begin_anew(place: str) -> dict[str, int]:
    """With a gap in it what is in the rings is worth nothing."""
    _write(place + "/trace", "")
    _write(place + "/tracing_on", "1")
    return mark(place)


def _dead(guest: str) -> str | None:
    """The same question with more patience: ``guest gone`` when it is not answered."""
    try:
        return recording_guest.happened(guest, _PATIENCE_S)
    except OSError:
        return "guest gone"


def _oopses() -> tuple[int, str]:
    """Changes when this kernel has died a little: bit 7 of the taint, set by the first oops, and their number.

    ``/sys/kernel/oops_count`` came with Linux 6.2 (commit 9db89b411170).
    """
    try:
        count = _read("/sys/kernel/oops_count").strip()
    except FileNotFoundError:
        count = ""
    return int(_read("/proc/sys/kernel/tainted")) & 1 << 7, count


def _available(folder: str, events: Mapping[str, str], optional: Mapping[str, str] | None) -> dict[str, str]:
    wanted = dict(events)
    for event, condition in (optional or {}).items():
        if os.path.isdir("%s/events/%s" % (folder, event)):
            wanted[event] = condition
    return wanted


def _spent() -> dict[str, int]:
    """Nanoseconds: ``cpu_ns`` that this process and its ended children have taken, and ``over_ns``, what time it is."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    return {"cpu_ns": round(cpu_s * 1e9), "over_ns": time.monotonic_ns()}


def _keep(
    folder: str,
    place: str,
    events: Mapping[str, str],
    rings: Rings,
    marks: Sequence[Mapping[str, int]],
    before: Mapping[str, int],
) -> dict[str, Any]:
    _write(place + "/tracing_on", "0")
    if not rings.full:
        rings.drain()
        if rings.full:
            marks = marks[:-1]
    now = _spent()
    overrun = {}
    for cpu in rings.pages:
        match = re.search(r"^overrun: (\d+)", _read("%s/per_cpu/cpu%d/stats" % (place, cpu)), re.MULTILINE)
        overrun[str(cpu)] = int(match.group(1)) if match else 0
    formats = {event: _read("%s/events/%s/format" % (place, event)) for event in events}
    formats["ftrace/print"] = _read(folder + "/events/ftrace/print/format")
    return {
        "id": keep(rings.pages),
        "bytes": {str(cpu): len(pages) for cpu, pages in rings.pages.items()},
        "overrun": overrun,
        "full": rings.full,
        "formats": formats,
        "header_page": _read(folder + "/events/header_page"),
        "marks": list(marks),
        "cost": {name: now[name] - before[name] for name in now},
    }


def mark(place: str, tries: int = 10) -> dict[str, int]:
    """Write a mark into the trace, with the monotonic time before and after: binds the trace clock to nanoseconds.

    The record is told by its text, ``evenkeel BEFORE``.  Of all tries the quickest is kept.
    """
    best: tuple[int, int] | None = None
    descriptor = os.open(place + "/trace_marker", os.O_WRONLY)
    try:
        for _ in range(tries):
            before = _mark(descriptor)
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            if best is None or after - before < best[1] - best[0]:
                best = (before, after)
    finally:
        os.close(descriptor)
    assert best is not None
    return {"before": best[0], "after": best[1]}


def _mark(descriptor: int) -> int:
    """One mark, and its number: the monotonic time before it is written."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    os.write(descriptor, b"evenkeel %d\n" % before)
    return before


def mark_of(pid: int) -> dict[str, int]:
    """Operation: a mark in the trace instance of another probe of this machine, which records meanwhile.

    Raises ENOENT when it does not record.
    """
    return mark("%s/instances/evenkeel-%d" % (tracefs.root(), int(pid)), 1)


def fetch(id: int, cpu: int, offset: int) -> dict[str, Any]:
    """Operation: a piece of a recording, compressed: ``pages`` (base64 of zlib), ``next`` offset or None at the end."""
    pages = _kept[id][cpu]
    piece = bytes(pages[offset : offset + PIECE])
    following = offset + len(piece)
    return {
        "pages": base64.b64encode(zlib.compress(piece, 1)).decode(),
        "next": following if following < len(pages) else None,
    }


def drop(id: int) -> None:
    """Operation: forget a recording."""
    _kept.pop(id, None)
