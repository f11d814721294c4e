"""`evenkeel lab up`, `down`, `status`, `open`: the service itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli.lab_options import At, Json, tell

if TYPE_CHECKING:
    from evenkeel.lab.settings import Settings

Folder = Annotated[
    str | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        envvar="EVENKEEL_LAB",
        help="Where the lab's state lies; if left out, the usual place on this machine.",
        show_default=False,
    ),
]

Listen = Annotated[
    str | None,
    typer.Option(
        "--listen", metavar="ADDRESS:PORT", help="Of the pages; 127.0.0.1:8787 if left out.", show_default=False
    ),
]
Database = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="PostgreSQL of a team; SQLite if left out.", show_default=False),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="Settings file; DIR/lab.yaml if there is one.", show_default=False),
]


def folder_here(folder: str | None) -> Path:
    """Of a lab on this machine: by the option, or by EVENKEEL_LAB as all commands read it.  Raises WrongInput."""
    from evenkeel.lab import place

    return place.folder_of(folder) if folder else place.default_folder().absolute()


def settled(
    folder: str | None, settings_file: Path | None, *, listen: str | None = None, database: str | None = None
) -> tuple[Path, Settings]:
    """Folder and settings, by the options, the settings file, and what holds without both."""
    from evenkeel.lab import settings

    where = folder_here(folder)
    found = settings_file or settings.find(where)
    chosen = settings.read(found) if found else settings.Settings()
    given = {key: value for key, value in (("listen", listen), ("database", database)) if value is not None}
    return where, settings.with_given(chosen, given)


def register(app: typer.Typer) -> None:
    app.command(name="up")(up)
    app.command(name="down")(down)
    app.command(name="status")(status)
    app.command(name="open")(open_)


def up(
    folder: Folder = None,
    listen: Listen = None,
    database: Database = None,
    settings_file: SettingsFile = None,
    print_unit: Annotated[
        bool, typer.Option("--print-unit", help="Print a unit file for systemd, start nothing.")
    ] = False,
) -> None:
    """Start the lab here: service, database, local agent, pages. Ctrl-C ends it, and loses nothing.

    evenkeel lab up
    evenkeel lab up --listen 0.0.0.0:8787 --database postgresql://lab@db.example.org/lab
    """
    import os
    import shlex

    from evenkeel.cli import output
    from evenkeel.lab import place, service

    where, chosen = settled(folder, settings_file, listen=listen, database=database)
    if print_unit:
        from evenkeel.lab import unit

        options = (
            ("--folder", where if folder else place.SYSTEM_FOLDER),
            ("--settings", settings_file and settings_file.absolute()),
            ("--listen", listen),
            ("--database", database),
        )
        words = [word for name, value in options if value for word in (name, str(value))]
        output.out().print(unit.unit(words), end="", soft_wrap=True)
        return

    def ready(started: service.Up) -> None:
        output.note(f"the lab is up: {started.url}  (state in {where}; Ctrl-C ends it)")
        usual = (place.SYSTEM_FOLDER, place.default_folder().absolute())
        if where not in usual and not os.environ.get("EVENKEEL_LAB"):
            output.note(f"other commands find it by: export EVENKEEL_LAB={shlex.quote(str(where))}")
        if chosen.oidc is None and not output.to_journal():
            output.note(f"log in by: {started.own_link()}")  # who reads a journal is not always who may do all here

    service.up(where, chosen, say=output.note, ready=ready)
    output.note("the lab is down")


def down(folder: Folder = None, as_json: Json = False) -> None:
    """End the lab's service on this machine.

    evenkeel lab down
    """
    from evenkeel.lab import folder as folders

    where = folder_here(folder)
    ended = folders.down(where)
    tell({"folder": str(where), "ended": ended}, "the lab is down" if ended else f"no lab runs in {where}", as_json)


def status(at: At = None, as_json: Json = False) -> None:
    """Say whether the lab runs, for how long, and how it stands.

    evenkeel lab status
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import duration

    with connect(at) as lab:
        found = lab.get("/service")
    if as_json:
        output.emit_json(found)
        return
    rows = [
        ("pages", found["url"]),
        ("version", found["version"]),
        ("database", found["database"]),
        ("role", "active" if found["active"] else f"standby; active is {found['holder'] or 'nobody'}"),
        ("up for", duration(found["up_ns"])),
        ("runs", ", ".join(found["parts"]) or "pages only"),
    ]
    output.out().print(output.table(("", ""), rows))


def open_(at: At = None, as_json: Json = False) -> None:
    """Print a link that logs you in to the pages, in a browser; it is good once, for ten minutes.

    evenkeel lab open
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        url = lab.get("/service")["url"]
        link = url + lab.post("/login/link")["path"]
    tell({"url": link}, link, as_json)
