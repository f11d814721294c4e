"""The REST contract: it is current, the application keeps to it whatever is sent, and pages do nothing beyond it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI, Response
from hypothesis import HealthCheck, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tools import lab_openapi
from tools.lab_breaking import breaking

from evenkeel.lab import api, pages
from evenkeel.lab.actor import with_roles
from evenkeel.lab.api.app import create_app
from evenkeel.lab.lab import Lab


def no_defect(ctx: Any, response: Any, case: Any) -> None:
    """502 and 503 are answers: of a machine, or a part of the service, that is not there."""
    del ctx, case
    assert response.status_code != 500, response.text


CHECKS = [no_defect, status_code_conformance, content_type_conformance, response_schema_conformance]
#: They answer without end, or end the service.
ENDLESS = {"/api/v1/events"}


def test_the_committed_contract_is_current() -> None:
    assert lab_openapi.PAGE.read_text() == lab_openapi.contract(), "run `python -m tools.lab_openapi`"


def test_no_change_breaks_the_committed_contract() -> None:
    assert breaking(json.loads(lab_openapi.PAGE.read_text()), json.loads(lab_openapi.contract())) == []


def test_each_operation_says_what_it_does() -> None:
    found = json.loads(lab_openapi.PAGE.read_text())
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), f"{method} {path}"
            assert operation.get("tags"), f"{method} {path}"


# -- whatever is sent ---------------------------------------------------------------------------------------------


@pytest.fixture
def app(lab: Lab) -> FastAPI:
    return create_app(lab, who=lambda _: with_roles("root", ["admin"], via="session"))


def try_all(app: FastAPI, examples: int, tags: set[str] | None = None) -> int:
    """Send what the contract allows to each operation (of these tags), in no order; returns to how many."""
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    tried = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path in ENDLESS or "/stream" in operation.path:
            continue
        if tags and not tags & set(operation.definition.raw["tags"]):
            continue
        tried += 1
        seen = try_one(operation, examples)
        assert seen > 0, operation.label
    return tried


def try_one(operation: Any, examples: int) -> int:
    seen = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        nonlocal seen
        seen += 1
        case.call_and_validate(checks=CHECKS)

    send()
    return seen


def test_the_application_keeps_to_its_contract(app: FastAPI) -> None:
    # The rest, and more of it, in the long test: a whole application takes half a minute.
    assert try_all(app, examples=2, tags={"people", "events", "webhooks"}) >= 15


@pytest.mark.long
def test_the_application_keeps_to_its_contract_for_longer(app: FastAPI) -> None:
    assert try_all(app, examples=25) >= 50


def test_a_handler_that_breaks_its_contract_is_seen() -> None:
    app = FastAPI(openapi_url="/api/v1/openapi.json")

    @app.get("/api/v1/broken", tags=["x"])
    def broken(number: int = 0) -> dict[str, int]:
        raise RuntimeError("a defect")

    @app.get("/api/v1/lies", tags=["x"])
    def lies() -> Response:
        return Response("{}", 418)

    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    with pytest.raises(Exception, match="a defect"):
        try_one(schema["/api/v1/broken"]["GET"], 2)
    with pytest.raises(FailureGroup, match="1 distinct failure"):
        try_one(schema["/api/v1/lies"]["GET"], 2)


# -- pages can do nothing that REST cannot ------------------------------------------------------------------------


def calls(source: str) -> set[str]:
    """``noun.verb`` of each call of a service function: one that is handed ``caller.lab``."""
    found, names = set(), {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.args[0]) in ("caller.lab", "lab"):
            first, *rest = ast.unparse(node.func).split(".")
            found.add(".".join([*names.get(first, first).split("."), *rest][-2:]))
    return found


def of(package: Any) -> Iterator[tuple[str, str]]:
    for path in sorted(Path(package.__path__[0]).glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")


#: Only shape what is shown; REST has the data they are made of.
SHAPES: set[str] = set()


def test_what_the_pages_can_do_rest_can() -> None:
    rest = set().union(*(calls(source) for _, source in of(api)))
    assert {"people.make_token", "people.set_rights"} <= rest, "the test looks at nothing"
    missing = {name: calls(source) - rest - SHAPES for name, source in of(pages)}
    assert {name: verbs for name, verbs in missing.items() if verbs} == {}


def test_a_page_that_can_more_is_seen() -> None:
    assert calls("from a import events as log\nlog.all(caller.lab)") == {"events.all"}
    assert calls("def f(caller):\n    return machines.explode(caller.lab, caller.actor, 3)") == {"machines.explode"}
