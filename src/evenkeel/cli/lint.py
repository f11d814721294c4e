"""``evenkeel lint``: guests against a published guide; the places that an OpenStack Nova gave its guests.

Two commands.  The first, ``guests``, may be left out: ``evenkeel lint guest.xml --profile sap-hana``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from evenkeel.documents.facts import Facts
    from evenkeel.documents.findings import Check, Findings
    from evenkeel.verify.hana import Guest


class Profile(StrEnum):
    SAP_HANA = "sap-hana"


class _Lint(TyperGroup):
    """Was one command before it had two: what does not begin with the name of one of them is for that one."""

    default = "guests"

    # The context class is typer's own and not exported, hence Any.
    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Lint,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check guests against a published guide, or the places that an OpenStack Nova gave them.\n\n"
    "The word guests may be left out: evenkeel lint guest.xml --profile sap-hana",
)


@app.command("guests")
def guests(
    profile: Annotated[Profile, typer.Option("--profile", help="Whose demands.", show_default=False)],
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET...]",
            help="A site (file or folder), or domain definitions (*.xml) of guests on one host. "
            "Left out: the definitions that the host has.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="MACHINE",
            help="The host: local, ssh://root@HOST, a recorded tree, or saved facts (*.json). A site knows its own.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--guest", metavar="NAME", help="A guest that runs HANA; all are when none is named."),
    ] = None,
    nfs: Annotated[bool, typer.Option("--nfs", help="Data and log are on NFS, mounted in the guest.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="List what is as it should be, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings document.")] = False,
) -> int:
    """Say line by line what leaves the envelope that a guide describes. Changes nothing.

    evenkeel lint guests hana.xml --profile sap-hana --host ssh://root@hana-host

    evenkeel lint --profile sap-hana --host ssh://root@hana-host

    evenkeel lint site.yaml --profile sap-hana --guest hana

    Not a certification: SAP and SUSE alone give one. Exit code 0 when every demand is met, 1 when one is not or
    could not be checked; recommendations and notes do not count.
    """
    from evenkeel.cli import output as screen
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED

    found = _lint(targets or (), host, frozenset(only or ()), nfs=nfs)
    if as_json:
        screen.emit_json(found[0] if len(found) == 1 else [one.model_dump(mode="json") for one in found])
    else:
        for findings in found:
            _print(findings, show_all)
    return EXIT_DONE if all(_inside(findings) for findings in found) else EXIT_NOT_AS_WANTED


@app.command("nova")
def nova(
    dumps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="What --query gave, or a mysqldump of the tables; one file for each cell database. - is stdin.",
            show_default=False,
        ),
    ] = None,
    query: Annotated[bool, typer.Option("--query", help="Print the SQL that reads what is needed, and leave.")] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", help="A finding that you know and want: it is shown, and not counted.", metavar="ID"),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="List what is well, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the Findings as JSON on stdout.")] = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0 on stdout, for CI.")] = False,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Save the Findings.")] = None,
) -> int:
    """Check the places that an OpenStack Nova gave its guests, from a dump of its database. Changes nothing.

    vCPUs of dedicated guests without a pin, pins on another node than the memory, CPUs with two owners, strangers
    beside isolated guests, too many huge pages, devices too far away: Nova stores such places now and then, and
    nothing in it looks at them again.

      evenkeel lint nova --query | mysql --batch --raw --skip-column-names nova > nova.jsonl

      evenkeel lint nova nova.jsonl

    Exit code 0: nothing harmful; 1: something is; 2: the file cannot be read.
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.cli.doctor import show_findings
    from evenkeel.errors import EXIT_DONE, WrongInput
    from evenkeel.verify.nova import lint, read
    from evenkeel.verify.nova.catalogue import FAULTS
    from evenkeel.verify.nova.dump import query as statements

    if query:
        screen.out().print(statements(), end="", soft_wrap=True, markup=False, highlight=False)
        return EXIT_DONE
    if not dumps:
        raise WrongInput("nothing to look at", hint="name a dump; see `evenkeel lint nova --help` for how to make one")
    screen.takes_stdout({"-o": output}, json=as_json, sarif=as_sarif)
    known = tuple(accept or ())
    for one in known:
        if one.partition(":")[0] not in {fault.id for fault in FAULTS}:
            raise WrongInput(f"--accept: there is no finding {one!r}", hint="docs/how-to/lint-nova.md lists them all")
    findings = lint([read(files.read_text(dump), dump) for dump in dumps])
    return show_findings(
        findings, known, FAULTS, "lint nova", show_all=show_all, as_json=as_json, as_sarif=as_sarif, output=output
    )


