"""The migration makes the tables that the program uses, and refuses what it does not know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import text

from evenkeel.lab import migrate
from evenkeel.lab.store import Store, create, sqlite_url


def tables(store: Store) -> dict[str, set[str]]:
    """Name of each table and index -> what its SQL says, column by column, without the order and the white space."""
    with store.read() as connection:
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
    found = {}
    for name, sql in rows:
        if name not in ("alembic_version", "sqlite_sequence"):
            flat = re.sub(r"[()\s]+", " ", sql).strip()  # the two write brackets differently
            found[name] = {part.strip() for part in flat.split(", ")}
    return found


def test_the_migration_makes_the_tables_of_the_schema(tmp_path: Path) -> None:
    with Store(sqlite_url(tmp_path / "migrated.db")) as migrated, Store(sqlite_url(tmp_path / "made.db")) as made:
        assert migrate.migrate(migrated) is None
        create(made)
        assert tables(migrated) == tables(made), "run `python -m tools.lab_migration`"
        assert migrate.migrate(migrated) == migrate.known()[-1]
        with migrated.engine.begin() as connection:
            connection.execute(text("DROP INDEX uq_claim_machine_held"))
        assert tables(migrated) != tables(made)


def test_a_newer_database_and_one_of_others_are_left_alone(tmp_path: Path) -> None:
    with Store(sqlite_url(tmp_path / "newer.db")) as store:
        migrate.migrate(store)
        with store.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
        with pytest.raises(migrate.WrongSchema, match="from-the-future"):
            migrate.migrate(store)
    with Store(sqlite_url(tmp_path / "others.db")) as store:
        with store.engine.begin() as connection:
            connection.execute(text("CREATE TABLE recipes (id INTEGER)"))
        with pytest.raises(migrate.WrongSchema, match="not a lab's"):
            migrate.migrate(store)
