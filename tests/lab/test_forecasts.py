"""Forecasts in a running lab: made when something is sent in, shown while it waits, compared when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import RowMapping, select

from evenkeel.cli.root import run as evenkeel
from evenkeel.lab import boots, claims, credits, durations, forecasts, power_budget, schema, submissions
from evenkeel.lab import client as client_
from evenkeel.lab.actor import NotFound, with_roles
from evenkeel.lab.client import Client
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.forecast import foretell
from evenkeel.lab.forecasts import Forecaster, live_of
from evenkeel.lab.lab import Lab
from evenkeel.lab.order import MINUTE_NS
from evenkeel.lab.settings import Settings
from evenkeel.lab.step import graph_of
from tests.lab.conftest import Clock
from tests.lab.pool import ROOT
from tests.lab.test_claims import ask
from tests.lab.test_dispatcher import ANN, BOB, Player, machine_of, run, send
from tests.lab.test_power_budget import limit, stand

T = TypeVar("T")


class Asked:
    """The dispatcher of a test where that of a service would be."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    def ask(self, question: Callable[[Dispatcher], T]) -> T:
        run(self.dispatcher)
        return question(self.dispatcher)


@pytest.fixture
def dispatcher(lab: Lab) -> Dispatcher:
    made = Dispatcher(lab)
    lab.dispatching = Asked(made)  # type: ignore[assignment]
    learned = [(kind, kind, 10 * MINUTE_NS) for kind in ("build", "check") for _ in range(5)]
    lab.store.write(lambda connection: durations.add(connection, learned))
    return made


@pytest.fixture
def forecaster(lab: Lab, dispatcher: Dispatcher) -> Iterator[Forecaster]:
    """Without its thread: the test looks."""
    made = Forecaster(lab)
    lab.forecaster = made
    yield made
    lab.forecaster = None


def _rows(lab: Lab, object_: str) -> list[RowMapping]:
    table = schema.forecast
    with lab.store.read() as connection:
        return list(connection.execute(select(table).where(table.c.object == object_)).mappings())


def _graph(lab: Lab, **more: Any) -> submissions.SubmissionInFull:
    return send(lab, ANN, build={}, check={"needs": ["build"]}, **more)


