"""What two do at the same moment, and what a failed commit leaves: each was once seen to go wrong."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from evenkeel.lab import claims, protocol, steps, submissions
from evenkeel.lab import dispatcher as dispatching
from evenkeel.lab.claims import Request
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.lab import Lab
from tests.lab.conftest import Clock
from tests.lab.test_dispatcher import ANN, BOB, Player, dispatcher, machine_of, run, send, states

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
    agent.hello()
    sent = send(lab, one={}, two={"needs": ["one"]})
    run(dispatcher)
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
    agent.hello()
    sent = send(lab, one={}, two={})
    run(dispatcher)
    starts = {start.step: start for start in agent.starts()}
    agent.end(starts["one"], "failed", exit=1)
    dispatcher.hear(agent.line, protocol.Ended(attempt=starts["two"].attempt, state="passed"))
    one = steps.by_name(lab, ANN, sent.id, "one").id
    _meanwhile(dispatcher, monkeypatch, lambda: steps.retry(lab, ANN, one))
    run(dispatcher)
    assert [start.step for start in agent.starts()].count("one") == 2
    assert submissions.show(lab, ANN, sent.id).state == "open"


def test_a_loss_whose_commit_failed_is_not_forgotten(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Player(dispatcher, slots=1)
    agent.hello()
    sent = send(lab, one={})
    run(dispatcher)
    write = getattr(dispatching, "write")  # noqa: B009  it is the turn's own, which this module only calls

    def full(*_: object) -> None:
        raise OperationalError("full", {}, Exception("disk full"))

    dispatcher.hear(agent.line, None)
    monkeypatch.setattr(dispatching, "write", full)
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
