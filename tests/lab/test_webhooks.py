"""Webhooks: each event is told at least once and in order, signed; nobody who does not answer loses any."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab import events, schema, webhooks
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.webhooks import GIVE_UP_NS, SIGNATURE, TOGETHER, Wanted, Webhook
from tests.lab.conftest import Clock

ROOT, ANN = with_roles("root", ["admin"]), with_roles("ann", ["maintainer"])
Ask = Callable[..., TestClient]


class Listener:
    """A program elsewhere, on a socket.  ``status``: what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.more = threading.Semaphore(0)
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.heard.append((dict(self.headers), body))
                self.send_response(listener.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                listener.more.release()

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def ids(self) -> list[str]:
        """Of the events that it heard of, in that order."""
        return [one["object_id"] for _, body in self.heard for one in json.loads(body)["events"]]


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(follow_redirects=False) as client:
        yield client


def happen(lab: Lab, *numbers: int, type_: str = "claim.began") -> None:
    for number in numbers:
        lab.store.write(lambda c, number=number: lab.store.event(c, "ann", type_, "claim", number))  # type: ignore[misc]


def look(lab: Lab, http: httpx.Client) -> list[bool]:
    """What the thread does at each look."""
    due = (schema.webhook.c.state == "active") & (schema.webhook.c.next_ns <= lab.now())
    with lab.store.read() as connection:
        rows = connection.execute(select(schema.webhook).where(due)).all()
    return [webhooks.tell_due(lab, http, row) for row in rows]


def one(lab: Lab) -> Webhook:
    (found,) = webhooks.listing(lab, ROOT)
    return found


def test_it_is_told_of_what_it_asked_for_from_then_on_in_order_and_signed(
    lab: Lab, listener: Listener, http: httpx.Client, clock: Clock
) -> None:
    happen(lab, 1)
    made = webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url, types=["claim.*"]))
    happen(lab, 2, 3)
    happen(lab, 99, type_="machine.state")
    look(lab, http)
    look(lab, http)
    assert listener.ids() == ["2", "3"]
    headers, body = listener.heard[0]
    at, _, sign = headers[SIGNATURE].partition(",v1=")
    wanted = hmac.new(made.secret.encode(), f"{at.removeprefix('t=')}.".encode() + body, hashlib.sha256)
    assert hmac.compare_digest(sign, wanted.hexdigest()) and int(at.removeprefix("t=")) == clock.at_ns // 10**9
    assert one(lab).error == "" and one(lab).told_ns == clock.at_ns
    assert made.secret not in json.dumps([e.model_dump() for e in events.events(lab, ROOT).items])


@pytest.mark.parametrize("status", [500, 404, 302])
def test_who_does_not_take_it_is_told_again_later_and_of_everything(
    lab: Lab, listener: Listener, http: httpx.Client, clock: Clock, status: int
) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url))
    listener.status = status
    happen(lab, 1)
    look(lab, http)
    assert str(status) in one(lab).error
    assert look(lab, http) == []  # not at once
    happen(lab, 2)
    listener.status, listener.heard = 200, []
    clock.move(11)
    look(lab, http)
    assert listener.ids() == ["1", "2"] and one(lab).failures == 0


def test_tries_come_at_longer_intervals_until_it_is_given_up_and_resumed_it_loses_nothing(
    lab: Lab, listener: Listener, http: httpx.Client, clock: Clock
) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url="http://127.0.0.1:1/"))
    happen(lab, 1)
    waits = []
    while one(lab).state == "active":
        look(lab, http)
        waits.append(one(lab).next_ns - clock.at_ns)
        clock.at_ns = max(clock.at_ns, one(lab).next_ns)
    assert waits[:4] == [10 * 10**9, 20 * 10**9, 40 * 10**9, 80 * 10**9] and max(waits) == 3600 * 10**9
    assert sum(waits) >= GIVE_UP_NS and len(waits) < 100
    assert events.events(lab, ROOT, type_="webhook.given-up").items[0].object_id == "chat"
    happen(lab, 2)
    assert look(lab, http) == []
    webhooks.remove(lab, ROOT, "chat")
    webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url))
    webhooks.pause(lab, ROOT, "chat")
    happen(lab, 3)
    assert look(lab, http) == []
    webhooks.resume(lab, ROOT, "chat")
    look(lab, http)
    assert listener.ids() == ["3"]


