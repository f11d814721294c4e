"""`evenkeel lab power`, `lab endpoint ...`, `lab secret ...`: switch machines, and say how they are reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json, tell

if TYPE_CHECKING:
    from evenkeel.lab.client import Client

Machine = Annotated[str, typer.Argument(metavar="MACHINE", help="Name of a machine of the lab.")]

_endpoint = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""How machines are reached: BMC, outlet, console.

  evenkeel lab endpoint list host1
  evenkeel lab endpoint set host1 bmc ipmi 10.0.3.7 --secret bmc-prg
  evenkeel lab endpoint set host1 console ipmi 10.0.3.7 --secret bmc-prg
  evenkeel lab endpoint set host1 pdu pdu 10.0.4.2 --option agent=fence_apc --option plug=3 --secret pdu-prg
""",
)
_secret = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Passwords of BMCs and outlets: they go in, and come out for drivers only.

  evenkeel lab secret set bmc-prg --user admin
  evenkeel lab secret list
  evenkeel lab secret rotate
""",
)


def register(app: typer.Typer) -> None:
    app.command(name="power")(power)
    _endpoint.command(name="list")(endpoints)
    _endpoint.command(name="set")(set_endpoint)
    _endpoint.command(name="remove")(remove_endpoint)
    app.add_typer(_endpoint, name="endpoint")
    _secret.command(name="list")(secrets)
    _secret.command(name="set")(set_secret)
    _secret.command(name="remove")(remove_secret)
    _secret.command(name="rotate")(rotate)
    app.add_typer(_secret, name="secret")


def power(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="status, on, off, reset, cycle or log.")],
    machine: Machine,
    method: Annotated[
        str | None, typer.Option(metavar="WAY", help="Only this way: ssh, hypervisor, bmc or pdu.", show_default=False)
    ] = None,
    lab: At = None,
    as_json: Json = False,
) -> int:
    """Switch a machine and see it switched: by ssh, its BMC, its outlet, in the order that works there.

    evenkeel lab power status host1
    evenkeel lab power reset host1
    evenkeel lab power off host1 --method bmc

    Exit code 0: it is proved.  1: it failed, or nobody can say.  `status` ends with 1 when nobody can say.
    """
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect

    if action not in ("status", "on", "off", "reset", "cycle", "log"):
        turned = machine in ("status", "on", "off", "reset", "cycle", "log")
        hint = f"evenkeel lab power {machine} {action}" if turned else "status, on, off, reset, cycle or log"
        raise WrongInput(f"{action!r} is nothing that power can do", hint=hint)
    with connect(lab) as asked:
        if action == "status":
            return _status(asked, machine, as_json)
        if action == "log":
            return _log(asked, machine, as_json)
        return _switch(asked, machine, action, method, as_json)


def _status(asked: Client, machine: str, as_json: bool) -> int:
    from evenkeel.cli import output
    from evenkeel.lab.pages.words import duration

    found = asked.get(f"/machines/{machine}/power")
    if as_json:
        output.emit_json(found)
    else:
        boot = f", boot {found['boot_id'][:8]}, up for {duration(found['uptime_ns'])}" if found["boot_id"] else ""
        output.out().print(f"{found['machine']} is {found['power']}{boot}")
        for said in found["said"]:
            lies = "; the machine answers, so that is wrong" if said["method"] in found["lies"] else ""
            detail = f": {said['detail']}" if said["detail"] else ""
            output.out().print(f"  {said['method']} ({said['driver']}) says {said['reading']}{detail}{lies}")
    return int(found["power"] == "unknown" or bool(found["lies"]))


def _switch(asked: Client, machine: str, action: str, method: str | None, as_json: bool) -> int:
    from evenkeel.cli import output

    event = asked.post(f"/machines/{machine}/power", {"action": action, "method": method})
    shown = 0
    while True:
        if not as_json:
            for attempt in event["tried"][shown:]:
                output.note(f"{attempt['method']} {attempt['outcome']}: {attempt['detail']}")
        shown = len(event["tried"])
        if event["result"] != "running":
            break
        event = asked.get(f"/power/events/{event['id']}", wait_ns=10 * 10**9)
    if as_json:
        output.emit_json(event)
    elif event["result"] == "done":
        output.out().print(f"{event['machine']}: {action} is proved: {event['verified_by']}")
    elif event["result"] == "unknown":
        output.out().print(f"{event['machine']}: {action} was commanded, and nobody can say whether it happened")
    else:
        output.out().print(
            f"{event['machine']}: {action} failed{': ' if event['verified_by'] else ''}{event['verified_by']}"
        )
    return int(event["result"] != "done")


def _log(asked: Client, machine: str, as_json: bool) -> int:
    from evenkeel.cli import output
    from evenkeel.lab.pages.words import duration, moment

    found = asked.get(f"/machines/{machine}/power/events", limit=50)
    if as_json:
        output.emit_json(found)
        return 0
    rows = [
        (
            moment(event["at_ns"]),
            event["action"],
            event["actor"],
            event["result"],
            duration(event["took_ns"]),
            ", ".join(f"{attempt['method']} {attempt['outcome']}" for attempt in event["tried"])
            or event["verified_by"],
        )
        for event in found["items"]
    ]
    if rows:
        output.out().print(output.table(("when (UTC)", "what", "by", "result", "took", "attempts"), rows))
    else:
        output.note(f"nobody switched {machine} yet")
    return 0


# -- endpoints ------------------------------------------------------------------------------------------------------


def endpoints(machine: Machine, lab: At = None, as_json: Json = False) -> int:
    """List how a machine is reached.

    evenkeel lab endpoint list host1
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        found = asked.get(f"/machines/{machine}/endpoints")
    if as_json:
        output.emit_json(found)
        return 0
    rows = [
        (
            str(one["id"]),
            one["kind"],
            one["driver"],
            one["address"],
            one["secret"] or "",
            " ".join(f"{key}={value}" for key, value in one["options"].items()),
        )
        for one in found
    ]
    output.out().print(output.table(("id", "kind", "driver", "address", "secret", "options"), rows))
    return 0


