"""The ways to see an event, one class each: what it needs, how a program hangs on it, and what it really is.

A *hook* runs a BPF program at an event; a *counter* only counts.  Making one tries it: what this kernel refuses is
a StepFailed with the kernel's errno, never a guess from its version.  Which one is cheapest is decided by
`evenkeel.measure.trace`.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Callable, Sequence

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import bpf, btf, perf, syscalls, templates, tracefs
from evenkeel.probe.trace.assembler import R0, R1, R2, R3, R6, R7, Assembler

#: Bit of a 32-bit call in thread_info.status (arch/x86/include/asm/thread_info.h: TS_COMPAT).
_TS_COMPAT = 0x2
_ENTER = "syscalls:sys_enter_"
#: Whoever runs, as fields of its task.
_OF_TASK = {"process": "tgid", "thread": "pid"}

#: Event -> its fields that lie behind pointers in the arguments: field -> (argument, structure, field there).
#: Arguments of a raw tracepoint are no promise of the kernel, so BTF must say the same, or the source is refused.
_BEHIND = {
    "sched:sched_switch": {
        "prev_pid": (1, "task_struct", "pid"),
        "next_pid": (2, "task_struct", "pid"),
        "next_comm": (2, "task_struct", "comm"),
    },
    "sched:sched_waking": {"pid": (0, "task_struct", "pid")},
    "sched:sched_wakeup": {"pid": (0, "task_struct", "pid")},
    "sched:sched_wakeup_new": {"pid": (0, "task_struct", "pid")},
}


def refused(error: OSError, doing: str) -> StepFailed:
    """The kernel's no, as it is: a table of sources wants the errno and not a cure."""
    return StepFailed("%s: %s" % (doing, error.strerror or error), error.errno)


class Hook:
    """A place where a program runs at each event.  :meth:`load` once, then :meth:`attach` as often as wanted."""

    name = ""
    #: What its programs give back.  On an event of perf 0 hides the event from all other users of perf; a trampoline
    #: takes nothing but 0.
    result = 0

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        """``cpus``: only what happens there; ``process``: only what its threads do; None: everything.

        Raises StepFailed where there is no such event.
        """
        self.event = event
        self.cpus = cpus
        self.process = process
        self.program: bpf.Program | None = None
        self._held: list[Any] = []

    @property
    def alone(self) -> bool:
        """Whether no second run of the program can begin on a CPU before the first has ended.

        A tracepoint runs its programs with preemption off, and no interrupt makes a system call.  A trampoline leaves
        out the second run, and counts it as missed (since 5.12).
        """
        return self.event.startswith("syscalls:")

    def select(self, asm: Assembler) -> None:
        """Code that jumps to "out" when it is not this event, not on one of the CPUs, or somebody else."""
        asm.result = self.result
        if self.process is not None:
            self.current("process").emit(asm, R0)
            asm.jump_if(R0, "!=", self.process, "out")
        if self.cpus is not None:
            from evenkeel.probe.facts.cpulist import ranges  # with all of the facts: see question.py

            asm.call(bpf.HELPERS["get_smp_processor_id"])
            for first, last in ranges(self.cpus):
                above = asm.fresh("above")
                asm.jump_if(R0, ">", last, above)
                asm.jump_if(R0, ">=", first, "wanted CPU")
                asm.label(above)
            asm.jump("out")
            asm.label("wanted CPU")

    def field(self, name: str) -> templates.Value:
        """How a program reads a field of the event.  Raises StepFailed where it cannot."""
        raise StepFailed("%s does not have the fields of %s" % (self.name, self.event), errno.EOPNOTSUPP)

    def current(self, what: str) -> templates.Value:
        """Whoever runs: see :class:`.templates.Current`.  Read at once behind :meth:`select`."""
        return templates.Current(what)

    def switched_out(self) -> templates.Value:
        """Of sched_switch: the state in which it leaves its thread behind.  Raises StepFailed."""
        return self.field("prev_state")

    def text(self, name: str) -> templates.Text:
        """Where a field of text begins.  Raises StepFailed."""
        found = self.field(name)
        assert isinstance(found, (templates.Record, templates.Pointed))
        return found

    def load(self, code: bytes, purpose: str) -> None:
        """Raises StepFailed with the verifier's words."""
        raise NotImplementedError

    def attach(self) -> None:
        """From here on the program runs.  Raises StepFailed."""
        raise NotImplementedError

    def detach(self) -> None:
        """The program runs no more; it stays loaded."""
        while self._held:
            self._held.pop().close()

    def mechanism(self) -> str:
        """What it really is, in the kernel's own words where it has some."""
        return "BPF on a %s" % self.name

    def close(self) -> None:
        self.detach()
        if self.program is not None:
            self.program.close()
            self.program = None


