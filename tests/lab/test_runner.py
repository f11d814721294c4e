"""Running one step for real: what it is given, what is collected, what holds it, and that nothing of it is left."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.lab.runner import FOLDER, Ran, Run, pack, sha256_of
from evenkeel.lab.step import Input, Step, Use, find_step, graph_of_step
from tests.waiting import until

Runner = Callable[..., Ran]


def use_of(
    command: Any, given: dict[str, str] | None = None, inputs: dict[str, Input] | None = None, **more: Any
) -> Use:
    step = Step.model_validate({"kind": "try", "command": command, **more})
    use = graph_of_step(step.model_copy(update={"inputs": {**step.inputs, **(inputs or {})}}), given or {})
    return use.steps["try"]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    def run(command: Any, *, place: str = "step", **more: Any) -> Ran:
        fetch, files_from = more.pop("fetch", None), more.pop("files_from", None)
        return Run(use_of(command, **more), tmp_path / place, fetch=fetch, files_from=files_from).run()

    return run


def gone(pid: int) -> bool:
    """Whether a process ended; a zombie that nobody fetched has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_output_artifacts_and_settings(run: Runner) -> None:
    ran = run(
        'cd "$OUT"; echo "$SET_ARCH" >m.ko; mkdir d; echo x >d/f; echo \'{"n": 3}\' >output.json; echo hi',
        given={"arch": "arm64"},
        parameters={"arch": {}},
        artifacts={"module": {"path": "m.ko"}, "folder": {"path": "d"}},
    )
    assert (ran.result.state, ran.result.exit, ran.result.output) == ("passed", 0, {"n": 3})
    folder, module = ran.result.artifacts
    assert module.sha256 == hashlib.sha256(b"arm64\n").hexdigest()
    assert folder.media == FOLDER
    assert ran.files["module"].read_bytes() == b"arm64\n"
    assert ran.log.read_text() == "hi\n"


def test_a_setting_is_never_shell_text(run: Runner, tmp_path: Path) -> None:
    ran = run(
        'printf %s "$SET_A" >"$OUT/a"',
        given={"a": f"$(touch {tmp_path}/bad) `touch {tmp_path}/bad`; touch {tmp_path}/bad"},
        parameters={"a": {}},
        artifacts={"a": {"path": "a"}},
    )
    assert ran.result.state == "passed"
    assert not (tmp_path / "bad").exists()
    assert "touch" in ran.files["a"].read_text()


