"""``evenkeel report``: one self-contained HTML page from the saved documents of a run.  Parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evenkeel.report.verdict import Verdict


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    paths: Annotated[list[Path], typer.Argument(help="The folder of a run, or its documents one by one.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write the page; default: report.html in the folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Write one HTML page that shows what was wanted, what was set and what was found.

    The page needs no network and nothing else beside it. It tells the plan from plan.json, and what came of it from
    Facts, Findings, Evidence and Journal documents, as far as they are there. A FleetPlan (evenkeel place -o) is shown
    beside them, or alone: who has which core of which host, before and after where guests move, and what that costs.

      evenkeel report demo-report

      evenkeel report plan.json findings.json evidence-*.json -o report.html

      evenkeel report placement.json -o placement.html
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as cli_output
    from evenkeel.machines.paths import kind_of
    from evenkeel.report import folder
    from evenkeel.report.html import render_report
    from evenkeel.report.placement import render_placement
    from evenkeel.report.verdict import judge

    taken = cli_output.takes_stdout({"--output": output}, json=json)
    target = output or (
        paths[0] / folder.REPORT if len(paths) == 1 and kind_of(paths[0]) == "folder" else Path(folder.REPORT)
    )
    placement = folder.load_placement(paths)
    if placement is not None:
        page = render_placement(placement)
        count = {"guests": len(placement.guests), "placed": len(placement.seats), "moves": len(placement.moves)}
        answer = {"file": str(target), **count}
    else:
        run = folder.load_run(paths)
        page, answer = render_report(run), verdict_data(judge(run), target)
    files.save_text(target, page)
    if json:
        cli_output.emit_json(answer)
    elif not taken:
        cli_output.out().print(str(target), soft_wrap=True)


def verdict_data(verdict: Verdict, file: Path) -> dict[str, Any]:
    """The verdict as plain data; ``file`` is the page that shows it."""
    return {
        "file": str(file),
        "verdict": verdict.state,
        "passed": verdict.counts.passed,
        "failed": verdict.counts.failed,
        "not_checked": verdict.counts.not_checked,
        "reasons": list(verdict.reasons),
        "deadlines": [
            {
                "host": one.host,
                "guest": one.guest,
                "wanted_ns": one.wanted_ns,
                "state": one.state,
                "why": one.why,
                "arithmetic": one.arithmetic,
            }
            for one in verdict.deadlines
        ],
        "emulated": verdict.emulated,
    }
