"""Pages of machines and reservations: everything is done with plain forms, and mistakes are told where they are."""

from __future__ import annotations

import re
from collections.abc import Callable

from fastapi.testclient import TestClient
from httpx import Response

from evenkeel.lab import claims, machines
from evenkeel.lab.lab import Lab
from evenkeel.lab.limits import HOUR
from evenkeel.lab.machines import Policy
from evenkeel.lab.predicate import Predicate
from tests.lab.conftest import Clock
from tests.lab.emulated import add_endpoint
from tests.lab.pool import ANN, BOB, ROOT, add, facts

Ask = Callable[..., TestClient]


def there(client: TestClient, answer: Response) -> str:
    """The page that a form leads to."""
    assert answer.status_code == 303, answer.text
    page = client.get(answer.headers["location"])
    assert page.status_code == 200
    return str(page.text)


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_search_narrow_keep(ask: Ask, lab: Lab) -> None:
    for number in range(3):
        add(lab, f"host{number}", driver=("ice", "igb")[number % 2])
    ann = ask("ann")
    page = ann.get("/machines").text
    assert "3 machines" in page and 'href="/machines?q=nic.driver%3Aigb"' in page
    narrowed = ann.get("/machines", params={"q": "nic.driver:igb"}).text
    assert "1 machine " in words(narrowed)
    assert 'aria-current="true"><span>igb' in narrowed
    part = ann.get(
        "/machines", params={"q": "nic.driver:igb"}, headers={"HX-Request": "true", "HX-Target": "found"}
    ).text
    assert "<html" not in part and "host1" in part
    wrong = ann.get("/machines", params={"q": "mem>=64GB"})
    assert wrong.status_code == 200
    assert "mem&gt;=64GB\n     ^" in wrong.text and "did you mean 64GiB?" in wrong.text
    assert "nic.driver:igb" in ann.get("/machines", params={"q": "igb"}).text
    assert "mine</a>" in there(ann, ann.post("/machines/search", data={"name": "mine", "q": "nic.driver:igb"}))


def test_text_of_users_is_text(ask: Ask, lab: Lab) -> None:
    add(lab, "host1")
    machines.mark(lab, ROOT, "host1", "broken", "<script>alert(1)</script>")
    claims.request(lab, ANN, claims.Request(predicate="host1", reason="<b>bold</b>"))
    client = ask("ann")
    for path in ("/machines", "/machines/host1", "/reservations", "/reservations/1", "/calendar", "/use"):
        text = client.get(path).text
        assert "<script>alert" not in text and "<b>bold" not in text


def test_reserve_look_extend_hand_over_release(ask: Ask, lab: Lab, clock: Clock) -> None:
    add(lab, "host1", address="ssh://root@host1", policy=Policy(prepare="none"))
    ann, bob = ask("ann"), ask("bob")
    page = there(ann, ann.post("/reservations", data={"predicate": "host1", "reason": "a bug", "length": "4h"}))
    assert "active" in words(page) and "/reservations/1/extend" in page
    assert 'href="/machines/host1/console"' in page and "Log in ssh ssh://root@host1" in words(page)
    assert "Log in" not in words(bob.get("/reservations/1").text)
    assert "a bug" in bob.get("/machines/host1").text
    waits = there(bob, bob.post("/reservations", data={"predicate": "mem>=1GiB", "reason": "mine", "length": "2h"}))
    assert "number 1 in line" in words(waits) and "host1 is ann&#39;s" in waits and 'hx-trigger="every 3s"' in waits
    assert "Waits since" in waits
    refused = ann.post("/reservations/1/extend", data={"by": "4h"})
    assert refused.status_code == 409 and "bob waits for host1" in refused.text
    assert bob.post("/reservations/1/release", data={}).status_code == 403
    assert ann.post("/reservations/1/extend", data={"by": "soon"}).status_code == 422
    there(ann, ann.post("/reservations/1/release", data={}))
    page = bob.get("/reservations").text
    assert "active" in words(page) and "Nobody waits" in page
    there(bob, bob.post("/reservations/2/hand-over", data={"to": "root"}))
    assert claims.get(lab, BOB, 2).holder == "root"


