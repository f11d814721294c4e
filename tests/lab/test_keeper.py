"""The keeper: machines are prepared before they are offered, what fails is suspect, and a restart begins again."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from evenkeel.documents.facts import Facts
from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab import claims, flat, machines, media, schema, touch
from evenkeel.lab.claims import Request
from evenkeel.lab.keeper import Keeper
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Policy
from evenkeel.lab.prepare import ByAddress, Job, Prepared, Say, WrongRequest, blame, lost
from evenkeel.machines.virtual.run import disk_full
from tests.lab.conftest import Clock
from tests.lab.emulated import add_endpoint
from tests.lab.pool import ANN, BOB, GIB, ROOT, add, facts, inventory
from tests.waiting import until


class Hardware:
    """Stands for machines: each is as it was registered, unless a test changed it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.changed: dict[str, Facts | None] = {}
        self.dead: set[str] = set()
        self.wrong: Exception | None = None
        self.jobs: list[Job] = []
        self.go = threading.Event()
        self.go.set()

    def prepare(self, job: Job, say: Say) -> Prepared:
        self.jobs.append(job)
        say("installing it anew")
        assert self.go.wait(120)
        if self.wrong is not None:
            raise self.wrong
        if job.name in self.dead:
            raise Unreachable(f"{job.name} does not boot", hint="look at its console")
        last = machines.latest(self.lab, ROOT, job.name)
        return Prepared("boot", True, self.changed.get(job.name, last.facts), last.inventory)


def ask(lab: Lab, predicate: str) -> claims.Claim:
    return claims.request(lab, ANN, Request(predicate=predicate, reason="test", length_ns=3600 * 10**9))


def settle(lab: Lab, keeper: Keeper) -> None:
    """All preparations, in this thread."""
    while True:
        with lab.store.read() as connection:
            rows = list(claims.preparing(connection))
        if not rows:
            return
        for row in rows:
            keeper.prepare(row)


def test_a_machine_is_prepared_then_offered_and_its_facts_are_taken(lab: Lab) -> None:
    add(lab, "host1", address="virtual:host1")
    hardware = Hardware(lab)
    last = machines.latest(lab, ROOT, "host1").facts
    hardware.changed["host1"] = last.model_copy(update={"clocksource": "tsc"})
    got = ask(lab, "host1")
    settle(lab, Keeper(lab, hardware))
    assert claims.get(lab, ANN, got.id).state == "active"
    assert [(job.name, job.address, job.method) for job in hardware.jobs] == [("host1", "virtual:host1", "full")]
    assert machines.facts_of(lab, ANN, "host1")["clocksource"] == ("tsc",)


def test_what_does_not_boot_or_lost_memory_is_suspect_and_the_third_is_given(lab: Lab) -> None:
    for number in (1, 2, 3):
        add(lab, f"host{number}", mem=number * 16 * GIB, address=f"ssh://root@host{number}")
    hardware = Hardware(lab)
    hardware.dead.add("host1")
    mac = machines.get(lab, ROOT, "host2").identity.macs
    hardware.changed["host2"] = facts("host2", mem=16 * GIB, macs=mac)
    got = ask(lab, "host*")
    settle(lab, Keeper(lab, hardware))
    assert claims.get(lab, ANN, got.id).machine == "host3"
    told = {name: machines.get(lab, ANN, name) for name in ("host1", "host2", "host3")}
    assert [told[name].state for name in sorted(told)] == ["suspect", "suspect", "claimed"]
    assert told["host1"].state_reason == "was prepared for ann: host1 does not boot"
    assert told["host2"].state_reason == "was prepared for ann: mem was 32GiB and is 16GiB"
    assert [job.name for job in hardware.jobs] == ["host1", "host2", "host3"]


def test_a_health_check_that_says_no_keeps_a_machine_back(lab: Lab) -> None:
    add(lab, "host1", address="ssh://root@host1")
    got = ask(lab, "host1")
    settle(lab, Keeper(lab, Hardware(lab), {"bmc": lambda lab, machine_id: "does not answer"}))
    assert claims.get(lab, ANN, got.id).state == "waiting"
    assert machines.get(lab, ANN, "host1").state_reason == "was prepared for ann: bmc: does not answer"


def test_the_thread_prepares_ends_and_offers_by_itself(lab: Lab, clock: Clock) -> None:
    add(lab, "host1", address="ssh://root@host1")
    keeper = Keeper(lab, Hardware(lab))
    keeper.start()
    try:
        first = ask(lab, "host1")
        until(lambda: claims.get(lab, ANN, first.id).state == "active")
        second = claims.request(lab, BOB, Request(predicate="host1", reason="test"))
        claims.release(lab, ANN, first.id)
        until(lambda: claims.get(lab, ANN, second.id).state == "active")
    finally:
        keeper.close()


