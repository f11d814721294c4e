"""`evenkeel verify PLAN|SITE`: compare the hosts with their plan, thread by thread.  Thin: parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenkeel.documents.findings import Check, Findings
    from evenkeel.documents.plan import HostPlan, Plan
    from evenkeel.machines.protocol import OnProgress
    from evenkeel.verify.observe import Options


class Load(StrEnum):
    hackbench = "hackbench"
    none = "none"


def register(app: typer.Typer) -> None:
    app.command(name="verify")(verify)


def verify(
    source: Annotated[
        str,
        typer.Argument(metavar="PLAN|SITE", help="A saved plan, or a site to be planned first.", show_default=False),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Run no spinner: settings, threads, pages, affinities.")
    ] = False,
    load: Annotated[
        Load, typer.Option(help="What runs on the host for 4 s beside the second spinner, wherever it may.")
    ] = Load.hackbench,
    show_all: Annotated[bool, typer.Option("--all", help="List the checks that passed, too.")] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Save the Findings; with several hosts FILE-HOST."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the Findings as JSON on stdout.")] = False,
) -> int:
    """Compare every setting, thread, page and interrupt of a host with its plan. Changes nothing.

    Two spinners run for 4 s each on a CPU of a real-time vCPU, the second one while hackbench keeps the rest of the
    host busy: guests must not notice, the host's own services will. --quick leaves both out.
    Exit code 0: as planned; 1: not, or something could not be checked (what --quick leaves out does not count);
    3: a host does not answer; the others are verified all the same.

      evenkeel verify plan.json

      evenkeel verify site.yaml --quick --all

      evenkeel verify plan.json -o findings.json
    """
    from evenkeel.cli import output as screen
    from evenkeel.cli.plan import plan_of_answering
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, EvenkeelError
    from evenkeel.verify.observe import Options

    taken = screen.takes_stdout({"-o": output}, json=as_json)
    plan, away = plan_of_answering(source)
    options = Options(load=load.value, spinners=not quick)
    several = len(plan.hosts) + len(away) > 1
    failed: dict[str, EvenkeelError] = {name: error for name, (_, error) in away.items()}
    for error in failed.values() if several else ():
        screen.print_error(error)
    found: list[Findings] = []
    for host in plan.hosts:
        try:
            with screen.progress(f"verifying {host.name}") as on_progress:
                findings = _verify(host, plan, options, on_progress)
        except EvenkeelError as error:  # a host that cannot be looked at hides nothing of the others
            failed[host.name] = error
            if several:
                screen.print_error(error)
            continue
        found.append(findings)
        if output and not taken:
            _save(findings, output, several=several)
        if not (as_json or taken):
            _print(findings, show_all)
    if failed and not several:
        raise next(iter(failed.values()))
    if as_json or taken:
        errors = [{"host": name, "error": screen.error_data(error)} for name, error in failed.items()]
        screen.emit_json([*(one.model_dump(mode="json") for one in found), *errors] if several else found[0])
    if failed:
        return max(error.exit_code for error in failed.values())
    return EXIT_DONE if all(_good(findings, quick) for findings in found) else EXIT_NOT_AS_WANTED


def file_for(host: str, file: str, *, several: bool) -> str:
    """``findings.json`` -> ``findings-HOST.json`` where there are several hosts."""
    path = Path(file)
    return str(path.with_name(f"{path.stem}-{host}{path.suffix}")) if several and file != "-" else file


def _verify(host: HostPlan, plan: Plan, options: Options, on_progress: OnProgress) -> Findings:
    from contextlib import closing

    from evenkeel.apply.hosts import read_facts
    from evenkeel.machines.address import resolve
    from evenkeel.verify import verify_host

    with closing(resolve(host.address)) as machine, machine.probe() as probe:
        facts = read_facts(probe, address=host.address)
        return verify_host(host, probe, facts, plan_sha256=plan.sha256(), options=options, on_progress=on_progress)


def _good(findings: Findings, quick: bool) -> bool:
    """What was left out on purpose does not make the answer no; it stays visible as not checked."""
    if findings.verdict != "incomplete":
        return findings.verdict == "as planned"
    open_checks = [check for check in findings.checks if check.status == "not_checked"]
    return quick and bool(findings.checks) and all(check.subject == "spinner" for check in open_checks)


def _save(findings: Findings, file: str, *, several: bool) -> None:
    from evenkeel.cli import files
    from evenkeel.cli import output as screen

    target = file_for(findings.host, file, several=several)
    files.save_document(target, findings)
    screen.wrote(target)


def _print(findings: Findings, show_all: bool) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    shown = [check for check in findings.checks if show_all or check.status != "passed"]
    if shown:
        rows = [_row(check) for check in sorted(shown, key=lambda check: _ORDER[check.status])]
        console.print(screen.table(("", "check", "what", "expected", "found"), rows))
    for check in findings.failed:
        console.print()
        console.print(f"{check.id}: {check.title}", style="bold")
        _print_failure(check)
    if findings.failed:
        console.print()
    console.print(f"{findings.host}: {findings.verdict}: {_counts(findings.checks)}", style="bold")
    if findings.emulated:
        console.print("emulated: what is counted here is exact; nothing here is a latency")


_ORDER = {"failed": 0, "not_checked": 1, "passed": 2}
_SIGN = {"failed": "✗", "not_checked": "?", "passed": "✓"}


def _row(check: Check) -> tuple[str, ...]:
    found = check.observed if check.status != "not_checked" else f"not checked: {check.reason}"
    return _SIGN[check.status], check.id, check.title, check.expected, found


def _print_failure(check: Check) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    for evidence in check.evidence[:6]:
        console.print(f"  {evidence.where}: {evidence.value}")
    if len(check.evidence) > 6:
        console.print(f"  and {len(check.evidence) - 6} more, see --json")
    console.print(f"  why: {check.why}")
    console.print(f"  fix: {check.fix}")


def _counts(checks: Sequence[Check]) -> str:
    """``"52 checks: 50 passed, 1 failed, 1 not checked"``."""
    parts = [
        f"{count} {name}"
        for status, name in (("passed", "passed"), ("failed", "failed"), ("not_checked", "not checked"))
        if (count := sum(check.status == status for check in checks))
    ]
    return f"{len(checks)} checks: {', '.join(parts) or 'none'}"
