"""What a watcher says: lines for people and journald, JSON, numbers for Prometheus, a unit for systemd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from evenkeel.documents.findings import Check
from evenkeel.errors import WrongInput
from evenkeel.watch.metrics import Metrics, served
from evenkeel.watch.notice import Kind, Notice, describe
from evenkeel.watch.unit import unit
from tests.watch.test_picture import check

DOCS = Path(__file__).parents[2] / "docs"
DRIFT = Notice(
    "drifted", "cell", 1763700000.25, "member, expected 5", check("failed"), "partition reads member", 0.1234
)


def test_a_line_says_what_where_why_and_how_fast() -> None:
    assert DRIFT.line() == "cell: drifted R-1: member, expected 5 (partition reads member, 0.12 s)"
    assert DRIFT.log_line().startswith("<4>cell: drifted")


def test_a_line_is_one_line_whatever_a_machine_says() -> None:
    nasty = Notice("lost", "cell", 0.0, "first\n<0>second\r\n\tthird")
    assert nasty.log_line() == "<3>cell: lost: first <0>second third", "no second priority at the start of a line"


@pytest.mark.parametrize(
    ("kind", "priority"),
    [
        ("lost", 3),
        ("drifted", 4),
        ("not repaired", 4),
        ("repaired", 5),
        ("gone again", 5),
        ("back", 5),
        ("watching", 6),
    ],
)
def test_priorities_of_syslog(kind: Kind, priority: int) -> None:
    assert Notice(kind, "cell", 0.0, "x").priority == priority


def test_json_has_the_whole_check() -> None:
    data = json.loads(json.dumps(DRIFT.data()))
    assert data["at"] == "2025-11-21T04:40:00.250000Z" and data["delay_s"] == 0.1234
    assert Check.model_validate(data["check"]) == DRIFT.check


def test_events_in_words() -> None:
    assert describe({"kind": "cpu", "cpu": 3, "online": False}) == "CPU 3 went offline"
    assert describe({"kind": "link", "name": "ens2", "up": False, "gone": False}) == "link ens2 is down"
    assert describe({"kind": "partition", "state": None}) == "partition reads nothing, it is gone"
    rows = [{"action": "eth0-rx-0", "label": "24"}, {"action": "", "label": "25"}]
    assert describe({"kind": "interrupts", "rows": rows}) == "interrupts: 25, eth0-rx-0"


# -- Prometheus -------------------------------------------------------------------------------------------------------


def values(text: str) -> dict[tuple[str, ...], float]:
    """As Prometheus reads it: (name, labels...) -> value."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        return values(answer.read().decode())


def test_numbers_over_http() -> None:
    metrics = Metrics()
    metrics.begin("cell", frozenset({4, 5}))
    with served(metrics, "0") as port:
        first = scrape(port)
        assert first["evenkeel_host_up", "cell"] == 0
        assert first["evenkeel_repairs_total", "cell", "repaired"] == 0, "there before anything happens"
        metrics.said(Notice("watching", "cell", 0.0, ""))
        metrics.said(DRIFT)
        metrics.said(Notice("repaired", "cell", 0.0, "", check("failed")))
        rows = [{"counts": {"5": 3, "0": 100}}, {"counts": {"4": 1}}]
        metrics.happened("cell", {"kind": "interrupts", "rows": rows})
        metrics.happened("cell", None)
        found = scrape(port)
        assert found["evenkeel_host_up", "cell"] == 1
        assert found["evenkeel_check_failing", "R-1", "cell", "harmful"] == 1
        assert found["evenkeel_drifts_total", "cell", "setting"] == 1
        assert found["evenkeel_repairs_total", "cell", "repaired"] == 1
        assert found["evenkeel_isolated_interrupts_total", "cell"] == 4, "what fires elsewhere does not count"
        assert found["evenkeel_detection_seconds_count", "cell"] == 1
        assert found["evenkeel_last_sweep_timestamp_seconds", "cell"] > 1.7e9
        metrics.said(Notice("gone again", "cell", 0.0, "", check("passed")))
        metrics.said(Notice("lost", "cell", 0.0, ""))
        after = scrape(port)
        assert after["evenkeel_check_failing", "R-1", "cell", "harmful"] == 0
        assert (after["evenkeel_host_up", "cell"], after["evenkeel_connections_lost_total", "cell"]) == (0, 1)
    with pytest.raises(urllib.error.URLError):
        scrape(port)


@pytest.mark.parametrize("where", ["http", "70000", "1.2.3.4.5:9153", "192.0.2.1:9153", ""])
def test_a_place_where_nobody_can_listen(where: str) -> None:
    with pytest.raises(WrongInput, match="--metrics"), served(Metrics(), where):
        pass


def test_a_port_that_is_taken() -> None:
    with (
        served(Metrics(), "0") as port,
        pytest.raises(WrongInput, match="in use"),
        served(Metrics(), str(port)),
    ):
        pass


def test_every_metric_is_in_the_reference() -> None:
    page, _, _ = (
        (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8").partition("## Metrics of a measurement")
    )
    metrics = Metrics()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    told = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `evenkeel_")}
    assert told == names


# -- systemd ----------------------------------------------------------------------------------------------------------


def test_a_unit_that_systemd_takes(tmp_path: Path) -> None:
    file = tmp_path / "evenkeel-watch-test.service"
    file.write_text(unit("50 % of $HOME", [sys.executable, "-m", "evenkeel", "watch", '/srv/my "site" 50%/$x.yaml']))
    text = file.read_text()
    assert '"/srv/my \\"site\\" 50%%/$$x.yaml"' in text
    program = shutil.which("systemd-analyze")
    assert program, "apt-get install systemd"
    done = subprocess.run([program, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_analyze_sees_a_broken_unit(tmp_path: Path) -> None:
    file = tmp_path / "evenkeel-watch-test.service"
    file.write_text(unit("x", ["/nowhere/evenkeel"]).replace("Restart=on-failure", "Restart=sometimes"))
    program = shutil.which("systemd-analyze")
    assert program
    done = subprocess.run([program, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False)
    assert "sometimes" in done.stderr and "/nowhere/evenkeel" in done.stderr