def test_many_events_go_in_several_messages(lab: Lab, listener: Listener, http: httpx.Client) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url))
    happen(lab, *range(TOGETHER + 5))
    assert look(lab, http) == [True]
    assert look(lab, http) == [False]
    assert listener.ids() == [str(number) for number in range(TOGETHER + 5)]
    assert len(listener.heard) == 2


def test_what_was_sent_and_not_written_down_is_sent_again(
    lab: Lab, listener: Listener, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the answer and the database: at least once, never lost."""
    webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url))
    happen(lab, 1)
    write = lab.store.write
    monkeypatch.setattr(lab.store, "write", lambda change: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look(lab, http)
    monkeypatch.setattr(lab.store, "write", write)
    look(lab, http)
    assert listener.ids() == ["1", "1"]


def test_the_service_tells_by_itself(lab: Lab, listener: Listener) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url))
    with webhooks.part(lab, FastAPI()) as teller:
        happen(lab, 1)
        assert listener.more.acquire(timeout=20)
        assert teller.failed is None
    assert listener.ids() == ["1"]


def test_it_is_not_told_of_itself(lab: Lab, listener: Listener, http: httpx.Client) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url=listener.url))
    webhooks.pause(lab, ROOT, "chat")
    webhooks.resume(lab, ROOT, "chat")
    look(lab, http)
    assert listener.heard == []


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"name": "a b", "url": "http://x/"}, "no name"),
        ({"name": "a", "url": "ftp://x/"}, "no address"),
        ({"name": "a", "url": "http://"}, "no address"),
        ({"name": "a", "url": "/etc/passwd"}, "no address"),
        ({"name": "a", "url": "http://u:p@x/"}, "password"),
        ({"name": "a", "url": "http://x/", "types": ["[a]"]}, "no type"),
    ],
)
def test_what_cannot_be_told_is_refused(lab: Lab, wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(WrongInput, match=told):
        webhooks.add(lab, ROOT, Wanted(**wanted))
    assert webhooks.listing(lab, ROOT) == ()


def test_only_admins_decide_where_the_service_sends_requests(lab: Lab) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url="http://x/"))
    with pytest.raises(Conflict):
        webhooks.add(lab, ROOT, Wanted(name="chat", url="http://y/"))
    for act in (
        lambda: webhooks.add(lab, ANN, Wanted(name="b", url="http://x/")),
        lambda: webhooks.listing(lab, ANN),
        lambda: webhooks.pause(lab, ANN, "chat"),
        lambda: webhooks.test(lab, ANN, "chat"),
        lambda: webhooks.remove(lab, ANN, "chat"),
    ):
        with pytest.raises(Forbidden):
            act()
    with pytest.raises(NotFound):
        webhooks.remove(lab, ROOT, "other")


def test_rest_and_page(ask: Ask, lab: Lab, listener: Listener) -> None:
    client = ask("root", "admin")
    made = client.post("/api/v1/webhooks", json={"name": "chat", "url": listener.url, "types": ["claim.*"]}).json()
    assert made["secret"] and "secret" not in client.get("/api/v1/webhooks").json()[0]
    assert client.post("/api/v1/webhooks/chat/test").status_code == 200
    assert listener.ids() == [] and len(listener.heard) == 1
    listener.status = 500
    assert client.post("/api/v1/webhooks/chat/test").status_code == 502
    assert client.post("/api/v1/webhooks/chat/pause").json()["state"] == "paused"
    assert "paused" in client.get("/webhooks").text
    assert client.post("/webhooks/chat/resume").status_code == 303
    text = client.post("/webhooks", data={"name": "ci", "url": listener.url, "types": "machine.state, claim.*"}).text
    assert "shown this once" in text
    assert client.get("/api/v1/webhooks").json()[1]["types"] == ["machine.state", "claim.*"]
    assert client.post("/webhooks/ci/remove").status_code == 303
    assert client.delete("/api/v1/webhooks/chat").status_code == 204
    assert client.get("/api/v1/webhooks").json() == []
    assert ask("ann", "maintainer").get("/webhooks").status_code == 403
    assert "Webhooks" not in ask("ann", "maintainer").get("/").text


def test_no_answer_is_unreachable(lab: Lab) -> None:
    webhooks.add(lab, ROOT, Wanted(name="chat", url="http://127.0.0.1:1/"))
    with pytest.raises(Unreachable, match="no answer"):
        webhooks.test(lab, ROOT, "chat")
