"""Results and artifacts over REST, on pages and in the command line; the same graph here and in a lab."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evenkeel.cli import output
from evenkeel.cli.root import run as evenkeel
from evenkeel.errors import WrongInput
from evenkeel.lab import agent as agents
from evenkeel.lab import artifacts, dispatching, local, results, steps, submissions
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.artifacts import contents
from evenkeel.lab.client import Client
from evenkeel.lab.dispatching import socket_path
from evenkeel.lab.executor import Processes
from evenkeel.lab.lab import Lab
from evenkeel.lab.runner import FOLDER
from evenkeel.lab.step import Graph, read_graph
from evenkeel.lab.store import Store, create, sqlite_url
from evenkeel.lab.transfer import Broken, Here, There, download, upload
from tests.lab.conftest import an_app
from tests.lab.service import up
from tests.lab.test_artifacts import Work, sha, work  # noqa: F401  work is a fixture
from tests.waiting import until

Ask = Callable[..., TestClient]
ANN = with_roles("ann", ["user"])


def run(*arguments: str) -> tuple[int, str, str]:
    output._emitted = False
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = evenkeel(arguments)
    return code, out.getvalue(), err.getvalue()


# -- REST -------------------------------------------------------------------------------------------------------------


def test_contents_are_brought_and_fetched_whole_or_in_part(ask: Ask) -> None:
    client, data = ask("ann"), bytes(range(256)) * 40
    path = f"/api/v1/contents/{sha(data)}"
    assert client.post("/api/v1/contents/missing", json={"sha256": [sha(data)]}).json() == {"sha256": [sha(data)]}
    assert client.get(path).status_code == 404
    assert client.put(path, content=data).json() == {"sha256": sha(data), "size": len(data)}
    assert client.post("/api/v1/contents/missing", json={"sha256": [sha(data)]}).json() == {"sha256": []}
    whole = client.get(path)
    assert whole.content == data
    assert whole.headers["etag"] == f'"{sha(data)}"' and whole.headers["x-content-type-options"] == "nosniff"
    part = client.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    assert client.get(path, headers={"Range": "bytes=99999-"}).status_code == 416
    assert client.put(path, content=b"other").status_code == 422
    assert client.put("/api/v1/contents/nothing", content=b"").status_code == 422
    assert ask("eve", "viewer").put(path, content=data).status_code == 403
    assert ask(None).get(path).status_code == 401


def test_an_agent_brings_and_fetches_files_and_sends_nothing_in(lab: Lab) -> None:
    """With the one scope that it is documented to need."""
    client = TestClient(an_app(lab, who=lambda _: Actor("builder", frozenset({"agent"}), via="token builder")))
    path = f"/api/v1/contents/{sha(b'data')}"
    assert client.post("/api/v1/contents/missing", json={"sha256": [sha(b"data")]}).status_code == 200
    assert client.put(path, content=b"data").status_code == 201
    assert client.get(path).content == b"data"
    graph = {"name": "test", "steps": {"one": {"step": {"kind": "one", "command": ["true"]}}}}
    assert client.post("/api/v1/submissions", json={"graph": graph}).status_code == 403
    assert client.get("/api/v1/artifacts").status_code == 403


def test_a_result_over_rest(ask: Ask, work: Work, lab: Lab, clock: Any) -> None:  # noqa: F811
    first = work.done({"module": b"one"}, output={"size": 1})
    clock.move(60)
    second = work.done({"module": b"three"}, output={"size": 2})
    client = ask("bob")
    listed = client.get("/api/v1/results", params={"same": "build branch=main", "state": "passed"}).json()
    assert [one["attempt"] for one in listed["items"]] == [second, first]
    assert client.get("/api/v1/results", params={"kind": "other"}).json()["items"] == []
    shown = client.get(f"/api/v1/results/{second}").json()
    assert shown["result"]["output"] == {"size": 2} and shown["before"] == first
    compared = client.get(f"/api/v1/results/{second}/comparison").json()["comparison"]
    assert compared["outputs"] == [{"key": "size", "before": 1, "now": 2}]
    other = client.get(f"/api/v1/results/{second}/comparison", params={"with": second}).json()["comparison"]
    assert other["verdict"] == "same"
    assert client.get(f"/api/v1/results/{first}/comparison").status_code == 404
    number = shown["artifacts"][0]["id"]
    fetched = client.get(f"/api/v1/artifacts/{number}/content")
    assert fetched.content == b"three"
    assert fetched.headers["content-disposition"] == 'attachment; filename="module"'
    assert client.post(f"/api/v1/artifacts/{number}/pin").json()["pinned_by"] == "bob"
    assert ask("ann").delete(f"/api/v1/artifacts/{number}/pin").status_code == 403
    assert client.delete(f"/api/v1/artifacts/{number}/pin").json()["pinned_by"] == ""
    assert client.post("/api/v1/artifacts/collect").status_code == 403
    assert ask("root", "admin").post("/api/v1/artifacts/collect").json()["contents"] == 0
    assert client.get("/api/v1/artifacts/usage").json() == {"contents": 2, "size": 8, "artifacts": 2, "pinned": 0}
    found = client.get("/api/v1/artifacts", params={"same": "build branch=", "limit": 1}).json()
    assert [one["attempt"] for one in found["items"]] == [second] and found["next"]
    later = client.get("/api/v1/artifacts", params={"after": found["next"]}).json()
    assert [one["attempt"] for one in later["items"]] == [first]
    assert later["next"] is None


def test_the_pages(ask: Ask, work: Work, lab: Lab, clock: Any) -> None:  # noqa: F811
    from evenkeel.documents.result import Warned

    warned = Warned(signature="a" * 16, tool="cc", file="a.c", text="unused <b>x</b>", times=2)
    client = ask("ann")
    assert "No step has ended yet" in client.get("/results").text
    first = work.done({"module": b"one"}, output={"size": 1, "deep": {"list": [1, 2]}})
    clock.move(60)
    second = work.done({"module": b"three"}, "failed", output={"size": 2}, warnings=(warned,), cause="exit")
    listed = client.get("/results").text
    assert f"/results/{second}" in listed and "branch=main" in listed
    shown = client.get(f"/results/{second}").text
    assert "unused &lt;b&gt;x&lt;/b&gt;" in shown and "<b>x</b>" not in shown
    assert f"/results/{second}/comparison" in shown
    assert "deep.list" in client.get(f"/results/{first}").text
    compared = client.get(f"/results/{second}/comparison")
    assert compared.status_code == 200 and "worse" in compared.text
    number = artifacts.of_attempt(lab, ANN, second)[0].id
    assert client.post(f"/artifacts/{number}/pin").headers["location"] == f"/results/{second}"
    assert "pinned by ann" in client.get(f"/results/{second}").text
    assert client.get(f"/artifacts/{number}").content == b"three"
    assert client.post(f"/artifacts/{number}/unpin").status_code == 303
    assert client.get("/results/999").status_code == 404
    assert client.get("/results?state=nonsense&kind=none").status_code == 200


# -- over a connection ------------------------------------------------------------------------------------------------


@pytest.fixture
def client(ask: Ask) -> Client:
    made = Client("http://lab")
    made.http = ask("ann")
    return made


def test_files_go_to_a_lab_once_and_come_back(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"aaa")
    (tmp_path / "b").write_bytes(b"bb")
    files = {sha(b"aaa"): tmp_path / "a", sha(b"bb"): tmp_path / "b"}
    assert upload(client, files) == 5
    assert upload(client, files) == 0
    There(client).fetch(sha(b"aaa"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"aaa"


def test_a_download_goes_on_where_it_broke_off(client: Client, tmp_path: Path) -> None:
    data = b"0123456789" * 1000
    (tmp_path / "a").write_bytes(data)
    upload(client, {sha(data): tmp_path / "a"})
    part = tmp_path / f".back.{sha(data)[:12]}.part"
    part.write_bytes(data[:6000])
    asked: list[str] = []
    client.http.event_hooks["request"] = [lambda request: asked.append(request.headers.get("range", "all"))]
    download(client, f"/contents/{sha(data)}", sha(data), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert asked == ["bytes=6000-"]
    part = tmp_path / f".other.{sha(data)[:12]}.part"
    part.write_bytes(b"x" * 6000)  # what was there is of something else
    with pytest.raises(Broken, match="came as"):
        download(client, f"/contents/{sha(data)}", sha(data), tmp_path / "other")
    assert not (tmp_path / "other").exists() and not part.exists()


# -- here and there ---------------------------------------------------------------------------------------------------

GRAPH = """
version: 1
name: check
parameters:
  word: {help: what is said}
