"""The three-way compare by itself, and whole histories of edits, syncs, pushes, undos and crashes (hypothesis)."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from evenkeel.errors import EvenkeelError
from evenkeel.lab import schema
from evenkeel.lab.actor import Conflict, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import imports, log, push, settings, sync, undo
from evenkeel.lab.netbox.client import NetBox
from evenkeel.lab.netbox.compare import Act, Base, Owner, Value, into_lab, into_netbox, plain
from evenkeel.lab.netbox.fields import body_of, mac, observed, table
from tests.lab.conftest import Clock, a_lab
from tests.lab.netbox_stand_in import V2, Stand

ANN = with_roles("ann", ["maintainer"])
VALUES: list[Value] = [None, "a", "b", "c"]
BASES = [None, *map(Base, VALUES)]
CASES = list(itertools.product(Owner, BASES, VALUES, VALUES))


# -- one field ----------------------------------------------------------------------------------------------------


def test_every_case_is_safe() -> None:
    for owner, base, netbox, lab in CASES:
        agreed = base.value if base else None
        taken, written = into_lab(owner, base, netbox, lab), into_netbox(owner, base, netbox, lab)
        case = (owner, base, netbox, lab, taken, written)
        assert (taken.act is Act.SAME) == (written.act is Act.SAME) == (netbox == lab), case
        if taken.act is Act.TAKE:
            # The lab's value goes only where NetBox owns the field, or where the lab had nothing; an edit is named.
            assert owner is Owner.NETBOX or lab is None, case
            assert taken.conflict or lab is None or lab == agreed, case
        if written.act is Act.WRITE:
            # NetBox's value goes only where it is what both agreed upon.
            assert lab is not None and netbox == agreed, case
        # What both changed is a conflict, whatever comes of it.
        if base is not None and netbox != lab and netbox != agreed and lab != agreed:
            assert taken.conflict, case


def test_a_second_look_finds_nothing_more_to_do() -> None:
    for owner, base, netbox, lab in CASES:
        if into_lab(owner, base, netbox, lab).act is Act.TAKE:
            assert into_lab(owner, Base(netbox), netbox, netbox).act is Act.SAME
        if into_netbox(owner, base, netbox, lab, named=True).act is Act.WRITE:
            assert into_netbox(owner, Base(lab), lab, lab).act is Act.SAME


def test_naming_a_field_overwrites_and_says_what() -> None:
    for owner, base, netbox, lab in CASES:
        outcome = into_netbox(owner, base, netbox, lab, named=True)
        if netbox != lab and lab is not None:
            assert outcome.act is Act.WRITE
            assert bool(outcome.conflict) == (netbox != (base.value if base else None))


def test_a_machine_keeps_its_name_when_netbox_has_none() -> None:
    assert into_lab(Owner.NETBOX, Base("a"), None, "a", required=True).act is Act.HOLD


@pytest.mark.parametrize(
    ("raw", "value"),
    [("", None), ([], None), (["b", "a", "b"], ["a", "b"]), (0, 0), (2.0, 2), (2.5, "2.5"), (True, "true"), ("x", "x")],
)
def test_one_form_for_each_value(raw: object, value: Value) -> None:
    assert plain(raw) == value


def test_a_patch_holds_one_field_only() -> None:
    fields = {field.name: field for field in table({}, {})}
    assert body_of(fields["serial"], None) == {"serial": ""}
    assert body_of(fields["platform"], "Debian") == {"platform": {"name": "Debian"}}
    assert body_of(fields["platform"], None) == {"platform": None}
    assert body_of(fields["owner"], "ann") == {"custom_fields": {"lab_owner": "ann"}}


def test_without_facts_nothing_was_observed() -> None:
    assert set(observed({}, {}).values()) == {None}
    assert mac("0200.0000.00ab") == "02:00:00:00:00:AB"


# -- whole histories ----------------------------------------------------------------------------------------------


class World:
    """Two machines in a lab and in NetBox; both sides are edited, and every edit is remembered."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.stand = lab, Stand()
        self.sites = {slug: self.stand.add("dcim/sites", name=slug, slug=slug) for slug in "abc"}
        self.numbers = [self.stand.device(f"host{n}", site=self.sites["a"], serial="") for n in range(2)]
        (lab.folder / "token").write_text(V2)
        (lab.folder / settings.FILE).write_text(f"url: http://netbox\ntoken: file:{lab.folder}/token\n")
        self.box = NetBox("http://netbox", V2, transport=self.stand.transport())
        imports.import_devices(lab, ANN, self.numbers, netbox=self.box)
        self.edits: list[tuple[str, int, str, Value]] = []

    def row(self, which: int) -> Any:
        machines = schema.machine
        with self.lab.store.read() as connection:
            return connection.execute(select(machines).where(machines.c.netbox_id == self.numbers[which])).one()

    def in_lab(self, which: int, field: str) -> Value:
        return plain(getattr(self.row(which), field))

    def in_netbox(self, which: int, field: str) -> Value:
        shown = self.stand.shown(self.numbers[which])
        return plain(shown["site"]["slug"] if field == "site" else shown["custom_fields"][f"lab_{field}"])

    def edit_lab(self, which: int, field: str, value: str) -> None:
        machines = schema.machine
        where = machines.c.netbox_id == self.numbers[which]
        self.lab.store.write(lambda c: c.execute(update(machines).where(where).values({field: value})))
        self.edits.append(("lab", which, field, value))

    def edit_netbox(self, which: int, field: str, value: str) -> None:
        values: dict[str, Any] = {"site": self.sites[value]} if field == "site" else {}
        self.stand.set("dcim/devices", self.numbers[which], **values or {"custom_fields": {f"lab_{field}": value}})
        self.edits.append(("netbox", which, field, value))

    def undo_newest(self) -> None:
        for change in log.changes(self.lab, ANN).items:
            if change.undone_by is None and change.state == "done":
                try:
                    undo.undo(self.lab, ANN, change.id, netbox=self.box)
                except Conflict:
                    return
                return

    def state(self) -> list[tuple[Value, Value]]:
        return [
            (self.in_lab(which, field), self.in_netbox(which, field))
            for which in range(2)
            for field in ("site", "owner", "team")
        ]

    def lost(self) -> list[str]:
        """Last edits of a field that neither stand where they were made nor are in the log as overwritten."""
        newest = {(side, which, field): value for side, which, field, value in self.edits}
        logged = {
            (change.side, change.machine, change.field, change.old)
            for change in log.changes(self.lab, ANN, limit=1000).items
            if change.state == "done"
        }
        found = []
        for (side, which, field), value in newest.items():
            stands = self.in_lab(which, field) if side == "lab" else self.in_netbox(which, field)
            if stands != value and (side, self.row(which).name, field, value) not in logged:
                found.append(f"{value} of {side}: {field} of host{which}")
        return found


@contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder, a_lab(Path(folder), Clock()) as lab:
        yield World(lab)


_EDIT = st.tuples(
    st.sampled_from(["lab", "netbox"]),
    st.integers(0, 1),
    st.sampled_from(["site", "owner", "team"]),
    st.sampled_from("abc"),
)
_STEP = st.one_of(
    _EDIT,
    _EDIT,
    st.tuples(st.just("sync")),
    st.tuples(st.just("push"), st.integers(0, 1), st.sampled_from(["", "site", "owner"])),
    st.tuples(st.just("undo")),
)
_QUIET: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
_FEW = hypothesis_settings(max_examples=8, derandomize=True, **_QUIET)
_KILLS = hypothesis_settings(max_examples=4, derandomize=True, **_QUIET)
_MANY = hypothesis_settings(max_examples=100, **_QUIET)


def _do(there: World, step: tuple[Any, ...]) -> None:
    if step[0] == "sync":
        sync.sync(there.lab, ANN, netbox=there.box)
    elif step[0] == "push":
        push.push(there.lab, ANN, there.row(step[1]).name, named=[step[2]] if step[2] else [], netbox=there.box)
    elif step[0] == "undo":
        there.undo_newest()
    elif step[0] == "lab":
        there.edit_lab(*step[1:])
    else:
        there.edit_netbox(*step[1:])


def _nothing_is_lost(steps: list[tuple[Any, ...]]) -> None:
    with world() as there:
        for step in steps:
            _do(there, step)
            assert there.lost() == []


@_FEW
@given(st.lists(_STEP, min_size=2, max_size=12))
@example([("lab", 0, "site", "b"), ("netbox", 0, "site", "c"), ("sync",)])
@example([("netbox", 0, "owner", "a"), ("lab", 0, "owner", "b"), ("push", 0, "owner")])
def test_no_edit_of_either_side_is_lost_without_being_logged(steps: list[tuple[Any, ...]]) -> None:
    _nothing_is_lost(steps)


@pytest.mark.long
@_MANY
@given(st.lists(_STEP, min_size=2, max_size=20))
def test_no_edit_is_lost_in_long_histories(steps: list[tuple[Any, ...]]) -> None:
    _nothing_is_lost(steps)


