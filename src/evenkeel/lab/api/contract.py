"""The OpenAPI contract: what FastAPI makes of the handlers, with our errors in place of its own.

``docs/reference/lab-openapi.json`` is this; ``python -m tools.lab_openapi`` writes it, and a test holds it current.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from evenkeel.documents.base import Model
from evenkeel.lab.api.problem import MEDIA


class Place(Model):
    file: str
    line: int | None
    column: int | None


class Problem(Model):
    """RFC 9457.  ``title``: the kind of error; ``detail``: what happened; ``hint``: the cure; ``where``: in which part.

    ``others``: what else is wrong with the request.
    """

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None
    where: Place | None = None
    others: tuple[Problem, ...] = ()


_ANSWER = {"content": {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused; the request was not carried out", **_ANSWER},
    "5XX": {"description": "The lab, or a machine behind it, failed", **_ANSWER},
}


def install(app: FastAPI) -> None:
    """Have the application answer with this contract."""

    def contract() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs", {}))
            schemas["Problem"] = problem if "properties" in problem else schemas["Problem"]
            made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"token": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = contract  # type: ignore[method-assign]
