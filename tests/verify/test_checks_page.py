"""docs/reference/checks.md and the catalogue of checks say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evenkeel.verify.catalogue import CATALOGUE, Kind

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "checks.md").read_text()


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.id)
def test_each_kind_of_check_has_its_line(kind: Kind) -> None:
    assert f"| `{kind.id}` | {kind.title} | {kind.why} | {kind.fix} |" in PAGE


def test_the_page_has_no_check_that_there_is_not() -> None:
    assert set(re.findall(r"^\| `(V-[A-Z-]+)`", PAGE, re.MULTILINE)) == {kind.id for kind in CATALOGUE}