@_FEW
@given(st.lists(_STEP, min_size=2, max_size=8))
def test_a_sync_after_a_sync_and_a_push_after_a_push_do_nothing(steps: list[tuple[Any, ...]]) -> None:
    with world() as there:
        for step in steps:
            _do(there, step)
        _do(there, ("sync",))
        before, changes = there.state(), len(log.changes(there.lab, ANN, limit=1000).items)
        _do(there, ("sync",))
        assert (there.state(), len(log.changes(there.lab, ANN, limit=1000).items)) == (before, changes)
        _do(there, ("push", 0, ""))
        after, wrote = there.state(), len(there.stand.changes)
        _do(there, ("push", 0, ""))
        assert (there.state(), len(there.stand.changes)) == (after, wrote)


@_FEW
@given(st.lists(_EDIT, min_size=1, max_size=6))
def test_undo_of_all_that_a_sync_took_restores_the_lab(edits: list[tuple[Any, ...]]) -> None:
    with world() as there:
        for edit in edits:
            _do(there, edit)
        before = [lab for lab, _ in there.state()]
        run = sync.sync(there.lab, ANN, netbox=there.box)
        for change in log.changes(there.lab, ANN, run=run.id, limit=1000).items:
            undo.undo(there.lab, ANN, change.id, netbox=there.box)
        assert [lab for lab, _ in there.state()] == before
        sync.sync(there.lab, ANN, netbox=there.box)
        assert [lab for lab, _ in there.state()] == before


class Killed(BaseException):
    """The process was killed at this write."""


@_KILLS
@given(st.lists(_EDIT, min_size=1, max_size=5), st.booleans(), st.booleans())
@example([("netbox", 0, "owner", "a"), ("lab", 0, "owner", "b")], True, True)
def test_killed_at_any_write_and_run_again_it_ends_as_if_it_was_never_killed(
    edits: list[tuple[Any, ...]], pushing: bool, after: bool
) -> None:
    _killed_everywhere(edits, pushing, after)


@pytest.mark.long
@_MANY
@given(st.lists(_EDIT, min_size=1, max_size=8), st.booleans(), st.booleans())
def test_killed_at_any_write_in_many_histories(edits: list[tuple[Any, ...]], pushing: bool, after: bool) -> None:
    _killed_everywhere(edits, pushing, after)


def _killed_everywhere(edits: list[tuple[Any, ...]], pushing: bool, after: bool) -> None:
    """``after``: killed when the write was done and before anybody knew."""

    def run(there: World) -> None:
        _do(there, ("push", 0, "owner") if pushing else ("sync",))

    with world() as there:
        for edit in edits:
            _do(there, edit)
        run(there)
        wanted = there.state()
    for at in range(1, 30):
        with world() as there:
            for edit in edits:
                _do(there, edit)
            if not _kill_at(there, at, after, run):
                break
            run(there)
            assert there.state() == wanted, f"killed at write {at}"
            assert there.lost() == []
    else:
        raise AssertionError("it never came to its end")


def _kill_at(there: World, at: int, after: bool, run: Any) -> bool:
    """Run until write number ``at``, to the database or to NetBox; whether it came so far."""
    count = itertools.count(1)
    dead = False

    def counted(real: Any) -> Any:
        def wrapper(*given: Any, **named: Any) -> Any:
            nonlocal dead
            if dead:
                raise Killed  # a dead process writes nothing more
            if next(count) == at:
                dead = True
                if after:
                    real(*given, **named)
                raise Killed
            return real(*given, **named)

        return wrapper

    parts = [(there.lab.store, "write"), (there.box, "patch"), (there.box, "create")]
    real = [(part, name, getattr(part, name)) for part, name in parts]
    for part, name, function in real:
        setattr(part, name, counted(function))
    try:
        run(there)
    except Killed:
        log._LIVE.clear()
        return True
    finally:
        for part, name, function in real:
            setattr(part, name, function)
    return False


def test_the_property_tests_can_fail() -> None:
    """A sync that overwrites without logging is what they are there to find."""
    with world() as there:
        there.edit_lab(0, "site", "b")
        there.lab.store.write(lambda c: c.execute(update(schema.machine).values(site="c")))
        assert there.lost() == ["b of lab: site of host0"]
    with pytest.raises(EvenkeelError), world() as there:
        there.stand.version = "4.5.0"
        _do(there, ("push", 0, ""))