def test_a_source_of_ones_own_is_asked_for_only_where_an_owner_allows_it(ask: Ask, lab: Lab) -> None:
    installed = {"netboot": "http://images.example.org/host.ipxe"}
    add(lab, "host1", address="ssh://root@host1", policy=Policy(**installed))
    root, ann = ask("root", "admin"), ask("ann")
    for page in ("/machines/host1", "/reservations"):
        assert "own-image" not in ann.get(page).text
    form = {"version": machines.get(lab, ROOT, "host1").version, "new_name": "host1", "own_boot": "true"}
    form |= {"address": "ssh://root@host1"}
    wrong = root.post("/machines/host1/edit", data=form)  # and no longer installed
    assert wrong.status_code == 422 and "the next one would get their system" in wrong.text
    there(root, root.post("/machines/host1/edit", data=form | installed))
    add_endpoint(lab, machines.get(lab, ROOT, "host1").id, "bmc", "redfish", "https://bmc-host1")
    for page in ("/machines/host1", "/reservations"):
        assert "own-image" in ann.get(page).text
    mine = {"predicate": "host1", "reason": "rescue", "image": "http://images.example.org/mine.iso", "netboot": ""}
    assert "<code>http://images.example.org/mine.iso</code>" in there(ann, ann.post("/reservations", data=mine))
    both = ann.post("/reservations", data=mine | installed)
    assert both.status_code == 422 and "from one of them" in both.text


def test_whose_system_a_machine_has_is_shown_and_its_owner_says_when_it_is_theirs_again(ask: Ask, lab: Lab) -> None:
    made = add(lab, "host1", owner="carl")
    lab.store.write(lambda connection: machines.set_system(lab, connection, "lab", made.id, "ann"))
    carl, bob = ask("carl"), ask("bob")
    said = "ann booted it from a source of their own"
    assert said in bob.get("/machines/host1").text and "nothing of ann" not in bob.get("/machines/host1").text
    page = carl.get("/machines/host1").text
    assert said in page and "nothing of ann" in page and "booted from a source of ann's own" in page
    page = there(carl, carl.post("/machines/host1/state", data={"state": "ready", "installed": "true"}))
    assert said not in page and "its system is its owner" in page


def test_only_who_owns_the_machine_is_offered_to_take_it_back(ask: Ask, lab: Lab) -> None:
    add(lab, "host1", owner="carl")
    claims.request(lab, ANN, claims.Request(predicate="host1", reason="x"))
    assert "Take back" not in ask("bob").get("/reservations/1").text
    assert "Take back" in ask("carl").get("/reservations/1").text
    assert "Release" in ask("ann").get("/reservations/1").text


def test_the_log_leads_to_what_it_tells_of(ask: Ask, lab: Lab) -> None:
    made = add(lab, "host1")
    claims.request(lab, ANN, claims.Request(predicate="host1", reason="x", length_ns=2 * HOUR))
    page = ask("ann").get("/log").text
    assert f'<a href="/machines/{made.id}">machine host1</a>' in page
    assert '<a href="/reservations/1">reservation 1</a>' in page
    assert "length: 2 h" in words(page) and "_ns" not in page
    assert ask("ann").get(f"/machines/{made.id}").status_code == 200


def test_a_step_without_a_time_limit_is_shown_as_an_estimate_and_never_for_good(ask: Ask, lab: Lab) -> None:
    add(lab, "host1")
    wanted = Predicate.parse("host1")
    lab.store.write(lambda c: claims.take_for_step(lab, c, step_id=1, predicate=wanted, holder="ann", reason="boot"))
    ann = ask("ann")
    calendar, shown, one = (ann.get(path).text for path in ("/calendar", "/machines/host1", "/reservations/1"))
    assert "to about 2026-11-29 11:00 UTC (a step without a time limit)" in calendar
    assert "has it, for a step without a time limit: boot" in words(shown)
    assert "Until no time limit" in words(one)
    assert "for good" not in calendar + one


