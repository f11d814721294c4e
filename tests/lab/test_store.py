"""One writer, many at once: what is acknowledged is there, what failed is not, and events are in order."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, func, insert, select, text

from evenkeel.errors import WrongInput
from evenkeel.lab import schema
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Store, StoreClosed


def _search(connection: Connection, name: str) -> None:
    row = {"owner": "ann", "name": name, "predicate": "mem>=1GiB", "shared": False}
    connection.execute(insert(schema.saved_search).values(row))


def test_many_changes_at_once_are_all_there_and_a_failed_one_leaves_nothing(lab: Lab) -> None:
    def change(number: int) -> int:
        def within(connection: Connection) -> int:
            _search(connection, str(number))
            lab.store.event(connection, "ann", "search.saved", "search", number)
            if number % 10 == 0:
                raise ValueError(number)
            return number

        return lab.store.write(within)

    with ThreadPoolExecutor(16) as pool:
        results = [pool.submit(change, number) for number in range(200)]
    assert sum(result.exception() is None for result in results) == 180
    with lab.store.read() as connection:
        kept = {int(name) for name in connection.scalars(select(schema.saved_search.c.name))}
        events = list(connection.execute(select(schema.event.c.seq, schema.event.c.object_id)))
    assert kept == {number for number in range(200) if number % 10}
    assert {int(event.object_id) for event in events} == kept
    assert sorted(event.seq for event in events) == list(range(1, 181))


def test_what_was_acknowledged_is_on_disk(lab: Lab) -> None:
    lab.store.write(lambda connection: _search(connection, "one"))
    with lab.store.read() as connection:
        assert connection.scalar(text("PRAGMA synchronous")) == 2
    assert sqlite3.connect(lab.folder / "lab.db").execute("select count(*) from saved_search").fetchone() == (1,)


def test_a_reader_sees_one_moment(lab: Lab) -> None:
    one_moment(lab.store)


def one_moment(store: Store) -> None:
    """For every database: what is committed while somebody reads is not half of it there."""
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.event)) == 0
        store.write(lambda c: store.event(c, "ann", "search.saved", "search", 1))
        assert connection.scalar(select(func.count()).select_from(schema.event)) == 0
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.event)) == 1


def test_listeners_hear_of_events_after_the_commit(lab: Lab) -> None:
    heard: list[int] = []
    end = lab.store.listen(heard.append)
    seq = lab.store.write(lambda connection: lab.store.event(connection, "ann", "x", "search", 1))
    lab.store.write(lambda connection: _search(connection, "silent"))
    end()
    lab.store.write(lambda connection: lab.store.event(connection, "ann", "x", "search", 2))
    assert heard == [seq]


def test_two_claims_that_hold_one_machine_are_refused_by_the_database(lab: Lab) -> None:
    machine = {"id": "m", "name": "m", "state": "ready", "state_since_ns": 0, "identity": {}, "policy": {}}
    claim: dict[str, object] = {"requested_ns": 0, "not_before_ns": 0}
    claim |= {"kind": "reservation", "holder": "ann", "predicate": "name:m", "machine_id": "m", "reason": "test"}
    lab.store.write(lambda c: c.execute(insert(schema.machine).values(machine | {"registered_ns": 0})))
    lab.store.write(lambda c: c.execute(insert(schema.claim).values(claim | {"state": "active"})))
    lab.store.write(lambda c: c.execute(insert(schema.claim).values(claim | {"state": "ended"})))
    lab.store.write(lambda c: c.execute(insert(schema.claim).values(claim | {"state": "waiting"})))
    with pytest.raises(Exception, match="UNIQUE"):
        lab.store.write(lambda c: c.execute(insert(schema.claim).values(claim | {"state": "preparing"})))


def test_a_closed_store_says_so_and_writes_what_was_asked_before(lab: Lab) -> None:
    future = lab.store.write_soon(lambda connection: _search(connection, "last"))
    lab.store.close()
    assert future.exception() is None
    with pytest.raises(StoreClosed):
        lab.store.write(lambda connection: None)


@pytest.mark.parametrize("url", ["mysql://somewhere/lab", "lab.db"])
def test_another_database_is_wrong_input(url: str) -> None:
    with pytest.raises(WrongInput) as raised:
        Store(url)
    assert "postgresql://" in (raised.value.hint or "")
