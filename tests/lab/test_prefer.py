"""`Prefer: wait=N`: a GET that is answered when there is news, in time, and that holds nothing for who went away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from evenkeel.cli import lab_claims, lab_queue
from evenkeel.lab import claims, machines, submissions
from evenkeel.lab.actor import with_roles
from evenkeel.lab.api import prefer
from evenkeel.lab.api.app import create_app
from evenkeel.lab.client import Client
from evenkeel.lab.lab import Lab
from evenkeel.lab.step import graph_of
from tests.lab.pool import ANN, BOB, add
from tests.waiting import until

Ask = Callable[..., TestClient]


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The header of who is answered by news: before it is by the time, the test has ended as one that hangs."""
    monkeypatch.setattr(prefer, "MOST_S", 3600)
    return {"Prefer": "wait=3600"}


def submit(lab: Lab) -> int:
    steps = {"one": {"step": {"kind": "one", "command": ["true"]}}}
    return submissions.submit(lab, ANN, graph_of({"version": 1, "name": "test", "steps": steps})).id


@contextmanager
def in_the_background(act: Callable[[], Any], lab: Lab) -> Iterator[Future[Any]]:
    """The block begins when the request waits."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(act)
        until(lambda: len(lab.store._listeners) > 0 or made.done())
        yield made


def test_it_is_answered_when_the_submission_has_ended(lab: Lab, ask: Ask, hours: dict[str, str]) -> None:
    number = submit(lab)
    waiting = {"Prefer": f"respond-async, {hours['Prefer'].title()}"}
    with in_the_background(lambda: ask("ann").get(f"/api/v1/submissions/{number}", headers=waiting), lab) as asked:
        assert not asked.done()
        submit(lab)  # of something else: no news
        time.sleep(0.5)
        assert not asked.done()
        submissions.cancel(lab, ANN, number)
        answer = asked.result(120)
    assert answer.json()["state"] == "cancelled"
    assert answer.headers["Preference-Applied"] == "wait=3600"
    assert lab.store._listeners == []


def test_it_is_answered_after_so_many_seconds_as_it_is_then(lab: Lab, ask: Ask) -> None:
    number = submit(lab)
    for path in (f"/api/v1/submissions/{number}", f"/api/v1/submissions/{number}/steps/one", "/api/v1/steps/1"):
        began = time.monotonic()
        answer = ask("ann").get(path, headers={"Prefer": "wait=1"})
        assert time.monotonic() - began >= 1
        assert (answer.status_code, answer.json()["state"]) == (200, "open" if "steps" not in path else "ready")
    assert lab.store._listeners == []


def test_what_is_over_is_answered_at_once(lab: Lab, ask: Ask, hours: dict[str, str]) -> None:
    number = submit(lab)
    submissions.cancel(lab, ANN, number)
    answer = ask("ann").get(f"/api/v1/submissions/{number}", headers=hours)
    assert (answer.json()["state"], answer.headers["Preference-Applied"]) == ("cancelled", "wait=3600")


@pytest.mark.parametrize(
    "said", ["", "wait", "wait=", "wait=-1", "wait=soon", "wait=1.5", "wait=9999999999", "return=minimal"]
)
def test_what_is_no_preference_of_ours_is_ignored(lab: Lab, ask: Ask, said: str) -> None:
    answer = ask("ann").get(f"/api/v1/submissions/{submit(lab)}", headers={"Prefer": said})
    assert answer.status_code == 200 and "Preference-Applied" not in answer.headers


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("wait=5", 5), ('WAIT = "7"', 7), ("return=minimal; x=1, wait=0", 0), ("wait=86400", 60), ("wait=3;soon", 3)],
)
def test_how_long_it_is_waited(said: str, seconds: int) -> None:
    assert prefer._wait_of(said) == seconds


def test_a_known_etag_is_answered_with_304_until_there_is_news(lab: Lab, ask: Ask, hours: dict[str, str]) -> None:
    number = submit(lab)
    path = f"/api/v1/submissions/{number}"
    etag = ask("ann").get(path).headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        same = ask("ann").get(path, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert ask("ann").get(path, headers={"If-None-Match": '"1"'}).status_code == 200
    assert ask("ann").get(path, headers={"If-None-Match": etag, "Prefer": "wait=1"}).status_code == 304
    news = {"If-None-Match": etag, **hours}
    with in_the_background(lambda: ask("ann").get(path, headers=news), lab) as asked:
        submissions.cancel(lab, ANN, number)
        answer = asked.result(120)
    assert answer.status_code == 200 and answer.headers["etag"] != etag
    # What was told as an ETag is the version that a change asks for, too.
    assert ask("ann").post(f"{path}/cancel", headers={"If-Match": etag}).status_code == 412


def test_an_etag_of_a_submission_is_another_when_one_of_its_steps_is(lab: Lab, ask: Ask) -> None:
    number = submit(lab)
    paths = f"/api/v1/submissions/{number}", "/api/v1/steps/1"
    before = [ask("ann").get(path).headers["etag"] for path in paths]
    assert before == [ask("ann").get(path).headers["etag"] for path in paths]
    ask("ann").post("/api/v1/steps/1/cancel")
    after = [ask("ann").get(path).headers["etag"] for path in paths]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_claim_is_waited_for_until_its_machine_is_there(lab: Lab, ask: Ask, hours: dict[str, str]) -> None:
    add(lab, "host1", policy=machines.Policy(prepare="none"))
    request = claims.Request(predicate="host1", reason="to test it")
    had = claims.request(lab, BOB, request)
    wants = claims.request(lab, ANN, request)
    path = f"/api/v1/claims/{wants.id}"
    etag = ask("ann").get(path).headers["etag"]
    assert ask("ann").get(path, headers={"Prefer": "wait=1"}).json()["state"] == "waiting"
    with in_the_background(lambda: ask("ann").get(path, headers=hours), lab) as asked:
        claims.release(lab, BOB, had.id)
        answer = asked.result(120)
    assert answer.json()["state"] == "active" and answer.headers["etag"] != etag


def test_who_may_not_or_asks_for_nothing_is_not_kept_waiting(lab: Lab, ask: Ask, hours: dict[str, str]) -> None:
    number = submit(lab)
    assert ask(None).get(f"/api/v1/submissions/{number}", headers=hours).status_code == 401
    assert ask("ann").get(f"/api/v1/submissions/{number + 1}", headers=hours).status_code == 404


def test_who_goes_away_is_not_waited_for(lab: Lab, hours: dict[str, str]) -> None:
    number = submit(lab)
    app = create_app(lab, who=lambda _: with_roles("ann", ["user"], via="session"))
    gone = asyncio.Event()
    begun = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if begun:
            return begun.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        del message

    async def go_away() -> None:
        path = f"/api/v1/submissions/{number}"
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(b"prefer", hours["Prefer"].encode()), (b"host", b"lab")],
            "client": None, "server": None, "state": {},
        }  # fmt: skip
        asked = asyncio.ensure_future(app(scope, receive, send))
        while not lab.store._listeners:
            await asyncio.sleep(0.01)
        gone.set()
        await asyncio.wait_for(asked, 120)

    asyncio.run(go_away())
    assert lab.store._listeners == []


def test_a_service_that_stops_answers_at_once(lab: Lab, ask: Ask, hours: dict[str, str]) -> None:
    number = submit(lab)
    with in_the_background(lambda: ask("ann").get(f"/api/v1/submissions/{number}", headers=hours), lab) as asked:
        lab.stopping.set()
        answer = asked.result(120)
    assert answer.json()["state"] == "open" and "Preference-Applied" not in answer.headers


def test_the_client_asks_again_later_where_a_lab_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("evenkeel.lab.client.time.sleep", rests.append)
    said: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        said.append(request.headers["prefer"])
        applied = {"Preference-Applied": "wait=20"} if len(said) > 1 else {}
        return httpx.Response(200, json={"state": "open"}, headers=applied)

    with Client("http://lab") as client:
        client.http = httpx.Client(base_url="http://lab", transport=httpx.MockTransport(answer))
        client.wait("/submissions/1", 20)
        assert rests == [1]
        client.wait("/submissions/1", 20)
    assert (rests, said) == ([1], ["wait=20", "wait=20"])


def test_commands_wait_in_this_way_and_not_longer_than_their_line_is_quiet() -> None:
    asked: list[tuple[str, int]] = []

    class Told:
        """A lab in which it ends at the third look."""

        def wait(self, path: str, seconds: int) -> dict[str, Any]:
            asked.append((path, seconds))
            state = "passed" if path.startswith("/sub") else "active"
            waits = "open" if path.startswith("/sub") else "waiting"
            return {"id": 7, "predicate": "x", "waits": None, "state": state if len(asked) == 3 else waits}

    assert lab_queue._wait(Told(), 7)["state"] == "passed"
    assert [path for path, _ in asked] == ["/submissions/7"] * 3
    limit_s = Client("http://lab").http.timeout.read
    assert limit_s and all(seconds < limit_s - 5 for _, seconds in asked)
    asked.clear()
    made = {"id": 7, "predicate": "x", "waits": None, "state": "waiting"}
    assert lab_claims._wait(Told(), made)["state"] == "active"  # type: ignore[arg-type]
    assert [path for path, _ in asked] == ["/claims/7"] * 3
    assert all(seconds < limit_s - 5 for _, seconds in asked)
