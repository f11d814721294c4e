"""Credits, times, statistics and webhooks as commands of a lab that really runs, with its own local agent or none."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.service import Running, evenkeel, up


@pytest.fixture(scope="module")
def lab_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with up(tmp_path_factory.mktemp("lab") / "state") as running:
        yield running


def test_commands_say_what_rest_says(lab_up: Running) -> None:
    at = ("--lab", str(lab_up.folder))
    assert "you have 3 of 3 left this month" in evenkeel("lab", "credits", "show", *at).stdout
    assert "nobody asked for priority yet" in evenkeel("lab", "credits", "uses", *at).stdout
    granted = evenkeel("lab", "credits", "grant", "ann@home", "5", "--reason", "release week", *at)
    assert granted.stdout.strip() == "ann@home has 5 of 5 left this month"
    assert "ann@home" in evenkeel("lab", "credits", "show", *at).stdout
    missing = evenkeel("lab", "urgent", "99", "--reason", "customer is down", *at)
    assert missing.returncode == 1 and "there is no submission 99" in missing.stderr
    assert evenkeel("lab", "eta", "99", *at).returncode == 1
    found = json.loads(evenkeel("lab", "statistics", "--days", "30", *at, "--json").stdout)
    assert set(found) == {"since_ns", "idle", "waits", "forecasts", "usage", "learned"}
    assert "idle while something waited" in evenkeel("lab", "statistics", *at).stdout or not found["idle"]["share"]
    with lab_up.client() as client:
        assert "forecasts" in client.get("/service")["parts"]


def test_webhooks_are_added_tried_shown_and_removed(lab_up: Running) -> None:
    at = ("--lab", str(lab_up.folder))
    assert "no webhooks yet" in evenkeel("lab", "webhook", "list", *at).stderr
    wrong = evenkeel("lab", "webhook", "add", "https://x.example", "step.ended", *at)
    assert wrong.returncode == 2 and "step.passed" in wrong.stderr
    added = evenkeel("lab", "webhook", "add", "http://127.0.0.1:1/hook", "claim.*", "step.failed", *at)
    assert "evenkeel lab webhook test 1" in added.stderr and len(added.stdout.strip()) == 64
    listed = evenkeel("lab", "webhook", "list", *at).stdout
    assert "http://127.0.0.1:1/hook" in listed and "claim.*, step.failed" in listed
    tried = evenkeel("lab", "webhook", "test", "1", *at)
    assert tried.returncode == 1 and tried.stdout.startswith("not taken:")
    [sent] = json.loads(evenkeel("lab", "webhook", "deliveries", "1", *at, "--json").stdout)
    assert (sent["type"], sent["seq"], sent["status"]) == ("webhook.test", 0, None) and sent["wrong"]
    assert "goes on after event" in evenkeel("lab", "webhook", "resume", "1", *at).stdout
    assert evenkeel("lab", "webhook", "remove", "1", *at).stdout == "removed webhook 1\n"
    gone = evenkeel("lab", "webhook", "deliveries", "1", *at)
    assert gone.returncode == 1 and "there is no webhook 1" in gone.stderr