class RawTracepoint(Hook):
    """A program straight on a tracepoint: no record is made, arguments only.  Since Linux 4.17."""

    name = "raw_tp"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        self._call: int | None = None
        tracefs.event_id(event)  # there is such an event at all
        self.point = event.partition(":")[2]
        if event.startswith("syscalls:"):
            self._call = call_number(event)
            self.point = "sys_enter"

    def select(self, asm: Assembler) -> None:
        if self._call is not None:
            self._select_call(self._call, asm)
        super().select(asm)

    def _select_call(self, number: int, asm: Assembler) -> None:
        asm.load(8, R1, R6, 8)
        asm.jump_if(R1, "!=", number, "out")
        # The same number is another call in a 32-bit program, and in a 64-bit one that says int 0x80.
        offset, size = _compat_status()
        asm.call(bpf.HELPERS["get_current_task_btf"])
        asm.mov(R7, R0)
        asm.load(size, R1, R7, offset)
        asm.jump_if(R1, "&", _TS_COMPAT, "out")

    def current(self, what: str) -> templates.Value:
        """Of a system call its program has the task at hand."""
        place = vmlinux().field("task_struct", _OF_TASK[what]) if self._call is not None and what in _OF_TASK else None
        return templates.OfTask(R7, *place) if place is not None else super().current(what)

    def load(self, code: bytes, purpose: str) -> None:
        self.program = bpf.Program(bpf.RAW_TRACEPOINT, code, name="ek_raw_tp", purpose=purpose)

    def attach(self) -> None:
        assert self.program is not None
        try:
            self._held.append(bpf.attach_raw(self.program, self.point))
        except OSError as error:
            raise refused(error, "cannot attach to the raw tracepoint %s" % self.point) from None

    def mechanism(self) -> str:
        return "BPF on the raw tracepoint %s%s" % (self.point, self._filter())

    def _filter(self) -> str:
        return ", call number %d" % self._call if self._call is not None else ""


class BtfTracepoint(RawTracepoint):
    """As a raw tracepoint, and the kernel's type information lets the program read behind pointers.  Since 5.5."""

    name = "tp_btf"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        self._id = vmlinux().tracepoint(self.point)
        if self._id is None:
            raise StepFailed("BTF has no tracepoint %s" % self.point, errno.ENOENT)

    def _select_call(self, number: int, asm: Assembler) -> None:
        """As a raw tracepoint, and a call by the 64-bit instruction is seen in its registers, without a helper: that
        puts the address behind it into rcx and the flags into r11.  Where it does not (FRED), the task is asked.
        """
        places = [vmlinux().field("pt_regs", name) for name in ("cx", "ip", "r11", "flags")]
        registers = [place[0] for place in places if place is not None]
        if len(registers) == 4:
            asm.load(8, R1, R6, 8)
            asm.jump_if(R1, "!=", number, "out")
            asm.load(8, R1, R6, 0)
            for same in (registers[:2], registers[2:]):
                asm.load(8, R2, R1, same[0])
                asm.load(8, R3, R1, same[1])
                asm.jump_if(R2, "!=", R3, "ask the task")
            asm.jump("64-bit")
            asm.label("ask the task")
        super()._select_call(number, asm)
        if len(registers) == 4:
            asm.label("64-bit")

    def current(self, what: str) -> templates.Value:
        """The task is not at hand here; to ask for it is all the same cheaper than for its numbers."""
        found = super().current(what)
        return found._replace(task=None) if isinstance(found, templates.OfTask) else found

    def field(self, name: str) -> templates.Value:
        behind = _BEHIND.get(self.event, {}).get(name)
        if behind is None:
            raise StepFailed(
                "which argument of %s holds %s is not known here; its record does have it" % (self.event, name),
                errno.EOPNOTSUPP,
            )
        argument, structure, path = behind
        assert self._id is not None
        types = vmlinux().pointer_arguments(self._id)
        place = vmlinux().field(structure, path)
        if types[argument : argument + 1] != [structure] or place is None:
            raise StepFailed("argument %d of %s is no %s here" % (argument, self.event, structure), errno.EOPNOTSUPP)
        return templates.Pointed(argument, *place)

    def switched_out(self) -> templates.Value:
        assert self._id is not None
        if vmlinux().pointer_arguments(self._id) != ["", "task_struct", "task_struct", ""]:
            raise StepFailed("sched_switch does not pass the state here, as it does since 5.18", errno.EOPNOTSUPP)
        return templates.SwitchedOut(0, 3)

    def load(self, code: bytes, purpose: str) -> None:
        self.program = bpf.Program(
            bpf.TRACING, code, name="ek_tp_btf", expected=bpf.TRACE_RAW_TP, btf_id=self._id or 0, purpose=purpose
        )

    def attach(self) -> None:
        assert self.program is not None
        try:
            self._held.append(bpf.attach_raw(self.program, None))
        except OSError as error:
            raise refused(error, "cannot attach to the BTF tracepoint %s" % self.point) from None

    def mechanism(self) -> str:
        return "BPF on the BTF tracepoint %s%s" % (self.point, self._filter())


