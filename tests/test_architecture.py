"""The house stays as it was drawn: who may import whom, what stays pure, what runs on the managed machine.

Every check is a function from source text to a list of violations, and is first shown a text that violates it.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "evenkeel"
EVERYTHING = "*"

#: Part of the house -> parts that it may import besides itself.  The river flows from top to bottom; a stage may look
#: at earlier stages, never at later ones.  Looking at a stage means its pure helpers: what flows are documents.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "documents": {"errors"},
    # Checks what plan places, so it may share nothing with it.
    "placement_check": set(),
    "probe": set(),
    "plan": {"documents", "errors"},
    "machines": {"documents", "errors", "probe"},
    # The engine knows nothing of why a value is set, so it may not look at the plan's rules.
    "apply": {"documents", "errors", "machines", "probe"},
    "verify": {"documents", "errors", "machines", "probe", "plan", "apply", "placement_check"},
    # Judges with verify, repairs with the steps of apply.
    "watch": {"documents", "errors", "machines", "probe", "plan", "apply", "verify"},
    "measure": {"documents", "errors", "machines", "probe", "plan", "apply", "verify"},
    "certify": {"documents", "errors", "machines", "probe", "plan", "apply", "verify", "measure", "report"},
    # Of measure only what is pure, so that page and terminal say the same.
    "report": {"documents", "errors", "__version__", "measure.conditions", "measure.percentile", "measure.verdict"},
    # A service of its own that uses the river as a user would: probes, applies, measures, draws.
    "lab": {
        *("documents", "errors", "__version__", "machines", "probe", "plan", "apply", "verify", "measure", "report"),
        "certify",
    },
    # The whole river on a virtual host: calls every stage as the verbs do, reads and saves as they do, prints nothing.
    "demo": {"documents", "errors", "machines", "probe", "plan", "apply", "verify", "measure", "report", "cli.files"},
    "cli": {EVERYTHING},
    "__main__": {"cli"},
    "__init__": set(),
}

#: All of the standard library that pure code may use.  Nothing here can open, run, connect, wait or look at a clock.
PURE_MODULES = {
    *("__future__", "bisect", "collections", "copy", "dataclasses", "difflib", "enum", "fractions", "functools"),
    *("hashlib", "heapq", "itertools", "json", "math", "operator", "re", "string", "textwrap", "types", "typing"),
    *("uuid", "xml"),
    # libraries: models; the parser of site files (text in, nodes out); the solver
    *("pydantic", "ruamel", "numpy", "highspy"),
    "evenkeel",
}
#: What of those, and of the builtins, is not pure after all.
IMPURE_NAMES = {
    *("open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__", "globals"),
    *("read_text", "write_text", "read_bytes", "write_bytes", "uuid1", "uuid4", "getnode", "iterparse"),
}

#: Newer than Python 3.9, which the probe must run on; syntax is checked by parsing.
AFTER_39 = {
    *("pairwise", "bit_count", "tomllib", "StrEnum", "ExceptionGroup", "TaskGroup", "UTC", "Self", "ParamSpec"),
    *("TypeAlias", "TypeGuard", "NotRequired", "assert_never", "EncodingWarning", "hardlink_to", "batched", "add_note"),
}
AFTER_39_KEYWORDS = {("dataclass", "slots"), ("dataclass", "kw_only"), ("zip", "strict")}


def modules(*parts: str) -> list[Path]:
    found = sorted(path for part in parts for path in (SOURCE / part).rglob("*.py"))
    assert found, f"no module in {parts}"
    return found


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            yield node.lineno, "importlib.import_module"


# -- the river ----------------------------------------------------------------------------------------------------


def river_violations(part: str, source: str) -> list[str]:
    found = []
    for line, name in imports(source):
        if name.startswith("."):
            found.append(f"line {line}: a relative import hides what it looks at; write it in full")
        parts = name.split(".")
        if parts[0] != "evenkeel" or len(parts) < 2:
            continue
        allowed = MAY_IMPORT[part]
        if parts[1] != part and not {EVERYTHING, parts[1], ".".join(parts[1:3])} & allowed:
            found.append(f"line {line}: {part}/ may not import {name}")
    return found


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules("."), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_river(path: Path) -> None:
    assert part_of(path) in MAY_IMPORT, "a new part of the house: give it its place in MAY_IMPORT"
    assert river_violations(part_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("documents", "from evenkeel.plan.ledger import partition"),
        ("plan", "def f():\n    import evenkeel.machines.ssh"),
        ("plan", "from evenkeel import machines"),
        ("machines", "from evenkeel.plan import ledger"),
        ("apply", "if TYPE_CHECKING:\n    from evenkeel.plan.rules import Rule"),
        ("apply", "from evenkeel.verify import checks"),
        ("measure", "from evenkeel.certify import bulletin"),
        ("report", "from evenkeel.cli import output"),
        ("demo", "from evenkeel.cli.output import out"),
        ("probe", "from evenkeel.errors import WrongInput"),
        ("plan", "from . import ledger"),
    ],
)
def test_an_import_against_the_river_is_seen(part: str, source: str) -> None:
    assert len(river_violations(part, source)) == 1


def test_imports_along_the_river_are_allowed() -> None:
    assert (
        river_violations("verify", "from evenkeel.apply.gate import x\nimport json\nfrom evenkeel import errors") == []
    )


# -- documents and plan are pure ----------------------------------------------------------------------------------


def impurities(source: str) -> list[str]:
    found = [f"line {line}: imports {name}" for line, name in imports(source) if name.split(".")[0] not in PURE_MODULES]
    for node in ast.walk(ast.parse(source)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        # re.compile() is pure, compile() is not.
        if name in IMPURE_NAMES and not (name == "compile" and isinstance(node, ast.Attribute)):
            found.append(f"line {node.lineno}: uses {name}")  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and re.search(r"(ElementTree|ET)\.parse$", ast.unparse(node.func)):
            found.append(f"line {node.lineno}: reads a file")
    return found


#: Of the lab: what the service, forecasts and a replay in simulated time share.
PURE_IN_LAB = [SOURCE / "lab" / f"{name}.py" for name in ("order", "forecast", "simulate")]


@pytest.mark.parametrize("path", PURE_IN_LAB, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_policy_of_the_queue_does_no_io(path: Path) -> None:
    assert impurities(path.read_text(encoding="utf-8")) == []


#: Python 3.11's swallows a cancellation that comes with what it waits for: a task then never ends (gh-86296, mended in
#: 3.12).  asyncio.timeout() does not.
SWALLOWS = "asyncio.wait_for("


def test_nothing_waits_in_a_way_that_swallows_a_cancellation() -> None:
    found = [str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if SWALLOWS in path.read_text("utf-8")]
    assert found == []


@pytest.mark.parametrize("path", modules("documents", "plan"), ids=lambda path: str(path.relative_to(SOURCE)))
def test_documents_and_plan_do_no_io(path: Path) -> None:
    assert impurities(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "from os import path",
        "from pathlib import Path",
        "import subprocess as s",
        "def f():\n    import socket",
        "import time",
        "from datetime import datetime",
        "import random",
        "import importlib",
        "x = open('/proc/cpuinfo')",
        "print('x')",
        "f = open",
        "path.read_text()",
        "import uuid\nuuid.uuid4()",
        "from xml.etree import ElementTree\nElementTree.parse('x')",
        "eval('1')",
    ],
)
def test_an_impurity_is_seen(source: str) -> None:
    assert len(impurities(source)) == 1


def test_pure_code_is_allowed() -> None:
    assert (
        impurities("import re, json\nfrom collections.abc import Iterable\nP = re.compile('x')\nuuid.uuid5(a, b)") == []
    )


def test_the_checker_of_placements_needs_only_the_standard_library() -> None:
    source = (SOURCE / "placement_check.py").read_text(encoding="utf-8")
    assert foreign(source) == []
    assert impurities(source) == []


def foreign(source: str) -> list[str]:
    """What it imports that is not in the standard library."""
    return [name for _, name in imports(source) if name.split(".")[0] not in sys.stdlib_module_names]


@pytest.mark.parametrize("source", ["import numpy", "from evenkeel.plan import cells", "def f():\n    import highspy"])
def test_a_checker_that_leans_on_others_is_seen(source: str) -> None:
    assert len(foreign(source)) == 1


# -- the probe ----------------------------------------------------------------------------------------------------


def probe_violations(source: str) -> list[str]:
    """What would keep this from running on Python 3.9 with nothing installed."""
    try:
        tree = ast.parse(source, feature_version=(3, 9))
    except SyntaxError as error:
        return [f"line {error.lineno}: {error.msg}"]
    found = []
    for line, name in imports(source):
        top = name.split(".")[0]
        if top != "evenkeel" and top not in sys.stdlib_module_names:
            found.append(f"line {line}: imports {name}, which is not in the standard library")
        elif top == "evenkeel" and not (name + ".").startswith("evenkeel.probe."):
            found.append(f"line {line}: imports {name}, which is not sent along")
    future = any(name == "__future__.annotations" for _, name in imports(source))
    annotations = {id(part) for node in ast.walk(tree) for part in _annotation_parts(node)} if future else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in annotations:
            sides = [ast.unparse(side) for side in (node.left, node.right)]
            if any(side in ("None", "int", "str", "bytes", "float", "bool", "dict", "list") for side in sides):
                found.append(f"line {node.lineno}: X | Y as a type, evaluated at run time")
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in AFTER_39:
            found.append(f"line {node.lineno}: {name} is newer than Python 3.9")  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func).rpartition(".")[2]
            found += [
                f"line {node.lineno}: {function}({keyword.arg}=) is newer than Python 3.9"
                for keyword in node.keywords
                if (function, keyword.arg) in AFTER_39_KEYWORDS
            ]
    return found


def _annotation_parts(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        annotation = getattr(node, name, None)
        if annotation is not None:
            yield from ast.walk(annotation)


@pytest.mark.parametrize("path", modules("probe"), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_probe_needs_only_python_39(path: Path) -> None:
    assert probe_violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pydantic",
        "from evenkeel.errors import Where",
        "from evenkeel import probe, errors",
        "match x:\n    case 1: pass",
        "def f(x: int | None): pass",
        "X = str | None",
        "from __future__ import annotations\nX = str | None",
        "type X = int",
        "def f[T](x: T): pass",
        "zip(a, b, strict=True)",
        "@dataclass(slots=True)\nclass A: pass",
        "import itertools\nitertools.pairwise(x)",
        "x.bit_count()",
        "try: pass\nexcept* OSError: pass",
    ],
)
def test_what_python_39_cannot_run_is_seen(source: str) -> None:
    assert len(probe_violations(source)) == 1


def test_what_python_39_can_run_is_allowed() -> None:
    source = "from __future__ import annotations\nimport os\ndef f(x: int | None) -> str | None: return os.O_RDONLY | 4"
    assert probe_violations(source) == []


def python_39() -> str | None:
    found = shutil.which("python3.9")
    if not found:
        return None
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return found if answer.stdout.startswith("Python 3.9.") else None


@pytest.mark.skipif(python_39() is None, reason="no Python 3.9 here; the checks above read the text")
def test_a_real_python_39_imports_all_of_the_probe() -> None:
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in modules("probe")]
    names.remove("evenkeel.probe.__main__")  # it would start
    program = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    interpreter = python_39()
    assert interpreter
    result = subprocess.run(
        [interpreter, "-S", "-c", program],
        env={"PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""


# -- every module -------------------------------------------------------------------------------------------------


def described(source: str) -> bool:
    """A docstring that begins with a sentence, not only a name."""
    text = ast.get_docstring(ast.parse(source)) or ""
    return len(text.split()) >= 4


@pytest.mark.parametrize(
    "path",
    [*modules("."), *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert described(source) or (path.name == "__init__.py" and path.is_relative_to(ROOT / "tests") and not source)


def test_a_module_without_a_word_is_seen() -> None:
    assert not described("import os\n")
    assert not described('"""Utils."""\n')
    assert described('"""Read facts from a recorded tree."""\n')


# -- dependencies -------------------------------------------------------------------------------------------------


def lock_violations(project: str, lock: str) -> list[str]:
    """What of ``pyproject.toml`` is not pinned in the lock file, and what in that should not be there."""
    table = tomllib.loads(project)["project"]
    wanted = [*table["dependencies"], *(r for extra in table["optional-dependencies"].values() for r in extra)]
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)", lock, re.MULTILINE)
    pinned = {canonicalize_name(name): version for name, version, hashes in pins if hashes}
    found = [f"{name} has no hash" for name, _, hashes in pins if not hashes]
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{requirement.name} is not pinned")
        elif not requirement.specifier.contains(version):
            found.append(f"{requirement.name} is pinned at {version}, wanted {requirement.specifier}")
    if "://" in lock:
        found.append("the lock file names an address; users have their own mirrors")
    return found


def test_the_lock_file_pins_what_the_project_wants() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert lock_violations(project, lock) == []


def test_a_stale_lock_file_is_seen() -> None:
    project = '[project]\ndependencies = ["a>=2", "b", "c"]\noptional-dependencies = {dev = ["d"]}\n'
    digest = f"    --hash=sha256:{'0' * 64}\n"
    lock = f"--index-url http://x\na==1 \\\n{digest}b==1\nd==1 \\\n{digest}"
    assert lock_violations(project, lock) == [
        "b has no hash",
        "a is pinned at 1, wanted >=2",
        "b is not pinned",
        "c is not pinned",
        "the lock file names an address; users have their own mirrors",
    ]
