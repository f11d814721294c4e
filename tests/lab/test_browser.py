"""The pages in a real browser, on a real service: reserve, use the console, release; submit, watch, result.

And a second user, who sees all of it and can touch none of it.  The machine's serial line is a Unix socket, as that of
a virtual machine is.
"""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from evenkeel.lab.pages import navigation
from tests.lab.service import Running, up

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
WIDTHS = (1280, 375)
#: Milliseconds; for what is waited for, on a machine that has much else to do.
SLOW_MS = 120_000
expect.set_options(timeout=SLOW_MS)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)"),
]

GRAPH = """\
version: 1
name: two-echoes
steps:
  first:
    step:
      kind: echo
      command: echo "hello from the first"
  second:
    needs: [first]
    step:
      kind: echo
      command: echo "and this is <b>the second</b>"
"""


class Line:
    """A serial line with a shell of its own: it answers what is typed."""

    def __init__(self, path: Path) -> None:
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            client.sendall(b"host1 login: ")
            while data := client.recv(4096):
                client.sendall(b"\r\nyou typed " + data.strip() + b".\r\nhost1 login: " if b"\r" in data else data)


@pytest.fixture(scope="module")
def lab_up() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="evenkeel-browser-"))
    line = Line(folder / "host1.sock")
    try:
        with up(folder / "state") as running:
            with running.client() as client:
                client.post("/machines", {"name": "host1", "policy": {"prepare": "none"}})
                wanted = {"kind": "console", "driver": "unix", "address": str(folder / "host1.sock")}
                client.post("/machines/host1/endpoints", wanted)
                client.post("/people", {"name": "bob", "roles": ["user"]})
            yield running
            assert "Traceback" not in running.told.read_text(), running.told.read_text()
    finally:
        line.server.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def watched(page: Page) -> Page:
    """Every complaint of the browser fails the test: scripts that fail, and what the security policy stops."""
    page.set_default_timeout(SLOW_MS)
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


complaints: list[str] = []


@pytest.fixture(autouse=True)
def no_complaints() -> Iterator[None]:
    complaints.clear()
    yield
    assert complaints == []


@pytest.fixture(scope="module")
def root_state(lab_up: Running, browser: Browser) -> Any:
    """A session, as a log-in link gives one."""
    context = browser.new_context()
    context.new_page().goto(lab_up.link)
    return context.storage_state()


@pytest.fixture
def root(lab_up: Running, browser: Browser, root_state: Any) -> Iterator[Page]:
    context = browser.new_context(base_url=lab_up.url, storage_state=root_state)
    yield watched(context.new_page())
    context.close()


@pytest.fixture
def bob(lab_up: Running, browser: Browser) -> Iterator[Page]:
    with lab_up.client() as client:
        scopes = ["read", "reserve", "submit", "power", "console"]
        token = client.post("/tokens", {"name": "b", "scopes": scopes, "length_ns": "1h", "principal": "bob"})
    headers = {"Authorization": f"Bearer {token['secret']}"}
    context = browser.new_context(base_url=lab_up.url, extra_http_headers=headers)
    yield watched(context.new_page())
    context.close()


def test_reserve_console_release_and_a_second_user_can_see_but_not_touch(root: Page, bob: Page) -> None:
    root.goto("/machines/host1")
    root.get_by_label("What for").fill("a kernel that hangs")
    root.get_by_role("button", name="Reserve", exact=True).click()
    root.wait_for_url(re.compile(r"/reservations"))
    root.goto("/")
    mine = root.get_by_role("row").filter(has_text="a kernel that hangs").first
    expect(mine).to_contain_text("active")

    root.goto("/machines/host1/console")
    terminal = root.locator("#console")
    expect(terminal).to_contain_text("login:")
    terminal.click()
    root.keyboard.type("uname")
    root.keyboard.press("Enter")
    expect(terminal).to_contain_text("you typed")

    bob.goto("/machines/host1")
    expect(bob.locator("main")).to_contain_text("a kernel that hangs")
    bob.goto("/machines/host1/console")
    expect(bob.locator("#console")).to_contain_text("you typed")
    expect(bob.get_by_role("button", name="Reset a stuck line")).to_have_count(0)
    number = root.request.get("/api/v1/claims").json()["items"][0]["id"]
    for act, body in (("release", {"reason": "x"}), ("extend", {"by_ns": "1h"}), ("hand-over", {"to": "bob"})):
        answer = bob.request.post(f"/api/v1/claims/{number}/{act}", data=body)
        assert answer.status == 403, (act, answer.text())
    assert bob.request.post("/api/v1/machines/host1/console/reset").status == 403
    assert bob.request.post("/api/v1/machines/host1/power", data={"action": "reset"}).status == 403

    root.on("dialog", lambda asked: asked.accept())
    root.goto("/reservations")
    row = root.get_by_role("row").filter(has_text="a kernel that hangs").first
    row.get_by_role("button").click()
    root.goto("/machines/host1")
    expect(root.get_by_role("button", name="Reserve", exact=True)).to_be_visible()
    assert root.request.get(f"/api/v1/claims/{number}").json()["state"] == "ended"


