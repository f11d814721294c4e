"""A team's database is stopped for a while, frozen, and killed under load, and nothing else is: the service answers 503
with a cure, agents hold on, nothing is started twice, and it goes on by itself.

The real service on a real PostgreSQL, its own agent, real steps.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from evenkeel.lab import local_agent, schema
from evenkeel.lab.store import Away, Store
from tests.lab.postgres import Postgres, marks, running
from tests.lab.service import Running, evenkeel, up
from tests.waiting import until

pytestmark = marks


@pytest.fixture
def server() -> Iterator[Postgres]:
    with running() as made:
        yield made


def step(folder: Path, name: str) -> dict[str, Any]:
    """It writes down that it begins, is alive while ``FOLDER/go.NAME`` is missing, and writes down that it ends."""
    command = (
        f"echo start {name} >> {folder}/ledger; while ! test -e {folder}/go.{name}; do "
        f"date +%s%N > {folder}/alive.{name}; sleep 0.1; done; echo end {name} >> {folder}/ledger"
    )
    return {"step": {"kind": "k", "command": command}}


def ledger(folder: Path) -> Counter[str]:
    file = folder / "ledger"
    return Counter(file.read_text().splitlines() if file.exists() else ())


def alive(folder: Path, name: str) -> bool:
    before = (folder / f"alive.{name}").read_text()
    return bool(until(lambda: (folder / f"alive.{name}").read_text() not in ("", before)))


def asked(lab: Running, method: str, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(lab.folder / "lab.sock")), timeout=120) as client:
        return client.request(method, f"http://lab{path}", json=body, headers=headers)


def passes(lab: Running, number: int) -> None:
    until(lambda: asked(lab, "GET", f"/api/v1/submissions/{number}").json()["state"] == "passed")


def more(acknowledged: dict[int, int]) -> None:
    """Wait for three more."""
    before = len(acknowledged)
    until(lambda: len(acknowledged) >= before + 3)


def agent_pid(lab: Running) -> int:
    return int(until(lambda: local_agent.pid_of(lab.folder / "agent")))


def test_a_database_that_is_stopped_for_a_while(server: Postgres, tmp_path: Path) -> None:
    url = server.database()
    with up(tmp_path / "lab", "--database", url) as lab:
        names = ("early", "late")
        graph = {"name": "t", "steps": {name: step(tmp_path, name) for name in names}}
        sent = asked(lab, "POST", "/api/v1/submissions", {"graph": graph})
        assert sent.status_code == 201, sent.text
        number = sent.json()["id"]
        until(lambda: all(ledger(tmp_path)[f"start {name}"] for name in names))
        agent = agent_pid(lab)

        server.stop()
        lab.says("asking for it again, what runs goes on")
        for method, path, body in (
            ("POST", "/api/v1/submissions", {"graph": graph}),
            ("GET", f"/api/v1/submissions/{number}", None),
            ("GET", "/", None),
            ("GET", "/metrics", None),
        ):
            answer = asked(lab, method, path, body)
            assert answer.status_code == 503, (path, answer.status_code, answer.text)
            told = answer.text.replace("<code>", "`").replace("</code>", "`")  # a page shows a command as one
            assert "does PostgreSQL run? `systemctl status postgresql`" in told, (path, told)
            assert "Traceback" not in answer.text
        refused = asked(lab, "POST", "/api/v1/submissions", {"graph": graph})
        assert refused.headers["Retry-After"] == "2"
        command = evenkeel("lab", "status", "--lab", str(lab.folder))
        assert command.returncode == 3 and "systemctl status postgresql" in command.stderr

        # One step ends meanwhile, the other one lives on; the agent keeps what came of the first.
        (tmp_path / "go.early").touch()
        until(lambda: ledger(tmp_path)["end early"])
        until(lambda: list((lab.folder / "agent" / "results").glob("*.json")))
        time.sleep(4)  # longer than the lab waits for its own agents after a restart
        assert alive(tmp_path, "late")

        server.start()
        lab.says("the database answers again")
        until(lambda: asked(lab, "GET", f"/api/v1/submissions/{number}").status_code == 200)
        until(lambda: asked(lab, "GET", f"/api/v1/submissions/{number}").json()["steps"].get("passed") == 1)
        assert alive(tmp_path, "late")
        (tmp_path / "go.late").touch()
        passes(lab, number)
        assert asked(lab, "POST", "/api/v1/submissions", {"graph": graph}).status_code == 201
        assert {f"{what} {name}" for what in ("start", "end") for name in names} == set(list(ledger(tmp_path))), (
            "the files are there, so the second submission only begins and ends"
        )
        assert agent_pid(lab) == agent and lab.process.poll() is None
        with Store(url) as store, store.read() as connection:
            states = connection.execute(
                select(schema.attempt.c.state).join(schema.step, schema.attempt.c.step_id == schema.step.c.id).where(
                    schema.step.c.submission_id == number
                )
            ).scalars().all()  # fmt: skip
        assert states == ["passed", "passed"]
        assert "Traceback" not in lab.said()


def test_a_database_that_hangs_for_a_while(server: Postgres, tmp_path: Path) -> None:
    """All its processes stand still: who asks waits, and is answered when they go on."""
    url = server.database()
    with up(tmp_path / "lab", "--database", url) as lab:
        graph = {"name": "t", "steps": {"one": step(tmp_path, "one")}}
        number = asked(lab, "POST", "/api/v1/submissions", {"graph": graph}).json()["id"]
        until(lambda: ledger(tmp_path)["start one"])
        with server.frozen():
            answers: list[httpx.Response] = []
            asking = threading.Thread(
                target=lambda: answers.append(asked(lab, "POST", "/api/v1/submissions", {"graph": graph}))
            )
            asking.start()
            time.sleep(5)
            assert answers == [] and alive(tmp_path, "one")
        asking.join(120)
        assert [answer.status_code for answer in answers] == [201]
        (tmp_path / "go.one").touch()
        for sent in (number, answers[0].json()["id"]):
            passes(lab, sent)
        assert ledger(tmp_path) == {"start one": 2, "end one": 2}


KILLS = 12


def test_a_database_that_is_killed_under_load(server: Postgres, tmp_path: Path) -> None:
    """Half of them the process that works for the lab, half the postmaster.  Nobody but the database is killed, so no
    step is given up, each runs once, and who sends with a key until it is acknowledged has it there once."""
    url = server.database()
    (tmp_path / "ledger").touch()
    with up(tmp_path / "lab", "--database", url) as lab, Store(url) as store:
        agent, over = agent_pid(lab), threading.Event()
        acknowledged: dict[int, int] = {}
        answers = Counter[int]()

        def send_on() -> None:
            for number in range(10_000):
                command = f"echo start {number} >> {tmp_path}/ledger; sleep 0.3; echo end {number} >> {tmp_path}/ledger"
                graph = {"name": f"load-{number}", "steps": {"one": {"step": {"kind": "k", "command": command}}}}
                key = uuid.uuid4().hex
                while True:
                    answer = asked(lab, "POST", "/api/v1/submissions", {"graph": graph}, key)
                    answers[answer.status_code] += 1
                    if answer.status_code in (201, 409):  # 409: it was done, and the answer was lost
                        acknowledged[number] = answer.json().get("id", 0)
                        break
                    assert answer.status_code == 503, answer.text
                    time.sleep(0.2)
                if over.wait(0.2):
                    return

        sending = threading.Thread(target=send_on, daemon=True)
        sending.start()
        hits = []
        for kill in range(KILLS):
            more(acknowledged)
            hits.append(until(lambda: works(store)))
            if kill % 2:
                server.kill()
                time.sleep(0.5)
                server.start()
            else:
                server.kill_backend(until(lambda: writer(store)))
        more(acknowledged)
        over.set()
        sending.join(180)
        assert not sending.is_alive()
        until(lambda: all_ended(store), 120)
        assert agent_pid(lab) == agent and lab.process.poll() is None
        with store.read() as connection:
            sub = schema.submission.c
            rows = {row.name: row for row in connection.execute(select(sub.id, sub.name, sub.state))}
            number_of = len(connection.execute(select(sub.id)).all())
            attempts = Counter(connection.execute(select(schema.attempt.c.state)).scalars())
        print(f"\n{KILLS} kills, {len(acknowledged)} acknowledged, answers {dict(answers)}, attempts {dict(attempts)}")
        assert len(hits) == KILLS and all(hits)
        assert number_of == len(rows) == len(acknowledged), "one is there twice, or was never acknowledged"
        for number, found in acknowledged.items():
            row = rows[f"load-{number}"]
            assert row.state == "passed" and found in (0, row.id)
        assert attempts == {"passed": len(acknowledged)}
        runs = {f"{what} {number}" for what in ("start", "end") for number in acknowledged}
        assert ledger(tmp_path) == dict.fromkeys(runs, 1)
        assert answers[503] >= KILLS // 2, "the service never noticed"
        assert json.loads(asked(lab, "GET", "/api/v1/service").text)["parts"]


def works(store: Store) -> int:
    """How many attempts run now; 0 also while the database is away."""
    with contextlib.suppress(Away), store.read() as connection:
        return len(connection.execute(select(schema.attempt.c.id).where(schema.attempt.c.state == "running")).all())
    return 0


def writer(store: Store) -> int:
    """The process through which the service writes; 0: none does now."""
    with contextlib.suppress(Away), store.read() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'lab http%%'"
        return int(connection.exec_driver_sql(query).scalar() or 0)
    return 0


def all_ended(store: Store) -> bool:
    sub = schema.submission.c
    with contextlib.suppress(Away), store.read() as connection:
        return connection.execute(select(sub.id).where(sub.state == "open")).first() is None
    return False
