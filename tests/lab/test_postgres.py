"""A team's database: a real PostgreSQL from Debian, with one active service, one that stands by, and what ends each."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from evenkeel.errors import EvenkeelError
from evenkeel.lab import backup, events, migrate, people
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import metadata
from evenkeel.lab.settings import Settings
from evenkeel.lab.store import LostHold, Store, create
from tests.lab.postgres import marks, running
from tests.lab.service import Running, up

ROOT = with_roles("root", ["admin"], via="socket")
ANN = with_roles("ann", ["user"])

pytestmark = marks


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[], str]]:
    """A server of its own; calling it gives the URL of a new, empty database."""
    with running("-c", "fsync=off") as made:
        yield made.database


def test_the_migration_makes_the_same_tables(server: Callable[[], str]) -> None:
    with Store(server()) as store:
        assert migrate.migrate(store) is None
        assert migrate.migrate(store) == migrate.known()[-1]
        with store.read() as connection:
            found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
        assert [one for one in found if "alembic_version" not in str(one)] == []
    with Store(server()) as store:
        create(store)
        with store.engine.begin() as connection:
            connection.execute(text("DROP INDEX uq_claim_machine_held"))
        with store.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata), "a difference is seen"


def test_two_claims_on_one_machine_are_impossible(server: Callable[[], str]) -> None:
    with Store(server()) as store:
        migrate.migrate(store)
        row = "INSERT INTO claim (kind, state, holder, predicate, machine_id, reason, requested_ns, not_before_ns) "
        row += "VALUES ('reservation', 'active', 'ann', 'x', 'm', 'x', 1, 1)"
        machine = "INSERT INTO machine (id, name, state, state_since_ns, identity, policy, registered_ns) "
        machine += "VALUES ('m', 'm', 'ready', 1, '{}', '{}', 1)"
        store.write(lambda connection: connection.execute(text(machine)) and None)
        store.write(lambda connection: connection.execute(text(row)) and None)
        with pytest.raises(Exception, match="uq_claim_machine_held"):
            store.write(lambda connection: connection.execute(text(row)) and None)


def test_whoever_loses_the_connection_writes_no_more(server: Callable[[], str]) -> None:
    url = server()
    with Store(url) as first, Store(url) as second:
        migrate.migrate(first)
        assert first.try_hold("first") and first.try_hold("first")
        assert not second.try_hold("second")
        assert second.holder() == "first"
        first.check_hold()
        with second.engine.begin() as connection:
            found = connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'first'")
            )
            assert found.scalar() is True
        assert second.try_hold("second") and second.holder() == "second"
        with pytest.raises(LostHold):
            first.check_hold()
        with pytest.raises(LostHold):
            first.write(lambda connection: first.event(connection, "x", "x", "x", "x"))
        assert second.write(lambda connection: second.event(connection, "x", "x", "x", "x")) == 1


def post(running: Running, name: str) -> None:
    with running.client() as client:
        client.post("/people", {"name": name, "roles": ["user"]})


def test_one_is_active_the_other_stands_by_and_takes_over(server: Callable[[], str], tmp_path: Path) -> None:
    url = server()
    with up(tmp_path / "a", "--database", url) as first:
        post(first, "one")
        with up(tmp_path / "b", "--database", url) as second:
            assert "another service is active (lab http://127.0.0.1:" in second.told.read_text()
            with second.client() as client:
                assert client.get("/people/one")["name"] == "one", "it answers readers"
                found = client.get("/service")
                assert not found["active"] and found["holder"] == f"lab {first.url}"
                with pytest.raises(EvenkeelError, match="stands by"):
                    post(second, "two")
            first.end(signal.SIGKILL)
            end = time.monotonic() + 20
            while "this one is active now" not in second.told.read_text():
                assert time.monotonic() < end, second.told.read_text()
                time.sleep(0.05)
            end = time.monotonic() + 20
            while True:
                try:
                    post(second, "two")
                    break
                except EvenkeelError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            with second.client() as client:
                assert {one["name"] for one in client.pages("/people")} >= {"one", "two"}


_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'lab http%'"


def test_a_service_whose_connection_was_cut_gets_the_right_to_write_back(
    server: Callable[[], str], tmp_path: Path
) -> None:
    url = server()
    with up(tmp_path / "a", "--database", url) as running, Store(url) as other:
        with other.engine.begin() as connection:
            assert connection.execute(text(_CUT)).scalar() is True
        running.says("and the right to write with it; asking for it again")
        running.says("going on")
        post(running, "afterwards")
        assert other.holder() == f"lab {running.url}" and not other.try_hold("other")
        assert running.end() == 0, running.told.read_text()
        assert "Traceback" not in running.told.read_text()


def test_a_service_whose_place_was_taken_meanwhile_ends_and_says_why(server: Callable[[], str], tmp_path: Path) -> None:
    url = server()
    with up(tmp_path / "a", "--database", url) as running, Store(url) as other:
        with other.engine.begin() as connection:
            assert connection.execute(text(_CUT)).scalar() is True
        end = time.monotonic() + 5
        while not other.try_hold("other"):
            assert time.monotonic() < end
        assert running.process.wait(30) == 1
        assert "the right to write with it: other has it now" in running.said()
        assert "Traceback" not in running.said().rpartition("error: ")[2]


def test_backup_and_restore(server: Callable[[], str], tmp_path: Path) -> None:
    chosen, folder = Settings(database=server()), tmp_path / "a"
    folder.mkdir()
    assert chosen.database is not None
    with Store(chosen.database) as store:
        migrate.migrate(store)
        people.add_service(Lab(folder, store), ROOT, "ci", roles=["user"])
    backup.backup(folder, chosen, tmp_path / "x.tar")
    other = Settings(database=server())
    assert other.database is not None
    backup.restore(tmp_path / "b", other, tmp_path / "x.tar")
    with Store(other.database) as store:
        lab = Lab(tmp_path / "b", store)
        assert people.principal(lab, ROOT, "ci").kind == "service"
        assert events.last_seq(lab) == 1
        assert migrate.migrate(store) == migrate.known()[-1]
        people.add_service(lab, Actor("root", ROOT.scopes), "ci2", roles=["user"])
    with pytest.raises(EvenkeelError, match="pg_restore failed"):
        backup.restore(tmp_path / "c", other, tmp_path / "x.tar")
    with pytest.raises(EvenkeelError):
        backup.restore(tmp_path / "d", Settings(), tmp_path / "x.tar")
