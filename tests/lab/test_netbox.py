"""Sync, import, push, undo and webhooks between the lab and NetBox's stand-in: nothing is lost, all is logged."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, insert, select, update

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab import machines, schema, search, secrets
from evenkeel.lab.actor import Actor, Conflict, Forbidden, NotFound, with_roles
from evenkeel.lab.identity import Identity, compare
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import client as client_module
from evenkeel.lab.netbox import hook, imports, log, push, settings, sync, undo
from evenkeel.lab.netbox.client import Changed, NetBox, Refused
from tests.lab.conftest import Clock
from tests.lab.netbox_stand_in import V2, Stand

ANN, BOB = with_roles("ann", ["maintainer"]), with_roles("bob", ["user"])
SECRET = "wherever the wind blows"


@dataclass
class Both:
    """The lab and the NetBox that it is told to follow."""

    lab: Lab
    stand: Stand
    box: NetBox
    site: int

    def machine(self, name: str) -> Any:
        with self.lab.store.read() as connection:
            return connection.execute(select(schema.machine).where(schema.machine.c.name == name)).one()

    def edit(self, machine: str, **values: Any) -> None:
        self.lab.store.write(
            lambda c: c.execute(update(schema.machine).where(schema.machine.c.name == machine).values(values))
        )

    def full(self) -> log.Run:
        return sync.sync(self.lab, ANN, netbox=self.box)

    def imported(self, name: str, **values: Any) -> int:
        number = self.stand.device(name, site=self.site, **values)
        imports.import_devices(self.lab, ANN, [number], netbox=self.box)
        return number

    def log(self, **query: Any) -> list[tuple[str, str, Any, Any]]:
        """side, field, old, new; oldest first."""
        found = log.changes(self.lab, ANN, **query).items
        return [(c.side, c.field, c.old, c.new) for c in reversed(found)]

    def facts(self, name: str, serial: str = "S1", **facts: Any) -> None:
        inventory = {"serials": {"system": serial}}
        row = {"at_ns": self.lab.now(), "sha256": "", "document": json.dumps({"facts": facts, "inventory": inventory})}
        self.lab.store.write(
            lambda c: c.execute(insert(schema.snapshot).values(row | {"machine_id": self.machine(name).id}))
        )


@pytest.fixture
def both(lab: Lab, tmp_path: Path) -> Iterator[Both]:
    (tmp_path / "token").write_text(V2 + "\n")
    (tmp_path / "hook").write_text(SECRET + "\n")
    (tmp_path / settings.FILE).write_text(
        f"url: http://netbox\ntoken: file:{tmp_path}/token\nwebhook-secret: file:{tmp_path}/hook\n"
    )
    stand = Stand()
    with NetBox("http://netbox", V2, transport=stand.transport()) as box:
        yield Both(lab, stand, box, stand.add("dcim/sites", name="Nuremberg", slug="nbg"))


# -- import -------------------------------------------------------------------------------------------------------


def test_an_imported_machine_has_netboxs_fields_and_is_suspect_until_checked(both: Both) -> None:
    number = both.stand.device("host1", site=both.site, serial="S1", custom_fields={"lab_owner": "carl"})
    interface = both.stand.add("dcim/interfaces", device=number, name="eth0")
    both.stand.add("dcim/mac-addresses", mac_address="00:10:00:00:00:01", assigned_object_id=interface)
    run = imports.import_devices(both.lab, ANN, [number], netbox=both.box)
    machine = both.machine("host1")
    assert (machine.site, machine.owner, machine.netbox_id, machine.state) == ("nbg", "carl", number, "suspect")
    assert Identity.model_validate(machine.identity) == Identity(system="s1", macs=("00:10:00:00:00:01",))
    assert run.counts == {"read": 1, "made": 1} and run.conflicts == () and both.log() == []


def test_a_machine_of_that_name_is_linked_and_what_it_had_is_in_the_log(both: Both) -> None:
    _machine(both.lab, "host1", site="prague", owner="ann")
    number = both.imported("host1", custom_fields={"lab_owner": "carl"})
    machine = both.machine("host1")
    assert (machine.netbox_id, machine.site, machine.owner) == (number, "nbg", "ann")
    assert both.log() == [("lab", "site", "prague", "nbg")]
    conflicts = log.runs(both.lab, ANN).items[0].conflicts
    assert {(c.field, c.conflict, c.kept) for c in conflicts} == {
        ("site", "they never agreed", "netbox"),
        ("owner", "they never agreed", "both"),
    }


def test_importing_twice_changes_nothing_and_a_device_that_is_not_there_is_named(both: Both) -> None:
    number = both.imported("host1")
    run = imports.import_devices(both.lab, ANN, [number], netbox=both.box)
    assert run.counts == {"read": 1, "here already": 1}
    with pytest.raises(NotFound, match="no device 99"):
        imports.import_devices(both.lab, ANN, [number, 99], netbox=both.box)
    assert log.runs(both.lab, ANN).items[0].state == "failed"


def _machine(lab: Lab, name: str, **values: Any) -> None:
    row = {"id": f"id-{name}", "name": name, "state": "ready", "state_since_ns": 0, "identity": {}, "policy": {}}
    lab.store.write(lambda c: c.execute(insert(schema.machine).values(row | {"registered_ns": 0} | values)))


# -- sync ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_the_sync_then_does_and_writes_nothing(both: Both) -> None:
    number = both.imported("host1")
    both.stand.device("not in the lab")
    both.stand.set("dcim/devices", number, name="host1b")
    both.edit("host1", owner="ann")
    plan = sync.plan(both.lab, BOB, netbox=both.box)
    assert (plan.read, plan.known, plan.unknown) == (2, 1, 1)
    (machine,) = plan.machines
    assert [(f.field, f.act, f.base, f.netbox, f.lab) for f in machine.fields] == [
        ("name", "take", "host1", "host1b", "host1"),
        ("owner", "hold", None, None, "ann"),
    ]
    assert both.log() == [] and both.machine("host1")
    both.full()
    assert both.machine("host1b").owner == "ann"
    assert both.log() == [("lab", "name", "host1", "host1b")]


def test_a_second_sync_changes_nothing(both: Both) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, name="host2")
    assert both.full().counts == {"read": 1, "taken": 1}
    before = both.machine("host2")
    assert both.full().counts == {"read": 1}
    assert both.machine("host2") == before


def test_what_both_changed_is_netboxs_and_the_labs_value_is_in_the_log(both: Both) -> None:
    number = both.imported("host1")
    both.edit("host1", site="prague")
    both.stand.set("dcim/devices", number, site=both.stand.add("dcim/sites", name="Provo", slug="prv"))
    (conflict,) = both.full().conflicts
    assert (conflict.machine, conflict.field, conflict.netbox, conflict.lab) == ("host1", "site", "prv", "prague")
    assert both.machine("host1").site == "prv"
    assert both.log()[-1] == ("lab", "site", "prague", "prv")


def test_what_the_lab_owns_is_never_overwritten_and_said_each_time(both: Both) -> None:
    number = both.imported("host1", custom_fields={"lab_owner": "carl"})
    both.edit("host1", owner="ann")
    both.stand.set("dcim/devices", number, custom_fields={"lab_owner": "dora"})
    for _ in range(2):
        (conflict,) = both.full().conflicts
        assert (conflict.field, conflict.netbox, conflict.lab, conflict.kept) == ("owner", "dora", "ann", "both")
    assert both.machine("host1").owner == "ann"


def test_names_may_go_round_in_a_circle(both: Both) -> None:
    numbers = [both.imported(f"host{n}") for n in range(3)]
    for n, number in enumerate(numbers):
        both.stand.set("dcim/devices", number, name=f"host{(n + 1) % 3}")
    ids = [both.machine(f"host{n}").id for n in range(3)]
    both.full()
    assert [both.machine(f"host{(n + 1) % 3}").id for n in range(3)] == ids


def test_a_name_that_another_machine_has_stays_as_it_was_and_is_named(both: Both) -> None:
    number = both.imported("host1")
    _machine(both.lab, "host2")
    both.stand.set("dcim/devices", number, name="host2", serial="S")
    (conflict,) = both.full().conflicts
    assert conflict.conflict == "another machine of the lab has this name"
    assert both.machine("host1").netbox_id == number
    both.edit("host2", name="host3")
    both.full()
    assert both.machine("host2").netbox_id == number


def test_a_device_without_a_name_keeps_the_one_that_the_lab_gave_it(both: Both) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, name=None)
    both.full()
    assert both.machine("host1").netbox_id == number


def test_a_blade_is_in_its_enclosure_once_that_is_in_the_lab(both: Both) -> None:
    chassis = both.stand.device("chassis", site=both.site)
    both.imported("blade", parent_device=chassis)
    assert both.machine("blade").enclosure_id is None
    assert log.runs(both.lab, ANN).items[0].conflicts[0].conflict == "its enclosure is not in the lab"
    imports.import_devices(both.lab, ANN, [chassis], netbox=both.box)
    both.full()
    assert both.machine("blade").enclosure_id == both.machine("chassis").id
    both.stand.set("dcim/devices", chassis, name="Chassis One")
    both.full()
    assert machines.facts_of(both.lab, ANN, "blade")["enclosure"] == ("chassis-one",)


def test_names_are_spelt_as_the_lab_spells_them_and_that_is_no_difference(both: Both) -> None:
    both.imported("HOST 7.lab.")
    assert both.machine("host-7.lab")
    assert both.full().counts == {"read": 1}


def test_what_the_probe_tells_later_is_known_by_what_netbox_told(both: Both) -> None:
    number = both.stand.device("host1", site=both.site, serial="S1")
    imports.import_devices(both.lab, ANN, [number], netbox=both.box)
    known = Identity.model_validate(both.machine("host1").identity)
    assert compare(known, Identity(system="s1", board="b7")).verdict == "same"
    assert compare(known, Identity(system="s2")).verdict == "other"


def test_what_is_gone_from_netbox_is_marked_and_stays(both: Both) -> None:
    number = both.imported("host1")
    device = both.stand.tables["dcim/devices"][number]
    both.stand.remove("dcim/devices", number)
    assert both.full().counts == {"read": 0, "gone": 1}
    assert both.full().counts == {"read": 0}
    (plan,) = sync.plan(both.lab, ANN, netbox=both.box).machines
    assert plan.gone and both.machine("host1").netbox_id == number
    both.stand.tables["dcim/devices"][number] = device
    assert both.full().counts == {"read": 1, "back": 1}


def test_an_incremental_sync_reads_what_changed_since(both: Both) -> None:
    numbers = [both.imported(f"host{n}") for n in range(3)]
    assert sync.sync(both.lab, ANN, "incremental", netbox=both.box).kind == "full"
    both.stand.at = both.stand.at.replace(hour=20)
    both.stand.set("dcim/devices", numbers[0], serial="S")
    both.full()
    both.stand.at = both.stand.at.replace(hour=21)
    both.stand.set("dcim/devices", numbers[1], name="changed")
    run = sync.sync(both.lab, ANN, "incremental", netbox=both.box)
    assert run.kind == "incremental" and run.counts == {"read": 2, "taken": 1}
    assert both.machine("changed")
    # Looked at again because of the overlap, and nothing to do.
    assert sync.sync(both.lab, ANN, "incremental", netbox=both.box).counts == {"read": 1}


def test_a_page_that_a_webhook_overtook_does_not_bring_the_old_value_back(both: Both) -> None:
    number = both.imported("host1")
    old = both.stand.shown(number)
    both.stand.set("dcim/devices", number, name="newer")
    both.full()
    late = Stand()
    late.tables = json.loads(json.dumps(both.stand.tables), object_hook=_numbers)
    late.tables["dcim/devices"][number].update(name="host1", last_updated=old["last_updated"])
    with NetBox("http://netbox", V2, transport=late.transport()) as box:
        assert sync.sync(both.lab, ANN, netbox=box).counts == {"read": 1, "older than known": 1}
    assert both.machine("newer")


def _numbers(found: dict[str, Any]) -> dict[Any, Any]:
    return {int(key) if key.isdigit() else key: value for key, value in found.items()}


def test_a_lists_pages_are_all_read(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAGE", 2)
    numbers = [both.imported(f"host{n}") for n in range(5)]
    for number in numbers:
        both.stand.set("dcim/devices", number, name=f"new{number}")
    assert both.full().counts == {"read": 5, "taken": 5}


def test_syncs_come_when_they_are_due(both: Both, clock: Clock) -> None:
    assert sync.due(both.lab) == "full"
    both.full()
    assert sync.due(both.lab) is None
    clock.move(6 * 60)
    assert sync.due(both.lab) == "incremental"
    clock.move(24 * 3600)
    assert sync.due(both.lab) == "full"
    both.full()
    clock.jump(-30 * 86400)
    assert sync.due(both.lab) == "full", "a clock that was set back does not put it off for a month"
    both.full()
    assert sync.due(both.lab) is None
    (both.lab.folder / settings.FILE).unlink()
    assert sync.due(both.lab) is None
    assert sync.tick(both.lab) is None


def test_the_service_syncs_by_itself(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(sync, "_LOOK_S", 0.01)
    monkeypatch.setattr(sync, "tick", lambda lab: done.set())
    with sync.part(both.lab, FastAPI()):
        assert done.wait(120)


def test_a_defect_in_the_thread_is_told_to_the_service(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "_LOOK_S", 0.01)
    monkeypatch.setattr(sync, "tick", lambda lab: 1 / 0)
    with sync.part(both.lab, FastAPI()) as watch:
        watch._thread.join(120)
        assert isinstance(watch.failed, ZeroDivisionError)


def test_a_netbox_that_is_away_does_not_end_the_service(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Semaphore(0)
    tick = sync.tick

    def counted(lab: Lab) -> log.Run | None:
        tried.release()
        return tick(lab)

    monkeypatch.setattr(sync, "_LOOK_S", 0.01)
    monkeypatch.setattr(sync, "tick", counted)
    path = both.lab.folder / settings.FILE
    path.write_text(
        path.read_text().replace("http://netbox", "http://127.0.0.1:1").replace("token:", "full-every: 1ns\ntoken:")
    )
    with sync.part(both.lab, FastAPI()):
        assert tried.acquire(timeout=120) and tried.acquire(timeout=120)
    assert {run.state for run in log.runs(both.lab, ANN).items} == {"failed"}


def test_a_run_that_was_cut_off_says_so_at_the_next(both: Both) -> None:
    row = {"id": 7, "kind": "full", "actor": "lab", "state": "running", "started_ns": 0, "counts": {}}
    both.lab.store.write(lambda c: c.execute(insert(schema.netbox_run).values(row | {"conflicts": []})))
    both.full()
    assert log.run(both.lab, ANN, 7).error == "cut off: the service stopped within"


# -- undo ---------------------------------------------------------------------------------------------------------


def test_undo_restores_is_logged_and_is_left_alone_by_the_next_sync(both: Both) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, name="host2")
    both.full()
    change = log.changes(both.lab, ANN, field="name").items[0]
    made = undo.undo(both.lab, ANN, change.id, netbox=both.box)
    assert (made.old, made.new, made.source) == ("host2", "host1", f"undo of {change.id}")
    assert log.changes(both.lab, ANN, field="name").items[1].undone_by == "ann"
    assert both.full().counts == {"read": 1}
    assert both.machine("host1")
    undo.undo(both.lab, ANN, made.id, netbox=both.box)  # the undo undone
    assert both.machine("host2")
    with pytest.raises(Conflict, match="undone by ann already"):
        undo.undo(both.lab, ANN, change.id, netbox=both.box)


def test_a_search_sees_what_a_sync_took_and_an_undo_gave_back(both: Both) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, site=both.stand.add("dcim/sites", name="Prague", slug="prg"))
    assert search.find(both.lab, ANN, "site:nbg").total == 1
    both.full()
    assert [search.find(both.lab, ANN, f"site:{site}").total for site in ("nbg", "prg")] == [0, 1]
    undo.undo(both.lab, ANN, log.changes(both.lab, ANN, field="site").items[0].id, netbox=both.box)
    assert [search.find(both.lab, ANN, f"site:{site}").total for site in ("nbg", "prg")] == [1, 0]


def test_undo_is_refused_when_the_field_changed_since(both: Both) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, name="host2")
    both.full()
    both.edit("host2", name="host3")
    change = log.changes(both.lab, ANN, field="name").items[0]
    with pytest.raises(Conflict, match="'host3' by now"):
        undo.undo(both.lab, ANN, change.id, netbox=both.box)
    assert both.machine("host3") and log.changes(both.lab, ANN, field="name").items[0].undone_by is None


def test_undo_of_a_name_that_is_taken_by_now_is_refused(both: Both) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, name="host2")
    both.full()
    _machine(both.lab, "host1")
    with pytest.raises(Conflict, match="another machine is called host1"):
        undo.undo(both.lab, ANN, log.changes(both.lab, ANN, field="name").items[0].id, netbox=both.box)


# -- push ---------------------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "identity": {"os_release": "Debian GNU/Linux 12"},
    "memory_bytes": 67_000_000_000,
    "cpus": [{"id": n, "online": True, "package": 0, "model": "EPYC 9354"} for n in range(4)],
    "nics": [
        {"name": "eno1", "pci": "0000:01:00.0", "mac": "02:00:00:00:00:0a"},
        {"name": "eno2", "pci": "0000:01:00.1", "mac": "02:00:00:00:00:0b"},
        {"name": "br0", "pci": None, "mac": "02:00:00:00:00:0c"},
    ],
}


def test_a_push_fills_what_netbox_lacks_field_by_field_and_a_second_one_writes_nothing(both: Both) -> None:
    number = both.imported("host1")
    both.facts("host1", **FACTS)
    eno1 = both.stand.add("dcim/interfaces", device=number, name="eno1")
    plan = push.push_plan(both.lab, BOB, "host1", netbox=both.box)
    writes = {w.field: (w.lab, w.act, w.creates) for w in plan.writes}
    assert writes == {
        "serial": ("S1", "write", ""),
        "platform": ("Debian GNU/Linux 12", "write", ""),
        "memory_gib": (62, "write", ""),
        "cpu_model": ("EPYC 9354", "hold", ""),
        "cpu_sockets": (1, "hold", ""),
        "cpu_threads": (4, "hold", ""),
        "interface.eno1.mac": ("02:00:00:00:00:0A", "write", "MAC address"),
        "interface.eno2.mac": ("02:00:00:00:00:0B", "write", "interface eno2, MAC address"),
    }
    assert next(w for w in plan.writes if w.act == "hold").why == "NetBox has no custom field cpu_model for devices"
    assert "PATCH" not in [method for method, _ in both.stand.requests]
    run = push.push(both.lab, ANN, "host1", netbox=both.box)
    assert run.counts == {"written": 5}
    device = both.stand.shown(number)
    assert (device["serial"], device["platform"]["name"]) == ("S1", "Debian GNU/Linux 12")
    assert device["custom_fields"] == {"lab_owner": None, "lab_team": None, "memory_gib": 62}
    found = {one["name"]: one["mac_address"] for one in both.box.interfaces(number)}
    assert found == {"eno1": "02:00:00:00:00:0A", "eno2": "02:00:00:00:00:0B"}
    assert both.stand.tables["dcim/interfaces"][eno1]["name"] == "eno1"
    before = len(both.stand.changes)
    assert push.push(both.lab, ANN, "host1", netbox=both.box).counts == {}
    assert len(both.stand.changes) == before


def test_a_push_never_overwrites_what_somebody_wrote_unless_that_field_is_named(both: Both) -> None:
    number = both.imported("host1", serial="THEIRS")
    both.facts("host1", **FACTS)
    run = push.push(both.lab, ANN, "host1", netbox=both.box)
    assert [(c.field, c.netbox, c.kept) for c in run.conflicts] == [("serial", "THEIRS", "both")]
    assert both.stand.shown(number)["serial"] == "THEIRS"
    run = push.push(both.lab, ANN, "host1", named=["serial"], netbox=both.box)
    assert [(c.field, c.kept) for c in run.conflicts] == [("serial", "lab")]
    assert both.stand.shown(number)["serial"] == "S1"
    assert both.log(run=run.id) == [("netbox", "serial", "THEIRS", "S1")]


def test_a_push_updates_what_was_agreed_and_stops_at_what_netbox_changed_since(both: Both) -> None:
    number = both.imported("host1")
    both.facts("host1", **FACTS)
    push.push(both.lab, ANN, "host1", netbox=both.box)
    both.facts("host1", **FACTS | {"memory_bytes": 134_000_000_000})
    assert push.push(both.lab, ANN, "host1", netbox=both.box).counts == {"written": 1}
    assert both.stand.shown(number)["custom_fields"]["memory_gib"] == 125
    both.stand.set("dcim/devices", number, custom_fields={"memory_gib": 128})
    both.facts("host1", **FACTS)
    (conflict,) = push.push(both.lab, ANN, "host1", netbox=both.box).conflicts
    assert (conflict.netbox, conflict.lab, conflict.conflict) == (128, 62, "changed in NetBox since they agreed")


def test_what_the_lab_does_not_know_is_never_written_over_something(both: Both) -> None:
    number = both.imported("host1", serial="S9", custom_fields={"lab_owner": "carl"})
    both.edit("host1", owner="")
    push.push(both.lab, ANN, "host1", named=["serial", "owner"], netbox=both.box)
    assert both.stand.shown(number)["serial"] == "S9"
    assert both.stand.shown(number)["custom_fields"]["lab_owner"] == "carl"


def test_an_interface_of_another_name_with_this_address_is_the_same_one(both: Both) -> None:
    number = both.imported("host1")
    both.facts("host1", **FACTS)
    interface = both.stand.add("dcim/interfaces", device=number, name="Slot 1 Port 1")
    address = both.stand.add("dcim/mac-addresses", mac_address="02:00:00:00:00:0A", assigned_object_id=interface)
    both.stand.set("dcim/interfaces", interface, primary_mac_address=address)
    push.push(both.lab, ANN, "host1", netbox=both.box)
    assert [one["name"] for one in both.box.interfaces(number)] == ["Slot 1 Port 1", "eno2"]


def test_somebody_who_was_faster_is_not_overwritten(both: Both) -> None:
    """Between our read and our PATCH somebody edits: the real NetBox answers 412 then (measured)."""
    number = both.imported("host1", serial="S1")
    both.facts("host1", **FACTS)
    push.push(both.lab, ANN, "host1", netbox=both.box)
    both.facts("host1", "S2", **FACTS)
    patch = both.box.patch

    def slow(path: str, at: int, body: Any, etag: str) -> Any:
        both.stand.set("dcim/devices", number, serial="THEIRS")
        return patch(path, at, body, etag)

    both.box.patch = slow  # type: ignore[method-assign,assignment]
    with pytest.raises(Changed):
        push.push(both.lab, ANN, "host1", netbox=both.box)
    assert both.stand.shown(number)["serial"] == "THEIRS"
    newest = log.changes(both.lab, ANN).items[0]
    assert (newest.field, newest.state) == ("serial", "unknown")
    assert log.runs(both.lab, ANN).items[0].state == "failed"


def test_an_old_netbox_is_not_pushed_to_unless_the_settings_say_so(both: Both) -> None:
    number = both.imported("host1")
    both.facts("host1", **FACTS)
    both.stand.version = "4.5.9"
    with pytest.raises(Refused, match="lose somebody's edit"):
        push.push(both.lab, ANN, "host1", netbox=both.box)
    assert both.stand.shown(number)["serial"] == ""
    with (both.lab.folder / settings.FILE).open("a") as file:
        file.write("write-to-old: true\n")
    push.push(both.lab, ANN, "host1", netbox=both.box)
    assert both.stand.shown(number)["serial"] == "S1"


def test_undo_of_a_push_restores_netbox_and_the_next_push_leaves_it(both: Both) -> None:
    number = both.imported("host1", serial="OLD")
    both.facts("host1", **FACTS)
    push.push(both.lab, ANN, "host1", named=["serial"], netbox=both.box)
    for change in log.changes(both.lab, ANN).items:
        if change.side == "netbox":
            undo.undo(both.lab, ANN, change.id, netbox=both.box)
    device = both.stand.shown(number)
    assert (device["serial"], device["platform"], device["custom_fields"]["memory_gib"]) == ("OLD", None, None)
    assert {one["mac_address"] for one in both.box.interfaces(number)} == {None}
    push.push(both.lab, ANN, "host1", netbox=both.box)
    assert both.stand.shown(number)["serial"] == "OLD"


def test_undo_of_a_push_is_refused_when_netbox_changed_since(both: Both) -> None:
    number = both.imported("host1")
    both.facts("host1", **FACTS)
    push.push(both.lab, ANN, "host1", netbox=both.box)
    both.stand.set("dcim/devices", number, serial="THEIRS")
    change = log.changes(both.lab, ANN, field="serial").items[0]
    with pytest.raises(Changed, match="changed in NetBox meanwhile"):
        undo.undo(both.lab, ANN, change.id, netbox=both.box)
    assert both.stand.shown(number)["serial"] == "THEIRS"


# -- webhooks -----------------------------------------------------------------------------------------------------


def _told(both: Both, change: Callable[[], object]) -> tuple[bytes, str]:
    """The body and the signature of the webhook that NetBox sends for this change."""
    heard: list[tuple[bytes, dict[str, str]]] = []
    both.stand.at = both.stand.at.replace(hour=10)
    both.stand.webhooks = [(lambda body, headers: heard.append((body, headers)), SECRET)]
    change()
    both.stand.webhooks = []
    return heard[0][0], heard[0][1][hook.SIGNATURE]


def test_a_webhook_brings_the_change_and_the_same_again_does_nothing(both: Both) -> None:
    number = both.imported("host1")
    body, signature = _told(both, lambda: both.stand.set("dcim/devices", number, name="host2"))
    assert hook.receive(both.lab, body, signature, netbox=both.box).result == "synced"
    assert both.machine("host2")
    before = len(both.stand.requests)
    assert hook.receive(both.lab, body, signature, netbox=both.box).result == "seen before"
    assert len(both.stand.requests) == before


@pytest.mark.parametrize("signature", ["", "0" * 128, "é", None])
def test_a_webhook_with_a_wrong_signature_changes_nothing(both: Both, signature: str | None) -> None:
    number = both.imported("host1")
    body, right = _told(both, lambda: both.stand.set("dcim/devices", number, name="host2"))
    body = body if signature is not None else body.replace(b"host2", b"host3")
    with pytest.raises(Forbidden, match="signature"):
        hook.receive(both.lab, body, right if signature is None else signature, netbox=both.box)
    assert both.machine("host1")


def test_an_old_webhook_is_refused_even_with_its_right_signature(both: Both, clock: Clock) -> None:
    number = both.imported("host1")
    body, signature = _told(both, lambda: both.stand.set("dcim/devices", number, name="host2"))
    clock.move(11 * 60)
    with pytest.raises(Forbidden, match="too old"):
        hook.receive(both.lab, body, signature, netbox=both.box)
    assert both.machine("host1")


def test_what_a_webhook_says_is_not_believed_netbox_is_asked(both: Both) -> None:
    number = both.imported("host1")
    told = {"event": "deleted", "timestamp": "2026-11-29T10:00:00+00:00", "object_type": "dcim.device"}
    body = json.dumps(told | {"data": {"id": number, "name": "evil"}}).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha512).hexdigest()
    assert hook.receive(both.lab, body, signature, netbox=both.box).result == "synced"
    assert both.machine("host1") and both.full().counts == {"read": 1}


def test_a_webhook_that_could_not_be_followed_may_be_sent_again(both: Both) -> None:
    number = both.imported("host1")
    body, signature = _told(both, lambda: both.stand.set("dcim/devices", number, name="host2"))
    with NetBox("http://127.0.0.1:1", V2) as nobody, pytest.raises(Unreachable):
        hook.receive(both.lab, body, signature, netbox=nobody)
    assert hook.receive(both.lab, body, signature, netbox=both.box).result == "synced"


def test_webhooks_of_deletion_and_of_interfaces_lead_to_their_device(both: Both) -> None:
    number = both.imported("host1")
    body, signature = _told(both, lambda: both.stand.add("dcim/interfaces", device=number, name="eth0"))
    assert hook.receive(both.lab, body, signature, netbox=both.box).device == number
    body, signature = _told(both, lambda: both.stand.remove("dcim/devices", number))
    heard = hook.receive(both.lab, body, signature, netbox=both.box)
    assert heard.run and log.run(both.lab, ANN, heard.run).counts == {"read": 0, "gone": 1}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": {}}', b'{"data": {}, "timestamp": "2026-11-29"}'])
def test_a_webhook_that_cannot_be_read_is_wrong_input(both: Both, body: bytes) -> None:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha512).hexdigest()
    with pytest.raises(WrongInput, match="this webhook has no"):
        hook.receive(both.lab, body, signature, netbox=both.box)


def test_what_is_not_ours_is_taken_and_left_alone(both: Both) -> None:
    body, signature = _told(both, lambda: both.stand.device("not in the lab"))
    assert hook.receive(both.lab, body, signature, netbox=both.box).result == "not ours"


# -- who may, and settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda lab, actor: sync.sync(lab, actor),
        lambda lab, actor: imports.import_devices(lab, actor, [1]),
        lambda lab, actor: push.push(lab, actor, "host1"),
        lambda lab, actor: undo.undo(lab, actor, 1),
    ],
)
def test_a_user_may_look_and_not_touch(both: Both, act: Callable[[Lab, Actor], object]) -> None:
    number = both.imported("host1")
    both.stand.set("dcim/devices", number, name="host2")
    both.full()
    sync.plan(both.lab, BOB, netbox=both.box)
    assert log.changes(both.lab, BOB).items
    with pytest.raises(Forbidden):
        act(both.lab, BOB)


def test_a_lab_without_a_netbox_says_where_to_write(lab: Lab) -> None:
    with pytest.raises(WrongInput, match="no NetBox") as raised:
        settings.load(lab)
    assert "netbox.yaml" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("url: x\n", "token"),
        ("url: http://x\ntoken: nbt_a.b\n", "token"),
        ("url: http://x\ntoken: file:/x\nfields: {colour: {owner: local}}\n", "colour"),
        ("url: http://x\ntoken: file:/x\nfields: {owner: {owner: nobody}}\n", "nobody|owner"),
    ],
)
def test_what_is_wrong_in_the_settings_is_named(lab: Lab, text: str, told: str) -> None:
    (lab.folder / settings.FILE).write_text(text)
    with pytest.raises(WrongInput, match=told):
        settings.load(lab)


def test_settings_change_who_owns_a_field_and_where_it_is(both: Both) -> None:
    with (both.lab.folder / settings.FILE).open("a") as file:
        file.write("fields:\n  owner: {owner: netbox, netbox: custom_fields.lab_team}\n")
    number = both.imported("host1", custom_fields={"lab_team": "kernel"})
    both.stand.set("dcim/devices", number, custom_fields={"lab_team": "virt"})
    both.full()
    assert both.machine("host1").owner == "virt"


def test_a_sealed_secret_of_the_lab_is_opened(both: Both) -> None:
    secrets.put(both.lab, with_roles("root", ["admin"]), "netbox", "", V2)
    assert settings.secret(both.lab, "secret:netbox") == V2
    with pytest.raises(NotFound, match="no secret other"):
        settings.secret(both.lab, "secret:other")


def test_a_token_file_that_is_not_there_is_named(both: Both) -> None:
    (both.lab.folder / "token").unlink()
    with pytest.raises(WrongInput, match="cannot read the secret"):
        sync.plan(both.lab, ANN)


def test_a_crash_between_log_and_netbox_is_found_out_afterwards(both: Both) -> None:
    """Killed after the PATCH and before its answer was kept: the old value is in the log, with what came of it."""
    number = both.imported("host1")
    both.facts("host1", **FACTS)
    patch = both.box.patch

    def killed(path: str, at: int, body: Any, etag: str) -> Any:
        patch(path, at, body, etag)
        raise KeyboardInterrupt

    both.box.patch = killed  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        push.push(both.lab, ANN, "host1", netbox=both.box)
    newest = log.changes(both.lab, ANN).items[0]
    assert (newest.field, newest.state) == ("serial", "intended")
    both.box.patch = patch  # type: ignore[method-assign]
    push.push(both.lab, ANN, "host1", netbox=both.box)
    assert {c.state for c in log.changes(both.lab, ANN).items} == {"done"}
    assert both.stand.shown(number)["serial"] == "S1"
    with both.lab.store.read() as connection:
        assert _intended(connection) == 0


def _intended(connection: Connection) -> int:
    changes = schema.field_change
    return len(list(connection.execute(select(changes.c.id).where(changes.c.state == "intended"))))