steps:
  make:
    set: {word: "{word}"}
    step:
      version: 1
      kind: make
      parameters: {word: {}}
      same: [word]
      command: |
        mkdir $OUT/d; echo "$SET_WORD" >$OUT/d/word; echo "a.c:1:1: warning: $SET_WORD" >$OUT/log
        echo '{"good": true, "n": 7}' >$OUT/output.json
      artifacts: {d: {path: d}, log: {path: log}}
      warnings: log
  check:
    needs: [{step: make, when: "good:true n>=7"}]
    inputs: {d: {artifact: make/d}, told: {output: make}, base: {baseline: make/log}}
    step:
      version: 1
      kind: check
      inputs: {d: {help: x}, told: {help: x}, base: {optional: true}}
      command: |
        base=false; if [ -e "$IN/base" ]; then base=true; fi
        cat "$IN/d/word"; cp "$IN/told" "$OUT/told"; echo "{\\"base\\": $base}" >"$OUT/output.json"
      artifacts: {told: {path: told}}
  never:
    needs: [{step: make, when: "good:false"}]
    step: {version: 1, kind: never, command: "exit 1"}
"""


class Agent:
    """An agent of this lab, in a thread."""

    def __init__(self, lab: Lab) -> None:
        here = Here(contents(lab))
        self.agent = agents.Agent(
            lab.folder / "agent",
            "a1",
            2,
            {"arch": ["x86_64"]},
            lambda: agents.local_line(socket_path(lab.folder)),
            lambda identity: Processes("a1", identity, fetch=here.fetch, bring=here.bring),
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        self.task = self.loop.create_task(self.agent.run())
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join()


def in_a_lab(lab: Lab, graph: Graph) -> dict[str, steps.StepInFull]:
    sent = submissions.submit(lab, ANN, graph)
    until(lambda: submissions.show(lab, ANN, sent.id).state != "open")
    return {name: steps.by_name(lab, ANN, sent.id, name) for name in graph.steps}


def test_a_graph_gives_the_same_documents_here_and_in_a_lab(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    graph = read_graph(tmp_path / "graph.yaml", {"word": "hello"})
    here = {one.step: one for one in local.run_graph(graph, tmp_path / "run", files_from=tmp_path)}
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        create(store)
        lab = Lab(tmp_path / "lab", store)
        lab.folder.mkdir()
        with dispatching.running(lab), Agent(lab):
            there = in_a_lab(lab, graph)
            again = in_a_lab(lab, graph)
        assert {name: step.state for name, step in there.items()} == {name: one.state for name, one in here.items()}
        assert here["never"].state == "skipped"
        for name in ("make", "check"):
            attempt = there[name].attempts[-1].id
            shown = results.show(lab, ANN, attempt)
            mine = here[name].result
            assert shown.result is not None and mine is not None
            assert shown.result.comparable() == mine.comparable()
            assert {one.name for one in shown.artifacts} == {one.name for one in mine.artifacts}
        # The second time there is a log of before to be compared with, here as there.
        assert there["check"].output == {"base": False}
        assert again["check"].output == {"base": True}
        found = results.compared(lab, ANN, again["make"].attempts[-1].id)
        assert found.before.attempt == there["make"].attempts[-1].id and found.comparison.verdict == "same"
    second = local.run_graph(graph, tmp_path / "run2", files_from=tmp_path, baseline=tmp_path / "run")
    assert second[1].result is not None
    shown = results_of(again["check"])
    assert second[1].result.comparable() == shown.comparable()


def results_of(step: steps.StepInFull) -> Any:
    from evenkeel.documents.result import Result

    return Result.model_validate(step.attempts[-1].result)


# -- the command line -------------------------------------------------------------------------------------------------


def test_lab_run_of_a_graph_and_compare_of_two_runs(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    folder = str(tmp_path / "run")
    code, out, _ = run("lab", "run", str(tmp_path / "graph.yaml"), "--set", "word=hello", "-o", folder, "--json")
    assert code == 0
    assert [(one["step"], one["state"]) for one in json.loads(out)] == [
        ("make", "passed"), ("check", "passed"), ("never", "skipped"),
    ]  # fmt: skip
    assert (tmp_path / "run/make/artifacts/log").read_text() == "a.c:1:1: warning: hello\n"
    other = str(tmp_path / "other")
    assert run("lab", "run", str(tmp_path / "graph.yaml"), "--set", "word=bye", "-o", other)[0] == 0
    code, out, _ = run("lab", "compare", f"{other}/make/result.json", f"{folder}/make/result.json")
    assert code == 1  # a new warning
    assert "new warning: a.c: bye" in out and "gone warning: a.c: hello" in out
    code, out, _ = run("lab", "compare", f"{folder}/make/result.json", f"{folder}/make/result.json", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "same")
    # Once more into the same folder is fine; into somebody's home is not.
    assert run("lab", "run", str(tmp_path / "graph.yaml"), "--set", "word=hello", "-o", folder)[0] == 0
    (tmp_path / "run/thesis.txt").write_text("mine")
    code, _, err = run("lab", "run", str(tmp_path / "graph.yaml"), "--set", "word=hello", "-o", folder)
    assert code == 2 and "thesis.txt" in err
    assert (tmp_path / "run/thesis.txt").exists()


def test_lab_run_of_a_step_that_fails(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("")
    (tmp_path / "log").write_text("a.c:2:1: warning: fresh [-Wy]\n")
    folder = str(tmp_path / "run")
    files = ("--input", f"log={tmp_path}/log", "--input", f"base={tmp_path}/base")
    code, out, err = run("lab", "run", "new-warnings", *files, "-o", folder)
    assert code == 1
    assert "failed" in out and "new: a.c: fresh" in err
    code, _, err = run("lab", "run", "new-warnings", "-o", folder)
    assert code == 2 and 'needs the input "log"' in err
    code, _, err = run("lab", "run", "new-warning")
    assert code == 2 and "did you mean 'new-warnings'?" in err
    code, _, err = run("lab", "run", "new-warnings", "--set", "allowed")
    assert code == 2 and "is no setting" in err


def test_an_artifact_takes_the_place_of_files_only(tmp_path: Path) -> None:
    """As root `-o /dev/null` would otherwise leave the machine without /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), str(tmp_path), "-"):
        code, _, told = run("lab", "artifact", "get", "17", "-o", name)
        assert code == 2 and "is no ordinary file" in told


