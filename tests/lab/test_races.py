"""What two do at the same moment, and what a failed commit leaves: each was once seen to go wrong."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from evenkeel.lab import claims, protocol, schema, steps, submissions
from evenkeel.lab import dispatcher as dispatching
from evenkeel.lab.claims import Request
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Away
from tests.lab.conftest import Clock
from tests.lab.test_dispatcher import ANN, BOB, Player, begun, dispatcher, machine_of, run, send, states

__all__ = ["dispatcher"]  # the fixture
_HOUR_NS = 3600 * 10**9


def test_a_booked_machine_holds_up_its_step_and_no_other(lab: Lab, dispatcher: Dispatcher, clock: Clock) -> None:
    machine_of(lab, "only", 64)
    booking = Request(predicate="only", reason="x", length_ns=_HOUR_NS, not_before_ns=lab.now() + _HOUR_NS // 2)
    claims.request(lab, BOB, booking)
    agent = Player(dispatcher, slots=1)
    agent.hello()
    sent = send(lab, boot={"step": {"machine": "mem>=8GiB"}})
    run(dispatcher)  # comes to rest
    clock.move(1)
    send(lab, BOB, quick={})
    run(dispatcher)
    assert [start.step for start in agent.starts()] == ["quick"] and states(lab, sent.id) == {"boot": "ready"}


def _meanwhile(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, done: object) -> None:
    """Do something after a turn has read what happened, and before it writes."""
    choose = dispatcher._choose

    def late(*words: object) -> object:
        monkeypatch.setattr(dispatcher, "_choose", choose)
        assert callable(done)
        done()
        return choose(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatcher, "_choose", late)


def test_a_step_that_was_cancelled_while_a_turn_was_under_way_does_not_start(
    lab: Lab, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=1)
    sent = begun(lab, agent, one={}, two={"needs": ["one"]})
    two = steps.by_name(lab, ANN, sent.id, "two").id
    dispatcher.hear(agent.line, protocol.Ended(attempt=agent.starts()[0].attempt, state="passed"))
    _meanwhile(dispatcher, monkeypatch, lambda: steps.cancel(lab, ANN, two))
    run(dispatcher)
    assert states(lab, sent.id) == {"one": "passed", "two": "cancelled"}
    assert [start.step for start in agent.starts()] == ["one"]


def test_a_step_that_is_tried_again_while_the_last_one_ends_is_done(
    lab: Lab, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=2)
    sent = begun(lab, agent, one={}, two={})
    starts = {start.step: start for start in agent.starts()}
    agent.end(starts["one"], "failed", exit=1)
    dispatcher.hear(agent.line, protocol.Ended(attempt=starts["two"].attempt, state="passed"))
    one = steps.by_name(lab, ANN, sent.id, "one").id
    _meanwhile(dispatcher, monkeypatch, lambda: steps.retry(lab, ANN, one))
    run(dispatcher)
    assert [start.step for start in agent.starts()].count("one") == 2
    assert submissions.show(lab, ANN, sent.id).state == "open"


def _full(*_: object) -> None:
    raise OperationalError("full", {}, Exception("disk full"))


def _stops(agent: Player) -> list[int]:
    return [said.attempt for said in agent.line.said if isinstance(said, protocol.Stop)]


def test_a_stop_whose_commit_failed_is_said_when_the_next_one_is_done(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=1)
    sent = begun(lab, agent, one={})
    submissions.cancel(lab, ANN, sent.id)
    with monkeypatch.context() as patch:
        patch.setattr(dispatching, "write", _full)
        dispatcher.turn()
        assert _stops(agent) == []
    clock.move(30)
    run(dispatcher)
    assert _stops(agent) == [agent.starts()[0].attempt]


def test_agents_are_not_forgotten_while_the_database_cannot_be_read(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=1)
    sent = begun(lab, agent, one={})
    read = lab.store.read

    def away() -> None:
        raise Away("it does not answer")

    monkeypatch.setattr(dispatching, "write", _full)
    send(lab, two={})
    dispatcher.turn()
    monkeypatch.setattr(lab.store, "read", away)
    for _ in range(3):
        clock.move(30)
        dispatcher.turn()
        assert dispatcher.owns(agent.line, agent.starts()[0].attempt), "its log is nobody's"
    monkeypatch.undo()
    assert lab.store.read == read
    clock.move(30)
    dispatcher.hear(agent.line, protocol.Beat())
    run(dispatcher)
    clock.move(5)  # longer than an agent on this machine is waited for
    run(dispatcher)
    agent.end(agent.starts()[0])
    assert states(lab, sent.id) == {"one": "passed"} and len(agent.taken()) == 1


def test_the_process_of_an_agent_is_the_one_that_said_hello_though_its_row_is_older(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    agent = Player(dispatcher, slots=1)
    sent = begun(lab, agent, gone=False, one={})
    (start,) = agent.starts()
    lab.store.write(lambda c: c.execute(update(schema.agent).values(process="another boot:1:1")) and None)
    lab.store.holds += 1
    run(dispatcher)
    clock.move(30)
    run(dispatcher)
    assert states(lab, sent.id) == {"one": "running"}
    assert agent.hello(running=(start.attempt,), gone=False).stop == ()


def test_who_gets_the_right_to_write_back_asks_the_agents_and_takes_nothing_for_granted(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    agent = Player(dispatcher, slots=1)
    sent = begun(lab, agent, gone=False, one={}, two={})
    (start,) = agent.starts()
    assert dispatcher.begin() is None
    dispatcher.hear(agent.line, protocol.Ended(attempt=start.attempt, state="passed"))
    began = dispatcher.begin()
    assert began is not None
    began[1].result()
    lab.store.holds += 1  # as if the answer to that commit was lost with the connection, and another one made
    run(dispatcher)
    assert agent.line.closed and agent.taken() == []
    agent.hello(finished=(start.attempt,))
    dispatcher.hear(agent.line, protocol.Ended(attempt=start.attempt, state="passed"))
    run(dispatcher)
    assert agent.taken() == [False], "it was taken before, once"
    assert [again.attempt for again in agent.starts()] == [start.attempt + 1], "committed, and never said"
    agent.end(agent.starts()[0])
    assert states(lab, sent.id) == {"one": "passed", "two": "passed"}


def test_a_turn_of_a_right_to_write_that_was_lost_meanwhile_is_not_written(
    lab: Lab, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=1)
    agent.hello()
    sent = send(lab, one={})
    _meanwhile(dispatcher, monkeypatch, lambda: setattr(lab.store, "holds", lab.store.holds + 1))
    run(dispatcher)
    assert agent.starts() == [] and states(lab, sent.id) == {"one": "ready"}
    agent.hello()
    run(dispatcher)
    assert len(agent.starts()) == 1


def test_a_loss_whose_commit_failed_is_not_forgotten(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=1)
    sent = begun(lab, agent, one={})
    write = getattr(dispatching, "write")  # noqa: B009  it is the turn's own, which this module only calls
    dispatcher.hear(agent.line, None)
    monkeypatch.setattr(dispatching, "write", _full)
    dispatcher.turn()
    monkeypatch.setattr(dispatching, "write", write)
    other = Player(dispatcher, "b1")
    clock.move(30)
    other.hello()
    for _ in range(5):
        clock.move(60)
        dispatcher.hear(other.line, protocol.Beat())
        run(dispatcher)
    assert [start.step for start in other.starts()] == ["one"], states(lab, sent.id)
