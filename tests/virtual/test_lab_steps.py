"""The shipped steps that need a virtual host, through a lab and its agent; and the same one without a lab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.lab.service import Running, evenkeel

from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.documents.result import Result
from evenkeel.lab.runner import unpack
from evenkeel.machines.virtual import lifecycle

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]


def through_the_lab(running: Running, step: str, *words: str) -> tuple[Result, str]:
    """What came of a step that was submitted, and its log."""
    done = evenkeel("lab", "submit", step, *words, "--wait")
    with running.client() as client:
        number = next(client.pages("/submissions"))["id"]
        attempt = client.get(f"/submissions/{number}/steps/{step}")["attempts"][-1]["id"]
        log = client.ask("GET", f"/attempts/{attempt}/log").text
        document: Any = client.get(f"/results/{attempt}")["result"]
    assert document is not None, f"{done.stderr}\n{log}"
    return Result.model_validate(document), log


def test_a_boot_test_gives_the_same_document_in_a_lab_and_without_one(lab_up: Running, tmp_path: Path) -> None:
    source = f"source={ROOT / 'examples/lab/heartbeat'}"
    built = evenkeel(
        "lab", "run", "kernel-module", "--input", source, "--set", "release=virtual", "-o", str(tmp_path / "b")
    )
    assert built.returncode == 0, built.stderr
    modules = tmp_path / "b/kernel-module/artifacts/modules"
    unpack(modules)
    there, log = through_the_lab(lab_up, "boot-module", "--input", f"modules={modules}")
    assert (there.state, there.output["modules"]) == ("passed", {"heartbeat": {"loaded": True, "unloaded": True}}), log
    assert there.place.agent == "local"

    here = evenkeel("lab", "run", "boot-module", "--input", f"modules={modules}", "-o", str(tmp_path / "r"))
    assert here.returncode == 0, here.stderr
    document = Result.from_json((tmp_path / "r/boot-module/result.json").read_text(), file="result.json")
    assert document.comparable() == there.comparable()
    assert lifecycle.listing() == []  # both were in the folders of their steps


def test_a_measurement_takes_a_machine_of_the_pool_and_is_marked(lab_up: Running) -> None:
    try:
        assert evenkeel("lab", "demo").returncode == 0
        before = lifecycle.read_boot_id(lifecycle.ssh_target("lab-demo-1"))
        found, log = through_the_lab(lab_up, "measure", "--set", "machine=tag:demo", "--set", "time=3s")
        assert found.state == "passed", log
        assert found.place.machine == "lab-demo-1"
        assert found.output["latencies"] and found.output["deadlines"] == "kept"
        for one in found.output["latencies"]:
            assert one["samples"] > 10
            assert (one.get("note") == EMULATION_NOTE) is found.output["emulated"]
        assert lifecycle.read_boot_id(lifecycle.ssh_target("lab-demo-1")) == before
    finally:
        evenkeel("lab", "demo", "--rm")
