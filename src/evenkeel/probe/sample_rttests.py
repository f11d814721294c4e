"""cyclictest and oslat of rt-tests, on a machine or inside a guest through its agent.  Gives back what they wrote.

Must not interpret the result: `evenkeel.measure` does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import tempfile
from typing import Any, Sequence

from evenkeel.probe.sample import read
from evenkeel.probe.sample_guest import guest_ended, guest_start
from evenkeel.probe.sample_partition import join, places
from evenkeel.probe.sample_proc import parse_status
from evenkeel.probe.sample_process import start

#: Histogram buckets of one microsecond of cyclictest; what is later is an overflow, and still counts in max.
BUCKETS = 20000
#: The most that oslat has; its last bucket holds everything later.
OSLAT_BUCKETS = 1024


def arguments(tool: str, cpus: Sequence[int], seconds: int, priority: int, interval_us: int, file: str) -> list[str]:
    """The command line of ``cyclictest`` or ``oslat``.

    ``--default-system``: cyclictest must not hold the CPUs awake through /dev/cpu_dma_latency, or a host that was never
    tuned would look tuned.  oslat spins all the time, so it runs at ordinary priority: real-time throttling would stop
    it 50 ms a second, and without throttling it would stop everybody else.
    """
    text = ",".join(str(cpu) for cpu in cpus)
    if tool == "oslat":
        return [
            "oslat", "--quiet", "--cpu-list=%s" % text, "--cpu-main-thread=%d" % cpus[0], "--duration=%d" % seconds,
            "--bucket-size=%d" % OSLAT_BUCKETS, "--json=%s" % file,
        ]  # fmt: skip
    if tool != "cyclictest":
        raise ValueError("%r is no tool that the probe runs" % tool)
    return [
        "cyclictest", "--quiet", "--mlockall", "--default-system", "--policy=fifo", "--priority=%d" % priority,
        "--affinity=%s" % text, "--threads=%d" % len(cpus), "--interval=%d" % interval_us, "--distance=0",
        "--duration=%d" % seconds, "--histogram=%d" % BUCKETS, "--json=%s" % file,
    ]  # fmt: skip


_STATUS = re.compile(rb"^T: *(\d+) \(.*C: *(\d+) Min: *(\d+) Act: *(\d+) Avg: *(\d+) Max: *(\d+)", re.MULTILINE)


def line(place: str, samples: int, least: int, now: int, mean: int, largest: int) -> str:
    """How a run stands, for a person, and for the live view of `evenkeel measure`.  In microseconds."""
    return "%s: %d samples, min %d, now %d, mean %d, max %d us" % (place, samples, least, now, mean, largest)


class OnHost:
    """One thread on each of ``cpus``; ``isolate`` and ``cgroups`` as for a spinner.

    In the cgroup of a running guest its threads pre-empt the vCPU for some microseconds at each interval.
    Raises ENOENT when the tool is not installed, EOPNOTSUPP or EBUSY when there can be no partition.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        tool: str,
        seconds: int,
        cpus: Sequence[int],
        isolate: Sequence[int] = (),
        cgroups: dict[str, str] | None = None,
        priority: int = 95,
        interval_us: int = 1000,
    ) -> None:
        found_program = shutil.which(tool)
        if not found_program:
            raise OSError(errno.ENOENT, "%s is not installed" % tool, tool)
        program: str = found_program
        found = stack.enter_context(places(cpus, isolate, cgroups or {}))
        if len({found.get(cpu) for cpu in cpus}) > 1:
            raise ValueError("CPUs of different cgroups need a run each: %s" % list(cpus))
        inside = found.get(cpus[0])
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="evenkeel-"))
        self._tool, self._file, self._log = tool, folder + "/result.json", folder + "/log"
        self._cpus = list(cpus)
        self._last: dict[int, Any] = {}
        self._argv = argv = arguments(tool, cpus, seconds, priority, interval_us, self._file)

        def setup() -> None:
            if inside:
                join(inside)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)

        self._child = start(tool, setup, lambda: os.execv(program, argv))
        stack.callback(self._child.kill)

    def running(self) -> bool:
        return self._child.running()

    def now(self) -> list[str]:
        """How it stands, one line a CPU, and ask for the next: cyclictest says so on SIGUSR1.  oslat does not."""
        if self._tool != "cyclictest" or not self._child.running():
            return []
        with open(self._log, "rb+") as log:
            status = _STATUS.findall(log.read())
            if status:
                log.truncate(0)  # it is opened to append, and may grow for days
                self._last = {int(number): tuple(map(int, numbers)) for number, *numbers in status}
        # Until it is ready for the signal, that would end it.
        caught = parse_status(read("/proc/%d/status" % self._child.pid) or "").get("SigCgt", "0")
        if int(caught, 16) >> (signal.SIGUSR1 - 1) & 1:
            os.kill(self._child.pid, signal.SIGUSR1)
        return [
            line("CPU %d, cyclictest" % self._cpus[number], *numbers)
            for number, numbers in sorted(self._last.items())
            if number < len(self._cpus)
        ]

    def result(self) -> dict[str, Any]:
        """``{"argv": [...], "json": the tool's own document}``.  Raises EPROTO with its words when it wrote none."""
        if not os.path.exists(self._file):
            with open(self._log, errors="replace") as log_file:
                said = log_file.read().strip().splitlines()
            raise OSError(errno.EPROTO, "%s wrote no result: %s" % (self._tool, said[-1] if said else "no message"))
        with open(self._file, errors="replace") as result:
            return {"argv": self._argv, "json": json.load(result)}


class InGuest:
    """In the guest, one thread on each of ``vcpus``.  Ended with ``stack``, so that a measurement that is interrupted
    does not go on there for an hour; of a probe that is killed it goes on to its end.

    Raises ENOTCONN without a guest agent, EPROTO when the tool is not installed in the guest.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        guest: str,
        tool: str,
        seconds: int,
        vcpus: Sequence[int],
        priority: int = 95,
        interval_us: int = 1000,
    ) -> None:
        self._guest, self._tool = guest, tool
        self._argv = arguments(tool, vcpus, seconds, priority, interval_us, "/proc/self/fd/1")
        self._pid = guest_start(guest, self._argv)
        self._ran: dict[str, Any] | None = None
        stack.callback(self._end)

    def _end(self) -> None:
        if self._ran is None:
            with contextlib.suppress(OSError):  # the guest may be gone
                guest_start(self._guest, ["kill", str(self._pid)])

    def running(self) -> bool:
        if self._ran is None:
            self._ran = guest_ended(self._guest, self._pid)
        return self._ran is None

    def result(self) -> dict[str, Any]:
        """As of :class:`OnHost`."""
        ran = self._ran or {"exit": None, "stdout": "", "stderr": "it still runs"}
        begin = ran["stdout"].find("{")
        if ran["exit"] or begin < 0:
            said = (ran["stderr"].strip() or ran["stdout"].strip() or "no message").splitlines()[-1]
            raise OSError(errno.EPROTO, "%s in guest %s failed: %s" % (self._tool, self._guest, said))
        found, _end = json.JSONDecoder().raw_decode(ran["stdout"][begin:])
        return {"argv": self._argv, "json": found}
