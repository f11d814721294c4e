"""``evenkeel demo``: the whole river on a virtual host, shown step by step.  Parse, call, print."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.demo import Demo
    from evenkeel.documents.base import Document
    from evenkeel.documents.plan import Plan
    from evenkeel.machines.protocol import OnProgress


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the documents and the report go.")
    ] = Path("demo-report"),
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="FILE", help="Another site with one virtual host; default: examples/plc."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the virtual host running afterwards.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build the image of the virtual host anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> int:
    """Run the whole river on a virtual host: facts, plan, apply, verify, measure, report.

    Makes a virtual host of its own and throws it away at the end. Takes minutes, needs no special hardware, and
    leaves every document and report.html in FOLDER. Exit code 0: every check passed.

      evenkeel demo

      evenkeel demo --keep --output /tmp/demo
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as console
    from evenkeel.cli.report import verdict_data
    from evenkeel.demo import Demo, play, virtual_name
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, WrongInput
    from evenkeel.machines.virtual.interrupt import terminated_like_ctrl_c
    from evenkeel.report.folder import REPORT
    from evenkeel.report.verdict import judge

    wanted = files.load_site(site or _example())
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongInput(f"cannot make the folder {output}: {error.strerror}") from None
    played = Demo(site=wanted, folder=output, stage=_Screen(as_json), fresh=fresh)
    try:
        with terminated_like_ctrl_c():
            play(played, keep_host=keep)
    except KeyboardInterrupt:
        _print_interrupted(played, virtual_name(wanted))
        raise
    _print_seconds(played)
    if played.error is not None:
        console.print_error(played.error)
    elif keep:
        console.note(f"the host still runs: evenkeel virtual ssh {virtual_name(wanted)}")
    code = played.error.exit_code if played.error else EXIT_NOT_AS_WANTED
    if played.run is not None:
        verdict = judge(played.run)
        if verdict.state == "as planned":
            code = EXIT_DONE
    if as_json:
        if played.run is not None:
            console.emit_json(verdict_data(verdict, output / REPORT))
        elif played.error is not None:
            console.emit_error(played.error)
    elif played.run is not None:
        counts = verdict.counts
        console.out().print(
            f"{verdict.state}: {counts.passed} passed, {counts.failed} failed, {counts.not_checked} not checked"
        )
        for reason in verdict.reasons:
            console.out().print(reason)
        console.out().print(str(output / REPORT), soft_wrap=True)
    return code


def _example() -> Path:
    """The example of the source tree, which is where the demo runs from."""
    from evenkeel.errors import WrongInput

    for base in (Path.cwd(), Path(__file__).parents[3]):
        if (base / "examples/plc/site.yaml").is_file():
            return base / "examples/plc/site.yaml"
    raise WrongInput("there is no examples/plc/site.yaml here", hint="run it in the source tree, or give --site FILE")


class _Screen:
    """Shows a demo: headlines and progress on stderr, the plan on stdout unless that is for JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def step(self, title: str) -> AbstractContextManager[OnProgress]:
        from evenkeel.cli import output

        return output.progress(title)

    def plan(self, plan: Plan) -> None:
        from evenkeel.cli.plan import print_plan

        if not self.as_json:
            print_plan(plan, show_all=True)

    def note(self, text: str) -> None:
        from evenkeel.cli import output

        output.note(text)

    def save(self, file: Path, document: Document) -> None:
        from evenkeel.cli import files

        files.save_document(file, document)


def _print_interrupted(played: Demo, name: str) -> None:
    """Where it stopped, what is left, how to go on."""
    from evenkeel.cli import output
    from evenkeel.machines.virtual import lifecycle
    from evenkeel.report.folder import REPORT

    where = f"in the step “{played.seconds[-1][0]}”" if played.seconds else "before the first step"
    host = f"virtual host {name} still runs: evenkeel virtual rm {name}"
    report = f"the report is whole: {played.folder / REPORT}"
    if not lifecycle.exists(name):
        host = "no virtual host is left"
    if not (played.folder / REPORT).exists():
        report = f"there is no report, and what was seen until then is in {played.folder}"
    output.note(f"stopped {where}; {host}; {report}")
    output.note("evenkeel demo begins anew; an image that was finished, and the host's first boot, are used again")


def _print_seconds(played: Demo) -> None:
    from evenkeel.cli import output

    total = sum(seconds for _, seconds in played.seconds)
    rows = [(title, f"{seconds:.1f}") for title, seconds in [*played.seconds, ("all", total)]]
    output.err().print(output.table(("step", "seconds"), rows, right=("seconds",)))
