"""The tables that the injection suite leaves for the docs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import injection_table
from tools.injection_table import BEGIN, END, PAGE, Counts, Row, markdown, written

QUIET = Row("nothing", 0, 0, 0, 0, 100, 90, 10, 0)
HOG = Row("hog on the host", 5, 5, 20, 19, 1000, 950, 930, 910)


def goals(*rows: Row) -> list[str]:
    """Of each goal whether it is met."""
    found = markdown(Counts("Taken today", rows)).splitlines()
    return [line.split("|")[-2].strip() for line in found[found.index("| goal | in this run | |") + 2 :]]


def test_counts_sums_and_goals_are_told() -> None:
    said = markdown(Counts("Taken today, in emulation", (QUIET, HOG)))
    assert said.startswith("Taken today, in emulation:\n")
    for line in (
        "| hog on the host | 5 | 5 | 20 | 19 | 1,000 | 950 | 930 | 910 |",
        "| all | 5 | 5 | 20 | 19 | 1,100 | 1,040 | 940 | 910 |",
        "| 95 % of what is named is true | 19 of 20 (95 %) | met |",
        "| 90 % of the late samples with 80 % of their time charged to named causes | 910 of 1,100 (82 %) | not met |",
    ):
        assert line in said.splitlines(), line


@pytest.mark.parametrize(
    ("rows", "met"),
    [
        ((HOG,), ["met", "met", "met", "met"]),
        ((Row("hog", 5, 4, 20, 18, 1000, 950, 930, 899),), ["not met", "not met", "not met", "met"]),
        ((HOG, Row("nothing", 0, 0, 1, 0, 0, 0, 0, 0)), ["met", "not met", "met", "not met"]),
        # What an older run did not count is neither met nor missed.
        ((Row("hog", 5, 5, 20, 20, 1000, 950, None, None),), ["met", "met", "not shown", "met"]),
    ],
)
def test_a_goal_is_met_by_its_number_alone(rows: tuple[Row, ...], met: list[str]) -> None:
    assert goals(*rows) == met


def test_counts_come_back() -> None:
    counts = Counts("Taken today", (QUIET, HOG))
    assert Counts.from_json(counts.to_json()) == counts


def test_only_what_lies_between_the_comments_is_changed() -> None:
    page = f"before\n\n{BEGIN}\nold\n\n{END}\nafter\n"
    assert written(page, "new\n") == page.replace("old", "new")
    for wrong in ("", page.replace(BEGIN, ""), page.replace(END, ""), END + BEGIN, page + page):
        with pytest.raises(ValueError, match="not one"):
            written(wrong, "new\n")


def test_without_a_whole_run_nothing_is_written_and_what_to_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, page = tmp_path / "build" / "injections.json", tmp_path / "spikes.md"
    page.write_text(f"{BEGIN}\nold\n\n{END}")
    for name, value in {"HERE": tmp_path, "COUNTS": counts, "PAGE": page}.items():
        monkeypatch.setattr(injection_table, name, value)
    assert injection_table.main() == 1
    assert "build/injections.json is not there" in (said := capsys.readouterr().err)
    assert "tests/virtual/test_spikes.py" in said and "old" in page.read_text()
    counts.parent.mkdir()
    counts.write_text(Counts("Taken today", (HOG,)).to_json())
    assert injection_table.main() == 0
    assert "| hog on the host | 5 |" in page.read_text() and "old" not in page.read_text()


def test_the_page_has_a_place_for_them() -> None:
    page = Path(PAGE).read_text(encoding="utf-8")
    assert "new table" in written(page, "new table\n")