def test_after_a_restart_a_preparation_begins_again(lab: Lab) -> None:
    add(lab, "host1", address="ssh://root@host1")
    slow, hardware = Hardware(lab), Hardware(lab)
    slow.go.clear()
    first = Keeper(lab, slow)
    first.start()
    got = ask(lab, "host1")
    until(lambda: bool(slow.jobs))
    first.close()
    assert claims.get(lab, ANN, got.id).state == "preparing"
    settle(lab, Keeper(lab, hardware))
    assert claims.get(lab, ANN, got.id).state == "active"
    slow.go.set()


def test_a_machine_that_nothing_reaches_is_suspect(lab: Lab) -> None:
    add(lab, "host1", address="virtual:no-such-host")
    ask(lab, "host1")
    settle(lab, Keeper(lab, ByAddress()))
    assert "there is no virtual host 'no-such-host'" in machines.get(lab, ANN, "host1").state_reason


def only(lab: Lab) -> Any:
    """The one claim whose machine is being prepared."""
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
    return row


def test_what_a_holder_boots_is_theirs_and_nothing_is_learnt_of_it(lab: Lab) -> None:
    policy = Policy(netboot="http://images.example.org/host.ipxe", own_boot=True, steps=False)
    add(lab, "host1", address="ssh://root@host1", policy=policy)
    before = machines.latest(lab, ROOT, "host1")
    hardware = Hardware(lab)
    hardware.changed["host1"] = None  # what a system of theirs looks like is not told
    source = {"image": "http://images.example.org/mine.iso"}
    add_endpoint(lab, machines.get(lab, ROOT, "host1").id, "bmc", "redfish", "https://bmc-host1")
    wanted = Request.model_validate({"predicate": "host1", "reason": "test", "boot_source": source})
    got = claims.request(lab, ANN, wanted)
    settle(lab, Keeper(lab, hardware, {"log-in": lambda lab, machine_id: "does not answer"}))
    assert claims.get(lab, ANN, got.id).state == "active"
    (job,) = hardware.jobs
    assert (job.system_of, job.image, job.netboot, job.method) == ("ann", source["image"], None, "full")
    assert machines.latest(lab, ROOT, "host1") == before
    # Whoever is next gets the owner's system, and then its health counts.
    claims.release(lab, ANN, got.id)
    claims.request(lab, BOB, Request(predicate="host1", reason="test"))
    del hardware.changed["host1"]
    settle(lab, Keeper(lab, hardware, {"log-in": lambda lab, machine_id: "does not answer"}))
    assert (hardware.jobs[1].system_of, hardware.jobs[1].netboot) == ("", policy.netboot)
    assert machines.get(lab, ROOT, "host1").state_reason == "was prepared for bob: log-in: does not answer"


def test_its_system_is_its_owner_s_again_when_it_was_installed_and_is_what_it_was(lab: Lab) -> None:
    policy = Policy(netboot="http://images.example.org/host.ipxe", own_boot=True, steps=False)
    host1 = add(lab, "host1", address="ssh://root@host1", policy=policy).id
    lab.store.write(lambda connection: machines.set_system(lab, connection, "lab", host1, "ann"))
    hardware = Hardware(lab)
    hardware.dead.add("host1")
    got = claims.request(lab, BOB, Request(predicate="host1", reason="test"))
    settle(lab, Keeper(lab, hardware))
    assert (machines.get(lab, BOB, "host1").state, machines.get(lab, BOB, "host1").system_of) == ("suspect", "ann")
    hardware.dead.clear()
    machines.mark(lab, ROOT, "host1", "ready")
    keeper = Keeper(lab, hardware)
    keeper.look()
    until(lambda: claims.get(lab, BOB, got.id).state == "active")
    assert machines.get(lab, BOB, "host1").system_of == ""
    told = [(one.type, one.data.get("new")) for one in machines.history(lab, BOB, "host1").items]
    assert [new for kind, new in told if kind == "machine.system"] == ["", "ann"]


