"""`evenkeel place`, `capacity` and `plan` on a site of several hosts, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.plan.factories import GIB, make_facts

from evenkeel.cli import main
from evenkeel.documents.fleet import FleetPlan
from evenkeel.documents.plan import Plan

SITE = """\
version: 1
hosts:
  a: {address: "virtual:a", place: {networks: [blue], rack: r1, owner: plant}}
  b: {address: "virtual:b", place: {networks: [blue, red], rack: r1}}
  c: {address: "virtual:c", place: {networks: [red], rack: r2}}
guests:
  plc1: {goal: realtime, vcpus: 2, memory: 2GiB, boot: {kernel: /k}, place: {apart: [plc], networks: [blue]}}
  plc2: {goal: realtime, vcpus: 2, memory: 2GiB, boot: {kernel: /k}, place: {apart: [plc], networks: [blue]}}
  db: {goal: performance, vcpus: 8, memory: 16GiB, boot: {kernel: /k}, place: {owner: shop}}
  wide: {goal: performance, numa: 2, vcpus: 16, memory: 16GiB, boot: {kernel: /k}, place: {networks: [red]}}
  hmi: {vcpus: 2, memory: 2GiB, boot: {kernel: /k}}
"""
FACTS = ["--facts", "a=facts.json", "--facts", "b=facts.json", "--facts", "c=facts.json"]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "facts.json").write_text(make_facts(cores=8, node_bytes=32 * GIB).to_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_place_shows_saves_and_checks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", "site.yaml", *FACTS, "-o", "placement.json", "--picture", "fleet.svg"]) == 0
    assert (folder / "fleet.svg").read_text().startswith("<svg")
    out = capsys.readouterr().out
    assert "5 of 5 guests placed, worth 34 of at most 34 (100.00 %); integer program over 3 hosts" in out
    assert "plc1" in out and "(empty: " in out
    assert main(["place", "--check", "placement.json"]) == 0
    assert "holds: 5 guests on" in capsys.readouterr().out
    assert main(["place", "site.yaml", *FACTS, "--json"]) == 0
    text = capsys.readouterr().out
    assert text == (folder / "placement.json").read_text()
    seats = {seat.name: seat for seat in FleetPlan.from_json(text, file="-").seats}
    assert {seats["plc1"].host, seats["plc2"].host} == {"a", "b"}


def test_one_guest_and_its_refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", "site.yaml", "db", *FACTS]) == 0
    out = capsys.readouterr().out
    assert "db" in out and "plc1" not in out
    (folder / "site.yaml").write_text(SITE.replace("vcpus: 8, memory: 16GiB", "vcpus: 15, memory: 16GiB"))
    assert main(["place", "site.yaml", "db", *FACTS]) == 1
    out = capsys.readouterr().out
    assert "db fits on none of 3 hosts:" in out
    assert "it needs 15 threads of whole cores; the most on one node are 7 whole cores, 14 threads" in out
    assert "what would help:\n  with 14 vCPUs instead of 15 it fits on" in out
    assert main(["place", "site.yaml", "bd", *FACTS]) == 2
    assert main(["place", "site.yaml", "db", "--moves", "2", *FACTS]) == 2
    assert main(["place"]) == 2
    assert "evenkeel place SITE [GUEST]" in capsys.readouterr().err


def test_a_plan_chooses_the_hosts_and_a_second_one_keeps_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "site.yaml", *FACTS, "-o", "plan.json"]) == 0
    capsys.readouterr()
    plan = Plan.from_json((folder / "plan.json").read_text(), file="plan.json")
    where = {guest.name: host.name for host in plan.hosts for guest in host.guests}
    assert sorted(where) == ["db", "hmi", "plc1", "plc2", "wide"]
    assert any("chosen with all hosts in view" in why for host in plan.hosts for why in host.ledger.why)
    (folder / "site.yaml").write_text(SITE + "  more: {goal: realtime, vcpus: 1, memory: 1GiB, boot: {kernel: /k}}\n")
    assert main(["place", "site.yaml", *FACTS, "--keep", "plan.json", "--json"]) == 0
    again = FleetPlan.from_json(capsys.readouterr().out, file="-")
    assert not again.moves
    assert {seat.name: seat.host for seat in again.seats if seat.name != "more"} == where
    assert main(["place", "site.yaml", *FACTS, "--keep", "plan.json", "--moves", "3"]) == 0
    assert "move:" not in capsys.readouterr().out


def test_a_plan_refuses_with_the_line_of_the_guest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "site.yaml").write_text(SITE.replace("networks: [red]}}\n  hmi", "networks: [white]}}\n  hmi"))
    assert main(["plan", "site.yaml", *FACTS]) == 2
    err = capsys.readouterr().err
    assert "guest wide: it fits on none of 3 hosts: it needs network white, to which no host is wired" in err
    assert "site.yaml:10" in err


def test_a_guest_that_names_its_host_must_find_there_what_it_wishes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SITE.partition("guests:")[0] + "guests:\n  x: {host: c, vcpus: 1, memory: 1GiB, boot: {kernel: /k}%s}\n"
    (folder / "site.yaml").write_text(text % ", place: {networks: [blue]}")
    assert main(["plan", "site.yaml", *FACTS]) == 2
    assert "guest x: it fits on none of 3 hosts: it may only be on c" in capsys.readouterr().err
    (folder / "site.yaml").write_text(text % "")
    assert main(["plan", "site.yaml", *FACTS]) == 0
    assert "placing" not in capsys.readouterr().err, "there is nothing to choose"


def test_capacity_and_owners(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "site.yaml", *FACTS, "--json"]) == 0
    found = {one["like"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["plc1"]["count"] == 0 and found["plc1"]["guests"] == 2
    assert found["db"]["count"] == found["db"]["bound"] > 0
    assert main(["capacity", "site.yaml", *FACTS]) == 0
    assert "8 threads of whole cores" in capsys.readouterr().out
    assert main(["capacity", "site.yaml", *FACTS, "--owners", "--json"]) == 0
    owners = {one["owner"]: one for one in json.loads(capsys.readouterr().out)}
    assert owners["shop"] == {
        **{"owner": "shop", "guests": 1, "vcpus": 8, "cores": 4, "cpus": 8, "nodes": 1, "functions": 0},
        **{"memory_bytes": 16 * GIB, "huge_bytes": 16 * GIB},
    }


def test_the_fewest_hosts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "site.yaml").write_text(
        SITE.replace("place: {apart: [plc], ", "place: {").replace("vcpus: 16", "vcpus: 8")
    )
    assert main(["place", "site.yaml", *FACTS, "--fewest"]) == 0
    assert "5 of 5 guests placed; 1 hosts are used, 1 are needed at least" in capsys.readouterr().out
    assert main(["place", "site.yaml", *FACTS, "--fewest", "--moves", "1"]) == 2


def test_standby_of_a_site(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "site.yaml").write_text(SITE.replace("place: {apart: [plc], ", "place: {") + "placing: {standby: true}\n")
    assert main(["place", "site.yaml", *FACTS]) == 0
    assert "any one host may fail" in capsys.readouterr().out
    (folder / "site.yaml").write_text(SITE + "placing: {standby: true}\n")  # plc1 and plc2 leave no third host of blue
    assert main(["place", "site.yaml", *FACTS]) == 1
