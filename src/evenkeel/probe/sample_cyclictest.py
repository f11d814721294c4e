"""Run cyclictest on a machine, or inside a guest through its agent, and give back what it wrote.

Must not interpret the result: `evenkeel.measure` does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from typing import Any, Sequence

from evenkeel.probe.sample import OnProgress
from evenkeel.probe.sample_dma_latency import Holders
from evenkeel.probe.sample_guest import guest_exec
from evenkeel.probe.sample_load import under_load
from evenkeel.probe.sample_partition import join, places
from evenkeel.probe.sample_process import start

#: Histogram buckets of one microsecond; what is later is an overflow, and still counts in max.
BUCKETS = 20000


def arguments(cpus: str, count: int, seconds: int, priority: int, interval_us: int, file: str) -> list[str]:
    """The command line.  ``--default-system``: cyclictest must not hold the CPUs awake through /dev/cpu_dma_latency,
    or a host that was never tuned would look tuned.
    """
    return [
        "cyclictest", "--quiet", "--mlockall", "--default-system", "--policy=fifo", "--priority=%d" % priority,
        "--affinity=%s" % cpus, "--threads=%d" % count, "--interval=%d" % interval_us, "--distance=0",
        "--duration=%d" % seconds, "--histogram=%d" % BUCKETS, "--json=%s" % file,
    ]  # fmt: skip


def cyclictest(
    cpus: Sequence[int],
    seconds: int,
    isolate: Sequence[int] = (),
    cgroups: dict[str, str] | None = None,
    priority: int = 95,
    interval_us: int = 1000,
    load: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """On the host, one thread on each of ``cpus``; ``isolate`` and ``cgroups`` as for a spinner.

    In the cgroup of a running guest its threads pre-empt the vCPU for some microseconds at each interval.

    Returns ``{"argv": [...], "load": text, "loads": [...], "holders": [...], "json": cyclictest's own document}``:
    ``loads`` as :meth:`~evenkeel.probe.sample_load.Load.report` gives them, ``holders``: who held
    /dev/cpu_dma_latency meanwhile, None: not known.
    Raises ENOENT when cyclictest is not installed, EOPNOTSUPP or EBUSY when there can be no partition.
    """
    program = shutil.which("cyclictest")
    if not program:
        raise OSError(errno.ENOENT, "cyclictest is not installed", "cyclictest")
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(places(cpus, isolate, cgroups or {}))
        if len({found.get(cpu) for cpu in cpus}) > 1:
            raise ValueError("CPUs of different cgroups need a run each: %s" % list(cpus))
        inside = found.get(cpus[0])
        running = stack.enter_context(under_load(load))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="evenkeel-"))
        file = folder + "/result.json"
        text = ",".join(str(cpu) for cpu in cpus)
        argv = arguments(text, len(cpus), seconds, priority, interval_us, file)

        def setup() -> None:
            if inside:
                join(inside)
            log = os.open(folder + "/log", os.O_WRONLY | os.O_CREAT, 0o600)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)

        child = start("cyclictest", setup, lambda: os.execv(program, argv))
        stack.callback(child.kill)
        holders = Holders()
        begin = time.monotonic()
        while child.running():
            holders.look()
            running.look()
            spent = time.monotonic() - begin
            if spent > seconds * 3 + 60:
                raise OSError(errno.ETIMEDOUT, "cyclictest did not end %.0f s after it should have" % (spent - seconds))
            if on_progress:
                on_progress(int(min(spent, seconds) * 10), seconds * 10, "cyclictest on CPU %s" % text)
            time.sleep(0.2)
        beside = {"load": running.text(), "loads": running.report(), "holders": holders.names()}
        if not os.path.exists(file):
            with open(folder + "/log", errors="replace") as log_file:
                said = log_file.read().strip().splitlines()
            raise OSError(errno.EPROTO, "cyclictest wrote no result: %s" % (said[-1] if said else "no message"))
        with open(file, errors="replace") as result:
            return {"argv": argv, **beside, "json": json.load(result)}


def cyclictest_guest(
    guest: str,
    vcpus: Sequence[int],
    seconds: int,
    priority: int = 95,
    interval_us: int = 1000,
    load: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """In the guest, one thread on each of ``vcpus``; the load runs on the host.  Returns as :func:`cyclictest`.

    Raises ENOTCONN without a guest agent, ENOENT when cyclictest is not installed in the guest.
    """
    text = ",".join(str(vcpu) for vcpu in vcpus)
    argv = arguments(text, len(vcpus), seconds, priority, interval_us, "/proc/self/fd/1")
    holders = Holders()
    holders.look()
    with under_load(load) as running:
        tell = on_progress or (lambda done, total, what: None)

        def waited(done: int, _total: int, what: str) -> None:  # in tenths of a second, of a limit that is far away
            holders.look()
            running.look()
            tell(min(done, seconds * 10), seconds * 10, what)

        ran = guest_exec(guest, argv, limit_s=seconds * 3 + 60, on_progress=waited)
        beside = {"load": running.text(), "loads": running.report(), "holders": holders.names()}
    begin = ran["stdout"].find("{")
    if ran["exit"] or begin < 0:
        said = (ran["stderr"].strip() or ran["stdout"].strip() or "no message").splitlines()[-1]
        raise OSError(errno.EPROTO, "cyclictest in guest %s failed: %s" % (guest, said))
    found, _end = json.JSONDecoder().raw_decode(ran["stdout"][begin:])
    return {"argv": argv, **beside, "json": found}
