"""Credits, times and statistics as commands of a lab that really runs, with its own local agent or none."""

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
