"""What Nova 34.0.0 answered to the six small cases, recorded, and what the checker of placements says to it.

Recorded by ``python -m bench.openstack.record``; no Nova is needed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.openstack.adapter import seat_from_nova
from bench.openstack.cases import Case, cases

from evenkeel.documents.fleet import FleetPlan, GuestSeat
from evenkeel.placement_check import check_placement

RECORDED = Path(__file__).parent / "recorded"
ANSWERS: dict[str, dict[str, Any]] = {
    one["id"]: one for one in json.loads((RECORDED / "cases.json").read_text(encoding="utf-8"))
}
CASES = {case.id: case for case in cases()}
#: Case -> what the checker says to an answer of Nova, and what Nova's own claim raises on it.
WRONG_FITS = {
    "R1": ("cell 2 has 17 vCPUs, and 0 CPUs", None),
    "R1-pages": ("bytes in pages of 1073741824 on node 0", None),
    "R2": ("CPU [32, 40] is not free on node 3", "CPUPinningUnknown"),
    "R2-isolate": ("CPU [32, 33] is not free on node 3", None),
    "R3": ("CPU 0 is kept empty by", "CPUPinningInvalid"),
}
MISSED_FITS = ("R4", "R5", "R5-near", "R6")


def verdict(case: Case, seat: GuestSeat) -> list[str]:
    before = ANSWERS[case.id]["before"]
    seats = [
        seat_from_nova(guest, case.host, said["answer"], said["devices"])
        for guest, said in zip(case.before, before, strict=True)
    ]
    plan = FleetPlan(hosts=(case.host,), guests=(*case.before, case.guest), seats=(*seats, seat))
    return check_placement(plan.model_dump(mode="json"))


def test_each_case_is_recorded_as_it_stands_today() -> None:
    assert ANSWERS.keys() == CASES.keys() == {*WRONG_FITS, *MISSED_FITS}
    for name, case in CASES.items():
        assert ANSWERS[name]["nova"] == "34.0.0"
        assert ANSWERS[name]["host"] == case.host.model_dump(mode="json"), "record it anew"
        assert ANSWERS[name]["guest"] == case.guest.model_dump(mode="json"), "record it anew"


@pytest.mark.parametrize("name", WRONG_FITS)
def test_nova_says_fits_and_the_checker_says_why_it_does_not(name: str) -> None:
    case, said = CASES[name], ANSWERS[name]
    text, raised = WRONG_FITS[name]
    assert said["answer"] is not None and not said["timed_out"]
    assert (said["claim"] or {}).get("error") == raised
    assert text in " ".join(verdict(case, seat_from_nova(case.guest, case.host, said["answer"], said["devices"])))


@pytest.mark.parametrize("name", MISSED_FITS)
def test_nova_says_no_where_a_place_is(name: str) -> None:
    case, said = CASES[name], ANSWERS[name]
    assert said["answer"] is None and not said["timed_out"]
    assert case.seat is not None and verdict(case, case.seat) == []


@pytest.mark.parametrize("name", ["R2", "R2-isolate", "R3"])
def test_where_nova_claims_in_vain_there_is_a_place_too(name: str) -> None:
    case = CASES[name]
    assert case.seat is not None and verdict(case, case.seat) == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.seat])
def test_a_place_by_hand_that_is_spoilt_is_rejected(name: str) -> None:
    case = CASES[name]
    assert case.seat is not None
    spoilt = case.seat.model_copy(update={"cpus": ((15, 15),) * len(case.seat.nodes)})
    assert verdict(case, spoilt)
