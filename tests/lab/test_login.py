"""Logging in: by a real OIDC provider, by a link of the socket, by a device code; and what each refusal says.

Then what a session may not be used for: requests that a page of another site makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from evenkeel.lab import events, people
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.api.who import SESSION, Identify, Peer
from evenkeel.lab.lab import Lab
from evenkeel.lab.settings import Oidc, Settings
from tests.lab.conftest import Clock, an_app

READER = Actor("x", frozenset({"read"}))


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """A real provider on localhost; anybody may be anybody there.  Gives its issuer."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from oidc_provider_mock import User, run_server_in_thread  # type: ignore[import-untyped]

        users = [
            User(
                sub="1", claims={"preferred_username": "ann", "name": "Ann A", "groups": ["kernel", "lab-users", "x"]}
            ),
            User(sub="2", claims={"preferred_username": "bob", "groups": ["strangers"]}),
            User(sub="3", claims={"preferred_username": "carl"}),
            User(sub="4", claims={"groups": ["lab-users"]}),
            User(sub="5", claims={"preferred_username": "root", "groups": ["lab-users"]}),
            User(sub="6", claims={"preferred_username": "a b<c", "groups": ["lab-users"]}),
        ]
        with run_server_in_thread(user_claims=users) as server:
            yield f"http://localhost:{server.server_port}"


def app_of(lab: Lab, issuer: str | None = None, **more: object) -> FastAPI:
    if issuer:
        (lab.folder / "oidc-secret").write_text("anything\n")
        known: dict[str, object] = {
            "issuer": issuer,
            "client_id": "lab",
            "client_secret_file": str(lab.folder / "oidc-secret"),
        }
        known |= {"roles": {"lab-users": "user"}, "teams": ["kern*"]} | more
        lab.settings = Settings(oidc=Oidc.model_validate(known))
    return an_app(lab, who=Identify(lab), key="secret")


def browser(app: FastAPI) -> TestClient:
    return TestClient(app, follow_redirects=False, headers={"Sec-Fetch-Site": "same-origin"})


def log_in(client: TestClient, sub: str, *, action: str = "") -> httpx.Response:
    """What the page answers that the provider sends the browser back to."""
    begun = client.get("/login/oidc?next=/log")
    assert begun.status_code == 302, begun.text
    there = begun.headers["location"]
    assert "code_challenge_method=S256" in there and "code_challenge=" in there
    answer = httpx.post(there, data={"sub": sub} | ({"action": action} if action else {}))
    came: httpx.Response = client.get(answer.headers["location"].removeprefix("http://testserver"))
    return came


def test_who_comes_back_from_the_provider_is_known_by_name_groups_and_roles(lab: Lab, provider: str) -> None:
    client = browser(app_of(lab, provider))
    answer = log_in(client, "1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/log")
    assert client.get("/api/v1/me").json() == {
        "name": "ann",
        "via": "session",
        "scopes": ["console", "power", "read", "reserve", "submit"],
        "teams": ["kernel"],
    }
    assert people.principal(lab, READER, "ann").shown == "Ann A"
    assert events.events(lab, READER, type_="login").items[0].data["roles"] == ["user"]
    assert client.post("/logout").headers["location"] == "/login"
    assert client.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    ("sub", "cause", "cure"),
    [
        ("2", "bob is in no group that may use this lab; the provider named strangers", "groups that may: lab-users"),
        ("3", "carl is in no group that may use this lab; the provider named no groups at all", "lab-users"),
        ("4", "the provider sent no &#39;preferred_username&#39;", "one of what it sent: "),
        ("5", "the name root belongs to another account", "link_local: true"),
        ("6", "which cannot be a name here", ""),
    ],
)
def test_a_refusal_says_why_and_is_in_the_log(lab: Lab, provider: str, sub: str, cause: str, cure: str) -> None:
    client = browser(app_of(lab, provider))
    answer = log_in(client, sub)
    assert answer.status_code == 403
    assert cause in answer.text and cure in answer.text and "Try again" in answer.text
    assert client.get("/api/v1/me").status_code == 401
    refused = events.events(lab, READER, type_="login.refused").items
    assert len(refused) == 1 and refused[0].data["cause"]


def test_the_owner_may_say_that_a_local_name_is_the_same_person(lab: Lab, provider: str) -> None:
    client = browser(app_of(lab, provider, link_local=True))
    assert log_in(client, "5").status_code == 303
    assert client.get("/api/v1/me").json()["name"] == "root"
    assert "anything" not in client.get("/api/v1/me").json()["scopes"], "an admin by the socket only"


