"""`evenkeel apply PLAN|SITE`: write a plan to its hosts.  Thin: parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenkeel.apply.report import ApplyReport
    from evenkeel.documents.findings import Check
    from evenkeel.documents.plan import HostPlan


class Only(StrEnum):
    LIVE = "live"


def register(app: typer.Typer) -> None:
    app.command(name="apply")(apply)


def apply(
    source: Annotated[
        str,
        typer.Argument(metavar="PLAN|SITE", help="A saved plan, or a site to be planned first.", show_default=False),
    ],
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Reboot hosts whose kernel command line changes, and go on.")
    ] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="Shut guests down where a setting disturbs them, and start them again.")
    ] = False,
    only: Annotated[
        Only | None,
        typer.Option("--only", help="Only settings that disturb nothing, away from the CPUs of running guests."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a reboot or a restart.")] = False,
    restart_guests: Annotated[
        bool, typer.Option("--restart-guests", help="Shut down running guests whose definition changes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    history: Annotated[
        str | None,
        typer.Option(
            "--history",
            metavar="FILE",
            help="Keep the accounts of owners in this file; evenkeel-history.jsonl beside the plan when left out.",
        ),
    ] = None,
    print_unit: Annotated[
        bool,
        typer.Option("--print-unit", help="Print a unit file for systemd that applies this plan at boot, and leave."),
    ] = False,
) -> int:
    """Write a plan to its hosts: boot layer, reboot, boot gate, settings, guests.

    Every value is read back, and what was there before is in a journal on the host: `evenkeel rollback` undoes it.
    When a step fails, or on Ctrl-C or SIGTERM, what this run wrote is undone (exit code 4); a second Ctrl-C leaves at
    once. A second apply changes nothing and says so.

    What disturbs more than it may is asked on a terminal, and left where there is none: `drain` settings while guests
    run (--drain), the reboot (--reboot). What is left is listed with its reason, and the exit code is 1. Real-time
    throttling is taken back by itself when it starves the host (exit code 1).

      evenkeel apply plan.json --dry-run

      evenkeel apply plan.json --only live

      evenkeel apply plan.json --reboot
    """
    from contextlib import closing

    from evenkeel.apply.engine import apply_plan
    from evenkeel.cli import output
    from evenkeel.cli.plan import plan_of
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, EvenkeelError, RolledBack, WrongInput
    from evenkeel.machines.address import resolve

    if only and (reboot or drain or restart_guests):
        raise WrongInput(
            "--only live disturbs nothing, so it goes with neither --reboot, --drain nor --restart-guests",
            hint="leave one of them out",
        )
    if print_unit:
        output.out().print(_unit(source), end="", soft_wrap=True)
        return EXIT_DONE
    plan = plan_of(source)
    reports: list[ApplyReport] = []
    for host in plan.hosts:
        doing = f"{'checking' if dry_run else 'applying to'} {host.name}"
        try:
            with closing(resolve(host.address)) as machine, output.progress(doing) as on_progress:
                report = apply_plan(
                    host,
                    plan,
                    machine,
                    reboot=reboot,
                    drain=drain,
                    live_only=only is Only.LIVE,
                    dry_run=dry_run,
                    restart_guests=restart_guests,
                    on_progress=on_progress,
                    on_stop=_tell_stop,
                    confirm=None if yes else _ask,
                    offer=None if yes else _offer,
                )
        except EvenkeelError as error:
            if isinstance(error, RolledBack) and not as_json:
                _print_findings(error.findings)
            if as_json and reports:  # what was written on the hosts before this one
                output.emit_json({"hosts": _data(reports), "error": {"host": host.name, **output.error_data(error)}})
            raise
        reports.append(report)
        _note(source, history, host, report)
        if not as_json:
            _print(report)
    if as_json:
        output.emit_json({"hosts": _data(reports)})
    return EXIT_DONE if all(_good(report, only) for report in reports) else EXIT_NOT_AS_WANTED


def _data(reports: Sequence[ApplyReport]) -> list[dict[str, Any]]:
    return [report.model_dump(mode="json") for report in reports]


def _note(source: str, history: str | None, host: HostPlan, report: ApplyReport) -> None:
    """In the history; what keeps it from being written is a warning, for the host is as planned all the same."""
    from pathlib import Path

    from evenkeel.apply.history import beside, note_applied
    from evenkeel.cli import output
    from evenkeel.errors import EvenkeelError

    try:
        note_applied(Path(history) if history else beside(source), host, report)
    except EvenkeelError as error:
        output.warn(f"{error.message}; what owners hold since now is not accounted")


def _unit(source: str) -> str:
    """Raises WrongInput for what cannot be applied by the host itself at its own boot."""
    import sys
    from pathlib import Path

    from evenkeel.apply.unit import unit
    from evenkeel.cli.files import load_plan_or_site
    from evenkeel.documents.plan import Plan
    from evenkeel.errors import WrongInput

    plan = load_plan_or_site(source)
    if not isinstance(plan, Plan) or source == "-":
        raise WrongInput(
            f"{source} is no saved plan; what is planned anew at every boot is nothing that anyone has read",
            hint="evenkeel plan SITE -o plan.json, then evenkeel apply plan.json --print-unit",
        )
    if [host.address for host in plan.hosts] != ["local"]:
        raise WrongInput(
            f"{source} is for {', '.join(host.address for host in plan.hosts)}; "
            "at its boot a host applies its own plan",
            hint="install Evenkeel on that host, and plan there with the address local",
        )
    return unit(source, [sys.executable, "-m", "evenkeel", "apply", str(Path(source).resolve()), "--yes"])


def _good(report: ApplyReport, only: Only | None) -> bool:
    """What was left because the user asked for live settings alone does not make the answer no."""
    if report.outcome == "dry_run":
        return True
    return report.outcome != "reboot_pending" and not report.findings and (only is not None or not report.of("left"))


def _offer(question: str, reasons: Sequence[str]) -> bool:
    """Ask for what no option allowed; without a terminal the answer is no."""
    import sys

    return sys.stdin.isatty() and sys.stderr.isatty() and _ask(question, reasons)


def _ask(question: str, reasons: Sequence[str]) -> bool:
    """Ask on the terminal; without one, the option that led here is the answer."""
    import sys

    from evenkeel.cli import output

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    for reason in reasons:
        output.note(f"  {reason}")
    bar = output._live  # it draws over the question ten times a second
    if bar is not None:
        bar.stop()
    try:
        return typer.confirm(question, err=True)
    finally:
        if bar is not None:
            bar.start()


def _tell_stop() -> None:
    import os

    # Straight to the file descriptor: this runs in a signal handler, maybe in the middle of a print.
    os.write(2, b"\nstopping after this step, then rolling back; Ctrl-C again leaves everything as it is\n")


def _print(report: ApplyReport) -> None:
    from evenkeel.cli import output

    console = output.out()
    # What waits behind a reboot is not news; of a dry run it is the answer.
    planned = report.of("would_change") if report.outcome == "dry_run" else ()
    news = report.of("done", "refused", "absent", "left", "taken_back")
    shown = [step for step in report.steps if step in (*planned, *news)]
    if shown:
        rows = [
            (step.name, _brief(step.old), _brief(step.wanted), _outcome(step.outcome), step.message or step.title)
            for step in shown
        ]
        console.print(output.table(("setting", "was", "wanted", "outcome", ""), rows))
    same = len(report.of("unchanged"))
    line = {
        "applied": f"applied: {len(report.of('done'))} written and read back, {same} as planned already",
        "unchanged": f"nothing to change: all {same} are as planned already"
        if not report.of("left")
        else f"nothing written: {same} as planned already",
        "reboot_pending": "reboot pending",
        "dry_run": f"dry run: {report.message}; nothing was written",
    }[report.outcome]
    told = report.outcome in ("applied", "reboot_pending") or (report.outcome == "unchanged" and report.of("left"))
    extra = f"; {report.message}" if report.message and told else ""
    _print_findings(report.findings)
    console.print(f"{report.host}: {line}{extra}")


def _print_findings(findings: Sequence[Check]) -> None:
    from evenkeel.cli import output

    for finding in findings:
        output.warn(f"{finding.id}: {finding.title}: expected {finding.expected}, found {finding.observed}")
        for evidence in finding.evidence:
            output.note(f"  {evidence.where}: {evidence.value}")
        output.note(f"  why: {finding.why}")
        output.note(f"  fix: {finding.fix}")


def _outcome(outcome: str) -> str:
    return {"would_change": "would change", "done": "written", "taken_back": "taken back"}.get(outcome, outcome)


def _brief(value: str | None) -> str:
    if value is None:
        return "-"
    text = " ".join(value.split())
    return text if len(text) <= 60 else text[:57] + "..."
