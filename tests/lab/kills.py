"""A lab as processes that are killed while they work, what happened meanwhile, and whether that is as promised.

Each step holds a lock of the kernel while any of its processes lives, and one of its machine, so an overlap is seen
whoever causes it; each writes its start and its end into a ledger that no part of the lab knows.  :func:`faults`
compares the ledger, the kills and the database, and is told nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sqlalchemy import func, insert, select

from evenkeel.lab import schema
from evenkeel.lab.dispatcher import LOST_AT_MOST
from evenkeel.lab.lab import Lab
from evenkeel.lab.leftovers import folder_name, processes_of
from evenkeel.lab.store import Away
from tests.lab.postgres import Postgres
from tests.waiting import until

ROOT = Path(__file__).parents[2]
#: fd 9: of this step; fd 8: of its machine.  Children inherit both.
COMMAND = """
attempt=${HOME%/work}; attempt=${attempt##*-}
exec 9> "$SET_FOLDER/lock.$SET_ID"
flock -n 9 || echo "overlap step $SET_ID $attempt" >> "$SET_FOLDER/ledger"
if [ -n "${MACHINE_NAME:-}" ]; then
  exec 8> "$SET_FOLDER/machine.$MACHINE_NAME"
  flock -n 8 || echo "overlap machine $MACHINE_NAME $attempt" >> "$SET_FOLDER/ledger"
fi
echo "start $SET_ID $attempt" >> "$SET_FOLDER/ledger"
seq 1 200
sleep "$SET_TIME"
echo "end $SET_ID $attempt" >> "$SET_FOLDER/ledger"
echo "{\\"id\\": $SET_ID}" > "$OUT/output.json"
echo "done $SET_ID"
"""
LOG_HEAD = "".join(f"{number}\n" for number in range(1, 201))
PARTS = ("expand", "left", "right", "boot")
#: An agent that was killed may be given a step until the lab sees that it is gone.
_SEEN_LATE_NS = 5 * 10**9


def graph(folder: Path, number: int, rng: random.Random, longest_s: float) -> dict[str, Any]:
    """expand -> left and right, both -> boot on a machine.  Step ``part`` of it has the id ``10 * number + part``."""

    def use(part: int, **more: Any) -> dict[str, Any]:
        machine = {"machine": "arch:x86_64"} if more.pop("machine", False) else {}
        parameters: dict[str, Any] = {name: {} for name in ("folder", "id", "time")}
        values = {"folder": str(folder), "id": str(10 * number + part), "time": f"{rng.uniform(0, longest_s):.2f}"}
        return {"step": {"kind": "k", "command": COMMAND, "parameters": parameters, **machine}, "set": values, **more}

    steps = {
        "expand": use(0),
        "left": use(1, needs=["expand"]),
        "right": use(2, needs=[{"step": "expand", "when": f"id:{10 * number}"}]),
        "boot": use(3, needs=["left", "right"], machine=True),
    }
    return {"version": 1, "name": f"kill-{number}", "steps": steps}


def machines(lab: Lab, number: int) -> None:
    def change(connection: Any) -> None:
        for name in (f"m{one}" for one in range(number)):
            row = {"id": name, "name": name, "state": "ready", "state_since_ns": 0, "identity": {}, "registered_ns": 0}
            connection.execute(insert(schema.machine).values(row | {"policy": {"prepare": "none"}}))
            connection.execute(insert(schema.fact).values({"machine_id": name, "key": "arch", "text": "x86_64"}))

    lab.store.write(change)


# -- what happened ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """``hit``: attempts whose commands ran at that moment, by the ledger and the database."""

    name: str
    at_ns: int
    hit: frozenset[int]


@dataclass
class History:
    """``acknowledged``: number in the ledger -> number of the submission.  ``passed``: (step, attempt) that somebody
    saw as passed while things were killed.  ``left``: what should have been forgotten or ended."""

    acknowledged: dict[int, int]
    kills: list[Kill]
    passed: set[tuple[int, int]]
    ledger: list[str] = field(default_factory=list)
    submissions: dict[int, tuple[str, str]] = field(default_factory=dict)  # name, state
    steps: dict[int, tuple[int, str, str]] = field(default_factory=dict)  # submission, name, state
    attempts: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[int, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def read(self, lab: Lab) -> History:
        """All of it, from the database and from the folder."""
        self.ledger = (lab.folder / "ledger").read_text().splitlines()
        sub, step = schema.submission.c, schema.step.c
        with lab.store.read() as connection:
            self.submissions = {
                row.id: (row.name, row.state) for row in connection.execute(select(sub.id, sub.name, sub.state))
            }
            asked = select(step.id, step.submission_id, step.name, step.state)
            self.steps = {row.id: (row.submission_id, row.name, row.state) for row in connection.execute(asked)}
            self.attempts = [dict(row) for row in connection.execute(select(schema.attempt)).mappings()]
            self.claims = [dict(row) for row in connection.execute(select(schema.claim)).mappings()]
        self.logs = {
            row["id"]: lab.logs.read(row["id"], most=1 << 20).decode()
            for row in self.attempts
            if row["state"] == "passed"
        }
        for agent in lab.folder.glob("a[0-9]"):
            self.left += [str(file) for kind in ("starts", "results", "run") for file in (agent / kind).iterdir()]
            identity = (agent / "identity").read_text().strip()
            for row in self.attempts:
                if row["agent"] == agent.name:
                    self.left += map(str, processes_of(folder_name(identity, row["id"])))
        return self


def faults(history: History) -> list[str]:
    """Where it is not as docs/explanation/lab-losses.md promises; none is what is wanted."""
    return [*_overlaps(history), *_lost(history), *_started_again(history), *history.left]


def _overlaps(history: History) -> Iterator[str]:
    yield from (line for line in history.ledger if line.startswith("overlap"))
    held = sorted(
        (row for row in history.claims if row["machine_id"] is not None and row["began_ns"] is not None),
        key=lambda row: (row["machine_id"], row["began_ns"]),
    )
    for first, second in itertools.pairwise(held):
        if first["machine_id"] == second["machine_id"] and (
            first["ended_ns"] is None or first["ended_ns"] > second["began_ns"]
        ):
            yield f"claims {first['id']} and {second['id']} overlap on {first['machine_id']}"
    yield from (f"claim {row['id']} of {row['machine_id']} never ended" for row in held if row["ended_ns"] is None)


def _lost(history: History) -> Iterator[str]:
    """Acknowledged submissions, results that somebody saw, outputs, and logs."""
    ledger = set(history.ledger)
    by_step = _by_step(history)
    states = {(row["step_id"], row["id"]): row["state"] for row in history.attempts}
    for number, submission in history.acknowledged.items():
        if history.submissions.get(submission, ("", ""))[0] != f"kill-{number}":
            yield f"acknowledged submission {submission} (kill-{number}) is lost"
    for one in sorted(history.passed):
        if states.get(one) != "passed":
            yield f"attempt {one[1]} of step {one[0]} was seen as passed, and is {states.get(one)}"
    for submission, (name, state) in history.submissions.items():
        steps = {part: (number, how) for number, (of, part, how) in history.steps.items() if of == submission}
        if set(steps) != set(PARTS):
            yield f"submission {submission} has the steps {sorted(steps)}"
            continue
        given_up = [number for number, how in steps.values() if how == "failed"]
        if state != "passed" and not (state == "failed" and given_up):
            yield f"submission {submission} is {state}"
        for number in given_up:
            if [row["state"] for row in by_step[number]] != ["lost"] * LOST_AT_MOST:
                yield f"step {number} failed, and not because its agents were lost {LOST_AT_MOST} times"
        for index, part in enumerate(PARTS):
            number, how = steps[part]
            won = [row for row in by_step[number] if row["state"] == "passed"]
            if len(won) != (how == "passed"):
                yield f"step {number} is {how}, with {len(won)} attempts that passed"
            for row in won:
                mark = f"{10 * int(name.removeprefix('kill-')) + index} {row['id']}"
                if not {f"start {mark}", f"end {mark}"} <= ledger:
                    yield f"attempt {row['id']} of step {number} passed, and never ran to its end"
                if (row["result"] or {}).get("output") != {"id": int(mark.split()[0])}:
                    yield f"attempt {row['id']} of step {number} passed, and its result is lost"
                if history.logs.get(row["id"]) != f"{LOG_HEAD}done {mark.split()[0]}\n":
                    yield f"attempt {row['id']} of step {number} passed, and its log is not whole"


def _started_again(history: History) -> Iterator[str]:
    """A step runs again only when the attempt before was lost, and that is so only when its agent was killed."""
    starts = Counter(line for line in history.ledger if line.startswith("start"))
    for line, times in starts.items():
        if times > 1:
            yield f"{line}: {times} times"
    known = {row["id"] for row in history.attempts}
    for line in starts:
        if int(line.split()[2]) not in known:
            yield f"{line}: the database knows of no such attempt"
    for step, rows in _by_step(history).items():
        for first, second in itertools.pairwise(rows):
            if first["state"] != "lost" or first["ended_ns"] > second["started_ns"]:
                yield f"step {step} was started again while its attempt {first['id']} was {first['state']}"
        for row in rows:
            if row["state"] == "running":
                yield f"attempt {row['id']} of step {step} never ended"
            if row["state"] == "lost" and not any(
                kill.name == row["agent"] and row["started_ns"] - _SEEN_LATE_NS <= kill.at_ns <= row["ended_ns"]
                for kill in history.kills
            ):
                life = f"ran from {row['started_ns'] / 1e9:.2f} to {row['ended_ns'] / 1e9:.2f}"
                kills = ", ".join(f"{kill.name} {kill.at_ns / 1e9:.2f}" for kill in history.kills)
                why = f"{row['cause']}; {life}; killed were {kills}"
                yield f"attempt {row['id']} of step {step} was given up, and nobody killed {row['agent']}: {why}"


def _by_step(history: History) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in history.steps}
    for row in sorted(history.attempts, key=lambda row: row["id"]):
        found.setdefault(row["step_id"], []).append(row)
    return found


def done_twice(history: History) -> int:
    """Commands that ran to their end in an attempt that was lost, and ran again: at least once, not exactly once."""
    ends = {int(line.split()[2]) for line in history.ledger if line.startswith("end")}
    return sum(row["state"] == "lost" and row["id"] in ends for row in history.attempts)


# -- who is killed ------------------------------------------------------------------------------------------------


class Team:
    """A service and its agents as processes; who was killed is started again, as systemd would.

    ``server``: a PostgreSQL with the database at ``url``, which is killed too.
    """

    def __init__(
        self, lab: Lab, agents: int, slots: int, server: Postgres | None = None, url: str | None = None
    ) -> None:
        self.lab, self.slots, self.server, self.url = lab, slots, server, url
        self.history = History({}, [], set())
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.log: IO[bytes] = (lab.folder / "log").open("ab")
        for name in ("service", *(f"a{number}" for number in range(agents))):
            self.start(name)

    def start(self, name: str) -> None:
        if name == "service":
            words = ["-m", "tests.lab.killed_service", str(self.lab.folder), *([self.url] if self.url else [])]
        else:
            words = ["-m", "evenkeel", "lab", "agent", "--lab", str(self.lab.folder), "--name", name]
            words += ["--slots", str(self.slots), "--folder", str(self.lab.folder / name)]
        self.processes[name] = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=self.log, stderr=self.log)

    def kill(self, name: str) -> None:
        """As soon as commands run, of that very agent if it is one.

        ``name``: service, an agent, postmaster, or backend: the process of the database that works for the lab."""
        backend = until(self._backend) if name == "backend" else 0
        hit = until(lambda: frozenset(n for n, agent in self.busy().items() if name in (agent, *_CENTRAL)))
        self.history.kills.append(Kill(name, time.time_ns(), hit))
        if name in self.processes:
            self.processes[name].send_signal(signal.SIGKILL)
            self.processes[name].wait()
            self.start(name)
            return
        assert self.server is not None
        if name == "backend":
            self.server.kill_backend(backend)
        else:
            self.server.kill()
        self.server.start()

    def running(self) -> dict[int, str]:
        """Attempts that run at this moment, as far as the lab knows, and on which agents."""
        attempt = schema.attempt.c
        with self.lab.store.read() as connection:
            query = select(attempt.id, attempt.agent).where(attempt.state == "running")
            return {row.id: row.agent for row in connection.execute(query)}

    def busy(self) -> dict[int, str]:
        """Those of them whose command has begun and not ended; none while the database is away."""
        with contextlib.suppress(Away):
            running = self.running()
            commands = self._commands()
            return {number: agent for number, agent in running.items() if number in commands}
        return {}

    def _commands(self) -> set[int]:
        ledger = self.lab.folder / "ledger"
        lines = [line.split() for line in (ledger.read_text() if ledger.exists() else "").splitlines()]
        return {int(words[2]) for words in lines if words[0] == "start"} - {
            int(words[2]) for words in lines if words[0] == "end"
        }

    def _backend(self) -> int:
        """Through which the service writes; 0: it does not now."""
        with contextlib.suppress(Away), self.lab.store.read() as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'killed'"
            return int(connection.exec_driver_sql(query).scalar() or 0)
        return 0

    def note_passed(self) -> None:
        """What somebody sees as passed now must stay so."""
        attempt = schema.attempt.c
        with contextlib.suppress(Away), self.lab.store.read() as connection:
            query = select(attempt.step_id, attempt.id).where(attempt.state == "passed")
            self.history.passed |= {(row.step_id, row.id) for row in connection.execute(query)}

    def last_event(self) -> int:
        with contextlib.suppress(Away), self.lab.store.read() as connection:
            return connection.scalar(select(func.max(schema.event.c.seq))) or 0
        return 0

    def open(self) -> int:
        """Submissions that have not ended."""
        with self.lab.store.read() as connection:
            query = select(func.count()).select_from(schema.submission).where(schema.submission.c.state == "open")
            return int(connection.scalar(query) or 0)

    def ended(self, seconds: float) -> None:
        """Wait until all that was sent in has ended, and its agents have forgotten it."""

        def over() -> bool:
            with contextlib.suppress(Away):
                return not self.open() and not any(self.lab.folder.glob("a[0-9]/starts/*.json"))
            return False

        until(over, seconds)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.log.close()


_CENTRAL = ("service", "backend", "postmaster")


@contextlib.contextmanager
def team_of(
    lab: Lab, agents: int, slots: int, server: Postgres | None = None, url: str | None = None
) -> Iterator[Team]:
    team = Team(lab, agents, slots, server, url)
    try:
        yield team
    finally:
        team.end()


class Sender:
    """Somebody who sends in through the service that is killed, and remembers what was acknowledged.

    As a thread (``with``) it keeps ``most`` submissions open.
    """

    def __init__(self, team: Team, rng: random.Random, longest_s: float, most: int = 0) -> None:
        self.team, self.rng, self.longest_s, self.most = team, rng, longest_s, most
        self.number = self.unanswered = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send_on)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _send_on(self) -> None:
        while not self._over.wait(0.05):
            with contextlib.suppress(Away):
                if self.team.open() < self.most:
                    self.send()

    def send(self) -> bool:
        """Whether it was acknowledged.  Without an answer it may be there or not, but not half of it."""
        number = self.number
        self.number += 1
        text = json.dumps(graph(self.team.lab.folder, number, self.rng, self.longest_s))
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(60)
                line.connect(str(self.team.lab.folder / "submit.sock"))
                line.sendall(text.encode() + b"\n")
                answer = line.makefile().readline()
        except OSError:
            self.unanswered += 1
            return False
        if answer.strip().isdecimal():
            self.team.history.acknowledged[number] = int(answer)
            return True
        self.unanswered += 1
        return False

    def send_surely(self) -> None:
        until(self.send)
