"""Principals, tokens and their limits, through service functions and REST."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from evenkeel.errors import WrongInput
from evenkeel.lab import events, people
from evenkeel.lab.actor import Actor, Conflict, Forbidden, NotFound, Stale, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.schema import token as token_table
from tests.lab.conftest import Clock

Ask = Callable[..., TestClient]
ROOT = with_roles("root", ["admin"], via="socket")
ANN = with_roles("ann", ["user"], ["kernel"], via="session")
DAY = 86_400 * 10**9


def test_root_and_the_services_user_are_admins_and_others_are_what_the_settings_say(lab: Lab) -> None:
    assert people.local_actor(lab, 0).may("people")
    assert people.local_actor(lab, os.geteuid()).may("people")
    somebody = people.local_actor(lab, 65534)
    assert somebody.name == "nobody" and somebody.may("reserve") and not somebody.may("machines")
    assert people.local_actor(lab, 4_000_000).name == "uid-4000000"


def test_a_token_is_its_maker_with_less(lab: Lab, clock: Clock) -> None:
    made = people.make_token(lab, ANN, "nightly", scopes=["read", "submit"], length_ns=DAY)
    found = people.actor_of_token(lab, made.secret)
    assert found == Actor("ann", frozenset({"read", "submit"}), frozenset({"kernel"}), "token nightly")
    with lab.store.read() as connection:
        row = connection.execute(select(token_table)).mappings().one()
    assert made.secret not in str(dict(row)), "the secret itself is nowhere in the database"
    lab.store.write(lambda connection: None)  # what was noted before is written
    assert people.tokens(lab, ANN)[0].used_ns == clock()
    assert people.actor_of_token(lab, made.secret + "x") is None
    clock.move(86_400)
    assert people.actor_of_token(lab, made.secret) is None


def test_a_token_loses_what_its_principal_loses(lab: Lab) -> None:
    made = people.make_token(lab, ANN, "nightly", scopes=["read", "submit"], length_ns=DAY)
    people.set_rights(lab, ROOT, "ann", roles=["viewer"], teams=[], version=1)
    found = people.actor_of_token(lab, made.secret)
    assert found is not None and found.scopes == {"read"}


def test_a_token_gives_nothing_that_its_maker_lacks(lab: Lab) -> None:
    with pytest.raises(Forbidden, match="may not machines"):
        people.make_token(lab, ANN, "x", scopes=["machines"], length_ns=DAY)
    with pytest.raises(Forbidden, match="make tokens for root"):
        people.make_token(lab, ANN, "x", scopes=["read"], length_ns=DAY, of="root")
    with pytest.raises(Forbidden, match="cannot make tokens"):
        token = people.make_token(lab, ANN, "x", scopes=["read"], length_ns=DAY)
        by_token = people.actor_of_token(lab, token.secret)
        assert by_token is not None
        people.make_token(lab, by_token, "y", scopes=["read"], length_ns=DAY)
    for scopes, length, name in ([["fly"], DAY, "x"], [[], DAY, "x"], [["read"], 0, "x"], [["read"], 400 * DAY, "x"]):
        with pytest.raises(WrongInput):
            people.make_token(lab, ANN, str(name), scopes=scopes, length_ns=length)  # type: ignore[arg-type]
    with pytest.raises(WrongInput):
        people.make_token(lab, ANN, " ", scopes=["read"], length_ns=DAY)


def test_nobody_makes_a_token_in_the_name_of_another_person(lab: Lab) -> None:
    people.make_token(lab, ANN, "x", scopes=["read"], length_ns=DAY)
    with pytest.raises(Forbidden, match="who makes their own"):
        people.make_token(lab, ROOT, "x", scopes=["read"], length_ns=DAY, of="ann")


def test_a_revoked_token_is_refused_at_once_and_only_by_whom_it_belongs_to(lab: Lab) -> None:
    made = people.make_token(lab, ANN, "x", scopes=["read"], length_ns=DAY)
    with pytest.raises(NotFound):
        people.revoke_token(lab, with_roles("bob", ["user"]), made.token.id)
    assert people.actor_of_token(lab, made.secret) is not None
    assert people.revoke_token(lab, ANN, made.token.id).revoked_ns is not None
    assert people.actor_of_token(lab, made.secret) is None


def test_a_service_has_tokens_of_an_admin(lab: Lab) -> None:
    with pytest.raises(Forbidden):
        people.add_service(lab, ANN, "ci", roles=["user"])
    people.add_service(lab, ROOT, "ci", roles=["user"])
    with pytest.raises(Conflict):
        people.add_service(lab, ROOT, "ci", roles=["user"])
    made = people.make_token(lab, ROOT, "job", scopes=["submit", "people"], length_ns=DAY, of="ci")
    found = people.actor_of_token(lab, made.secret)
    assert found is not None and found.name == "ci" and found.scopes == {"submit"}


def test_rights_are_changed_by_admins_for_the_version_they_saw_and_are_in_the_log(lab: Lab) -> None:
    people.make_token(lab, ANN, "x", scopes=["read"], length_ns=DAY)
    with pytest.raises(Forbidden):
        people.set_rights(lab, ANN, "ann", roles=["admin"], teams=[])
    with pytest.raises(WrongInput, match="no role"):
        people.set_rights(lab, ROOT, "ann", roles=["emperor"], teams=[])
    people.set_rights(lab, ROOT, "ann", roles=["maintainer"], teams=["storage"], version=1)
    with pytest.raises(Stale):
        people.set_rights(lab, ROOT, "ann", roles=["viewer"], teams=[], version=1)
    last = events.events(lab, ANN, object_="principal", object_id="ann").items[0]
    assert (last.actor, last.type, last.data["roles"]) == ("root", "principal.rights", ["maintainer"])
    assert last.data["before"] == {"roles": ["user"], "teams": ["kernel"]}


def test_rest_and_pages_of_people(ask: Ask) -> None:
    root, ann = ask("root", "admin"), ask("ann")
    assert ann.get("/api/v1/me").json()["scopes"] == ["console", "power", "read", "reserve", "submit"]
    assert ann.post("/api/v1/people", json={"name": "ci", "roles": ["user"]}).status_code == 403
    answer = root.post("/api/v1/people", json={"name": "ci", "roles": ["user"]})
    assert (answer.status_code, answer.headers["etag"]) == (201, '"1"')
    rights = {"roles": ["viewer"], "teams": ["kernel"]}
    assert root.put("/api/v1/people/ci/rights", json=rights).status_code == 428
    answer = root.put("/api/v1/people/ci/rights", json=rights, headers={"If-Match": '"1"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    assert root.put("/api/v1/people/ci/rights", json=rights, headers={"If-Match": '"1"'}).status_code == 412
    wanted = {"name": "x", "scopes": ["read"], "length_ns": "2h"}
    made = ann.post("/api/v1/tokens", json=wanted).json()
    assert [token["name"] for token in ann.get("/api/v1/tokens").json()] == ["x"]
    assert ann.get("/api/v1/tokens?principal=root").status_code == 403
    assert ann.delete(f"/api/v1/tokens/{made['token']['id']}").json()["revoked_ns"]
    assert [one["name"] for one in ann.get("/api/v1/people").json()["items"]] == ["ann", "ci"]

    assert "ci" in ann.get("/people").text and "Add a program" not in ann.get("/people").text
    page = root.get("/people/ci")
    assert 'name="version" value="2"' in page.text
    answer = root.post("/people/ci/rights", data={"version": 2, "roles": ["user"], "teams": "a, b"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/people/ci")
    assert root.get("/api/v1/people/ci").json()["teams"] == ["a", "b"]
    stale = root.post("/people/ci/rights", data={"version": 2}, headers={"HX-Request": "true"})
    assert stale.status_code == 412 and stale.headers["HX-Retarget"] == "#notice" and "meanwhile" in stale.text
    page = root.post("/me/tokens", data={"name": "job", "days": 7, "scopes": ["read"], "of": "ci"})
    assert people.PREFIX in page.text and "Tokens of ci" in page.text
    assert people.PREFIX not in root.get("/people/ci").text
    assert "token.made" in ann.get("/log?by=root").text


def test_the_log_has_pages_and_filters(lab: Lab) -> None:
    def change(number: int) -> None:
        lab.store.write(
            lambda c: lab.store.event(c, "ann" if number % 2 else "bob", f"thing.{number}", "thing", number)
        )

    for number in range(6):
        change(number)
    first = events.events(lab, ANN, limit=4)
    assert [one.object_id for one in first.items] == ["5", "4", "3", "2"]
    assert [one.object_id for one in events.events(lab, ANN, limit=4, after=first.next).items] == ["1", "0"]
    assert [one.object_id for one in events.events(lab, ANN, by="ann").items] == ["5", "3", "1"]
    assert len(events.events(lab, ANN, type_="thing.*").items) == 6
    assert len(events.events(lab, ANN, type_="th%").items) == 0
    with pytest.raises(Forbidden):
        events.events(lab, Actor("x", frozenset()))
