"""What NetBox and the lab exchange, on a team's database: the same tables, written by another dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import log, push, undo
from evenkeel.lab.store import Store, create
from tests.lab.conftest import Clock
from tests.lab.test_netbox import ANN, FACTS, Both, both
from tests.lab.test_postgres import pytestmark, server

__all__ = ["both", "pytestmark", "server"]


@pytest.fixture
def lab(server: Callable[[], str], tmp_path: Path, clock: Clock) -> Iterator[Lab]:
    with Store(server(), clock=clock, steady=clock.steady) as store:
        create(store)
        yield Lab(tmp_path, store)


def test_import_circle_of_names_undo_push_and_undo_of_that(both: Both) -> None:
    numbers = [both.imported(f"host{n}") for n in range(3)]
    for n, number in enumerate(numbers):
        both.stand.set("dcim/devices", number, name=f"host{(n + 1) % 3}")
    ids = [both.machine(f"host{n}").id for n in range(3)]
    assert both.full().counts == {"read": 3, "taken": 3}
    assert [both.machine(f"host{(n + 1) % 3}").id for n in range(3)] == ids
    assert both.full().counts == {"read": 3}
    both.stand.set("dcim/devices", numbers[0], name="alone")
    both.full()
    undo.undo(both.lab, ANN, log.changes(both.lab, ANN).items[0].id, netbox=both.box)
    assert both.machine("host1").id == ids[0]
    both.facts("host1", **FACTS)
    run = push.push(both.lab, ANN, "host1", netbox=both.box)
    assert run.counts == {"written": 5}
    for change in log.changes(both.lab, ANN, run=run.id).items:
        undo.undo(both.lab, ANN, change.id, netbox=both.box)
    assert both.stand.shown(numbers[0])["serial"] == ""
