"""`evenkeel rollback HOST|SITE`: undo on a host what apply wrote.  Thin: parse, call, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evenkeel.apply.report import RollbackReport
    from evenkeel.errors import Unreachable


def register(app: typer.Typer) -> None:
    app.command(name="rollback")(rollback)


def rollback(
    where: Annotated[
        str,
        typer.Argument(
            metavar="HOST|SITE",
            help="A host (local, ssh://root@HOST, virtual:NAME), or a site or plan: all its hosts.",
            show_default=False,
        ),
    ],
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Reboot at the end when the kernel still runs with our arguments.")
    ] = False,
    history: Annotated[
        str | None,
        typer.Option(
            "--history", metavar="FILE", help="The accounts to end there; those beside the site or plan when left out."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> int:
    """Undo on a host what apply wrote, byte for byte, newest first.

    The journal on the host is all that is needed: no plan, no site. Guests that apply defined are destroyed and
    undefined. It may be interrupted and run again. A host that does not answer (exit code 3) stops none of the others.

      evenkeel rollback ssh://root@plc-host --reboot
    """
    from contextlib import closing

    from evenkeel.apply.rollback import rollback_host
    from evenkeel.cli import output
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, EXIT_UNREACHABLE, EvenkeelError, Unreachable
    from evenkeel.machines.address import resolve

    reports: list[RollbackReport] = []
    away: dict[str, Unreachable] = {}
    known = _hosts(where)
    for name, address in known:
        try:
            with closing(resolve(address)) as machine, output.progress(f"rolling back {name}") as on_progress:
                report = rollback_host(name, machine, reboot=reboot, on_progress=on_progress)
        except Unreachable as error:  # the others are not left as they are because one is away
            if len(known) == 1:
                raise
            away[name] = error
            output.print_error(error)
            continue
        except EvenkeelError as error:
            if as_json and (reports or away):
                output.emit_json(_data(reports, away) | {"error": {"host": name, **output.error_data(error)}})
            raise
        reports.append(report)
        if not report.problems:
            _note(where, history, address)
        if not as_json:
            _print(report)
    if as_json:
        output.emit_json(_data(reports, away))
    if away:
        return EXIT_UNREACHABLE
    return EXIT_NOT_AS_WANTED if any(report.problems for report in reports) else EXIT_DONE


def _data(reports: Sequence[RollbackReport], away: Mapping[str, Unreachable]) -> dict[str, Any]:
    from evenkeel.cli import output

    told = [{"host": name, "error": output.error_data(error)} for name, error in away.items()]
    return {"hosts": [*(report.model_dump(mode="json") for report in reports), *told]}


def _note(where: str, history: str | None, address: str) -> None:
    from pathlib import Path

    from evenkeel.apply.history import beside, note_rolled_back
    from evenkeel.cli import output
    from evenkeel.errors import EvenkeelError
    from evenkeel.machines.paths import kind_of

    try:
        note_rolled_back(Path(history) if history else beside(where if kind_of(where) else "-"), address)
    except EvenkeelError as error:
        output.warn(f"{error.message}; owners are accounted for what was on {address}")


def _hosts(where: str) -> list[tuple[str, str]]:
    """(name, address) of each host meant."""
    from evenkeel.machines.paths import kind_of

    if where == "local" or where.startswith(("ssh://", "virtual:")) or not kind_of(where):
        return [(where, where)]
    from evenkeel.cli.files import load_plan_or_site
    from evenkeel.documents.plan import Plan

    found = load_plan_or_site(where)
    if isinstance(found, Plan):
        return [(host.name, host.address) for host in found.hosts]
    return [(name, wish.address) for name, wish in sorted(found.hosts.items())]


def _print(report: RollbackReport) -> None:
    from evenkeel.cli import output

    console = output.out()
    for name in report.undone:
        console.print(f"  undone  {name}")
    if report.gone:
        console.print(f"  {len(report.gone)} were gone with a reboot already")
    for problem in report.problems:
        output.warn(problem)
    if not (report.undone or report.gone or report.problems):
        line = "nothing to undo"
    else:
        line = f"rolled back{' in part' if report.problems else ''}: {len(report.undone)} undone"
    if report.rebooted:
        line += "; rebooted without the arguments of the plan"
    elif report.reboot_needed:
        line += "; its kernel runs with the arguments of the plan until the next reboot (--reboot does it at once)"
    console.print(f"{report.host}: {line}", soft_wrap=True)
