"""What holds for every document: strict, frozen, the same bytes every time; and the few rules they carry themselves."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import evenkeel.documents
from evenkeel.documents.base import Document, Model, digest
from evenkeel.documents.evidence import Conditions, Evidence
from evenkeel.documents.facts import Cpu, Facts, Identity, Kernel, Node, PciFunction
from evenkeel.documents.findings import Check, Findings
from evenkeel.documents.histogram import Histogram
from evenkeel.documents.journal import Journal
from evenkeel.documents.plan import FileValue, Ledger, Phase
from evenkeel.errors import WrongInput

for module in pkgutil.iter_modules(evenkeel.documents.__path__):
    importlib.import_module(f"evenkeel.documents.{module.name}")

#: The documents of the river; tests may define more.
DOCUMENTS = {name: kind for name, kind in Document.registry.items() if kind.__module__.startswith("evenkeel.")}


def models() -> set[type[Model]]:
    found: set[type[Model]] = set()
    left: list[type[Model]] = [Model]
    while left:
        for model in left.pop().__subclasses__():
            if model not in found and model.__module__.startswith("evenkeel.documents"):
                found.add(model)
                left.append(model)
    return found


def facts(**changes: Any) -> Facts:
    return Facts.model_validate(
        {
            "identity": Identity(architecture="x86_64", hostname="cell"),
            "kernel": Kernel(release="6.12.0-rt", command_line="quiet"),
            "cpus": (Cpu(id=0, siblings=frozenset({0})), Cpu(id=2, online=False)),
            "nodes": (Node(id=0, cpus=frozenset({0}), memory_bytes=1 << 30, distances={0: 10, 1: 21}),),
            "pci": (PciFunction(address="0000:00:01.0", class_code="020000", vendor="8086", device="1533"),),
            **changes,
        }
    )


def test_the_documents_are_the_ones_of_the_design() -> None:
    names = {"Facts", "Site", "Plan", "Journal", "Findings", "Evidence", "Cost", "Comparison", "Answer", "Explanation"}
    assert set(DOCUMENTS) == names | {"Fleet", "FleetPlan", "History", "Inventory", "Result"}


@pytest.mark.parametrize("kind", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_kind_and_version_are_fixed(kind: type[Document]) -> None:
    fields = kind.model_fields
    assert fields["kind"].default == kind.__name__
    with pytest.raises(ValidationError):
        kind.model_validate({"kind": "Other"})
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"version": fields["version"].default + 1})
    assert ("version",) in [problem["loc"] for problem in caught.value.errors()]


@pytest.mark.parametrize("model", sorted(models(), key=str), ids=str)
def test_every_part_of_a_document_is_strict_and_frozen(model: type[Model]) -> None:
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True


# -- bytes --------------------------------------------------------------------------------------------------------


def test_the_same_document_gives_the_same_bytes_in_another_process() -> None:
    """The order of sets and dictionaries must not show: Python gives words another hash in every process."""
    program = (
        "import sys; from evenkeel.documents.plan import Ledger, Plan\n"
        "from evenkeel.documents.facts import *\n"
        "config = {letter: 'y' for letter in set('hgfedcba')}\n"
        "f = Facts(identity=Identity(architecture='x'), kernel=Kernel(release='6', config=config),"
        " cpus=(), isolated=frozenset([9, 1, 5, 8192 % 77]), vulnerabilities={v: v for v in {'b', 'a', 'meltdown'}})\n"
        "sys.stdout.write(f.to_json() + f.sha256() + str(f.fingerprint()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_the_bytes_are_canonical() -> None:
    text = Journal(host="zelle-ä").to_json()
    assert text == '{\n  "entries": [],\n  "host": "zelle-ä",\n  "kind": "Journal",\n  "version": 1\n}\n'


def test_a_document_comes_back_from_its_bytes() -> None:
    before = facts()
    after = Facts.from_json(before.to_json(), file="facts.json")
    assert after == before
    assert after.to_json() == before.to_json()
    assert after.nodes[0].distances == {0: 10, 1: 21}, "keys are numbers again"


def test_the_digest_is_of_the_content_not_of_the_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert facts().sha256() == facts().sha256() != facts(smt="off").sha256()
    assert len(facts().sha256()) == 64


def test_a_document_of_another_version_is_refused_with_a_cure() -> None:
    data = json.loads(Journal(host="cell").to_json()) | {"version": 2}
    with pytest.raises(WrongInput, match="version") as caught:
        Journal.from_json(json.dumps(data), file="j.json")
    assert "another version of evenkeel" in (caught.value.hint or "")
    assert caught.value.where is not None and caught.value.where.file == "j.json"


# -- facts: what makes a plan stale -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"kernel": Kernel(release="6.12.1-rt", command_line="quiet")}, {"kernel"}),
        ({"cpus": (Cpu(id=0, siblings=frozenset({0})),)}, {"cpus"}),
        ({"nodes": (Node(id=0, cpus=frozenset({0}), memory_bytes=1 << 30, distances={0: 10}),)}, {"memory"}),
        ({"pci": ()}, {"devices"}),
        ({"identity": Identity(architecture="x86_64", hostname="cell", firmware_version="2")}, {"machine"}),
        # what Evenkeel itself sets, or what is only a name, makes no plan stale
        ({"kernel": Kernel(release="6.12.0-rt", command_line="quiet isolcpus=2")}, set()),
        ({"isolated": frozenset({2})}, set()),
        ({"settings": {"/proc/sys/kernel/sched_rt_runtime_us": "-1"}}, set()),
        ({"identity": Identity(architecture="x86_64", hostname="renamed")}, set()),
    ],
)
def test_the_fingerprint_changes_with_what_we_do_not_set(changes: dict[str, Any], changed: set[str]) -> None:
    before, after = facts().fingerprint(), facts(**changes).fingerprint()
    assert {part for part in before if before[part] != after[part]} == changed


# -- findings: never green by omission ----------------------------------------------------------------------------


def check(status: str) -> Check:
    return Check.model_validate(
        {"id": "V-1", "subject": "thread", "title": "t", "status": status, "expected": "a", "observed": "b"}
    )


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (["passed", "passed"], "as planned"),
        (["passed", "not_checked"], "incomplete"),
        (["passed", "failed", "not_checked"], "not as planned"),
        ([], "incomplete"),
    ],
)
def test_a_verdict_is_green_only_when_all_was_checked(statuses: list[str], verdict: str) -> None:
    findings = Findings(host="cell", kernel="6.12", checks=tuple(map(check, statuses)))
    assert findings.verdict == verdict


# -- plan, evidence -----------------------------------------------------------------------------------------------


def test_isolated_is_all_that_the_host_may_not_use() -> None:
    ledger = Ledger(
        housekeeping=frozenset({0, 1}), data_plane=frozenset({2}), realtime=frozenset({3}), idle=frozenset({4}),
        shared=frozenset({5}),
    )  # fmt: skip
    assert ledger.isolated == frozenset({2, 3, 4})


def test_the_phases_end_with_throttling() -> None:
    """Real-time tasks lose their brake only when everything else is in place."""
    first, *_, last = Phase
    assert (first, last) == (Phase.BOOT, Phase.THROTTLE)


def test_samples_beyond_the_last_bucket_count() -> None:
    assert Histogram(counts={1: 5, 7: 2}, overflows=3).samples == 10


def test_evidence_cannot_be_without_its_conditions() -> None:
    with pytest.raises(ValidationError, match="conditions"):
        Evidence.model_validate({"host": "cell", "moment": "before"})
    conditions = Conditions(kernel="6.12", preempt_rt=True, command_line="")
    assert Evidence(host="cell", moment="before", conditions=conditions).conditions.emulated is None


@pytest.mark.parametrize(
    ("compare", "read", "wanted", "same"),
    [
        ("text", "performance\n", "performance", True),
        ("text", "powersave", "performance", False),
        ("integer", "0x10\n", "16", True),
        ("integer", "-1\n", "-1", True),
        ("integer", "", "0", False),
        ("cpulist", "0-1,2\n", "0-2", True),
        ("cpulist", " (null)\n", "", True),
        ("cpulist", "0-2", "0-1", False),
        ("cpulist", "4-N", "4-7", False),
        ("cpumask", "00000000,00000003\n", "3", True),
        ("cpumask", "1,00000000", "1", False),
        ("cpumask", "g", "0", False),
        ("choice", "always [madvise] never\n", "madvise", True),
        ("choice", "always [madvise] never\n", "never", False),
        ("choice", "never\n", "never", True),
        ("schemata", "    MB:0=100;1=100\n    L3:0=7ff;1=07f0\n", "L3:1=7f0", True),
        ("schemata", "    MB:0=100\n    L3:0=7ff;1=7f0\n", "L3:0=7f0;1=7f0", False),
        ("schemata", "L3CODE:0=f\nL3DATA:0=f\n", "L3:0=f", False),
        ("words", "3\t4\t1\t7\n", "3 4 1 7", True),
        ("words", "3\t4\t1\t7\n", "3 4 1", False),
        ("schemata", "L3:0=f\n", "", False),
        ("schemata", "L3:0=f\n", "L3:0", False),
        ("text", None, "x", False),
        ("text", "x", None, False),
        ("text", None, None, True),
    ],
)
def test_a_value_read_back_is_compared_by_its_meaning(
    compare: str, read: str | None, wanted: str | None, same: bool
) -> None:
    file = FileValue.model_validate({"path": "/x", "compare": compare})
    assert file.matches(read, wanted) is same


# -- evidence of older versions ----------------------------------------------------------------------------------


def test_evidence_of_version_1_is_still_read_and_then_version_3() -> None:
    file = Path(__file__).parents[1] / "measure" / "recorded" / "evidence.json"  # recorded by the first version
    old = json.loads(file.read_text())
    assert old["version"] == 1 and "bits" not in old["latencies"][0]["histogram"]
    found = Evidence.from_json(file.read_text(), file=file.name)
    assert found.version == 3 and found.latencies[0].samples == old["latencies"][0]["samples"]
    assert found.conditions.dma_latency_holders is None, "not known is not nobody"
    assert found.conditions.guest_dma_latency_holders is None and found.latencies[0].course is None
    assert Evidence.from_json(found.to_json(), file="again.json") == found


def test_evidence_of_a_newer_version_is_refused_with_a_cure() -> None:
    data = json.loads((Path(__file__).parents[1] / "measure" / "recorded" / "evidence.json").read_text())
    with pytest.raises(WrongInput, match="version") as caught:
        Evidence.from_json(json.dumps(data | {"version": 4}), file="evidence.json")
    assert "another version of evenkeel" in (caught.value.hint or "")
