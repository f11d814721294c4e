"""Dispatcher, agents and database killed at any moment: nothing acknowledged is lost, nothing runs twice at once.

Real processes, real SIGKILL (:mod:`tests.lab.kills`).  The long test says its seed; ``EVENKEEL_KILLS_SEED`` gives
another one, and ``-k sqlite-1`` runs one of its parts again.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from evenkeel.lab import dispatching, submissions
from evenkeel.lab.actor import with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.step import graph_of
from evenkeel.lab.store import Store, create, sqlite_url
from tests.lab import postgres
from tests.lab.kills import History, Kill, Sender, Team, done_twice, faults, graph, machines, team_of
from tests.lab.test_agent import agent_of
from tests.waiting import until

ANN = with_roles("ann", ["user"])
SEED = int(os.environ.get("EVENKEEL_KILLS_SEED", "20261129"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Store(sqlite_url(tmp_path / "lab.db")) as store:
        create(store)
        yield Lab(tmp_path, store)


def test_a_killed_dispatcher_and_a_killed_agent_lose_nothing(lab: Lab) -> None:
    machines(lab, 1)
    with team_of(lab, 1, 3) as team:
        sender = Sender(team, random.Random(6), 0.4)
        for _ in range(2):
            sender.send_surely()
        until(team.busy)
        team.kill("service")
        time.sleep(0.3)
        team.kill("a0")
        team.ended(60)
        history = team.history.read(lab)
    assert faults(history) == []
    states = Counter(row["state"] for row in history.attempts)
    assert states["passed"] == 8 and states["lost"] <= 3


# -- the check itself ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> History:
    """What happened in a lab where nobody was killed."""
    folder = tmp_path_factory.mktemp("quiet")
    with Store(sqlite_url(folder / "lab.db")) as store:
        create(store)
        lab = Lab(folder, store)
        machines(lab, 1)
        history = History({}, [], set())
        with dispatching.running(lab), agent_of(lab, slots=4) as here:
            for number in range(2):
                made = submissions.submit(lab, ANN, graph_of(graph(folder, number, random.Random(1), 0.2)))
                history.acknowledged[number] = made.id
            until(lambda: submissions.submissions(lab, ANN, state="open").items == ())
            until(lambda: not list(here.folder.glob("starts/*.json")))
        history.read(lab)
    history.passed = {(row["step_id"], row["id"]) for row in history.attempts}
    return history


def _lose(history: History) -> None:
    del history.submissions[history.acknowledged[0]]


def _undo(history: History) -> None:
    """As a database does that loses its last commit: the step runs again, and passes again."""
    first = history.attempts[0]
    history.attempts.append(first | {"id": 99, "number": 2})
    first["state"] = "lost"


def _run_twice(history: History) -> None:
    """The step was given away while its agent lived on."""
    first = history.attempts[0]
    history.attempts.append(first | {"id": 99, "number": 2, "started_ns": first["started_ns"] + 1})


def _given_up(history: History) -> None:
    """The step was begun anew though nobody had killed its agent; the kill of another one is no reason."""
    first = history.attempts[0]
    history.attempts.append(first | {"id": 99, "number": 2, "started_ns": first["ended_ns"]})
    history.ledger += [line.rpartition(" ")[0] + " 99" for line in history.ledger if line.endswith(f" {first['id']}")]
    history.logs[99] = history.logs[first["id"]]
    history.passed.discard((first["step_id"], first["id"]))
    first["state"] = "lost"
    history.kills.append(Kill("a7", first["started_ns"] + 1, frozenset()))


def _claim_twice(history: History) -> None:
    history.claims.append(history.claims[0] | {"id": 99, "began_ns": history.claims[0]["ended_ns"] - 1})


def _cut_log(history: History) -> None:
    number = history.attempts[0]["id"]
    history.logs[number] = history.logs[number][:-5]


DOCTORED: dict[str, tuple[Callable[[History], object], str]] = {
    "two at once": (lambda history: history.ledger.append("overlap step 1 9"), "overlap step 1"),
    "an acknowledged submission": (_lose, "acknowledged submission"),
    "an acknowledged result": (_undo, "was seen as passed, and is lost"),
    "work that was never done": (lambda history: history.ledger.pop(), "never ran to its end"),
    "a log": (_cut_log, "its log is not whole"),
    "a result document": (lambda history: history.attempts[0].update(result=None), "its result is lost"),
    "an end": (lambda history: history.attempts[0].update(state="running"), "never ended"),
    "a step that still runs": (_run_twice, "was started again while its attempt"),
    "a step whose agent lives": (_given_up, "nobody killed"),
    "one attempt, started twice": (lambda history: history.ledger.append(history.ledger[0]), "2 times"),
    "an attempt of nobody": (lambda history: history.ledger.append("start 1 77"), "knows of no such attempt"),
    "two claims of a machine": (_claim_twice, "overlap on m0"),
    "a claim for ever": (lambda history: history.claims[0].update(ended_ns=None), "never ended"),
    "something left": (lambda history: history.left.append("a0/results/3.json"), "a0/results/3.json"),
}


def test_what_went_well_has_no_faults(quiet: History) -> None:
    assert faults(quiet) == []
    assert len(quiet.attempts) == 8 and done_twice(quiet) == 0


@pytest.mark.parametrize("what", DOCTORED)
def test_what_went_wrong_is_seen(quiet: History, what: str) -> None:
    doctored = deepcopy(quiet)
    doctor, fault = DOCTORED[what]
    doctor(doctored)
    assert any(fault in found for found in faults(doctored)), faults(doctored)


# -- 200 kills ----------------------------------------------------------------------------------------------------

#: Of one part; eight of them are 200: 64 of the dispatcher, 96 of agents, 40 of the database.
ON_SQLITE = {"service": 10, "agent": 15}
ON_POSTGRES = {"service": 6, "agent": 9, "backend": 5, "postmaster": 5}
AGENTS, SLOTS, MACHINES, OPEN, LONGEST_S = 4, 2, 3, 12, 3.0
_NO_POSTGRES = pytest.mark.skipif(postgres.BIN is None, reason="no PostgreSQL (Debian package postgresql)")


@pytest.mark.long
@pytest.mark.parametrize(
    "part",
    [
        *(f"sqlite-{number}" for number in range(1, 5)),
        *(pytest.param(f"postgresql-{number}", marks=_NO_POSTGRES) for number in range(1, 5)),
    ],
)
def test_200_kills_of_dispatcher_agents_and_database(part: str, tmp_path: Path) -> None:
    """Twenty-five of them; each comes while commands run, and for an agent while its own do."""
    with contextlib.ExitStack() as stack:
        server, url, kinds = None, None, ON_SQLITE
        if part.startswith("postgresql"):
            server, kinds = stack.enter_context(postgres.running()), ON_POSTGRES
            url = server.database()
        store = stack.enter_context(Store(url or sqlite_url(tmp_path / "lab.db")))
        create(store)
        lab = Lab(tmp_path, store)
        machines(lab, MACHINES)
        seed = f"{SEED} {part}"
        print(f"\nseed: EVENKEEL_KILLS_SEED={SEED} -k {part}")
        rng = random.Random(seed)
        team = stack.enter_context(team_of(lab, AGENTS, SLOTS, server, url))
        with Sender(team, random.Random(seed + " steps"), LONGEST_S, OPEN) as sender:
            began = time.monotonic()
            _kill_all(team, rng, kinds)
            took = time.monotonic() - began
        team.ended(120)
        history = team.history.read(lab)
    told = summary(history, sender, took)
    print(told)
    assert faults(history) == [], told
    assert Counter("agent" if kill.name[0] == "a" else kill.name for kill in history.kills) == kinds
    assert all(kill.hit for kill in history.kills), "a kill came while nothing ran"
    lost = {row["id"] for row in history.attempts if row["state"] == "lost"}
    of_agents = [kill for kill in history.kills if kill.name[0] == "a"]
    # The rest ended in the very instant between the look and the kill.
    assert sum(bool(kill.hit & lost) for kill in of_agents) >= 0.8 * len(of_agents), told


def _kill_all(team: Team, rng: random.Random, kinds: dict[str, int]) -> None:
    order = [kind for kind, number in kinds.items() for _ in range(number)]
    rng.shuffle(order)
    for kind in order:
        # A service that takes over on PostgreSQL waits 60 s for the agents of the last one, which may hold every slot.
        busy = until(team.busy, 150)
        team.note_passed()
        name = rng.choice(sorted(set(busy.values()))) if kind == "agent" else kind
        seq = team.last_event()
        team.kill(name)
        if rng.random() < 0.7:  # else the next one is killed while this one is away
            _recovered(team, name, {number for number, agent in busy.items() if agent == name}, seq)
        time.sleep(rng.uniform(0, 0.5))


def _recovered(team: Team, name: str, its: set[int], seq: int) -> None:
    """What an agent ran is given up or taken; a service or database has said something new."""
    if name in ("service", "backend", "postmaster"):
        until(lambda: team.last_event() > seq)
    else:
        until(lambda: its.isdisjoint(team.busy()))


def summary(history: History, sender: Sender, took_s: float) -> str:
    kills = Counter("agents" if kill.name[0] == "a" else kill.name for kill in history.kills)
    ran = [len(kill.hit) for kill in history.kills]
    states = Counter(row["state"] for row in history.attempts)
    return (
        f"{len(history.kills)} kills in {took_s:.0f} s: {dict(kills)}; {sum(map(bool, ran))} hit running work "
        f"(median {statistics.median(ran):.0f} commands, most {max(ran)}); {len(history.acknowledged)} submissions "
        f"acknowledged, {sender.unanswered} not; attempts {dict(states)}; {done_twice(history)} commands done twice"
    )
