"""bpf(2) by ctypes: maps, programs and what they hang on.  No libbpf, no headers, no compiler.

Everything is a file descriptor of this process, in an object with ``close()``.  Attributes are packed by hand after
``union bpf_attr`` of include/uapi/linux/bpf.h, which only ever grows.
Must not know what a program is for; programs are made in :mod:`evenkeel.probe.trace.templates`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any, Iterator

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import syscall

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD = range(6)
_INFO, _RAW_TRACEPOINT, _LOOKUP_BATCH, _LINK_CREATE, _ENABLE_STATS = 15, 17, 24, 28, 32

#: enum bpf_map_type
HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, STACK_TRACE, LRU_HASH, RINGBUF = 1, 2, 5, 6, 7, 9, 27
_PERCPU = (PERCPU_HASH, PERCPU_ARRAY)
#: enum bpf_prog_type, and of bpf_attach_type what "tracing" programs need
KPROBE, TRACEPOINT, PERF_EVENT, RAW_TRACEPOINT, TRACING = 2, 5, 7, 17, 26
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT = 23, 24, 25
#: Helpers, by their number in enum bpf_func_id
HELPERS = {
    "map_lookup_elem": 1,
    "map_update_elem": 2,
    "map_delete_elem": 3,
    "ktime_get_ns": 5,
    "get_smp_processor_id": 8,
    "get_current_pid_tgid": 14,
    "get_current_uid_gid": 15,
    "get_current_comm": 16,
    "get_stackid": 27,
    "get_current_task": 35,
    "get_current_cgroup_id": 80,
    "probe_read_kernel": 113,
    "probe_read_kernel_str": 115,
    "ringbuf_output": 130,
    "get_current_task_btf": 158,
}
NOEXIST = 1
#: Programs that only read and count ask for no licence, most helpers for tracing do.
_LICENCE = b"GPL\0"
_LOG_BYTES = 1 << 18


def _attr(*fields: tuple[int, str, Any]) -> Any:
    """A zeroed union bpf_attr with fields at their offsets."""
    buffer = ctypes.create_string_buffer(144)
    for offset, form, value in fields:
        struct.pack_into("=" + form, buffer, offset, value)
    return buffer


def _bpf(command: int, attr: Any) -> int:
    return syscall.call(syscall.number_of("bpf"), command, ctypes.byref(attr), ctypes.sizeof(attr))


def possible_cpus() -> int:
    """How many values a per-CPU map has: CPUs that may ever be there, not those that are."""
    with open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().replace(",", "-").split("-")[-1]) + 1


class Descriptor:
    """A file descriptor with an end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Map(Descriptor):
    """A map.  Keys and values are bytes; values of a per-CPU map are one bytes object a possible CPU."""

    def __init__(self, kind: int, key: int, value: int, entries: int, *, flags: int = 0) -> None:
        """Raises OSError: EPERM without CAP_BPF, ENOMEM, EINVAL for a kind that this kernel lacks."""
        super().__init__(-1)
        self.kind, self.key, self.value, self.entries = kind, key, value, entries
        attr = _attr((0, "I", kind), (4, "I", key), (8, "I", value), (12, "I", entries), (16, "I", flags))
        self.fd = _bpf(_MAP_CREATE, attr)
        self._stride = (value + 7) // 8 * 8
        self._count = possible_cpus() if kind in _PERCPU else 1
        self._buffer = ctypes.create_string_buffer(max(8, self._stride * self._count))

    def lookup(self, key: bytes) -> list[bytes] | None:
        """One value (or one a CPU); None when the key is not there."""
        held = ctypes.create_string_buffer(key, len(key))
        attr = _attr((0, "I", self.fd), (8, "Q", ctypes.addressof(held)), (16, "Q", ctypes.addressof(self._buffer)))
        try:
            _bpf(_LOOKUP, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        raw = self._buffer.raw
        return [raw[place : place + self.value] for place in range(0, self._stride * self._count, self._stride)]

    def update(self, key: bytes, value: bytes) -> None:
        """Of a per-CPU map the values of all possible CPUs, one behind the other, each of whole eight bytes."""
        held = ctypes.create_string_buffer(key, len(key))
        new = ctypes.create_string_buffer(value, len(value))
        _bpf(_UPDATE, _attr((0, "I", self.fd), (8, "Q", ctypes.addressof(held)), (16, "Q", ctypes.addressof(new))))

    def items(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Everything in a hash.  Meant for a map that nothing writes to any more."""
        here = ctypes.create_string_buffer(self.key)
        after = ctypes.create_string_buffer(self.key)
        first = True
        while True:
            place = 0 if first else ctypes.addressof(here)
            attr = _attr((0, "I", self.fd), (8, "Q", place), (16, "Q", ctypes.addressof(after)))
            try:
                _bpf(_NEXT_KEY, attr)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            first = False
            ctypes.memmove(here, after, self.key)
            values = self.lookup(here.raw)
            if values is not None:
                yield here.raw, values


class Program(Descriptor):
    """A verified program."""

    def __init__(
        self, kind: int, code: bytes, *, name: str, expected: int = 0, btf_id: int = 0, purpose: str = ""
    ) -> None:
        """Raises StepFailed with the kernel's errno and the end of the verifier's log."""
        super().__init__(-1)
        self.instructions = len(code) // 8
        try:
            self.fd = self._load(kind, code, name, expected, btf_id, None)
        except OSError as error:
            log = ctypes.create_string_buffer(_LOG_BYTES)
            try:  # once more, with a log: it costs, and the first time is nearly always enough
                self.fd = self._load(kind, code, name, expected, btf_id, log)
            except OSError:
                said = log.value.decode("utf-8", "replace").strip().splitlines()
                tail = "; the verifier says: " + " | ".join(line.strip() for line in said[-6:]) if said else ""
                message = "the kernel refuses the program for %s: %s%s" % (purpose or name, error.strerror, tail)
                raise StepFailed(message, error.errno) from None

    def _load(self, kind: int, code: bytes, name: str, expected: int, btf_id: int, log: Any) -> int:
        held = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(_LICENCE)
        fields: list[tuple[int, str, Any]] = [
            (0, "I", kind),
            (4, "I", len(code) // 8),
            (8, "Q", ctypes.addressof(held)),
            (16, "Q", ctypes.addressof(licence)),
            (48, "16s", name.encode()[:15]),
            (68, "I", expected),
            (108, "I", btf_id),
        ]
        if log is not None:
            fields += [(24, "I", 1), (28, "I", _LOG_BYTES), (32, "Q", ctypes.addressof(log))]
        return _bpf(_PROG_LOAD, _attr(*fields))

    def runs(self) -> tuple[int, int, int]:
        """(nanoseconds spent, runs, runs that were left out because it ran already on that CPU).

        The first two count only while :func:`enable_stats` is on; the third always, since 5.12.
        """
        info = ctypes.create_string_buffer(232)
        _bpf(_INFO, _attr((0, "I", self.fd), (4, "I", len(info)), (8, "Q", ctypes.addressof(info))))
        spent, runs, missed = struct.unpack_from("=QQQ", info, 192)
        return spent, runs, missed


def attach_raw(program: Program, name: str | None) -> Descriptor:
    """Hang a raw_tp program on the tracepoint ``name``, or (None) a tracing program on what it was loaded for.

    Raises OSError: ENOENT when there is no such tracepoint.
    """
    held = ctypes.create_string_buffer((name or "").encode())
    place = ctypes.addressof(held) if name else 0
    return Descriptor(_bpf(_RAW_TRACEPOINT, _attr((0, "Q", place), (8, "I", program.fd))))


def enable_stats() -> Descriptor:
    """Let the kernel time every BPF program until this is closed.  Costs 35 to 52 ns a run by itself (measured)."""
    return Descriptor(_bpf(_ENABLE_STATS, _attr((0, "I", 0))))