def _lint(targets: Sequence[str], host: str | None, only: frozenset[str], *, nfs: bool) -> list[Findings]:
    from evenkeel.errors import WrongInput

    if not targets:
        if host is None:
            raise WrongInput("nothing to look at", hint="name a definition (*.xml), a site, or a machine with --host")
        return [_lint_host(host, only, nfs=nfs)]
    definitions = [target for target in targets if target.endswith(".xml")]
    if not definitions:
        if len(targets) > 1:
            raise WrongInput("one site at a time", hint="a folder of *.yaml files is one site")
        return _lint_site(targets[0], host, only, nfs=nfs)
    if len(definitions) < len(targets):
        raise WrongInput("a site and domain definitions are linted apart", hint="name one or the other")
    return [_lint_definitions(definitions, host, only, nfs=nfs)]


def _check_names(only: frozenset[str], known: Iterable[str]) -> None:
    from evenkeel.errors import WrongInput
    from evenkeel.plan.problems import did_you_mean

    names = sorted(known)
    for name in sorted(only - set(names)):
        raise WrongInput(f"--guest {name}: there is no such guest", hint=did_you_mean(name, names))


def _lint_definitions(files: Sequence[str], host: str | None, only: frozenset[str], *, nfs: bool) -> Findings:
    from evenkeel.cli.files import read_text
    from evenkeel.errors import WrongInput
    from evenkeel.verify.hana import Guest, Host, lint
    from evenkeel.verify.hana.domain import parse_domain

    guests: list[Guest] = []
    for file in files:
        domain = parse_domain(read_text(file), file)
        element = domain.first("name")
        name = element.text.strip() if element else ""
        if not name or any(guest.name == name for guest in guests):
            raise WrongInput(
                f"two definitions are named {name}" if name else "the domain has no name", where=domain.where
            )
        guests.append(Guest(name, domain))
    _check_names(only, (guest.name for guest in guests))
    wanted = [guest for guest in guests if not only or guest.name in only]
    beside = [guest for guest in guests if guest not in wanted]
    return lint(wanted, Host(host, _facts(host)) if host else None, beside=beside, nfs=nfs)


def _lint_host(machine: str, only: frozenset[str], *, nfs: bool) -> Findings:
    """The definitions that a host has; of a guest that runs, the one that it runs with."""
    from evenkeel.errors import Where, WrongInput
    from evenkeel.verify.hana import Guest, Host, lint
    from evenkeel.verify.hana.catalogue import HanaRule
    from evenkeel.verify.hana.domain import Element, parse_domain

    facts = _facts(machine)
    texts = {one.guest: one for one in sorted(facts.definitions, key=lambda one: one.running)}
    if not texts:
        raise WrongInput(
            f"{machine} has no definition of a guest that can be read",
            hint="read its facts as root, or name a definition: virsh dumpxml --inactive GUEST > guest.xml",
        )
    _check_names(only, texts)
    guests = []
    for name, one in sorted(texts.items()):

        def place(rule: HanaRule, element: Element, path: str = one.path) -> Where:
            return Where(f"{path} <{element.tag}>")  # facts hold the text from <domain> on, so lines would be others

        guests.append(Guest(name, parse_domain(one.xml, one.path), place))
    wanted = [guest for guest in guests if not only or guest.name in only]
    beside = [guest for guest in guests if guest not in wanted]
    return lint(wanted, Host(machine, facts), beside=beside, nfs=nfs)


