"""Which look an event asks for, what a look changes, and what follows for the checks: on the recorded tuned host."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from evenkeel.documents.findings import Check
from evenkeel.verify.observe import Observation
from evenkeel.watch import picture as look
from evenkeel.watch.catalogue import RIVALS
from evenkeel.watch.drift import Drift, drifts, still_failing
from evenkeel.watch.picture import Picture, Piece
from tests.verify.record import load

PLAN, SEEN = load()
HOST = PLAN.hosts[0]
STARTS: tuple[dict[str, Any], ...] = (
    {"kind": "start", "owners": [], "profile": None},
    {"kind": "link", "name": "ens2", "up": True, "gone": False, "first": True},
    {"kind": "link", "name": "ens3", "up": False, "gone": False, "first": True},
)


def at_start(seen: Observation = SEEN) -> Picture:
    quiet = replace(seen, quiet=None, loaded=None, interrupts={"rows": [], "seconds": 1.0})
    return functools.reduce(look.happened, STARTS, Picture(quiet))


def failed(picture: Picture) -> set[str]:
    return {check.id for check in look.judge(HOST, picture, PLAN.sha256()).failed}


def test_a_healthy_host_has_no_drift_and_every_check_is_made() -> None:
    findings = look.judge(HOST, at_start(), PLAN.sha256())
    assert [check.id for check in findings.checks if check.status != "passed"] == []
    assert {f"W-OWNER:{name}" for name in RIVALS} | {"W-LINK:ens2", "V-LEDGER", "R-RT-1"} <= {
        check.id for check in findings.checks
    }
    assert "W-LINK:ens3" not in {check.id for check in findings.checks}, "it was down from the start"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"kind": "cpu", "cpu": 1, "online": False}, {"V-LEDGER", "V-MACHINE"}),
        ({"kind": "link", "name": "ens2", "up": False, "gone": False}, {"W-LINK:ens2"}),
        ({"kind": "link", "name": "ens2", "up": True, "gone": True}, {"W-LINK:ens2"}),
        ({"kind": "link", "name": "ens3", "up": False, "gone": False}, set()),
        ({"kind": "owner", "name": "irqbalance", "running": True}, {"W-OWNER:irqbalance"}),
        ({"kind": "owner", "name": "thermald", "running": True}, set()),
        ({"kind": "profile", "profile": "powersave", "before": None}, {"W-PROFILE"}),
        (
            {
                "kind": "interrupts",
                "rows": [{"label": "24", "action": "ens2", "kind": "device", "counts": {"5": 3}}],
                "seconds": 1.0,
            },
            {"V-IRQ-COUNT"},
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_what_an_event_says_by_itself_is_judged_at_once(event: dict[str, Any], expected: set[str]) -> None:
    assert failed(look.happened(at_start(), event)) == expected


def test_a_link_that_came_up_later_is_missed_when_it_goes_down() -> None:
    picture = at_start()
    for up, expected in ((True, set()), (False, {"W-LINK:ens3"}), (True, set())):
        picture = look.happened(picture, {"kind": "link", "name": "ens3", "up": up, "gone": False})
        assert failed(picture) == expected


def test_what_changed_while_the_connection_was_lost_is_compared_with_before() -> None:
    picture = at_start()
    picture = look.happened(picture, {"kind": "start", "owners": ["tuned"], "profile": "balanced"})
    again = {"kind": "link", "name": "ens2", "up": False, "gone": False, "first": True}
    assert look.pieces_for(again, HOST) == ()
    assert failed(look.happened(picture, again)) == {"W-LINK:ens2", "W-OWNER:tuned", "W-PROFILE"}


def test_interrupts_that_stopped_are_gone_again() -> None:
    row = {"label": "24", "action": "ens2", "kind": "device", "counts": {"5": 3}}
    picture = look.happened(at_start(), {"kind": "interrupts", "rows": [row], "seconds": 1.0})
    assert failed(picture) == {"V-IRQ-COUNT"}
    assert failed(look.quiet(picture, 10.0)) == set()


# -- looks ------------------------------------------------------------------------------------------------------------


def threads(**changes: Any) -> dict[str, Any]:
    """The threads of plc with something else about vCPU 1."""
    found = [dict(thread) for thread in SEEN.guests["plc"].threads or ()]
    next(thread for thread in found if thread["vcpu"] == 1).update(changes)
    return {"pid": 1, "threads": found}


@pytest.mark.parametrize(
    ("piece", "answer", "expected"),
    [
        (Piece("threads", "plc"), threads(partition="isolated invalid (x)", exclusive=""), {"C-1:plc/vcpu1"}),
        (Piece("threads", "plc"), threads(cpus="0-5"), {"V-THREAD-VCPU:plc:vcpu1"}),
        (
            Piece("threads", "plc"),
            threads(policy="other", priority=0),
            {"V-THREAD-VCPU:plc:vcpu1", "G-3:plc/vcpu1"},
        ),
        (
            Piece("files"),
            {"values": {"/proc/sys/vm/stat_interval": "1"}, "errors": {}},
            {"R-TIM-2:stat_interval"},
        ),
        (
            Piece("files"),
            {"values": {}, "errors": {"/proc/sys/vm/stat_interval": "ENOENT"}},
            {"R-TIM-2:stat_interval"},
        ),
        (
            Piece("units"),
            {"irqbalance.service": {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}},
            {"R-IRQ-4"},
        ),
        (
            Piece("intruders"),
            [{"tid": 9, "pid": 9, "name": "sh", "cpus": "5", "policy": "other"}],
            {"V-THREAD-INTRUDER"},
        ),
        (Piece("kernel threads"), [], {"R-RT-4:ktimers/5", "R-RT-4:ksoftirqd/5", "R-RT-4:irq_work/5"}),
    ],
    ids=lambda value: str(value) if isinstance(value, Piece) else "",
)
def test_a_look_replaces_what_was_known(piece: Piece, answer: Any, expected: set[str]) -> None:
    picture = at_start()
    assert failed(replace(picture, seen=look.took(picture.seen, piece, answer))) == expected


def test_interrupts_that_a_driver_set_anew() -> None:
    picture = at_start()
    rows = [
        {**row.model_dump(mode="json"), **({"affinity": "0-5", "effective": "5"} if row.action == "ens2-rx-0" else {})}
        for row in SEEN.facts.interrupts
    ]
    seen = look.took(picture.seen, Piece("interrupts"), rows)
    assert failed(replace(picture, seen=seen)) == {"R-IRQ-1:ens2-rx-0", "V-IRQ-AFFINITY"}


def test_a_guest_that_ended_is_not_running_and_the_rest_is_not_checked() -> None:
    seen = look.refused(at_start().seen, Piece("threads", "plc"), "no QEMU process of a guest named 'plc'")
    state = {"state": "shut off", "live": None, "defined": SEEN.guests["plc"].defined}
    seen = look.took(seen, Piece("state", "plc"), state)
    findings = look.judge(HOST, Picture(seen, at_start().around), PLAN.sha256())
    assert {check.id for check in findings.failed} == {"V-GUEST-RUNNING:plc"}
    assert "C-1:plc/vcpu1" in {check.id for check in findings.checks if check.status == "not_checked"}


def test_what_the_machine_refuses_to_tell_is_never_a_pass() -> None:
    seen = look.refused(at_start().seen, Piece("intruders"), "no such operation")
    findings = look.judge(HOST, Picture(seen, at_start().around), PLAN.sha256())
    one = next(check for check in findings.checks if check.id == "V-THREAD-INTRUDER")
    assert one.status == "not_checked" and "no such operation" in one.reason
    mended = look.took(seen, Piece("intruders"), [])
    assert failed(Picture(mended, at_start().around)) == set()


def test_every_event_leads_to_a_look_that_the_probe_can_answer() -> None:
    from evenkeel.probe.server import OPERATIONS

    events: list[dict[str, Any]] = [
        {"kind": "cpu", "cpu": 1, "online": True},
        {"kind": "device", "action": "add", "subsystem": "pci", "name": "0000:01:00.0"},
        {"kind": "link", "name": "ens2", "up": True, "gone": False},
        {"kind": "partition", "path": "/sys/fs/cgroup/x", "state": "member"},
        {"kind": "guest", "name": "plc", "what": "definition"},
        {"kind": "guest", "name": "plc", "what": "threads"},
        {"kind": "owner", "name": "tuned", "running": True},
        {"kind": "profile", "profile": "x", "before": None},
        {"kind": "interrupts", "rows": [], "seconds": 1.0},
        {"kind": "lost", "source": "uevents"},
    ]
    for event in events:
        pieces = look.pieces_for(event, HOST)
        assert pieces, event
        assert all(look.request(piece, HOST)[0] in OPERATIONS for piece in pieces)
    sweep = look.everything(HOST)
    assert len(set(sweep)) == len(sweep)
    assert Piece("memory", "plc") not in sweep and Piece("memory", "plc") in look.at_first(HOST)


def test_partitions_are_those_of_the_plan_as_far_as_their_guests_run() -> None:
    folders = look.partitions(HOST, SEEN)
    assert len(folders) == 2 and all(folder.startswith("/sys/fs/cgroup/machine.slice/") for folder in folders)
    gone = look.refused(SEEN, Piece("threads", "plc"), "gone")
    assert look.partitions(HOST, gone) == []


# -- from one judgement to the next -----------------------------------------------------------------------------------


def check(status: str, observed: str = "", identifier: str = "R-1") -> Check:
    return Check.model_validate(
        {
            "id": identifier,
            "subject": "setting",
            "title": "t",
            "status": status,
            "expected": "10",
            "observed": observed,
            "reason": "the guest does not run" if status == "not_checked" else "",
        }
    )


@pytest.mark.parametrize(
    ("before", "now", "kind"),
    [
        (None, check("failed", "1"), "drifted"),
        (check("failed", "1"), check("failed", "1"), None),
        (check("failed", "1"), check("failed", "2"), "differs"),
        (check("failed", "ens2 3 times on CPU 5"), check("failed", "ens2 14 times on CPU 5"), None),
        (check("failed", "ens2 3 times on CPU 5"), check("failed", "ens2 3 times on CPU 4"), "differs"),
        (check("failed", "sh (12) allowed on 5 and 3 more"), check("failed", "sh (13) allowed on 5 and 4 more"), None),
        (check("failed", "1"), check("passed", "10"), "gone again"),
        (check("failed", "1"), check("not_checked"), "not checked"),
        (None, check("not_checked"), None),
        (None, check("passed", "10"), None),
        (check("failed", "1"), None, "not checked"),
    ],
)
def test_each_way_from_one_judgement_to_the_next(before: Check | None, now: Check | None, kind: str | None) -> None:
    failing = {"R-1": before} if before else {}
    found = drifts(failing, [now] if now else [])
    assert [drift.kind for drift in found] == ([kind] if kind else [])
    after = still_failing(failing, found)
    assert set(after) == ({"R-1"} if now and now.status == "failed" else set())
    assert drifts(after, [now] if now else []) == (), "said once"
    assert all(isinstance(drift, Drift) for drift in found)
