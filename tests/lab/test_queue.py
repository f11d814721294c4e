"""The queue over REST and as pages: send in, see why it waits, watch, cancel, try again; others only look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from evenkeel.lab import dispatching
from evenkeel.lab.lab import Lab
from evenkeel.lab.pages.graph import drawn
from evenkeel.lab.submissions import StepLine
from tests.lab.test_agent import agent_of
from tests.waiting import until

Ask = Callable[..., TestClient]


def graph(**commands: Any) -> dict[str, Any]:
    steps = {}
    for name, given in commands.items():
        use = given if isinstance(given, dict) else {"command": given}
        needs = use.pop("needs", [])
        steps[name] = {"step": {"kind": name, **use}, "needs": needs}
    return {"version": 1, "name": "test", "steps": steps}


def post(client: TestClient, path: str, body: Any = None, status: int = 200) -> Any:
    answer = client.post(f"/api/v1{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def get(client: TestClient, path: str, status: int = 200) -> Any:
    answer = client.get(f"/api/v1{path}")
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"graph": {"version": 1, "name": "x", "steps": {}}}, "no steps"),
        ({"graph": graph(a={"command": "true", "needs": ["b"]})}, "which is no step"),
        ({"graph": graph(a={"command": "true", "agent": "mem>="})}, 'step "a", agent'),
        ({"graph": graph(a="true"), "team": "others"}, "is not in the team"),
        ({"graph": graph(a="true"), "urgent": True}, "needs a reason"),
        ({"graph": {"version": 1, "name": "x", "steps": {"a": {"uses": "./mine.yaml"}}}}, "no shipped step"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(ask: Ask, body: Any, told: str) -> None:
    answer = ask("ann").post("/api/v1/submissions", json=body)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_send_in_and_cancel_over_rest(ask: Ask) -> None:
    ann, bob, viewer = ask("ann"), ask("bob"), ask("vera", "viewer")
    made = post(ann, "/submissions", {"graph": graph(one="true", two={"command": "true", "needs": ["one"]})}, 201)
    assert [line["state"] for line in made["lines"]] == ["ready", "blocked"]
    assert [one["id"] for one in get(viewer, "/submissions")["items"]] == [made["id"]]
    post(viewer, "/submissions", {"graph": graph(one="true")}, 403)
    post(bob, f"/submissions/{made['id']}/cancel", status=403)
    stale = ann.post(f"/api/v1/submissions/{made['id']}/cancel", headers={"If-Match": '"7"'})
    assert stale.status_code == 412
    assert post(ann, f"/submissions/{made['id']}/cancel")["state"] == "cancelled"
    post(ann, f"/submissions/{made['id']}/cancel", status=409)
    get(ann, "/submissions/99", 404)
    get(ann, "/steps/99", 404)
    get(ann, "/attempts/99/log", 404)


def test_a_standby_shows_the_queue_without_reasons(ask: Ask) -> None:
    made = post(
        ask("ann"), "/submissions", {"graph": graph(one="true", two={"command": "true", "needs": ["one"]})}, 201
    )
    found = get(ask("bob"), "/queue")
    assert (found["ready"], found["blocked"], found["runs"]) == (1, 1, 0)
    assert [one["why"]["code"] for one in found["waiting"]] == ["unknown"]
    assert get(ask("bob"), f"/submissions/{made['id']}/reasons") == {}


def test_each_waiting_step_says_why(ask: Ask, lab: Lab) -> None:
    ann = ask("ann")
    with dispatching.running(lab), agent_of(lab, slots=1):
        until(lambda: get(ann, "/agents"))
        wanted = {
            "runs": "sleep 1000",
            "busy": "true",
            "after": {"command": "true", "needs": ["runs"]},
            "arch": {"command": "true", "agent": "arch:s390x"},
            "machine": {"command": "true", "machine": "mem>=1TiB"},
        }
        made = post(ann, "/submissions", {"graph": graph(**wanted)}, 201)
        until(lambda: get(ann, "/queue")["runs"] == 1)
        names = {line["id"]: line["name"] for line in made["lines"]}
        found = {names[int(k)]: v for k, v in get(ann, f"/submissions/{made['id']}/reasons").items()}
        assert {name: one["code"] for name, one in found.items()} == {
            "busy": "agents-busy",
            "after": "after",
            "arch": "no-agent",
            "machine": "no-machine",
        }
        assert found["machine"]["text"] == "no machine of the pool is mem>=1TiB"
        assert found["after"]["text"] == "comes after runs"
        queue = get(ann, "/queue")
        assert [(one["place"], one["step"]) for one in queue["waiting"]] == [(1, "busy"), (2, "arch"), (3, "machine")]
        assert [one["step"] for one in queue["running"]] == ["runs"]
        page = ask("bob").get("/queue").text
        assert "no machine of the pool is mem&gt;=1TiB" in page
        assert "Nothing waits of yours" in ask("bob").get("/queue?mine=true").text
        post(ann, f"/submissions/{made['id']}/cancel")
        until(lambda: get(ann, "/queue")["runs"] == 0)


def test_the_pages_lead_from_submit_to_the_log_and_try_again(ask: Ask, lab: Lab) -> None:
    ann, bob = ask("ann"), ask("bob")
    text = ann.get("/submissions/new").text
    assert "<textarea" in text and "uses: measure" in text and "missing-fixes" in text
    wrong = ann.post("/submissions", data={"text": "version: 1\nname: x\nsteps:\n  a: {uses: nothing}\n"})
    assert wrong.status_code == 422
    assert "the text:4:" in wrong.text and "a: {uses: nothing}" in wrong.text, "what was written is still there"
    yaml = """version: 1
