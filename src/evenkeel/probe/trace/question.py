"""The operations: a question is started at one source, waited for, and finished with its answer.

One question at a time in a probe.  ``trace_start`` tries exactly the source it is told; a refusal is its error, and the
other side goes on to the next.  Between the calls nothing here runs; the kernel counts.
Must not choose a source and must not judge a cost.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from typing import TYPE_CHECKING, Any, Callable

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import bpf, sources, templates
from evenkeel.probe.trace.sources import Hook

# The rest is imported where it is used: on a managed machine nothing is compiled beforehand, and each module takes
# milliseconds of the time to the first attached program.
if TYPE_CHECKING:
    from evenkeel.probe.trace import records

#: How long the kernel times our programs at the end of a run.
STATISTICS_S = 0.2
#: Between two looks at a table, at least.
LOOK_S = 0.2
SWITCH = "sched:sched_switch"

#: A window of sampling is no shorter, or attaching would be most of it.
WINDOW_S = 0.02


def _maker(name: str, known: dict[str, Any], group: str) -> Callable[..., Any] | None:
    """What makes this source: one of those at a tracepoint, or one of those at a function."""
    if name in known:
        return known[name]  # type: ignore[no-any-return]
    from evenkeel.probe.trace import functions

    found: Callable[..., Any] | None = getattr(functions, group).get(name)
    return found


def hook_maker(name: str) -> Callable[..., Hook] | None:
    return _maker(name, sources.HOOKS, "HOOKS")


def counter_maker(name: str) -> Callable[..., Any] | None:
    return None if name in sources.HOOKS else _maker(name, sources.COUNTERS, "COUNTERS")


_run: Run | None = None


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


class Run:
    """A question under way.  Subclasses fill ``hooks`` and ``counters`` and say what came out."""

    def __init__(self, question: dict[str, Any], source: str) -> None:
        """Raises StepFailed, OSError where this source cannot answer it here; nothing of it stays."""
        self.question, self.source = question, source
        self.stack = contextlib.ExitStack()
        self.hooks: list[Hook] = []
        self.counters: list[Any] = []
        self.numbers = self.keep(templates.statistics())
        self.attached_s = 0.0
        self._since: float | None = None
        self._began = time.monotonic()
        self.share = 1.0
        self._cpu_s = time.process_time()
        try:
            self.prepare()
        except BaseException:
            self.close()  # what a refused source has made by then
            raise

    def prepare(self) -> None:
        """Make what the question needs, loaded and not attached.  Raises StepFailed, OSError."""
        raise NotImplementedError

    def keep(self, thing: Any) -> Any:
        """Close it in the end."""
        self.stack.callback(thing.close)
        return thing

    def hook(self, event: str, source: str | None = None) -> Hook:
        """A hook on one event of the question.  Raises StepFailed."""
        name = source or self.source
        maker = hook_maker(name)
        if maker is None:
            raise StepFailed("%s cannot answer %s" % (name, self.question["kind"]), errno.EOPNOTSUPP)
        made: Hook = self.keep(maker(event, self.question.get("cpus"), self.question.get("process")))
        self.hooks.append(made)
        return made

    def counter(self, maker: Callable[..., Any], event: str) -> Any:
        made = self.keep(maker(event, self.question.get("cpus"), self.question.get("process")))
        self.counters.append(made)
        return made

    def attach(self) -> None:
        """It takes its time, and events are seen from some moment of it on: half of it is counted."""
        before = time.monotonic()
        for one in (*self.hooks, *self.counters):
            one.attach()
        self._since = (before + time.monotonic()) / 2

    def detach(self) -> None:
        before = time.monotonic()
        for one in (*self.hooks, *self.counters):
            one.detach()
        if self._since is not None:
            self.attached_s += (before + time.monotonic()) / 2 - self._since
            self._since = None

    def wait(self, within_s: float) -> None:
        """Attached all the time, or for windows that make up ``share`` of it."""
        if self.share >= 1:
            self.pass_time(within_s)
            return
        end = time.monotonic() + within_s
        window_s = max(WINDOW_S, self.share * 0.25)
        pause_s = window_s * (1 / self.share - 1)
        while True:
            self.detach()
            # Not the same moment of every second: what happens then would be seen always, or never.
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            self.attach()
            time.sleep(window_s)
            if time.monotonic() >= end:
                return

    def pass_time(self, within_s: float) -> None:
        """The kernel counts, and nothing runs here."""
        time.sleep(within_s)

    def seconds(self) -> float:
        """How long it has been attached."""
        return self.attached_s + (time.monotonic() - self._since if self._since is not None else 0.0)

    def events(self) -> int:
        if self.counters:
            return sum(int(one.total()) for one in self.counters)
        return templates.total(self.numbers, templates.EVENTS)

    def on_cpus(self) -> float | None:
        """On how many CPUs they happen, as many as would share them equally; None where that is not counted."""
        each = [float(number) for one in self.counters if hasattr(one, "counts") for number in one.counts()]
        return sum(each) ** 2 / sum(number * number for number in each) if any(each) else None

    def progress(self) -> int:
        """Events so far, to be shown while it goes on; may be a little old."""
        return self.events()

    def lost(self) -> int:
        """Events that were seen and not counted; runs that the kernel left out because the program ran already."""
        missed = sum(hook.program.runs()[2] for hook in self.hooks if hook.program is not None)
        return templates.total(self.numbers, templates.LOST) + missed + sum(int(one.lost()) for one in self.counters)

    def result(self) -> dict[str, Any]:
        return {}

    def mechanism(self) -> list[str]:
        return [one.mechanism() for one in (*self.hooks, *self.counters)]

    def cost(self) -> dict[str, Any]:
        """``{"ns_per_run", "runs"}`` as the kernel timed it for a moment, where it can."""
        programs = [hook.program for hook in self.hooks if hook.program is not None]
        if not programs:
            return {}
        try:
            statistics = bpf.enable_stats()
        except OSError:
            return {}  # before 5.8
        before = [program.runs() for program in programs]
        self.pass_time(STATISTICS_S)
        after = [program.runs() for program in programs]
        statistics.close()
        spent = sum(new[0] - old[0] for old, new in zip(before, after))  # noqa: B905
        runs = sum(new[1] - old[1] for old, new in zip(before, after))  # noqa: B905
        return {"ns_per_run": spent / runs if runs else 0.0, "runs": runs, "seconds": STATISTICS_S}

    def finish(self) -> dict[str, Any]:
        """Stop, and the answer: events, lost, seconds, cost, CPU time of the reader, and what was asked for."""
        cost, mechanism = self.cost(), self.mechanism()
        self.detach()
        answer = {
            "events": self.events(),
            "lost": self.lost(),
            "seconds": round(self.attached_s, 4),
            "share": self.share,
            "elapsed": round(time.monotonic() - self._began, 4),
            "cost": cost,
            "mechanism": mechanism,
            **self.result(),
        }
        answer["reader_cpu_s"] = round(time.process_time() - self._cpu_s, 4)
        return answer

    def close(self) -> None:
        self.stack.close()


class Count(Run):
    """How often?"""

    def prepare(self) -> None:
        event, counter = self.question["events"][0], counter_maker(self.source)
        if counter is not None:
            self.counter(counter, event)
        else:
            hook = self.hook(event)
            hook.load(templates.count(self.numbers, hook.select, hook.alone), event)


class Top(Run):
    """How often, by whom?"""

    def prepare(self) -> None:
        from evenkeel.probe.trace import keys

        event, by = self.question["events"][0], self.question["by"]
        if by not in keys.KEYS:
            raise StepFailed("%r is nothing to count by" % by, errno.EINVAL)
        self.names = keys.Names(by)
        self.progress = Seldom(self.events)  # type: ignore[method-assign]
        self.rows = self.keep(templates.table(keys.key_bytes(by)))
        hook = self.hook(event)
        hook.load(templates.top(self.numbers, self.rows, keys.KEYS[by], hook.select), event)

    def events(self) -> int:
        return sum(row.times for row in templates.read_table(self.rows))

    def result(self) -> dict[str, Any]:
        return {"rows": self.names.rows(templates.read_table(self.rows))}


class Latency(Run):
    """How long from one event to the other, of the same thread, CPU or number in both?"""

    def prepare(self) -> None:
        question = self.question
        first, last = question["events"]
        key = question.get("key") or "thread"
        at_first, _, at_last = key.partition("=")
        self.spans, self.spread = self.keep(templates.open_spans()), self.keep(templates.histogram())
        self.rows = self.keep(templates.durations()) if question["kind"] == "wakeups" else None
        end = self.hook(last)
        begin = self.hook(first)
        name = void = None
        if last == SWITCH and at_last == "next_pid":
            void = templates.Void(end.field("prev_pid"), end.switched_out())
            name = end.text("next_comm") if self.rows is not None else None
        code = templates.end_span(
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
        begin.load(templates.begin_span(self.numbers, self.spans, _key(begin, at_first), begin.select), first)

    def result(self) -> dict[str, Any]:
        total_ns, counts, longer = templates.read_histogram(self.spread)
        found: dict[str, Any] = {
            "total_ns": total_ns,
            "bits": templates.SUB_BITS,
            "buckets": [[templates.bucket_edges(index)[0], count] for index, count in counts],
            "overflows": longer,
            "limit_ns": templates.LIMIT_NS,
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
                for row in templates.read_durations(self.rows)
            ]
        return found


class Profile(Run):
    """Where is the time of the CPUs?"""

    def prepare(self) -> None:
        from evenkeel.probe.trace import stacks

        question = self.question
        self.traces = self.keep(templates.stack_traces()), self.keep(templates.stack_traces())
        self.counts = self.keep(templates.stack_counts())
        self.maps = stacks.Maps()
        # Twenty times: a process that ends before it was looked at has no names.
        self._see = Seldom(self._look, every=20.0)
        hook = self.hook(str(question["frequency_hz"]))
        hook.load(templates.stacks(self.numbers, *self.traces, self.counts, hook.select), "the profile")

    def _look(self) -> int:
        from evenkeel.probe.trace import stacks

        seen = stacks.processes(self.counts)
        self.maps.see(seen)
        return len(seen)

    def progress(self) -> int:
        self._see()
        return self.events()

    def result(self) -> dict[str, Any]:
        from evenkeel.probe.trace import stacks

        samples = stacks.read_samples(self.traces, self.counts)
        self.maps.see({one.process for one in samples})
        busy = [one for one in samples if one.process]
        idle = sum(one.times for one in samples if not one.process)
        return {"stacks": stacks.fold(busy, self.maps), "idle": idle}


class Noise(Run):
    """What runs on a CPU besides its thread: interrupts, softirqs, other threads; how often, how long."""

    def prepare(self) -> None:
        from evenkeel.probe.trace import noise

        self.noise = noise.Noise(self)

    def result(self) -> dict[str, Any]:
        return {"rows": self.noise.rows()}


class Record(Run):
    """Each event: when, who, where, and one number of it.  Read while they come."""

    def prepare(self) -> None:
        question, source = self.question, self.source
        from evenkeel.probe.trace import records, tracefs

        event, field = question["events"][0], question.get("field")
        size = records.ring_bytes(question.get("rate_per_s", 0.0), question.get("ring_bytes", records.LEAST))
        self._most = question.get("most_bytes", records.KEPT)
        self._kept, self.full = bytearray(), False
        self._ring: records.Ring | None = None
        self._pages: records.Pages | None = None
        if source == records.Pages.name:
            cpus, process = question.get("cpus"), question.get("process")
            self._pages = self.keep(records.Pages(event, cpus, process, size, self._most))
            self.counters.append(self._pages)
            if field is not None and field not in tracefs.fields(event):
                sources.Tracepoint(event).field(field)  # refuses it, and says which there are
        else:
            self._ring = self.keep(records.Ring(size))
            hook = self.hook(event)
            value = templates.Constant(0) if field is None else _key(hook, field)
            hook.load(templates.record(self.numbers, self._ring.map, value, hook.select), "records of " + event)

    def pass_time(self, within_s: float) -> None:
        """Awake for a moment every few milliseconds.  What is full is taken off at once, and nothing more is seen."""
        from evenkeel.probe.trace import records

        end = time.monotonic() + within_s
        every_s = records.LOOK_S if self._pages is None else records.LOOK_AT_PAGES_S
        with records.real_time():
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
        from evenkeel.probe import recording
        from evenkeel.probe.trace import tracefs

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
        return {"records": found, "full": self.full}


class Exits(Run):
    """Why, and how often, do the vCPUs of a guest leave it?"""

    def prepare(self) -> None:
        from evenkeel.probe.trace import exits

        question, source = self.question, self.source
        if source in exits.COUNTERS:
            self.counters.append(self.keep(exits.COUNTERS[source](question["guest"])))
            return
        question["process"] = exits.process_of(question["guest"])
        self.table = self.keep(templates.table(8))
        hook = self.hook(exits.EVENT)
        key = exits.reason_key(hook)
        hook.load(templates.top(self.numbers, self.table, key, hook.select), "the exits of " + question["guest"])
        self.progress = Seldom(self.events)  # type: ignore[method-assign]
        self.outside = self.keep(templates.table(8))
        out = self.hook(exits.USERSPACE)
        key = exits.userspace_key(out)
        out.load(templates.top(self.numbers, self.outside, key, out.select), "the exits to QEMU")

    def events(self) -> int:
        """Every exit; where KVM has no event for it, those that reach QEMU."""
        if self.counters:
            return super().events()
        return sum(row.times for row in templates.read_table(self.table) or templates.read_table(self.outside))

    def result(self) -> dict[str, Any]:
        if self.counters:
            return {"rows": self.counters[0].rows()}
        from evenkeel.probe.trace import exits

        inside, outside = templates.read_table(self.table), templates.read_table(self.outside)
        rows = exits.reason_rows(inside) + exits.userspace_rows(outside)
        return {"rows": rows, "only_userspace": bool(outside) and not inside}


def _key(hook: Hook, name: str) -> templates.Value:
    """``thread``, ``process``, ``cpu``: whoever runs; anything else is a field of the event."""
    return templates.Current(name) if name in ("thread", "process", "cpu") else hook.field(name)


KINDS: dict[str, Callable[[dict[str, Any], str], Run]] = {
    "count": Count,
    "top": Top,
    "latency": Latency,
    "wakeups": Latency,
    "profile": Profile,
    "noise": Noise,
    "exits": Exits,
    "record": Record,
}


def trace_start(question: dict[str, Any], source: str) -> dict[str, Any]:
    """Operation: begin to answer a question at this source, and at no other.

    ``question``: ``kind``, ``events``, and what the kind needs.
    Returns ``{"mechanism": [...], "finish_s"}``, the last of them the time that ``trace_finish`` goes on counting.
    Raises StepFailed with the errno of a source that this kernel refuses.
    """
    global _run
    trace_close()
    try:
        run = KINDS[question["kind"]](question, source)
    except OSError as error:
        raise StepFailed("%s: %s" % (source, error.strerror or error), error.errno) from None
    try:
        run.attach()
    except BaseException:
        run.close()
        raise
    _run = run
    return {"mechanism": run.mechanism(), "finish_s": STATISTICS_S if run.hooks else 0.0}


def trace_wait(within_s: float) -> dict[str, Any]:
    """Operation: let it run, and say how far it is: ``{"events", "lost", "seconds", "full", "on_cpus"}``.

    ``full``: it has stopped, because no more can be kept.  ``on_cpus``: see :meth:`Run.on_cpus`.
    """
    run = _running()
    run.wait(within_s)
    found = {"events": run.progress(), "lost": run.lost(), "seconds": round(run.seconds(), 4)}
    return {**found, "full": isinstance(run, Record) and run.full, "on_cpus": run.on_cpus()}


def trace_pace(share: float) -> None:
    """Operation: from here on, be attached for this share of the time only, in windows at random moments."""
    if not 0 < share <= 1:
        raise StepFailed("%r is no share of the time" % share, errno.EINVAL)
    _running().share = share


def trace_finish() -> dict[str, Any]:
    """Operation: stop it, and give the answer."""
    run = _running()
    try:
        return run.finish()
    finally:
        trace_close()


def trace_close() -> None:
    """Operation: stop without an answer; nothing is left attached."""
    global _run
    if _run is not None:
        run, _run = _run, None
        run.close()


def _running() -> Run:
    if _run is None:
        raise StepFailed("no question was asked", errno.EINVAL)
    return _run
