"""The lease of an agent elsewhere, as the agent counts it: over before the lab's own count ends, whatever happens."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from evenkeel.lab import protocol
from evenkeel.lab.agent import Agent, Line
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.executor import Job, OnEnd
from evenkeel.lab.lab import Lab
from evenkeel.lab.lease import Lease
from evenkeel.lab.protocol import Ended
from evenkeel.lab.store import Store, sqlite_url
from tests.lab.conftest import Clock
from tests.lab.test_dispatcher import Player, begun

S = 10**9


def test_a_lease_runs_from_the_question_and_not_from_the_answer(clock: Clock) -> None:
    lease = Lease(45 * S, clock.steady)
    first = lease.ask()
    clock.move(40)  # the answer is long on its way
    lease.answered(first)
    clock.move(5)
    assert not lease.over
    clock.move(0.1)
    assert lease.over
    second = lease.ask()
    clock.move(10)
    third = lease.ask()
    lease.answered(third)
    clock.move(40)
    lease.answered(second)  # overtaken: it takes nothing back
    assert not lease.over
    clock.move(5)
    lease.answered(third)  # answered before
    lease.answered(99)  # never sent
    clock.move(1)
    assert lease.over


def test_a_new_line_begins_it_anew_and_old_questions_are_over(clock: Clock) -> None:
    lease = Lease(None, clock.steady)
    clock.move(10**6)
    assert not lease.over, "the lab sees this agent by itself"
    number = lease.ask()
    clock.move(30)
    lease.begin(clock.steady(), 45 * S)
    clock.move(40)
    lease.answered(number)
    assert not lease.over
    clock.move(6)
    assert lease.over


def test_the_agents_clock_goes_on_while_its_machine_sleeps_and_the_labs_does_not(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two differ only on a machine that has slept, so it is looked at which of them the kernel is asked for."""
    asked: list[int] = []

    def ask(clock: int) -> int:
        asked.append(clock)
        return len(asked)

    monkeypatch.setattr(time, "clock_gettime_ns", ask)
    assert not Lease(45).over
    assert set(asked) == {time.CLOCK_BOOTTIME}
    asked.clear()
    with Store(sqlite_url(lab.folder / "other.db")) as store:
        Lab(lab.folder, store).steady()
    assert asked == [time.CLOCK_MONOTONIC]


class Executor:
    """Steps that run until they are told to end."""

    kind = "process"

    def __init__(self) -> None:
        self.running: dict[int, OnEnd] = {}
        self.cancelled: list[tuple[int, str, str]] = []
        self.hangs = False

    def submit(self, job: Job, on_end: OnEnd) -> None:
        self.running[job.attempt] = on_end

    def cancel(self, attempt: int, state: str, cause: str) -> None:
        self.cancelled.append((attempt, state, cause))
        if (on_end := self.running.pop(attempt, None)) is not None:
            on_end(Ended(attempt=attempt, state="lost", cause=cause))

    def adopt(self, job: Job, on_end: OnEnd) -> bool:
        self.running[job.attempt] = on_end
        return True

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass


