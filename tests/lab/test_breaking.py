"""What breaks programs that keep to a contract of REST, and what does not: the lab's own one, changed in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tools import lab_openapi
from tools.lab_breaking import breaking

Contract = dict[str, Any]
CLAIM = "/api/v1/claims/{number}"


@pytest.fixture(scope="module")
def now() -> Contract:
    return dict(json.loads(lab_openapi.PAGE.read_text()))


def model(contract: Contract, name: str) -> dict[str, Any]:
    return dict(contract["components"]["schemas"])[name]  # type: ignore[no-any-return]


def remove_path(new: Contract) -> None:
    del new["paths"][CLAIM]


def remove_method(new: Contract) -> None:
    del new["paths"][CLAIM]["get"]


def remove_parameter(new: Contract) -> None:
    found = new["paths"]["/api/v1/claims"]["get"]["parameters"]
    found[:] = [one for one in found if one["name"] != "holder"]


def need_parameter(new: Contract) -> None:
    new["paths"][CLAIM]["get"]["parameters"].append(
        {"in": "query", "name": "why", "required": True, "schema": {"type": "string"}}
    )


def remove_field_of_an_answer(new: Contract) -> None:
    del model(new, "Claim")["properties"]["holder"]


def leave_a_field_out_at_times(new: Contract) -> None:
    model(new, "Claim")["required"].remove("holder")


def answer_another_type(new: Contract) -> None:
    model(new, "Claim")["properties"]["holder"] = {"type": "integer"}


def answer_null(new: Contract) -> None:
    model(new, "Claim")["properties"]["holder"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}


def answer_another_state(new: Contract) -> None:
    model(new, "Claim")["properties"]["state"]["enum"].remove("active")


def answer_less_of_what_is_in_it(new: Contract) -> None:
    del model(new, "evenkeel__lab__waiting__Place")["properties"]["position"]


def need_a_field(new: Contract) -> None:
    model(new, "Request")["required"].append("team")


def need_a_new_field(new: Contract) -> None:
    wanted = model(new, "Request")
    wanted["properties"]["cost"] = {"type": "string"}
    wanted["required"].append("cost")


def take_a_field_no_more(new: Contract) -> None:
    del model(new, "Request")["properties"]["urgent"]


def take_a_value_no_more(new: Contract) -> None:
    model(new, "Request")["properties"]["kind"]["enum"].remove("permanent")


def take_null_no_more(new: Contract) -> None:
    found = model(new, "Request")["properties"]["not_before_ns"]
    found["anyOf"] = [one for one in found["anyOf"] if one["type"] != "null"]


def take_only_some_words(new: Contract) -> None:
    model(new, "Request")["properties"]["reason"]["enum"] = ["a", "b"]


def answer_another_status(new: Contract) -> None:
    answers = new["paths"]["/api/v1/claims"]["post"]["responses"]
    answers["202"] = answers.pop("201")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove_path, "/api/v1/claims/{number} is gone"),
        (remove_method, "GET /api/v1/claims/{number} is gone"),
        (remove_parameter, "GET /api/v1/claims, query holder: is not taken any more"),
        (need_parameter, "GET /api/v1/claims/{number}, query why: is needed now"),
        (remove_field_of_an_answer, ".holder: is gone"),
        (leave_a_field_out_at_times, ".holder: may be missing now"),
        (answer_another_type, ".holder: may be integer now"),
        (answer_null, ".holder: may be null now"),
        (answer_another_state, ".state: 'active' is not answered any more"),
        (answer_less_of_what_is_in_it, ".position: is gone"),
        (need_a_field, "POST /api/v1/claims, body.team: is needed now"),
        (need_a_new_field, "POST /api/v1/claims, body.cost: is needed now"),
        (take_a_field_no_more, "POST /api/v1/claims, body.urgent: is not taken any more"),
        (take_a_value_no_more, "POST /api/v1/claims, body.kind: 'permanent' is not taken any more"),
        (take_null_no_more, "POST /api/v1/claims, body.not_before_ns: may not be null any more"),
        (take_only_some_words, "POST /api/v1/claims, body.reason: any other is not taken any more"),
        (answer_another_status, "POST /api/v1/claims: does not answer 201 any more"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_change_that_breaks_programs_is_told(change: Callable[[Contract], None], told: str, now: Contract) -> None:
    new = deepcopy(now)
    change(new)
    found = breaking(now, new)
    assert any(told in one for one in found), found
    assert len(found) < 8, found


def add_a_path(new: Contract) -> None:
    new["paths"]["/api/v1/new"] = deepcopy(new["paths"][CLAIM])


def add_a_field_to_an_answer(new: Contract) -> None:
    claim = model(new, "Claim")
    claim["properties"]["colour"] = {"type": "string"}
    claim["required"].append("colour")


def add_a_field_that_may_be_sent(new: Contract) -> None:
    model(new, "Request")["properties"]["colour"] = {"type": "string"}


def add_a_parameter(new: Contract) -> None:
    new["paths"][CLAIM]["get"]["parameters"].append({"in": "query", "name": "why", "schema": {"type": "string"}})


def add_a_value(new: Contract) -> None:
    model(new, "Claim")["properties"]["state"]["enum"].append("lent")
    model(new, "Request")["properties"]["kind"]["enum"].append("loan")


def promise_more(new: Contract) -> None:
    found = model(new, "Claim")["properties"]["machine"]
    found["anyOf"] = [one for one in found["anyOf"] if one["type"] != "null"]


def say_it_in_other_words(new: Contract) -> None:
    model(new, "Claim")["description"] = "as ever"
    model(new, "Claim")["properties"] = dict(reversed(model(new, "Claim")["properties"].items()))


@pytest.mark.parametrize(
    "change",
    [add_a_path, add_a_field_to_an_answer, add_a_field_that_may_be_sent, add_a_parameter, add_a_value, promise_more,
     say_it_in_other_words],
    ids=lambda one: str(one.__name__),
)  # fmt: skip
def test_a_change_that_breaks_nobody_is_no_break(change: Callable[[Contract], None], now: Contract) -> None:
    new = deepcopy(now)
    change(new)
    assert new != now
    assert breaking(now, new) == []


def test_a_breaking_contract_is_written_only_on_demand(
    now: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = deepcopy(now)
    remove_path(new)
    page = tmp_path / "lab-openapi.json"
    page.write_text(json.dumps(now))
    monkeypatch.setattr(lab_openapi, "PAGE", page)
    monkeypatch.setattr(lab_openapi, "contract", lambda: json.dumps(new))
    assert lab_openapi.main([]) == 1
    assert "/api/v1/claims/{number} is gone" in capsys.readouterr().err
    assert json.loads(page.read_text()) == now
    assert lab_openapi.main(["--breaking"]) == 0
    assert json.loads(page.read_text()) == new
