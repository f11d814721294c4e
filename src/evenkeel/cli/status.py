"""`evenkeel status SITE`: how the hosts stand against their plan.  Thin: parse, call, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.apply.report import StatusReport


def register(app: typer.Typer) -> None:
    app.command(name="status")(status)


def status(
    source: Annotated[str, typer.Argument(metavar="SITE|PLAN", help="A site, or a saved plan.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> int:
    """Say how the hosts of a site stand: reachable, boot gate, applied plan, settings that drifted, guests.

    A host is schedulable, so that guests may be started, once the boot gate passed since it was booted.

    Exit code 0: every host is as planned; 1: one is not; 3: one does not answer.

      evenkeel status site.yaml
    """
    from evenkeel.apply import gate
    from evenkeel.cli import output
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, EXIT_UNREACHABLE

    reports = _reports(source)
    if as_json:
        output.emit_json({"hosts": [report.model_dump(mode="json") for report in reports]})
    else:
        _print(reports)
    if not all(report.reachable for report in reports):
        return EXIT_UNREACHABLE
    good = all(
        report.schedulable
        and not (report.pending or report.not_ready or report.interrupted or gate.failures(report.gate))
        for report in reports
    )
    return EXIT_DONE if good else EXIT_NOT_AS_WANTED


def _reports(source: str) -> list[StatusReport]:
    from contextlib import closing

    from evenkeel.apply import status as hosts
    from evenkeel.cli import output
    from evenkeel.cli.plan import plan_of_answering
    from evenkeel.errors import Unreachable
    from evenkeel.machines.address import resolve

    plan, away = plan_of_answering(source)
    reports: list[StatusReport] = [hosts.unreachable(name, *known) for name, known in away.items()]
    for host in plan.hosts:
        try:
            with closing(resolve(host.address)) as machine, output.progress(f"comparing {host.name}") as on_progress:
                reports.append(hosts.host_status(host, plan.sha256(), machine, on_progress=on_progress))
        except Unreachable as error:
            reports.append(hosts.unreachable(host.name, host.address, error))
    return sorted(reports, key=lambda report: report.host)


def _print(reports: list[StatusReport]) -> None:
    from evenkeel.apply import gate
    from evenkeel.cli import output

    console = output.out()
    rows = []
    for report in reports:
        up = sum(1 for guest in report.guests if guest.power == "running")
        rows.append(
            (
                report.host,
                report.state,
                "-" if not report.reachable else "failed" if gate.failures(report.gate) else "passed",
                "-" if not report.reachable else "yes" if report.schedulable else "no",
                str(len(report.pending)),
                str(len(report.drifted)),
                f"{up} of {len(report.guests)} run",
                (report.applied_plan or "-")[:12],
            )
        )
    columns = ("host", "state", "boot gate", "schedulable", "pending", "drifted", "guests", "applied plan")
    console.print(output.table(columns, rows, right=("pending", "drifted")))
    for report in reports:
        for problem in gate.failures(report.gate) if report.applied_plan else ():
            output.note(f"{report.host}: {problem}")
        if report.reachable and not report.schedulable:
            output.note(f"{report.host}: not schedulable: {report.not_schedulable}")
        if report.drifted:
            output.note(f"{report.host}: drifted: {', '.join(report.drifted)}")