def test_artifacts_and_comparison_from_a_running_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    with up(tmp_path / "lab") as service:
        monkeypatch.setenv("EVENKEEL_LAB", str(service.folder))
        for number in (1, 2):
            assert run("lab", "submit", str(tmp_path / "graph.yaml"), "--set", "word=hello")[0] == 0
            with service.client() as lab:
                until(lambda: lab.get(f"/submissions/{number}")["state"] != "open")  # noqa: B023  it is called here
        code, out, _ = run("lab", "artifact", "list", "--name", "log", "--json")
        (later, first) = json.loads(out)
        assert code == 0 and (later["same"], later["sha256"]) == ("make word=hello", first["sha256"])
        file = tmp_path / "fetched"
        assert run("lab", "artifact", "get", str(later["id"]), "-o", str(file))[0] == 0
        assert file.read_text() == "a.c:1:1: warning: hello\n"
        assert "pinned by" in run("lab", "artifact", "pin", str(first["id"]))[2]
        assert "(1 pinned)" in run("lab", "artifact", "usage")[1]
        assert "not pinned" in run("lab", "artifact", "unpin", str(first["id"]))[2]
        assert "0 artifacts forgotten" in run("lab", "artifact", "collect")[1]
        code, out, _ = run("lab", "compare", str(later["attempt"]))
        assert code == 0 and out.startswith("same")
        # What `compare` wants to be told is what `show` tells.
        shown = json.loads(run("lab", "show", "2", "--json")[1])["lines"]
        assert [(one["name"], one["attempt"]) for one in shown if one["name"] != "check"] == [
            ("make", later["attempt"]), ("never", None),
        ]  # fmt: skip
        out = run("lab", "show", "2")[1]
        assert "only after make with good:false, which it has not" in " ".join(out.split()), out
        code, _, err = run("lab", "log", "2", "never")
        assert code == 1 and "was skipped, and never ran" in err
        listed = json.loads(run("lab", "submissions", "--mine", "--json")[1])
        assert [(one["id"], one["state"]) for one in listed] == [(2, "passed"), (1, "passed")]
        assert "1 skipped" in run("lab", "submissions")[1]
        assert "none;" in run("lab", "submissions", "--state", "failed")[2]
        code, _, err = run("lab", "compare", str(first["attempt"]))
        assert code == 1 and "no result before" in err


def test_lab_steps() -> None:
    code, out, _ = run("lab", "steps")
    assert code == 0 and "kernel-module" in out and "missing-fixes" in out
    code, out, _ = run("lab", "steps", "kernel-module", "--json")
    assert code == 0 and "arm64" in json.loads(out)["parameters"]["arch"]["choices"]


def test_a_folder_that_holds_no_run_is_no_baseline(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    graph = read_graph(tmp_path / "graph.yaml", {"word": "x"})
    with pytest.raises(WrongInput, match="holds no run"):
        local.run_graph(graph, tmp_path / "r", files_from=tmp_path, baseline=tmp_path)


def test_the_media_of_a_folder_says_so() -> None:
    assert FOLDER.endswith("+tar")  # pages and command line give it that ending
