"""Load beside a measurement: generators on the CPUs that they are given, and the proof of where they really ran.

All but hackbench are made of the standard library, so a host needs nothing installed.  They end with the probe, however
that ends, and leave no file.  Must not decide whether a load was good enough: it says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import tempfile
import time
from typing import Any, Callable, Iterator, Sequence

from evenkeel.probe.sample import expand, read
from evenkeel.probe.sample_proc import cpu_seconds, parse_stat, parse_status
from evenkeel.probe.sample_process import Child, start, start_tree
from evenkeel.probe.sample_veth import join_with, leave_network, received, receiving, switch_on

#: Forty processes a group of hackbench have to be forked and to find each other before the load is a load.
HACKBENCH_WARM_UP_S = 2.0
#: For the generators to do their first piece of work.
WARM_UP_S = 10.0
#: Share of its CPUs below which a load of kind cpu was none.
STARVED = 0.02
#: Bytes of memory that all generators of kind cpu copy around together, and of one file of kind io.
_MEMORY, _FILE, _BLOCK = 256 << 20, 64 << 20, 64 << 10
_MOST_FILES, _MOST_PAIRS = 4, 8
#: Of kind net, in namespaces of their own.
_NEAR, _FAR, _PORT = "192.0.2.1", "192.0.2.2", 7777
_PR_SET_TIMERSLACK = 29


class Load:
    """What runs beside a measurement."""

    def __init__(self, generators: Sequence[Generator], words: str) -> None:
        self._generators = generators
        self._words = words

    def text(self) -> str:
        """``"idle"``, ``"hackbench -g 2 on 0-7"``, ``"cpu,io on 0-1"``."""
        return self._words

    def look(self) -> None:
        """Note where everything is just now.  To be called about once a second."""
        for generator in self._generators:
            generator.look()

    def report(self) -> list[dict[str, Any]]:
        """For each kind what it did since it began: the fields of LoadRun of evenkeel.documents.evidence."""
        return [generator.report() for generator in self._generators]

    def check(self) -> None:
        """Raises ValueError when it is not the load that was asked for."""
        for run in self.report():
            if run["trouble"]:
                raise ValueError("the load %s: %s" % (run["kind"], run["trouble"]))


@contextlib.contextmanager
def under_load(load: dict[str, Any] | None, tell: Callable[[str], None] = lambda what: None) -> Iterator[Load]:
    """Run a load until the end of the block.

    ``{"kinds": ["cpu", "io", "net", "irq"], "cpus": [0, 1]}``: placed there.  ``{"tool": "hackbench", "groups": n}``:
    many processes that wake each other all the time, wherever the scheduler puts them.
    ``tell`` is told what begins: beside loads that run already the next one takes its time to start.
    Raises ENOENT when hackbench is not installed, EINVAL for CPUs that may not be used, EPROTONOSUPPORT where
    the kernel has no veth for net, ValueError for an unknown kind.
    """
    if not load:
        yield Load([], "idle")
        return
    with contextlib.ExitStack() as stack:
        if load.get("tool") == "hackbench":
            groups = int(load.get("groups") or max(1, (os.cpu_count() or 4) // 4))
            hackbench = Hackbench(groups)
            stack.callback(hackbench.end)
            time.sleep(HACKBENCH_WARM_UP_S)
            hackbench.begin()
            words = "hackbench -g %d on %s" % (groups, hackbench.allowed())
            yield Load([hackbench], words)
            return
        generators: list[Placed] = []
        for kind in load.get("kinds") or [load.get("tool")]:
            if kind not in _START:
                raise ValueError("%r is no load that the probe knows" % kind)
            generator = Placed(kind, sorted(load["cpus"]))
            stack.callback(generator.end)
            tell("starting the load %s" % kind)
            _START[kind](generator)
            generators.append(generator)
        deadline = time.monotonic() + WARM_UP_S
        while time.monotonic() < deadline and not all(one.busy() for one in generators):
            tell("the load warms up")
            time.sleep(0.05)
        for one in generators:
            one.begin()
        yield Load(generators, "%s on %s" % (",".join(one.kind for one in generators), _list(load["cpus"])))


class Generator:
    """Processes of one kind of load."""

    kind = ""

    def begin(self) -> None:
        """What is reported is what happens from here on."""
        raise NotImplementedError

    def look(self) -> None:
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class Hackbench(Generator):
    """The classical enemy of a quiet CPU."""

    kind = "hackbench"

    def __init__(self, groups: int) -> None:
        self._child = start_tree(["hackbench", "-g", str(groups), "-l", "100000000"])
        self._seen: set[int] = set()
        self._start_s = time.monotonic()
        self._used_s = 0.0

    def allowed(self) -> str:
        return parse_status(read("/proc/%d/status" % self._child.pid) or "").get("Cpus_allowed_list", "")

    def begin(self) -> None:
        self._start_s, self._used_s = time.monotonic(), sum(map(_used, self._processes()))
        self.look()

    def look(self) -> None:
        for pid in self._processes():
            stat = parse_stat(read("/proc/%d/stat" % pid) or "")
            if stat:
                self._seen.add(stat.cpu)

    def report(self) -> dict[str, Any]:
        self.look()
        processes = self._processes()
        return {
            "kind": self.kind,
            "cpus": None,
            "seen": sorted(self._seen),
            "processes": len(processes),
            "operations": None,
            "cpu_seconds": round(max(0.0, sum(map(_used, processes)) - self._used_s), 2),
            "seconds": round(time.monotonic() - self._start_s, 2),
            "trouble": "" if self._child.running() and processes else "it ended before the measurement did",
        }

    def end(self) -> None:
        self._child.kill()

    def _processes(self) -> list[int]:
        """Its workers; CONFIG_PROC_CHILDREN is in every distribution's kernel, and without it only itself is seen."""
        if not self._child.running():
            return []
        pid = self._child.pid
        children = (read("/proc/%d/task/%d/children" % (pid, pid)) or "").split()
        return [int(child) for child in children] or [pid]


