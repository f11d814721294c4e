"""The live I/O thread of a guest with a disk against its plan: its CPUs, its policy, one missing, one too many.

What is seen is made from the plan in the form of the recordings, whose guests have no disk; the real one is in
tests/virtual/test_verify.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import HostPlan
from evenkeel.documents.site import Disk
from evenkeel.plan import make_plan
from evenkeel.verify.guests import check
from evenkeel.verify.observe import GuestSeen, Observation
from tests.plan.factories import GIB, guest, make_facts, make_site
from tests.verify import test_cells

#: Four housekeeping CPUs: one core of each node, so that there is a narrower place than the planned one.
FACTS = make_facts(cores=5, node_bytes=8 * GIB)


def planned(goal: str, **wish: Any) -> HostPlan:
    site = make_site({"plc": guest(goal, disks=(Disk(path="/srv/plc.raw"),), **wish)})
    (host,) = make_plan(site, {"cell": FACTS}).hosts
    return host


HOST = planned("realtime")
(PLC,) = HOST.guests
HOME = PLC.emulator_cpus
CPU = min(PLC.vcpus[1].cpus)
IO = "IO iothread1"
Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def io_thread(name: str = IO, **update: Any) -> dict[str, Any]:
    return {**test_cells.thread(name, HOME), "tid": 700, "kind": "iothread", **update}


def judge(change: Change = lambda threads: threads, host: HostPlan = HOST) -> dict[str, Check]:
    (plc,) = host.guests
    seen = test_cells.healthy(plc)
    threads = [*(seen.threads or ()), io_thread(cpus=format_cpus(plc.emulator_cpus), seen=[min(plc.emulator_cpus)])]
    observation = Observation(facts=FACTS, guests={"plc": replace(seen, threads=change(threads))}, intruders=[])
    return {one.id: one for one in check(host, observation) if one.subject == "thread"}


def failed(found: dict[str, Check]) -> set[str]:
    return {one.id for one in found.values() if one.status == "failed"}


def put(**update: Any) -> Change:
    return lambda threads: [{**one, **update} if one["name"] == IO else one for one in threads]


def gone(threads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in threads if one["name"] != IO]


def one_more(**update: Any) -> Change:
    return lambda threads: [*threads, io_thread("IO iothread2", tid=701, **update)]


#: Check, what is broken, and what the finding says.
BREAKS: list[tuple[str, Change, str]] = [
    ("V-THREAD-IO:plc:iothread1", put(cpus=str(CPU), seen=[CPU]), f"other:0 on {CPU}"),
    ("V-THREAD-IO:plc:iothread1", put(cpus=f"{format_cpus(HOME)},{CPU}"), f"other:0 on {format_cpus(HOME)},{CPU}"),
    ("V-THREAD-IO:plc:iothread1", put(cpus=str(min(HOME))), f"other:0 on {min(HOME)}"),
    ("V-THREAD-IO:plc:iothread1", put(seen=[min(HOME), CPU]), f"ran on isolated {CPU}"),
    ("V-THREAD-IO:plc:iothread1", put(policy="fifo", priority=1), f"fifo:1 on {format_cpus(HOME)}"),
    ("V-THREAD-IO:plc:iothread1", put(policy="idle"), f"idle:0 on {format_cpus(HOME)}"),
    ("V-THREAD-IO:plc:iothread1", gone, "no such thread"),
    ("V-THREAD-EMULATOR:plc", one_more(cpus=str(CPU)), f"IO iothread2 allowed on {CPU}"),
]


def test_an_io_thread_in_its_place_passes_with_what_was_seen() -> None:
    found = judge()
    assert failed(found) == set()
    one = found["V-THREAD-IO:plc:iothread1"]
    assert (one.status, one.expected, one.observed) == ("passed", *2 * (f"other:0 on {format_cpus(HOME)}",))
    assert one.evidence[0].where == f"thread 700 {IO}" and HOST.ledger.housekeeping > HOME


@pytest.mark.parametrize(("identifier", "change", "told"), BREAKS)
def test_each_break_is_found_and_nothing_else(identifier: str, change: Change, told: str) -> None:
    found = judge(change)
    assert failed(found) == {identifier}
    assert told in found[identifier].observed


def test_where_a_sleeping_thread_ran_long_ago_is_not_held_against_it() -> None:
    """Put back on its CPUs, it stays where it slept until the disk works again."""
    found = judge(put(seen=[CPU]))
    assert failed(found) == set() and f"ran on {CPU}" in found["V-THREAD-IO:plc:iothread1"].evidence[0].value


def test_an_io_thread_that_nobody_asked_for_is_one_of_qemus_own() -> None:
    assert failed(judge(one_more())) == set()
    plain = planned("flexible")
    found = judge(host=plain)
    assert "V-THREAD-IO:plc:iothread1" not in found and failed(found) == set()
    assert "2 threads" in found["V-THREAD-EMULATOR:plc"].observed


def test_a_balanced_guest_has_its_io_thread_compared_too() -> None:
    host = planned("balanced", boot=None)
    assert judge(host=host)["V-THREAD-IO:plc:iothread1"].status == "passed"
    assert failed(judge(put(policy="fifo", priority=2), host)) == {"V-THREAD-IO:plc:iothread1"}


def test_of_a_guest_that_is_off_it_is_not_checked() -> None:
    observation = Observation(facts=FACTS, guests={"plc": GuestSeen("shut off", defined=PLC.xml)}, intruders=[])
    found = {one.id: one for one in check(HOST, observation)}
    assert found["V-THREAD-IO:plc:iothread1"].status == "not_checked"
