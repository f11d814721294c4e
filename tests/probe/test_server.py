"""The conversation with the probe, through the zipapp and pipes, as every machine has it."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import evenkeel.probe
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import ProbeError
from evenkeel.machines.zipapp import BOOTSTRAP, probe_zipapp
from evenkeel.probe.server import OPERATIONS

SOURCES = sorted(Path(evenkeel.probe.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_the_probe_imports_the_standard_library_and_itself_only(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or name.startswith("evenkeel.probe"), f"{file.name}: {name}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_the_probe_is_python_3_9(file: Path) -> None:
    """No match statement, no except*, no parenthesised with; annotations with | only where they are not evaluated."""
    tree = ast.parse(file.read_text(), feature_version=(3, 9))
    uses_union = any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) for node in ast.walk(tree))
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    assert future or not uses_union


def test_every_operation_exists_or_is_said_not_to() -> None:
    missing = []
    for op, place in OPERATIONS.items():
        module, _, function = place.partition(":")
        try:
            assert callable(getattr(importlib.import_module(module), function))
        except (ImportError, AttributeError):
            missing.append(op)
    assert missing == []


def test_the_zipapp_is_the_same_bytes_each_time() -> None:
    first = probe_zipapp()
    probe_zipapp.cache_clear()
    assert probe_zipapp() == first


def talk(*lines: object) -> list[dict[str, object]]:
    """Send requests to a probe process and return its answers."""
    archive = probe_zipapp()
    requests = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-I", "-c", BOOTSTRAP],
        input=b"%d\n" % len(archive) + archive + requests,
        capture_output=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_answers_carry_the_number_of_their_request_and_errors_do_not_end_it() -> None:
    answers = talk(
        {"id": 1, "op": "hello"},
        {"id": 2, "op": "no_such_thing"},
        {"id": 3, "op": "read", "args": {"wrong": 1}},
        {"id": 4, "op": "read", "args": {"paths": ["/proc/sys/kernel/ostype", "/nowhere"]}},
        {"id": 5, "op": "run", "args": {"argv": ["sh", "-c", "id"]}},
    )
    assert [answer["id"] for answer in answers] == [1, 2, 3, 4, 5]
    assert "boot_id" in answers[0]["ok"]  # type: ignore[operator]
    assert "no operation 'no_such_thing'" in answers[1]["error"]["message"]  # type: ignore[index]
    assert "error" in answers[2]
    assert answers[3]["ok"] == {"values": {"/proc/sys/kernel/ostype": "Linux"}, "errors": {"/nowhere": "ENOENT"}}
    assert "does not run 'sh'" in answers[4]["error"]["message"]  # type: ignore[index]


def test_a_failed_step_reaches_the_controlling_side_with_path_and_errno(tmp_path: Path) -> None:
    step = {"kind": "file", "path": "/proc/sys/nothing", "value": "1"}
    with LocalMachine().probe() as probe, pytest.raises(ProbeError) as caught:
        probe.call("apply_step", step=step, plan_sha256="0" * 64, root=str(tmp_path))
    assert caught.value.errno == "ENOENT"
    assert caught.value.path == "/proc/sys/nothing"
    assert "make the plan anew" in caught.value.message


def test_nothing_stays_behind_on_the_machine(tmp_path: Path) -> None:
    """The zipapp is run from memory: no file, and no process after the conversation."""
    with LocalMachine().probe() as probe:
        number = probe.call("hello")["pid"]
        links = [str(link.readlink()) for link in Path(f"/proc/{number}/fd").iterdir()]
    assert any("memfd:evenkeel-probe" in link for link in links)
    assert not Path(f"/proc/{number}").exists()
