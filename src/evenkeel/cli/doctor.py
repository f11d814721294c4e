"""``evenkeel doctor``: what is wrong with a host, from its facts alone.  Parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenkeel.documents.facts import Definition, Facts
    from evenkeel.documents.findings import Check, Findings
    from evenkeel.verify.doctor.sarif import Kind


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    host: Annotated[
        str,
        typer.Argument(
            help="local, ssh://root@HOST[:PORT], virtual:NAME, a recorded tree, or saved facts (*.json).",
            metavar="HOST",
        ),
    ] = "local",
    xml: Annotated[
        list[Path] | None,
        typer.Option("--xml", help="Examine this domain definition too, as if the host had it.", metavar="FILE"),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", help="A finding that you know and want: it is shown, and not counted.", metavar="ID"),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="List what is well, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the Findings as JSON on stdout.")] = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0 on stdout, for CI.")] = False,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Save the Findings.")] = None,
) -> int:
    """Say what is wrong with a host, without any site file. Reads only, and is safe anywhere.

    Findings come with the file and the value that show them, why it matters and what to do. They are ranked: harmful,
    warning, note. What the facts do not tell is counted as not checked. Read as root: others see less.
    Exit code 0: nothing harmful; 1: something is; 2: wrong input; 3: the host does not answer.

      evenkeel doctor

      evenkeel doctor ssh://root@plc-host --sarif > doctor.sarif

      evenkeel doctor facts.json --xml guest.xml --accept D-IRQ-MANAGED
    """
    from evenkeel.cli import output as screen
    from evenkeel.verify.doctor import AILMENTS, examine

    screen.takes_stdout({"-o": output}, json=as_json, sarif=as_sarif)
    known = tuple(accept or ())
    _require_known(known)
    facts = _facts(host)
    guests = tuple(_definition(path) for path in xml or ())
    facts = facts.model_copy(update={"definitions": _merged(facts.definitions, guests)})
    findings = examine(facts, _name(host, facts))
    return show_findings(
        findings, known, AILMENTS, "doctor", show_all=show_all, as_json=as_json, as_sarif=as_sarif, output=output
    )


def show_findings(
    findings: Findings,
    known: tuple[str, ...],
    catalogue: Sequence[Kind],
    verb: str,
    *,
    show_all: bool,
    as_json: bool,
    as_sarif: bool,
    output: str | None,
) -> int:
    """Save them where asked, and print them as asked: for every verb whose findings are kinds of a catalogue.

    The verb has called :func:`evenkeel.cli.output.takes_stdout` before it began.
    Exit code 0: nothing harmful but what is ``known``; 1: something is.
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED
    from evenkeel.verify.doctor import harmful

    code = EXIT_NOT_AS_WANTED if harmful(findings, known) else EXIT_DONE
    if output:
        files.save_document(output, findings)
    if output == "-":
        return code
    if output:
        screen.wrote(output)
    if as_json:
        screen.emit_json(findings)
    elif as_sarif:
        from evenkeel import __version__
        from evenkeel.verify.doctor.sarif import sarif

        screen.emit_json(sarif(findings, known, version=__version__, catalogue=catalogue, verb=verb))
    else:
        _print(findings, known, show_all)
    return code


def _require_known(accept: tuple[str, ...]) -> None:
    from difflib import get_close_matches

    from evenkeel.errors import WrongInput
    from evenkeel.verify.doctor import AILMENTS

    ids = [ailment.id for ailment in AILMENTS]
    for one in accept:
        kind = one.partition(":")[0]
        if kind not in ids:
            near = get_close_matches(kind, ids, n=1)
            raise WrongInput(
                f"--accept: there is no finding {kind!r}" + (f"; did you mean {near[0]}?" if near else ""),
                hint="docs/reference/doctor.md lists them all",
            )


def _facts(host: str) -> Facts:
    from evenkeel.apply.hosts import ask_facts
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.documents.facts import Facts

    if host.endswith(".json"):
        return files.load_document(Facts, host)
    with screen.progress(f"facts of {host}") as on_progress:
        return ask_facts(host, on_progress)


def _name(host: str, facts: Facts) -> str:
    """The host's own name where it says one; a recorded tree may not."""
    return facts.identity.hostname or (Path(host).name if "/" in host or "." in host else host)


def _definition(path: Path) -> Definition:
    """A file with domain XML as a definition of the host.  Raises WrongInput when it cannot be read."""
    import re

    from evenkeel.cli import files
    from evenkeel.documents.facts import Definition

    text = files.read_text(path)
    name = re.search(r"<name>\s*([^<]+?)\s*</name>", text)
    return Definition(guest=name[1] if name else path.stem, path=str(path), running=False, xml=text)


def _merged(own: tuple[Definition, ...], given: tuple[Definition, ...]) -> tuple[Definition, ...]:
    """The given ones take the place of the host's own of the same guest."""
    names = {one.guest for one in given}
    return (*(one for one in own if one.running or one.guest not in names), *given)


def _print(findings: Findings, known: tuple[str, ...], show_all: bool) -> None:
    """The table of what failed, each with its evidence, why and fix; then what was not checked, and the sum."""
    from evenkeel.cli import output as screen
    from evenkeel.verify.doctor import accepted

    console = screen.out()
    failed = findings.failed
    if failed:
        rows = [
            (
                f"{check.severity} (accepted)" if accepted(check, known) else check.severity,
                check.id,
                check.observed,
            )
            for check in failed
        ]
        console.print(screen.table(("harm", "finding", "what"), rows))
    for check in failed:
        console.print()
        console.print(f"{check.id}: {check.observed}", style="bold")
        for evidence in check.evidence[:6]:
            console.print(f"  {evidence.where}: {evidence.value}")
        if len(check.evidence) > 6:
            console.print(f"  and {len(check.evidence) - 6} more, see --json")
        console.print(f"  why: {check.why}")
        console.print(f"  fix: {check.fix}")
    if failed:
        console.print()
    _print_rest(findings, show_all)
    console.print(f"{findings.host}: {_summary(findings.checks, known)}", style="bold")


def _print_rest(findings: Findings, show_all: bool) -> None:
    """What could not be checked, by its reason; what is well, on demand."""
    from evenkeel.cli import output as screen

    console = screen.out()
    reasons: dict[str, list[str]] = {}
    for check in findings.checks:
        if check.status == "not_checked":
            reasons.setdefault(check.reason, []).append(check.id)
    for reason, ids in reasons.items():
        console.print(f"not checked: {', '.join(ids)}: {reason}")
    if show_all:
        rows = [(check.id, check.title) for check in findings.checks if check.status == "passed"]
        console.print(screen.table(("well", "what"), rows))


def _summary(checks: tuple[Check, ...], known: tuple[str, ...]) -> str:
    """``"1 harmful, 2 warnings, 0 notes (1 accepted); 33 well, 0 not checked"``."""
    from evenkeel.verify.doctor import accepted

    failed = [check for check in checks if check.status == "failed"]
    counted = [check for check in failed if not accepted(check, known)]
    harm, warnings, notes = (
        sum(check.severity == severity for check in counted) for severity in ("harmful", "warning", "note")
    )
    text = f"{harm} harmful, {warnings} warning{'s' if warnings != 1 else ''}, {notes} note{'s' if notes != 1 else ''}"
    if len(failed) != len(counted):
        text += f" ({len(failed) - len(counted)} accepted)"
    well = sum(check.status == "passed" for check in checks)
    return f"{text}; {well} well, {sum(check.status == 'not_checked' for check in checks)} not checked"
