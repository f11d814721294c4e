"""The front page: what it counts, when there is nothing and when there is much."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient
from sqlalchemy import insert

from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from tests.lab.conftest import Clock

Ask = Callable[..., TestClient]


def test_an_empty_lab_says_so(ask: Ask) -> None:
    found = ask("ann").get("/api/v1/overview").json()
    assert found["machines"] == {} and found["idle"]["share"] is None
    page = ask("ann").get("/")
    assert page.status_code == 200
    assert "None yet" in page.text and "Nothing to do" in page.text
    assert "Add the first one" in ask("root", "admin").get("/").text, "for who may"


def test_it_counts_what_is_there(ask: Ask, lab: Lab, clock: Clock) -> None:
    now = clock()
    hour = now - now % (3600 * 10**9)
    agent = {
        "name": "local",
        "kind": "local",
        "slots": 4,
        "labels": {},
        "state": "online",
        "fencing": 1,
        "identity": "x",
        "local": True,
    }
    states = ["ready", "ready", "broken", "retired"]
    common = {"state_since_ns": now, "identity": {}, "policy": {}, "registered_ns": now}
    machines = [{"id": f"m{n}", "name": f"host{n}", "state": state, **common} for n, state in enumerate(states)]

    def change(connection: object) -> None:
        run = connection.execute  # type: ignore[attr-defined]
        run(insert(schema.machine), machines)
        run(insert(schema.agent).values(**agent, hello_ns=now, seen_ns=now))
        run(insert(schema.idle).values(hour_ns=hour, cause="all", idle_ns=0, slots_ns=100 * 10**9))
        run(insert(schema.idle).values(hour_ns=hour, cause="machine", idle_ns=5 * 10**9, slots_ns=0))
        common = {"kind": "x", "submitter": "bob", "spec": {}, "state": "open", "submitted_ns": now}
        run(insert(schema.submission).values(id=1, name="branch <b>", **common))
        step = {"submission_id": 1, "kind": "x", "spec": {}}
        run(insert(schema.step).values(id=1, name="build", state="running", started_ns=now - 60 * 10**9, **step))
        run(insert(schema.step).values(id=2, name="test", state="blocked", **step))
        attempt = {"step_id": 1, "number": 1, "agent": "local", "fencing": 1, "state": "running"}
        run(insert(schema.attempt).values(**attempt, started_ns=now - 60 * 10**9))
        claim = {"kind": "reservation", "predicate": "name:host0", "requested_ns": now, "not_before_ns": now}
        run(insert(schema.claim).values(state="active", holder="ann", machine_id="m0", reason="mine", **claim))
        run(insert(schema.claim).values(state="waiting", holder="bob", reason="theirs", **claim))

    lab.store.write(change)
    found = ask("ann").get("/api/v1/overview").json()
    assert found["machines"] == {"ready": 2, "broken": 1}
    assert found["steps"] == {"running": 1, "blocked": 1}
    assert (found["agents"], found["slots"], found["busy"]) == (1, 4, 1)
    assert found["idle"]["share"] == 0.05
    assert [one["reason"] for one in found["mine"]] == ["mine"]
    assert [one["reason"] for one in found["wait"]] == ["theirs"]
    assert found["runs"][0]["step"] == "build" and found["open"][0]["submission"]["id"] == 1
    page = ask("ann").get("/").text
    for shown in ("5.0 ", "no machine of the kind is free", "branch &lt;b&gt;", "1 min", "1 broken", "host0"):
        assert shown in page, shown
    assert "Yours" not in ask("carl").get("/").text
