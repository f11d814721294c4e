"""Definitions of steps and graphs: what they say, what is refused with which line, and which path a result takes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evenkeel.errors import WrongInput
from evenkeel.lab.step import (
    Ended,
    Graph,
    Input,
    Need,
    Step,
    Use,
    decide,
    find_step,
    graph_of,
    graph_of_step,
    read_graph,
    read_step,
    resolve,
)

BUILD = """
    version: 1
    kind: build
    parameters:
      arch: {default: amd64, choices: [amd64, arm64]}
      branch: {}
    inputs:
      tree: {}
      old: {optional: true}
    agent: "arch:x86_64 tool:{arch}-gcc"
    expected: "{arch}"
    same: [branch, arch]
    scripts: [build.sh]
    command: bash $LIB/build.sh
    artifacts:
      module: {path: "{arch}.ko"}
      log: {path: build.log}
    warnings: log
    limits: {time: 30min, memory: 2GiB}
    """
GRAPH = """
    version: 1
    name: check
    parameters:
      branch: {}
    steps:
      merge:
        step:
          version: 1
          kind: merge
          command: "true"
          artifacts:
            tree: {path: tree}
      build:
        uses: ./build.yaml
        set: {branch: "{branch}"}
        needs: [{step: merge, when: "conflict:false"}]
        inputs:
          tree: {artifact: merge/tree}
      report:
        step: {version: 1, kind: report, command: [echo, hello]}
        needs: [{step: build, when: "state:failed"}, {step: merge, when: "conflict:true"}]
        join: any
    """


Ends = dict[str, tuple[Ended, Mapping[str, Any]]]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def last_line(text: str, old: str, new: str) -> int:
    """Where the last line of ``new`` is, once it has replaced ``old``."""
    return (text[: text.index(old)] + new).count("\n") + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "build.yaml", BUILD)
    write(tmp_path, "graph.yaml", GRAPH)
    write(tmp_path, "build.sh", "echo built\n")
    return tmp_path


def test_a_definition_carries_its_scripts_and_units(folder: Path) -> None:
    step = read_step(folder / "build.yaml")
    assert step.scripts == {"build.sh": "echo built\n"}
    assert step.limits.time == 30 * 60 * 10**9
    assert step.limits.memory == 2 << 30


def test_a_graph_is_whole_after_reading(folder: Path) -> None:
    graph = read_graph(folder / "graph.yaml", {"branch": "next"})
    build = graph.steps["build"]
    assert build.set == {"arch": "amd64", "branch": "next"}
    assert build.definition().agent == "arch:x86_64 tool:amd64-gcc"
    assert build.definition().artifacts["module"].path == "amd64.ko"
    assert build.same_key() == "build branch=next arch=amd64"
    assert build.expected_key() == "amd64"
    assert {edge.step: edge.when for edge in build.edges()} == {"merge": "conflict:false"}


def test_a_whole_graph_survives_json_and_resolving_again(folder: Path) -> None:
    graph = read_graph(folder / "graph.yaml", {"branch": "next"})
    again = graph_of(graph.model_dump(mode="json"))
    assert again == graph
    assert again.steps["build"].sha256() == graph.steps["build"].sha256()


def test_another_setting_is_another_digest(folder: Path) -> None:
    one = read_graph(folder / "graph.yaml", {"branch": "next"}).steps["build"].sha256()
    other = read_graph(folder / "graph.yaml", {"branch": "main"}).steps["build"].sha256()
    assert one != other


def test_where_an_input_lies_does_not_change_the_digest() -> None:
    """In a lab a folder is its content, at home a path."""

    def digest(taken: Input) -> str:
        return graph_of_step(find_step("boot-module"), {}, {"modules": taken}).steps["boot-module"].sha256()

    assert digest(Input(file="/here")) == digest(Input(file="/there"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: build", "kind: build\nkinds: x", 'unknown key "kinds"; did you mean "kind"?'),
        ("30min", "30", '"time": write a number and a unit, as in 100us'),
        ("30min", "30 minutes", "unknown unit 'minutes'"),
        ("warnings: log", "warnings: logs", '"logs" is no artifact of this step'),
        ("path: build.log", "path: ../log", "'../log' is not below $OUT"),
        ("same: [branch, arch]", "same: [branch, arhc]", '"arhc" is no parameter of this step'),
        ("[build.sh]", "[built.sh]", "cannot read"),
        ("command: bash $LIB/build.sh", "command: ''", "the command is empty"),
        ("command: bash $LIB/build.sh", "", '"command" is missing'),
        ("kind: build", "kind: build\nkind: b", '"kind" is said twice'),
        ("kind: build", "\tkind: build", "not YAML"),
        ("default: amd64", "default: m68k", '"m68k" is not among the choices'),
    ],
)
def test_what_is_wrong_with_a_definition_has_its_line(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "build.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    line = last_line(text, old, new)
    with pytest.raises(WrongInput) as caught:
        read_step(path)
    assert said in caught.value.message
    assert caught.value.where
    assert caught.value.where.file == str(path)
    if said != '"command" is missing':  # that has no line
        assert caught.value.where.line == line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("./build.yaml", "kernel-modul", "there is no shipped step 'kernel-modul'"),
        ("merge/tree", "merge/tre", 'step "merge" has no artifact "tre"'),
        ('step: merge, when: "conflict:false"', "step: merg", '"build" needs "merg", which is no step'),
        ('set: {branch: "{branch}"}', "set: {}", 'step build needs the parameter "branch"'),
        ('"{branch}"', '"{brunch}"', "{brunch} is no parameter here"),
        ("tree: {artifact: merge/tree}", "tre: {artifact: merge/tree}", 'step build has no input "tre"'),
        ("conflict:false", "conflict false", "'conflict' is no term of a predicate"),
        ("    step:\n", "    needs: [report]\n    step:\n", "would have to end before it begins"),
    ],
)
def test_what_is_wrong_with_a_graph_has_its_line(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "graph.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    line = last_line(text, old, new)
    with pytest.raises(WrongInput) as caught:
        read_graph(path, {"branch": "next"})
    found = (caught.value, *getattr(caught.value, "others", ()))
    loop = "before it begins" in said  # every step of it is as good a place
    assert any(said in error.message and (loop or error.where.line == line) for error in found), found


def test_a_graph_without_its_parameter_is_refused(folder: Path) -> None:
    with pytest.raises(WrongInput, match='graph check needs the parameter "branch"'):
        read_graph(folder / "graph.yaml")


def test_a_request_cannot_name_a_file_of_the_server(folder: Path) -> None:
    data = {"name": "x", "steps": {"a": {"uses": str(folder / "build.yaml")}}}
    with pytest.raises(WrongInput, match="there is no shipped step"):
        graph_of(data)


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "..", "a/b"])
def test_a_script_cannot_lie_elsewhere(name: str) -> None:
    data = {"name": "x", "steps": {"a": {"step": {"kind": "a", "command": "true", "scripts": {name: "evil"}}}}}
    with pytest.raises(WrongInput, match="not the name of a file beside"):
        graph_of(data)


def test_a_setting_cannot_smuggle_a_parameter_in(folder: Path) -> None:
    with pytest.raises(WrongInput, match="cannot hold"):
        read_graph(folder / "graph.yaml", {"branch": "{arch}"})


def step(**more: object) -> Step:
    return Step.model_validate({"kind": "x", "command": "true", **more})


def test_the_result_of_the_merge_decides_the_path(folder: Path) -> None:
    graph = read_graph(folder / "graph.yaml", {"branch": "next"})
    build, report = graph.steps["build"], graph.steps["report"]
    assert decide(graph.steps["merge"], {}) == "ready"
    assert decide(build, {}) == "blocked"
    clean: Ends = {"merge": ("passed", {"conflict": False})}
    assert decide(build, clean) == "ready"
    assert decide(report, clean) == "blocked"  # the build may still fail
    assert decide(report, {**clean, "build": ("passed", {})}) == "skipped"
    assert decide(report, {**clean, "build": ("failed", {})}) == "ready"
    conflict: Ends = {"merge": ("passed", {"conflict": True})}
    assert decide(build, conflict) == "skipped"
    assert decide(report, {**conflict, "build": ("skipped", {})}) == "ready"
    assert decide(build, {"merge": ("failed", {"conflict": False})}) == "skipped"


@pytest.mark.parametrize(
    ("when", "output", "holds"),
    [
        ("", {}, True),
        ("new<=3", {"new": 3}, True),
        ("new<=3", {"new": 4}, False),
        ("new<3", {"new": 3}, False),
        ("new>=3 ok:true", {"new": 3, "ok": True}, True),
        ("new>=3 ok:true", {"new": 3, "ok": False}, False),
        ("abi.removed=0", {"abi": {"removed": 0}}, True),
        ("changed:net", {"changed": ["fs", "net"]}, True),
        ("changed!=net", {"changed": ["fs", "net"]}, False),
        ("!changed:mm", {"changed": ["fs", "net"]}, True),
        ("missing:1", {}, False),
        ("name>3", {"name": "x"}, False),
    ],
)
def test_predicates_on_outputs(when: str, output: dict[str, object], holds: bool) -> None:
    use = Use(step=step(), needs=(Need(step="before", when=when),))
    assert decide(use, {"before": ("passed", output)}) == ("ready" if holds else "skipped")


def test_an_input_from_a_step_is_an_edge_too() -> None:
    graph = resolve(
        Graph(
            name="g",
            steps={
                "a": Use(step=step(artifacts={"m": {"path": "m"}})),
                "b": Use(step=step(inputs={"m": {}}), inputs={"m": Input(artifact="a/m")}),
            },
        ),
        {},
        find_step,
    )
    assert decide(graph.steps["b"], {}) == "blocked"
    assert decide(graph.steps["b"], {"a": ("passed", {})}) == "ready"
    assert decide(graph.steps["b"], {"a": ("failed", {})}) == "skipped"
