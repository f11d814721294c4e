"""The frame of the command line: what is loaded when, how it ends, what it says.

Verbs that fail on purpose are put in the place of real ones; everything else is the real program.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from evenkeel import __version__
from evenkeel.cli import main, output
from evenkeel.cli.root import VERBS, root_command
from evenkeel.errors import EvenkeelError, NotAsWanted, RolledBack, Unreachable, Where, WrongInput

HEAVY = {"typer", "pydantic", "rich", "ruamel"}


def evenkeel(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evenkeel", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | (env or {}),
        check=False,
    )


def imported_by(*arguments: str) -> set[str]:
    """Names of all modules that are loaded when the command has run, in a Python of its own."""
    program = (
        "import sys; from evenkeel.cli import main; main(sys.argv[1:]); print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(result.stderr.splitlines())


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Put a function in the place of the verb `status`."""

    def install(does: Callable[[], object]) -> None:
        def register(app: typer.Typer) -> None:
            @app.command("status")
            def status(name: str = "", json: bool = False) -> object:
                return does()

        module = types.ModuleType("evenkeel.cli.status")
        module.register = register  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "evenkeel.cli.status", module)
        monkeypatch.setattr(output, "_emitted", False)

    return install


def fails_with(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


# -- what is loaded when ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_loads_nothing_heavy(option: str) -> None:
    modules = imported_by(option)
    assert "evenkeel.cli" in modules
    assert not {module for module in modules if module.partition(".")[0] in HEAVY}


def test_help_and_completion_load_no_verb_and_no_pydantic() -> None:
    modules = imported_by("--help")
    assert "typer" in modules, "else the check of --version above could not fail"
    verbs = {module for module in modules if module.startswith("evenkeel.") and module.count(".") == 2}
    assert verbs == {"evenkeel.cli.root"}
    assert not {"pydantic", "rich", "ruamel"} & modules


def test_a_verb_loads_no_other_verb() -> None:
    modules = imported_by("schema", "--help")
    assert "evenkeel.cli.schema" in modules
    assert not {f"evenkeel.cli.{verb}" for verb in VERBS if verb != "schema"} & modules


def test_version_is_printed() -> None:
    result = evenkeel("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"evenkeel {__version__}\n", "")


# -- help ---------------------------------------------------------------------------------------------------------


def test_help_lists_the_verbs_in_the_order_of_the_river() -> None:
    result = evenkeel("--help")
    assert result.returncode == 0
    listed = re.findall(r"^  ([a-z]+)  +[A-Z]", result.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(VERBS)
    river = ["facts", "plan", "explain", "apply"]
    assert [verb for verb in listed if verb in river] == river
    for text in VERBS.values():
        assert text in result.stdout, "not cut off at 80 columns"


def test_nothing_asked_is_wrong_input_and_shows_the_help() -> None:
    result = evenkeel()
    assert (result.returncode, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


@pytest.mark.parametrize("verb_name", VERBS)
def test_every_verb_has_help_with_an_example(verb_name: str) -> None:
    command = root_command()
    context = command.make_context("evenkeel", [verb_name], resilient_parsing=True)
    _, loaded, _ = command.resolve_command(context, [verb_name])
    for call, one in leaves(f"evenkeel {verb_name}", loaded):
        with one.make_context(call, [], resilient_parsing=True) as own:
            text = one.get_help(own)
        assert re.search(rf"^    {call}\b", text, re.MULTILINE), f"no example line in the help of {call}:\n{text}"
        assert "--json" in text or call in NO_RESULT, f"{call} has no --json"


def leaves(call: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below, groups of groups included, with how they are called."""
    below = getattr(command, "commands", None)
    if below is None:
        yield call, command
        return
    for name, one in below.items():
        yield from leaves(f"{call} {name}", one)


#: Verbs that hand the terminal to something else, run until they are ended, give a text or a file as it is, or nothing.
NO_RESULT = {
    *("evenkeel virtual ssh", "evenkeel virtual console"),
    *("evenkeel lab up", "evenkeel lab agent", "evenkeel lab log", "evenkeel lab artifact get"),
    *("evenkeel lab endpoint remove", "evenkeel lab secret set", "evenkeel lab secret remove"),
}


def test_examples_in_help_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--help"]) == 0
    assert "\n    evenkeel schema Site > site.schema.json\n" in capsys.readouterr().out


# -- how it ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"), [(EvenkeelError, 1), (NotAsWanted, 1), (WrongInput, 2), (Unreachable, 3), (RolledBack, 4)]
)
def test_each_error_has_its_exit_code(
    error: type[EvenkeelError],
    code: int,
    verb: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(fails_with(error("it went [bold]wrong[/bold]", hint="try again")))
    assert main(["status"]) == code
    assert capsys.readouterr() == ("", "error: it went [bold]wrong[/bold]\nhint: try again\n")


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (True, 0), ("text", 0)])
def test_a_verb_may_return_its_exit_code(
    result: object, code: int, verb: Callable[[Callable[[], object]], None]
) -> None:
    verb(lambda: result)
    assert main(["status"]) == code


def test_a_verb_may_end_with_typer_exit(verb: Callable[[Callable[[], object]], None]) -> None:
    verb(fails_with(typer.Exit(1)))
    assert main(["status"]) == 1


def test_a_defect_keeps_its_traceback(
    verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(fails_with(ZeroDivisionError("what?")))
    assert main(["status"]) == 70
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "error: ZeroDivisionError: what?\nthis is a defect in Evenkeel" in told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_defect(
    number: int, verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(fails_with(OSError(number, "full", "/var/x")))
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("error: no space left on the disk while writing /var/x\n")


def test_ctrl_c_is_one_line(verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(fails_with(KeyboardInterrupt()))
    assert main(["status"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_ctrl_c_of_a_real_process_is_one_line() -> None:
    """With the signal itself, while the verb reads its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from evenkeel.cli import files, main, root, output\n"
         "files.read_text = lambda path: (print('ready', flush=True), sys.stdin.read())[1]\n"
         "import types; module = types.ModuleType('evenkeel.cli.status'); sys.modules[module.__name__] = module\n"
         "module.register = lambda app: app.command('status')(lambda: files.load_site('-') and None)\n"
         "sys.exit(main(['status']))"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, told) == (130, "interrupted\n")


@pytest.mark.parametrize("arguments", ["schema Plan", "schema"])
def test_a_reader_that_goes_away_is_no_error(arguments: str) -> None:
    """As in `evenkeel schema Plan | head -1`, with JSON and with a table."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evenkeel", *arguments.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=120), told) == (141, b"")


def test_a_broken_pipe_to_something_else_is_a_defect(verb: Callable[[Callable[[], object]], None]) -> None:
    verb(fails_with(BrokenPipeError(errno.EPIPE, "to a machine")))
    assert main(["status"]) == 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verfy"], "no such command 'verfy'. Did you mean 'verify'"),
        (["schema", "--jsn"], "no such option: --jsn"),
        (["schema", "Site", "Plan"], "got unexpected extra argument(s) (Plan)"),
        (["--frobnicate"], "no such option: --frobnicate"),
        (["schema", "Sight"], "there is no document 'Sight'; did you mean Site?"),
    ],
)
def test_usage_errors_are_wrong_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert "\nhint: " in printed.err
    assert "Traceback" not in printed.err


# -- errors as JSON -----------------------------------------------------------------------------------------------


def test_with_json_an_error_is_json_too(
    verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(fails_with(WrongInput("no", where=Where("site.yaml", 3, 7), hint="yes")))
    assert main(["status", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "error": {
            "kind": "WrongInput",
            "message": "no",
            "hint": "yes",
            "file": "site.yaml",
            "line": 3,
            "column": 7,
            "exit_code": 2,
        }
    }
    assert printed.err == "error: no\n  --> site.yaml:3:7\nhint: yes\n"


def test_an_error_after_the_result_leaves_the_result_alone(
    verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def print_and_fail() -> None:
        output.emit_json({"checks": []})
        raise NotAsWanted("one check failed")

    verb(print_and_fail)
    assert main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"checks": []}


def test_usage_errors_and_defects_are_json_too(
    verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(fails_with(ZeroDivisionError("what?")))
    assert main(["status", "--json"]) == 70
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 70
    output._emitted = False
    assert main(["verfy", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_json_for_another_program_is_not_for_us(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verfy", "--", "lsblk", "--json"]) == 2
    assert capsys.readouterr().out == ""


# -- completion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("evenkeel pl", ["plan", "place"]),
        ("evenkeel ", list(VERBS)),
        ("evenkeel r", ["rules", "rollback", "report"]),
        ("evenkeel schema --j", ["--json"]),
        ("evenkeel --vers", ["--version"]),
    ],
)
def test_bash_completes(line: str, expected: list[str]) -> None:
    words = line.split(" ")
    result = evenkeel(
        env={"_EVENKEEL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    )
    assert (result.returncode, result.stdout.split()) == (0, expected)


def test_zsh_and_fish_complete_with_help() -> None:
    for shell in ("zsh", "fish"):
        result = evenkeel(
            env={
                "_EVENKEEL_COMPLETE": f"complete_{shell}",
                "_TYPER_COMPLETE_ARGS": "evenkeel explai",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            }
        )
        assert result.returncode == 0
        assert "explain" in result.stdout and "Say why a plan sets one value" in result.stdout


def test_the_completion_script_works_in_a_real_bash(tmp_path: Path) -> None:
    program = tmp_path / "evenkeel"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m evenkeel "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = subprocess.run(
        ["evenkeel", "--show-completion", "bash"],
        env=environment | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    asked = subprocess.run(
        ["bash", "--norc", "-c", f'{script}\nCOMP_WORDS=(evenkeel ver) COMP_CWORD=1\n_evenkeel_completion evenkeel\n'
         'echo "${COMPREPLY[@]}"; complete -p evenkeel'],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert asked.stdout.splitlines() == ["verify", "complete -o default -F _evenkeel_completion evenkeel"]


# -- the table of verbs -------------------------------------------------------------------------------------------


def test_a_broken_verb_breaks_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "evenkeel.cli.status", None)  # importing it raises ImportError
    with pytest.raises(ImportError):
        importlib.import_module("evenkeel.cli.status")
    assert main(["schema"]) == 0
    assert main(["--help"]) == 0
    assert main(["status"]) == 70
    assert "defect" in capsys.readouterr().err
