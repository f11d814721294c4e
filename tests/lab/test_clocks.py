"""The wall clock is set while a lab works: no lease, no time limit and no number that people see follows it.

Each test that jumps was seen to fail with leases and limits on the wall clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError

from evenkeel.lab import power, protocol, schema, steps
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.durations import TIMEOUT_FROM
from evenkeel.lab.events import last_seq
from evenkeel.lab.idle import idle_while_waiting
from evenkeel.lab.lab import Lab
from evenkeel.lab.touch import Touched
from evenkeel.lab.turn import Turn
from tests.lab.conftest import Clock
from tests.lab.test_dispatcher import ANN, Player, begun, run, send, states

#: A minute, as by a resumed virtual machine; a year, as by a board without a battery that finds its time server.
JUMPS = [61.0, 365 * 86400.0, -61.0, -365 * 86400.0]


@pytest.fixture
def dispatcher(lab: Lab) -> Iterator[Dispatcher]:
    yield Dispatcher(lab)


def beat(agent: Player) -> None:
    agent.dispatcher.hear(agent.line, protocol.Beat())
    run(agent.dispatcher)


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_step_on_an_agent_elsewhere_is_not_started_again_when_the_clock_jumps(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    far, other = Player(dispatcher, "far"), Player(dispatcher, "other")
    sent = begun(lab, far, local=False, one={"step": {"limits": {"time": "10min"}}})
    (start,) = far.starts()
    clock.jump(seconds)
    other.hello(local=False)
    for _ in range(3):
        clock.move(20)
        beat(other)
        beat(far)
    assert other.starts() == []
    assert not far.line.closed
    assert [said.type for said in far.line.said].count("stop") == 0
    far.end(start)
    assert far.taken() == [True]
    assert [one.state for one in steps.by_name(lab, ANN, sent.id, "one").attempts] == ["passed"]


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_cut_line_is_waited_for_as_long_as_ever(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    """Not shorter, and not for ever."""
    far, other = Player(dispatcher, "far"), Player(dispatcher, "other")
    far.hello(local=False)
    sent = begun(lab, other, local=False, one={}, two={})
    far.hang_up()
    clock.jump(seconds)
    clock.move(59)
    beat(other)
    assert sorted(states(lab, sent.id).values()) == ["running", "running"]
    clock.move(2)
    run(dispatcher)
    assert sorted(states(lab, sent.id).values()) == ["ready", "running"]


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_service_that_was_restarted_gives_every_agent_a_whole_lease(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    far, other = Player(dispatcher, "far"), Player(dispatcher, "other")
    sent = begun(lab, far, local=False, one={"step": {"limits": {"time": "10min"}}})
    (start,) = far.starts()
    clock.jump(seconds)
    clock.steady_ns = 1  # of another machine, which has just booted
    again = far.dispatcher = other.dispatcher = Dispatcher(lab)
    run(again)
    clock.move(59)
    other.hello(local=False)
    assert states(lab, sent.id) == {"one": "running"}
    assert far.hello(local=False, running=(start.attempt,)).stop == ()
    clock.jump(-2 * seconds)
    for _ in range(27):  # its time limit begins anew here; the agent keeps the first one
        clock.move(20)
        beat(far)
        beat(other)
    assert states(lab, sent.id) == {"one": "running"}
    assert [said.type for said in far.line.said].count("stop") == 0
    clock.move(10)
    beat(far)
    assert [said.type for said in far.line.said].count("stop") == 1
    assert other.starts() == []


@pytest.mark.parametrize("seconds", JUMPS)
def test_an_agent_that_does_not_come_back_after_a_restart_is_given_up_though_the_clock_jumps(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    far = Player(dispatcher, "far")
    sent = begun(lab, far, local=False, one={})
    again = Dispatcher(lab)
    run(again)
    clock.jump(seconds)
    clock.move(59)
    run(again)
    assert states(lab, sent.id) == {"one": "running"}
    clock.move(2)
    run(again)
    assert states(lab, sent.id) == {"one": "ready"}


def test_who_gets_the_right_to_write_back_waits_for_agents_that_another_service_had_meanwhile(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    far, other = Player(dispatcher, "far"), Player(dispatcher, "other")
    far.hello(local=False)
    far.hang_up()
    sent = send(lab, one={})
    far.dispatcher = Dispatcher(lab)
    far.hello(local=False)
    (start,) = far.starts()
    clock.move(600)  # and then the other service is gone, too
    lab.store.holds += 1
    other.hello(local=False)
    assert states(lab, sent.id) == {"one": "running"}
    clock.move(59)
    beat(other)
    far.dispatcher = dispatcher
    assert far.hello(local=False, running=(start.attempt,)).stop == ()
    far.end(start)
    assert other.starts() == []
    assert states(lab, sent.id) == {"one": "passed"}


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_time_limit_is_kept_by_time_that_passes(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    agent = Player(dispatcher)
    begun(lab, agent, one={"step": {"limits": {"time": "50s"}}})
    clock.jump(seconds)
    clock.move(54)
    beat(agent)
    assert [said.type for said in agent.line.said].count("stop") == 0
    clock.move(2)
    beat(agent)
    assert [said.type for said in agent.line.said].count("stop") == 1
    clock.jump(seconds)
    clock.move(59)  # and so is the grace to end it
    beat(agent)
    assert [said.type for said in agent.line.said].count("stop") == 1
    clock.move(2)
    beat(agent)
    assert [said.type for said in agent.line.said].count("stop") == 2


@pytest.mark.parametrize("seconds", JUMPS)
def test_the_pause_after_a_failed_commit_ends_and_forgets_no_time_limit(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    agent = Player(dispatcher)
    begun(lab, agent, one={"step": {"limits": {"time": "100s"}}})
    clock.move(90)
    beat(agent)
    full = True

    @event.listens_for(lab.store.engine, "commit")
    def commit(_: object) -> None:
        if full:
            raise OperationalError("COMMIT", {}, Exception("database or disk is full"))

    other = Player(dispatcher, "other")
    dispatcher.hear(other.line, protocol.Hello(name="other", identity="x", slots=1, labels={}))
    run(dispatcher)
    full = False
    clock.jump(seconds)
    run(dispatcher)
    assert other.line.said == []
    clock.move(1.1)
    run(dispatcher)
    assert [said.type for said in other.line.said] == ["welcome"]
    assert [said.type for said in agent.line.said].count("stop") == 0
    clock.move(15)
    beat(agent)
    assert [said.type for said in agent.line.said].count("stop") == 1


@pytest.mark.parametrize("seconds", JUMPS)
def test_nobody_learns_a_wrong_duration_from_a_jump(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float
) -> None:
    agent = Player(dispatcher)
    agent.hello()
    for _ in range(TIMEOUT_FROM):
        sent = send(lab, learned={})
        run(dispatcher)
        clock.jump(seconds)
        clock.move(200)
        beat(agent)
        agent.end(agent.starts()[-1])
        (attempt,) = steps.by_name(lab, ANN, sent.id, "learned").attempts
        assert attempt.ended_ns is not None and attempt.ended_ns - attempt.started_ns == 200 * 10**9
    send(lab, learned={})
    run(dispatcher)
    assert agent.starts()[-1].timeout_ns == 600 * 10**9


def test_an_attempt_begins_when_it_is_given_away_and_not_when_that_turn_began(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it seems to end too early, by as long as it took to read all anew."""
    agent = Player(dispatcher)
    agent.hello()
    sent = send(lab, one={})
    read = dispatcher._read_events

    def read_slowly(turn: Turn) -> None:
        clock.move(5)
        read(turn)

    with monkeypatch.context() as patch:
        patch.setattr(dispatcher, "_read_events", read_slowly)
        assert dispatcher.turn()
    given = lab.now()
    clock.move(10)
    agent.end(agent.starts()[0])
    (attempt,) = steps.by_name(lab, ANN, sent.id, "one").attempts
    assert (attempt.started_ns, attempt.ended_ns) == (given, lab.now())