class Tracepoint(Hook):
    """A program that gets the event's record, as perf would; its fields are a promise of the kernel.  Since 4.7."""

    name = "tracepoint"
    result = 1

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        super().__init__(event, cpus, process)
        self._id = tracefs.event_id(event)

    def field(self, name: str) -> templates.Value:
        known = tracefs.fields(self.event)
        if name not in known:
            own = ", ".join(one for one in known if not one.startswith("common_"))
            raise StepFailed("%s has no field %s; it has %s" % (self.event, name, own), errno.ENOENT)
        found = known[name]
        if found.size not in (1, 2, 4, 8):
            raise StepFailed("%s of %s is no number" % (name, self.event), errno.EINVAL)
        return templates.Record(found.offset, found.size)

    def text(self, name: str) -> templates.Text:
        return templates.Record(tracefs.fields(self.event)[name].offset, 0)

    def load(self, code: bytes, purpose: str) -> None:
        self.program = bpf.Program(bpf.TRACEPOINT, code, name="ek_tracepoint", purpose=purpose)

    def attach(self) -> None:
        """A tracepoint's program runs whichever CPU its perf event is for, so one event is enough.

        It is not switched on: the program runs all the same, and on the event's CPU perf would count besides, which
        was a third of the cost there.
        """
        assert self.program is not None
        try:
            event = perf.Event(perf.TRACEPOINT, self._id, perf.online_cpus()[0])
            self._held.append(event)
            event.attach(self.program)
        except OSError as error:
            self.detach()
            raise refused(error, "cannot attach to the tracepoint %s" % self.event) from None

    def mechanism(self) -> str:
        return "BPF on the tracepoint %s" % self.event


class Samples(Hook):
    """Not an event but a clock: the program sees what runs on each CPU so many times a second."""

    name = "sampling"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        """``event``: the frequency in hertz."""
        super().__init__(event, cpus, process)
        self._hertz = int(event)

    def load(self, code: bytes, purpose: str) -> None:
        self.program = bpf.Program(bpf.PERF_EVENT, code, name="ek_samples", purpose=purpose)

    def attach(self) -> None:
        assert self.program is not None
        clock = perf.SOFTWARE_EVENTS["cpu-clock"]
        try:
            events = perf.on_every_cpu(perf.SOFTWARE, clock, cpus=self.cpus, frequency_hz=self._hertz)
            self._held += events.values()
            for event in events.values():
                event.attach(self.program)
                event.enable()
        except OSError as error:
            self.detach()
            raise refused(error, "cannot sample by the CPU's clock") from None

    def mechanism(self) -> str:
        return "BPF on the CPU clock of perf, %d times a second on each of %d CPUs" % (self._hertz, len(self._held))


# -- counters ---------------------------------------------------------------------------------------------------------


class PerfCounter:
    """One perf counter a CPU, or a thread of one process.  CPUs that come online later are not counted."""

    name = "perf"

    def __init__(self, event: str, cpus: Sequence[int] | None = None, process: int | None = None) -> None:
        """Raises StepFailed."""
        self.event = event
        self._process = process
        kind, config = self._resolve(event)
        if process is not None and kind == perf.TRACEPOINT:
            # include/trace/events/sched.h: the wake-ups name the woken thread by __perf_task.  Seen (6.18): of a thread
            # that was woken 200 times and woke nobody, counters of one CPU each had 200, one of all CPUs had none.
            raise StepFailed(
                "perf counts some tracepoints for the thread that is woken, besides the one that runs", errno.EOPNOTSUPP
            )
        try:
            if process is None:
                self._events = list(perf.on_every_cpu(kind, config, cpus=cpus).values())
            else:
                self._events = perf.of_process(kind, config, process, cpus=cpus)
        except OSError as error:
            doing = "perf_event_open refuses %s" % event
            if kind == perf.HARDWARE and error.errno == errno.ENOENT:
                doing += ", as where a virtual machine is not shown the processor's counters"
            raise refused(error, doing) from None

    def _resolve(self, event: str) -> tuple[int, int]:
        system, _, name = event.partition(":")
        for known, kind, table in (
            ("software", perf.SOFTWARE, perf.SOFTWARE_EVENTS),
            ("hardware", perf.HARDWARE, perf.HARDWARE_EVENTS),
        ):
            if system == known:
                if name not in table:
                    raise StepFailed("there is no %s; there are %s" % (event, ", ".join(table)), errno.ENOENT)
                return kind, table[name]
        return perf.TRACEPOINT, tracefs.event_id(event)

    def attach(self) -> None:
        for event in self._events:
            event.enable()

    def detach(self) -> None:
        for event in self._events:
            event.disable()

    def counts(self) -> list[int]:
        """Of each CPU; of one process of each thread, and on each CPU where some were asked for."""
        return [event.count() for event in self._events]

    def total(self) -> int:
        return sum(self.counts())

    def lost(self) -> int:
        return 0

    def mechanism(self) -> str:
        if self._process is not None:
            return "perf counters on the threads of process %d" % self._process
        return "perf counters on %d CPUs" % len(self._events)

    def close(self) -> None:
        for event in self._events:
            event.close()
        self._events = []


