"""What a sampled run may cost: windows by a clock that is turned by hand, and a whole question on a recorded probe."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from evenkeel.documents.answer import Answer, Question
from evenkeel.machines.protocol import ProbeError
from evenkeel.measure.conditions import conditions
from evenkeel.measure.trace import ask as asking
from evenkeel.probe.trace import question, templates
from tests.verify.record import load

#: What the counter takes to be attached, and to be detached.
AROUND_S = 0.004


class Clock:
    """Stands still but for sleep; in place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += max(seconds, 1e-6)  # nobody wakes up at once
        self.slept.append(seconds)


class Steady:
    """A counter of an event that happens ``hertz`` times a second."""

    def __init__(self, clock: Clock, hertz: float) -> None:
        self._clock, self._hertz = clock, hertz
        self._since: float | None = None
        self.seen_s = 0.0
        self.begun: list[float] = []

    def attach(self) -> None:
        assert self._since is None, "attached twice"
        self._clock.now += AROUND_S
        self._since = self._clock.now
        self.begun.append(self._clock.now)

    def detach(self) -> None:
        if self._since is not None:
            self.seen_s += self._clock.now - self._since
            self._since = None
            self._clock.now += AROUND_S

    def total(self) -> int:
        now = self._clock.now - self._since if self._since is not None else 0.0
        return int((self.seen_s + now) * self._hertz)

    def lost(self) -> int:
        return 0

    def mechanism(self) -> str:
        return "a clock turned by hand"

    def close(self) -> None:
        self.detach()


class Nothing:
    """Statistics of programs, of which there are none."""

    def lookup(self, key: bytes) -> list[bytes]:
        return []

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    one = Clock()
    monkeypatch.setattr(question, "time", one)
    monkeypatch.setattr(asking, "time", one)
    monkeypatch.setattr(templates, "statistics", Nothing)
    random.seed(7)
    yield one
    question.trace_close()


@pytest.fixture
def steady(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Steady:
    """What every question is answered by; one after the other is opened, and the next counts from nothing."""
    one = Steady(clock, 1e6)

    def opened(*_of_what: object) -> Steady:
        assert one._since is None
        one.seen_s = 0.0
        one.begun.clear()
        return one

    monkeypatch.setattr(question, "counter_maker", lambda name: opened)
    return one


ASKED = {"kind": "count", "events": ["sched:sched_switch"]}


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001, 1e-6, 0.0])
def test_windows_are_never_more_than_their_share(share: float, clock: Clock, steady: Steady) -> None:
    """Over any time from the beginning on, and whatever the length of the single waits."""
    question.trace_start(ASKED, "perf", window=True)
    first_s, begun = steady.seen_s, clock.now
    question.trace_pace(share)
    clock.slept.clear()
    for _ in range(400):
        before = clock.now
        question.trace_wait(0.25)
        assert clock.now - before <= 0.25 + max(question.WINDOW_S, 0.25 * share) + 2 * AROUND_S, "nor for the end"
        # But for attaching, which was waited for and may be a moment more than is counted.
        assert steady.seen_s - first_s <= share * (clock.now - begun) + 1e-3
    assert max(clock.slept) <= 0.25, "nobody waits longer for Ctrl-C"
    if share >= 0.01:
        assert steady.seen_s - first_s > 0.7 * share * 100, "and what they may be is used"
        gaps = [later - one for one, later in zip(steady.begun[1:], steady.begun[2:], strict=False)]
        assert max(gaps) > 1.2 * min(gaps), "at random moments"


def test_a_share_that_changes_all_the_time_does_not_put_windows_off(clock: Clock, steady: Steady) -> None:
    question.trace_start(ASKED, "perf", window=True)
    for turn in range(400):
        question.trace_pace(0.01 + 1e-6 * turn)
        question.trace_wait(0.25)
    assert len(steady.begun) > 15


class Recorded:
    """A probe whose clock is turned by hand, and whose event costs what it is told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.paces: list[float] = []

    def call(self, op: str, /, *, on_progress: Any = None, timeout_s: float = 60.0, **args: Any) -> Any:
        self._clock.now += 0.003  # there and back
        if op == "hello":
            return {"boot_id": "budget"}
        if op == "trace_pace":
            self.paces.append(args["share"])
        if op == "trace_calibrate":
            raise ProbeError("here", op, {"message": "no", "errno": "EPERM"})
        return getattr(question, op)(**args)


def ask(clock: Clock, *, known: bool, stop: threading.Event | None = None, **more: Any) -> tuple[Answer, float]:
    """The answer, and how long it took; the rate is counted beforehand where the event is a tracepoint."""
    event = "sched:sched_switch" if known else "function:vfs_read"
    asked = Question.model_validate({"kind": "count", "events": (event,), **more})
    began = clock.now
    _, seen = load()
    found = asking.ask(
        Recorded(clock),  # type: ignore[arg-type]
        asked,
        host="here",
        conditions=conditions(seen.facts, load="none"),
        online=1,
        stop=stop,
        source="perf" if known else "function",
    )
    return found, clock.now - began


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("budget", "seconds"), [(0.01, 10.0), (0.005, 60.0), (0.002, 30.0)])
def test_the_budget_is_kept_over_the_run(
    known: bool, budget: float, seconds: float, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A million events a second of 37 or 60 ns: some 4 or 6 % of a core while it is attached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answer, took_s = ask(clock, known=known, budget=budget, seconds=seconds)
    assert answer.predicted is not None
    over_all = answer.predicted.ns_per_event * answer.events / (1e9 * seconds)
    assert 0.6 * budget < over_all <= budget, "kept, and used"
    assert answer.sampled < 0.3
    assert not any("not kept" in note for note in answer.notes)
    assert took_s <= seconds + 1


@pytest.mark.usefixtures("steady")
def test_a_budget_below_one_window_is_told_and_not_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A thousandth of a percent of two seconds is less than a window: one is seen, and no more, and said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answer, took_s = ask(clock, known=True, budget=1e-5, seconds=2.0)
    assert took_s <= 3
    assert answer.seconds < 0.03
    (said,) = [note for note in answer.notes if "not kept" in note]
    assert "0.001% of a core" in said and "the one window" in said


@pytest.mark.usefixtures("steady")
def test_what_is_within_the_budget_is_seen_all_the_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answer, _ = ask(clock, known=True, budget=0.5, seconds=5.0)
    assert answer.sampled == 1 and answer.seconds >= 4.9
    assert not any("sampled" in note or "not kept" in note for note in answer.notes)