class Placed(Generator):
    """Processes that are each pinned to one of ``cpus``, and count their pieces of work in shared memory."""

    def __init__(self, kind: str, cpus: list[int]) -> None:
        if not cpus:
            raise OSError(errno.EINVAL, "there is no CPU to put the load %s on" % kind)
        self.kind, self.cpus = kind, cpus
        self._children: list[Child] = []
        self._pinned: list[int] = []
        self._work = mmap.mmap(-1, mmap.PAGESIZE * max(1, -(-8 * (2 * len(cpus) + 2 * _MOST_PAIRS) // mmap.PAGESIZE)))
        self._seen: set[int] = set()
        self._stray: set[int] = set()
        self._begin: list[int] = []
        self._start_s = self._used_s = 0.0
        self._packets = 0
        self._receiving: dict[int, int] = {}

    def add(
        self, cpu: int, work: Callable[[Callable[[], None]], None], prepare: Callable[[], None] | None = None
    ) -> int:
        """One process on ``cpu``; returns its number.  ``work`` calls what it is given after each piece of work, and
        does not return.  Raises the OSError of ``prepare``, which it calls before.
        """
        slot = 8 * len(self._children)

        def forever() -> None:
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                struct.pack_into("<Q", self._work, slot, done)

            work(tick)

        def setup() -> None:
            os.sched_setaffinity(0, {cpu})
            if prepare:
                prepare()

        self._children.append(start("evk-load-" + self.kind, setup, forever))
        self._pinned.append(cpu)
        return self._children[-1].pid

    def busy(self) -> bool:
        return all(self._done(number) for number in range(len(self._children)))

    def begin(self) -> None:
        self._begin = [self._done(number) for number in range(len(self._children))]
        self._used_s = sum(_used(child.pid) for child in self._children)
        self._packets, self._receiving = self._received(), receiving()
        self._start_s = time.monotonic()
        self.look()

    def look(self) -> None:
        for child, cpu in zip(self._children, self._pinned):  # noqa: B905
            stat = parse_stat(read("/proc/%d/stat" % child.pid) or "")
            allowed = parse_status(read("/proc/%d/status" % child.pid) or "").get("Cpus_allowed_list", "")
            if stat and child.running():
                self._seen.add(stat.cpu)
                self._stray |= ({stat.cpu} | expand(allowed)) - {cpu}

    def report(self) -> dict[str, Any]:
        self.look()
        seconds = time.monotonic() - self._start_s
        done = [self._done(number) - begin for number, begin in enumerate(self._begin)]
        used_s = max(0.0, sum(_used(child.pid) for child in self._children if child.running()) - self._used_s)
        network: dict[str, Any] = {}
        if self.kind == "net":
            now = receiving()
            network["packets"] = max(0, self._received() - self._packets)
            network["softirqs"] = sorted(cpu for cpu, count in now.items() if count > self._receiving.get(cpu, 0))
        return {
            **network,
            "kind": self.kind,
            "cpus": _list(self.cpus),
            "seen": sorted(self._seen),
            "processes": len(self._children),
            "operations": sum(done),
            "cpu_seconds": round(used_s, 2),
            "seconds": round(seconds, 2),
            "trouble": self._trouble(done, used_s / (max(seconds, 1e-3) * len(self._children)), network),
        }

    def _received(self) -> int:
        return sum(received(child.pid) for child in self._children) if self.kind == "net" else 0

    def _trouble(self, done: list[int], share: float, network: dict[str, Any]) -> str:
        ended = sum(not child.running() for child in self._children)
        idle = sorted({cpu for cpu, work in zip(self._pinned, done) if work <= 0})  # noqa: B905
        if ended:
            return "%d of its %d processes ended before the measurement did" % (ended, len(self._children))
        if self._stray:
            return "it could run on CPU %s, which it was not given" % _list(self._stray)
        if idle:
            return "it did nothing on CPU %s" % _list(idle)
        if network and not network["packets"]:
            return "no packet came in over its network interfaces"
        if network and not set(network["softirqs"]) & set(self._pinned):
            return "no soft interrupt of a received packet ran on its CPUs"
        if self.kind == "cpu" and share < STARVED:
            return "it got only %.1f %% of its CPUs" % (100 * share)
        return ""

    def end(self) -> None:
        for child in self._children:
            child.kill()

    def _done(self, number: int) -> int:
        return int(struct.unpack_from("<Q", self._work, 8 * number)[0])


# -- what they do -------------------------------------------------------------------------------------------------


def _start_cpu(generator: Placed) -> None:
    """On each CPU: arithmetic, and copies of more memory than a cache holds."""
    size = max(1 << 20, min(16 << 20, _MEMORY // len(generator.cpus) // 2))

    def work(tick: Callable[[], None]) -> None:
        source, target = bytearray(size), bytearray(size)
        while True:
            target[:] = source
            sum(range(20_000))
            tick()

    for cpu in generator.cpus:
        generator.add(cpu, work)


def _start_io(generator: Placed) -> None:
    """Up to four files without a name below /var/tmp: written at random places, forced to the disk, read back."""

    def work(tick: Callable[[], None]) -> None:
        with _unnamed_file() as file:
            block, place = os.urandom(_BLOCK), 0
            while True:
                place = (place * 1103515245 + 12345) % (_FILE // _BLOCK)  # as good as random, and no system call
                os.pwrite(file, block, place * _BLOCK)
                os.fdatasync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(file, _BLOCK, place * _BLOCK)
                tick()

    for cpu in generator.cpus[:_MOST_FILES]:
        generator.add(cpu, work)


@contextlib.contextmanager
def _unnamed_file() -> Iterator[int]:
    try:
        file = os.open("/var/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)
    except OSError:  # a file system without O_TMPFILE
        file, name = tempfile.mkstemp(prefix="evenkeel-load-", dir="/var/tmp")
        os.unlink(name)
    try:
        yield file
    finally:
        os.close(file)


def _start_net(generator: Placed) -> None:
    """TCP between pairs of CPUs, 64 KiB there and a byte back, each pair over two network interfaces of its own: both
    stacks, soft interrupts and wake-ups, in packets as a card takes them.
    """

    def receive(tick: Callable[[], None]) -> None:
        switch_on(_FAR)
        with socket.create_server((_FAR, _PORT)) as server:
            far, _ = server.accept()
        target = bytearray(_BLOCK)
        while True:
            got = 0
            while got < _BLOCK:
                count = far.recv_into(target)
                if not count:
                    return
                got += count
            far.sendall(b".")
            tick()

    def send(tick: Callable[[], None]) -> None:
        switch_on(_NEAR)
        near, chunk = _connected(), bytes(_BLOCK)
        while True:
            near.sendall(chunk)
            if not near.recv(1):
                return
            tick()

    cpus = generator.cpus
    for first in range(0, max(1, len(cpus) - 1), 2)[:_MOST_PAIRS]:
        try:
            far_pid = generator.add(cpus[min(first + 1, len(cpus) - 1)], receive, leave_network)

            def joined(pid: int = far_pid) -> None:
                leave_network()
                join_with(pid)

            generator.add(cpus[first], send, joined)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a CPU that may not be used
                raise
            raise OSError(
                errno.EPROTONOSUPPORT, "the load net needs a pair of virtual network interfaces: %s" % error.strerror
            ) from None


def _connected() -> socket.socket:
    """To the other end, as soon as it listens.  Raises OSError when it does not within ten seconds."""
    until = time.monotonic() + WARM_UP_S
    while True:
        try:
            return socket.create_connection((_FAR, _PORT), timeout=None)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _start_irq(generator: Placed) -> None:
    """On each CPU: a timer interrupt every 100 us, and a wake-up from the next CPU, which comes as an interrupt too."""
    libc = ctypes.CDLL(None)
    pipes = [os.pipe() for _ in generator.cpus]
    for reader, writer in pipes:
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    def worker(reader: int, writer: int) -> Callable[[Callable[[], None]], None]:
        def work(tick: Callable[[], None]) -> None:
            libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
            while True:
                time.sleep(1e-4)
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, b".")
                with contextlib.suppress(BlockingIOError):
                    os.read(reader, 4096)
                tick()

        return work

    for number, cpu in enumerate(generator.cpus):
        generator.add(cpu, worker(pipes[number][0], pipes[(number + 1) % len(pipes)][1]))
    for reader, writer in pipes:
        os.close(reader)
        os.close(writer)


_START: dict[Any, Callable[[Placed], None]] = {
    "cpu": _start_cpu,
    "io": _start_io,
    "net": _start_net,
    "irq": _start_irq,
}


# -- small parts --------------------------------------------------------------------------------------------------


def _used(pid: int) -> float:
    """CPU seconds of a process so far; 0 when it is gone."""
    return cpu_seconds(read("/proc/%d/stat" % pid) or "")


def _list(cpus: Any) -> str:
    from evenkeel.probe.facts.cpulist import format_list

    return format_list(set(cpus))