class Playing:
    """An agent whose lab the test plays, with seconds that pass when the test says so.

    ``second()`` lets each of the agent's tasks that sleep or wait for a while go on once."""

    agent: Agent
    _task: asyncio.Task[None]

    def __init__(self, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.clock, self.executor = folder, clock, Executor()
        self.heard: list[protocol.FromAgent] = []
        self.says: asyncio.Queue[protocol.FromLab | None] = asyncio.Queue()
        self.reachable, self.log_s = True, 0.0
        self._sleepers: list[asyncio.Future[None]] = []
        self._sleep, self._timeout = asyncio.sleep, asyncio.timeout
        monkeypatch.setattr(asyncio, "sleep", self._wait)
        monkeypatch.setattr(asyncio, "timeout", self._limit)
        monkeypatch.setattr(asyncio, "to_thread", self._call)

    async def _wait(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append(future)
        await future

    async def _call(self, what: Callable[..., Any], *arguments: object) -> Any:
        if what == self.executor.poll and self.executor.hangs:
            await asyncio.get_running_loop().create_future()
        return what(*arguments)

    @asynccontextmanager
    async def _limit(self, seconds: float) -> AsyncIterator[None]:
        """Of ``_tell``, which waits for something to tell, or for so long."""
        async with self._timeout(None) as limit:
            slept = asyncio.ensure_future(self._wait(seconds))
            slept.add_done_callback(lambda done: None if done.cancelled() else limit.reschedule(0))
            try:
                yield
            finally:
                slept.cancel()

    @asynccontextmanager
    async def _dial(self) -> AsyncIterator[Line]:
        if not self.reachable:
            raise OSError("nobody answers")

        async def send(message: protocol.FromAgent) -> None:
            self.heard.append(message)
            if isinstance(message, protocol.Log):
                self.clock.move(self.log_s)

        async def messages() -> AsyncIterator[protocol.FromLab]:
            while (message := await self.says.get()) is not None:
                yield message

        yield Line(send, messages())

    async def settle(self) -> None:
        for _ in range(50):
            await self._sleep(0)

    async def seconds(self, number: int) -> None:
        for _ in range(number):
            await self.second()

    async def second(self, seconds: float = 1) -> None:
        self.clock.move(seconds)
        sleepers, self._sleepers = self._sleepers, []
        for one in sleepers:
            if not one.done():
                one.set_result(None)
        await self.settle()

    def say(self, message: protocol.FromLab | None) -> None:
        self.says.put_nowait(message)

    def beats(self) -> list[int]:
        return [message.number for message in self.heard if isinstance(message, protocol.Beat)]

    async def begin(
        self, lease_ns: int | None = protocol.LEASE_NS, *, answer_s: float = 0, local: bool = False
    ) -> None:
        self.agent = Agent(
            self.folder, "far", 4, {}, self._dial, lambda identity: self.executor, local=local, clock=self.clock.steady
        )
        self._task = asyncio.create_task(self.agent.run())
        await self.settle()
        self.clock.move(answer_s)
        self.say(protocol.Welcome(fencing=1, lease_ns=lease_ns))
        self.say(protocol.Start(attempt=7, submission=1, step="one", use={}))
        await self.settle()
        assert list(self.executor.running) == [7]

    def goes_on(self) -> bool:
        return not self.executor.cancelled

    def gave_up(self) -> bool:
        return [one[:2] for one in self.executor.cancelled[:1]] == [(7, "lost")]

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def playing(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Playing:
    return Playing(tmp_path, clock, monkeypatch)


def played(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test in an event loop, whose agent is ended with it."""

    @functools.wraps(test)
    def run_it(**fixtures: Any) -> None:
        async def whole() -> None:
            await test(**fixtures)
            await fixtures["playing"].end()

        asyncio.run(whole())

    return run_it


@played
async def test_an_agent_that_is_answered_goes_on_and_one_that_is_not_ends_its_steps(playing: Playing) -> None:
    await playing.begin()
    for _ in range(120):
        await playing.second()
        for number in playing.beats():
            playing.say(protocol.Alive(number=number))
        await playing.settle()
    assert playing.goes_on()
    assert len(playing.beats()) == 12, "one each ten seconds"
    await playing.seconds(protocol.LEASE_NS // S - 1)  # the line stands, and nothing comes
    assert playing.goes_on()
    await playing.seconds(3)
    assert playing.gave_up()


@played
async def test_a_welcome_that_is_long_on_its_way_gives_no_longer_lease(playing: Playing) -> None:
    await playing.begin(answer_s=30)
    await playing.seconds(14)
    assert playing.goes_on()
    await playing.seconds(3)
    assert playing.gave_up()


@played
async def test_a_slow_line_that_is_full_of_logs_still_carries_beats(playing: Playing) -> None:
    await playing.begin()
    for number in (8, 9):
        playing.say(protocol.Start(attempt=number, submission=1, step="one", use={}))
    await playing.settle()
    for attempt in playing.agent._attempts.values():
        attempt.job.folder.mkdir(parents=True)
        attempt.job.log.write_bytes(b"it goes on")
    playing.log_s = 8
    await playing.second()
    said = [type(message) for message in playing.heard if isinstance(message, protocol.Log | protocol.Beat)]
    assert said == [protocol.Log, protocol.Log, protocol.Beat, protocol.Log]


@played
async def test_a_line_that_is_found_dead_late_does_not_make_the_lease_longer(playing: Playing) -> None:
    """A cut network shows after tens of seconds; the lab has counted since the last word that it heard."""
    await playing.begin()
    await playing.seconds(40)
    playing.reachable = False
    playing.say(None)
    await playing.seconds(4)
    assert playing.goes_on()
    await playing.seconds(3)
    assert playing.gave_up()


@played
async def test_a_cluster_that_does_not_answer_does_not_hold_up_the_end_of_a_lease(playing: Playing) -> None:
    playing.executor.hangs = True
    await playing.begin()
    await playing.seconds(48)
    assert playing.gave_up()


@played
async def test_an_agent_whose_machine_slept_ends_its_steps_when_it_wakes(playing: Playing) -> None:
    await playing.begin()
    await playing.second()
    await playing.second(600)  # one wait of a second, by a clock that went on
    assert playing.gave_up()


@pytest.mark.parametrize("seconds", [61.0, -61.0, 365 * 86400.0])
@played
async def test_the_wall_clock_of_an_agent_may_be_set(
    playing: Playing, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: clock() / 1e9)
    monkeypatch.setattr(time, "time_ns", clock)
    await playing.begin()
    clock.jump(seconds)
    await playing.seconds(30)
    assert playing.goes_on()
    await playing.seconds(17)
    assert playing.gave_up()


@played
async def test_an_agent_that_needs_no_lease_goes_on_for_ever(playing: Playing) -> None:
    await playing.begin(lease_ns=None, local=True)
    playing.reachable = False
    playing.say(None)
    for _ in range(5):
        await playing.second(86400)
    assert playing.goes_on()


@played
async def test_how_long_a_result_waited_is_told_by_time_that_passed(playing: Playing, clock: Clock) -> None:
    await playing.begin(lease_ns=None, local=True)
    playing.reachable = False
    playing.say(None)
    await playing.second()
    playing.executor.running.pop(7)(Ended(attempt=7, state="passed"))
    await playing.settle()
    await playing.second(300)
    clock.jump(3600)
    playing.reachable = True
    await playing.second()
    playing.say(protocol.Welcome(fencing=2, lease_ns=None))
    await playing.second()
    (told,) = [message for message in playing.heard if isinstance(message, Ended)]
    assert 300 * S <= told.ago_ns <= 303 * S


def test_a_result_that_waited_counts_from_when_it_ended(lab: Lab, clock: Clock) -> None:
    dispatcher = Dispatcher(lab)
    agent = Player(dispatcher)
    begun(lab, agent, one={})
    clock.move(400)
    agent.end(agent.starts()[0], ago_ns=300 * S)
    assert dispatcher.durations.median("one", "") == 100 * S


def test_only_agents_that_the_lab_sees_by_itself_need_no_lease(lab: Lab) -> None:
    dispatcher = Dispatcher(lab)
    assert Player(dispatcher, "near").hello(local=True).lease_ns is None
    assert Player(dispatcher, "far").hello(local=False).lease_ns == protocol.LEASE_NS
