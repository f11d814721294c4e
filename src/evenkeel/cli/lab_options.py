"""What all `evenkeel lab ...` commands share: options, and how one that did something says so."""

from __future__ import annotations

from typing import Annotated, Any

import typer

At = Annotated[
    str | None,
    typer.Option(
        "--lab",
        metavar="URL",
        envvar="EVENKEEL_LAB",
        help="The lab: a URL, a socket or a folder; if left out, the one of this machine.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
#: Of what is done here and what is sent to a lab: the same words for both.
StepOrFile = Annotated[str, typer.Argument(metavar="STEP|FILE", help="A shipped step; a file with a step or a graph.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter; may be repeated.")]
Given = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=PATH", help="An input of a step: a file or folder, or git:REPOSITORY#REF."),
]


def tell(found: Any, line: str, as_json: bool) -> None:
    """What came of a command: all of it as JSON, or one line for who reads it."""
    from evenkeel.cli import output

    if as_json:
        output.emit_json(found)
    else:
        output.out().print(line, soft_wrap=True)
