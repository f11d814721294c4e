"""NetBox over REST, in pages and by the command line: the same functions, and nobody does more than they may."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from evenkeel.cli.root import run as evenkeel
from evenkeel.lab.actor import with_roles
from evenkeel.lab.clocks import now_ns
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import settings
from tests.lab.conftest import an_app
from tests.lab.netbox_stand_in import V2, Stand, serve
from tests.lab.serving import serving

Ask = Callable[..., TestClient]


@pytest.fixture
def stand(lab: Lab) -> Iterator[Stand]:
    """A NetBox on a socket that the lab follows, with one device."""
    made = Stand()
    made.device("host1", site=made.add("dcim/sites", name="Nuremberg", slug="nbg"), serial="S1")
    (lab.folder / "token").write_text(V2)
    (lab.folder / "hook").write_text("secret")
    with serve(made) as url:
        text = f"url: {url}\ntoken: file:{lab.folder}/token\nwebhook-secret: file:{lab.folder}/hook\n"
        (lab.folder / settings.FILE).write_text(text)
        yield made


def test_rest_from_import_to_undo(ask: Ask, stand: Stand) -> None:
    client = ask("ann", "maintainer")
    assert client.post("/api/v1/netbox/import", json={"devices": [1]}).json()["counts"]["made"] == 1
    stand.set("dcim/devices", 1, name="host2")
    (planned,) = client.get("/api/v1/netbox/plan", params={"machine": "host1"}).json()["machines"]
    assert [(f["field"], f["act"], f["netbox"]) for f in planned["fields"]] == [("name", "take", "host2")]
    run = client.post("/api/v1/netbox/sync", json={}).json()
    assert (run["kind"], run["state"], run["counts"]) == ("full", "done", {"read": 1, "taken": 1})
    assert client.get(f"/api/v1/netbox/runs/{run['id']}").json() == run
    (change,) = client.get("/api/v1/netbox/changes", params={"limit": 1}).json()["items"]
    assert (change["field"], change["old"], change["new"]) == ("name", "host1", "host2")
    made = client.post(f"/api/v1/netbox/changes/{change['id']}/undo").json()
    assert (made["old"], made["new"]) == ("host2", "host1")
    assert client.post(f"/api/v1/netbox/changes/{change['id']}/undo").status_code == 409
    newest = client.get("/api/v1/netbox/changes", params={"limit": 1}).json()
    (older,) = client.get("/api/v1/netbox/changes", params={"limit": 1, "after": newest["next"]}).json()["items"]
    assert older["id"] == change["id"] and older["undone_by"] == "ann"
    status = client.get("/api/v1/netbox").json()
    assert status["machines"] == 1 and status["last_full"]["id"] == run["id"]
    plan = client.get("/api/v1/netbox/machines/host1/push").json()
    assert [(w["field"], w["act"]) for w in plan["writes"]] == [("name", "hold")]
    named = {"fields": ["name"]}
    assert client.post("/api/v1/netbox/machines/host1/push", json=named).json()["counts"] == {"written": 1}
    assert stand.shown(1)["name"] == "host1"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/v1/netbox/import", {"devices": [99]}, 404),
        ("POST", "/api/v1/netbox/import", {"devices": [0]}, 422),
        ("POST", "/api/v1/netbox/import", {"devices": []}, 422),
        ("POST", "/api/v1/netbox/sync", {"kind": "sideways"}, 422),
        ("POST", "/api/v1/netbox/changes/99/undo", None, 404),
        ("GET", "/api/v1/netbox/runs/99", None, 404),
        ("GET", "/api/v1/netbox/machines/nobody/push", None, 404),
        ("GET", "/api/v1/netbox/changes?after=x", None, 422),
        ("POST", "/api/v1/netbox/webhook", None, 403),
    ],
)
def test_rest_says_what_is_wrong(ask: Ask, stand: Stand, method: str, path: str, body: Any, status: int) -> None:
    answer = ask("ann", "maintainer").request(method, path, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_user_looks_and_does_not_touch(ask: Ask, stand: Stand) -> None:
    bob = ask("bob")
    assert bob.get("/api/v1/netbox/plan").status_code == 200
    for path, body in (("sync", {}), ("import", {"devices": [1]}), ("machines/x/push", {}), ("changes/1/undo", None)):
        assert bob.post(f"/api/v1/netbox/{path}", json=body).status_code == 403, path
    text = bob.get("/netbox").text
    assert "What would a sync do?" in text and "Sync now" not in text and "Import devices" not in text
    assert ask(None).get("/api/v1/netbox").status_code == 401


def test_the_pages_lead_from_import_to_undo(ask: Ask, stand: Stand) -> None:
    client = ask("ann", "maintainer")
    assert "never" in client.get("/netbox").text
    there = client.post("/netbox/import", data={"devices": "1"}).headers["location"]
    assert "1 made" in client.get(there).text
    stand.set("dcim/devices", 1, name="host2", custom_fields={"lab_owner": "<b>carl"})
    assert "take NetBox" in client.get("/netbox/plan").text
    there = client.post("/netbox/sync", data={"kind": "full"}).headers["location"]
    text = client.get(there).text
    assert "host2" in text and "&lt;b&gt;carl" in text and "<b>carl" not in text
    assert client.get("/netbox/runs").status_code == client.get("/netbox").status_code == 200
    text = client.get("/netbox/changes?field=name").text
    assert "Undo name of" in text
    action = text.split('action="/netbox/changes/')[1].split('"')[0]
    there = client.post(f"/netbox/changes/{action}").headers["location"]
    text = client.get(there).text
    assert there == "/netbox/changes?machine=host1" and "undone by ann" in text
    assert 'href="/netbox/machines/host1"' in client.get("/machines/host1").text
    text = client.get("/netbox/machines/host1").text
    assert "name the field" in text
    assert client.post("/netbox/machines/host1", data={"field": "name"}).status_code == 303
    assert stand.shown(1)["name"] == "host1"


def test_a_page_says_what_is_missing(ask: Ask, lab: Lab) -> None:
    assert "follows no NetBox" in ask("ann", "maintainer").get("/netbox").text
    answer = ask("ann", "maintainer").post("/netbox/import", data={"devices": "seventeen"})
    assert answer.status_code == 422 and "are numbers" in answer.text


def test_a_webhook_is_followed_when_it_is_answered_and_the_command_line_shows_it(
    lab: Lab, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way over sockets: NetBox's stand-in posts to the service, which asks it back."""
    lab.store.clock = now_ns
    app = an_app(lab, who=lambda connection: with_roles("ann", ["maintainer"]))
    with serving(app) as url:
        assert evenkeel(["lab", "netbox", "import", "1", "--lab", url]) == 0
        heard: list[tuple[bytes, dict[str, str]]] = []
        stand.webhooks = [(lambda body, headers: heard.append((body, headers)), "secret")]
        stand.at = datetime.now(UTC)
        stand.set("dcim/devices", 1, name="host2")
        ((body, headers),) = heard
        assert httpx.post(f"{url}/api/v1/netbox/webhook", content=body, headers=headers).status_code == 200
        capsys.readouterr()
        assert evenkeel(["lab", "netbox", "log", "--machine", "host2", "--json", "--lab", url]) == 0
        newest = json.loads(capsys.readouterr().out)["items"][0]
        assert (newest["old"], newest["new"], newest["source"]) == ("host1", "host2", "webhook by lab")
        assert evenkeel(["lab", "netbox", "plan", "--lab", url]) == 0
        assert evenkeel(["lab", "netbox", "push", "host2", "--dry-run", "--lab", url]) == 0
        assert evenkeel(["lab", "netbox", "undo", str(newest["id"]), "--lab", url]) == 0
        assert "host1: name is host1 again" in capsys.readouterr().out
        assert evenkeel(["lab", "netbox", "status", "--lab", url]) == 0
        assert evenkeel(["lab", "netbox", "log", "--runs", "--lab", url]) == 0
        told = capsys.readouterr().out
        assert "1 machines follow" in told and "webhook" in told
        assert evenkeel(["lab", "netbox", "undo", "999", "--lab", url]) == 1


def test_the_settings_are_read_anew_each_time(ask: Ask, stand: Stand, lab: Lab) -> None:
    client = ask("ann", "maintainer")
    assert client.get("/api/v1/netbox").json()["webhooks"] is True
    path = Path(lab.folder / settings.FILE)
    path.write_text(path.read_text().replace("webhook-secret", "webhook-secre"))
    answer = client.get("/api/v1/netbox")
    assert answer.status_code == 422 and answer.json()["where"]["line"] == 3