class Buffer:
    """A trace buffer of our own (tracefs), of which the kernel's statistics are the count.  Close it."""

    name = ""

    def __init__(self, event: str, process: int | None, *, buffer_kb: int = 64, clock: str = "local") -> None:
        """Raises StepFailed."""
        if process is not None:
            raise StepFailed("%s sees everybody, and not one process" % self.name, errno.EOPNOTSUPP)
        self.event = event
        try:
            self._instance = tracefs.Instance(buffer_kb=buffer_kb, clock=clock)
        except OSError as error:
            raise refused(error, "cannot make a trace buffer") from None
        self.path = self._instance.path

    def set_up(self, cpus: Sequence[int] | None) -> None:
        """Restrict it to ``cpus`` and switch on what is wanted, the recording itself not yet.

        Raises OSError, StepFailed; then it is closed.
        """
        try:
            if cpus is not None:
                from evenkeel.probe.facts.cpulist import format_mask

                self._instance.set("tracing_cpumask", format_mask(cpus))
            self.enable()
        except OSError as error:
            self.close()
            raise refused(error, "the trace buffer for %s" % self.event) from None
        except StepFailed:
            self.close()
            raise

    def enable(self) -> None:
        raise NotImplementedError

    def attach(self) -> None:
        self._instance.set("tracing_on", "1")

    def detach(self) -> None:
        self._instance.set("tracing_on", "0")

    def stats(self) -> dict[str, int]:
        return self._instance.stats()

    def total(self) -> int:
        """Records in the buffer, overwritten, dropped and read: all that there were."""
        return sum(self.stats().values())

    def lost(self) -> int:
        return 0

    def mechanism(self) -> str:
        return "tracefs, %s" % self._instance.name

    def close(self) -> None:
        self._instance.close()


class Ring(Buffer):
    """Every event as a record; here only counted."""

    name = "ring"

    def __init__(
        self,
        event: str,
        cpus: Sequence[int] | None = None,
        process: int | None = None,
        *,
        buffer_kb: int = 64,
        clock: str = "local",
    ) -> None:
        """Raises StepFailed."""
        tracefs.event_id(event)
        super().__init__(event, process, buffer_kb=buffer_kb, clock=clock)
        self.set_up(cpus)

    def enable(self) -> None:
        self._instance.set("options/overwrite", "1")
        self._instance.enable(self.event)


HOOKS: dict[str, Callable[..., Hook]] = {
    "raw_tp": RawTracepoint,
    "tp_btf": BtfTracepoint,
    "tracepoint": Tracepoint,
    "sampling": Samples,
}
COUNTERS: dict[str, Callable[..., Any]] = {"perf": PerfCounter, "ring": Ring}


def call_number(event: str) -> int:
    """Of ``syscalls:sys_enter_NAME``.  Raises StepFailed."""
    if not event.startswith(_ENTER):
        raise StepFailed("sys_exit does not pass the number of the call", errno.EOPNOTSUPP)
    number = syscalls.number(event[len(_ENTER) :])
    if number is None:
        raise StepFailed("the number of %s is not known here" % event[len(_ENTER) :], errno.EOPNOTSUPP)
    return number


def _compat_status() -> tuple[int, int]:
    """(offset, size) of where a task says that it is in a 32-bit call.  Raises StepFailed where it cannot be told."""
    machine = os.uname().machine
    if machine != "x86_64":
        raise StepFailed("32-bit calls cannot be told from others on %s" % machine, errno.EOPNOTSUPP)
    place = vmlinux().field("task_struct", "thread_info.status")
    if place is None:
        raise StepFailed("the kernel does not say which calls are 32-bit ones", errno.EOPNOTSUPP)
    return place


def vmlinux() -> btf.Btf:
    try:
        return btf.vmlinux()
    except OSError as error:
        raise StepFailed("this kernel has no BTF: %s" % error.strerror, error.errno, btf.VMLINUX) from None
