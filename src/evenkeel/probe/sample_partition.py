"""Run where a guest's vCPU runs: in the partition that holds its CPU, or in one of our own for a short measurement.

An isolated partition exists only while its guest runs, so a spinner on a free real-time CPU would share that CPU with
the whole host and measure the wrong thing: it gets a partition of its own.  Where a guest is running, the spinner joins
the cgroup of the vCPU thread: no other place may use that CPU.  Our own partition is removed when the measurement ends;
one that a killed probe left is removed by the next.  Must not change any cgroup that it did not make.

Source: Documentation/admin-guide/cgroup-v2.rst, cpuset and threads; cpuset.cpus.exclusive is there since 6.7.
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

    Raises OSError: EOPNOTSUPP without cgroup v2 or its cpuset, EBUSY when another cgroup claims one of ``cpus``.
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


@contextlib.contextmanager
def places(cpus: Sequence[int], isolate: Sequence[int], cgroups: dict[str, str]) -> Iterator[dict[int, str]]:
    """Yield the cgroup for a thread on each of ``cpus``: an existing one of ``cgroups`` (CPU as text -> path), a
    partition of our own for those in ``isolate``, none for the others.
    """
    for path in cgroups.values():
        if not path.startswith("/") or ".." in path.split("/"):
            raise OSError(errno.EINVAL, "%r is not the path of a cgroup" % path)
    found = {cpu: CGROUPS + cgroups[str(cpu)] for cpu in cpus if str(cpu) in cgroups}
    alone = [cpu for cpu in cpus if cpu in isolate and cpu not in found]
    with contextlib.ExitStack() as stack:
        if alone:
            found.update(dict.fromkeys(alone, stack.enter_context(partition(alone))))
        yield found


def describe(path: str | None) -> str:
    """How a place is told in a document."""
    if path is None:
        return "pinned, in no partition"
    ours = _NAME.match(os.path.basename(path))
    return "in a partition of its own" if ours else "beside the guest's vCPU, in its cgroup"


def neighbours(path: str | None) -> list[int]:
    """Threads that are in the cgroup: the vCPU, and whoever was put beside it."""
    if path is None:
        return []
    try:
        return [int(word) for word in _read(path + "/cgroup.threads").split()]
    except OSError:
        return []


def sweep() -> None:
    """Remove partitions whose probe is gone.  Their processes died with it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(CGROUPS):
            found = _NAME.match(name)
            if found and not os.path.exists("/proc/%s" % found.group(1)):
                _remove("%s/%s" % (CGROUPS, name))


def join(path: str) -> None:
    """Move the calling process there.  It must have one thread.

    A threaded cgroup (libvirt makes one for each vCPU) takes only threads of processes that are in its domain.
    """
    domain = path
    while _read(domain + "/cgroup.type") == "threaded":
        domain = os.path.dirname(domain)
    _write(domain + "/cgroup.procs", "0")
    if domain != path:
        _write(path + "/cgroup.threads", "0")


def _claim(path: str, cpus: str) -> None:
    exclusive = path + "/cpuset.cpus.exclusive"
    try:
        # A local partition (cpuset.cpus alone) ends as soon as any sibling lists one of its CPUs.
        _write(exclusive if os.path.exists(exclusive) else path + "/cpuset.cpus", cpus)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EBUSY, "another cgroup claims one of CPU %s for itself" % cpus, exclusive) from None
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
