"""Options that all `evenkeel lab ...` commands share."""

from __future__ import annotations

from typing import Annotated

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
