"""Events told to other programs: a real receiver, which refuses, hangs up, and checks signatures."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from evenkeel.errors import WrongInput
from evenkeel.lab import events, webhooks
from evenkeel.lab.actor import Forbidden, NotFound, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import webhook
from tests.lab.conftest import Clock
from tests.waiting import until

SOURCE = Path(webhooks.__file__).parent
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
    with httpx.Client(timeout=60) as client:
        return webhooks.deliver(lab, made.webhook.id, client)


def test_what_was_asked_for_is_told_in_order_and_signed(lab: Lab, receiver: Receiver) -> None:
    say(lab, "claim.made")
    made = webhooks.add(lab, ROOT, receiver.url, ["claim.*", "step.passed"])
    first, _, second = say(lab, "claim.began"), say(lab, "step.started"), say(lab, "step.passed")
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


def test_one_that_hangs_holds_up_nobody(lab: Lab, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_TIMEOUT_S", 3600.0)  # else the others would have their turn when it is given up
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        webhooks.add(lab, ROOT, f"http://127.0.0.1:{silent.getsockname()[1]}/", ["*"])
        webhooks.add(lab, ROOT, receiver.url, ["claim.*"])
        teller = webhooks.Teller(lab)
        try:
            seq = say(lab, "claim.a")
            until(lambda: receiver.seqs() == [seq])
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
        lambda: webhooks.webhook(lab, ann, 1),
        lambda: webhooks.deliveries(lab, ann, 1),
        lambda: webhooks.test(lab, ann, 1),
    ):
        with pytest.raises(Forbidden):
            act()
    for url in ("ftp://x", "x", "http://", "http://user:secret@x/", "http://x:port/", "http://a b/", "http://[::1/"):
        with pytest.raises(WrongInput, match="no address"):
            webhooks.add(lab, ROOT, url, ["*"])
    with pytest.raises(WrongInput, match="needs types"):
        webhooks.add(lab, ROOT, "https://x.example", [])
    by_number = (webhooks.remove, webhooks.resume, webhooks.webhook, webhooks.deliveries, webhooks.test)
    for one in by_number:
        with pytest.raises(NotFound, match="no webhook 9"):
            one(lab, ROOT, 9)


# -- what became of it --------------------------------------------------------------------------------------------


def test_deliveries_are_kept_with_their_outcome(lab: Lab, receiver: Receiver, clock: Clock) -> None:
    made = webhooks.add(lab, ROOT, receiver.url, ["claim.*"])
    number = made.webhook.id
    first = say(lab, "claim.began")
    receiver.status = 503
    deliver(lab, made)
    clock.move(1)
    receiver.status = 204
    deliver(lab, made)
    found = webhooks.deliveries(lab, ROOT, number).items
    assert [(one.seq, one.type, one.status, one.wrong) for one in found] == [
        (first, "claim.began", 204, ""),
        (first, "claim.began", 503, "it answered 503"),
    ]
    for _ in range(webhooks.KEPT):
        webhooks.test(lab, ROOT, number)
    first_page = webhooks.deliveries(lab, ROOT, number, limit=60)
    rest = webhooks.deliveries(lab, ROOT, number, after=first_page.next, limit=60)
    assert (len(first_page.items), len(rest.items), rest.next) == (60, webhooks.KEPT - 60, None)
    assert {one.seq for one in rest.items} == {0}, "the oldest are forgotten"
    webhooks.remove(lab, ROOT, number)


def test_a_test_is_signed_moves_nothing_and_says_why_it_was_not_taken(lab: Lab, receiver: Receiver) -> None:
    made = webhooks.add(lab, ROOT, receiver.url, ["claim.*"])
    number = made.webhook.id
    waiting = say(lab, "claim.began")
    before = webhooks.webhook(lab, ROOT, number)
    assert webhooks.test(lab, ROOT, number).wrong == ""
    headers, body = receiver.got[0]
    assert (headers["Evenkeel-Event"], headers["Evenkeel-Event-Seq"]) == ("webhook.test", "0")
    signed = hmac.new(made.key.encode(), headers["Evenkeel-Timestamp"].encode() + b"." + body, hashlib.sha256)
    assert headers["Evenkeel-Signature"] == f"sha256={signed.hexdigest()}"
    receiver.status = 500
    assert webhooks.test(lab, ROOT, number).wrong == "it answered 500"
    assert webhooks.webhook(lab, ROOT, number) == before
    receiver.status = 200
    assert deliver(lab, made) == 1 and receiver.seqs() == [0, 0, waiting]
    nobody = webhooks.add(lab, ROOT, "http://127.0.0.1:1/", ["*"]).webhook.id
    tried = webhooks.test(lab, ROOT, nobody)
    assert tried.status is None and "refused" in tried.wrong.lower()
    assert [one.data["taken"] for one in events.events(lab, ROOT, type_="webhook.tested").items] == [False, False, True]


# -- which events there are ---------------------------------------------------------------------------------------


def told(source: str) -> Iterator[tuple[str, bool]]:
    """Types of the events that are written there, and whether the whole of each is spelled out."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in ("event", "_event", "tell"):
            continue
        words = [
            part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        for word in words:
            if word.count(".") == 1 and word.partition(".")[0] in events.TYPES:
                yield word, not word.endswith(".")


def test_each_type_of_event_that_is_written_is_known() -> None:
    found = {one for path in SOURCE.rglob("*.py") for one in told(path.read_text(encoding="utf-8"))}
    assert ("step.started", True) in found and ("step.", False) in found, "the test looks at nothing"
    assert {one for one, whole in found if whole} - set(events.types()) == set()
    begun = {one for one, whole in found if not whole}
    spelled = {one for one, _ in found}
    never = [one for one in events.types() if one not in spelled and not one.startswith(tuple(begun))]
    elsewhere = {"claim.ends-soon", "claim.wanted", "artifact.pinned", "artifact.unpinned", "login"}
    assert set(never) <= elsewhere, "no event is of these types"
    assert list(told('store.event(c, who, "claim.eaten", "claim", 1)')) == [("claim.eaten", True)]


@pytest.mark.parametrize(
    ("chosen", "hint"),
    [
        ("step.ended", "step.passed"),
        ("claims.*", "claim.*"),
        ("", "claim.* for all of a kind"),
        ("x" * 300, "kinds are"),
        ("claim", "claim.began"),
    ],
)
def test_a_type_that_no_event_has_is_refused_with_those_that_there_are(lab: Lab, chosen: str, hint: str) -> None:
    with pytest.raises(WrongInput, match="no events of type") as found:
        webhooks.add(lab, ROOT, "https://x.example", ["claim.*", chosen])
    assert hint in (found.value.hint or "")
    for known in ("*", "claim.*", "step.failed", "console.my-pattern", "login"):
        events.check_type(known)


# -- the page -----------------------------------------------------------------------------------------------------


def test_the_page_adds_tests_shows_what_was_sent_and_removes(
    lab: Lab, receiver: Receiver, ask: Callable[..., TestClient]
) -> None:
    root, ann = ask("root", "admin"), ask("ann", "maintainer")
    assert "None yet" in root.get("/webhooks").text
    assert 'href="/webhooks"' not in ann.get("/").text and ann.get("/webhooks").status_code == 403
    wrong = root.post("/webhooks", data={"url": receiver.url, "types": "step.ended"})
    assert wrong.status_code == 422 and "step.passed" in wrong.text
    made = root.post("/webhooks", data={"url": receiver.url, "types": "claim.*, step.failed"})
    number = webhooks.webhooks(lab, ROOT)[0].id
    assert "shown this once" in made.text and "claim.*, step.failed" in made.text
    assert root.post(f"/webhooks/{number}/test").headers["location"] == f"/webhooks/{number}"
    receiver.status = 500
    root.post(f"/webhooks/{number}/test")
    shown = root.get(f"/webhooks/{number}").text
    assert "it answered 500" in shown and shown.count("a test") >= 2
    assert root.post(f"/webhooks/{number}/remove").headers["location"] == "/webhooks"
    assert root.get(f"/webhooks/{number}").status_code == 404


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