def test_later_and_the_calendar(ask: Ask, lab: Lab) -> None:
    add(lab, "host1")
    ann = ask("ann")
    form = {"predicate": "host1", "reason": "demo", "length": "1d", "start": "2026-12-01T09:00"}
    assert "booked" in words(there(ann, ann.post("/reservations", data=form)))
    page = ann.get("/calendar").text
    # 2 days and 9 hours after midnight of 29 November, of 14 days
    assert 'class="span booked" style="left:16.96%;width:7.14%"' in page
    assert "demo" not in ann.get("/calendar", params={"start": "2026-12-24"}).text
    taken = ann.post("/reservations", data=form)
    assert taken.status_code == 409 and "host1 is taken then" in taken.text
    assert ann.get("/calendar", params={"q": "mem>"}).status_code == 200
    assert ann.post("/reservations", data=form | {"start": "tomorrow"}).status_code == 422
    assert ann.post("/reservations", data=form | {"reason": ""}).status_code == 422


def test_add_edit_mark_retire(ask: Ask, lab: Lab) -> None:
    root, ann = ask("root", "admin"), ask("ann")
    file = ("facts.json", facts("host1").to_json(), "application/json")
    page = there(root, root.post("/machines/add", data={"site": "prg"}, files={"facts": file}))
    assert "<h1>host1" in page and "/machines/host1/edit" in page
    assert root.get("/machines/host1/picture.svg").text.startswith("<svg")
    version = machines.get(lab, ROOT, "host1").version
    form = {
        "version": version,
        "new_name": "host9",
        "site": "nue",
        "owner": "ann",
        "tags": "fast, big",
        "steps": "true",
    }
    there(root, root.post("/machines/host1/edit", data=form | {"longest": "2d", "prepare": "none"}))
    one = machines.get(lab, ROOT, "host9")
    assert (one.site, one.owner, one.policy.tags, one.policy.longest_ns) == ("nue", "ann", ("fast", "big"), 48 * HOUR)
    assert root.post("/machines/host9/edit", data=form).status_code == 412
    assert "/machines/host9/edit" in ann.get("/machines/host9").text
    assert "/machines/host9/edit" not in ask("bob").get("/machines/host9").text
    assert root.post("/machines/host9/state", data={"state": "broken"}).status_code == 422
    assert "fan 3" in there(ann, ann.post("/machines/host9/state", data={"state": "broken", "reason": "fan 3"}))
    assert ann.get("/machines/add").status_code == 403
    assert "Of yours, not well" in ann.get("/machines").text and "Of yours" not in ask("bob").get("/machines").text
    bad = root.post("/machines/host9/facts", files={"facts": ("x.json", "{}", "application/json")})
    assert bad.status_code == 422 and "not an Evenkeel document" in bad.text
    assert "retired" in there(root, root.post("/machines/host9/retire", data={"reason": "old"}))


def test_every_form_of_these_pages_has_its_call(ask: Ask) -> None:
    """What pages can do, REST can do."""
    paths = ask("ann").get("/api/v1/openapi.json").json()["paths"]
    calls = {(method, path.removeprefix("/api/v1")) for path, methods in paths.items() for method in methods}
    assert {
        ("post", "/claims"),
        ("post", "/claims/{number}/extend"),
        ("post", "/claims/{number}/release"),
        ("post", "/claims/{number}/hand-over"),
        ("post", "/machines"),
        ("patch", "/machines/{name}"),
        ("post", "/machines/{name}/state"),
        ("post", "/machines/{name}/facts"),
        ("post", "/machines/{name}/retire"),
        ("put", "/searches/{name}"),
        ("delete", "/searches/{name}"),
        ("get", "/calendar"),
        ("get", "/use"),
    } <= calls
