"""`evenkeel lab up` as a process: who asks by its socket, who holds its folder, how it ends, its events as a stream."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab import agent_setup, place, settings, unit
from evenkeel.lab import folder as folders
from evenkeel.lab.actor import Forbidden
from evenkeel.lab.client import Client
from tests.lab.service import Running, evenkeel, up
from tests.waiting import until


@pytest.fixture(scope="module")
def lab_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Under /tmp and short: the kernel takes 107 characters as the path of a socket.
    with up(tmp_path_factory.mktemp("lab") / "state") as running:
        yield running


def test_it_is_up_and_knows_who_asks(lab_up: Running) -> None:
    with lab_up.client() as client:
        me = client.get("/me")
        assert me["via"] == "socket" and "anything" in me["scopes"]
        found = client.get("/service")
        assert found["active"] and found["url"] == lab_up.url
    assert httpx.get(lab_up.url + "/api/v1/me").status_code == 401, "by TCP nobody is known"
    assert oct((lab_up.folder / "session.key").stat().st_mode)[-3:] == "600"
    assert oct(lab_up.folder.stat().st_mode)[-3:] == "700"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_user_is_somebody_else_and_no_admin(lab_up: Running) -> None:
    script = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /api/v1/me HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
    )
    # The folder is the service's own: what stands open is the socket, by a name that all can reach.
    lab_up.folder.chmod(0o711)
    for above in lab_up.folder.parents:
        if above.stat().st_mode & 0o001 == 0:
            above.chmod(0o711)
    command = [sys.executable, "-c", script, str(lab_up.folder / "lab.sock")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(answer.rpartition("\n\n")[2])
    assert found["name"] == "nobody" and found["via"] == "socket"
    # Whoever submits runs on this machine as the service: not any account of it.
    assert found["scopes"] == ["read"]


def test_a_second_one_says_who_holds_the_folder(lab_up: Running) -> None:
    done = evenkeel("lab", "up", "--folder", str(lab_up.folder), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"a lab runs in {lab_up.folder} already: process {lab_up.process.pid}" in done.stderr
    assert "evenkeel lab down" in done.stderr
    found = folders.holder(lab_up.folder)
    assert found is not None and found.pid == lab_up.process.pid


def test_an_address_that_is_taken_is_told(lab_up: Running, tmp_path: Path) -> None:
    taken = lab_up.url.removeprefix("http://")
    done = evenkeel("lab", "up", "--folder", str(tmp_path / "other"), "--listen", taken)
    assert done.returncode == 2 and f"cannot listen on {taken}" in done.stderr and "Traceback" not in done.stderr


def test_commands_over_the_socket(lab_up: Running) -> None:
    at = ("--lab", str(lab_up.folder))
    shown = evenkeel("lab", "status", *at)
    assert shown.returncode == 0 and "active" in shown.stdout
    link = evenkeel("lab", "open", *at).stdout.strip()
    with httpx.Client() as browser:
        assert browser.get(link).status_code == 303
        assert browser.get(lab_up.url + "/").status_code == 200
    made = json.loads(evenkeel("lab", "token", "make", "job", "--may", "read", *at, "--json").stdout)
    with Client(lab_up.url, made["secret"]) as client:
        assert client.get("/me")["scopes"] == ["read"]
        with pytest.raises(Forbidden, match="may not add services"):
            client.post("/people", {"name": "ci", "roles": ["user"]})
    assert "job" in evenkeel("lab", "token", "list", *at).stdout
    assert "token.made" in evenkeel("lab", "events", *at).stdout
    refused = evenkeel("lab", "token", "make", "job", "--may", "fly", *at, "--json")
    assert refused.returncode == 2 and json.loads(refused.stdout)["error"]["kind"] == "WrongInput"


def test_log_in_from_elsewhere(lab_up: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    command = [sys.executable, "-m", "evenkeel", "lab", "login", lab_up.url, "--json"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as waiting:
        assert waiting.stderr is not None and waiting.stdout is not None
        code = waiting.stderr.readline().strip().rpartition("=")[2]
        with lab_up.client() as client:
            client.post("/login/device/decide", {"user_code": code, "grant": True})
        assert json.loads(waiting.stdout.read())["principal"]
    assert oct((tmp_path / "evenkeel" / "lab-tokens.json").stat().st_mode)[-3:] == "600"
    me = evenkeel("lab", "me", "--lab", lab_up.url)
    assert "login from" in me.stdout
    evenkeel("lab", "logout", lab_up.url)
    me = evenkeel("lab", "me", "--lab", lab_up.url)
    assert me.returncode == 1 and "not known" in me.stderr


def test_events_come_as_they_are_written(lab_up: Running) -> None:
    with lab_up.client() as client, lab_up.client() as reader:
        lines = reader.lines("/events", type="principal.*")
        assert next(lines) == ": hello"
        client.post("/people", {"name": "ci-events", "roles": ["user"]})
        got = [next(lines) for _ in range(4)]
        assert got[2] == "event: principal.added" and json.loads(got[3][6:])["object_id"] == "ci-events"
        seq = int(got[1].removeprefix("id: "))
        again = reader.lines("/events", after=seq - 1)
        assert next(again) == ": hello" and [next(again) for _ in range(2)][1] == f"id: {seq}"


def test_metrics_are_for_who_may_read(lab_up: Running) -> None:
    assert httpx.get(lab_up.url + "/metrics").status_code == 401
    transport = httpx.HTTPTransport(uds=str(lab_up.folder / "lab.sock"))
    with httpx.Client(transport=transport, base_url="http://lab") as client:
        text = client.get("/metrics").text
    page = (Path(__file__).parents[2] / "docs" / "reference" / "lab-api.md").read_text()
    listed = {name.removesuffix("_total") for name in re.findall(r"`(evenkeel_lab_\w+)", page)}
    assert listed == {name.removesuffix("_total") for name in re.findall(r"# TYPE (\w+)", text)}
    assert "evenkeel_lab_events_total" in text and "# TYPE evenkeel_lab_machines gauge" in text


def with_stream(running: Running, end: Callable[[], int]) -> None:
    """End a service while somebody reads its events, and see that nothing is left."""
    with running.client() as client:
        lines = client.lines("/events")
        next(lines)
        reader = threading.Thread(target=lambda: list(lines))
        reader.start()
        assert end() == 0
        reader.join(60)
        assert not reader.is_alive()
    assert "Traceback" not in running.told.read_text() and "the lab is down" in running.told.read_text()
    assert not (running.folder / "lab.sock").exists()
    assert folders.holder(running.folder) is None
    with running.client() as client, pytest.raises(Unreachable, match="no lab answers"):
        client.get("/me")


def test_what_was_acknowledged_survives_a_kill_and_it_ends_cleanly_with_a_stream_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with up(tmp_path / "s") as running, running.client() as client:
        client.post("/people", {"name": "ci", "roles": ["user"]})
        assert client.get("/openapi.json")["paths"]
        assert "Warning" not in running.said()
        running.end(signal.SIGKILL)
    with up(tmp_path / "s") as running:
        with running.client() as client:
            assert client.get("/people/ci")["roles"] == ["user"]

        def down() -> int:
            monkeypatch.setenv("EVENKEEL_LAB", str(running.folder))
            done = evenkeel("lab", "down")
            assert done.returncode == 0 and "is down" in done.stdout
            return running.process.wait(60)

        with_stream(running, down)
    monkeypatch.setenv("EVENKEEL_LAB", str(tmp_path / "other"))
    assert f"no lab runs in {tmp_path / 's'}" in evenkeel("lab", "down", "--folder", str(tmp_path / "s")).stdout


def test_commands_that_work_on_its_folder_find_the_lab_that_was_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in (tmp_path, tmp_path / "lab.sock"):
        monkeypatch.setenv("EVENKEEL_LAB", str(named))
        assert json.loads(evenkeel("lab", "down", "--json").stdout) == {"folder": str(tmp_path), "ended": False}
        assert f"--folder {tmp_path}" in evenkeel("lab", "up", "--print-unit").stdout
        assert str(tmp_path) in evenkeel("lab", "backup", str(tmp_path / "kept.tar")).stderr
        agent = agent_setup.agent(str(named), name="a", slots=1, labels=(), folder=None, say=print)
        assert agent.folder.is_relative_to(tmp_path)
    assert place.folder_of(str(place.SYSTEM_SOCKET)) == place.SYSTEM_FOLDER


@pytest.mark.parametrize("words", [("up",), ("down",), ("backup", "x.tar"), ("restore", "x.tar")])
def test_a_lab_elsewhere_is_not_taken_for_the_one_here(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_LAB", "https://lab.example.org")
    done = evenkeel("lab", *words)
    assert done.returncode == 2 and "https://lab.example.org names no folder of this machine" in done.stderr
    assert "--folder DIR" in done.stderr


@pytest.mark.long
def test_it_ends_cleanly_by_ctrl_c(tmp_path: Path) -> None:
    with up(tmp_path / "s") as running:
        with_stream(running, lambda: running.end(signal.SIGINT))


@pytest.mark.long
@pytest.mark.parametrize("whom", ["the command", "all of the terminal"])
def test_ctrl_c_ends_lab_run_and_all_that_it_started(tmp_path: Path, whom: str) -> None:
    file = tmp_path / "step.yaml"
    file.write_text(f"kind: slow\ncommand: 'sleep 1234.5 & echo $$ > {tmp_path}/pid; sleep 1234.5'\n")
    command = [sys.executable, "-m", "evenkeel", "lab", "run", str(file), "-o", str(tmp_path / "out")]
    pid, home = tmp_path / "pid", f"HOME={tmp_path}/out/".encode()

    def left() -> list[str]:
        found = []
        for one in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if home in (one / "environ").read_bytes():
                    found.append((one / "cmdline").read_text())
        return found

    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        try:
            until(lambda: pid.exists() and pid.read_text().strip())
            assert len(left()) >= 2, "two of its processes"
            (os.killpg if whom.startswith("all") else os.kill)(process.pid, signal.SIGINT)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert told.endswith("interrupted\n") and "Traceback" not in told
    assert left() == []


def test_settings_that_are_wrong_are_told_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("listen: 127.0.0.1:0\noidc:\n  issuer: https://id.example.org\n  client: lab\n")
    done = evenkeel("lab", "up", "--folder", str(tmp_path))
    assert done.returncode == 2
    assert "lab.yaml:4:3" in done.stderr and 'did you mean "client_id"?' in done.stderr
    done = evenkeel("lab", "up", "--folder", str(tmp_path / "x"), "--listen", "nowhere")
    assert done.returncode == 2 and "--listen: 'nowhere' is no address" in done.stderr
    done = evenkeel("lab", "up", "--folder", str(tmp_path / "x"), "--database", "mysql://a/b")
    assert done.returncode == 2 and "no database of the lab: mysql" in done.stderr


def test_addresses() -> None:
    assert settings.address_of(":80") == ("::", 80)
    assert settings.address_of("[::1]:80") == ("::1", 80)
    for wrong in ("80", "host:", "host:x", "host:99999", "host:²"):
        with pytest.raises(ValueError, match="no address"):
            settings.address_of(wrong)


def test_numbers_of_the_settings_are_read_and_judged(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("agent_slots: 0\ncredits: 5\nshares:\n  release: 2\n  docs: 0.5\n")
    found = settings.read(file)
    assert (found.agent_slots, found.credits, found.shares) == (0, 5, {"release": 2.0, "docs": 0.5})
    for wrong, told in (
        ("agent_slots: -1", "must be at least 0"),
        ("agent_slots: two", "not a whole number"),
        ("shares:\n  a: 1e3", "not a number"),
        ("shares:\n  a: 0", "greater than 0"),
    ):
        file.write_text(f"{wrong}\n")
        with pytest.raises(WrongInput, match=told) as error:
            settings.read(file)
        assert "lab.yaml:" in str(error.value.where)


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    done = evenkeel("lab", "up", "--folder", str(tmp_path / ("x" * 120)), "--listen", "127.0.0.1:0")
    assert done.returncode == 2 and "too long for the kernel" in done.stderr


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 65534, 65534)
        with pytest.raises(WrongInput, match="belongs to another user"):
            folders.prepare(tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongInput, match="cannot be made"):
        folders.prepare(tmp_path / "file")


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    done = evenkeel("lab", "up", "--folder", "/srv/a b", "--print-unit")
    path = tmp_path / "evenkeel-lab.service"
    path.write_text(done.stdout)
    assert '--folder "/srv/a b"' in done.stdout or "--folder '/srv/a b'" in done.stdout
    told = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert unit.unit(["--x"]).startswith("# Written by")
    # Its user may be another one, whose usual folder would be elsewhere.
    assert f"--folder {place.SYSTEM_FOLDER}\n" in evenkeel("lab", "up", "--print-unit").stdout


@pytest.mark.parametrize("journal", [True, False])
def test_no_link_that_logs_in_is_written_to_a_journal(journal: bool, tmp_path: Path) -> None:
    (tmp_path / "told").touch()
    found = (tmp_path / "told").stat()
    stream = f"{found.st_dev}:{found.st_ino if journal else 0}"
    with (tmp_path / "told").open("w") as told:
        words = [sys.executable, "-m", "evenkeel", "lab", "up", "--folder", str(tmp_path / "s")]
        words += ["--listen", "127.0.0.1:0"]
        kept = {name: value for name, value in os.environ.items() if name != "EVENKEEL_LAB"}
        process = subprocess.Popen(words, stderr=told, env=kept | {"JOURNAL_STREAM": stream})
    try:
        until(
            lambda: "Ctrl-C ends it" in " ".join((tmp_path / "told").read_text().split()) or process.poll() is not None,
            told=(tmp_path / "told").read_text,
        )
        assert process.poll() is None, (tmp_path / "told").read_text()
    finally:
        process.terminate()
        process.wait(60)
    said = (tmp_path / "told").read_text()
    assert ("/login/link/" in said) is not journal
    assert "export EVENKEEL_LAB=" in said and str(tmp_path / "s") in said


def test_an_agent_has_a_unit_that_systemd_takes_and_that_nothing_of_it_outlives(tmp_path: Path) -> None:
    given = ("--lab", "https://lab.example.org", "--slots", "8", "--label", "cross=arm64", "--label", "say=a b%c")
    done = evenkeel("lab", "agent", *given, "--folder", "rel", "--slurm", "", "--print-unit")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "evenkeel-agent.service"
    path.write_text(done.stdout)
    told = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("ExecStart=")]
    assert ' lab agent --lab https://lab.example.org --slots 8 --label cross=arm64 --label "say=a b%%c"' in command
    assert command.endswith(f'--folder {Path("rel").absolute()} --slurm ""')
    # What docs/explanation/lab-losses.md relies on: the control group ends with the agent, its cgroups are its own.
    assert {"KillMode=mixed", "SendSIGKILL=yes", "Delegate=yes", "Restart=always"} <= set(done.stdout.splitlines())
    plain = evenkeel("lab", "agent", "--lab", "https://lab.example.org", "--print-unit").stdout
    folder = plain.partition("--folder ")[2].split()[0]
    assert f"StateDirectory={Path(folder).relative_to('/var/lib')}\n" in plain
    wrong = evenkeel("lab", "agent", "--label", "no equals sign", "--print-unit")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr and not wrong.stdout
    assert "EVENKEEL_LAB_TOKEN" not in command  # a token never stands in a file that all can read


def test_the_socket_is_unreachable_for_nobody() -> None:
    with Client("/nowhere/lab.sock") as client, pytest.raises(Unreachable, match="evenkeel lab up"):
        client.get("/me")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(Unreachable):
        client.get("/me")
