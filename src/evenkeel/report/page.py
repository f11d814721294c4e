"""The frame of every page: head, style, one script, no network.  Knows nothing of what is on the page."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

import evenkeel
from evenkeel.report import chart
from evenkeel.report.markup import Markup, el, join, trusted


def package_file(name: str) -> str:
    """The text of a file beside this module: ``page.css``, ``flame.js``."""
    return files("evenkeel.report").joinpath(name).read_text(encoding="utf-8")


def whole_page(title: str, body: Markup, *, made_from: str, script: str, style: str = "") -> str:
    """A page that needs nothing beside it.  ``script``, ``style``: text of this package; the rules of pages and charts
    are there already.
    """
    head = join(
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        # An empty icon, so that no browser asks for one.
        el("link", rel="icon", href="data:,"),
        el("style", trusted(package_file("page.css") + chart.style() + style)),
    )
    whole = join(
        el("a", "Skip to the content", class_="skip", href="#content"),
        body,
        el(
            "footer",
            f"Made by Evenkeel {evenkeel.__version__} from {made_from}. This page loads nothing from anywhere.",
        ),
        el("script", trusted(script)),
    )
    return f"<!DOCTYPE html>\n{el('html', el('head', head), el('body', whole), lang='en')}\n"


def _policy(script: str) -> str:
    # No network at all.  Styles are inline because pictures bring their own; the one script is named by its hash.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
