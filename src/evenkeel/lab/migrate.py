"""Bring the tables of a database to what this version needs.  Forwards only: a backup is the way back.
A step that fails takes back all of them.

The steps are in ``lab/migrations/versions``.  While nothing was released there is one of them, made from
:mod:`evenkeel.lab.schema` by ``python -m tools.lab_migration``; a test compares both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from evenkeel.errors import EvenkeelError
from evenkeel.lab.store import Store, away

_MIGRATIONS = Path(__file__).parent / "migrations"


class WrongSchema(EvenkeelError):
    """The database was written by another version, or by something else."""


def migrate(store: Store) -> str | None:
    """Run what is missing, all of it in one transaction.  Returns the version it had before, None for an empty one.

    Raises WrongSchema when the database is newer than this program, is not one of ours, or holds what a step cannot
    carry over; Away when it does not answer.  Then it is as it was before.
    """
    with store.engine.connect() as connection, _no_references(connection):
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
            _check_references(connection)
            connection.commit()
        except (CommandError, SQLAlchemyError, _Dangling) as error:
            connection.rollback()
            if isinstance(error, DBAPIError) and (told := away(error)):
                raise told from error
            said = error.orig if isinstance(error, DBAPIError) else error
            raise WrongSchema(
                f"the database cannot be migrated from version {before or 'none'} to {known()[-1]}: {said}",
                hint="nothing of it was changed: the evenkeel that wrote it can go on with it",
            ) from error
        return before


class _Dangling(Exception):
    """A row names another one that is not there."""


@contextlib.contextmanager
def _no_references(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew, and to drop the old one is to delete the rows that others name.  It
    can be told not to look only outside of a transaction (https://sqlite.org/lang_altertable.html, section 7)."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection
    driver.cursor().execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        connection.rollback()  # what was committed stays
        driver.cursor().execute("PRAGMA foreign_keys=ON")


def _check_references(connection: Connection) -> None:
    """What SQLite was told not to look at.  Raises _Dangling."""
    if connection.dialect.name == "sqlite":
        wrong = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if wrong is not None:
            raise _Dangling(f"row {wrong[1]} of table {wrong[0]} names a row of {wrong[2]} that is not there")


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
