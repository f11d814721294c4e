"""Statistics of the queue agree with what was played, on the page, by REST and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from evenkeel.errors import WrongInput
from evenkeel.lab import credits, durations, statistics
from evenkeel.lab.actor import Forbidden, with_roles
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.forecasts import Forecaster
from evenkeel.lab.lab import Lab
from evenkeel.lab.order import DAY_NS, MINUTE_NS
from evenkeel.lab.protocol import Beat
from evenkeel.lab.store import Store, create
from tests.lab.conftest import Clock
from tests.lab.postgres import BIN
from tests.lab.test_dispatcher import ANN, BOB, Player, run, send
from tests.lab.test_forecasts import Asked, dispatcher, forecaster
from tests.lab.test_postgres import server

__all__ = ["dispatcher", "forecaster", "server"]  # fixtures
Ask = Callable[..., TestClient]


@pytest.mark.long
@pytest.mark.skipif(BIN is None, reason="no PostgreSQL (Debian package postgresql)")
def test_all_of_it_on_postgresql(server: Callable[[], str], tmp_path: Path, clock: Clock) -> None:
    with Store(server(), clock=clock, steady=clock.steady) as store:
        create(store)
        lab = Lab(tmp_path, store)
        dispatcher = Dispatcher(lab)
        lab.dispatching = Asked(dispatcher)  # type: ignore[assignment]
        learned = [("build", "build", 10 * MINUTE_NS) for _ in range(5)]
        store.write(lambda connection: durations.add(connection, learned))
        lab.forecaster = forecaster = Forecaster(lab)
        _play(lab, clock, dispatcher, forecaster)
        found = statistics.statistics(lab, ANN)
        assert [one.count for one in found.waits] == [3, 3]
        assert {one.person: one.submissions for one in found.usage} == {"ann": 1, "bob": 2}
        assert {one.object: one.count for one in found.forecasts} == {"submission": 2, "step": 2}
        again = Dispatcher(lab)
        run(again)
        for person in ("ann", "bob"):
            before, after = (one.ready.shares.used(person, "", lab.now())[0] for one in (dispatcher, again))
            assert after == pytest.approx(before, rel=0.02)
        assert credits.make_urgent(lab, BOB, 3, "customer is down").outcome == "spent"
        store.write(lambda connection: credits.refund(connection, lab, BOB, "submission", 3))
        assert [use.outcome for use in credits.uses(lab, ANN).items] == ["refunded"]


def _play(lab: Lab, clock: Clock, dispatcher: Dispatcher, forecaster: Forecaster) -> None:
    """ann's build for 10 minutes, then bob's for 30, on one agent; another agent fits neither."""
    agent, other = Player(dispatcher, arch="x86_64"), Player(dispatcher, "other", arch="aarch64")
    agent.hello()
    other.hello()
    for who, minutes in ((ANN, 10), (BOB, 30)):
        send(lab, who, build={"step": {"agent": "arch:x86_64"}})
        if who is ANN:
            send(lab, BOB, build={"step": {"agent": "arch:x86_64"}})
        run(dispatcher)
        forecaster.look()
        for _ in range(minutes):
            clock.move(60)
            for one in (agent, other):
                dispatcher.hear(one.line, Beat())
            run(dispatcher)
        agent.end(agent.starts()[-1])
    forecaster.look()


def test_statistics_are_what_was_played(lab: Lab, clock: Clock, dispatcher: Dispatcher, forecaster: Forecaster) -> None:
    began = lab.now()
    _play(lab, clock, dispatcher, forecaster)
    clock.move(60)
    run(dispatcher)
    found = statistics.statistics(lab, ANN)
    assert found.since_ns == lab.now() - 7 * DAY_NS
    # Something waited all the time, and the other agent could have had none of it.
    assert set(found.idle.by_cause) == {"fit"}
    assert found.idle.share is not None and 0.4 < found.idle.share <= 0.5
    assert found.idle.slots_ns <= 2 * (lab.now() - began)
    all_, other = found.waits
    assert (all_.of, all_.count, other.of) == ("all", 3, "other")
    assert all_.p50_ns == 10 * MINUTE_NS
    usage = {one.person: (one.used_ns, one.submissions) for one in found.usage}
    assert usage["ann"] == (10 * MINUTE_NS, 1)
    assert usage["bob"] == (31 * MINUTE_NS, 2)
    assert sum(one.share for one in found.usage) == pytest.approx(1)
    coverage = {one.object: one for one in found.forecasts}
    assert coverage["submission"].count == 2
    assert coverage["submission"].covered == 0.5, "ann's build took what was foretold, bob's three times that"
    assert coverage["submission"].error_p90_ns > 10 * MINUTE_NS
    learned = {one.kind: one for one in found.learned}
    assert (learned["build"].count, learned["build"].timeout_ns) == (7, 30 * MINUTE_NS)


def test_nothing_is_shown_as_nothing(lab: Lab, ask: Ask) -> None:
    found = statistics.statistics(lab, ANN)
    assert (found.idle.share, found.waits, found.forecasts, found.usage, found.learned) == (None, (), (), (), ())
    page = ask("ann").get("/statistics")
    assert page.status_code == 200 and "No agent was here in this time." in page.text


def test_page_and_rest_show_the_same(
    lab: Lab, clock: Clock, dispatcher: Dispatcher, forecaster: Forecaster, ask: Ask
) -> None:
    _play(lab, clock, dispatcher, forecaster)
    ann = ask("ann")
    data = ann.get("/api/v1/statistics", params={"days": 2}).json()
    assert data == statistics.statistics(lab, ANN, back_ns=2 * DAY_NS).model_dump(mode="json")
    page = ann.get("/statistics?days=30").text
    assert "what waits fits other agents only" in page
    assert "50.0 %" in page
    etas = ann.get("/api/v1/etas").json()
    assert list(etas) == ["3"]
    one = ann.get("/api/v1/submissions/3/eta").json()
    assert one["now"] == etas["3"] and one["first"]["end"]
    assert ann.get("/api/v1/submissions/9/eta").status_code == 404


def test_who_may_not_read_sees_nothing(lab: Lab, ask: Ask) -> None:
    with pytest.raises(Forbidden):
        statistics.statistics(lab, with_roles("x", []))
    assert ask(None).get("/api/v1/statistics").status_code == 401
    for back_ns in (0, -1, 500 * DAY_NS):
        with pytest.raises(WrongInput):
            statistics.statistics(lab, ANN, back_ns=back_ns)
