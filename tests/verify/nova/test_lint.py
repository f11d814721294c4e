"""Nova lint on databases that Nova's own models wrote into a real MariaDB, and on the same with one fault put in.

``healthy`` was filled by Nova's scheduler; ``broken`` holds its answers to R1, R2 and R3.  Recorded by
``python -m bench.openstack.record``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli import main
from evenkeel.documents.findings import Findings
from evenkeel.errors import WrongInput
from evenkeel.verify.nova import lint, read
from evenkeel.verify.nova.catalogue import FAULTS, OTHER, kind_of
from evenkeel.verify.nova.dump import TABLES, query, read_dump

RECORDED = Path(__file__).parent / "recorded"
DOCS = Path(__file__).parents[3] / "docs"
R1, R1_PAGES, R2, R2_ISOLATE, R3 = (
    f"00000000-0000-4000-8000-0000000000{number}" for number in ("01", "11", "02", "21", "03")
)
FORMS = ("jsonl", "sql")
TABLE = "CREATE TABLE `compute_nodes` (\n  `id` int\n);\n"
Rows = list[dict[str, Any]]


def text(name: str) -> str:
    return (RECORDED / name).read_text(encoding="utf-8")


def found(findings: Findings) -> set[str]:
    return {check.id for check in findings.failed}


@pytest.mark.parametrize("form", FORMS)
def test_a_healthy_cloud_has_no_finding(form: str) -> None:
    findings = lint([read(text(f"healthy.{form}"), "healthy")])
    assert found(findings) == set()
    assert {check.status for check in findings.checks} == {"passed"} and len(findings.checks) == len(FAULTS)


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_of_nova_that_broke_its_request_is_named(form: str) -> None:
    findings = lint([read(text(f"broken.{form}"), "broken")])
    assert found(findings) == {
        f"N-UNPINNED:{R1}",
        f"N-UNPINNED:{R1_PAGES}",
        "N-PAGES:r1-pages",
        "N-MEMORY:r1-pages",
        f"N-OTHER-NODE:{R2}",
        f"N-OTHER-NODE:{R2_ISOLATE}",
        f"N-CPU-TWICE:{R2_ISOLATE}",
        f"N-SIBLING:{R2_ISOLATE}",
        f"N-SIBLING:{R3}",
        "N-BOOKS:r2",
        "N-BOOKS:r3",
    }
    pages = next(check for check in findings.failed if check.id == "N-PAGES:r1-pages")
    assert "80 GiB in pages of 1 GiB on node 0" in pages.observed and R1_PAGES in pages.evidence[0].where
    unpinned = next(check for check in findings.failed if check.id == f"N-UNPINNED:{R1}")
    twice = next(check for check in findings.failed if check.id == f"N-CPU-TWICE:{R2_ISOLATE}")
    assert f"{R2_ISOLATE[:-1]}2" in twice.observed  # the guest that Nova then gave the same CPUs
    assert unpinned.guest == R1 and any("pins none" in item.value for item in unpinned.evidence)


def test_both_forms_say_the_same() -> None:
    for name in ("healthy", "broken"):
        by_form = [read_dump(text(f"{name}.{form}"), name) for form in FORMS]
        for table, columns in TABLES.items():
            first, second = (
                sorted(json.dumps({key: row[key] for key in columns}) for row in dump[table]) for dump in by_form
            )
            assert first == second and (table == "pci_devices" or first)


# -- one fault put into the healthy cloud -----------------------------------------------------------------------------


def healthy() -> dict[str, Rows]:
    tables: dict[str, Rows] = {table: [] for table in TABLES}
    for line in text("healthy.jsonl").splitlines():
        row = json.loads(line)
        tables[row["table"]].append(row)
    return tables


def lines(tables: dict[str, Rows]) -> str:
    return "".join(json.dumps(row) + "\n" for rows in tables.values() for row in rows)


class Cells:
    """The stored cells of a guest, to be changed in place."""

    def __init__(self, tables: dict[str, Rows], wanted: Callable[[dict[str, Any], dict[str, Any]], bool]) -> None:
        for row in tables["instance_extra"]:
            if row["numa_topology"]:
                self.row, self.topology = row, json.loads(row["numa_topology"])
                self.cells = [cell["nova_object.data"] for cell in self.topology["nova_object.data"]["cells"]]
                if wanted(self.topology["nova_object.data"], self.cells[0]):
                    self.uuid: str = row["instance_uuid"]
                    self.host = next(one["host"] for one in tables["instances"] if one["uuid"] == self.uuid)
                    return
        raise AssertionError("no such guest")

    def save(self) -> None:
        self.row["numa_topology"] = json.dumps(self.topology)


def threads(policy: str) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    return lambda topology, cell: (
        cell["cpu_thread_policy"] == policy and topology["emulator_threads_policy"] != "isolate"
    )


def anybody(topology: dict[str, Any], cell: dict[str, Any]) -> bool:
    return bool(cell["cpu_policy"] == "dedicated")


def _unpin(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("isolate"))
    guest.cells[0]["cpu_pinning_raw"].popitem()
    guest.save()
    return f"N-UNPINNED:{guest.uuid}"


def _other_node(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("isolate"))
    guest.cells[0]["id"] = 1 - guest.cells[0]["id"]
    guest.save()
    return f"N-OTHER-NODE:{guest.uuid}"


def _twice(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("require"))
    pins = guest.cells[0]["cpu_pinning_raw"]
    pins.update(dict.fromkeys(pins, next(iter(pins.values()))))
    guest.save()
    return f"N-CPU-TWICE:{guest.uuid}"


def _beside(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("isolate"))
    pins = guest.cells[0]["cpu_pinning_raw"]
    first, second = sorted(pins)
    pins[second] = pins[first] + 8 if pins[first] % 16 < 8 else pins[first] - 8
    guest.save()
    return f"N-SIBLING:{guest.uuid}"


def _pairs(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("require"))
    pins = guest.cells[0]["cpu_pinning_raw"]
    second = sorted(pins)[1]
    pins[second] = next(
        cpu for cpu in range(16 * guest.cells[0]["id"], 16 * guest.cells[0]["id"] + 8) if cpu not in pins.values()
    )
    guest.save()
    return f"N-PAIRS:{guest.uuid}"


def _emulator(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, lambda topology, cell: topology["emulator_threads_policy"] == "isolate")
    guest.cells[0]["cpuset_reserved"] = None
    guest.save()
    return f"N-EMULATOR:{guest.uuid}"


def _pages(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("isolate"))
    guest.cells[0]["memory"] = 34 << 10
    guest.save()
    return f"N-PAGES:{guest.host}"


def _memory(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("isolate"))
    guest.cells[0]["memory"] = 80 << 10
    guest.save()
    return f"N-MEMORY:{guest.host}"


def _page_size(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, lambda topology, cell: cell["pagesize"] == 1 << 20 and anybody(topology, cell))
    guest.cells[0]["pagesize"] = 2048
    guest.save()
    return f"N-PAGE-SIZE:{guest.uuid}"


def _no_node(tables: dict[str, Rows]) -> str:
    guest = Cells(tables, threads("isolate"))
    guest.cells[0]["id"] = 7
    guest.save()
    return f"N-NODE:{guest.uuid}"


def _held(tables: dict[str, Rows], policy: str) -> dict[str, Any]:
    for row in tables["pci_devices"]:
        extra = next((one for one in tables["instance_extra"] if one["instance_uuid"] == row["instance_uuid"]), None)
        if extra and any(one["numa_policy"] == policy for one in json.loads(extra["pci_requests"])):
            return row
    raise AssertionError("no such device")


def _far(tables: dict[str, Rows]) -> str:
    device = _held(tables, "required")
    device["numa_node"] = 1 - device["numa_node"]
    return f"N-DEVICE-FAR:{device['instance_uuid']}"


def _no_device(tables: dict[str, Rows]) -> str:
    device = _held(tables, "required")
    guest = device["instance_uuid"]
    device.update(instance_uuid=None, status="available")
    return f"N-DEVICE-COUNT:{guest}"


def _parent(tables: dict[str, Rows]) -> str:
    child, other = _held(tables, "required"), _held(tables, "preferred")
    child["parent_addr"] = other["address"]
    node = next(one for one in tables["compute_nodes"] if one["id"] == child["compute_node_id"])
    other["compute_node_id"] = child["compute_node_id"]
    row = next(one for one in tables["instances"] if one["uuid"] == other["instance_uuid"])
    row["host"] = row["node"] = node["host"]
    return f"N-DEVICE-TAKEN:{node['host']}"


def _books(tables: dict[str, Rows]) -> str:
    node = tables["compute_nodes"][0]
    topology = json.loads(node["numa_topology"])
    cell = topology["nova_object.data"]["cells"][0]["nova_object.data"]
    cell["pinned_cpus"].append(next(cpu for cpu in cell["pcpuset"] if cpu not in cell["pinned_cpus"]))
    node["numa_topology"] = json.dumps(topology)
    return f"N-BOOKS:{node['host']}"


def _no_host(tables: dict[str, Rows]) -> str:
    row = next(one for one in tables["instances"] if one["uuid"] == Cells(tables, anybody).uuid)
    row["host"] = row["node"] = "gone"
    return f"N-NO-HOST:{row['uuid']}"


def _moving(tables: dict[str, Rows]) -> str:
    row = next(one for one in tables["instances"] if one["uuid"] == Cells(tables, anybody).uuid)
    row["vm_state"] = "resized"
    return f"N-MOVING:{row['uuid']}"


@pytest.mark.parametrize(
    "spoil",
    [
        *(_unpin, _other_node, _twice, _beside, _pairs, _emulator, _pages, _memory, _page_size, _no_node),
        *(_far, _no_device, _parent, _books, _no_host, _moving),
    ],
    ids=lambda spoil: spoil.__name__.lstrip("_"),
)
def test_a_fault_that_is_put_in_is_found(spoil: Callable[[dict[str, Rows]], str]) -> None:
    tables = healthy()
    wanted = spoil(tables)
    assert wanted in found(lint([read(lines(tables), "dump")]))


def test_two_guests_on_one_cpu_are_both_named() -> None:
    tables = healthy()
    guest = Cells(tables, threads("require"))
    other = Cells(
        tables,
        lambda topology, cell: (
            cell["cpu_thread_policy"] == "prefer" and cell["id"] == guest.cells[0]["id"] and len(cell["pcpuset"]) == 2
        ),
    )
    pins = list(guest.cells[0]["cpu_pinning_raw"].values())
    other.cells[0]["cpu_pinning_raw"] = dict(zip(other.cells[0]["cpu_pinning_raw"], pins, strict=True))
    other.save()
    row = next(one for one in tables["instances"] if one["uuid"] == other.uuid)
    row["host"] = row["node"] = guest.host
    twice = [check for check in lint([read(lines(tables), "dump")]).failed if check.id.startswith("N-CPU-TWICE")]
    assert len(twice) == 1
    assert all(uuid in twice[0].observed for uuid in (guest.uuid, other.uuid))
    assert {guest.uuid, other.uuid} <= {uuid for item in twice[0].evidence for uuid in item.where.split()}


@pytest.mark.parametrize(
    ("policy", "near"),
    [("legacy", False), ("socket", False), ("preferred", True), ("required", False)],
)
def test_each_policy_of_devices_is_judged_by_its_own_words(policy: str, near: bool) -> None:
    tables = healthy()
    device = _held(tables, "required")
    extra = next(one for one in tables["instance_extra"] if one["instance_uuid"] == device["instance_uuid"])
    wishes = json.loads(extra["pci_requests"])
    wishes[0]["numa_policy"] = policy
    extra["pci_requests"] = json.dumps(wishes)
    device["numa_node"] = 1 - device["numa_node"]
    assert (f"N-DEVICE-FAR:{device['instance_uuid']}" not in found(lint([read(lines(tables), "dump")]))) == near
    if policy == "legacy":  # a device that says no node is good enough
        device["numa_node"] = None
        assert f"N-DEVICE-FAR:{device['instance_uuid']}" not in found(lint([read(lines(tables), "dump")]))


def test_cells_of_before_version_1_5_keep_their_dedicated_cpus_elsewhere() -> None:
    tables = healthy()
    guest = Cells(tables, threads("isolate"))
    for cell in guest.topology["nova_object.data"]["cells"]:
        cell["nova_object.version"] = "1.4"
        cell["nova_object.data"]["cpuset"] = cell["nova_object.data"].pop("pcpuset")
    guest.save()
    assert found(lint([read(lines(tables), "dump")])) == set()


def test_a_cloud_without_bound_guests_is_not_called_well() -> None:
    tables = {**healthy(), "instances": [], "instance_extra": [], "pci_devices": []}
    for node in tables["compute_nodes"]:
        node["numa_topology"] = None
    findings = lint([read(lines(tables), "dump")])
    assert {check.status for check in findings.checks} == {"not_checked"}


def test_two_cells_are_two_databases() -> None:
    clouds = [read(text(f"{name}.jsonl"), name) for name in ("healthy", "broken")]  # compute_nodes have the same ids
    assert found(lint(clouds)) == found(lint(clouds[1:]))


# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dump", "word"),
    [
        ("", "no compute_nodes"),
        ("hello", "no compute_nodes"),
        ('{"table": "compute_nodes"}', "without id, host"),
        ('{"table": "users"}', "names no table"),
        ('{"table": \n', "not a line of JSON"),
        ("CREATE TABLE `compute_nodes` (\n  `id` int\n);\n", "the table instances is missing"),
        (
            "CREATE TABLE `compute_nodes` (\n  `id` int\n);\nINSERT INTO `compute_nodes` VALUES (1,2);\n",
            "2 values for 1",
        ),
        ("CREATE TABLE `compute_nodes` (\n  `id` int\n);\nINSERT INTO `compute_nodes` VALUES (1,'a", "cut off"),
    ],
)
def test_what_is_no_dump_is_refused_with_the_command_that_makes_one(dump: str, word: str) -> None:
    with pytest.raises(WrongInput, match=word) as refused:
        read(dump, "x")
    assert refused.value.hint


def test_an_object_that_cannot_be_read_is_named() -> None:
    tables = healthy()
    tables["compute_nodes"][1]["numa_topology"] = '{"cells": []}'
    with pytest.raises(WrongInput, match="compute_nodes cmp-1"):
        read(lines(tables), "x")


def test_deleted_rows_are_left_out() -> None:
    sql = text("healthy.sql")
    assert len(read_dump(sql, "x")["instances"]) == 20
    head, _, rest = sql.partition("INSERT INTO `instances` VALUES\n")
    first, _, others = rest.partition("),\n")
    assert first.endswith(",0")  # the column `deleted` is the last
    changed = f"{head}INSERT INTO `instances` VALUES\n{first[:-1]}17),\n{others}"
    assert len(read_dump(changed, "x")["instances"]) == 19


def test_every_sentence_of_the_checker_has_a_kind() -> None:
    """Of those that a database of Nova can make it say."""
    for name in ("healthy", "broken"):
        assert "N-OTHER" not in {one.partition(":")[0] for one in found(lint([read(text(f"{name}.sql"), name)]))}
    assert kind_of("something that nobody foresaw") is OTHER


# -- the verb -----------------------------------------------------------------------------------------------------


def test_exit_codes_and_forms_of_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    healthy_file, broken_file = str(RECORDED / "healthy.jsonl"), str(RECORDED / "broken.sql")
    assert main(["lint", "nova", healthy_file]) == 0
    assert "0 harmful" in capsys.readouterr().out
    assert main(["lint", "nova", broken_file]) == 1
    assert "N-OTHER-NODE" in capsys.readouterr().out
    assert main(["lint", "nova", broken_file, "--json", "-o", str(tmp_path / "findings.json")]) == 1
    printed = capsys.readouterr().out
    assert Findings.from_json(printed, file="-") == Findings.from_json(
        (tmp_path / "findings.json").read_text(), file="x"
    )
    assert main(["lint", "nova", broken_file, "--sarif"]) == 1
    run = json.loads(capsys.readouterr().out)["runs"][0]
    assert run["tool"]["driver"]["name"] == "evenkeel lint nova"
    assert len(run["results"]) == 11 and len(run["tool"]["driver"]["rules"]) == len(FAULTS)
    assert all(run["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"] for one in run["results"])
    known = [word for fault in FAULTS for word in ("--accept", fault.id)]
    assert main(["lint", "nova", broken_file, *known]) == 0
    assert "(accepted)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [[], ["missing.jsonl"], [str(RECORDED / "cases.json")], ["x", "--json", "--sarif"], ["x", "--accept", "N-NONE"]],
)
def test_wrong_input_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "nova", *words]) == 2
    assert "hint:" in capsys.readouterr().err or words == ["missing.jsonl"]


def test_the_query_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "nova", "--query"]) == 0
    assert capsys.readouterr().out == query()
    assert all(word not in query() for word in ("display_name", "user_data", "metadata", "INSERT", "UPDATE", "DELETE"))


def test_the_other_lint_needs_no_name_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "guest.xml"]) == main(["lint", "guests", "guest.xml"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("missing option '--profile'") == 2


def test_the_docs_list_every_kind() -> None:
    page = (DOCS / "how-to" / "lint-nova.md").read_text(encoding="utf-8")
    for fault in FAULTS:
        assert f"| {fault.id} | {fault.severity} | {fault.healthy} |" in page
