"""`evenkeel lab webhook ...`: other programs that the lab tells of its events."""

from __future__ import annotations

from typing import Annotated

import typer

from evenkeel.cli.lab_options import At, Json

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a webhook.")]


def register(app: typer.Typer) -> None:
    made = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="""Other programs that the lab tells of its events, in order and signed.

  evenkeel lab webhook add chat https://chat.example.org/hook --type machine.state
  evenkeel lab webhook list
""",
    )
    made.command(name="list")(listing)
    made.command(name="add")(add)
    for action in (test, pause, resume, remove):
        made.command(name=action.__name__)(action)
    app.add_typer(made, name="webhook")


def listing(at: At = None, as_json: Json = False) -> None:
    """List them, with how they do.

    evenkeel lab webhook list --json
    """
    from evenkeel.cli.output import emit_json, out, table
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    with connect(at) as lab:
        found = lab.get("/webhooks")
    if as_json:
        emit_json(found)
        return
    if not found:
        out().print("none")
        return
    rows = [
        (w["name"], w["url"], " ".join(w["types"]), "failing" if w["error"] and w["state"] == "active" else w["state"],
         moment(w["told_ns"]) or "never", w["error"]) for w in found
    ]  # fmt: skip
    out().print(table(("name", "address", "events", "state", "last told", "error"), rows))


def add(
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to send POST requests to.")],
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Of events, as in claim.*; repeat it. All if left out."),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Tell an address of events from now on; prints its secret, this once.

    evenkeel lab webhook add chat https://chat.example.org/hook --type machine.state --type 'claim.*'
    """
    from evenkeel.cli.output import emit_json, note, out
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        made = lab.post("/webhooks", {"name": name, "url": url, "types": type_ or ["*"]})
    if as_json:
        emit_json(made)
        return
    note("its secret, shown this once; the header Evenkeel-Signature is made with it:")
    out().print(made["secret"])


def test(name: Name, at: At = None, as_json: Json = False) -> None:
    """Send a message without events, now.

    evenkeel lab webhook test chat
    """
    _act(name, "test", "it answered", at, as_json)


def pause(name: Name, at: At = None, as_json: Json = False) -> None:
    """Tell it nothing for now; it loses nothing.

    evenkeel lab webhook pause chat
    """
    _act(name, "pause", "paused", at, as_json)


def resume(name: Name, at: At = None, as_json: Json = False) -> None:
    """Go on where it was, at once; also after it was given up.

    evenkeel lab webhook resume chat
    """
    _act(name, "resume", "active", at, as_json)


def remove(name: Name, at: At = None) -> None:
    """Forget it.

    evenkeel lab webhook remove chat
    """
    from urllib.parse import quote

    from evenkeel.cli.output import note
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        lab.send("DELETE", f"/webhooks/{quote(name, safe='')}")
    note(f"{name}: removed")


def _act(name: str, action: str, done: str, at: str | None, as_json: bool) -> None:
    from urllib.parse import quote

    from evenkeel.cli.output import emit_json, out
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.post(f"/webhooks/{quote(name, safe='')}/{action}")
    if as_json:
        emit_json(found)
    else:
        out().print(f"{name}: {done}")