def test_the_image_of_a_holder_leaves_the_drive_with_their_claim(
    lab: Lab, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the machine by then, but not while it is prepared for them, which empties it too."""
    policy = Policy(netboot="http://images.example.org/host.ipxe", own_boot=True, steps=False)
    host1 = add(lab, "host1", address="ssh://root@host1", policy=policy).id
    add_endpoint(lab, host1, "bmc", "redfish", "https://bmc-host1")
    image = "http://images.example.org/mine.iso"
    wanted = Request.model_validate({"predicate": "host1", "reason": "test", "boot_source": {"image": image}})
    got = claims.request(lab, ANN, wanted)
    lab.store.write(lambda connection: machines.set_system(lab, connection, "lab", host1, "ann", image))
    tried: list[str] = []

    def empty(lab: Lab, machine: touch.Touched) -> None:
        tried.append(machine.medium)
        if len(tried) == 1:
            raise Unreachable("BMC https://bmc-host1: silent")

    monkeypatch.setattr(media, "empty", empty)
    hardware = Hardware(lab)
    hardware.changed["host1"] = None
    keeper = Keeper(lab, hardware)
    assert done_with(lab) == []  # it is prepared
    settle(lab, keeper)
    keeper.look()
    assert (claims.get(lab, ANN, got.id).state, done_with(lab), tried) == ("active", [], [])
    mend = claims.request(lab, ROOT, Request(predicate="host1", reason="test", kind="maintenance"))
    claims.release(lab, ANN, got.id)
    assert (claims.get(lab, ROOT, mend.id).state, done_with(lab)) == ("active", [host1])
    keeper.look()
    until(lambda: not keeper._running)
    keeper.look()  # it was tried a moment ago
    assert (tried, machines.get(lab, ROOT, "host1").medium) == ([image], image)
    claims.release(lab, ROOT, mend.id)
    clock.move(601)
    keeper.look()
    until(lambda: not keeper._running)
    assert (tried, machines.get(lab, ROOT, "host1").medium) == ([image] * 2, "")
    assert (machines.get(lab, ROOT, "host1").system_of, machines.get(lab, ROOT, "host1").state) == ("ann", "ready")


def done_with(lab: Lab) -> list[str]:
    with lab.store.read() as connection:
        plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN SELECT id FROM machine WHERE machine.medium != ''").all()
        assert "ix_machine_medium" in str(plan)  # asked at each look
        return list(claims.done_with(connection))


def test_an_owner_who_no_longer_allows_it_is_heard_before_it_is_booted(lab: Lab) -> None:
    policy = Policy(netboot="http://images.example.org/host.ipxe", own_boot=True, steps=False)
    add(lab, "host1", address="ssh://root@host1", policy=policy)
    source = {"image": "http://images.example.org/mine.iso"}
    add_endpoint(lab, machines.get(lab, ROOT, "host1").id, "bmc", "redfish", "https://bmc-host1")
    wanted = Request.model_validate({"predicate": "host1", "reason": "test", "boot_source": source})
    got = claims.request(lab, ANN, wanted)
    machines.edit(lab, ROOT, "host1", machines.Edit(policy=policy.model_copy(update={"own_boot": False})))
    hardware = Hardware(lab)
    settle(lab, Keeper(lab, hardware))
    assert hardware.jobs == []
    ended = claims.get(lab, ANN, got.id)
    assert (ended.state, ended.end_cause.partition(" (")[0]) == (
        "cancelled",
        "host1 may not be booted from a source of ann's own",
    )


def test_another_one_is_booted_where_an_owner_no_longer_allows_it(lab: Lab) -> None:
    policy = Policy(netboot="http://images.example.org/host.ipxe", own_boot=True, steps=False)
    for number in (1, 2):
        made = add(lab, f"host{number}", mem=number * GIB, address=f"ssh://root@host{number}", policy=policy)
        add_endpoint(lab, made.id, "bmc", "redfish", f"https://bmc-host{number}")
    source = {"image": "http://images.example.org/mine.iso"}
    wanted = Request.model_validate({"predicate": "host*", "reason": "test", "boot_source": source})
    got = claims.request(lab, ANN, wanted)
    assert got.machine == "host1"
    machines.edit(lab, ROOT, "host1", machines.Edit(policy=policy.model_copy(update={"own_boot": False})))
    hardware = Hardware(lab)
    hardware.changed["host2"] = None
    keeper = Keeper(lab, hardware)
    settle(lab, keeper)
    claims.let_go(lab, ())
    now = claims.get(lab, ANN, got.id)
    assert (now.state, now.machine, machines.get(lab, ROOT, "host1").state) == ("active", "host2", "ready")


@pytest.mark.parametrize("prepare", [None, "full", "none"])
def test_what_its_owner_takes_back_meanwhile_is_no_installation(lab: Lab, prepare: Any) -> None:
    """A reboot is none, so the next one would have the holder's system."""
    policy = Policy(netboot="http://images.example.org/host.ipxe", own_boot=True, steps=False)
    host1 = add(lab, "host1", address="ssh://root@host1", policy=policy).id
    lab.store.write(lambda connection: machines.set_system(lab, connection, "lab", host1, "ann"))
    got = claims.request(lab, BOB, Request(predicate="host1", reason="test"))
    machines.edit(lab, ROOT, "host1", machines.Edit(policy=Policy(prepare=prepare)))
    hardware = Hardware(lab)
    settle(lab, Keeper(lab, hardware))
    assert hardware.jobs == [] and claims.get(lab, BOB, got.id).state == "waiting"
    found = machines.get(lab, ROOT, "host1")
    assert (found.state, found.system_of) == ("suspect", "ann")
    assert found.state_reason.endswith("host1 still has a system that ann booted, and nothing to install it from")


@pytest.mark.parametrize("preparer", [ByAddress, None])
def test_what_cannot_be_had_of_any_machine_ends_the_claim_and_suspects_none(
    lab: Lab, preparer: Callable[[], ByAddress] | None
) -> None:
    """Of a lab that took any such request, before owners had to allow it."""
    for number in (1, 2):
        add(lab, f"host{number}", address=f"ssh://root@host{number}")
    hardware = Hardware(lab)
    hardware.wrong = WrongRequest("no machine boots from that", hint="reserve it without")
    got = ask(lab, "host*")
    lab.store.write(lambda c: c.execute(update(schema.claim).values(boot_source={"image": "x"})))
    keeper = Keeper(lab, preparer() if preparer else hardware)
    settle(lab, keeper)
    ended = claims.get(lab, ANN, got.id)
    assert (ended.state, ended.end_cause.endswith("(hint: reserve it without)")) == ("cancelled", True)
    keeper.look()
    assert [machines.get(lab, ANN, name).state for name in ("host1", "host2")] == ["ready", "ready"]


def test_an_error_of_the_lab_suspects_no_machine_and_it_is_tried_again_later(lab: Lab, clock: Clock) -> None:
    for number in (1, 2):
        add(lab, f"host{number}", address=f"ssh://root@host{number}")
    hardware = Hardware(lab)
    hardware.wrong = OSError(errno.ENOSPC, "No space left on device")
    got = ask(lab, "host*")
    keeper = Keeper(lab, hardware)
    assert keeper.prepare(only(lab)) == "preparing"
    assert [machines.get(lab, ANN, name).state for name in ("host1", "host2")] == ["preparing", "ready"]
    assert claims.history(lab, ANN, got.id)[0].data["what"] == (
        "the lab itself failed, and tries again in 10 s: No space left on device"
    )
    keeper.look()
    assert len(hardware.jobs) == 1  # not yet
    clock.move(10)
    assert keeper.prepare(only(lab)) == "preparing"
    assert "again in 20 s" in claims.history(lab, ANN, got.id)[0].data["what"]
    hardware.wrong = None
    due = keeper.look()
    assert due is not None and due <= lab.now() + 20 * 10**9
    assert len(hardware.jobs) == 2
    clock.move(20)
    keeper.look()
    until(lambda: claims.get(lab, ANN, got.id).state == "active")
    assert claims.get(lab, ANN, got.id).machine == "host1"


class Babbler:
    """A machine whose probe tells what nobody understands."""

    def probe(self) -> Any:
        return contextlib.nullcontext(self)

    def call(self, op: str, **_: object) -> dict[str, Any]:
        return {"boot_id": "1"} if op == "hello" else {"memory_bytes": "much"}

    def close(self) -> None: ...


def test_a_machine_that_tells_nonsense_is_suspect_however_errors_are_told_apart(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lab, "host1", address="ssh://root@host1")
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: Babbler())
    got = ask(lab, "host1")
    settle(lab, Keeper(lab, ByAddress()))
    assert claims.get(lab, ANN, got.id).state == "waiting"
    reason = machines.get(lab, ANN, "host1").state_reason
    assert "was prepared for ann: the probe answers with facts that make no sense (" in reason


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (Unreachable("does not boot"), "machine"),
        (WrongInput("there is no virtual host 'x'"), "machine"),  # registered with a wrong address
        (disk_full("renew virtual host x"), "lab"),
        (OSError(errno.ENOSPC, "full"), "lab"),
        (TypeError("a defect"), "lab"),
    ],
)
def test_whose_fault_it_is(error: Exception, whose: str) -> None:
    assert blame(error) == whose


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"mem.usable": [64 * GIB]}, {"mem.usable": [64 * GIB - GIB]}, []),  # what the kernel keeps for itself
        ({"mem.usable": [64 * GIB]}, {"mem.usable": [128 * GIB]}, []),
        ({"cpu.threads": [64]}, {"cpu.threads": [32]}, ["cpu.threads was 64 and is 32"]),
        ({"disk.count": [2], "disk.size": [1, 2]}, {"disk.count": [1], "disk.size": [2]},
         ["disk.count was 2 and is 1", "disk.size 1 is gone"]),
        ({"mac": ["a", "b"]}, {}, ["mac a, b are gone"]),
        ({"kernel.version": ["6.12"]}, {"kernel.version": ["6.16"]}, []),
        ({}, {"mem.usable": [1]}, []),
    ],
)  # fmt: skip
def test_what_a_machine_lost(before: flat.Flat, after: flat.Flat, told: list[str]) -> None:
    assert lost(before, after) == told


def test_nothing_is_lost_between_two_equal_machines() -> None:
    told = flat.flatten(facts(), inventory())
    assert lost(told, told) == []
