"""System calls that Python has no function for, by ctypes.  Numbers and one way to fail; knows no meaning."""

from __future__ import annotations

import ctypes
import os
from typing import Any

#: bpf and perf_event_open by architecture (arch/*/include of the kernel, unistd.h).
_OLD = {"x86_64": (321, 298), "aarch64": (280, 241), "riscv64": (280, 241), "ppc64le": (361, 319), "s390x": (351, 331)}
#: Numbers since 5.2 are the same everywhere.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def number_of(name: str) -> int:
    """Number of ``bpf`` or ``perf_event_open`` here.  Raises OSError ENOSYS on an architecture that is not known."""
    machine = os.uname().machine
    if machine not in _OLD:
        raise OSError(38, "the number of %s is not known on %s" % (name, machine))
    return _OLD[machine][("bpf", "perf_event_open").index(name)]


def call(number: int, *arguments: Any) -> int:
    """The result, never negative.  Raises OSError with the kernel's errno."""
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
