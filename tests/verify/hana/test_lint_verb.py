"""`evenkeel lint`, as a user runs it: definitions and sites, hosts and none, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evenkeel.cli import main
from evenkeel.documents.facts import Definition, Facts, HugePages
from evenkeel.documents.findings import Findings
from evenkeel.machines.tree import TreeMachine
from evenkeel.verify.hana import RULES
from tests.plan.factories import GIB
from tests.plan.topologies import build
from tests.probe.truth import MACHINES
from tests.verify.hana.factories import hana_facts, hana_xml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "sap-hana.md").read_text(encoding="utf-8")
HANA = ["--profile", "sap-hana"]
SITE = """\
version: 1
hosts:
  h: {address: local}
guests:
  hana:
    goal: performance
    vcpus: 6
    memory: 40GiB
    disks: [{path: /dev/sda}, {path: /srv/data.qcow2, format: qcow2}]
  app:
    vcpus: 2
    memory: 1GiB
    disks: [{path: /srv/app.raw}]
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    facts = hana_facts()
    (tmp_path / "facts.json").write_text(facts.to_json())
    (tmp_path / "hana.xml").write_text(hana_xml(facts))
    (tmp_path / "site.yaml").write_text(SITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_inside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "hana.xml", *HANA, "--host", "facts.json"]) == 0
    out = capsys.readouterr().out
    assert "nothing found outside the validated envelope: 33 of 33 demands met" in out
    assert "not a certification" in out
    assert main(["lint", "hana.xml", *HANA, "--host", "facts.json", "--all"]) == 0
    assert "HANA-DISTANCES:hana" in capsys.readouterr().out


def test_outside_with_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "hana.xml").read_text().replace("tickpolicy='catchup'", "tickpolicy='discard'")
    (folder / "hana.xml").write_text(text)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "name='rtc'" in row)
    assert main(["lint", "hana.xml", *HANA, "--host", "facts.json"]) == 1
    out = capsys.readouterr().out
    assert f"hana.xml:{line}:5: tickpolicy of rtc is discard" in out
    assert "outside the validated envelope: 32 of 33 demands met, 1 not" in out


def test_advice_alone_leaves_the_envelope_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "hana.xml").read_text().replace("<nosharepages/>", "").replace("model='none'", "model='virtio'")
    (folder / "hana.xml").write_text(text)
    assert main(["lint", "hana.xml", *HANA, "--host", "facts.json"]) == 0
    out = capsys.readouterr().out
    assert "! HANA-SHARING:hana" in out and "· HANA-NO-BALLOON-DEVICE:hana" in out
    assert "33 of 33 demands met; 2 recommendations and notes" in out


def test_without_a_host_it_is_not_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "hana.xml", *HANA]) == 1
    assert "not known to be inside" in capsys.readouterr().out


def test_json_is_a_findings_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "hana.xml", *HANA, "--host", "facts.json", "--json"]) == 0
    found = Findings.from_json(capsys.readouterr().out, file="findings.json")
    assert len(found.checks) == len(RULES) and found.host == "facts.json"


def test_a_site_is_planned_and_shown_at_its_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "site.yaml", *HANA, "--host", "facts.json", "--guest", "hana", "--json"]) == 1
    found = Findings.from_json(capsys.readouterr().out, file="findings.json")
    failed = {check.id.partition(":")[0]: check for check in found.failed}
    assert {check.guest for check in found.checks} == {"hana", None}
    assert failed["HANA-SOCKETS"].evidence[0].where == "site.yaml:7:12"  # vcpus
    assert "Evenkeel keeps" in failed["HANA-SOCKETS"].observed
    assert failed["HANA-SOCKETS"].fix.startswith("none yet")
    assert failed["HANA-STORAGE"].evidence[0].where == "site.yaml:9:12"  # disks
    assert failed["HANA-STORAGE"].observed == "vdb is qcow2"
    # What the plan would set counts, not what is set now: its own pool is large enough.
    assert "HANA-HOST-PAGES" not in failed and "HANA-PAGES" not in failed
    assert "HANA-OVERCOMMIT" not in failed