def test_a_submission_gets_a_forecast_that_is_compared_with_what_came(
    lab: Lab, clock: Clock, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    agent = Player(dispatcher)
    agent.hello()
    sent = _graph(lab)
    forecaster.look()
    (row,) = _rows(lab, "submission")
    assert (row["end_p50_ns"] - lab.now(), row["unknown"]) == (20 * MINUTE_NS, "")
    assert len(_rows(lab, "step")) == 2
    for _ in range(2):
        start = agent.starts()[-1]
        clock.move(12 * 60)
        agent.end(start)
    forecaster.look()
    (row,) = _rows(lab, "submission")
    assert row["ended_ns"] - row["made_ns"] == 24 * MINUTE_NS
    assert sorted(step["ended_ns"] - row["made_ns"] for step in _rows(lab, "step")) == [12 * MINUTE_NS, 24 * MINUTE_NS]
    found = forecasts.of_submission(lab, BOB, sent.id)
    assert found.now is None and found.first is not None and found.first.end is not None
    assert found.ended_ns == lab.now()
    # Another one, after a restart, has learned from it.
    again = Forecaster(lab)
    assert len(again._calibration["submission", "end"]) == 0
    again.start()
    again.stop()
    assert len(again._calibration["submission", "end"]) == 1


def test_who_looks_sees_position_and_time_of_all_that_waits(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    agent = Player(dispatcher)
    agent.hello()
    first, second = send(lab, ANN, build={}), send(lab, ANN, build={})
    third = send(lab, BOB, build={})
    found = {sent.id: forecasts.of_submission(lab, ANN, sent.id) for sent in (first, second, third)}
    ends = {number: one.now and one.now.end and (one.now.end.p50_ns - lab.now()) // MINUTE_NS
            for number, one in found.items()}  # fmt: skip
    # ann has one running: bob's comes before her second one only once she has used more than a quantum.
    assert ends == {first.id: 10, second.id: 20, third.id: 30}
    last = found[third.id].now
    assert last is not None and (last.ahead, last.people) == (1, 1)
    assert found[third.id].steps.keys() == {"build"}
    with pytest.raises(NotFound):
        forecasts.of_submission(lab, ANN, 99)


def test_without_an_agent_it_says_so_and_keeps_that(lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster) -> None:
    Player(dispatcher).hello()
    sent = send(lab, ANN, build={"step": {"agent": "arch:riscv64"}}, check={"needs": ["build"]})
    forecaster.look()
    (row,) = _rows(lab, "submission")
    assert (row["start_p50_ns"], row["unknown"]) == (None, "no agent of that kind is online: arch:riscv64")
    eta = forecasts.of_submission(lab, ANN, sent.id).steps["check"]
    assert eta.unknown == "it comes after a step for which no agent of that kind is online: arch:riscv64"


def test_a_step_that_only_follows_a_failure_is_not_waited_for(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    Player(dispatcher).hello()
    sent = send(lab, ANN, build={}, check={"needs": [{"step": "build", "when": "state:failed"}]})
    found = forecasts.of_submission(lab, ANN, sent.id)
    assert found.steps.keys() == {"build"}
    assert found.now is not None and found.now.end is not None
    assert found.now.end.p50_ns - lab.now() == 10 * MINUTE_NS


def test_what_was_cancelled_teaches_nothing(
    lab: Lab, clock: Clock, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    Player(dispatcher).hello()
    sent = _graph(lab)
    forecaster.look()
    clock.move(60)
    submissions.cancel(lab, ANN, sent.id)
    run(dispatcher)
    forecaster.look()
    assert [row["ended_ns"] for row in _rows(lab, "submission")] == [None]
    assert len(forecaster._calibration["submission", "end"]) == 0


def test_too_many_open_steps_are_not_foretold_and_that_is_said(
    lab: Lab,
    dispatcher: Dispatcher,
    forecaster: Forecaster,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[..., TestClient],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(forecasts, "MOST_STEPS", 1)
    sent = _graph(lab)
    forecaster.look()
    assert _rows(lab, "submission") == []
    found = forecasts.of_submission(lab, ANN, sent.id)
    assert found.now is None and not found.steps
    said = f"{len(dispatcher.nodes)} steps are open, and forecasts are made for 1 at most"
    # Whoever looks is told so: by REST, and on each page that shows when things start and end.
    client = ask("ann")
    assert found.no_forecast == said == client.get(f"/api/v1/submissions/{sent.id}/eta").json()["no_forecast"]
    for path in ("/queue", "/overview"):
        assert client.get(f"/api/v1{path}").json()["no_forecast"] == said
    for path in ("/queue", "/", f"/submissions/{sent.id}"):
        assert f"not foretold now: {said}." in client.get(path).text, path
    for words in (["queue"], ["eta", str(sent.id)]):
        made = Client("http://lab")
        made.http = ask("ann")
        monkeypatch.setattr(client_, "connect", lambda at=None, made=made: made)
        assert evenkeel(["lab", *words]) == 0
        captured = capsys.readouterr()
        assert said in " ".join((captured.out + captured.err).split()), words
    monkeypatch.undo()
    for path in ("/queue", "/", f"/submissions/{sent.id}"):
        assert "not foretold" not in client.get(path).text, path


def test_looking_does_not_disturb_the_dispatcher(lab: Lab, dispatcher: Dispatcher) -> None:
    Player(dispatcher).hello()
    _graph(lab)
    run(dispatcher)
    before = dispatcher.ready.shares.all(lab.now())
    live = live_of(dispatcher).live
    live.shares.charge("ann", "", 10**15, lab.now())
    live.durations.learn("build", "build", 1)
    assert dispatcher.ready.shares.all(lab.now()) == before
    assert dispatcher.durations.median("build", "build") == 10 * MINUTE_NS


def test_an_urgent_submission_spends_a_credit_and_gets_it_back_when_nothing_began(
    lab: Lab, dispatcher: Dispatcher
) -> None:
    graph = graph_of({"version": 1, "name": "test", "steps": {"a": {"step": {"kind": "a", "command": ["true"]}}}})
    sent = [submissions.submit(lab, ANN, graph, urgent=True, reason="customer is down") for _ in range(4)]
    assert [one.urgent for one in sent] == [True, True, True, False]
    assert [one.asked and one.asked.outcome for one in sent] == ["spent", "spent", "spent", "beyond"]
    with_agent = Player(dispatcher)
    with_agent.hello()  # takes the first
    for one in sent[:2]:
        submissions.cancel(lab, ANN, one.id)
    assert credits.credit(lab, ANN).spent == 2, "the first had begun"
    outcomes = {use.object_id: use.outcome for use in credits.uses(lab, with_roles("x", ["viewer"])).items}
    assert outcomes == {"1": "spent", "2": "refunded", "3": "spent", "4": "beyond"}


def test_a_teams_share_comes_from_the_settings_and_use_is_known_again_after_a_restart(
    lab: Lab, clock: Clock, dispatcher: Dispatcher
) -> None:
    agent = Player(dispatcher)
    agent.hello()
    for _ in range(3):
        send(lab, ANN, build={})
        run(dispatcher)
        clock.move(50)
        agent.end(agent.starts()[-1])
    used, of_ann = dispatcher.ready.shares.used("ann", "", lab.now())
    assert used == of_ann == pytest.approx(150 * 10**9, rel=0.01)
    heavy = Lab(lab.folder, lab.store, Settings(shares={"~ann": 2}))
    again = Dispatcher(heavy)
    run(again)
    assert again.ready.shares.used("ann", "", lab.now()) == pytest.approx((used / 2, used), rel=0.02)


def test_what_the_dispatcher_has_not_heard_of_yet_is_foretold_a_moment_later(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    class Slow(Asked):
        """Hears of nothing the first two times."""

        asked = 0

        def ask(self, question: Callable[[Dispatcher], T]) -> T:
            self.asked += 1
            return super().ask(question) if self.asked > 2 else question(self.dispatcher)

    Player(dispatcher).hello()
    lab.dispatching = Slow(dispatcher)  # type: ignore[assignment]
    sent = _graph(lab)
    forecaster.look()
    assert [row["object_id"] for row in _rows(lab, "submission")] == [sent.id]
    lab.dispatching = Slow(dispatcher)  # type: ignore[assignment]
    other = _graph(lab)
    assert forecasts.of_submission(lab, ANN, other.id).now is not None


def test_the_time_that_a_machine_takes_to_wake_belongs_to_the_forecast(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    machine_of(lab, "sleeps", 64, state="off", state_reason=boots.ASLEEP)
    for _ in range(3):
        lab.store.write(lambda connection: boots.learn(connection, "machine sleeps", 240.0))
    Player(dispatcher).hello()
    sent = send(lab, ANN, build={"step": {"machine": "mem>=8GiB"}})
    eta = forecasts.of_submission(lab, ANN, sent.id).steps["build"]
    assert eta.unknown == "" and eta.start and eta.end
    assert (eta.start.p50_ns - lab.now(), eta.end.p50_ns - lab.now()) == (4 * MINUTE_NS, 14 * MINUTE_NS)


def test_a_machine_that_another_kind_of_step_has_is_free_when_that_ends(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    machine_of(lab, "only", 64)
    Player(dispatcher, slots=2).hello()
    send(lab, ANN, build={"step": {"machine": "mem>=8GiB"}})
    run(dispatcher)
    sent = send(lab, BOB, check={"step": {"machine": "mem>=16GiB"}})
    eta = forecasts.of_submission(lab, ANN, sent.id).steps["check"]
    assert eta.unknown == "" and eta.start
    assert eta.start.p50_ns - lab.now() == 10 * MINUTE_NS


def test_what_a_power_budget_keeps_back_is_foretold_for_when_enough_is_given_back(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    """A person's machine comes back nobody knows when; a step's when that ends."""
    stand(lab, "host1", "host2")
    limit(lab, 500)
    Player(dispatcher, slots=2).hello()

    def eta(machine: str) -> forecasts.Eta:
        sent = send(lab, ANN, build={"step": {"machine": machine}})
        run(dispatcher)
        return forecasts.of_submission(lab, ANN, sent.id).steps["build"]

    held = ask(lab, ANN, "host1")
    told = eta("host2")
    assert told.start is None
    assert told.unknown == "a power budget keeps back every machine that it could have"
    claims.release(lab, ANN, held.id)
    run(dispatcher)
    second = eta("host1")
    assert second.unknown == "" and second.start
    assert second.start.p50_ns - lab.now() == 10 * MINUTE_NS, "host2 has its step now"
    power_budget.remove(lab, ROOT, "rack-a")
    run(dispatcher)
    third = eta("host2")
    assert third.start and third.start.p50_ns - lab.now() == 10 * MINUTE_NS, "now for the machine, not for its power"


def test_what_is_being_started_or_is_ending_is_foretold_as_what_runs(
    lab: Lab, dispatcher: Dispatcher, forecaster: Forecaster
) -> None:
    """Seen between a choice and its writing, where its claim is not known yet; and a cancelled step holds its machine
    until its agent has ended it."""
    stand(lab, "host1", "host2")
    limit(lab, 500)
    agent = Player(dispatcher, slots=2)
    agent.hello()
    first = send(lab, ANN, build={"step": {"machine": "host1"}})
    second = send(lab, BOB, build={"step": {"machine": "host2"}})

    def starts() -> forecasts.Eta:
        live = forecasts._with_machines(lab, live_of(dispatcher))
        (number,) = (job.id for job in live.jobs if job.submission == second.id)
        return forecaster._eta("step", live.now_ns, foretell(live).steps[number])

    begun = dispatcher.begin()
    assert begun is not None
    told = starts()
    assert told.unknown == "" and told.start and told.start.p50_ns - lab.now() == 10 * MINUTE_NS
    dispatcher.finish(*begun)
    told = starts()
    assert told.unknown == "" and told.start and told.start.p50_ns - lab.now() == 10 * MINUTE_NS
    submissions.cancel(lab, ANN, first.id)
    run(dispatcher)
    told = starts()
    assert told.unknown == "" and told.start and told.start.p50_ns == lab.now()
