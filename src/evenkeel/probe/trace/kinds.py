"""The questions but the simplest, one class each; a count is in :mod:`evenkeel.probe.trace.question`.

Must not choose a source and must not judge a cost.
"""

from __future__ import annotations

import errno
import time
from typing import Any, Callable

from evenkeel.probe import recording
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import exits, keys, noise, records, sources, spans, stacks, tables, templates, tracefs
from evenkeel.probe.trace.question import Run
from evenkeel.probe.trace.sources import Hook

#: Between two looks at a table, at least.
LOOK_S = 0.2
SWITCH = "sched:sched_switch"


class Seldom:
    """A look that costs, repeated only when a hundred times as long has passed: one per cent of a core at most."""

    def __init__(self, look: Callable[[], int], *, every: float = 100.0) -> None:
        self._look, self._every = look, every
        self._next, self._last = 0.0, 0

    def __call__(self) -> int:
        """What the last look saw."""
        if time.monotonic() >= self._next:
            before = time.monotonic()
            self._last = self._look()
            now = time.monotonic()
            self._next = now + max(LOOK_S, self._every * (now - before))
        return self._last


class Top(Run):
    """How often, by whom?"""

    def prepare(self) -> None:
        event, by = self.question["events"][0], self.question["by"]
        if by not in keys.KEYS:
            raise StepFailed("%r is nothing to count by" % by, errno.EINVAL)
        self.names = keys.Names(by)
        self.progress = Seldom(self.events)  # type: ignore[method-assign]
        self.rows = self.keep(tables.table(keys.key_bytes(by)))
        hook = self.hook(event)
        key = keys.KEYS[by]
        value = hook.current(key) if key is not None else None
        hook.load(tables.top(self.numbers, self.rows, value, hook.select, hook.alone), event)

    def events(self) -> int:
        return sum(row.times for row in tables.read_table(self.rows))

    def result(self) -> dict[str, Any]:
        return {"rows": self.names.rows(tables.read_table(self.rows))}


class Latency(Run):
    """How long from one event to the other, of the same thread, CPU or number in both?"""

    def prepare(self) -> None:
        question = self.question
        first, last = question["events"]
        key = question.get("key") or "thread"
        at_first, _, at_last = key.partition("=")
        self.spans, self.spread = self.keep(spans.open_spans()), self.keep(spans.histogram())
        self.rows = self.keep(spans.durations()) if question["kind"] == "wakeups" else None
        end = self.hook(last)
        begin = self.hook(first)
        name = void = None
        if last == SWITCH and at_last == "next_pid":
            void = spans.Void(end.field("prev_pid"), end.switched_out())
            name = end.text("next_comm") if self.rows is not None else None
        code = spans.end_span(
            self.numbers,
            self.spans,
            self.spread,
            _key(end, at_last or at_first),
            end.select,
            rows=self.rows,
            name=name,
            void=void,
        )
        end.load(code, last)
        begin.load(spans.begin_span(self.numbers, self.spans, _key(begin, at_first), begin.select), first)

    def result(self) -> dict[str, Any]:
        total_ns, counts, longer = spans.read_histogram(self.spread)
        found: dict[str, Any] = {
            "total_ns": total_ns,
            "bits": spans.SUB_BITS,
            "buckets": [[spans.bucket_edges(index)[0], count] for index, count in counts],
            "overflows": longer,
            "limit_ns": spans.LIMIT_NS,
            "starts": templates.total(self.numbers, templates.STARTS),
            "unmatched": templates.total(self.numbers, templates.UNMATCHED),
        }
        if self.rows is not None:
            found["rows"] = [
                {
                    "key": str(row.key),
                    "label": row.name,
                    "count": row.times,
                    "total_ns": row.total_ns,
                    "longest_ns": row.longest_ns,
                }
                for row in spans.read_durations(self.rows)
            ]
        return found


class Profile(Run):
    """Where is the time of the CPUs?"""

    def prepare(self) -> None:
        question = self.question
        self.traces = self.keep(stacks.stack_traces()), self.keep(stacks.stack_traces())
        self.counts = self.keep(stacks.stack_counts())
        self.maps = stacks.Maps()
        # Twenty times: a process that ends before it was looked at has no names.
        self._see = Seldom(self._look, every=20.0)
        hook = self.hook(str(question["frequency_hz"]))
        hook.load(stacks.stacks(self.numbers, *self.traces, self.counts, hook.select), "the profile")

    def _look(self) -> int:
        seen = stacks.processes(self.counts)
        self.maps.see(seen)
        return len(seen)

    def progress(self) -> int:
        self._see()
        return self.events()

    def result(self) -> dict[str, Any]:
        samples = stacks.read_samples(self.traces, self.counts)
        self.maps.see({one.process for one in samples})
        busy = [one for one in samples if one.process]
        idle = sum(one.times for one in samples if not one.process)
        return {"stacks": stacks.fold(busy, self.maps), "idle": idle}


class Noise(Run):
    """What runs on a CPU besides its thread: interrupts, softirqs, other threads; how often, how long."""

    def prepare(self) -> None:
        self.noise = noise.Noise(self)

    def result(self) -> dict[str, Any]:
        return {"rows": self.noise.rows()}


