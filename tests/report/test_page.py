"""The page in a real browser (Chromium without a window): no error, no request, no sideways scrolling.

The browser is driven by nothing but its command line: a wrapper page shows the report in frames of 1280 and 375 px,
uses it, and writes what it saw into its own document, which ``--dump-dom`` prints.  ``--log-net-log`` names every
request.  Each kind of fault is also put in on purpose, and must be seen.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evenkeel.report.html import render_report
from tests.report import factories

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
WIDTHS = (1280, 375)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)"),
]

WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><title>wrapper</title>
%s
<pre id="seen"></pre>
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement, tools = page.querySelector("[data-filter]");
    const shown = () => page.querySelectorAll("#settings details.row:not([hidden])").length;
    const found = {width: root.clientWidth, scrollWidth: root.scrollWidth, all: shown(),
      dark: frame.contentWindow.getComputedStyle(page.body).backgroundColor, tools: !tools.hidden,
      wide: [...page.body.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1
        && !e.closest(".scroll,.picture,pre,.skip,thead")).map((e) => e.outerHTML.slice(0, 120)).slice(0, 5)};
    const type = (words) => { const box = tools.querySelector("input"); box.value = words;
      box.dispatchEvent(new Event("input")); return shown(); };
    found.searched = type("WRITEBACK");
    found.rule = type("interrupts to housekeeping device");
    found.nothing = type("no such setting");
    found.again = type("");
    tools.querySelector("button[data-status=absent]").click();
    found.absent = shown();
    tools.querySelector("button[data-open]").click();
    found.open = page.querySelectorAll("#settings details[open]").length;
    return found;
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


@dataclass(frozen=True)
class Seen:
    frames: dict[int, dict[str, Any]]
    console: list[str]
    requests: set[str]


def browse(page: str, folder: Path, *arguments: str, wrapper_page: str = WRAPPER) -> Seen:
    """Open ``page`` at each width and use it as ``wrapper_page`` does.

    Returns what the browser saw, said and asked for.
    """
    assert CHROMIUM is not None
    frames = "\n".join(
        f'<iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
        for width in WIDTHS
    )
    wrapper, log = folder / "wrapper.html", folder / "net.json"
    wrapper.write_text(wrapper_page % frames)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            # No name of the outer world is looked up, whatever the browser itself would like to ask.
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}",
            "--window-size=1400,1000",
            "--dump-dom",
            *arguments,
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match and match[1], done.stderr[-2000:]
    found = {int(frame["width"]): frame for frame in json.loads(html.unescape(match[1]))}
    events = json.loads(log.read_text())["events"]
    # The browser asks for things of its own (updates, the time), with no page as initiator.
    asked = {
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator", "not an origin") != "not an origin"
    }
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(found, console, asked)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    page = render_report(factories.run(emulated=True, passed=20, failed=2, not_checked=1))
    return browse(page, tmp_path_factory.mktemp("browser"))


def test_no_error_and_no_request(seen: Seen) -> None:
    assert seen.console == []
    assert seen.requests == set()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_sideways_scrolling(seen: Seen, width: int) -> None:
    frame = seen.frames[width]
    assert frame["wide"] == []
    assert frame["scrollWidth"] <= frame["width"]


@pytest.mark.parametrize("width", WIDTHS)
def test_search_and_filter(seen: Seen, width: int) -> None:
    frame = seen.frames[width]
    assert frame["tools"] is True
    assert (frame["all"], frame["again"], frame["open"]) == (14, 14, 14)
    assert frame["rule"] == 2  # by the title that two settings share
    assert (frame["searched"], frame["nothing"], frame["absent"]) == (1, 0, 1)


def test_dark_mode(seen: Seen, tmp_path: Path) -> None:
    dark = browse(render_report(factories.run()), tmp_path, "--blink-settings=preferredColorScheme=0")
    assert seen.frames[1280]["dark"] == "rgb(255, 255, 255)"
    assert dark.frames[1280]["dark"] == "rgb(20, 23, 28)"


def test_values_without_a_place_to_break_do_not_widen_the_page(tmp_path: Path) -> None:
    run = factories.run()
    host = run.plan.hosts[0]
    long = "x" * 600
    settings = tuple(
        setting.model_copy(update={"title": long, "new": long, "reason": long, "id": long + setting.id})
        for setting in host.settings
    )
    ledger = host.ledger.model_copy(update={"why": (long,)})
    guests = tuple(guest.model_copy(update={"name": long, "why": (long,), "xml": long}) for guest in host.guests)
    host = host.model_copy(update={"settings": settings, "ledger": ledger, "guests": guests})
    plan = run.plan.model_copy(update={"hosts": (host,)})
    page = render_report(type(run)(plan=plan, hosts=run.hosts, stopped=long))
    found = browse(page, tmp_path)
    for width in WIDTHS:
        assert found.frames[width]["scrollWidth"] <= width, found.frames[width]["wide"]


def test_the_browser_would_see_faults(tmp_path: Path) -> None:
    page = render_report(factories.run())
    wide = page.replace("<main ", '<div style="width:1500px">wide</div><main ')
    shouting = wide.replace("</body>", "<script>throw new Error('oops')</script></body>")
    found = browse(shouting, tmp_path)
    assert found.frames[375]["scrollWidth"] >= 1500 and found.frames[375]["wide"]
    assert any("Content Security Policy" in line for line in found.console)


def test_the_browser_would_see_a_request(tmp_path: Path) -> None:
    # Without its policy the page may ask; port 9 on this machine answers nobody.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_report(factories.run()))
    asking = page.replace("</body>", '<img src="http://127.0.0.1:9/x.png" alt=""></body>')
    assert browse(asking, tmp_path).requests == {"http://127.0.0.1:9/x.png"}
