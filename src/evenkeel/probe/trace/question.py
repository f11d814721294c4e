"""The operations: a question is started at one source, waited for, and finished with its answer.

One question at a time in a probe.  ``trace_start`` tries exactly the source it is told; a refusal is its error, and the
other side goes on to the next.  Between the calls nothing here runs; the kernel counts.
Must not choose a source and must not judge a cost.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from typing import Any, Callable

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import bpf, sources, templates
from evenkeel.probe.trace.sources import Hook

# The rest is imported where it is used: on a managed machine nothing is compiled beforehand, and each module takes
# milliseconds of the time to the first attached program.

#: How long the kernel times our programs at the end of a run.
STATISTICS_S = 0.2

#: A window of sampling is no shorter, or attaching would be most of it.  Of those that are programs the last one is
#: timed by the kernel.
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


class Run:
    """A question under way.  Subclasses fill ``hooks`` and ``counters`` and say what came out."""

    #: It has stopped, because no more can be kept.
    full = False

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
        self.share = self.least_share = 1.0
        self.windows = 0  # how often it was attached
        self._around_s = [0.0, 0.0]  # what attaching and detaching take, as far as it is counted
        self._told: list[str] = []
        self._owed_s = 0.0
        self._wanted_s = WINDOW_S
        self._most_s = math.inf
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
        self._around_s[0] = (time.monotonic() - before) / 2
        self._since = before + self._around_s[0]
        self.windows += 1

    def detach(self) -> None:
        before = time.monotonic()
        for one in (*self.hooks, *self.counters):
            one.detach()
        if self._since is not None:
            self._around_s[1] = (time.monotonic() - before) / 2
            self.attached_s += before + self._around_s[1] - self._since
            self._since = None

    def begin(self, window: bool) -> list[str]:
        """Attach, and say how.  ``window``: for one window only, and not again before :meth:`pace`."""
        self.attach()
        self._told = self.mechanism()
        if window:
            time.sleep(WINDOW_S)
            self.detach()
        return self._told

    def pace(self, share: float, most_s: float | None = None) -> None:
        """From here on attached for ``share`` of the time, 0 to 1, and no more than ``most_s`` before the finish."""
        self.share = share
        self._most_s = math.inf if most_s is None else self.seconds() + most_s
        self.least_share = min(share, self.least_share)
        if share < 1:
            self.detach()
            window_s = self._window_s()
            self._wanted_s = min(max(self._wanted_s, window_s), 2 * window_s)
        elif self._since is None:
            self._owed_s = 0.0
            self.attach()

    def wait(self, within_s: float) -> None:
        """Attached all the time, or for windows that make up no more than ``share`` of it; the last may end later."""
        if self.share >= 1:
            self.pass_time(within_s)
            return
        end = last = time.monotonic()
        end += within_s
        while True:
            now = time.monotonic()
            self._owed_s += self.share * (now - last)
            last = now
            if now >= end:
                return
            may = self.share > 0 and self.attached_s + self._window_s() <= self._most_s
            if may and self._owed_s >= self._wanted_s:
                self._window()
            else:
                pause_s = (self._wanted_s - self._owed_s) / self.share if may else within_s
                time.sleep(max(0.0, min(pause_s, end - now)))

    def _window_s(self) -> float:
        """How long a window is, with what attaching and detaching took the last time."""
        return max(WINDOW_S, self.share * 0.25) + sum(self._around_s)

    def _window(self) -> None:
        """Attached for as long as it is owed at most, and what was attached is not owed any more."""
        import random

        before_s = self.attached_s
        length_s = min(self._window_s(), self._owed_s) - sum(self._around_s)
        self.attach()
        time.sleep(max(0.0, length_s))
        self.detach()
        self._owed_s -= self.attached_s - before_s
        # Not the same moment of every second: what happens then would be seen always, or never.  No less than a whole
        # window is owed before one begins, so that there are never more of them than the share allows.
        self._wanted_s = self._window_s() * random.uniform(1.0, 2.0)

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
        if self.question.get("process") is not None:
            return None  # counters of threads
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

    def finish_s(self) -> float:
        """How long :meth:`finish` goes on counting: for as long as the kernel times our programs."""
        if not self.hooks or not self.share:
            return 0.0
        return STATISTICS_S if self._always() else WINDOW_S + sum(self._around_s)

    def _always(self) -> bool:
        """Whether it has been attached all the time, but for a gap behind its first window."""
        return self.least_share >= 1 and self._since is not None

    def cost(self) -> dict[str, Any]:
        """``{"ns_per_run", "runs", "seconds"}`` as the kernel timed it for a moment, where it can."""
        programs = [hook.program for hook in self.hooks if hook.program is not None]
        if not programs or not self.share:
            return {}  # after a share of 0 nothing is attached any more
        try:
            statistics = bpf.enable_stats()
        except OSError:
            return {}  # before 5.8
        seconds = STATISTICS_S if self._always() else WINDOW_S
        if self._since is None:
            self.attach()
        before = [program.runs() for program in programs]
        self.pass_time(seconds)
        after = [program.runs() for program in programs]
        statistics.close()
        spent = sum(new[0] - old[0] for old, new in zip(before, after))  # noqa: B905
        runs = sum(new[1] - old[1] for old, new in zip(before, after))  # noqa: B905
        return {"ns_per_run": spent / runs if runs else 0.0, "runs": runs, "seconds": seconds}

    def finish(self) -> dict[str, Any]:
        """Stop, and the answer: events, lost, seconds, cost, CPU time of the reader, and what was asked for."""
        cost = self.cost()
        mechanism = self._told if self._since is None else self.mechanism()
        self.detach()
        answer = {
            "events": self.events(),
            "lost": self.lost(),
            "seconds": round(self.attached_s, 4),
            "share": self.least_share,
            "windows": self.windows,
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
    """How often?  Counters can count several events at the same time."""

    def prepare(self) -> None:
        event, counter = self.question["events"][0], counter_maker(self.source)
        if counter is not None:
            for one in self.question["events"]:
                self.counter(counter, one)
        else:
            hook = self.hook(event)
            hook.load(templates.count(self.numbers, hook.select, hook.alone), event)


def _kind(name: str) -> Callable[[dict[str, Any], str], Run]:
    if name == "count":
        return Count
    from evenkeel.probe.trace import kinds

    return kinds.KINDS[name]


def trace_start(question: dict[str, Any], source: str, window: bool = False) -> dict[str, Any]:
    """Operation: begin to answer a question at this source, and at no other.

    ``question``: ``kind``, ``events``, and what the kind needs.
    ``window``: to be attached for one window only, and not again before ``trace_pace``.
    Returns ``{"mechanism": [...], "finish_s"}``, the last of them the time that ``trace_finish`` goes on counting.
    Raises StepFailed with the errno of a source that this kernel refuses.
    """
    global _run
    trace_close()
    process = question.get("process")
    if process is not None and not os.path.isdir("/proc/%d" % process):
        # A program would look for it in vain, and the answer be 0.
        raise StepFailed("there is no process %d" % process, errno.ESRCH)
    try:
        run = _kind(question["kind"])(question, source)
    except OSError as error:
        raise StepFailed("%s: %s" % (source, error.strerror or error), error.errno) from None
    try:
        mechanism = run.begin(window)
    except BaseException:
        run.close()
        raise
    _run = run
    return {"mechanism": mechanism, "finish_s": run.finish_s()}


def trace_wait(within_s: float) -> dict[str, Any]:
    """Operation: let it run, and say how far it is: ``{"events", "each", "lost", "seconds", "full", "on_cpus"}``.

    ``each``: the number of each event, of counters.  ``full``: it has stopped, because no more can be kept.
    ``on_cpus``: see :meth:`Run.on_cpus`.
    """
    run = _running()
    run.wait(within_s)
    each = [int(one.total()) for one in run.counters]
    found = {"events": run.progress(), "each": each, "lost": run.lost(), "seconds": round(run.seconds(), 4)}
    return {**found, "full": run.full, "on_cpus": run.on_cpus()}


def trace_pace(share: float, most_s: float | None = None) -> dict[str, Any]:
    """Operation: from here on, be attached for this share of the time only, in windows at random moments.

    0: not at all any more.  ``most_s``: no more windows than that, with the time that a share was not used before.
    Returns ``{"finish_s"}``, as :func:`trace_start` does; with windows it is one of them.
    """
    if not 0 <= share <= 1:
        raise StepFailed("%r is no share of the time" % share, errno.EINVAL)
    run = _running()
    run.pace(share, most_s)
    return {"finish_s": run.finish_s()}


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