@pytest.mark.parametrize("seconds", JUMPS)
def test_idle_time_counts_time_that_passed(lab: Lab, dispatcher: Dispatcher, clock: Clock, seconds: float) -> None:
    agent, other = Player(dispatcher, arch="x86_64"), Player(dispatcher, "other", arch="aarch64")
    agent.hello()
    begun(lab, other, one={"step": {"agent": "arch:x86_64"}}, two={"step": {"agent": "arch:x86_64"}})
    clock.move(1)
    run(dispatcher)
    clock.jump(seconds)
    clock.move(20)
    beat(other)
    counted = idle_while_waiting(lab, ANN, since_ns=0)
    assert (counted.slots_ns, counted.by_cause) == ((1 * 1 + 2 * 20) * 10**9, {"fit": 20 * 10**9})


def test_a_step_that_its_agent_would_not_end_is_not_started_again(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    """It may run there still: only its agent knows."""
    agent, other = Player(dispatcher), Player(dispatcher, "other")
    agent.hello(local=False)
    retry = {"retry": {"times": 3, "causes": ["time"]}}
    sent = send(lab, one={"step": {"limits": {"time": "10s"}, **retry}})
    run(dispatcher)
    other.hello(local=False)
    for _ in range(20):
        clock.move(20)
        beat(agent)
        beat(other)
    assert [said.type for said in agent.line.said].count("stop") == 3
    assert states(lab, sent.id) == {"one": "failed"}
    assert other.starts() == []
    with lab.store.read() as connection:
        assert connection.scalar(select(schema.agent.c.state).where(schema.agent.c.name == "a1")) == "drained"


def test_a_boot_that_the_console_showed_before_a_command_is_not_its_effect(lab: Lab, clock: Clock) -> None:
    machine = Touched("id-host1", "host1", "ready", "", "", None, {}, "", "")

    def boots() -> None:
        lab.store.write(
            lambda c: lab.store.event(c, "lab", "console.boot", "machine", "id-host1", line="Linux version")
        )

    boots()
    sent = last_seq(lab)
    clock.jump(-3600)
    assert not power._booted_on_console(lab, machine, sent)
    clock.move(60)
    boots()
    assert power._booted_on_console(lab, machine, sent)
