"""`evenkeel lab compare`: two results of the same thing, from a lab or from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli.lab_options import At, Json

if TYPE_CHECKING:
    from evenkeel.lab.compare import Comparison


def register(app: typer.Typer) -> None:
    app.command(name="compare")(compare)


def compare(
    now: Annotated[str, typer.Argument(metavar="ATTEMPT|FILE", help="An attempt's number, or a saved result.json.")],
    before: Annotated[
        str | None,
        typer.Argument(metavar="[BEFORE]", help="What it is compared with; of a lab: the last good one when left out."),
    ] = None,
    at: At = None,
    json: Json = False,
) -> int:
    """Say what differs between a result and the one before: output, warnings, artifacts, duration.

    evenkeel lab compare 4711
    evenkeel lab compare 4711 4700
    evenkeel lab compare lab-run/build/result.json earlier/build/result.json

    Exit code 1: it is worse, by its state or by new warnings.
    """
    from evenkeel.cli import files, output
    from evenkeel.documents.result import Result
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, WrongInput
    from evenkeel.lab import compare as compare_
    from evenkeel.lab.client import connect

    if not now.isascii() or not now.isdigit():
        if before is None:
            raise WrongInput("a second file is needed to compare with", hint=f"evenkeel lab compare {now} EARLIER")
        documents = [files.load_document(Result, Path(name)) for name in (before, now)]
        found = compare_.compare(*documents)
    else:
        if before is not None and not before.isdigit():
            raise WrongInput(f"{before!r} is no attempt's number")
        with connect(at) as lab:
            answer = lab.get(f"/results/{now}/comparison", **({"with": before} if before else {}))
        found = compare_.Comparison.model_validate(answer["comparison"])
    if json:
        output.emit_json(found.model_dump(mode="json"))
    else:
        _print(found)
    return EXIT_NOT_AS_WANTED if found.verdict == "worse" else EXIT_DONE


def _print(found: Comparison) -> None:
    from evenkeel.cli import output
    from evenkeel.lab.words import duration, size

    rows = [("state", *found.state), ("took", duration(found.took_ns[0]), duration(found.took_ns[1]))]
    for what, changes in (("output", found.outputs), ("setting", found.settings), ("input", found.inputs)):
        rows += [(f"{what} {one.key}", _word(one.before), _word(one.now)) for one in changes]
    rows += [
        (f"artifact {one.name}", size(one.before) or "none", size(one.now) or "none")
        for one in found.artifacts
        if one.what != "same"
    ]
    out = output.out()
    out.print(f"{found.verdict}{', slower' if found.slower else ', faster' if found.faster else ''}")
    out.print(output.table(("", "before", "now"), rows))
    for word, warned in (("new", found.warnings_new), ("gone", found.warnings_gone)):
        for one in warned or ():
            out.print(f"{word} warning: {one.file or one.tool}: {one.text}", soft_wrap=True)


def _word(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