def test_submit_watch_result_and_a_second_user_can_see_but_not_touch(root: Page, bob: Page) -> None:
    root.goto("/submissions/new")
    root.get_by_label("Graph (YAML)").fill(GRAPH)
    root.get_by_role("button", name="Submit").click()
    root.wait_for_url(re.compile(r"/submissions/\d+"))
    number = int(root.url.rpartition("/")[2])
    expect(root.locator("main")).to_contain_text("passed")
    # Steps are rows; the second one ended by itself, while the page was open or after.
    expect(root.get_by_role("row").filter(has_text="second")).to_contain_text("passed")
    # It went while one looks.
    expect(root.get_by_role("button", name="Cancel all of it")).to_have_count(0)
    root.get_by_role("link", name="second", exact=True).first.click()
    expect(root.locator("#log")).to_contain_text("and this is <b>the second</b>")
    root.get_by_role("link", name="Result and files").click()
    expect(root.locator("main")).to_contain_text("passed")

    bob.goto(f"/submissions/{number}")
    expect(bob.locator("main")).to_contain_text("two-echoes")
    expect(bob.get_by_role("button", name="Cancel")).to_have_count(0)
    assert bob.request.post(f"/api/v1/submissions/{number}/cancel").status in (403, 409)


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_say_where_one_is(root: Page, width: int) -> None:
    root.set_viewport_size({"width": width, "height": 800})
    # All that the navigation leads to, and the pages behind those.
    behind = ("/calendar", "/use", "/submissions/new", "/me")
    for entry in (*(one.path for one in navigation()), *behind):
        root.goto(entry)
        assert root.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, entry
        assert root.locator("h1").count() == 1, entry
        if entry != "/me":
            assert root.locator("nav [aria-current=page]").count() == 1, entry
        names = "[...document.querySelectorAll('main input:not([type=hidden]), main select, main textarea')]"
        unnamed = root.evaluate(f"{names}.filter((e) => !e.labels.length && !e.ariaLabel).map((e) => e.name)")
        assert unnamed == [], entry


def test_what_is_behind_more_is_reached_by_keyboard_and_closes(root: Page) -> None:
    root.set_viewport_size({"width": 375, "height": 800})
    root.goto("/log")
    expect(root.locator(".more summary")).to_have_text("More: Log")
    root.locator(".more summary").focus()
    root.keyboard.press("Enter")
    expect(root.get_by_role("link", name="Webhooks")).to_be_visible()
    root.keyboard.press("Escape")
    expect(root.get_by_role("link", name="Webhooks")).to_be_hidden()
    assert root.evaluate("document.activeElement.tagName") == "SUMMARY"
    for page, entry in (("/calendar", "Reservations"), ("/use", "Machines")):
        root.goto(page)
        assert root.locator("nav [aria-current=page]").all_text_contents() == [entry]


def test_a_time_is_taken_in_the_zone_of_the_reader(lab_up: Running, browser: Browser, root_state: Any) -> None:
    zone = "Pacific/Auckland"
    context = browser.new_context(base_url=lab_up.url, storage_state=root_state, timezone_id=zone)
    page = watched(context.new_page())
    page.goto("/reservations")
    year = datetime.now(UTC).year + 1
    page.get_by_label("From (your time").fill(f"{year}-01-02T09:00")
    page.get_by_label("Which").fill("host1")
    page.get_by_label("What for").fill("in the morning of there")
    page.get_by_label("How long").fill("1h")
    page.get_by_role("button", name="Reserve").click()
    page.wait_for_url(re.compile(r"/reservations/\d+"))
    number = int(page.url.rpartition("/")[2])
    expect(page.locator("main")).to_contain_text(f"{year}-01-02 09:00")
    at_ns = page.request.get(f"/api/v1/claims/{number}").json()["not_before_ns"]
    assert datetime.fromtimestamp(at_ns / 1e9, ZoneInfo(zone)).strftime("%m-%d %H:%M") == "01-02 09:00"
    page.request.post(f"/api/v1/claims/{number}/release", data={"reason": ""})
    context.close()


def test_by_keyboard_the_content_is_one_key_away(root: Page) -> None:
    root.goto("/people")
    root.keyboard.press("Tab")
    assert root.evaluate("document.activeElement.textContent") == "Skip to the content"
    root.keyboard.press("Enter")
    assert root.evaluate("document.activeElement.id") == "main"
