"""docs/how-to/does-not-fit.md shows what the command prints for each example; ``python -m`` writes those parts anew."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

from evenkeel.cli import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "does-not-fit.md"
_BLOCK = re.compile(
    r"```\n(evenkeel place (examples/fleet/does-not-fit/[a-z-]+\.yaml) --facts examples/fleet/facts)\n```\n\n"
    r"```\n(.*?)```\n",
    re.DOTALL,
)
NAMES = [name for _, name, _ in _BLOCK.findall(PAGE.read_text())]


def printed(name: str) -> str:
    """What is said of guests without a place; who has one stands above it and is left out on the page."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        assert main(["place", name, "--facts", "examples/fleet/facts"]) == 1
    lines = [line.rstrip() for line in said.getvalue().splitlines()]
    first = next(at for at, line in enumerate(lines) if re.search(r" (does not fit|do not fit|fits? on none)", line))
    last = max(at for at, line in enumerate(lines) if not line)
    return "\n".join(line for line in lines[first:last] if line) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_what_is_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "125")
    (shown,) = (text for _, other, text in _BLOCK.findall(PAGE.read_text()) if other == name)
    assert shown == printed(name)


def test_every_example_is_on_the_page() -> None:
    folder = ROOT / "examples" / "fleet" / "does-not-fit"
    assert sorted(Path(name).name for name in NAMES) == sorted(file.name for file in folder.glob("*.yaml"))


if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ["COLUMNS"] = "125"
    PAGE.write_text(
        _BLOCK.sub(lambda match: f"```\n{match[1]}\n```\n\n```\n{printed(match[2])}```\n", PAGE.read_text())
    )