class Record(Run):
    """Each event: when, who, where, and one number of it.  Read while they come."""

    def prepare(self) -> None:
        question, source = self.question, self.source
        event, field = question["events"][0], question.get("field")
        size = records.ring_bytes(question.get("rate_per_s", 0.0), question.get("ring_bytes", records.LEAST))
        self._most = question.get("most_bytes", records.KEPT)
        self._kept = bytearray()
        self._not_real_time: int | None = None
        self._ring: records.Ring | None = None
        self._pages: records.Pages | None = None
        self._processes: dict[int, int] = {}
        if source == records.Pages.name:
            cpus, process = question.get("cpus"), question.get("process")
            self._pages = self.keep(records.Pages(event, cpus, process, size, self._most))
            self.counters.append(self._pages)
            self._processes = records.processes()
            if field is not None and field not in tracefs.fields(event):
                sources.Tracepoint(event).field(field)  # refuses it, and says which there are
        else:
            self._ring = self.keep(records.Ring(size))
            hook = self.hook(event)
            value = templates.Constant(0) if field is None else _key(hook, field)
            hook.load(records.record(self.numbers, self._ring.map, value, hook.select), "records of " + event)

    def pass_time(self, within_s: float) -> None:
        """Awake for a moment every few milliseconds.  What is full is taken off at once, and nothing more is seen."""
        end = time.monotonic() + within_s
        every_s = records.LOOK_S if self._pages is None else records.LOOK_AT_PAGES_S
        with records.real_time() as self._not_real_time:
            while not self.full:
                self._drain()
                left = end - time.monotonic()
                if self.full:
                    self.detach()
                elif left <= 0:
                    break
                else:
                    time.sleep(min(every_s, left))

    def _drain(self) -> None:
        if self._pages is not None:
            self._pages.rings.drain()
            self.full = self._pages.rings.full
        if self._ring is not None:
            self._kept += self._ring.read()
            # What is in the ring by then is taken, too.
            self.full = len(self._kept) + self._ring.size > self._most

    def cost(self) -> dict[str, Any]:
        return {} if self.full else super().cost()

    def events(self) -> int:
        return self._ring.written() if self._ring is not None else super().events()

    def result(self) -> dict[str, Any]:
        """The records are kept; ``recording_fetch`` has them."""
        self._drain()
        pages = {0: self._kept} if self._pages is None else self._pages.rings.pages
        found = {
            "id": recording.keep(pages),
            "bytes": {str(cpu): len(one) for cpu, one in pages.items()},
            "formats": {},
            "header_page": "",
        }
        if self._pages is not None:
            event = self.question["events"][0]
            found["formats"] = {event: tracefs.read(tracefs.event_folder(event) + "/format")}
            found["header_page"] = tracefs.read("events/header_page")
            # Those that were there before may have ended since, and their numbers be given away again: the later holds.
            owners = {**self._processes, **records.processes()}
            found["processes"] = {str(thread): process for thread, process in owners.items()}
        code = self._not_real_time
        return {"records": found, "full": self.full, "not_real_time": code and errno.errorcode[code]}


class Exits(Run):
    """Why, and how often, do the vCPUs of a guest leave it?"""

    def prepare(self) -> None:
        question, source = self.question, self.source
        if source in exits.COUNTERS:
            self.counters.append(self.keep(exits.COUNTERS[source](question["guest"])))
            return
        question["process"] = exits.process_of(question["guest"])
        self.table = self.keep(tables.table(8))
        hook = self.hook(exits.EVENT)
        key = exits.reason_key(hook)
        hook.load(tables.top(self.numbers, self.table, key, hook.select), "the exits of " + question["guest"])
        self.progress = Seldom(self.events)  # type: ignore[method-assign]
        self.outside = self.keep(tables.table(8))
        out = self.hook(exits.USERSPACE)
        key = exits.userspace_key(out)
        out.load(tables.top(self.numbers, self.outside, key, out.select), "the exits to QEMU")

    def events(self) -> int:
        """Every exit; where KVM has no event for it, those that reach QEMU."""
        if self.counters:
            return super().events()
        return sum(row.times for row in tables.read_table(self.table) or tables.read_table(self.outside))

    def result(self) -> dict[str, Any]:
        if self.counters:
            return {"rows": self.counters[0].rows()}
        inside, outside = tables.read_table(self.table), tables.read_table(self.outside)
        rows = exits.reason_rows(inside) + exits.userspace_rows(outside)
        return {"rows": rows, "only_userspace": bool(outside) and not inside}


def _key(hook: Hook, name: str) -> templates.Value:
    """``thread``, ``process``, ``cpu``: whoever runs; anything else is a field of the event."""
    return templates.Current(name) if name in ("thread", "process", "cpu") else hook.field(name)


KINDS: dict[str, Callable[[dict[str, Any], str], Run]] = {
    "top": Top,
    "latency": Latency,
    "wakeups": Latency,
    "profile": Profile,
    "noise": Noise,
    "exits": Exits,
    "record": Record,
}