def set_endpoint(
    machine: Machine,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="bmc, pdu or console.")],
    driver: Annotated[
        str,
        typer.Argument(
            metavar="DRIVER",
            help="bmc: redfish, ipmi; pdu: pdu, labgrid; console: ipmi, unix, tty, telnet, tcp, ssh, virtual.",
        ),
    ],
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST[:PORT], a URL or a path, by the driver.")],
    secret: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of user and password.", show_default=False)
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the driver.")] = None,
    lab: At = None,
    as_json: Json = False,
) -> int:
    """Say how a machine is reached; replaces what had the same kind and address.

    evenkeel lab endpoint set host1 bmc redfish https://10.0.3.7 --secret bmc-prg --option verify=false
    """
    import json

    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect

    options: dict[str, Any] = {}
    for one in option or []:
        name, equals, value = one.partition("=")
        if not equals:
            raise WrongInput(f"{one!r} is no option", hint="--option NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    wanted = {"kind": kind, "driver": driver, "address": address, "secret": secret, "options": options}
    with connect(lab) as asked:
        found = asked.post(f"/machines/{machine}/endpoints", wanted)
    tell(found, f"{machine} has {kind} {driver} {address}", as_json)
    return 0


def remove_endpoint(
    machine: Machine,
    number: Annotated[int, typer.Argument(metavar="ID", help="As `endpoint list` shows it.")],
    lab: At = None,
) -> int:
    """Forget how a machine is reached.

    evenkeel lab endpoint remove host1 3
    """
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        asked.send("DELETE", f"/machines/{machine}/endpoints/{number}")
    return 0


# -- secrets --------------------------------------------------------------------------------------------------------


def secrets(lab: At = None, as_json: Json = False) -> int:
    """List the names of secrets, who set them, and which machines use them.

    evenkeel lab secret list
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.pages.words import moment

    with connect(lab) as asked:
        found = asked.get("/secrets")
    if as_json:
        output.emit_json(found)
        return 0
    rows = [(one["name"], one["set_by"], moment(one["set_ns"]), ", ".join(one["used_by"])) for one in found]
    output.out().print(output.table(("name", "set by", "when (UTC)", "used by"), rows))
    return 0


def set_secret(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What endpoints call it.")],
    user: Annotated[str, typer.Option(metavar="USER", help="To log in as.")] = "",
    lab: At = None,
) -> int:
    """Set a user and a password: asks for it, or reads one line of stdin when that is no terminal.

    evenkeel lab secret set bmc-prg --user admin
    """
    import getpass
    import sys

    from evenkeel.lab.client import connect

    password = getpass.getpass(f"password of {user or name}: ") if sys.stdin.isatty() else sys.stdin.readline()
    with connect(lab) as asked:
        asked.send("PUT", f"/secrets/{name}", {"user": user, "password": password.rstrip("\n")})
    return 0


def remove_secret(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a secret that no endpoint uses.")], lab: At = None
) -> int:
    """Forget a secret.

    evenkeel lab secret remove bmc
    """
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        asked.send("DELETE", f"/secrets/{name}")
    return 0


def rotate(lab: At = None, as_json: Json = False) -> int:
    """Seal all secrets with a new key, and forget the old one.  Do it when a copy of the key file went astray.

    evenkeel lab secret rotate
    """
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import several

    with connect(lab) as asked:
        found = asked.post("/secrets/rotate")
    tell(found, f"{several(found['sealed'], 'secret')} sealed anew", as_json)
    return 0
