"""The scenes of examples/fleet through the command line, and the mistakes that people make with such sites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.plan.fleet.example_facts import FOLDER, GPU, SOUND, example_facts, text_of

from evenkeel.cli import main
from evenkeel.documents.fleet import FleetPlan, GuestSeat
from evenkeel.documents.plan import Plan

FACTS = ["--facts", str(FOLDER / "facts")]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("evenkeel.cli.output._emitted", False)  # once a process, and this is one for all tests
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def placed(name: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[FleetPlan, dict[str, GuestSeat]]:
    assert main(["place", str(FOLDER / f"{name}.yaml"), *FACTS, "--json", *more]) == 0
    plan = FleetPlan.from_json(capsys.readouterr().out, file="-")
    return plan, {seat.name: seat for seat in plan.seats}


def planned(name: str, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Placed, and planned host by host, which must agree."""
    capsys.readouterr()
    assert main(["plan", str(FOLDER / f"{name}.yaml"), *FACTS, "-o", "plan.json"]) == 0
    capsys.readouterr()
    return Plan.from_json(Path("plan.json").read_text(), file="plan.json")


def test_every_scene_has_a_test() -> None:
    scenes = {"nfv-pair", "hana", "plc40", "gpu", "one-host-lost", "mixed"}
    assert {file.stem for file in FOLDER.glob("*.yaml")} == scenes


def test_nfv_pair(capsys: pytest.CaptureFixture[str]) -> None:
    plan, seats = placed("nfv-pair", capsys)
    racks = {host.name: host.rack for host in plan.hosts}
    assert {racks[seat.host] for seat in seats.values()} == {"r1", "r2"}
    wires = {one.address: one.network for host in plan.hosts for one in host.functions}
    for seat in seats.values():
        assert sorted(str(wires[address]) for address in seat.functions) == ["blue", "red"]
        assert seat.nodes == (0,), "where the card is"
    for host in planned("nfv-pair", capsys).hosts:
        for guest in host.guests:
            assert guest.functions == seats[guest.name].functions and guest.xml.count("<hostdev") == 2


def test_the_plan_shows_functions_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(FOLDER / "gpu.yaml"), *FACTS]) == 0
    assert f"{GPU} {SOUND}" in " ".join(capsys.readouterr().out.split())
    assert main(["plan", str(FOLDER / "hana.yaml"), *FACTS]) == 0
    assert "functions" not in next(line for line in capsys.readouterr().out.splitlines() if "emulator" in line[40:])


def test_hana_on_four_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    _, seats = placed("hana", capsys)
    hana = seats["hana"]
    assert (hana.host, sorted(hana.nodes), hana.page_bytes) == ("big", [0, 1, 2, 3], 1 << 30)
    assert [len(cpus) for cpus in hana.cpus] == [46] * 4
    (guest,) = (one for host in planned("hana", capsys).hosts for one in host.guests if one.name == "hana")
    assert [cell.memory_bytes for cell in guest.cells] == [512 << 30] * 4


def test_forty_controllers_with_a_core_each(capsys: pytest.CaptureFixture[str]) -> None:
    plan, seats = placed("plc40", capsys)
    assert len(seats) == 40
    cores = {
        (host.name, cpu): core for host in plan.hosts for node in host.nodes for core in node.cores for cpu in core
    }
    mine = [cores[seat.host, seat.cpus[0][0]] for seat in seats.values()]
    assert len({(seat.host, core) for seat, core in zip(seats.values(), mine, strict=True)}) == 40
    assert all(seat.idle == core - {seat.cpus[0][0]} for seat, core in zip(seats.values(), mine, strict=True))


def test_gpu_on_the_far_node(capsys: pytest.CaptureFixture[str]) -> None:
    _, seats = placed("gpu", capsys)
    assert {seat.host for seat in seats.values()} == {"edge-a", "edge-b"}
    assert {seat.nodes for seat in seats.values()} == {(1,)}
    for host in planned("gpu", capsys).hosts:
        assert [guest.functions for guest in host.guests] == [(GPU, SOUND)] * len(host.guests)


