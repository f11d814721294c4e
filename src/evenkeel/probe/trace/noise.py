"""What disturbs a CPU: which programs are hung where, and what their rows mean.

Interrupts of devices, softirqs, the vectors of the CPU itself (timer, reschedule, ...), and threads by sched_switch.
A softirq that an interrupt falls into contains it: times of different kinds overlap, and must not be added up.
Must not judge what is noise: the thread that belongs on the CPU is a row like the others.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.sample import interrupt_rows, read
from evenkeel.probe.trace import spans, templates, tracefs
from evenkeel.probe.trace.templates import Constant, Current, Packed

if TYPE_CHECKING:
    from evenkeel.probe.trace.question import Run

SWITCH = "sched:sched_switch"
_VECTORS = "irq_vectors"
#: include/linux/interrupt.h, the order of the enum.
_SOFTIRQS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


class Pair(NamedTuple):
    """Two events that begin and end a kind of disturbance.  ``field``: which one of the kind; "": there is but one."""

    kind: str
    what: str
    begin: str
    end: str
    field: str


def pairs() -> list[Pair]:
    """What this kernel has of them."""
    found = [
        Pair("interrupt", "", "irq:irq_handler_entry", "irq:irq_handler_exit", "irq"),
        Pair("softirq", "", "irq:softirq_entry", "irq:softirq_exit", "vec"),
    ]
    folder = "%s/events/%s" % (tracefs.root(), _VECTORS)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.endswith("_entry"):
            stem = name[: -len("_entry")]
            found.append(Pair("vector", stem, "%s:%s" % (_VECTORS, name), "%s:%s_exit" % (_VECTORS, stem), ""))
    return found


class Noise:
    """The programs on their hooks, and the table that they share."""

    def __init__(self, run: Run) -> None:
        """Raises StepFailed."""
        if not run.question.get("cpus"):
            raise StepFailed("which CPU?", errno.EINVAL)
        self._table = run.keep(spans.durations())
        self._spans = run.keep(spans.open_spans())
        self._spread = run.keep(spans.histogram())
        self._pairs = pairs()
        self._hang_threads(run)
        for number, pair in enumerate(self._pairs):
            # The end first: a beginning that is seen without its end would wait for the next one.
            self._hang(run, pair, number + 1)

    def _hang_threads(self, run: Run) -> None:
        hook = run.hook(SWITCH)
        thread = hook.field("prev_pid")
        assert isinstance(thread, templates.Record)
        code = spans.end_span(
            run.numbers,
            self._spans,
            self._spread,
            _place(0),
            hook.select,
            rows=self._table,
            row_key=_row_key(0, thread),
            name=hook.text("prev_comm"),
            restart=True,
        )
        hook.load(code, SWITCH)

    def _hang(self, run: Run, pair: Pair, number: int) -> None:
        end, begin = run.hook(pair.end), run.hook(pair.begin)
        which = end.field(pair.field) if pair.field else Constant(0)
        assert isinstance(which, (templates.Record, Constant))
        code = spans.end_span(
            run.numbers,
            self._spans,
            self._spread,
            _place(number),
            end.select,
            rows=self._table,
            row_key=_row_key(number, which),
        )
        end.load(code, pair.end)
        begin.load(spans.begin_span(run.numbers, self._spans, _place(number), begin.select), pair.begin)

    def rows(self) -> list[dict[str, Any]]:
        """By CPU and kind, those that took the most first."""
        actions = {label: row["action"] for label, row in interrupt_rows().items()}
        found = []
        for row in spans.read_durations(self._table):
            cpu, number, which = row.key >> 48, row.key >> 32 & 0xFFFF, row.key & 0xFFFFFFFF
            kind, label = self._name(number, which, row.name, actions)
            found.append(
                {
                    "key": "CPU %d %s" % (cpu, kind),
                    "label": label,
                    "count": row.times,
                    "total_ns": row.total_ns,
                    "longest_ns": row.longest_ns,
                }
            )
        return sorted(found, key=lambda one: (-one["total_ns"], one["key"], one["label"]))

    def _name(self, number: int, which: int, command: str, actions: dict[str, str]) -> tuple[str, str]:
        if number == 0:
            now = (read("/proc/%d/comm" % which) or "").strip()
            return "thread", "idle" if which == 0 else "%s (%d)" % (now or command, which)
        pair = self._pairs[number - 1]
        if pair.kind == "softirq":
            return pair.kind, _SOFTIRQS[which] if which < len(_SOFTIRQS) else str(which)
        if pair.kind == "interrupt":
            return pair.kind, "%d %s" % (which, actions.get(str(which), ""))
        return pair.kind, pair.what


def _place(number: int) -> Packed:
    """The key of a span: a kind on a CPU.  There is one at a time."""
    return Packed(((Current("cpu"), 32), (Constant(number), 0)))


def _row_key(number: int, which: templates.Record | Constant) -> Packed:
    return Packed(((Current("cpu"), 48), (Constant(number), 32), (which, 0)))
