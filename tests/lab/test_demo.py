"""The demo's machines in a real lab; its hosts are folders here and boot in tests/virtual/test_lab_demo.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab import demo
from evenkeel.lab.actor import Conflict
from evenkeel.lab.client import Client
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.spec import BUILT_IN
from tests.lab.pool import facts, inventory
from tests.lab.service import evenkeel, up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a lab that runs, whose agent does nothing of itself."""
    with up(tmp_path_factory.mktemp("demo") / "lab") as running:
        yield running.folder


@pytest.fixture
def lab(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Client(str(folder / "lab.sock")) as client:
        yield client


def host(name: str) -> None:
    """As `lifecycle.create` leaves one, but for its disks."""
    folder = lifecycle.folder_of(name)
    folder.mkdir(parents=True)
    made = lifecycle.HostFile(name=name, uuid="0" * 8, image="none", spec=BUILT_IN["tiny"])
    (folder / "host.json").write_text(made.model_dump_json())


def enrol(begun: demo.Begun, name: str, uuid: str) -> str:
    told = inventory(name, board=None).model_copy(update={"uuid": uuid})
    document = facts(name, macs=()).model_dump(mode="json")
    return begun.enrol(name, document, told.model_dump(mode="json"))


def states(lab: Client) -> dict[str, str]:
    return {one["name"]: one["state"] for one in lab.pages("/machines", q="tag:demo", facets=False)}


def test_a_host_that_is_made_anew_is_the_same_machine_again(lab: Client) -> None:
    name = demo.name_of(1)
    first = demo.Begun(lab)
    assert enrol(first, name, "8b7f1b6a-0000-4000-8000-000000000001") == name
    lab.post(f"/machines/{name}/state", {"state": "broken", "reason": "its host is gone"})
    second = demo.Begun(lab)
    assert enrol(second, name, "8b7f1b6a-0000-4000-8000-000000000002") == name
    assert states(lab) == {name: "ready"}
    assert (first.enrolled, second.enrolled) == ([name], [])
    ways = {(way["kind"], way["address"]) for way in lab.get(f"/machines/{name}/endpoints")}
    assert ways == {("ssh", f"virtual:{name}"), ("hypervisor", f"virtual:{name}")}

    host(name)
    done = evenkeel("lab", "demo", "--rm", "--lab", str(Path(lab.at).parent))
    assert (done.returncode, done.stdout) == (0, f"removed {name}\n"), done.stderr
    assert (states(lab), demo.hosts()) == ({}, [])
    assert enrol(demo.Begun(lab), name, "8b7f1b6a-0000-4000-8000-000000000003") == name
    assert states(lab) == {name: "ready"}


def test_a_run_that_is_interrupted_leaves_nothing(lab: Client) -> None:
    old, new = demo.name_of(2), demo.name_of(3)
    enrol(demo.Begun(lab), old, "8b7f1b6a-0000-4000-8000-000000000004")
    host(old)
    with pytest.raises(KeyboardInterrupt), demo.whole_or_nothing(lab) as begun:
        begun.made.append(new)
        host(new)
        enrol(begun, old, "8b7f1b6a-0000-4000-8000-000000000004")
        enrol(begun, new, "8b7f1b6a-0000-4000-8000-000000000005")
        number = begun.submit()
        assert states(lab)[new] == "ready"
        raise KeyboardInterrupt
    assert demo.hosts() == [old]
    assert old in states(lab) and new not in states(lab)
    assert lab.get(f"/submissions/{number}")["state"] != "open"


def test_a_machine_that_somebody_reserved_is_not_taken_away(lab: Client) -> None:
    name = demo.name_of(4)
    enrol(demo.Begun(lab), name, "8b7f1b6a-0000-4000-8000-000000000006")
    wanted = {"predicate": name, "reason": "to look at it", "kind": "maintenance"}
    claim = lab.post("/claims", wanted)
    host(name)
    with pytest.raises(Conflict, match="reserved lab-demo-4"):
        demo.leave_pool(lab)
    assert demo.hosts() == [name]
    lab.post(f"/claims/{claim['id']}/release", {"reason": ""})
    demo.leave_pool(lab)
    assert name not in states(lab)


def test_it_wants_a_lab_of_its_own_machine_and_user(lab: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.need_here(lab).startswith("http://127.0.0.1:")
    with pytest.raises(WrongInput, match="so must its lab be"):
        demo.need_here(Client("http://127.0.0.1:1"))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(WrongInput, match="another user"):
        demo.need_here(lab)


def test_without_a_lab_the_hosts_are_removed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Client(str(tmp_path / "lab.sock")) as nobody, pytest.raises(Unreachable):
        demo.need_here(nobody)
    host(demo.name_of(1))
    done = evenkeel("lab", "demo", "--rm", "--lab", str(tmp_path / "lab.sock"))
    assert (done.returncode, demo.hosts()) == (0, []), done.stderr
    assert "no lab runs here" in done.stderr
