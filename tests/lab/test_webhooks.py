"""Events told to other programs: a real receiver, which refuses, hangs up, and checks signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from sqlalchemy import select

from evenkeel.errors import WrongInput
from evenkeel.lab import events, webhooks
from evenkeel.lab.actor import Forbidden, NotFound, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import webhook
from tests.lab.conftest import Clock

ROOT = with_roles("root", ["admin"], via="socket")


class Receiver:
    """Keeps what it got; answers ``status``."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append((dict(self.headers.items()), body))
                self.send_response(outer.status)
                self.send_header("location", outer.url)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def seqs(self) -> list[int]:
        return [int(headers["Evenkeel-Event-Seq"]) for headers, _ in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def say(lab: Lab, kind: str) -> int:
    return lab.store.write(lambda connection: lab.store.event(connection, "ann", kind, "claim", 7, reason="x"))


def deliver(lab: Lab, made: webhooks.NewWebhook) -> int:
    with httpx.Client(timeout=5) as client:
        return webhooks.deliver(lab, made.webhook.id, client)


def test_what_was_asked_for_is_told_in_order_and_signed(lab: Lab, receiver: Receiver) -> None:
    say(lab, "claim.made")
    made = webhooks.add(lab, ROOT, receiver.url, ["claim.*", "step.ended"])
    first, _, second = say(lab, "claim.began"), say(lab, "step.started"), say(lab, "step.ended")
    assert deliver(lab, made) == 2
    assert receiver.seqs() == [first, second], "not what was before, and not what it does not want"
    headers, body = receiver.got[0]
    assert json.loads(body)["type"] == "claim.began"
    signed = headers["Evenkeel-Timestamp"].encode() + b"." + body
    expected = hmac.new(made.key.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["Evenkeel-Signature"] == f"sha256={expected}"
    assert deliver(lab, made) == 0, "each once"
    with lab.store.read() as connection:
        assert made.key not in str(connection.execute(select(webhook)).all())


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_refused_event_comes_again_later_and_nothing_overtakes_it(
    lab: Lab, receiver: Receiver, clock: Clock, status: int
) -> None:
    made = webhooks.add(lab, ROOT, receiver.url, ["claim.*"])
    first, second = say(lab, "claim.a"), say(lab, "claim.b")
    receiver.status = status
    assert deliver(lab, made) == 0 and receiver.seqs() == [first]
    assert webhooks.webhooks(lab, ROOT)[0].last == f"it answered {status}"
    assert deliver(lab, made) == 0 and receiver.seqs() == [first], "not before a second has gone"
    clock.move(1)
    deliver(lab, made)
    clock.move(1)
    deliver(lab, made)
    assert receiver.seqs() == [first, first], "two seconds after the second failure"
    clock.move(1)
    receiver.status = 204
    assert deliver(lab, made) == 2
    assert receiver.seqs() == [first, first, first, second]
    assert webhooks.webhooks(lab, ROOT)[0].failures == 0


def test_who_does_not_answer_for_a_day_is_switched_off(lab: Lab, clock: Clock) -> None:
    made = webhooks.add(lab, ROOT, "http://127.0.0.1:1/", ["claim.*"])
    seq = say(lab, "claim.a")
    tries = 0
    while not (shown := webhooks.webhooks(lab, ROOT)[0]).off:
        assert deliver(lab, made) == 0
        clock.move(4 * 3600)
        tries += 1
        assert tries < 20
    assert tries == 7 and shown.after < seq and "refused" in shown.last.lower()
    assert events.events(lab, ROOT, type_="webhook.off").items
    assert webhooks.resume(lab, ROOT, made.webhook.id).off is False


def test_one_that_hangs_holds_up_nobody(lab: Lab, receiver: Receiver) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        webhooks.add(lab, ROOT, f"http://127.0.0.1:{silent.getsockname()[1]}/", ["*"])
        webhooks.add(lab, ROOT, receiver.url, ["claim.*"])
        teller = webhooks.Teller(lab)
        try:
            seq = say(lab, "claim.a")
            end = time.monotonic() + 10
            while receiver.seqs() != [seq]:
                assert time.monotonic() < end
                time.sleep(0.01)
        finally:
            silent.close()
            lab.stopping.set()
            teller.close()


def test_who_may_and_what_is_no_address(lab: Lab) -> None:
    ann = with_roles("ann", ["maintainer"])
    for act in (
        lambda: webhooks.add(lab, ann, "https://x.example", ["*"]),
        lambda: webhooks.webhooks(lab, ann),
        lambda: webhooks.remove(lab, ann, 1),
        lambda: webhooks.resume(lab, ann, 1),
    ):
        with pytest.raises(Forbidden):
            act()
    for url in ("ftp://x", "x", "http://", "http://user:secret@x/"):
        with pytest.raises(WrongInput, match="no address"):
            webhooks.add(lab, ROOT, url, ["*"])
    with pytest.raises(WrongInput, match="needs types"):
        webhooks.add(lab, ROOT, "https://x.example", [])
    for act in (lambda: webhooks.remove(lab, ROOT, 9), lambda: webhooks.resume(lab, ROOT, 9)):
        with pytest.raises(NotFound):
            act()


def test_a_clock_that_is_set_back_puts_the_next_try_off_no_longer_than_any_pause(
    lab: Lab, receiver: Receiver, clock: Clock
) -> None:
    made = webhooks.add(lab, ROOT, receiver.url, ["claim.*"])
    say(lab, "claim.began")
    receiver.status = 500
    assert deliver(lab, made) == 0
    receiver.status = 200
    assert deliver(lab, made) == 0, "its pause is not over"
    clock.jump(-30 * 86400)
    assert deliver(lab, made) == 1
