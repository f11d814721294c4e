"""`evenkeel lab backup` and `restore`: the state of a lab in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli.lab_options import Json, tell
from evenkeel.cli.lab_service import Database, Folder, SettingsFile

File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command(name="backup")(backup)
    app.command(name="restore")(restore)


def backup(
    file: File,
    folder: Folder = None,
    settings_file: SettingsFile = None,
    database: Database = None,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Also the keys that open the passwords in it; keep it locked away.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the state of the lab on this machine to a file; it may run meanwhile.

    Keep secrets.key of its folder in another place: without it no password in the backup can be read.

    evenkeel lab backup lab-2026-11-29.tar
    """
    from evenkeel.cli import output
    from evenkeel.cli.lab_service import settled
    from evenkeel.lab import backup as backups

    where, chosen = settled(folder, settings_file, database=database)
    with output.progress(f"backing up {where}"):
        made = backups.backup(where, chosen, file, keys=with_keys)
    if not with_keys and (where / "secrets.key").exists():
        output.note(f"without its key: keep {where / 'secrets.key'} in another place")
    _tell(file, made.model_dump(), f"{file}: {len(made.files)} files, read back and compared", as_json)


def restore(
    file: File,
    folder: Folder = None,
    settings_file: SettingsFile = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Put a backup in place, where no lab is yet. Nothing is changed unless all of it is right.

    evenkeel lab restore lab-2026-11-29.tar
    """
    from evenkeel.cli import output
    from evenkeel.cli.lab_service import settled
    from evenkeel.lab import backup as backups

    where, chosen = settled(folder, settings_file, database=database)
    with output.progress(f"restoring {file}"):
        made = backups.restore(where, chosen, file)
    up = "evenkeel lab up" + (f" --folder {where}" if folder else "")
    _tell(file, made.model_dump(), f"{where}: {len(made.files)} files restored; `{up}` starts it", as_json)


def _tell(file: Path, made: dict[str, object], text: str, as_json: bool) -> None:
    tell({"file": str(file), "manifest": made}, text, as_json)
