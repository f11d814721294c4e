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


def test_a_power_budget_is_set_shown_changed_and_removed(lab_up: Running) -> None:
    at = ("--lab", str(lab_up.folder))
    assert "no site has a power budget" in evenkeel("lab", "budget", *at).stderr
    wrong = evenkeel("lab", "budget", "rack-a", "--watts", "900", *at)
    assert wrong.returncode == 1 and "no machine stands at 'rack-a'" in wrong.stderr
    with lab_up.client() as client:
        client.post("/machines", {"name": "host1", "site": "rack-a"})
    early = evenkeel("lab", "budget", "rack-a", "--assumed", "300", *at)
    assert early.returncode == 2 and "rack-a has no power budget yet" in early.stderr
    assert "900 W" in evenkeel("lab", "budget", "rack-a", "--watts", "900", *at).stdout
    [found] = json.loads(evenkeel("lab", "budget", "rack-a", "--assumed", "300", *at, "--json").stdout)
    assert (found["watts"], found["counted_watts"], found["assumed"]) == (900, 300, 1)
    assert "1, for 300 W each" in evenkeel("lab", "budget", *at).stdout
    assert evenkeel("lab", "budget", "--watts", "900", *at).returncode == 2
    assert evenkeel("lab", "budget", "rack-a", "--remove", *at).returncode == 0
    gone = evenkeel("lab", "budget", "rack-a", "--remove", *at)
    assert gone.returncode == 1 and "'rack-a' has no power budget" in gone.stderr


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