def _lint_site(source: str, host: str | None, only: frozenset[str], *, nfs: bool) -> list[Findings]:
    """The plan's own definitions against the facts, as they will be when the plan is applied."""
    from evenkeel.cli import files
    from evenkeel.cli.plan import gather_facts, plan_hosts
    from evenkeel.errors import Where, WrongInput
    from evenkeel.verify.hana import Guest, Host, lint
    from evenkeel.verify.hana.catalogue import HanaRule
    from evenkeel.verify.hana.domain import Element, parse_domain

    site = files.load_site(source)
    _check_names(only, site.guests)
    if host is not None and len(site.hosts) > 1:
        raise WrongInput(f"--host {host}: of which host? the site has {len(site.hosts)}", hint="leave it out")
    known = {next(iter(site.hosts)): _facts(host)} if host else gather_facts(site, ())
    with files.placed_in(source):
        plan = plan_hosts(site, known, None)

    def guest_of(name: str) -> Guest:
        def place(rule: HanaRule, element: Element) -> Where:
            keys = (rule.key,) if rule.key else ()
            return files.place_in_site(source, "guests", name, *keys) or Where(source)

        return Guest(name, parse_domain(xml[name], f"{name}.xml"), place, planned=True)

    found = []
    for one in plan.hosts:
        xml = {guest.name: guest.xml for guest in one.guests}
        wanted = [guest_of(name) for name in xml if not only or name in only]
        beside = [guest_of(name) for name in xml if only and name not in only]
        if wanted:
            found.append(lint(wanted, Host(one.name, known[one.name], one), beside=beside, nfs=nfs))
    if not found:
        raise WrongInput("the site has no guest to look at", where=Where(source))
    return found


def _facts(machine: str) -> Facts:
    from evenkeel.apply.hosts import ask_facts
    from evenkeel.cli.files import load_document
    from evenkeel.cli.output import progress
    from evenkeel.documents.facts import Facts

    if machine.endswith(".json"):
        return load_document(Facts, machine)
    with progress(f"reading facts of {machine}") as on_progress:
        return ask_facts(machine, on_progress)


def _inside(findings: Findings) -> bool:
    return all(check.status == "passed" for check in findings.checks if check.severity == "harmful")


_SIGN = {"harmful": "✗", "warning": "!", "note": "·"}
_HEAD = {"harmful": "outside", "warning": "recommended otherwise", "note": "note"}


def _print(findings: Findings, show_all: bool) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    for severity in ("harmful", "warning", "note"):
        for check in findings.failed:
            if check.severity == severity:
                _print_failure(check)
    rest = [
        check for check in findings.checks if check.status == "not_checked" or (show_all and check.status == "passed")
    ]
    if rest:
        rows = [
            ("?" if check.status == "not_checked" else "✓", check.id, check.title, check.reason or check.observed)
            for check in sorted(rest, key=lambda check: check.status)
        ]
        console.print(screen.table(("", "check", "what", "found"), rows))
        console.print()
    names = ", ".join(dict.fromkeys(check.guest for check in findings.checks if check.guest)) or "no guest"
    where = f" on {findings.host}" if findings.host else ""
    console.print(f"{names}{where}: {_verdict(findings)}", style="bold")
    console.print("compared with a published guide; not a certification by SAP or SUSE")


def _verdict(findings: Findings) -> str:
    demands = [check for check in findings.checks if check.severity == "harmful"]
    failed = sum(check.status == "failed" for check in demands)
    unknown = sum(check.status == "not_checked" for check in demands)
    advice = sum(check.severity != "harmful" for check in findings.failed)
    counts = f"{len(demands) - failed - unknown} of {len(demands)} demands met"
    counts += f", {failed} not" * bool(failed) + f", {unknown} not checked" * bool(unknown)
    counts += f"; {advice} recommendation{'s' * (advice != 1)} and notes" * bool(advice)
    if failed:
        return f"outside the validated envelope: {counts}"
    return f"not known to be inside: {counts}" if unknown else f"nothing found outside the validated envelope: {counts}"


def _print_failure(check: Check) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    console.print(f"{_SIGN[check.severity]} {check.id}: {check.title} ({_HEAD[check.severity]})", style="bold")
    for evidence in check.evidence[:6]:
        console.print(f"  {evidence.where}: {evidence.value}", soft_wrap=True)  # for grep and for editors
    if len(check.evidence) > 6:
        console.print(f"  and {len(check.evidence) - 6} more, see --json")
    console.print(f"  wanted: {check.expected}")
    console.print(f"  why: {check.why}")
    console.print(f"  fix: {check.fix}")
    console.print()