def test_the_example_is_inside_but_for_what_the_page_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = hana_facts(sockets=4, cores=24, node_gib=384, pages=0)
    (folder / "facts.json").write_text(facts.to_json())
    example = ROOT / "examples" / "hana" / "site.yaml"
    assert main(["lint", str(example), *HANA, "--host", "facts.json", "--guest", "hana", "--json"]) == 1
    found = Findings.from_json(capsys.readouterr().out, file="findings.json")
    outside = {check.id.partition(":")[0] for check in found.failed}
    listed = PAGE[PAGE.index("What is left outside") : PAGE.index("These six are all")]
    assert outside == set(re.findall(r"HANA-[A-Z-]+[A-Z]", listed)) and len(outside) == 6
    inside = {check.id.partition(":")[0]: check for check in found.checks if check.status == "passed"}
    for name in ("CELLS", "DISTANCES", "NODES", "EQUAL-CELLS", "PAGES", "PIN", "SIBLINGS", "EMULATOR", "HOST-PAGES"):
        assert f"HANA-{name}" in inside, name
    assert "HANA-CELLS" in inside and inside["HANA-CELLS"].expected == "a cell for each of node 1-2"


@pytest.mark.parametrize("nodes_per_socket", [1, 2])
def test_cells_of_a_site_are_the_nodes_of_the_host(
    folder: Path, capsys: pytest.CaptureFixture[str], nodes_per_socket: int
) -> None:
    """Sub-NUMA clusters too: two sockets of two nodes are four cells in two sockets."""
    facts = hana_facts(cores=8, pages=0)
    if nodes_per_socket == 2:
        machine = build(sockets=2, cores=8, nodes_per_socket=2, memory=32 * GIB).facts()
        same = ("cpus", "possible", "caches", "nodes", "memory_bytes", "huge_pages", "settings")
        facts = facts.model_copy(update={name: getattr(machine, name) for name in same})
    (folder / "facts.json").write_text(facts.to_json())
    site = SITE.replace(
        "vcpus: 6\n    memory: 40GiB", f"numa: {2 * nodes_per_socket}\n    vcpus: 16\n    memory: 80GiB"
    )
    (folder / "site.yaml").write_text(site)
    main(["lint", "site.yaml", *HANA, "--host", "facts.json", "--guest", "hana", "--json"])
    found = Findings.from_json(capsys.readouterr().out, file="findings.json")
    told = {check.id.partition(":")[0]: (check.status, check.observed) for check in found.checks}
    for name in ("CELLS", "DISTANCES", "NODES", "EQUAL-CELLS", "SIBLINGS", "EMULATOR"):
        assert told[f"HANA-{name}"][0] == "passed", told[f"HANA-{name}"]
    # Sockets and threads are the host's; the cores that stay with the host are missing.
    assert told["HANA-TOPOLOGY"] == ("failed", "cores is 4, not 8")


def test_the_plan_of_a_site_counts_and_not_the_host_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = hana_facts(pages=0)
    settings = dict(facts.settings) | {"/sys/kernel/mm/ksm/run": "1", "/proc/sys/kernel/numa_balancing": "1"}
    (folder / "facts.json").write_text(facts.model_copy(update={"settings": settings}).to_json())
    main(["lint", "site.yaml", *HANA, "--host", "facts.json", "--guest", "hana", "--json"])
    found = Findings.from_json(capsys.readouterr().out, file="findings.json")
    told = {check.id: check.status for check in found.checks}
    for name in ("HANA-HOST-PAGES", "HANA-HOST-KSM", "HANA-HOST-BALANCING"):
        assert told[name] == "passed", name
    (folder / "hana.xml").write_text(hana_xml(facts, cell_gib=58))
    main(["lint", "hana.xml", *HANA, "--host", "facts.json", "--json"])
    assert Findings.from_json(capsys.readouterr().out, file="findings.json").failed