name: mine
steps:
  fails: {step: {kind: x, command: "echo '<i>loud</i>'; exit 3"}}
  after: {step: {kind: y, command: "true"}, needs: [fails]}
"""
    sent = ann.post("/submissions", data={"text": yaml})
    assert sent.status_code == 303
    where = sent.headers["location"]
    with dispatching.running(lab), agent_of(lab, slots=1):
        until(lambda: "failed" in ann.get(where).text)
    page = ann.get(where).text
    assert "<svg" in page and 'class="skipped"' in page
    made = get(ann, where)
    step = made["lines"][0]["id"]
    shown = ann.get(f"/steps/{step}").text
    assert "&lt;i&gt;loud&lt;/i&gt;" in shown and "Try it again" in shown
    assert "Try it again" not in bob.get(f"/steps/{step}").text
    assert bob.post(f"/steps/{step}/retry").status_code == 403
    assert ann.post(f"/steps/{step}/retry").status_code == 303
    assert get(ann, f"/steps/{step}")["state"] == "ready"
    assert ann.post(f"{where}/cancel").status_code == 303
    assert "local" not in ann.get("/agents").text
    assert "a1" in ann.get("/agents").text
    assert ann.get("/submissions?state=cancelled").text.count("<tr>") == 2
    follow = ann.get(f"/api/v1/attempts/{get(ann, f'/steps/{step}')['attempts'][0]['id']}/log/follow")
    assert follow.text.startswith("id: 12\nevent: log\ndata: <i>loud</i>\ndata: \n\n")
    assert "event: end" in follow.text


def test_the_graph_is_drawn_from_left_to_right() -> None:
    def line(number: int, name: str, after: dict[str, str]) -> StepLine:
        none: dict[str, Any] = dict.fromkeys(("ready_ns", "started_ns", "ended_ns"))
        return StepLine(
            id=number, name=name, kind="k", state="ready", cause="", after=after, attempts=0, attempt=None, **none
        )

    svg = drawn([line(1, "a<b", {}), line(2, "b", {"a<b": "n>3"}), line(3, "c", {"a<b": "", "b": ""})])
    assert svg.count("<path") == 2, "that c comes after a follows from b"
    assert drawn([line(1, "a", {}), line(2, "b", {"a": ""}), line(3, "c", {"a": "n>3", "b": ""})]).count("<path") == 3
    assert "a&lt;b" in svg and "n&gt;3" in svg and "a<b" not in svg
    assert svg.index('href="/steps/1"') < svg.index('href="/steps/2"') < svg.index('href="/steps/3"')
    assert 'x="8"' in svg and 'x="254"' in svg and 'x="500"' in svg
