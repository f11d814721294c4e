"""What is printed, and where: progress with and without a terminal, the place of an error."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evenkeel.cli import output
from evenkeel.errors import Where, WrongInput


def shown(error: WrongInput, capsys: pytest.CaptureFixture[str]) -> str:
    output.print_error(error)
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


# -- errors -------------------------------------------------------------------------------------------------------


def test_an_error_shows_its_line_and_a_caret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("guests:\n  plc:\n    memroy: 4GiB # [no] markup\n")
    error = WrongInput('unknown key "memroy"', where=Where(str(file), 3, 5), hint="see the reference")
    assert shown(error, capsys) == (
        'error: unknown key "memroy"\n'
        f"  --> {file}:3:5\n"
        "  |\n"
        "3 |     memroy: 4GiB # [no] markup\n"
        "  |     ^^^^^^\n"
        "hint: see the reference\n"
    )


@pytest.mark.parametrize(
    ("text", "where", "line", "carets"),
    [
        ("a: [x, y]\n", (1, 5), "1 | a: [x, y]", "  |     ^"),
        ("\tx: 1\n", (1, 2), "1 |     x: 1", "  |     ^"),
        ("a: 1\x85b: 2\n", (2, 4), "2 | b: 2", "  |    ^"),  # what YAML takes for a line break
        ("a: 1\x0cb: 2\n", (1, 1), "1 | a: 1", "  | ^"),  # and what it does not
        ("\ufeffa: 1\n", (1, 1), "1 | a: 1", "  | ^"),
        ("a:\n", (1, None), "1 | a:", None),
        ("a:\n", (1, 3), "1 | a:", None),  # behind the end of the line
    ],
)
def test_the_caret_stands_under_the_place(
    text: str,
    where: tuple[int, int | None],
    line: str,
    carets: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text, newline="")
    lines = shown(WrongInput("x", where=Where(str(file), *where)), capsys).splitlines()
    assert lines[3].startswith(line)
    assert lines[4:5] == ([carets] if carets else [])


def test_a_file_that_cannot_be_read_again_still_has_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(WrongInput("x", where=Where("-", 3, 5)), capsys) == "error: x\n  --> -:3:5\n"
    assert shown(WrongInput("x", where=Where("/dev/null", 3, 5)), capsys) == "error: x\n  --> /dev/null:3:5\n"


# -- tables -------------------------------------------------------------------------------------------------------


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    reason = "a reason of " + "many words " * 10 + "end"
    output.out().print(output.table(("id", "reason"), [("[x]", reason)]))
    printed = capsys.readouterr()
    assert re.search(rf"\[x\] +{reason}", printed.out)
    assert "\x1b" not in printed.out


# -- progress without a terminal ----------------------------------------------------------------------------------


def test_progress_in_a_log_is_one_line_at_the_start_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("building the image") as on_progress:
        for step in range(100):
            on_progress(step, 100, "unpacking")
    printed = capsys.readouterr()
    assert printed.out == "", "stdout is for the result"
    assert re.fullmatch(r"… building the image\n✓ building the image: \d+\.\d s\n", printed.err)


def test_progress_in_a_log_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "SPARSE_S", 0.0)
    with output.progress("step") as on_progress:
        on_progress(1, 4, "unpacking [libc]")
        on_progress(2, 0, "")
    assert "  step: 25 % unpacking [libc] (0 s)\n  step: (0 s)\n" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "word"), [(ValueError("x"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_progress_says_when_a_step_failed(error: BaseException, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)), output.progress("step"):
        raise error
    assert re.search(rf"✗ step: {word} after \d+\.\d s\n$", capsys.readouterr().err)


# -- progress on a terminal ---------------------------------------------------------------------------------------

NESTED = """
from evenkeel.cli import output
with output.progress("outer [step]") as outer:
    outer(1, 2, "half [done]")
    with output.progress("inner") as inner:
        inner(0, 0, "")
        output.note("a note")
output.out().print("the result")
"""


def test_progress_on_a_terminal_shows_bars_and_leaves_one_line_each() -> None:
    """On a real pseudo-terminal; a step inside a step shares the display."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        result = subprocess.run(
            [sys.executable, "-c", NESTED],
            stdout=subprocess.PIPE,
            stderr=follower,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            check=False,
        )
        os.close(follower)
        seen = b""
        while True:
            try:
                piece = terminal.read(65536)
            except OSError:  # EIO: everything was read
                break
            if not piece:
                break
            seen += piece
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert (result.returncode, result.stdout) == (0, "the result\n")
    assert "━" in text and "half [done]" in text, "a bar"
    assert re.search(r"✓ inner: \d+\.\d s", text)
    assert re.search(r"✓ outer \[step\]: \d+\.\d s\s*$", text), "the last line"
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") == 1, "the cursor comes back"
