"""A team's database: a real PostgreSQL from Debian, with one active service, one that stands by, and what ends each."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from evenkeel.documents.result import Warned
from evenkeel.errors import EvenkeelError
from evenkeel.lab import backup, events, migrate, people, protocol, records, results, submissions
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import metadata
from evenkeel.lab.settings import Settings
from evenkeel.lab.step import graph_of
from evenkeel.lab.store import LostHold, Store, create
from tests.lab.conftest import Clock
from tests.lab.postgres import marks, running
from tests.lab.service import Running, up
from tests.lab.test_artifacts import Work
from tests.lab.test_dispatcher import Player
from tests.lab.test_dispatcher import run as play
from tests.lab.test_store import one_moment
from tests.waiting import until

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


def test_what_is_old_is_removed_and_numbers_of_events_go_on(
    server: Callable[[], str], tmp_path: Path, clock: Clock
) -> None:
    with Store(server(), clock=clock, steady=clock.steady) as store:
        migrate.migrate(store)
        lab = Lab(tmp_path, store)
        work = Work(lab)
        warned = Warned(signature="a" * 16, tool="cc", file="a.c", text="a", times=1)
        old, good = work.done({}, "failed", warnings=(warned,)), work.done({}, warnings=(warned,))
        for number in (old, good):
            lab.logs.write(number, 0, b"said")
        last = [store.write(lambda c: store.event(c, "ann", "login", "principal", "ann")) for _ in range(3)][-1]
        clock.move(401 * 86_400)
        assert records.remove(lab) == {"logs": 1, "log_size": 4, "results": 1, "events": last - 1}
        assert records.remove(lab) == {"logs": 0, "log_size": 0, "results": 0, "events": 0}
        shown = results.show(lab, ANN, old)
        assert (shown.result, shown.removed_ns) == (None, lab.now())
        assert results.show(lab, ANN, good).result is not None and lab.logs.size(good) == 4
        assert store.write(lambda c: store.event(c, "ann", "login", "principal", "ann")) > last


def test_a_reader_sees_one_moment(server: Callable[[], str]) -> None:
    """A submission that came while the dispatcher read steps, and then their edges, ended it."""
    with Store(server()) as store:
        create(store)
        one_moment(store)


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
                text("SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE application_name = 'first'")
            )
            assert found.scalar() is True
        assert second.try_hold("second") and second.holder() == "second"
        with pytest.raises(LostHold):
            first.check_hold()
        with pytest.raises(LostHold):
            first.write(lambda connection: first.event(connection, "x", "x", "x", "x"))
        assert second.write(lambda connection: second.event(connection, "x", "x", "x", "x")) == 1


@contextmanager
def two_services(url: str, clock: Clock, folder: Path) -> Iterator[tuple[Lab, Lab]]:
    """The active one, and one that stands by, on the clock of the test."""
    with Store(url, clock=clock, steady=clock.steady) as one, Store(url, clock=clock, steady=clock.steady) as two:
        migrate.migrate(one)
        assert one.try_hold("first") and not two.try_hold("second")
        yield Lab(folder / "one", one), Lab(folder / "two", two)


def cut(lab: Lab) -> None:
    """The server finds the connection of the active service dead; the service does not know."""
    with lab.store.engine.begin() as connection:
        query = "SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE application_name = 'first'"
        assert connection.execute(text(query)).scalar() is True


def test_a_service_that_may_have_lost_the_lock_renews_no_lease(
    server: Callable[[], str], clock: Clock, tmp_path: Path
) -> None:
    """Else an agent that still reaches it would go on with what the next service gives to others."""
    with two_services(server(), clock, tmp_path) as (first, second):
        dispatcher = Dispatcher(first)
        far = Player(dispatcher, "far")
        far.hello(local=False)

        def answers() -> int:
            before = len(far.line.said)
            dispatcher.hear(far.line, protocol.Beat(number=1))
            play(dispatcher)
            return len(far.line.said) - before

        for _ in range(10):
            clock.move(10)
            first.store.check_hold()
            assert answers() == 1
        cut(second)
        clock.move(4)
        assert answers() == 1, "it was the active one less than 5 s ago, and who takes over waits 60"
        assert second.store.try_hold("second")
        clock.move(2)
        assert answers() == 0
        clock.jump(-3600)
        assert answers() == 0


@pytest.mark.parametrize("seconds", [0.0, 61.0, -61.0])
def test_who_takes_over_waits_a_whole_lease_for_the_first_services_own_agent_too(
    server: Callable[[], str], clock: Clock, tmp_path: Path, seconds: float
) -> None:
    """Its processes may be on another machine, where nobody here can end them."""
    with two_services(server(), clock, tmp_path) as (first, second):
        agent = Player(Dispatcher(first), "local")
        assert agent.hello(local=True).lease_ns == protocol.LEASE_NS
        graph = graph_of({"name": "test", "steps": {"one": {"step": {"kind": "one", "command": ["true"]}}}})
        sent = submissions.submit(first, ROOT, graph)
        play(agent.dispatcher)
        assert len(agent.starts()) == 1
        cut(second)
        assert second.store.try_hold("second")
        clock.jump(seconds)
        clock.steady_ns = 1  # of another machine
        other = Player(Dispatcher(second), "other")
        other.hello(local=True)
        for _ in range(2):
            clock.move(29)
            other.dispatcher.hear(other.line, protocol.Beat())
            play(other.dispatcher)
        assert submissions.show(second, ROOT, sent.id).steps == {"running": 1}
        assert other.starts() == []
        clock.move(3)
        play(other.dispatcher)
        assert len(other.starts()) == 1


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
            second.says("this one is active now")

            def takes() -> bool:
                with contextlib.suppress(EvenkeelError):
                    post(second, "two")
                    return True
                return False

            until(takes)
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
        until(lambda: other.try_hold("other"))
        assert running.process.wait(120) == 1
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
