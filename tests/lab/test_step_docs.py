"""The pages about steps say what steps are: every key, every cause, each example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from evenkeel.documents.result import Cause
from evenkeel.lab import step
from evenkeel.lab.local import run_graph
from evenkeel.lab.retention import ArtifactRetention
from evenkeel.lab.runner import Run
from evenkeel.lab.settings import read as read_settings
from evenkeel.lab.step import Input, graph_of_step, read_graph, read_step, shipped

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "reference" / "lab-step-file.md").read_text(encoding="utf-8")
HOW_TO = (DOCS / "how-to" / "lab-steps.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    found = re.search(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("A definition", step.Step),
        ("A parameter", step.Parameter),
        ("An input", step.Input),
        ("An artifact", step.ArtifactWish),
        ("Limits", step.Limits),
        ("Retries", step.Retry),
        ("A graph", step.Graph),
        ("A step in a graph", step.Use),
        ("An edge", step.Need),
    ],
)
def test_every_key_is_described_and_none_is_made_up(heading: str, model: type[BaseModel]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (required\b)?", section(heading), re.MULTILINE)
    assert [name for name, _ in rows] == list(model.model_fields)
    assert {name for name, word in rows if word} == {
        name for name, field in model.model_fields.items() if field.is_required()
    }


def test_every_cause_is_described() -> None:
    told = re.findall(r"`([a-z]+)`", " ".join(re.findall(r"^\| (`[a-z`, ]+) \|", section("The result"), re.MULTILINE)))
    assert sorted(told) == sorted(cause for cause in get_args(Cause) if cause)


def test_every_variable_of_a_command_is_described(tmp_path: Path) -> None:
    use = graph_of_step(step.Step(kind="x", command="env", parameters={"name": step.Parameter(default="v")}), {})
    ran = Run(use.steps["x"], tmp_path / "s", machine={"name": "m", "address": "a"}).run()
    there = {line.partition("=")[0] for line in ran.log.read_text().splitlines()}
    by_bash = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert there - by_bash == set(re.findall(r"[`$]([A-Z][A-Z_]+)`?", section("What a command finds")))


def test_the_examples_of_the_reference_run(tmp_path: Path) -> None:
    definition, graph = re.findall(r"```yaml\n(.*?)```", REFERENCE, re.DOTALL)
    (tmp_path / "word-count.yaml").write_text(definition)
    (tmp_path / "graph.yaml").write_text(graph)
    (tmp_path / "words").write_text("a b c\n" * 10)
    whole = read_graph(tmp_path / "graph.yaml", {"text": "words"})
    count, long = run_graph(whole, tmp_path / "run", files_from=tmp_path)
    assert count.result and count.result.output == {"words": 30}
    assert long.state == "skipped"
    (tmp_path / "words").write_text("a b c\n" * 500)
    assert run_graph(whole, tmp_path / "run", files_from=tmp_path)[1].state == "passed"


def test_the_examples_of_the_how_to_run(tmp_path: Path) -> None:
    _edge, style, settings = re.findall(r"```yaml\n(.*?)```", HOW_TO, re.DOTALL)
    (tmp_path / "style.yaml").write_text(style)
    heartbeat = Path(__file__).parents[2] / "examples/lab/heartbeat"
    for most, state, long in (("100", "failed", 2), ("120", "passed", 0)):
        graph = graph_of_step(
            read_step(tmp_path / "style.yaml"), {"most": most}, {"source": Input(file=str(heartbeat))}
        )
        (done,) = run_graph(graph, tmp_path / "run", files_from=tmp_path)
        assert done.result and (done.state, done.result.output) == (state, {"long": long})
    (tmp_path / "lab.yaml").write_text(settings)
    # What it shows is what holds without it.
    assert read_settings(tmp_path / "lab.yaml").artifacts == ArtifactRetention()


def test_every_shipped_step_stands_in_the_how_to() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \|", HOW_TO, re.MULTILINE)) == set(shipped())
