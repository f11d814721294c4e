"""``evenkeel schema``: the JSON Schema (draft 2020-12) of every document that flows.

The schemas come from the models; nothing about a document is said here a second time.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from evenkeel.cli import output
from evenkeel.documents.base import Document
from evenkeel.errors import WrongInput

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Kind -> module, in the order of the river.  A module is loaded only when its schema is asked for.
KINDS = {
    "Facts": "facts",
    "Inventory": "inventory",
    "Site": "site",
    "Fleet": "fleet",
    "FleetPlan": "fleet",
    "Plan": "plan",
    "Cost": "cost",
    "Journal": "journal",
    "History": "history",
    "Findings": "findings",
    "Evidence": "evidence",
    "Comparison": "comparison",
    "Answer": "answer",
    "Explanation": "explanation",
    "Result": "result",
}


def model_of(name: str) -> type[Document]:
    """The model of a document, its name in any case.  Raises WrongInput with the names there are."""
    known = {kind.lower(): kind for kind in KINDS}
    kind = known.get(name.lower())
    if kind is None:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), known, n=1)
        guess = f"; did you mean {known[near[0]]}?" if near else ""
        raise WrongInput(f"there is no document {name!r}{guess}", hint=f"documents: {', '.join(KINDS)}")
    found: type[Document] = getattr(importlib.import_module(f"evenkeel.documents.{KINDS[kind]}"), kind)
    return found


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a document as it is written down: what a reader of Evenkeel accepts.

    A site is written by a person, so its schema is the one of the YAML file: sizes and durations need their unit,
    a CPU list may be one bare number, and the version must be there.
    """
    model = model_of(name)
    schema = model.model_json_schema()
    if model.__name__ == "Site":
        schema = _as_written(schema)
        del schema["properties"]["kind"]
        schema["required"] = sorted({*schema["required"], "version"})
    return {
        "$schema": DIALECT,
        "$id": f"urn:evenkeel:schema:{model.__name__}:{model.model_fields['version'].default}",
        **schema,
    }


def _as_written(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_as_written(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _as_written(value) for key, value in schema.items()}
    if schema.get("type") == ["string", "integer"]:  # Bytes, Nanoseconds
        schema["type"] = "string"
    elif schema.get("type") == "string" and "pattern" in schema and "2-3,6-7" in schema.get("examples", ()):  # CpuSet
        schema["type"] = ["string", "integer"]
    return schema


def register(app: typer.Typer) -> None:
    @app.command("schema")
    def schema(
        name: Annotated[str | None, typer.Argument(help="A document; its name in any case.", metavar="NAME")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="List the documents as JSON.")] = False,
    ) -> None:
        """Print the JSON Schema of a document, or list the documents.

          evenkeel schema                 which documents are there?
          evenkeel schema Site > site.schema.json

        An editor with a YAML language server checks and completes a site file with it, when its first line is

          # yaml-language-server: $schema=site.schema.json
        """
        if name is not None:
            output.emit_json(schema_of(name))
            return
        kinds = [(kind, model_of(kind)) for kind in KINDS]
        if as_json:
            output.emit_json(
                [{"name": kind, "version": model.model_fields["version"].default} for kind, model in kinds]
            )
            return
        rows = [(kind, str(model.model_fields["version"].default), _PURPOSES[kind]) for kind, model in kinds]
        output.out().print(output.table(("document", "version", "what it holds"), rows, right=("version",)))


_PURPOSES = {
    "Facts": "what a machine is, and how it is set now",
    "Inventory": "what tells a machine from all others: serial numbers, flags, link speeds",
    "Site": "what the owner wants: hosts, guests, goals",
    "Fleet": "what is free on each host, before guests are placed",
    "FleetPlan": "which guest goes to which host, nodes, CPUs and devices, and why some do not",
    "Plan": "every setting with its reason, every guest with its placement",
    "Cost": "what a plan gives up, and what stays possible",
    "Journal": "what was really written: old value, new value, value read back",
    "History": "what guests held, from when on: the accounts of owners",
    "Findings": "every check of reality against the plan",
    "Evidence": "histograms and counters, with the conditions they were taken under",
    "Comparison": "what differs between two pieces of evidence by more than chance",
    "Answer": "what was asked of a running kernel, how it was found out, what it cost",
    "Explanation": "where the time of late samples in a guest went, cause by cause",
    "Result": "what came of one step, on an agent of the lab or by lab run",
}
