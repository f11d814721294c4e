"""How fast the lab's queue is: ``python bench/lab_queue.py``.

Durable all the way (SQLite, synchronous=FULL).  Agents speak the real protocol over the real socket from a process of
their own, and do nothing with a step but answer that it passed: what is measured is the queue, not bash.

* steps/s: submissions of 8 steps (a merge, four builds, two checks, a report), until the last one has passed;
* start: from the moment a submission is acknowledged (and from the call) until an idle agent was told, one by one; and
  until the process of the step has run its first line, by a real agent in a process of its own;
* pending: 100,000 steps that wait, of 40 people, for 630 kinds of agents: best step for a freed one, and a restart;
* machines: 100,000 steps, of the same people in eight teams; three in eight want a machine of a pool of 630 that is
  like one of 128 predicates, and a tenth of the machines is kept for one team.  All that can be are in use, and one
  after the other is given back: how long it takes to find its next step, and until that is on disk with its claim.

Beside each time that a busy machine makes longer stands the CPU time of the process that has the queue.

Then one trace of 2,000 jobs runs on three queues, one after the other: ours as `evenkeel lab up` starts it,
Procrastinate on a PostgreSQL of its own, and a Slurm of one controller and four nodes, all on this machine and gone
afterwards.  Each job is a real process that sleeps; the jobs have no order among themselves, since Procrastinate could
not keep one.  A job takes 0.6 s, so what a queue adds to each shows more than it would on builds of minutes.  How fast
the machine itself was stands beside each queue: a loop that computes, on both CPUs at once, before it began.
``--resume FILE`` keeps what each queue gave, and a run that was cut short goes on with those that are missing there.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import lab_search, queues
from bench.queues import ours, procrastinate, slurm

from evenkeel.lab import dispatching, protocol, schema, submissions
from evenkeel.lab.actor import with_roles
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.dispatching import socket_path
from evenkeel.lab.lab import Lab
from evenkeel.lab.live import Agent, Run
from evenkeel.lab.step import Graph, graph_of
from evenkeel.lab.store import Store, create, sqlite_url
from evenkeel.lab.turn import Turn

ANN = with_roles("bench", ["user"])
AGENTS, SLOTS = 8, 16
PENDING, PEOPLE, KINDS = 100_000, 40, 630


def branch() -> Graph:
    step = {"command": ["true"]}
    steps: dict[str, Any] = {"merge": {"step": {"kind": "merge", **step}}}
    for arch in ("x86_64", "aarch64", "ppc64le", "s390x"):
        steps[f"build-{arch}"] = {"step": {"kind": "build", "expected": arch, **step}, "needs": ["merge"]}
    steps["kabi"] = {"step": {"kind": "kabi", **step}, "needs": ["build-x86_64"]}
    steps["fixes"] = {"step": {"kind": "fixes", **step}, "needs": ["merge"]}
    steps["report"] = {"step": {"kind": "report", **step}, "needs": [*list(steps)[1:]]}
    return graph_of({"version": 1, "name": "branch", "steps": steps})


# -- agents that do nothing ---------------------------------------------------------------------------------------


async def _answer(path: str, name: str, slots: int, told: Any) -> None:
    reader, writer = await asyncio.open_unix_connection(path, limit=protocol.MAX_MESSAGE)
    writer.write(protocol.encode(protocol.Hello(name=name, identity=name, slots=slots)))
    while line := await reader.readline():
        message = json.loads(line)
        if message["type"] == "start":
            if told is not None:
                told.put((message["submission"], time.monotonic_ns()))
            writer.write(protocol.encode(protocol.Ended(attempt=message["attempt"], state="passed", exit=0)))


def _agents(path: str, number: int, slots: int, told: Any) -> None:
    async def run() -> None:
        await asyncio.gather(*(_answer(path, f"agent{n}", slots, told) for n in range(number)))

    asyncio.run(run())


class Agents:
    def __init__(self, lab: Lab, number: int, slots: int, *, tell: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self.told = context.Queue() if tell else None
        words = (str(socket_path(lab.folder)), number, slots, self.told)
        self.process = context.Process(target=_agents, args=words, daemon=True)
        self.process.start()
        assert lab.dispatching
        while len(lab.dispatching.dispatcher.agents) < number:
            time.sleep(0.01)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


# -- what is measured ---------------------------------------------------------------------------------------------


def throughput(folder: Path, steps: int) -> dict[str, float]:
    with Store(sqlite_url(folder / "lab.db")) as store:
        create(store)
        lab = Lab(folder, store)
        graphs = [branch() for _ in range(steps // 8)]
        began = time.monotonic()
        for graph in graphs:
            submissions.submit(lab, ANN, graph)
        submitted = time.monotonic() - began
        with dispatching.running(lab) as part:
            agents = Agents(lab, AGENTS, SLOTS)
            began, cpu = time.monotonic(), time.process_time()
            done = part.ask(lambda d: len(d.subs))
            while done:
                time.sleep(0.02)
                done = part.ask(lambda d: len(d.subs))
            took, cpu = time.monotonic() - began, time.process_time() - cpu
            agents.end()
        with store.read() as connection:
            passed = connection.exec_driver_sql("SELECT count(*) FROM attempt WHERE state = 'passed'").scalar()
        assert passed == len(graphs) * 8, passed
    return {
        "submissions of 8 steps/s, one by one": len(graphs) / submitted,
        "steps/s": passed / took,
        "steps/s of CPU time": passed / cpu,
    }


def start(folder: Path, times: int) -> dict[str, float]:
    with Store(sqlite_url(folder / "lab.db")) as store:
        create(store)
        lab = Lab(folder, store)
        graph = graph_of({"name": "one", "steps": {"one": {"step": {"kind": "one", "command": ["true"]}}}})
        from_ack, from_call = [], []
        with dispatching.running(lab):
            agents = Agents(lab, 1, 1, tell=True)
            assert agents.told is not None
            for _ in range(times):
                called = time.monotonic_ns()
                acknowledged: list[int] = []
                number = _submit_only(lab, graph, acknowledged)
                got, at = agents.told.get(timeout=30)
                assert got == number
                from_ack.append((at - acknowledged[0]) / 1e6)
                from_call.append((at - called) / 1e6)
                time.sleep(0.02)
            agents.end()
            until_run = _until_it_runs(lab, times)
    found = {}
    for what, values in (
        ("from the acknowledgement", from_ack),
        ("from the call", from_call),
        ("from the call to its process", until_run),
    ):
        values.sort()
        found[f"start {what}, p50 ms"] = statistics.median(values)
        found[f"start {what}, p99 ms"] = values[int(0.99 * (len(values) - 1))]
    return found


def _until_it_runs(lab: Lab, times: int) -> list[float]:
    """Milliseconds from the call of submit to the first line of the step's script, as bash's own clock says it."""
    told, found = lab.folder / "told", []
    command = f"echo $EPOCHREALTIME > {told}.new; mv {told}.new {told}"
    graph = graph_of({"name": "one", "steps": {"one": {"step": {"kind": "real", "command": command}}}})
    words = ["--lab", str(lab.folder), "--name", "real", "--slots", "1", "--folder", str(lab.folder / "real")]
    with subprocess.Popen(
        [sys.executable, "-m", "evenkeel", "lab", "agent", *words], stderr=subprocess.DEVNULL
    ) as agent:
        try:
            for number in range(times + 1):
                called = time.time()
                submissions.submit(lab, ANN, graph)
                while not told.exists():
                    time.sleep(0.005)
                if number:  # the first waits for the agent
                    found.append((float(told.read_text()) - called) * 1e3)
                told.unlink()
                time.sleep(1.2 if not number else 0.1)  # until the agent has settled, and has said that it is over
        finally:
            agent.terminate()
    return found


def _submit_only(lab: Lab, graph: Graph, acknowledged: list[int]) -> int:
    """:func:`submissions.submit`, with the moment of its commit: what follows only shows what was made."""
    write = lab.store.write

    def timed(change: Any) -> Any:
        result = write(change)
        acknowledged.append(time.monotonic_ns())
        return result

    lab.store.write = timed  # type: ignore[method-assign]
    try:
        return submissions.submit(lab, ANN, graph).id
    finally:
        lab.store.write = write  # type: ignore[method-assign]


class _Line:
    local = True
    process = None

    def send(self, message: protocol.FromLab) -> None:
        pass

    def close(self) -> None:
        pass


def pending(folder: Path) -> dict[str, float]:
    rng = random.Random(3)
    with Store(sqlite_url(folder / "lab.db")) as store:
        create(store)
        lab = Lab(folder, store)
        now = lab.now()
        subs, rows = [], []
        for number in range(1, PENDING // 8 + 1):
            subs.append(
                {"id": number, "name": "s", "kind": "check", "submitter": f"p{rng.randrange(PEOPLE)}", "team": "",
                 "spec": {}, "state": "open", "submitted_ns": now + number}
            )  # fmt: skip
            rows += [
                {"submission_id": number, "name": f"s{n}", "kind": "k", "spec": {"step": {"kind": "k"}},
                 "needs": f"label.kind:{rng.randrange(KINDS)}", "state": "ready", "ready_ns": now}
                for n in range(8)
            ]  # fmt: skip
        store.write(lambda c: (c.execute(insert(schema.submission), subs), c.execute(insert(schema.step), rows)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        dispatcher = Dispatcher(lab)
        began, cpu = time.monotonic(), time.process_time()
        dispatcher.turn()
        restart, cpu = time.monotonic() - began, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        for number in range(KINDS):
            hello = protocol.Hello(name=f"a{number}", identity="x", slots=1, labels={"label.kind": [str(number)]})
            dispatcher.hear(_Line(), hello)
        began = time.monotonic()
        dispatcher.turn()
        fill = time.monotonic() - began
        assert len(dispatcher.runs) == KINDS
        times = []
        agents = list(dispatcher.agents.values())
        for _ in range(5000):
            agent = rng.choice(agents)
            began_ns = time.perf_counter_ns()
            best = dispatcher.ready.best(agent.mask & dispatcher.available, lab.now())
            times.append((time.perf_counter_ns() - began_ns) / 1e3)
            if best is not None:
                node = dispatcher.nodes[best]
                dispatcher.ready.drop(best)
                dispatcher.ready.charge(node.sub.person, "", 60 * 10**9, lab.now())
        times.sort()
    return {
        "restart with 100,000 pending, s": restart,
        "the same, s of CPU time": cpu,
        "memory for them, MiB": memory / 1024,
        f"first turn that fills {KINDS} agents, s": fill,
        "best step for a freed agent, p50 us": statistics.median(times),
        "best step for a freed agent, p99 us": times[int(0.99 * (len(times) - 1))],
    }


def predicates() -> list[str]:
    """What steps want of a machine, as people ask for it."""
    sizes = ("", "mem>=128GiB", "mem>=256GiB", "mem>=512GiB")
    cards = ("", "nic.driver:mlx5_core", "nic.driver:ice", "sriov.vfs>=8")
    processors = ("cpu.threads>=32", "cpu.threads>=64", "cpu.flag:avx512f", "cpu.flag:amx_tile")
    sites = ("", "site:prg")
    return [" ".join(filter(None, words)) for words in itertools.product(sizes, cards, processors, sites)]


def machines(folder: Path, pending: int = PENDING, pool: int = KINDS, times: int = 500) -> dict[str, float]:
    rng, wanted = random.Random(3), predicates()
    with Store(sqlite_url(folder / "lab.db")) as store:
        create(store)
        lab = Lab(folder, store)
        lab_search.fill(lab, lab_search.recorded(None), pool)
        kept = [f"{number:08}-0000-4000-8000-000000000000" for number in range(0, pool, 10)]
        only = {"team": "t1", "policy": {"teams": ["t1"]}}
        now, subs, rows = lab.now(), [], []
        for number in range(1, pending // 8 + 1):
            who = rng.randrange(PEOPLE)
            subs.append(
                {"id": number, "name": "s", "kind": "check", "submitter": f"p{who}", "team": f"t{who % 8}",
                 "spec": {}, "state": "open", "submitted_ns": now + number}
            )  # fmt: skip
            for n in range(8):
                machine = rng.choice(wanted) if n >= 5 else ""
                rows.append(
                    {"submission_id": number, "name": f"s{n}", "kind": "k", "spec": {"step": {"kind": "k"}},
                     "needs": "" if machine else f"label.kind:{rng.randrange(20)}", "machine": machine,
                     "state": "ready", "ready_ns": now}
                )  # fmt: skip
        change = update(schema.machine).where(schema.machine.c.id.in_(kept)).values(only)
        store.write(lambda c: (c.execute(change), c.execute(insert(schema.submission), subs)))
        store.write(lambda c: c.execute(insert(schema.step), rows))
        dispatcher = Dispatcher(lab)
        began, cpu = time.monotonic(), time.process_time()
        dispatcher.turn()
        restart, cpu = time.monotonic() - began, time.process_time() - cpu
        # Runners of steps that are about machines do little themselves, so each has many slots.
        for number in range(8):
            hello = protocol.Hello(name=f"m{number}", identity="x", slots=pool, labels={"label.kind": ["none"]})
            dispatcher.hear(_Line(), hello)
        began = time.monotonic()
        dispatcher.turn()
        fill = time.monotonic() - began
        running = list(dispatcher.runs.values())
        matches, turns = _given_back(lab, dispatcher, running[:times])
    return {
        f"{pool} machines: restart with {pending:,} pending, s": restart,
        "the same, s of CPU time": cpu,
        "kinds of steps": len(dispatcher.ready.signatures),
        f"first turn, that gives {len(running)} machines, s": fill,
        "best step for a freed machine, p50 us": statistics.median(matches),
        "best step for a freed machine, p99 us": matches[int(0.99 * (len(matches) - 1))],
        "from the end of a step to its machine's next one on disk, p50 ms": statistics.median(turns),
        "from the end of a step to its machine's next one on disk, p99 ms": turns[int(0.99 * (len(turns) - 1))],
    }


def _given_back(lab: Lab, dispatcher: Dispatcher, runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """Each of these steps ends, one after the other: microseconds of each choice, milliseconds of each turn."""
    matches: list[float] = []
    turns: list[float] = []
    feed, best = dispatcher._feed, dispatcher.ready.best

    def timed(turn: Turn, agent: Agent, now: int) -> None:
        """The choice alone, with working out which machines are free; then what follows from it."""
        if dispatcher.machines.free:
            dispatcher.machines._available = None
            began = time.perf_counter_ns()
            best(agent.mask & dispatcher.available, now)
            matches.append((time.perf_counter_ns() - began) / 1e3)
        feed(turn, agent, now)

    dispatcher._feed = timed  # type: ignore[method-assign]
    for run in runs:
        for agent in dispatcher.agents.values():
            agent.heard_ns = lab.steady()  # nobody is there to say that it lives
        link = dispatcher.agents[run.agent].link
        assert link is not None
        dispatcher.hear(link, protocol.Ended(attempt=run.id, state="passed", exit=0))
        began = time.perf_counter_ns()
        dispatcher.turn()  # its end is on disk, and its machine is free
        dispatcher.turn()  # another step has it
        turns.append((time.perf_counter_ns() - began) / 1e6)
    return sorted(matches), sorted(turns)


# -- beside peers -------------------------------------------------------------------------------------------------


def beside_peers(
    only: Sequence[str],
    jobs: int,
    slots: int,
    seconds: float,
    limit_s: float,
    where: Path | None = None,
    resume: Path | None = None,
) -> Any:
    """The same trace for each queue, one after the other.  A queue that is not here is said, and is no failure."""
    what = queues.trace(jobs, slots, seconds)
    rows: list[dict[str, Any]] = [_row("no queue, by age", what, what.ideal(), "")]
    missing: dict[str, str] = {}
    same = {"jobs": jobs, "slots": slots, "seconds": seconds, "limit": limit_s}
    kept: dict[str, Any] = json.loads(resume.read_text()) if resume is not None and resume.exists() else {}
    if kept and kept["of"] != same:
        sys.exit(f"{resume} is of another trace: {kept['of']}")
    for name in only:
        if name in kept:
            rows.append(kept[name])
            continue
        peer = _QUEUES[name]
        if why := getattr(peer, "missing", lambda: None)():
            missing[name] = why
            continue
        print(f"{name}: {len(what.jobs)} jobs, some {what.bound_s():.0f} s", file=sys.stderr)
        loop_s = _loop_s()
        with tempfile.TemporaryDirectory(prefix="evenkeel-bench-", dir=where) as made:
            folder = Path(made)
            folder.chmod(0o755)  # PostgreSQL runs as its own user
            queues.prepare(folder)
            with peer.running(folder, slots) as queue:
                times = queues.replay(queue, what, folder, limit_s)
            rows.append(_row(name, what, times, queue.durable) | {"loop s": loop_s})
        if resume is not None:
            kept |= {"of": same, name: rows[-1]}
            resume.write_text(json.dumps(kept))
    base = next((row for row in rows if row["queue"] == "ours"), None)
    for row in rows:
        for key in ("jobs/s", "wait p50 s", "wait p95 s"):
            row[f"{key}, of ours"] = row[key] / base[key] if base and base[key] else None
    work = sum(job.takes_s for job in what.jobs)
    found = {"jobs": len(what.jobs), "submissions": len(what.submissions), "over s": what.submissions[-1].at_s}
    return found | {"slots": slots, "slot-seconds": work, "bound s": what.bound_s(), "rows": rows, "missing": missing}


def _loop_s() -> float:
    """How long a loop takes that only computes, on as many CPUs as there are, at once: what the machine can do now."""
    count = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        return max(pool.map(_loop, range(count)))


def _loop(_: int) -> float:
    began = time.monotonic()
    sum(number * number for number in range(5_000_000))
    return time.monotonic() - began


def _row(name: str, what: queues.Trace, times: queues.Times, durable: str) -> dict[str, Any]:
    waits = times.waits(what)
    return {
        "queue": name,
        "durable": durable,
        "ended": len(times.ended),
        "jobs/s": len(times.ended) / times.makespan_s,
        "wait p50 s": waits[len(waits) // 2],
        "wait p95 s": waits[int(0.95 * (len(waits) - 1))],
        "makespan s": times.makespan_s,
        "makespan, of bound": times.makespan_s / what.bound_s(),
        "acknowledged in ms, p50": 1e3 * times.acknowledged_s,
    }


def _show(found: dict[str, Any]) -> None:
    print(
        f"\n{found['jobs']} jobs in {found['submissions']} submissions over {found['over s']:.1f} s, "
        f"{found['slots']} slots, {found['slot-seconds']:.0f} slot-seconds of work; "
        f"no queue can have ended it before {found['bound s']:.1f} s"
    )
    print(
        f"{'':17}{'':>6}{'jobs/s':>16}{'wait p50 s':>18}{'wait p95 s':>18}{'makespan s':>19}{'acknow-':>9}{'loop':>10}"
    )
    print(f"{'':17}{'ended':>6}{'of ours':>16}{'of ours':>18}{'of ours':>18}{'of bound':>19}{'ledged':>9}")
    for row in found["rows"]:
        line = f"{row['queue']:17}{row['ended']:6}"
        for key, width in (("jobs/s", 8), ("wait p50 s", 10), ("wait p95 s", 10)):
            ratio = row[f"{key}, of ours"]
            line += f"{row[key]:{width}.2f}" + (f"{ratio:8.2f}" if ratio is not None else f"{'-':>8}")
        line += f"{row['makespan s']:11.1f}{row['makespan, of bound']:8.2f}"
        line += f"{row['acknowledged in ms, p50']:6.0f} ms{row['loop s']:8.2f} s" if row["durable"] else ""
        print(line)
    print("what of an acknowledged submission is on disk:")
    for row in found["rows"]:
        if row["durable"]:
            print(f"  {row['queue']}: {row['durable']}")
    for name, why in found["missing"].items():
        print(f"{name} was not run: {why}")


_QUEUES: dict[str, Any] = {"ours": ours, "procrastinate": procrastinate, "slurm": slurm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["throughput", "start", "pending", "machines", "peers"], action="append")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--starts", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="on the disk that counts; its fsync is a part of the answer")
    parser.add_argument("--queue", choices=list(_QUEUES), action="append", help="of those beside each other; all")
    parser.add_argument("--jobs", type=int, default=2000, help="of the trace")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=90, help="in which they are submitted")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a queue is not waited for longer")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on where a run of the queues was cut short")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    # So that whoever ends it ends PostgreSQL and Slurm too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found: dict[str, Any] = {}
    measures: dict[str, Callable[[Path], dict[str, float]]] = {
        "throughput": lambda folder: throughput(folder, chosen.steps),
        "start": lambda folder: start(folder, chosen.starts),
        "pending": pending,
        "machines": machines,
    }
    for name, measure in measures.items():
        if name in (chosen.only or measures):
            with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
                found |= measure(Path(folder))
    beside: dict[str, Any] | None = None
    if "peers" in (chosen.only or ["peers"]):
        words = (chosen.queue or list(_QUEUES), chosen.jobs, chosen.slots, chosen.seconds, chosen.limit)
        beside = beside_peers(*words, chosen.folder, chosen.resume)
    if chosen.json:
        print(json.dumps(found | ({"beside peers": beside} if beside else {}), indent=2))
        return
    for what, value in found.items():
        print(f"{what:55} {value:10.2f}")
    if beside:
        _show(beside)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
