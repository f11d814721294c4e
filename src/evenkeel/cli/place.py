"""`evenkeel place`: the host, nodes, CPUs, pages and devices of a guest, or why none fits; and the checker."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def place(
        check: Annotated[
            str | None,
            typer.Option("--check", metavar="FILE", help="Check a saved placement (FleetPlan) instead; - is stdin."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    ) -> int:
        """Check a placement, independently of how it was made.

        evenkeel place --check placement.json
        """
        from evenkeel.errors import WrongInput

        if check is None:
            raise WrongInput("nothing to do", hint="evenkeel place --check FILE")
        return _check(check, as_json)


def _check(file: str, as_json: bool) -> int:
    """Exit code 0: it holds; 1: it does not."""
    import json

    from evenkeel.cli import files, output
    from evenkeel.documents.fleet import FleetPlan
    from evenkeel.placement_check import check_placement

    text = files.read_text(file)
    plan = FleetPlan.from_json(text, file=file)
    found = check_placement(json.loads(text))
    if as_json:
        output.emit_json({"violations": found, "guests": len(plan.seats), "hosts": len(plan.hosts)})
    else:
        for sentence in found:
            output.out().print(sentence, soft_wrap=True)
        used = len({seat.host for seat in plan.seats})
        what = f"{len(plan.seats)} guest{'s' * (len(plan.seats) != 1)} on {used} of {len(plan.hosts)} hosts"
        output.out().print(f"{len(found)} violations; {what}" if found else f"holds: {what}", style="bold")
    return 1 if found else 0
