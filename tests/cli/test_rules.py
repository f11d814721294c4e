"""`evenkeel rules`: the catalogue, listed, searched, and one rule whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from evenkeel.errors import WrongInput
from evenkeel.plan import catalogue
from evenkeel.plan.guest import ELEMENTS
from evenkeel.plan.rules import CATALOGUE


def evenkeel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evenkeel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def ids(*words: str, **asked: str | bool | None) -> list[str]:
    return [entry.id for entry in catalogue.search(words, **asked)]  # type: ignore[arg-type]


def test_everything_is_listed_once() -> None:
    found = ids()
    assert len(found) == len(set(found)) == len(CATALOGUE) + len(ELEMENTS)
    assert {"R-TIM-1", "G-4", "R-SMI"} <= set(found)


def test_search_by_words_takes_all_of_them() -> None:
    assert "H-C" in ids("idle", "POLL")
    assert "R-TIM-1" not in ids("idle", "poll")
    assert ids("kubevirt", "fifo 1") == ["G-3"]  # who recommends something else is searched too
    assert ids("nobody says this") == []


def test_filters() -> None:
    assert "R-RT-2" in ids(kernel="6.12.117+deb12-rt-amd64")
    assert "R-RT-2" not in ids(kernel="6.11")
    assert set(ids(subject="clock")) == {"H-CLK", "H-TSC", "H-WD", "R-TIM-1", "R-TIM-2"}
    assert "R-RT-1" in ids(level="realtime") and "R-RT-1" not in ids(level="performance")
    assert set(ids(only_consent=True)) == {rule.id for rule in CATALOGUE if rule.consent}


@pytest.mark.parametrize(
    ("words", "asked", "says"),
    [
        (("R-TIM-9",), {}, "there is no rule R-TIM-9"),
        ((), {"level": "realtme"}, "there is no goal realtme"),
        ((), {"subject": "clocks"}, "no rule has the subject clocks"),
        ((), {"kernel": "six"}, "six is no kernel version"),
    ],
)
def test_what_there_is_not(words: tuple[str, ...], asked: dict[str, str], says: str) -> None:
    with pytest.raises(WrongInput, match=says) as caught:
        catalogue.search(words, **asked)  # type: ignore[arg-type]
    assert caught.value.hint


def test_one_rule_is_shown_whole_by_its_id_or_that_of_a_setting() -> None:
    for word in ("R-MM-2", "r-mm-2", "R-MM-2:swappiness"):
        assert ids(word) == ["R-MM-2"]
    result = evenkeel("rules", "R-TIM-1")
    assert result.returncode == 0
    for part in (
        "Let timers leave isolated CPUs",
        "verified by",
        "OTHERS SET",
        "TuneD realtime",
        "host-tuning R-TIM-1",
    ):
        assert part in result.stdout, part
    assert "ignore-corrected-memory-errors" in evenkeel("rules", "H-MCE").stdout


def test_json_and_exit_codes() -> None:
    (rule,) = json.loads(evenkeel("rules", "R-RT-2", "--json").stdout)
    assert (rule["id"], rule["since"], rule["before"], rule["consent"]) == ("R-RT-2", "6.12", None, None)
    assert rule["alternatives"] and set(rule["alternatives"][0]) == {"value", "by", "rejected"}
    wrong = evenkeel("rules", "R-TIM-9", "--json")
    assert wrong.returncode == 2
    assert "did you mean R-TIM-" in json.loads(wrong.stdout)["error"]["hint"]
    nothing = evenkeel("rules", "unobtainium")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_the_shell_completes_ids() -> None:
    for line, expected in (
        ("R-TIM", ["R-TIM-1", "R-TIM-2"]),
        ("--level real", ["realtime"]),
        ("--subject cl", ["clock"]),
    ):
        words = f"evenkeel rules {line}"
        result = evenkeel(_EVENKEEL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
        assert result.stdout.split() == expected
