"""`evenkeel lab health`, `energy`, `budget`: how machines answer, what they draw idle, and what sites may draw."""

from __future__ import annotations

from typing import Annotated

import typer

from evenkeel.cli.lab_options import At, Json


def register(app: typer.Typer) -> None:
    app.command(name="health")(health)
    app.command(name="energy")(energy)
    app.command(name="budget")(budget)


def health(
    machine: Annotated[
        str | None, typer.Argument(metavar="[MACHINE]", help="Only this one.", show_default=False)
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Ask the machine now, out of turn.")] = False,
    lab: At = None,
    as_json: Json = False,
) -> int:
    """Say how machines answered when they were asked last: IPv4, IPv6, ssh, log-in, BMC, outlet, console.

    evenkeel lab health
    evenkeel lab health host1 --now

    Exit code 1: one is not well.
    """
    from evenkeel.cli import output
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect
    from evenkeel.lab.pages.words import duration, moment

    if now and machine is None:
        raise WrongInput("which machine is asked now?", hint="evenkeel lab health MACHINE --now")
    with connect(lab) as asked:
        if machine is None:
            found = asked.get("/health")
        else:
            path = f"/machines/{machine}/health"
            found = [asked.post(path) if now else asked.get(path)]
    if as_json:
        output.emit_json(found if machine is None else found[0])
    elif machine is None:
        kinds = ("v4", "v6", "ssh", "login", "bmc", "pdu", "console")
        rows = []
        for one in found:
            said = {probe["probe"]: "ok" if probe["ok"] else "NO" for probe in one["probes"]}
            rows.append((one["machine"], one["state"], *(said.get(kind, "") for kind in kinds)))
        output.out().print(output.table(("machine", "state", *kinds), rows))
    else:
        rows = [
            (
                one["probe"],
                "ok" if one["ok"] else "NO",
                duration(one["latency_ns"]),
                moment(one["at_ns"]),
                one["detail"],
            )
            for one in found[0]["probes"]
        ]
        if rows:
            output.out().print(output.table(("probe", "answer", "after", "when (UTC)", "said"), rows))
        else:
            output.note(f"{machine} was never asked: it has no address, BMC or console, or the lab has just begun")
            output.note(f"`evenkeel lab machine edit {machine} --reach ssh://root@HOST` says where it is reached")
    return int(any(one["well"] is False for one in found))


def energy(
    last: Annotated[str, typer.Option(metavar="TIME", help="About the last so long: 720h.")] = "720h",
    lab: At = None,
    as_json: Json = False,
) -> int:
    """Say what stood idle, what it drew meanwhile, and what could be switched off.

    evenkeel lab energy --last 168h
    """
    from evenkeel.cli import output
    from evenkeel.documents.quantity import parse_duration
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect
    from evenkeel.lab.pages.words import duration

    try:
        length = parse_duration(last)
    except ValueError as error:
        raise WrongInput(str(error)) from None
    with connect(lab) as asked:
        found = asked.get("/energy", length_ns=length)
    if as_json:
        output.emit_json(found)
        return 0
    rows = [
        (
            one["machine"],
            one["state"],
            f"{100 * one['idle']:.0f} %",
            "" if one["watts"] is None else f"{one['watts']:.0f} W",
            "" if one["idle_kwh"] is None else f"{one['idle_kwh']:.1f} kWh",
            f"after {duration(one['auto_off_ns'])}"
            if one["auto_off_ns"]
            else "could be off"
            if one["candidate"]
            else "",
        )
        for one in found["machines"]
    ]
    output.out().print(output.table(("machine", "state", "idle", "draws", "idle energy", "off"), rows))
    untold = f"; {found['untold']} do not tell" if found["untold"] else ""
    output.out().print(f"machines without a claim drew {found['idle_kwh']:.1f} kWh{untold}")
    return 0


def budget(
    site: Annotated[str | None, typer.Argument(metavar="[SITE]", help="Of this site.", show_default=False)] = None,
    watts: Annotated[int | None, typer.Option(metavar="W", help="What its machines may draw together.")] = None,
    assumed: Annotated[
        int | None,
        typer.Option(metavar="W", help="What a machine counts for that does not tell what it draws; 500 at first."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="It may draw what it likes.")] = False,
    lab: At = None,
    as_json: Json = False,
) -> int:
    """Show the power budgets of sites, or set one: beyond it no machine is given to anybody, or woken.  For admins.

    evenkeel lab budget
    evenkeel lab budget rack-a --watts 12000
    evenkeel lab budget rack-a --remove
    """
    from urllib.parse import quote

    from evenkeel.cli import output
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect

    changes = watts is not None or assumed is not None
    if (changes or remove) and site is None:
        raise WrongInput("the budget of which site?", hint="evenkeel lab budget SITE --watts W")
    if changes and remove:
        raise WrongInput("is the budget to be set, or to be removed?", hint="leave out --remove, or the watts")
    path = f"/power-budgets/{quote(site or '', safe='')}"
    with connect(lab) as asked:
        if remove:
            asked.send("DELETE", path)
            output.note(f"{site} has no power budget any more")
            return 0
        known = {one["site"]: one for one in asked.get("/power-budgets")}
        if changes:
            before = known.get(site or "", {})
            limit = watts if watts is not None else before.get("watts")
            if limit is None:
                raise WrongInput(f"{site} has no power budget yet", hint=f"evenkeel lab budget {site} --watts W")
            body = {"watts": limit}
            if (each := assumed if assumed is not None else before.get("assumed_watts")) is not None:
                body["assumed_watts"] = each
            found = [asked.send("PUT", path, body)]
        else:
            found = [one for one in known.values() if site in (None, one["site"])]
    if as_json:
        output.emit_json(found)
        return 0
    if not found:
        output.note(f"{site or 'no site'} has {'no' if site else 'a'} power budget: evenkeel lab budget SITE --watts W")
        return 0
    rows = [
        (
            one["site"],
            f"{one['watts']} W",
            f"{one['counted_watts']:.0f} W",
            str(one["machines"]),
            f"{one['assumed']}, for {one['assumed_watts']} W each" if one["assumed"] else "",
            one["set_by"],
        )
        for one in found
    ]
    output.out().print(output.table(("site", "budget", "counts for", "machines", "do not tell", "set by"), rows))
    return 0