def test_the_definitions_that_a_host_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a guest that runs the one that it runs with: what stands in the file takes effect at its next start only."""
    facts = hana_facts()
    right = hana_xml(facts)
    other = "<domain type='kvm'><name>app</name><memory unit='GiB'>1</memory><vcpu cpuset='0-1'>2</vcpu></domain>"
    kept = (
        Definition(guest="hana", path="/etc/libvirt/qemu/hana.xml", running=False, xml=right.replace("'utc'", "'x'")),
        Definition(
            guest="hana", path="/run/libvirt/qemu/hana.xml", running=True, xml=right.replace("'catchup'", "'y'")
        ),
        Definition(guest="app", path="/etc/libvirt/qemu/app.xml", running=False, xml=other),
    )
    call = ["lint", *HANA, "--host", "facts.json", "--guest", "hana"]
    (folder / "facts.json").write_text(facts.model_copy(update={"definitions": kept}).to_json())
    assert main(call) == 1
    out = capsys.readouterr().out
    assert "/run/libvirt/qemu/hana.xml <timer>: tickpolicy of rtc is y" in out
    assert "offset is x" not in out
    assert "guest app may run on CPU 0-1 too" in out
    assert main(["lint", *HANA, "--host", "facts.json", "--json"]) == 1
    found = Findings.from_json(capsys.readouterr().out, file="findings.json")
    assert {check.guest for check in found.checks} == {"app", "hana", None}
    (folder / "facts.json").write_text(facts.to_json())
    assert main(call) == 2
    assert "read its facts as root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look at"),
        (["hana.xml", "site.yaml"], "a site and domain definitions are linted apart"),
        (["hana.xml", "hana.xml"], "two definitions are named hana"),
        (["site.yaml", "site.yaml"], "one site at a time"),
        (["missing.xml"], "there is no file missing.xml"),
        (["site.yaml", "--guest", "hanna", "--host", "facts.json"], "did you mean hana?"),
        (["hana.xml", "--guest", "x"], "there is no such guest"),
        (["hana.xml", "--host", "site.yaml.json"], "there is no file"),
        (["facts.xml"], "there is no file"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", *arguments, *HANA]) == 2
    assert message in capsys.readouterr().err


def test_a_profile_must_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "hana.xml"]) == 2
    assert "--profile" in capsys.readouterr().err
    assert main(["lint", "hana.xml", "--profile", "oracle"]) == 2


def test_a_site_that_does_not_fit_its_host_is_refused_at_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "site.yaml").write_text(SITE.replace("40GiB", "400GiB"))
    assert main(["lint", "site.yaml", *HANA, "--host", "facts.json"]) == 2
    assert "site.yaml:5:3" in capsys.readouterr().err


# -- the example and the page -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not MACHINES.is_dir(), reason="no recorded machines here")
def test_the_example_plans_on_a_recorded_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A four-socket server of ten cores each and 504 GiB; its recording has no programs and no pool of 1 GiB."""
    with TreeMachine(MACHINES / "40intel64-2g2n4c+pcilocality.tar.bz2").probe() as probe:
        facts = Facts.model_validate(probe.call("facts"))
    pools = {node.id: (*node.huge_pages, HugePages(page_bytes=GIB, total=0, free=0)) for node in facts.nodes}
    nodes = tuple(node.model_copy(update={"huge_pages": pools[node.id]}) for node in facts.nodes)
    programs = {"libvirt": "8.0.0", "qemu": "6.2.0"}
    (folder / "facts.json").write_text(facts.model_copy(update={"nodes": nodes, "programs": programs}).to_json())
    site = str(ROOT / "examples" / "hana" / "site.yaml")
    assert main(["plan", site, "--facts", "facts.json", "--json"]) == 0
    (host,) = json.loads(capsys.readouterr().out)["hosts"]
    assert [(guest["name"], guest["pages"], guest["page_bytes"]) for guest in host["guests"]] == [
        ("application", 32768, 2 << 20),
        ("hana", 224, GIB),
    ]
    hana = host["guests"][1]
    assert [(cell["node"], cell["vcpus"], cell["pages"]) for cell in hana["cells"]] == [
        (1, "0-7", 112),
        (2, "8-15", 112),
    ]
    assert "distances between its cells are those between the nodes: 10 20; 20 10" in hana["why"]
    assert main(["lint", site, *HANA, "--host", "facts.json", "--guest", "hana"]) == 1
    out = capsys.readouterr().out
    assert "socket 1: CPU" in out and "(Evenkeel keeps 1 for the host" in out
    assert "outside the validated envelope" in out


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_page_has_each_check(rule: object) -> None:
    one = next(other for other in RULES if other is rule)
    words = {"harmful": "demand", "warning": "advice", "note": "note"}
    source = one.source.replace("|", "\\|")
    assert f"| `{one.id}` | {one.title} | {words[one.severity]} | {one.why} | {source} |" in PAGE


def test_the_page_has_no_other_check() -> None:
    assert re.findall(r"^\| `(HANA-[A-Z0-9-]+)`", PAGE, re.MULTILINE) == [rule.id for rule in RULES]


def test_the_page_says_what_the_planner_cannot_do_yet() -> None:
    section = PAGE.partition("## From a site file")[2]
    assert set(re.findall(r"`(HANA-[A-Z0-9-]+)`", section)) == {
        rule.id for rule in RULES if rule.planner.startswith("none yet") or "not planned yet" in rule.planner
    }
