"""`evenkeel lab login`, `logout`, `me`, `people`, `program`, `token ...`, `events`: who may do what, and who did."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json, tell

_token = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Tokens for programs: each with a name, an end, and no more rights than it needs.

  evenkeel lab token make nightly --may submit --for 720h
  evenkeel lab token list
  evenkeel lab token revoke 3
""",
)


def register(app: typer.Typer) -> None:
    app.command(name="login")(login)
    app.command(name="logout")(logout)
    app.command(name="me")(me)
    app.command(name="people")(people)
    app.command(name="program")(program)
    app.command(name="events")(events)
    app.add_typer(_token, name="token")


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the lab, as in https://lab.example.org.")],
    as_json: Json = False,
) -> None:
    """Log in to a lab elsewhere: shows a code, and waits until you let it in, in a browser.

    evenkeel lab login https://lab.example.org
    """
    import socket
    import time

    from evenkeel.cli import output
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import Client, keep_token

    if not url.startswith(("http://", "https://")):
        raise WrongInput(f"{url!r} is no URL", hint="on the lab's own machine no log-in is needed")
    with Client(url) as lab:
        begun = lab.post("/login/device", {"name": socket.gethostname()})
        output.note(f"open {begun['verification_uri_complete']}")
        output.note(f"and let this in if it shows the code {begun['user_code']}")
        while (answer := lab.post("/login/device/token", {"device_code": begun["device_code"]}))["state"] == "pending":
            time.sleep(begun["interval_ns"] / 1e9)
    path = keep_token(url, answer["secret"])
    tell(
        {"url": url, "principal": answer["principal"], "expires_ns": answer["expires_ns"]},
        f"logged in to {url} as {answer['principal']}; the token is in {path}",
        as_json,
    )


def logout(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the lab.")],
    as_json: Json = False,
) -> None:
    """Forget the token for a lab elsewhere.

    evenkeel lab logout https://lab.example.org
    """
    from evenkeel.lab.client import keep_token, tokens

    known = url.rstrip("/") in tokens()
    keep_token(url, None)
    tell(
        {"url": url, "forgotten": known},
        f"forgot the token for {url}" if known else f"there was no token for {url}",
        as_json,
    )


def me(at: At = None, as_json: Json = False) -> None:
    """Say who the lab takes you for, and what you may do.

    evenkeel lab me
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.get("/me")
    if as_json:
        output.emit_json(found)
    else:
        output.out().print(f"{found['name']} (by {found['via']})")
        output.out().print(f"may: {', '.join(found['scopes'])}")


def people(at: At = None, as_json: Json = False) -> None:
    """List all who were ever here, and the programs.

    evenkeel lab people
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = list(lab.pages("/people"))
    if as_json:
        output.emit_json(found)
        return
    if not found:
        output.note("nobody logged in yet; users of the lab's machine need no account")
        return
    rows = [
        (one["name"], one["kind"], ", ".join(one["roles"]), ", ".join(one["teams"]), one["issuer"] or "this machine")
        for one in found
    ]
    output.out().print(output.table(("name", "kind", "roles", "teams", "known by"), rows))


def program(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the program, as in ci-kernel.")],
    roles: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="viewer, user, maintainer, agent or admin; user, if left out."),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Add a program that acts in its own name, so that tokens can be made for it. For admins.

    evenkeel lab program ci-kernel --role user
    evenkeel lab token make nightly --of ci-kernel --may submit
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        made = lab.post("/people", {"name": name, "roles": roles or ["user"]})
    tell(made, f"{name} may {', '.join(made['scopes'])}; `evenkeel lab token make NAME --of {name}`", as_json)


def events(
    at: At = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Only what this one did.")] = None,
    type_: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only this, as in 'claim.*'.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="How many.")] = 30,
    as_json: Json = False,
) -> None:
    """Show what was done, by whom and when; the newest last.

    evenkeel lab events --by ann
    evenkeel lab events --follow --type 'step.*'
    """
    import json

    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import details, moment, subject

    def show(one: dict[str, Any]) -> None:
        about = subject(one["object"], one["object_id"], one["data"])
        data = ", ".join(f"{key}: {said}" for key, said in details(one["data"]) if key != "name")
        line = f"{moment(one['at_ns'])}  {one['actor']}  {one['type']}  {about}  {data}"
        output.out().print(line.rstrip(), soft_wrap=True)

    with connect(at) as lab:
        found = lab.get("/log", by=by, type=type_, limit=limit)["items"][::-1]
        if as_json and not follow:
            output.emit_json(found)
            return
        for one in found:
            show(one) if not as_json else print(json.dumps(one))
        if not found and not follow:
            output.note("nothing like that was done yet")
        if follow:
            after = found[-1]["seq"] if found else None
            for line in lab.lines("/events", after=after, type=type_):
                if not line.startswith("data: "):
                    continue
                one = json.loads(line[6:])
                if "seq" not in one:
                    output.note(f"events up to number {one['to']} were removed: they were older than the lab keeps")
                elif not by or one["actor"] == by:
                    show(one) if not as_json else print(line[6:], flush=True)


@_token.command()
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the program that will have it.")],
    may: Annotated[list[str], typer.Option("--may", metavar="SCOPE", help="What it may do; more than once.")],
    length: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long it lives.")] = "720h",
    of: Annotated[str | None, typer.Option("--of", metavar="SERVICE", help="For a program with a name.")] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Make a token; it is printed this once.

    evenkeel lab token make nightly --may read --may submit --for 720h
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        made = lab.post("/tokens", {"name": name, "scopes": may, "length_ns": length, "principal": of})
    if as_json:
        output.emit_json(made)
    else:
        output.note(f"token {made['token']['id']} ({name}) of {made['token']['principal']}; it is not shown again:")
        output.out().print(made["secret"], soft_wrap=True)


@_token.command(name="list")
def list_(
    of: Annotated[str | None, typer.Option("--of", metavar="NAME", help="Of somebody else.")] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List your tokens, the newest first.

    evenkeel lab token list
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    with connect(at) as lab:
        found = lab.get("/tokens", principal=of)
    if as_json:
        output.emit_json(found)
        return
    if not found:
        output.note("no tokens; `evenkeel lab token make NAME --may read` makes one")
        return
    rows = [
        (
            str(one["id"]),
            one["name"],
            ", ".join(one["scopes"]),
            "revoked" if one["revoked_ns"] else moment(one["expires_ns"]),
            moment(one["used_ns"]) or "never",
        )
        for one in found
    ]
    output.out().print(output.table(("id", "name", "may", "until", "last used"), rows, right=("id",)))


@_token.command()
def revoke(
    number: Annotated[int, typer.Argument(metavar="ID", help="As `evenkeel lab token list` shows it.")],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Refuse a token from now on.

    evenkeel lab token revoke 3
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.send("DELETE", f"/tokens/{number}")
    tell(found, f"revoked {found['name']}", as_json)