def test_scripts_come_along_and_nothing_is_inherited(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    ran = run('"$LIB/say" one; env; ls "$HOME" "$TMPDIR"', scripts={"say": '#!/bin/sh\necho "said $1"\n'})
    assert "said one" in ran.log.read_text()
    assert "hunter2" not in ran.log.read_text()


@pytest.mark.parametrize(
    ("command", "more", "cause", "said"),
    [
        ("exit 3", {}, "exit", "ended with 3"),
        ("kill -9 $$", {}, "exit", "ended by signal 9"),
        ("false | true", {}, "exit", "ended with 1"),
        (["no-such-program"], {}, "exit", "ended with 127"),
        ("true", {"tools": ["no-such-program"]}, "tool", "not installed here: no-such-program"),
        ("echo no >$OUT/output.json", {}, "output", "no JSON"),
        ("echo '[1]' >$OUT/output.json", {}, "output", "no JSON object"),
        ("echo '{\"a\": NaN}' >$OUT/output.json", {}, "output", "NaN is not a number"),
        ("ln -s /etc/passwd $OUT/output.json", {}, "output", "is no file"),
        ("true", {"artifacts": {"a": {"path": "a"}}}, "artifact", "there is no a in $OUT"),
        ("ln -s /etc $OUT/a", {"artifacts": {"a": {"path": "a", "optional": True}}}, "artifact", "leads out of $OUT"),
        ("true", {"inputs": {"x": Input(file="x")}}, "input", "was not sent along"),
        ("true", {"inputs": {"x": Input(git="/no/such")}}, "input", "git clone"),
    ],
)
def test_what_goes_wrong_has_its_cause(run: Runner, command: Any, more: dict[str, Any], cause: str, said: str) -> None:
    result = run(command, **more).result
    assert (result.state, result.cause) == ("failed", cause)
    assert said in result.detail


def test_a_failed_command_still_gives_what_it_has(run: Runner) -> None:
    ran = run(
        'echo log >"$OUT/log"; echo \'{"new": 2}\' >"$OUT/output.json"; exit 1',
        artifacts={"log": {"path": "log"}, "module": {"path": "m"}},
    )
    assert (ran.result.cause, ran.result.output) == ("exit", {"new": 2})
    assert [one.name for one in ran.result.artifacts] == ["log"]


def test_too_slow(run: Runner) -> None:
    result = run("exec sleep 60", limits={"time": "300ms"}).result
    assert (result.state, result.cause, result.detail) == ("timed-out", "time", "took longer than 0.3 s")


def test_what_was_learned_limits_where_the_definition_does_not(tmp_path: Path) -> None:
    result = Run(use_of("exec sleep 60"), tmp_path / "s", time_ns=300_000_000).run().result
    assert result.state == "timed-out"


def test_too_much_memory(run: Runner) -> None:
    hog = [sys.executable, "-c", "x = b'x' * (200 << 20); import time; time.sleep(60)"]
    result = run(hog, limits={"memory": "100MiB", "time": "50s"}).result
    assert (result.state, result.cause) == ("failed", "memory")
    assert result.times.memory is not None
    assert result.times.memory > 100 << 20


@pytest.mark.parametrize("last", ["sleep 60", "true"])
def test_too_much_disk(run: Runner, last: str) -> None:
    result = run(f"head -c 20M /dev/zero >big; {last}", limits={"disk": "10MiB", "time": "50s"}).result
    assert (result.state, result.cause) == ("failed", "disk")


def test_one_cpu_is_one_cpu(run: Runner) -> None:
    ran = run("nproc; echo $JOBS", limits={"cpus": 1})
    assert ran.log.read_text() == "1\n1\n"


def test_processes_that_it_left_are_ended(run: Runner) -> None:
    # Its own session and its own parent: a kill of the process group would not reach it.
    ran = run(
        "setsid -f sleep 77 </dev/null; setsid -f sh -c 'echo $$ >$OUT/pid; exec sleep 77'; sleep 0.2",
        artifacts={"pid": {"path": "pid"}},
    )
    assert ran.result.state == "passed"
    assert gone(int(ran.files["pid"].read_text()))


def test_cancelling_ends_it_politely_first(tmp_path: Path) -> None:
    run = Run(use_of("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"), tmp_path / "s")
    up = threading.Event()
    run.on_log = lambda chunk: up.set() if b"up" in chunk else None

    def cancel_when_up() -> None:
        assert up.wait(60)
        run.cancel()

    thread = threading.Thread(target=cancel_when_up)
    thread.start()
    ran = run.run()
    thread.join()
    assert (ran.result.state, ran.result.cause) == ("cancelled", "cancelled")
    said = ran.log.read_text()  # the shell may tell that its sleep was terminated, in between
    assert said.startswith("up\n") and said.endswith("bye\n")


def test_cancelled_before_it_began(tmp_path: Path) -> None:
    run = Run(use_of("touch $OUT/ran"), tmp_path / "s")
    run.cancel()
    assert run.run().result.state == "cancelled"
    assert not (tmp_path / "s/out/ran").exists()


def test_a_killed_agent_takes_its_step_with_it(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from evenkeel.lab.runner import Run; from evenkeel.lab.step import *\n"
        "use = graph_of_step(Step(kind='try', command='echo $$ >$OUT/pid; exec sleep 77'), {}).steps['try']\n"
        f"Run(use, Path({str(tmp_path / 's')!r})).run()"
    )
    agent = subprocess.Popen([sys.executable, "-c", program], cwd="/")
    file = tmp_path / "s/out/pid"
    try:
        pid = int(until(lambda: file.exists() and file.read_text()))
        assert not gone(pid)
    finally:
        agent.kill()
        agent.wait()
    until(lambda: gone(pid))


def test_the_log_comes_as_it_is_written(tmp_path: Path) -> None:
    seen: list[bytes] = []
    run = Run(use_of("echo one; sleep 0.3; echo two"), tmp_path / "s", on_log=seen.append)
    ran = run.run()
    assert b"".join(seen) == ran.log.read_bytes() == b"one\ntwo\n"
    assert len(seen) == 2


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_files_and_folders_as_inputs(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/sub/a.c").write_text("int a;\n")
    ran = run(
        'cat "$IN/src/sub/a.c" "$IN/one"; test ! -e "$IN/none"',
        inputs={
            "src": Input(file="src"),
            "one": Input(file="src/sub/a.c"),
            "none": Input(file="none", optional=True),
            "left": Input(optional=True),
        },
        files_from=tmp_path,
    )
    assert ran.log.read_text() == "int a;\nint a;\n"
    assert set(ran.result.inputs) == {"src", "one"}


def test_contents_come_by_their_hash(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/f").write_text("inside\n")
    pack(tmp_path / "folder", tmp_path / "packed")
    digest = sha256_of(tmp_path / "packed")

    def fetch(sha256: str, target: Path) -> None:
        assert sha256 == digest
        shutil.copyfile(tmp_path / "packed", target)

    given = {"d": Input(content=digest, media=FOLDER), "j": Input(json_text='{"a": 1}')}
    ran = run('cat "$IN/d/f" "$IN/j"', inputs=given, fetch=fetch)
    assert ran.log.read_text() == 'inside\n{"a": 1}'
    assert ran.result.inputs["d"] == digest


def test_contents_that_are_not_what_they_should_be_are_refused(run: Runner) -> None:
    ran = run(
        "true",
        inputs={"d": Input(content="0" * 64)},
        fetch=lambda _, target: target.write_text("other") and None,
    )
    assert ran.result.cause == "input"
    assert "came as" in ran.result.detail


def test_an_archive_cannot_write_outside(run: Runner, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "evil", "w") as tar:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    digest = sha256_of(tmp_path / "evil")
    ran = run(
        "true",
        inputs={"d": Input(content=digest, media=FOLDER)},
        fetch=lambda _, target: shutil.copyfile(tmp_path / "evil", target) and None,
    )
    assert ran.result.cause == "input"
    assert not list(tmp_path.rglob("escaped"))


def test_a_commit_as_input(run: Runner, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    env = {**os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@x", "GIT_COMMITTER_NAME": "a"}
    env |= {"GIT_COMMITTER_EMAIL": "a@x", "GIT_CONFIG_GLOBAL": "/dev/null"}

    def git(*words: str) -> str:
        command = ["git", "-C", str(repository), *words]
        return subprocess.run(command, check=True, env=env, capture_output=True, text=True).stdout.strip()

    repository.mkdir()
    git("init", "-q", "-b", "main")
    (repository / "f").write_text("old\n")
    git("add", "f")
    git("commit", "-qm", "old")
    git("branch", "stable")
    (repository / "f").write_text("new\n")
    git("commit", "-qam", "new")
    ran = run('cat "$IN/tree/f"', inputs={"tree": Input(git=str(repository), ref="stable")})
    assert ran.log.read_text() == "old\n"
    assert ran.result.inputs["tree"] == git("rev-parse", "stable")
    wrong = run("true", inputs={"tree": Input(git=str(repository), ref="nope")})
    assert "has no nope" in wrong.result.detail


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a git server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"git://127.0.0.1:{server.getsockname()[1]}/x"


def test_a_repository_that_does_not_answer_ends_with_the_time_of_the_step(run: Runner, silent: str) -> None:
    result = run("true", inputs={"tree": Input(git=silent)}, limits={"time": "500ms"}).result
    assert (result.state, result.cause) == ("timed-out", "time")


def test_cancelling_while_a_repository_does_not_answer(tmp_path: Path, silent: str) -> None:
    run = Run(use_of("true", inputs={"tree": Input(git=silent)}), tmp_path / "s")
    threading.Timer(0.3, run.cancel).start()
    assert run.run().result.state == "cancelled"


def test_a_repository_cannot_be_a_program(run: Runner, tmp_path: Path) -> None:
    result = run("true", inputs={"tree": Input(git=f"ext::touch {tmp_path}/ran")}).result
    assert result.cause == "input"
    assert not (tmp_path / "ran").exists()


# -- the same everywhere ----------------------------------------------------------------------------------------------


def test_the_same_step_gives_the_same_bytes_in_another_place(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "w.c").write_text("int f(void) { int unused; return 0; }\n")
    more: dict[str, Any] = {
        "inputs": {"source": Input(file="w.c")},
        "files_from": tmp_path,
        "artifacts": {"object": {"path": "w.o"}, "log": {"path": "build.log"}},
        "warnings": "log",
    }
    command = """
        gcc -Wall -c -o "$OUT/w.o" -x c "$IN/source" 2>&1 | sed "s,$IN/,,g" >"$OUT/build.log"
        echo "{\\"size\\": $(stat -c %s "$OUT/w.o")}" >"$OUT/output.json"
    """
    one = run(command, place="here", **more).result
    other = run(command, place="a/longer/place/there", **more).result
    assert one.state == "passed"
    assert one.warnings is not None
    assert [warning.text for warning in one.warnings] == ["unused variable 'unused' [-Wunused-variable]"]
    assert one.comparable() == other.comparable()
    assert one.to_json() != other.to_json()  # they did run at different times
    changed = run(command.replace("-Wall", "-O2"), place="here", **more).result
    assert one.comparable() != changed.comparable()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_shows_the_system_and_nothing_else(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    script = f"""
        test ! -e {tmp_path}/secret
        ! touch /usr/bin/evil 2>/dev/null
        ! touch "$LIB/evil" 2>/dev/null
        test "$(ls /sys/class/net 2>/dev/null | wc -l)" -le 1
        echo x >"$OUT/x"; gcc --version >/dev/null
    """
    ran = run(script, isolation="bubblewrap", artifacts={"x": {"path": "x"}})
    assert ran.result.state == "passed", ran.log.read_text()
    assert ran.result.place.isolation == "bubblewrap"
    # The same without it sees the file: the check above can fail.
    assert run(script, artifacts={"x": {"path": "x"}}).result.cause == "exit"


def test_a_shipped_step_that_does_not_exist_is_told() -> None:
    with pytest.raises(Exception, match="there is no shipped step 'nope'"):
        find_step("nope")
