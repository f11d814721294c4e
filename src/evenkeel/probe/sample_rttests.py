"""cyclictest and oslat of rt-tests, on a machine or inside a guest through its agent.  Gives back what they wrote.

cyclictest also tells each sample while it runs: so one knows when in the run it was late, and how it stands now.
Must not interpret the result: `evenkeel.measure` does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
from typing import Any, Sequence

from evenkeel.probe.sample_course import Lines, awk, parse_awk
from evenkeel.probe.sample_guest import guest_ended, guest_file, guest_start
from evenkeel.probe.sample_partition import join, places
from evenkeel.probe.sample_process import LOOK_S, drain, start

#: Histogram buckets of one microsecond of cyclictest; what is later is an overflow, and still counts in max.
BUCKETS = 20000
#: The most that oslat has; its last bucket holds everything later.
OSLAT_BUCKETS = 1024
#: Of the pipe from cyclictest: half a minute of one CPU.  What does not fit waits in cyclictest, 16 s of it.
_PIPE, _SET_PIPE_SIZE = 1 << 20, 1031


def arguments(tool: str, cpus: Sequence[int], seconds: int, priority: int, interval_us: int, file: str) -> list[str]:
    """The command line of ``cyclictest`` or ``oslat``.

    ``--default-system``: cyclictest must not hold the CPUs awake through /dev/cpu_dma_latency, or a host that was never
    tuned would look tuned.  oslat spins all the time, so it runs at ordinary priority: real-time throttling would stop
    it 50 ms a second, and without throttling it would stop everybody else.  ``--verbose``: each sample, by the thread
    that only waits otherwise, not by those that measure.
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
        "cyclictest", "--mlockall", "--default-system", "--policy=fifo", "--priority=%d" % priority,
        "--affinity=%s" % text, "--threads=%d" % len(cpus), "--interval=%d" % interval_us, "--distance=0",
        "--duration=%d" % seconds, "--histogram=%d" % BUCKETS, "--histfile=/dev/null", "--json=%s" % file, "--verbose",
    ]  # fmt: skip


def line(place: str, samples: int, least: int, now: int, mean: int, largest: int) -> str:
    """How a run stands, for a person, and for the live view of `evenkeel measure`.  In microseconds."""
    return "%s: %d samples, min %d, now %d, mean %d, max %d us" % (place, samples, least, now, mean, largest)


def unseen(guest: str, why: str) -> str:
    """The same for a guest of which it cannot be said."""
    return "guest %s: not seen live: %s" % (guest, why)


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
        self._file, self._log = folder + "/result.json", folder + "/log"
        self._cpus = list(cpus)
        self._lines = Lines(interval_us) if tool == "cyclictest" else None
        self._argv = argv = arguments(tool, cpus, seconds, priority, interval_us, self._file)
        self._pipe, writer = os.pipe()
        stack.callback(os.close, self._pipe)
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError):  # not root, and many pipes already
            fcntl.fcntl(writer, _SET_PIPE_SIZE, _PIPE)

        def setup() -> None:
            if inside:
                join(inside)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(writer, 1)
            os.dup2(log, 2)

        try:
            self._child = start(tool, setup, lambda: os.execv(program, argv))
        finally:
            os.close(writer)
        stack.callback(self._child.kill)

    def running(self) -> bool:
        """Whether it runs, or has told something that was not read yet."""
        running = self._child.running()
        return not self.look() or running

    def look(self, within_s: float = LOOK_S) -> bool:
        """Read what it has told so far, often enough that it need not wait; False: not all, the time was up."""
        return drain(self._pipe, self._feed, within_s)

    def _feed(self, chunk: bytes) -> None:
        if self._lines:
            self._lines.feed(chunk)

    def now(self) -> list[str]:
        """How it stands, one line a CPU.  oslat does not say."""
        self.look()
        return [
            line("CPU %d, cyclictest" % self._cpus[number], *one.standing())
            for number, one in sorted(self._lines.threads.items() if self._lines else ())
            if number < len(self._cpus)
        ]

    def result(self) -> dict[str, Any]:
        """``{"argv": [...], "json": the tool's own document, "courses": of Lines.courses()}``.

        Raises EPROTO with its words when it wrote none.
        """
        self.look(math.inf)  # the tool has ended
        if not os.path.exists(self._file):
            with open(self._log, errors="replace") as log_file:
                said = log_file.read().strip().splitlines()
            raise OSError(errno.EPROTO, "%s wrote no result: %s" % (self._argv[0], said[-1] if said else "no message"))
        with open(self._file, errors="replace") as result:
            courses = self._lines.courses() if self._lines else {}
            return {"argv": self._argv, "json": json.load(result), "courses": courses}


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
        live: bool = False,
    ) -> None:
        self._guest, self._tool, self._vcpus = guest, tool, list(vcpus)
        self._ran: dict[str, Any] | None = None
        self._live = self._dumb = ""
        self._argv = arguments(tool, vcpus, seconds, priority, interval_us, "/proc/self/fd/2")
        self._pid = self._start(interval_us, live)
        stack.callback(self._end)

    def _start(self, interval_us: int, live: bool) -> int:
        if self._tool != "cyclictest":
            self._dumb = "%s says nothing before its end" % self._tool
            return guest_start(self._guest, self._argv)
        file = "/run/evenkeel-live-%d-%s" % (os.getpid(), os.urandom(4).hex()) if live else ""
        try:
            pid = guest_start(self._guest, awk(self._argv, interval_us, file))
        except OSError as error:
            if error.errno != errno.EPROTO:
                raise
            self._dumb = "there is no awk in the guest"
            return guest_start(self._guest, self._argv)
        self._live = file
        return pid

    def _end(self) -> None:
        if self._ran is None:
            with contextlib.suppress(OSError):  # the guest may be gone
                guest_start(self._guest, ["kill", str(self._pid)])
        if self._live:
            with contextlib.suppress(OSError):
                guest_start(self._guest, ["rm", "-f", self._live])

    def running(self) -> bool:
        if self._ran is None:
            self._ran = guest_ended(self._guest, self._pid)
        return self._ran is None

    def now(self) -> list[str]:
        """How it stands, one line a vCPU; or why that cannot be seen."""
        if self._dumb:
            return [unseen(self._guest, self._dumb)]
        try:
            rows = [row.split() for row in guest_file(self._guest, self._live).decode().splitlines()]
        except OSError as error:
            # Before its first second there is no such file.
            return [] if error.errno == errno.ENOENT else [unseen(self._guest, error.strerror or "no answer")]
        numbers = sorted([int(word) for word in row] for row in rows if len(row) == 6 and "".join(row).isdecimal())
        return [
            line("guest %s, vCPU %d, cyclictest" % (self._guest, self._vcpus[thread]), *standing)
            for thread, *standing in numbers
            if thread < len(self._vcpus)
        ]

    def result(self) -> dict[str, Any]:
        """As of :class:`OnHost`."""
        ran = self._ran or {"exit": None, "stdout": "", "stderr": "it still runs"}
        begin = ran["stderr"].find("{")
        if ran["exit"] or begin < 0:
            said = (ran["stderr"].strip() or ran["stdout"].strip() or "no message").splitlines()[-1]
            raise OSError(errno.EPROTO, "%s in guest %s failed: %s" % (self._tool, self._guest, said))
        found, _end = json.JSONDecoder().raw_decode(ran["stderr"][begin:])
        return {"argv": self._argv, "json": found, "courses": parse_awk(ran["stdout"])}
