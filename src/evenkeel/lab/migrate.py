"""Bring the tables of a database to what this version needs.  Forwards only: a backup is the way back.

The steps are in ``lab/migrations/versions``.  While nothing was released there is one of them, made from
:mod:`evenkeel.lab.schema` by ``python -m tools.lab_migration``; a test compares both.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect

from evenkeel.errors import EvenkeelError
from evenkeel.lab.store import Store

_MIGRATIONS = Path(__file__).parent / "migrations"


class WrongSchema(EvenkeelError):
    """The database was written by another version, or by something else."""


def migrate(store: Store) -> str | None:
    """Run what is missing, each step in a transaction.  Returns the version it had before, None for an empty one.

    Raises WrongSchema when the database is newer than this program, or is not one of ours.
    """
    with store.engine.connect() as connection:
        before = version_of(connection)
        if before is None and inspect(connection).get_table_names():
            raise WrongSchema("the database has tables already, and they are not a lab's", hint="name an empty one")
        config = _config()
        if before is not None and before not in known():
            raise WrongSchema(
                f"the database has version {before}, which this evenkeel does not know",
                hint="it was written by a newer one: use that, or restore a backup",
            )
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise WrongSchema(f"the database cannot be migrated: {error}") from None
        connection.commit()
        return before


def version_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def known() -> list[str]:
    """All versions, the oldest first."""
    return [step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
