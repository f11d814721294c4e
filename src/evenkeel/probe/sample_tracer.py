"""The kernel's own tracers through tracefs.  timerlat: how late a timer interrupt came, and the thread that it woke.
osnoise: for how long a busy loop was stopped, at most, in each second.

They measure in the kernel, so they need no program.  Their settings are put back, and their instance is removed, by a
process of its own, which outlives a probe that was killed.  Must not interpret the result: `evenkeel.measure` does.

Source: Documentation/trace/timerlat-tracer.rst, osnoise-tracer.rst (5.14 and newer, where the kernel has them).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import signal
import time
from typing import Any, Sequence

from evenkeel.probe.sample import read
from evenkeel.probe.sample_course import Course
from evenkeel.probe.sample_partition import places
from evenkeel.probe.sample_process import LOOK_S, drain
from evenkeel.probe.sample_rttests import line

TRACEFS = "/sys/kernel/tracing"
#: Buckets of :mod:`evenkeel.documents.histogram`, in nanoseconds (a test holds both to the same edges).
BITS = 7
_BUFFER_KB = 4096
_TRACERS = ("timerlat", "osnoise")
#: RUNTIME in us, NOISE in us, % OF CPU AVAILABLE, MAX SINGLE NOISE in us, then HW, NMI, IRQ, SIRQ, THREAD.
_NOISE = re.compile(rb"\[(\d+)\][^[#\n]*: +\d+ +\d+ +\d+\.\d+ +(\d+)(?: +\d+){5} *$", re.MULTILINE)
#: A task may call itself what it likes, also "[7]": the CPU is the last such word.
_LINE = re.compile(rb"\[(\d+)\][^[#\n]*#(\d+)\s+context\s+(irq|thread)\s+timer_latency\s+(\d+) ns")


class Tracer:
    """A tracer on each of ``cpus``: ``timerlat``, woken each ``interval_us``, as threads of the kernel at FIFO 95; or
    ``osnoise``, as threads of the kernel at ordinary priority that take all of the CPU.

    Raises ENOENT where the kernel has no such tracer, EBUSY while somebody else uses one, EPERM when not root.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        tool: str,
        cpus: Sequence[int],
        isolate: Sequence[int] = (),
        cgroups: dict[str, str] | None = None,
        interval_us: int = 1000,
    ) -> None:
        if tool not in (read(TRACEFS + "/available_tracers") or "").split():
            raise OSError(errno.ENOENT, "this kernel has no %s tracer" % tool, TRACEFS)
        _refuse_when_used()
        stack.enter_context(places(cpus, isolate, cgroups or {}))
        self._counts = Counts(interval_us)
        self._tool = tool
        self._instance = "%s/instances/evenkeel-%d" % (TRACEFS, os.getpid())
        text = ",".join(str(cpu) for cpu in sorted(cpus))
        wanted = {TRACEFS + "/osnoise/cpus": text}
        if tool == "timerlat":
            wanted[TRACEFS + "/osnoise/timerlat_period_us"] = str(interval_us)
        self._argv = [tool, *("%s=%s" % (os.path.basename(path), value) for path, value in wanted.items())]
        stack.callback(_keeper(self._instance, {path: (read(path) or "").strip() for path in wanted}))
        os.mkdir(self._instance)
        for path, value in wanted.items():
            _write(path, value)
        _write(self._instance + "/buffer_size_kb", str(_BUFFER_KB))
        _write(self._instance + "/current_tracer", tool)
        self._pipe = os.open(self._instance + "/trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, self._pipe)
        #: When it was stopped, by the monotonic clock.
        self.until: float | None = None

    def look(self, within_s: float = LOOK_S) -> bool:
        """Read what is there; False: not all of it, the time was up.  To be called often enough that 4 MiB a CPU hold
        what comes meanwhile: 20 s and more.

        Where it comes faster than it can be read, the kernel overwrites it, and its numbers tell how much was lost.
        """
        return drain(self._pipe, self._counts.feed, within_s)

    def now(self) -> list[str]:
        """How it stands, one line a CPU."""
        found = []
        for cpu, kinds in sorted(self._counts.found.items()):
            for context, one in sorted(kinds.items()):
                if context == "irq":
                    continue
                mean = one["sum"] // one["samples"]
                numbers = [number // 1000 for number in (one["min"], one["now"], mean, one["max"])]
                found.append(line("CPU %d, %s" % (cpu, self._tool), one["samples"], *numbers))
        return found

    def stop(self) -> None:
        """No more comes; what there is is still to be read, which takes long where millions of lines wait."""
        if self.until is None:
            _write(self._instance + "/tracing_on", "0")
            self.until = time.monotonic()

    def result(self) -> dict[str, Any]:
        """``{"argv": [...], "kernel": release, "cpus": {cpu: {"irq": {...}, "thread": {...}, "noise": {...}}}}``, see
        Counts.result().
        """
        self.stop()
        self.look(math.inf)
        return {"argv": self._argv, "kernel": os.uname().release, "cpus": self._counts.result()}


class Counts:
    """Histograms from the text of ``trace_pipe``, fed in pieces that may end anywhere."""

    def __init__(self, interval_us: int) -> None:
        self._interval_us = interval_us
        self._rest = b""
        self.found: dict[int, dict[str, dict[str, Any]]] = {}

    def feed(self, chunk: bytes) -> None:
        text = self._rest + chunk
        end = text.rfind(b"\n") + 1
        self._rest = text[end:]
        for match in _LINE.finditer(text, 0, end):
            self._add(int(match[1]), int(match[2]), match[3].decode(), int(match[4]))
        for match in _NOISE.finditer(text, 0, end):
            self._add(int(match[1]), 0, "noise", 1000 * int(match[2]))  # it has no number

    def _add(self, cpu: int, number: int, context: str, latency: int) -> None:
        kinds = self.found.setdefault(cpu, {})
        start = {"counts": {}, "samples": 0, "sum": 0, "min": latency, "max": latency, "course": Course()}
        one = kinds.setdefault(context, start)
        # osnoise sums up once a second and does not number its lines; timerlat numbers its periods, from 1 on.
        at_us = 1_000_000 * one["samples"] if context == "noise" else self._interval_us * max(0, number - 1)
        one["course"].add(at_us, latency)
        shift = max(0, latency.bit_length() - 1 - BITS)
        low = latency >> shift << shift
        one["counts"][low] = one["counts"].get(low, 0) + 1
        one["samples"] += 1
        one["sum"] += latency
        one["now"] = latency
        one["min"], one["max"] = min(one["min"], latency), max(one["max"], latency)
        one["last"] = max(one.get("last", number), number)

    def result(self) -> dict[str, dict[str, Any]]:
        """CPU (as text) -> irq and thread, or noise: ``counts`` (lower edge in ns -> samples), ``samples, sum, min,
        max, lost``, and ``course`` as :mod:`evenkeel.probe.sample_course` gives it.

        The kernel numbers each activation from 1 on, so what is missing up to the last number was lost.
        """
        answer: dict[str, dict[str, Any]] = {}
        for cpu, kinds in sorted(self.found.items()):
            answer[str(cpu)] = {
                context: {
                    **{key: one[key] for key in ("counts", "samples", "sum", "min", "max")},
                    "lost": max(0, one["last"] - one["samples"]),
                    "course": one["course"].result(),
                }
                for context, one in kinds.items()
            }
        return answer


def _refuse_when_used() -> None:
    instances = TRACEFS + "/instances"
    for folder in [TRACEFS] + ["%s/%s" % (instances, name) for name in sorted(os.listdir(instances))]:
        tracer = (read(folder + "/current_tracer") or "").strip()
        if tracer in _TRACERS:
            raise OSError(errno.EBUSY, "the tracer %s is in use" % tracer, folder + "/current_tracer")


def _keeper(instance: str, old: dict[str, str]) -> Any:
    """Start the process that puts everything back when this one says so, or is gone.  Returns how to say so.

    The tracer would go on for ever otherwise: it belongs to no process.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # Nothing of the probe's must stay open here, or whoever waits for its end would wait for this process.
            quiet = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(quiet, descriptor)
            os.dup2(reader, 3)
            os.closerange(4, 4096)
            os.read(3, 1)
            put_back(instance, old)
        finally:
            os._exit(0)
    os.close(reader)

    def done() -> None:
        os.write(writer, b".")  # children that were started meanwhile hold the pipe open, too
        os.close(writer)
        os.waitpid(pid, 0)

    return done


def put_back(instance: str, old: dict[str, str]) -> None:
    """Switch the tracer of the instance off, remove that, and write the old settings."""
    with contextlib.suppress(OSError):
        _write(instance + "/current_tracer", "nop")
    with contextlib.suppress(OSError):
        os.rmdir(instance)
    for path, value in old.items():
        with contextlib.suppress(OSError):
            _write(path, value)


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode() + b"\n")
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(descriptor)
