"""Idempotency-Key: the second request does nothing and is answered as the first; also after a crash between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from sqlalchemy import select

from evenkeel.lab import events, idempotency, schema
from evenkeel.lab.actor import Actor
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.lab import Lab
from tests.lab.conftest import Clock

Ask = Callable[..., TestClient]
KEY = {"Idempotency-Key": "k1"}


def thing(ask: Ask, name: str = "ann") -> TestClient:
    client = ask(name)
    router = APIRouter()

    @router.post("/api/v1/thing")
    def make(caller: Caller, body: dict[str, Any]) -> dict[str, int]:
        seq = caller.lab.store.write(lambda c: caller.lab.store.event(c, caller.actor.name, "thing.made", "thing", 1))
        if body.get("crash"):
            raise RuntimeError("a defect after the change")
        return {"made": seq}

    if not any(getattr(route, "path", "") == "/api/v1/thing" for route in client.app.routes):  # type: ignore[attr-defined]
        client.app.include_router(router)  # type: ignore[attr-defined]
    return client


def made(lab: Lab) -> int:
    return len(events.events(lab, Actor("x", frozenset({"read"})), type_="thing.made").items)


def test_the_second_time_nothing_is_done_and_the_answer_is_the_same(ask: Ask, lab: Lab, clock: Clock) -> None:
    client = thing(ask)
    first = client.post("/api/v1/thing", json={"a": 1}, headers=KEY)
    again = client.post("/api/v1/thing", json={"a": 1}, headers=KEY)
    assert (first.json(), first.status_code) == (again.json(), again.status_code)
    assert "Idempotency-Replayed" not in first.headers and again.headers["Idempotency-Replayed"] == "true"
    assert made(lab) == 1
    client.post("/api/v1/thing", json={"a": 1})
    assert made(lab) == 2, "without a key each is one of its own"
    clock.move(90_000)
    client.post("/api/v1/thing", json={"a": 1}, headers=KEY)
    assert made(lab) == 3, "kept for a day"
    assert idempotency.forget_old(lab) == 0
    clock.move(90_000)
    assert idempotency.forget_old(lab) == 1


def test_a_key_is_for_one_request_of_one_person(ask: Ask, lab: Lab) -> None:
    thing(ask).post("/api/v1/thing", json={"a": 1}, headers=KEY)
    other = thing(ask).post("/api/v1/thing", json={"a": 2}, headers=KEY)
    assert other.status_code == 422 and "another request" in other.json()["detail"]
    assert thing(ask, "bob").post("/api/v1/thing", json={"a": 2}, headers=KEY).status_code == 200
    assert made(lab) == 2


def test_a_refused_request_is_refused_again(ask: Ask) -> None:
    wanted = {"name": "x", "roles": ["user"]}
    for _ in range(2):
        assert ask("ann").post("/api/v1/people", json=wanted, headers=KEY).status_code == 403


def test_a_change_whose_answer_was_lost_is_not_made_again(ask: Ask, lab: Lab) -> None:
    client = thing(ask)
    with pytest.raises(RuntimeError):
        client.post("/api/v1/thing", json={"crash": True}, headers=KEY)
    assert made(lab) == 1
    again = client.post("/api/v1/thing", json={"crash": True}, headers=KEY)
    assert again.status_code == 409 and "answer was lost" in again.json()["detail"]
    assert made(lab) == 1


def test_what_cannot_be_kept_is_refused(ask: Ask) -> None:
    assert thing(ask).post("/api/v1/thing", json={}, headers={"Idempotency-Key": "k" * 201}).status_code == 422
    large = thing(ask).post("/api/v1/thing", json={"a": "x" * (1 << 20)}, headers=KEY)
    assert large.status_code == 413


def test_what_is_shown_once_is_not_kept_with_the_key(ask: Ask, lab: Lab) -> None:
    root = ask("root", "admin")
    token = {"name": "ci", "scopes": ["read"], "length_ns": 10**12}
    made = root.post("/api/v1/tokens", json=token, headers={"Idempotency-Key": "k1"})
    assert made.status_code in (200, 201), made.text
    with lab.store.read() as connection:
        kept = connection.execute(select(schema.idempotency)).all()
    assert made.json()["secret"] not in str(kept) and kept[0].body == b""
    assert root.post("/api/v1/tokens", json=token, headers={"Idempotency-Key": "k1"}).status_code == 409
    root.put("/api/v1/secrets/bmc", json={"password": "x"}, headers={"Idempotency-Key": "k2"})
    with lab.store.read() as connection:
        assert [row.key for row in connection.execute(select(schema.idempotency))] == ["k1"]


def test_a_token_does_not_become_a_session(ask: Ask) -> None:
    assert ask("root", "admin").post("/api/v1/login/link").status_code == 403
