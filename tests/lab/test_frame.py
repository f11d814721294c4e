"""The frame: errors as problem+json or as pages, who is unknown, the page itself, and the client's way back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from evenkeel.errors import EvenkeelError, Unreachable, Where, WrongInput
from evenkeel.lab import problem as problems
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, NotLoggedIn, Stale, need_version
from evenkeel.lab.api import problem
from evenkeel.lab.api.app import create_app
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import NeededVersion, Version
from evenkeel.lab.api.who import Identify
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import key_of, page
from evenkeel.lab.store import Store

ROOT = Path(__file__).parents[2]
Ask = Callable[..., TestClient]
ERRORS = [
    (NotLoggedIn("who?"), 401),
    (Forbidden("bob may not", hint="ask ann"), 403),
    (NotFound("no machine x"), 404),
    (Conflict("it is claimed"), 409),
    (Stale("changed meanwhile"), 412),
    (WrongInput("line is wrong", where=Where("site.yaml", 3, 7), hint="write it so"), 422),
    (Unreachable("no answer"), 502),
]


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_goes_there_and_back(error: EvenkeelError, status: int) -> None:
    answer = problem.response(error)
    assert (answer.status_code, answer.media_type) == (status, "application/problem+json")
    with pytest.raises(type(error)) as found:
        problems.raise_problem(status, problems.body_of(error), "here")
    assert (found.value.message, found.value.hint, found.value.where) == (error.message, error.hint, error.where)


def test_what_is_no_problem_document_is_told(ask: Ask) -> None:
    with pytest.raises(EvenkeelError, match="proxy answered 502"):
        problems.raise_problem(502, None, "proxy")


def test_a_database_that_is_away_is_no_defect_and_refuses_no_agent(lab: Lab) -> None:
    """A PostgreSQL that is not there, asked by the real service's own way of finding out who asks."""
    with Store("postgresql://nobody@/none?host=/nowhere") as store:
        client = TestClient(create_app(Lab(lab.folder, store), who=Identify(Lab(lab.folder, store))))
        known = {"Authorization": "Bearer x"}
        answer = client.get("/api/v1/machines", headers=known)
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "2"
        assert "systemctl status postgresql" in answer.json()["hint"], answer.text
        with pytest.raises(Unreachable, match="the database does not answer"):
            problems.raise_problem(503, answer.json(), "here")
        page = client.get("/machines", headers=known)
        assert page.status_code == 503 and "systemctl status postgresql" in page.text and "Not now" in page.text
        # 403 would tell an agent that its token is worth nothing, and it would end with all that it runs.
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            client.websocket_connect("/api/v1/agents/line", headers=known),
        ):
            pass
        assert denied.value.status_code == 503


def test_nothing_there_is_a_problem_for_programs_and_a_page_for_people(ask: Ask) -> None:
    answer = ask("ann").get("/api/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "there is nothing at this address"
    answer = ask("ann").get("/nothing")
    assert answer.status_code == 404
    assert "Not here" in answer.text and answer.headers["content-type"].startswith("text/html")


def test_who_is_unknown_is_led_to_the_log_in(ask: Ask) -> None:
    answer = ask(None).get("/?a=b")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/%3Fa%3Db")


def test_the_front_page_names_who_looks(ask: Ask) -> None:
    answer = ask("<b>ann").get("/")
    assert answer.status_code == 200
    assert "&lt;b&gt;ann" in answer.text and "<b>ann" not in answer.text
    assert 'aria-current="page">Overview' in answer.text


def test_handlers_get_lab_and_actor_and_versions(ask: Ask) -> None:
    client = ask("ann")
    router = APIRouter()

    @router.post("/api/v1/thing")
    def act(caller: Caller, version: Version) -> dict[str, str | int | None]:
        need_version("thing", version, 3)
        return {"actor": caller.actor.name, "version": version}

    @router.put("/api/v1/thing")
    def replace(caller: Caller, version: NeededVersion) -> None: ...

    client.app.include_router(router)  # type: ignore[attr-defined]
    assert client.post("/api/v1/thing").json() == {"actor": "ann", "version": None}
    assert client.post("/api/v1/thing", headers={"If-Match": '"3"'}).json()["version"] == 3
    assert client.post("/api/v1/thing", headers={"If-Match": '"2"'}).status_code == 412
    assert client.post("/api/v1/thing", headers={"If-Match": '"other"'}).status_code == 412
    assert client.put("/api/v1/thing").status_code == 428
    assert client.put("/api/v1/thing", headers={"If-Match": "*"}).status_code == 200
    assert ask(None).post("/api/v1/thing").status_code == 401


def test_cursors_go_on_after_the_last_row() -> None:
    rows = [(n, str(n)) for n in range(3)]
    first = page(rows, 2, lambda row: row)
    assert first.items == ((0, "0"), (1, "1"))
    assert key_of(first.next, int, str) == [1, "1"]
    assert page(rows, 3, lambda row: row).next is None


@pytest.mark.parametrize("cursor", ["x", "%%%", "bnVsbA", "WzEsMl0", "[1]", "é", "WzFlOTk5XQ"])
def test_a_cursor_that_is_none_is_wrong_input(cursor: str) -> None:
    with pytest.raises(WrongInput, match="no cursor"):
        key_of(cursor, int, str)


def test_what_is_shipped_of_others_is_what_the_page_says() -> None:
    page = (ROOT / "docs" / "explanation" / "dependencies.md").read_text()
    vendor = ROOT / "src" / "evenkeel" / "lab" / "pages" / "static" / "vendor"
    listed = dict(re.findall(r"\| `([\w.-]+)` \(`[^`]*`\) \|[^|]*\| `([0-9a-f]{64})`", page))
    files = {path.name for path in vendor.iterdir() if not path.name.endswith(".LICENSE")}
    assert listed.keys() == files
    for name, sha256 in listed.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == sha256, name
