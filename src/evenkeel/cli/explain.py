"""`evenkeel explain PLAN ID`: why a plan has one value.  Thin: look up, print."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evenkeel.documents.plan import Setting
    from evenkeel.plan.explain import Explanation


def register(app: typer.Typer) -> None:
    @app.command()
    def explain(
        plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan document.", show_default=False)],
        identifier: Annotated[
            str,
            typer.Argument(
                metavar="ID", help="A setting (R-RT-4:ktimers/10), a rule (R-RT-4) or a guest.", show_default=False
            ),
        ],
        host: Annotated[str | None, typer.Option("--host", metavar="NAME", help="Only of this host.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    ) -> None:
        """Say why a plan sets one value: rule, inputs, source, risk, how it is verified.

        evenkeel explain plan.json R-WQ-2
        """
        from evenkeel.cli import files, output
        from evenkeel.documents.plan import Plan
        from evenkeel.errors import WrongInput
        from evenkeel.plan.explain import explain as look_up

        document = files.load_plan_or_site(plan)
        if not isinstance(document, Plan):
            raise WrongInput(f"{plan} is a site, a plan is needed here", hint=f"evenkeel plan {plan} -o plan.json")
        found = look_up(document, identifier, host)
        if as_json:
            output.emit_json(_data(found))
        else:
            _print(found)


def _data(found: Explanation) -> dict[str, Any]:
    rule = found.rule
    return {
        "id": found.id,
        "rule": None
        if rule is None
        else {
            "id": rule.id,
            "subject": rule.subject,
            "title": rule.title,
            "goals": sorted(rule.levels),
            "since": ".".join(map(str, rule.since)) or None,
            "before": ".".join(map(str, rule.before)) if rule.before else None,
            "when": rule.when,
            "phase": rule.phase.value,
            "disturbance": rule.disturbance,
            "risk": rule.risk,
            "verification": rule.verification,
            "source": rule.source,
            "inputs": list(rule.inputs),
            "value": rule.value,
            "consent": rule.consent,
            "alternatives": [asdict(one) for one in rule.alternatives],
        },
        "element": asdict(found.element) if found.element else None,
        "settings": [{"host": host, **setting.model_dump(mode="json")} for host, setting in found.settings],
        "notes": [{"host": host, **note.model_dump(mode="json")} for host, note in found.notes],
        "guests": [{"host": host, **guest.model_dump(mode="json")} for host, guest in found.guests],
    }


def _print(found: Explanation) -> None:
    from evenkeel.cli.output import out
    from evenkeel.plan.explain import scope

    console = out()
    rule, element = found.rule, found.element
    title = rule.title if rule else element.title if element else ""
    console.print(f"{found.id}  {title}".rstrip(), style="bold")
    for host, setting in found.settings:
        console.print()
        _print_setting(host, setting)
    for host, note in found.notes:
        console.print(f"\nhost {host}: {note.text}")
    for host, guest in found.guests:
        console.print(f"\nguest {guest.name} on host {host}:")
        for sentence in guest.why:
            console.print(f"  {sentence}")
        if guest.name == found.id:
            console.print()
            console.print(guest.xml.rstrip())
            if guest.cloud_config:
                console.print("\ninside it, for its owner:\n")
                console.print(guest.cloud_config.rstrip(), soft_wrap=True)  # to be copied as it is
    if rule and not found.settings and not found.notes:
        console.print(
            "\nThis plan has no setting by this rule: none of its guests has such a goal, or the kernel is another."
        )
    console.print()
    if element:
        _print_pairs([("reason", element.reason)])
    about = rule or element
    if about:
        pairs = [("verified by", about.verification), ("risk", about.risk), ("source", about.source)]
        if rule:
            pairs += [("applies to", scope(rule)), ("disturbance", f"{rule.disturbance}; takes effect: {rule.when}")]
            pairs += [("others set", f"{one.value} ({one.by}); not here: {one.rejected}") for one in rule.alternatives]
        _print_pairs(pairs)


def _print_setting(host: str, setting: Setting) -> None:
    from evenkeel.plan.rules import describe_target

    pairs = [
        ("setting", f"{setting.id} on host {host}: {describe_target(setting.target)}"),
        ("value", f"{_shown(setting.old)} -> {_shown(setting.new)} ({setting.status}, phase {setting.phase.value})"),
        ("reason", setting.reason),
    ]
    if setting.inputs:
        pairs.append(("inputs", "; ".join(f"{key}: {value}" for key, value in setting.inputs.items())))
    _print_pairs(pairs)


def _shown(value: str | None) -> str:
    return "nothing" if value is None else value or "(empty)"


def _print_pairs(pairs: list[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from evenkeel.cli.output import out

    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=11)
    grid.add_column(overflow="fold")
    for name, text in pairs:
        grid.add_row(Text(name, style="bold"), Text(text))
    out().print(grid)