def test_who_is_in_no_group_may_get_a_role_by_the_settings(lab: Lab, provider: str) -> None:
    client = browser(app_of(lab, provider, role="viewer"))
    assert log_in(client, "2").status_code == 303
    assert client.get("/api/v1/me").json()["scopes"] == ["read"]


def test_what_the_provider_refuses_and_what_another_browser_began(lab: Lab, provider: str) -> None:
    app = app_of(lab, provider)
    answer = log_in(browser(app), "1", action="deny")
    assert answer.status_code == 403 and "refused the log-in: access_denied" in answer.text
    mine, theirs = browser(app), browser(app)
    there = mine.get("/login/oidc").headers["location"]
    back = httpx.post(there, data={"sub": "1"}).headers["location"].removeprefix("http://testserver")
    answer = theirs.get(back)
    assert answer.status_code == 403 and "begun in another browser" in answer.text
    assert mine.get(back).status_code == 303
    answer = mine.get(back)
    assert answer.status_code == 403, "a code is good once"


def test_a_provider_that_is_away_is_named(lab: Lab, tmp_path: Path) -> None:
    client = browser(app_of(lab, "http://localhost:1"))
    answer = client.get("/login/oidc")
    assert answer.status_code == 403
    assert "the provider http://localhost:1 cannot be used" in answer.text and "no fault of your account" in answer.text