def test_a_half_full_fleet_and_one_host_lost(capsys: pytest.CaptureFixture[str]) -> None:
    plan, before = placed("one-host-lost", capsys)
    assert plan.standby and plan.failover
    planned("one-host-lost", capsys)
    lost = plan.seats[0].host
    text = (FOLDER / "one-host-lost.yaml").read_text()
    text = text.replace("standby: true", "standby: false")  # its promise is what is used up now
    head, name, rest = text.partition(f"  {lost}:")
    Path("lost.yaml").write_text(head + name + rest.replace("rack:", "drain: true\n      rack:", 1))
    assert main(["place", "lost.yaml", *FACTS, "--keep", "plan.json", "--json", "--picture", "lost.svg"]) == 0
    after = FleetPlan.from_json(capsys.readouterr().out, file="-")
    assert not after.refused and lost not in {seat.host for seat in after.seats}
    assert {move.name for move in after.moves} == {seat.name for seat in before.values() if seat.host == lost}
    assert "Before and after" in Path("lost.svg").read_text()


def test_hosts_of_three_generations(capsys: pytest.CaptureFixture[str]) -> None:
    _, seats = placed("mixed", capsys)
    assert seats["wide"].host == "big" and seats["sibling"].host.startswith("edge-")
    assert seats["vector"].host != "edge-c" and seats["controller"].host != "big", "big has no real-time kernel"
    assert {guest.name for host in planned("mixed", capsys).hosts for guest in host.guests} == set(seats)


# -- mistakes ---------------------------------------------------------------------------------------------------------

SITE = (FOLDER / "nfv-pair.yaml").read_text()


@pytest.mark.parametrize("verb", ["place", "plan", "capacity"])
@pytest.mark.parametrize(
    ("site", "words", "told"),
    [
        (SITE[:300], [], "not YAML"),
        (SITE.replace("blue, red]", "blue, red", 1), [], "-->"),
        (SITE + "  upf-1: { vcpus: 1, memory: 1GiB }\n", [], 'key "upf-1" stands twice'),
        (SITE.replace("    goal", "    host: edge-x\n    goal", 1), [], '"edge-x", which is not a host of this site'),
        (SITE + "placing: { max_hosts: -1 }\n", [], '"max_hosts" must be at least 1, not -1'),
        (SITE.replace("type: vf", "type: vf, count: -3", 1), [], '"count" must be at least 1, not -3'),
        (SITE, ["--facts", "edge-z=big.json"], "the site has no host edge-z"),
        (SITE, ["--facts", "edge-a=cut.json"], "not JSON"),
        (SITE, ["--facts", "edge-a=cut.json", "--facts", "edge-a=cut.json"], "names host edge-a twice"),
        (SITE, ["--facts", "nothing"], "of which host? the site has 3"),
        (SITE, ["--facts", "."], "the folder has facts of none of edge-a, edge-b, edge-c"),
        (SITE, ["--keep", "cut.json"], "not JSON"),
        (SITE, ["--keep", "nowhere.json"], "there is no file nowhere.json"),
    ],
)
def test_wrong_input_is_told_in_words(
    verb: str, site: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("cut.json").write_text(text_of(example_facts()["edge-a"])[:5000])
    Path("site.yaml").write_text(site)
    assert main([verb, "site.yaml", *FACTS, *words]) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err
    assert max(map(len, err.splitlines())) < 400, "no line is the whole file"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--moves", "-1"], "--moves"),
        (["--time", "-5"], "--time"),
        (["upf-9"], "the site has no guest upf-9"),
        (["--moves", "many"], "--moves"),
        (["-o", "nowhere/x.json"], "make the folder first"),
        (["--picture", "nowhere/x.svg"], "make the folder first"),
    ],
)
def test_wrong_questions_to_place(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text(SITE)
    assert main(["place", "site.yaml", *FACTS, *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "ens1f0",
            "ens1f8",
            "host edge-a: place: wires: it has no network interface or PCI function ens1f8 (did you mean",
        ),
        ("0000:b1:00.0", "0000:b7:00.0", "place: pools: it has no network interface or PCI function 0000:b7:00.0"),
        ("0000:b1:00.0", "zz:9", "place: pools: it has no network interface or PCI function zz:9"),
    ],
)
@pytest.mark.parametrize("verb", ["place", "plan", "capacity"])
def test_a_function_that_a_host_does_not_have_is_a_warning(
    verb: str, old: str, new: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("site.yaml").write_text(SITE.replace(old, new))
    main([verb, "site.yaml", *FACTS])
    assert told in " ".join(capsys.readouterr().err.split())
    Path("site.yaml").write_text(SITE)
    main([verb, "site.yaml", *FACTS])
    assert "warning" not in capsys.readouterr().err


def test_facts_of_one_host_come_before_those_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text(SITE)
    small = example_facts()["edge-c"]
    Path("small.json").write_text(text_of(small))
    assert main(["place", "site.yaml", *FACTS, "--facts", "edge-b=small.json", "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert [len(host["nodes"]) for host in plan["hosts"]] == [2, 1, 1]
