"""The migration makes the tables that the program uses, refuses what it does not know, and carries rows over.

While there is one step of it, a second one stands beside this test (``later/``): what a later version could need.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from sqlalchemy import inspect, text

from evenkeel.lab import backup, claims, events, machines, migrate
from evenkeel.lab.claims import Request
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import HOUR
from evenkeel.lab.machines import Policy
from evenkeel.lab.settings import Settings
from evenkeel.lab.store import Store, create, sqlite_url
from tests.lab import postgres
from tests.lab.pool import ANN, ROOT, add
from tests.lab.test_postgres import server

__all__ = ["server"]
LATER = Path(__file__).parent / "later"


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


# -- rows are carried over ------------------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Called: this evenkeel is a later one, with one more step, which fails when it is told so."""
    now = migrate._config

    def begin(fail: str = "") -> None:
        def config() -> Config:
            made = now()
            made.set_main_option("version_locations", os.pathsep.join((f"{migrate._MIGRATIONS}/versions", str(LATER))))
            made.attributes["fail"] = fail
            return made

        monkeypatch.setattr(migrate, "_config", config)

    return begin


def fill(store: Store, folder: Path) -> Lab:
    """A lab of the first version with rows that name each other."""
    assert migrate.migrate(store) is None
    lab = Lab(folder, store)
    for number in range(20):
        add(lab, f"host{number:02}", owner="ann" if number % 2 else None, policy=Policy(tags=("fast",)))
    claims.request(lab, ANN, Request(predicate="host01", reason="x", length_ns=HOUR))
    return lab


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Each table with its rows."""
    found = {}
    with store.read() as connection:
        for name in inspect(connection).get_table_names():
            rows = connection.execute(text(f'SELECT * FROM "{name}"')).all()
            found[name] = sorted((tuple(row) for row in rows), key=repr)
    return found


def carried_over(store: Store, lab: Lab, later: Callable[..., None]) -> None:
    before = everything(store)
    assert before["claim"] and before["fact"] and before["snapshot"]
    later()
    assert migrate.known() == ["0001", "0002"]
    assert migrate.migrate(store) == "0001"
    after = everything(store)
    assert [name for name in before if name not in ("machine", "alembic_version") and before[name] != after[name]] == []
    assert len(after["loan"]) == 10 and len(after["machine"]) == 20
    with store.read() as connection:
        lent = connection.execute(text("SELECT count(*) FROM machine WHERE state = 'lent' AND lent_to = 'ann'"))
        assert lent.scalar() == 10
    assert migrate.migrate(store) == "0002"  # again: nothing
    assert everything(store) == after
    # What the program does with the rows goes on, and what the database guards is guarded still.
    assert machines.get(lab, ROOT, "host00").policy.tags == ("fast",)
    last = events.last_seq(lab)
    add(lab, "host99")
    assert events.last_seq(lab) > last
    with pytest.raises(Exception, match=r"(?i)foreign key"), store.engine.begin() as connection:
        connection.execute(text("DELETE FROM machine WHERE name = 'host01'"))
    with pytest.raises(Exception, match=r"(?i)ck_machine_state"), store.engine.begin() as connection:
        connection.execute(text("UPDATE machine SET state = 'lost'"))


def taken_back(store: Store, later: Callable[..., None], fail: str, said: str) -> None:
    before = everything(store)
    later(fail)
    with pytest.raises(migrate.WrongSchema, match=f"from version 0001 to 0002: .*{said}") as raised:
        migrate.migrate(store)
    assert "nothing of it was changed" in (raised.value.hint or "")
    assert everything(store) == before
    with store.read() as connection:
        assert migrate.version_of(connection) == "0001"
        assert "lent_to" not in {column["name"] for column in inspect(connection).get_columns("machine")}
    with pytest.raises(Exception, match=r"(?i)foreign key"), store.engine.begin() as connection:
        connection.execute(text("DELETE FROM machine"))


def test_a_later_step_carries_rows_over(tmp_path: Path, later: Callable[..., None]) -> None:
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        carried_over(store, fill(store, tmp_path), later)


@pytest.mark.parametrize(
    ("fail", "said"), [("sql", "UNIQUE constraint failed"), ("dangling", "names a row of machine")]
)
def test_a_step_that_fails_leaves_all_as_it_was_and_says_why(
    tmp_path: Path, later: Callable[..., None], fail: str, said: str
) -> None:
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        fill(store, tmp_path)
        taken_back(store, later, fail, said)
        carried_over(store, Lab(tmp_path, store), later)  # when the cause is gone, it goes on


def test_a_backup_of_an_earlier_version_is_the_way_back_and_forth(tmp_path: Path, later: Callable[..., None]) -> None:
    file, there = tmp_path / "b.tar", tmp_path / "there"
    here = tmp_path / "here"
    here.mkdir()
    with Store(sqlite_url(here / "lab.db")) as store:
        fill(store, here)
        before = everything(store)
        backup.backup(here, Settings(), file)
        later()
        migrate.migrate(store)
    backup.restore(there, Settings(), file)
    with Store(sqlite_url(there / "lab.db")) as store:
        assert everything(store) == before
        carried_over(store, Lab(there, store), later)


@pytest.fixture
def team(server: Callable[[], str]) -> Iterator[Store]:
    with Store(server()) as store:
        yield store


@pytest.mark.long
@pytest.mark.skipif(postgres.BIN is None, reason="no PostgreSQL (Debian package postgresql)")
def test_a_later_step_on_postgresql(team: Store, tmp_path: Path, later: Callable[..., None]) -> None:
    lab = fill(team, tmp_path)
    taken_back(team, later, "sql", "duplicate key")
    taken_back(team, later, "dangling", "violates foreign key")
    carried_over(team, lab, later)