def test_an_id_token_with_another_key_is_not_trusted(lab: Lab, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(lab, provider)
    client = browser(app)
    assert log_in(client, "1").status_code == 303
    other = browser(app)
    from joserfc.jwk import RSAKey

    metadata = app.state.provider._client.server_metadata
    strange = RSAKey.generate_key(2048, parameters={"kid": metadata["jwks"]["keys"][0].get("kid", "x")})
    metadata["jwks"] = {"keys": [strange.as_dict(private=False)]}

    async def same(*_: object, **__: object) -> dict[str, object]:
        return dict(metadata["jwks"])

    monkeypatch.setattr(app.state.provider._client, "fetch_jwk_set", same)
    answer = log_in(other, "1")
    assert answer.status_code == 403 and "cannot be trusted" in answer.text


def test_nobody_is_sent_elsewhere_after_the_log_in(lab: Lab) -> None:
    app = app_of(lab)
    client = browser(app)
    code = app.state.links.make(with_roles("ann", ["user"]))
    people.make_token(lab, with_roles("ann", ["user"]), "x", scopes=["read"], length_ns=10**9)
    assert client.get(f"/login/link/{code}").headers["location"] == "/"
    for there in ("//evil.example", "https://evil.example", "/\\evil.example"):
        assert client.get("/login", params={"next": there}).headers["location"] == "/"
    assert client.get("/login", params={"next": "/log"}).headers["location"] == "/log"


def test_a_link_is_good_once_for_ten_minutes(lab: Lab, clock: Clock) -> None:
    app = app_of(lab)
    root = with_roles("root", ["admin"])
    code = app.state.links.make(root)
    client = browser(app)
    assert client.get(f"/login/link/{code}").status_code == 303
    assert "anything" in client.get("/api/v1/me").json()["scopes"]
    again = browser(app).get(f"/login/link/{code}")
    assert again.status_code == 403 and "used already" in again.text
    code = app.state.links.make(root)
    clock.jump(-86400)  # a link does not live longer because the clock was set
    clock.move(601)
    assert browser(app).get(f"/login/link/{code}").status_code == 403


def test_a_session_ends_and_cannot_be_forged(lab: Lab, clock: Clock) -> None:
    app = app_of(lab)
    client = browser(app)
    client.get(f"/login/link/{app.state.links.make(with_roles('root', ['admin']))}")
    cookie = client.cookies[SESSION]
    clock.move(12 * 3600 + 1)
    assert client.get("/api/v1/me").status_code == 401
    forged = browser(an_app(lab, who=Identify(lab), key="another"))
    forged.cookies[SESSION] = cookie
    assert forged.get("/api/v1/me").status_code == 401


def test_the_cookie_is_for_the_lab_only(lab: Lab) -> None:
    lab.settings = Settings(url="https://lab.example.org")
    app = app_of(lab)
    answer = browser(app).get(f"/login/link/{app.state.links.make(with_roles('root', ['admin']))}")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and "secure" in cookie
    assert answer.headers["strict-transport-security"]
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, 303),
        ({"Origin": "http://testserver"}, 303),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_a_page_of_another_site_cannot_use_the_session(lab: Lab, headers: dict[str, str], status: int) -> None:
    app = app_of(lab)
    client = TestClient(app, follow_redirects=False)
    client.get(f"/login/link/{app.state.links.make(with_roles('root', ['admin']))}")
    answer = client.post("/people", data={"name": "ci", "role": "user"}, headers=headers)
    assert answer.status_code == status
    assert bool(people.principals(lab, READER).items) == (status == 303)
    assert client.get("/people", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200, "links work"


def test_a_token_needs_no_origin_and_a_wrong_one_is_nobody(lab: Lab) -> None:
    ann = with_roles("ann", ["user"])
    made = people.make_token(lab, ann, "job", scopes=["read"], length_ns=86_400 * 10**9)
    client = TestClient(app_of(lab))
    answer = client.get("/api/v1/me", headers={"Authorization": f"Bearer {made.secret}"})
    assert (answer.json()["name"], answer.json()["via"]) == ("ann", "token job")
    for header in (f"Bearer {made.secret}x", "Bearer", f"Basic {made.secret}", "Bearer é".encode("latin-1")):
        answer = client.get("/api/v1/me", headers={"Authorization": header})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


def test_the_kernel_says_who_is_at_the_socket_and_a_client_cannot(lab: Lab) -> None:
    app = an_app(lab, who=Identify(lab))

    async def with_peer(scope: dict[str, object], receive: object, send: object) -> None:
        scope["state"] = {"peer": Peer(1, 65534, 65534)}
        await app(scope, receive, send)  # type: ignore[arg-type]

    assert TestClient(with_peer).get("/api/v1/me").json()["name"] == "nobody"  # type: ignore[arg-type]
    assert TestClient(app).get("/api/v1/me", headers={"peer": "0", "x-forwarded-for": "unix:0"}).status_code == 401


def begin(app: FastAPI) -> dict[str, str]:
    answer = TestClient(app).post("/api/v1/login/device", json={"name": "laptop"})
    assert answer.status_code == 200
    return dict(answer.json())


def poll(app: FastAPI, begun: dict[str, str]) -> httpx.Response:
    told: httpx.Response = TestClient(app).post(
        "/api/v1/login/device/token", json={"device_code": begun["device_code"]}
    )
    return told


def person(app: FastAPI, lab: Lab) -> TestClient:
    people.make_token(lab, with_roles("ann", ["user"]), "x", scopes=["read"], length_ns=10**9)
    client = browser(app)
    client.get(f"/login/link/{app.state.links.make(with_roles('ann', ['user']))}")
    return client


def test_a_command_line_is_let_in_by_a_person(lab: Lab) -> None:
    app = app_of(lab)
    begun = begin(app)
    assert re.fullmatch(r"[B-Z]{4}-[B-Z]{4}", begun["user_code"])
    assert poll(app, begun).json()["state"] == "pending"
    assert browser(app).get(f"/device?code={begun['user_code']}").headers["location"].startswith("/login?next=")
    client = person(app, lab)
    page = client.get("/device", params={"code": begun["user_code"].lower()})
    assert "laptop" in page.text and "ann" in page.text
    assert client.post("/device", data={"user_code": begun["user_code"], "grant": "yes"}).status_code == 200
    answer = poll(app, begun).json()
    assert (answer["state"], answer["principal"]) == ("granted", "ann")
    me = TestClient(app).get("/api/v1/me", headers={"Authorization": f"Bearer {answer['secret']}"}).json()
    assert me["name"] == "ann" and "submit" in me["scopes"]
    assert poll(app, begun).status_code == 403, "told once"


def test_a_command_line_that_is_turned_away_or_waits_too_long_gets_nothing(lab: Lab, clock: Clock) -> None:
    app = app_of(lab)
    client = person(app, lab)
    begun = begin(app)
    client.post("/device", data={"user_code": begun["user_code"]})
    answer = poll(app, begun)
    assert answer.status_code == 403 and "refused on the lab's page" in answer.json()["detail"]
    begun = begin(app)
    clock.move(15 * 60 + 1)
    assert poll(app, begun).status_code == 403
    assert client.get("/device", params={"code": begun["user_code"]}).status_code == 404
    assert client.get("/device", params={"code": "BBBB-BBBB"}).status_code == 404
