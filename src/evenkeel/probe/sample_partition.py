"""A cgroup v2 partition of its own for a short measurement: the conditions of a guest's vCPU, without a guest.

An isolated partition exists only while its guest runs, so a spinner on a free real-time CPU would share it with the
whole host and measure the wrong thing.  The partition is removed when the measurement ends; one that a killed probe
left is removed by the next.  Must not touch any cgroup that it did not make.

Source: Documentation/admin-guide/cgroup-v2.rst, cpuset; cpuset.cpus.exclusive is there since 6.7.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from typing import Iterator, Sequence

CGROUPS = "/sys/fs/cgroup"
_NAME = re.compile(r"evenkeel-spin-(\d+)\Z")


@contextlib.contextmanager
def partition(cpus: Sequence[int]) -> Iterator[str]:
    """Yield the path of a cgroup that owns ``cpus`` alone.

    Raises OSError: EBUSY when another partition holds one of them, EOPNOTSUPP without cgroup v2 or its cpuset.
    """
    sweep()
    with _cpuset_enabled():
        path = "%s/evenkeel-spin-%d" % (CGROUPS, os.getpid())
        os.mkdir(path)
        try:
            _claim(path, ",".join(str(cpu) for cpu in sorted(cpus)))
            yield path
        finally:
            _remove(path)


def sweep() -> None:
    """Remove partitions whose probe is gone.  Their processes died with it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(CGROUPS):
            found = _NAME.match(name)
            if found and not os.path.exists("/proc/%s" % found.group(1)):
                _remove("%s/%s" % (CGROUPS, name))


def join(path: str) -> None:
    """Move the calling process there."""
    _write(path + "/cgroup.procs", "0")


def _claim(path: str, cpus: str) -> None:
    exclusive = path + "/cpuset.cpus.exclusive"
    try:
        # A local partition (cpuset.cpus alone) ends as soon as any sibling lists one of its CPUs.
        _write(exclusive if os.path.exists(exclusive) else path + "/cpuset.cpus", cpus)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EBUSY, "CPU %s belongs to another partition" % cpus, exclusive) from None
    _write(path + "/cpuset.cpus.partition", "isolated")
    state = _read(path + "/cpuset.cpus.partition")
    if state != "isolated":
        raise OSError(errno.EBUSY, "the kernel answers %r for CPU %s" % (state, cpus), path + "/cpuset.cpus.partition")


@contextlib.contextmanager
def _cpuset_enabled() -> Iterator[None]:
    """The cpuset controller for children of the root, as it was before afterwards."""
    control = CGROUPS + "/cgroup.subtree_control"
    if not os.path.exists(control):
        raise OSError(errno.EOPNOTSUPP, "no cgroup v2 is mounted", CGROUPS)
    if "cpuset" in _read(control).split():
        yield
        return
    _write(control, "+cpuset")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody began to use it meanwhile
            _write(control, "-cpuset")


def _remove(path: str) -> None:
    """The kernel needs a moment between the end of a process and the emptiness of its cgroup."""
    for _attempt in range(50):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
    os.rmdir(path)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    """Unbuffered, so that the kernel's answer is the answer of this call."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(descriptor)
