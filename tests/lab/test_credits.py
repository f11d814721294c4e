"""Credits: within them work is urgent, beyond them it is as any other and says so; all of it is in the log."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, select

from evenkeel.errors import WrongInput
from evenkeel.lab import credits, events, schema
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, with_roles
from evenkeel.lab.lab import Lab
from tests.lab.conftest import Clock

Ask = Callable[..., TestClient]
ANN = with_roles("ann", ["user"], ["kernel"])
BOB = with_roles("bob", ["user"])
ROOT = with_roles("root", ["admin"])
DAY_S = 86_400


def _submission(lab: Lab, who: str = "ann", state: str = "open") -> int:
    row: dict[str, object] = {"name": "branch", "kind": "wip", "submitter": who, "team": "", "spec": {}, "state": state}
    row |= {"submitted_ns": lab.now()}
    done = lab.store.write(lambda c: c.execute(insert(schema.submission).values(row)).inserted_primary_key)
    assert done is not None
    return int(done[0])


def _urgent(lab: Lab, number: int) -> bool:
    with lab.store.read() as connection:
        return bool(connection.scalar(select(schema.submission.c.urgent).where(schema.submission.c.id == number)))


def test_three_a_month_are_urgent_and_the_fourth_is_not_and_says_so(lab: Lab, clock: Clock) -> None:
    numbers = [_submission(lab) for _ in range(5)]
    found = [credits.make_urgent(lab, ANN, number, "customer is down") for number in numbers[:4]]
    assert [use.outcome for use in found] == ["spent", "spent", "spent", "beyond"]
    assert [_urgent(lab, number) for number in numbers] == [True, True, True, False, False]
    assert credits.credit(lab, ANN).left == 0
    assert credits.credit(lab, BOB).left == 3
    log = events.events(lab, ANN, type_="credit.*")
    assert [(event.type, event.actor, event.data["reason"]) for event in log.items] == [
        ("credit.beyond", "ann", "customer is down"),
        *[("credit.spent", "ann", "customer is down")] * 3,
    ]
    clock.move(3 * DAY_S)  # it is December now
    assert credits.make_urgent(lab, ANN, numbers[4], "customer is down").outcome == "spent"


def test_urgent_work_needs_a_reason_and_a_right(lab: Lab) -> None:
    number = _submission(lab)
    with pytest.raises(WrongInput, match="needs a reason"):
        credits.make_urgent(lab, ANN, number, "  ")
    with pytest.raises(Forbidden):
        credits.make_urgent(lab, BOB, number, "mine is more important")
    with pytest.raises(NotFound):
        credits.make_urgent(lab, ANN, 99, "why not")
    with pytest.raises(Conflict, match="has ended"):
        credits.make_urgent(lab, ANN, _submission(lab, state="passed"), "late")
    credits.make_urgent(lab, ANN, number, "customer is down")
    with pytest.raises(Conflict, match="urgent already"):
        credits.make_urgent(lab, ANN, number, "again")
    assert credits.credit(lab, ANN).spent == 1


def test_a_credit_comes_back_once(lab: Lab) -> None:
    number = _submission(lab)
    credits.make_urgent(lab, ANN, number, "customer is down")
    for _ in range(2):
        lab.store.write(lambda c: credits.refund(c, lab, ANN, "submission", number))
    assert (credits.credit(lab, ANN).spent, credits.credit(lab, ANN).left) == (0, 3)
    assert [use.outcome for use in credits.uses(lab, BOB).items] == ["refunded"]
    assert len(events.events(lab, ANN, type_="credit.refunded").items) == 1


def test_what_a_failed_change_spent_is_not_spent(lab: Lab) -> None:
    def change(connection: object) -> None:
        credits.spend(connection, lab, ANN, "submission", 1, "why")  # type: ignore[arg-type]
        raise ValueError("the submission could not be written")

    with pytest.raises(ValueError, match="could not be written"):
        lab.store.write(change)
    assert credits.credit(lab, ANN).spent == 0 and not credits.uses(lab, ANN).items


def test_grants_are_an_admins_and_are_in_the_log(lab: Lab) -> None:
    with pytest.raises(Forbidden):
        credits.grant(lab, ANN, "ann", 100, "I deserve it")
    with pytest.raises(WrongInput, match="needs a reason"):
        credits.grant(lab, ROOT, "ann", 5, "")
    assert credits.grant(lab, ROOT, "ann", 5, "release week").left == 5
    event = events.events(lab, ANN, type_="credit.granted").items[0]
    assert (event.actor, event.object_id, event.data) == (
        "root", "ann", {"before": 3, "now": 5, "reason": "release week"},
    )  # fmt: skip


def test_rest_and_page_show_who_and_why(lab: Lab, ask: Ask) -> None:
    number = _submission(lab)
    ann, bob, root = ask("ann"), ask("bob"), ask("root", "admin")
    made = ann.post(f"/api/v1/submissions/{number}/urgent", json={"reason": "customer <b>is</b> down"})
    assert (made.status_code, made.json()["outcome"]) == (200, "spent")
    assert bob.get("/api/v1/credits/uses").json()["items"][0]["principal"] == "ann"
    assert bob.put("/api/v1/credits/bob", json={"granted": 9, "reason": "me"}).status_code == 403
    assert root.put("/api/v1/credits/bob", json={"granted": 9, "reason": "release"}).json()["left"] == 9
    assert ann.get("/api/v1/credits/mine").json()["left"] == 2
    page = bob.get("/priority")
    assert page.status_code == 200
    assert "customer &lt;b&gt;is&lt;/b&gt; down" in page.text and "ann" in page.text
    assert "Grant" not in page.text
    granted = root.post("/priority/grant", data={"name": "ann", "granted": "4", "reason": "release week"})
    assert granted.status_code == 303
    assert ann.get("/api/v1/credits/mine").json()["left"] == 3
