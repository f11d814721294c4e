"""`evenkeel rules`: list, search and show the catalogue of rules.  Thin: filter, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.plan.catalogue import Entry


def _complete(incomplete: str) -> list[tuple[str, str]]:
    from evenkeel.plan.catalogue import entries

    known = [(entry.id, entry.title) for entry in entries()]
    return [pair for pair in known if pair[0].startswith(incomplete)]


def _complete_subject(incomplete: str) -> list[str]:
    from evenkeel.plan.catalogue import subjects

    return [name for name in subjects() if name.startswith(incomplete)]


def _complete_level(incomplete: str) -> list[str]:
    from evenkeel.plan.catalogue import LEVELS

    return [level for level in LEVELS if level.startswith(incomplete)]


def register(app: typer.Typer) -> None:
    @app.command()
    def rules(
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[ID | WORD...]",
                help="A rule (R-TIM-1), which is shown whole; or words, all of which a rule must contain.",
                show_default=False,
                autocompletion=_complete,
            ),
        ] = None,
        level: Annotated[
            str | None,
            typer.Option(
                "--level",
                metavar="GOAL",
                help="Only rules for this goal: flexible, balanced, performance, realtime.",
                autocompletion=_complete_level,
            ),
        ] = None,
        subject: Annotated[
            str | None,
            typer.Option(
                "--subject",
                metavar="NAME",
                help="Only of this subject: clock, power, ...",
                autocompletion=_complete_subject,
            ),
        ] = None,
        kernel: Annotated[
            str | None,
            typer.Option("--kernel", metavar="VERSION", help="Only rules that are true for this kernel: 6.12."),
        ] = None,
        consent: Annotated[bool, typer.Option("--consent", help="Only rules that need the owner's consent.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    ) -> None:
        """List and search the rules that a plan is made of, or show one whole.

        Needs no site and no host. What a rule does in one plan: `evenkeel explain PLAN ID`.

        evenkeel rules
        evenkeel rules idle poll --level realtime --kernel 6.12
        evenkeel rules R-TIM-1
        """
        from evenkeel.cli import output
        from evenkeel.plan import catalogue

        found = catalogue.search(tuple(words or ()), level=level, subject=subject, kernel=kernel, only_consent=consent)
        if as_json:
            output.emit_json([catalogue.data(entry) for entry in found])
        elif len(found) == 1:
            _print_whole(found[0])
        else:
            _print_list(found)


def _print_list(found: tuple[Entry, ...]) -> None:
    from evenkeel.cli.output import note, out, table
    from evenkeel.plan.catalogue import LEVELS, WHEN

    if not found:
        note("no rule is like that; `evenkeel rules` lists all")
        return
    every = ", ".join(LEVELS)
    rows = [
        [
            entry.id,
            entry.subject,
            entry.title,
            entry.value or entry.reason,
            entry.scope.replace(every, "every goal"),
            "-" if entry.when == "report" else WHEN[entry.when],
        ]
        for entry in found
    ]
    out().print(table(["ID", "SUBJECT", "TITLE", "VALUE", "APPLIES TO", "WHEN"], rows))
    note(f"{len(found)} rules; `evenkeel rules ID` shows one whole")


def _print_whole(entry: Entry) -> None:
    from rich.table import Table
    from rich.text import Text

    from evenkeel.cli.output import out, table

    console = out()
    console.print(f"{entry.id}  {entry.title}", style="bold")
    console.print()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=12)
    grid.add_column(overflow="fold")
    for name, text in entry.lines():
        grid.add_row(Text(name, style="bold"), Text(text))
    console.print(grid)
    if entry.alternatives:
        console.print()
        console.print(
            table(
                ["OTHERS SET", "WHO", "NOT THE DEFAULT, SINCE"],
                [[one.value, one.by, one.rejected] for one in entry.alternatives],
            )
        )
