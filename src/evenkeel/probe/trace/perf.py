"""perf_event_open(2) by ctypes: counters a CPU, and the events that BPF programs hang on.

Must not choose events; names are resolved by :mod:`evenkeel.probe.trace.sources`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Sequence

from evenkeel.probe.trace import syscall
from evenkeel.probe.trace.bpf import Descriptor, Program

#: enum perf_type_id
HARDWARE, SOFTWARE, TRACEPOINT = 0, 1, 2
#: enum perf_sw_ids and perf_hw_id that a question can name
SOFTWARE_EVENTS = {
    **{"cpu-clock": 0, "page-faults": 2, "context-switches": 3, "cpu-migrations": 4},
    **{"minor-faults": 5, "major-faults": 6, "alignment-faults": 7, "emulation-faults": 8},
}
HARDWARE_EVENTS = {
    **{"cycles": 0, "instructions": 1, "cache-references": 2, "cache-misses": 3, "branches": 4, "branch-misses": 5},
}
_ENABLE, _DISABLE, _SET_BPF = 0x2400, 0x2401, 0x40042408
_DISABLED, _INHERIT, _FREQ, _INHERIT_THREAD = 1 << 0, 1 << 1, 1 << 10, 1 << 35
_CLOEXEC = 1 << 3
_SIZE = 120  # PERF_ATTR_SIZE_VER6


def online_cpus() -> list[int]:
    from evenkeel.probe.facts.cpulist import parse_list  # with all of the facts: see question.py

    with open("/sys/devices/system/cpu/online") as file:
        return sorted(parse_list(file.read()))


class Event(Descriptor):
    """One perf event on one CPU, switched off until :meth:`enable`.

    ``thread``: only while that one runs, or one that it begins from now on (not a process); on any CPU where ``cpu`` is
    -1.  Since Linux 5.13; EINVAL before.
    """

    def __init__(
        self,
        kind: int,
        config: int,
        cpu: int,
        *,
        frequency_hz: int = 0,
        period: int = 0,
        config1: int = 0,
        config2: int = 0,
        thread: int | None = None,
    ) -> None:
        """Raises OSError: ENOENT for an event that this CPU does not have, EACCES and EPERM without rights."""
        super().__init__(-1)
        flags = _DISABLED | (_FREQ if frequency_hz else 0)
        flags |= 0 if thread is None else _INHERIT | _INHERIT_THREAD
        pid = -1 if thread is None else thread
        attr = ctypes.create_string_buffer(_SIZE)
        every = frequency_hz or period
        struct.pack_into("=IIQQQQQIIQQ", attr, 0, kind, _SIZE, config, every, 0, 0, flags, 0, 0, config1, config2)
        self.fd = syscall.call(syscall.number_of("perf_event_open"), ctypes.byref(attr), pid, cpu, -1, _CLOEXEC)

    def attach(self, program: Program) -> None:
        fcntl.ioctl(self.fd, _SET_BPF, program.fd)

    def enable(self) -> None:
        fcntl.ioctl(self.fd, _ENABLE, 0)

    def disable(self) -> None:
        fcntl.ioctl(self.fd, _DISABLE, 0)

    def count(self) -> int:
        return int(struct.unpack("=Q", os.read(self.fd, 8))[0])


def on_every_cpu(
    kind: int, config: int, *, cpus: Sequence[int] | None = None, frequency_hz: int = 0
) -> dict[int, Event]:
    """The event on every CPU that is online (or these of them), by CPU.  One that goes offline meanwhile is left out.

    Raises OSError.
    """
    events: dict[int, Event] = {}
    try:
        for cpu in online_cpus():
            if cpus is not None and cpu not in cpus:
                continue
            try:
                events[cpu] = Event(kind, config, cpu, frequency_hz=frequency_hz)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
    except OSError:
        for event in events.values():
            event.close()
        raise
    return events


def of_process(kind: int, config: int, process: int, *, cpus: Sequence[int] | None = None) -> list[Event]:
    """The event on every thread of a process, there or on these CPUs; a thread that begins later is counted, too.

    As of ``perf stat -p``, one that begins while this looks may be missing.  Raises OSError: ESRCH for no such process.
    """
    events: list[Event] = []
    try:
        for thread in _threads(process):
            for cpu in [-1] if cpus is None else cpus:
                try:
                    events.append(Event(kind, config, cpu, thread=thread))
                except OSError as error:
                    if error.errno != errno.ESRCH or not _threads(process):
                        raise  # a thread may have ended meanwhile, the process may not
    except OSError:
        for event in events:
            event.close()
        raise
    return events


def _threads(process: int) -> list[int]:
    """Raises OSError: ESRCH."""
    try:
        return sorted(int(name) for name in os.listdir("/proc/%d/task" % process))
    except FileNotFoundError:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
