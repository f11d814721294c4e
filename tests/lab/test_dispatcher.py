"""The dispatcher with agents that the test plays, turn by turn: order, paths, ends, losses, fencing, disk full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.exc import OperationalError

from evenkeel.lab import agents, boots, claims, machines, protocol, schema, steps, submissions, touch
from evenkeel.lab import dispatcher as dispatching
from evenkeel.lab.actor import Actor, Conflict, Forbidden, with_roles
from evenkeel.lab.dispatcher import LOST_AT_MOST, Dispatcher
from evenkeel.lab.idle import idle_while_waiting
from evenkeel.lab.lab import Lab
from evenkeel.lab.process import Process
from evenkeel.lab.protocol import Ended, Hello, Start, Stop, Taken, Welcome
from evenkeel.lab.step import graph_of
from evenkeel.lab.why import Why, why
from tests.lab.conftest import Clock

ANN = with_roles("ann", ["user"], ["kernel"])
BOB = with_roles("bob", ["user"])
KEEPER = with_roles("keeper", ["maintainer"])


class Line:
    """The lab's side of a connection; what it would send is kept for the test."""

    def __init__(self, *, local: bool = True, gone: bool = True, process: Process | None = None) -> None:
        self.local = local
        self.process = process
        if local and process is None:
            self.process = Process("another boot", 1, 1) if gone else Process.of(os.getpid())
        self.said: list[protocol.FromLab] = []
        self.closed = False

    def send(self, message: protocol.FromLab) -> None:
        assert not self.closed
        # What cannot go over a line must not look as if it could.
        self.said.append(protocol.from_lab(protocol.encode(message)))

    def close(self) -> None:
        self.closed = True


class Player:
    """An agent played by the test."""

    def __init__(self, dispatcher: Dispatcher, name: str = "a1", slots: int = 1, **labels: str) -> None:
        self.dispatcher, self.name, self.slots = dispatcher, name, slots
        self.labels = {key.replace("_", "."): [value] for key, value in labels.items()}
        self.identity = f"of-{name}"
        self.line = Line()

    def hello(self, *, running: tuple[int, ...] = (), finished: tuple[int, ...] = (), **line: Any) -> Welcome:
        self.line = Line(**line)
        self.dispatcher.hear(
            self.line,
            Hello(
                name=self.name,
                identity=self.identity,
                slots=self.slots,
                labels=self.labels,
                running=running,
                finished=finished,
            ),
        )
        run(self.dispatcher)
        welcome = self.line.said[0]
        assert isinstance(welcome, Welcome)
        return welcome

    def starts(self) -> list[Start]:
        return [said for said in self.line.said if isinstance(said, Start)]

    def end(self, start: Start, state: Any = "passed", **more: Any) -> None:
        self.dispatcher.hear(self.line, Ended(attempt=start.attempt, state=state, **more))
        run(self.dispatcher)

    def hang_up(self) -> None:
        self.dispatcher.hear(self.line, None)
        run(self.dispatcher)

    def taken(self) -> list[bool]:
        return [said.accepted for said in self.line.said if isinstance(said, Taken)]


def run(dispatcher: Dispatcher) -> None:
    for _ in range(100):
        if not dispatcher.turn():
            return
    raise AssertionError("the dispatcher never rests")


@pytest.fixture
def dispatcher(lab: Lab) -> Iterator[Dispatcher]:
    yield Dispatcher(lab)


def send(lab: Lab, who: Actor = ANN, /, **uses: Any) -> submissions.SubmissionInFull:
    """``name=dict(of a use)``: a submission of steps that say true, unless said otherwise."""
    made = {}
    for name, use in uses.items():
        step = {"kind": name, "command": ["true"], **use.pop("step", {})}
        made[name] = {"step": step, **use}
    return submissions.submit(lab, who, graph_of({"version": 1, "name": "test", "steps": made}))


def begun(
    lab: Lab, agent: Player, who: Actor = ANN, /, *, local: bool = True, gone: bool = True, **uses: Any
) -> submissions.SubmissionInFull:
    """An agent says hello, these steps are sent in, and it is told what it can take of them."""
    agent.hello(local=local, gone=gone)
    sent = send(lab, who, **uses)
    run(agent.dispatcher)
    return sent


def states(lab: Lab, number: int) -> dict[str, str]:
    return {line.name: line.state for line in submissions.show(lab, ANN, number).lines}


def test_a_step_goes_to_an_agent_that_fits_and_its_submission_ends(lab: Lab, dispatcher: Dispatcher) -> None:
    other, fits = Player(dispatcher, "other", arch="aarch64"), Player(dispatcher, "fits", arch="x86_64")
    other.hello()
    sent = begun(lab, fits, build={"step": {"agent": "arch:x86_64"}})
    assert other.starts() == []
    (start,) = fits.starts()
    assert start.step == "build"
    assert states(lab, sent.id) == {"build": "running"}
    fits.end(start, exit=0, output={"size": 3})
    assert fits.taken() == [True]
    after = submissions.show(lab, ANN, sent.id)
    assert after.state == "passed"
    assert steps.by_name(lab, ANN, sent.id, "build").output == {"size": 3}


def test_work_is_never_held_back_and_a_stuck_step_blocks_nobody(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher, slots=2)
    agent.hello()
    first = send(lab, stuck={})
    others = [send(lab, BOB, quick={}) for _ in range(5)]
    run(dispatcher)
    done = 0
    while len(agent.starts()) > done + 1:
        assert agent.starts()[done + 1].submission != first.id
        agent.end(agent.starts()[done + 1])
        done += 1
    assert done == 5
    assert {submissions.show(lab, ANN, one.id).state for one in others} == {"passed"}
    assert states(lab, first.id) == {"stuck": "running"}


def test_the_result_of_a_merge_decides_the_path(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher, slots=4)
    agent.hello()
    sent = send(
        lab,
        merge={},
        build={"needs": [{"step": "merge", "when": "conflict:false"}]},
        report={"needs": [{"step": "merge", "when": "conflict:true"}]},
        mail={"needs": ["build", "report"], "join": "any"},
        never={"needs": ["build"]},
    )
    run(dispatcher)
    agent.end(agent.starts()[0], output={"conflict": True})
    assert states(lab, sent.id) == {
        "merge": "passed",
        "build": "skipped",
        "report": "running",
        "mail": "blocked",
        "never": "skipped",
    }
    agent.end(agent.starts()[1])
    assert agent.starts()[2].step == "mail"
    agent.end(agent.starts()[2])
    assert submissions.show(lab, ANN, sent.id).state == "passed"


def test_a_failed_step_fails_its_submission_and_can_be_tried_again(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, build={}, check={"needs": ["build"]})
    agent.end(agent.starts()[0], "failed", exit=2, cause="exit")
    assert states(lab, sent.id) == {"build": "failed", "check": "skipped"}
    assert submissions.show(lab, ANN, sent.id).state == "failed"
    build = steps.by_name(lab, ANN, sent.id, "build")
    with pytest.raises(Forbidden):
        steps.retry(lab, BOB, build.id)
    steps.retry(lab, ANN, build.id)
    run(dispatcher)
    assert states(lab, sent.id) == {"build": "running", "check": "blocked"}
    agent.end(agent.starts()[1])
    agent.end(agent.starts()[2])
    assert submissions.show(lab, ANN, sent.id).state == "passed"
    assert [one.state for one in steps.show(lab, ANN, build.id).attempts] == ["failed", "passed"]
    with pytest.raises(Conflict):
        steps.retry(lab, ANN, build.id)


def test_a_definition_says_for_which_causes_a_step_is_tried_again(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    agent.hello()
    retry = {"retry": {"times": 1, "causes": ["time"]}}
    wrong, slow = send(lab, wrong={"step": retry}), send(lab, slow={"step": retry})
    run(dispatcher)
    agent.end(agent.starts()[0], "failed", cause="exit")
    assert states(lab, wrong.id) == {"wrong": "failed"}
    agent.end(agent.starts()[1], "timed-out", cause="time")
    assert states(lab, slow.id) == {"slow": "running"}
    agent.end(agent.starts()[2], "timed-out", cause="time")
    assert states(lab, slow.id) == {"slow": "failed"}


def test_cancelling_stops_what_runs_and_keeps_back_what_waits(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, one={}, two={}, last={"needs": ["one"]})
    with pytest.raises(Forbidden):
        submissions.cancel(lab, BOB, sent.id)
    submissions.cancel(lab, ANN, sent.id)
    run(dispatcher)
    (stop,) = [said for said in agent.line.said if isinstance(said, Stop)]
    assert (stop.attempt, stop.cause) == (agent.starts()[0].attempt, "cancelled by ann")
    agent.end(agent.starts()[0], "failed", cause="exit")
    assert states(lab, sent.id) == {"one": "cancelled", "two": "cancelled", "last": "cancelled"}
    assert len(agent.starts()) == 1
    with pytest.raises(Conflict):
        submissions.cancel(lab, ANN, sent.id)


def test_one_cancelled_step_skips_what_comes_after_it_and_nothing_else(lab: Lab, dispatcher: Dispatcher) -> None:
    sent = send(lab, one={}, after={"needs": ["one"]}, other={})
    run(dispatcher)
    steps.cancel(lab, ANN, steps.by_name(lab, ANN, sent.id, "one").id)
    agent = Player(dispatcher)
    agent.hello()
    assert states(lab, sent.id) == {"one": "cancelled", "after": "skipped", "other": "running"}
    agent.end(agent.starts()[0])
    assert submissions.show(lab, ANN, sent.id).state == "cancelled"


def test_a_cancel_that_came_first_beats_a_start(lab: Lab, dispatcher: Dispatcher) -> None:
    """The dispatcher chose; before its change is written somebody cancels."""
    agent = Player(dispatcher)
    agent.hello()
    sent = send(lab, one={})
    store, write_soon = lab.store, lab.store.write_soon

    def cancel_first(change: Any) -> Any:
        store.write_soon = write_soon  # type: ignore[method-assign]
        submissions.cancel(lab, ANN, sent.id)
        return write_soon(change)

    store.write_soon = cancel_first  # type: ignore[method-assign]
    run(dispatcher)
    assert agent.starts() == []
    assert states(lab, sent.id) == {"one": "cancelled"}
    send(lab, next={})
    run(dispatcher)
    assert [start.step for start in agent.starts()] == ["next"]


# -- losses -------------------------------------------------------------------------------------------------------


def test_a_local_agent_that_died_loses_its_steps_at_once(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, one={})
    agent.hang_up()
    assert states(lab, sent.id) == {"one": "ready"}
    agent.hello()
    agent.end(agent.starts()[0])
    attempts = steps.by_name(lab, ANN, sent.id, "one").attempts
    assert [(one.state, one.cause) for one in attempts] == [("lost", "agent a1 was lost"), ("passed", "")]


@pytest.mark.parametrize("local", [True, False])
def test_a_cut_line_costs_nothing_while_the_agent_lives(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, local: bool
) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, local=local, gone=False, one={})
    (start,) = agent.starts()
    agent.hang_up()
    clock.move(50)
    run(dispatcher)
    assert states(lab, sent.id) == {"one": "running"}
    assert agent.hello(local=local, running=(start.attempt,)).stop == ()
    assert agent.starts() == []
    agent.end(start)
    assert submissions.show(lab, ANN, sent.id).state == "passed"


def test_a_remote_agent_that_is_silent_loses_its_lease_and_its_late_result_is_refused(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    agent, second = Player(dispatcher), Player(dispatcher, "a2")
    sent = begun(lab, agent, local=False, one={})
    (start,) = agent.starts()
    clock.move(59)
    run(dispatcher)
    assert states(lab, sent.id) == {"one": "running"}
    clock.move(2)
    second.hello()
    (again,) = second.starts()
    assert again.attempt > start.attempt
    assert agent.line.closed
    welcome = agent.hello(local=False, running=(start.attempt,))
    assert welcome.stop == (start.attempt,)
    agent.end(start)
    assert agent.taken() == [False]
    second.end(again, output={"by": "second"})
    assert steps.by_name(lab, ANN, sent.id, "one").output == {"by": "second"}


def test_a_start_that_the_agent_never_got_is_sent_again_under_its_number(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    begun(lab, agent, gone=False, one={})
    (start,) = agent.starts()
    agent.hang_up()
    agent.hello(gone=False)
    assert agent.starts() == [start]


def test_after_a_restart_running_steps_are_kept_and_results_are_taken(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher, slots=3)
    sent = begun(lab, agent, runs={}, ends={}, dies={}, after={"needs": ["ends"]})
    runs, ends, dies = agent.starts()
    agent.dispatcher = again = Dispatcher(lab)
    run(again)
    assert states(lab, sent.id) == {"runs": "running", "ends": "running", "dies": "running", "after": "blocked"}
    agent.hello(running=(runs.attempt,), finished=(ends.attempt, dies.attempt))
    assert agent.starts() == []
    agent.end(ends, output={"n": 1})
    agent.end(dies, "lost", cause="agent a1 was killed")
    agent.end(runs)
    assert states(lab, sent.id) == {"runs": "passed", "ends": "passed", "dies": "running", "after": "running"}
    assert len(agent.starts()) == 2


def test_after_a_restart_an_agent_that_does_not_come_back_is_waited_for_and_then_given_up(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    local, remote = Player(dispatcher, "near"), Player(dispatcher, "far")
    local.hello()
    sent = begun(lab, remote, local=False, one={}, two={})
    again = Dispatcher(lab)
    run(again)
    clock.move(4)
    run(again)
    assert sorted(states(lab, sent.id).values()) == ["ready", "running"]
    clock.move(57)
    run(again)
    assert states(lab, sent.id) == {"one": "ready", "two": "ready"}


def test_after_a_restart_an_agent_that_lives_keeps_its_steps_however_long_it_is_starved(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    agent, other = Player(dispatcher), Player(dispatcher, "a2")
    sent = begun(lab, agent, gone=False, one={})
    (start,) = agent.starts()
    agent.dispatcher = other.dispatcher = again = Dispatcher(lab)
    run(again)
    clock.move(50)
    other.hello()
    assert states(lab, sent.id) == {"one": "running"} and other.starts() == []
    assert agent.hello(running=(start.attempt,), gone=False).stop == ()
    agent.end(start)
    assert states(lab, sent.id) == {"one": "passed"}


def test_after_a_restart_an_agent_that_hangs_is_not_waited_for_without_end(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    Player(dispatcher).hello(gone=False)
    sent = send(lab, one={})
    run(dispatcher)
    again = Dispatcher(lab)
    run(again)
    clock.move(61)
    run(again)
    assert states(lab, sent.id) == {"one": "ready"}


def test_a_step_whose_processes_cannot_be_ended_is_not_started_again(
    lab: Lab, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, other = Player(dispatcher), Player(dispatcher, "a2")
    sent = begun(lab, agent, one={})
    other.hello()
    monkeypatch.setattr(dispatching, "end_attempt", lambda identity, attempt: False)  # one that hangs in the kernel
    agent.hang_up()
    assert states(lab, sent.id) == {"one": "failed"} and other.starts() == []
    assert "cannot be ended" in steps.by_name(lab, ANN, sent.id, "one").attempts[0].cause


@pytest.mark.parametrize("restarted", [True, False])
def test_an_agent_whose_process_ends_is_waited_for_no_longer(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, restarted: bool
) -> None:
    agent = Player(dispatcher)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as its:
        agent.hello(process=Process.of(its.pid))
        sent = send(lab, one={})
        run(dispatcher)
        if restarted:
            agent.dispatcher = Dispatcher(lab)
            run(agent.dispatcher)
        else:
            agent.hang_up()
        clock.move(1)
        run(agent.dispatcher)
        assert states(lab, sent.id) == {"one": "running"}
    run(agent.dispatcher)
    assert states(lab, sent.id) == {"one": "ready"}


def test_a_step_that_loses_every_agent_is_given_up(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, poison={})
    for _ in range(LOST_AT_MOST):
        agent.hang_up()
        agent.hello()
    assert states(lab, sent.id) == {"poison": "failed"}
    assert agent.starts() == []


def test_a_second_agent_cannot_take_a_name_that_is_in_use(lab: Lab, dispatcher: Dispatcher) -> None:
    first, second = Player(dispatcher), Player(dispatcher)
    first.hello()
    second.identity = "of-somebody-else"
    second.dispatcher.hear(second.line, Hello(name=second.name, identity=second.identity, slots=1, labels={}))
    run(dispatcher)
    assert [said.type for said in second.line.said] == ["refused"]
    send(lab, one={})
    run(dispatcher)
    assert len(first.starts()) == 1


def test_who_says_nothing_right_is_hung_up_on(dispatcher: Dispatcher) -> None:
    line = Line()
    dispatcher.hear(line, protocol.Beat())
    run(dispatcher)
    assert line.closed


# -- time ---------------------------------------------------------------------------------------------------------


def test_limits_are_given_or_learned(lab: Lab, dispatcher: Dispatcher, clock: Clock) -> None:
    agent = Player(dispatcher)
    begun(lab, agent, given={"step": {"limits": {"time": "10min"}}})
    assert agent.starts()[-1].timeout_ns == 600 * 10**9
    agent.end(agent.starts()[-1])
    for took in (100, 200, 200, 200, 400):
        send(lab, learned={})
        run(dispatcher)
        assert agent.starts()[-1].timeout_ns is None
        clock.move(took)
        agent.dispatcher.hear(agent.line, protocol.Beat())
        agent.end(agent.starts()[-1])
    send(lab, learned={})
    run(dispatcher)
    assert agent.starts()[-1].timeout_ns == 600 * 10**9
    again = Dispatcher(lab)
    run(again)
    assert next(iter(again.runs.values())).timeout_ns == 600 * 10**9


def test_an_agent_that_does_not_end_a_step_is_told_again_and_then_given_no_more(
    lab: Lab, dispatcher: Dispatcher, clock: Clock
) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, one={"step": {"limits": {"time": "10s"}}})
    for seconds in (16, 61, 61, 61):
        clock.move(seconds)
        dispatcher.hear(agent.line, protocol.Beat())
        run(dispatcher)
    assert [said.type for said in agent.line.said].count("stop") == 3
    assert states(lab, sent.id) == {"one": "failed"}
    with lab.store.read() as connection:
        assert connection.scalar(select(schema.agent.c.state)) == "drained"


# -- fair, and what idles -----------------------------------------------------------------------------------------


def test_idle_time_is_counted_by_its_cause(lab: Lab, dispatcher: Dispatcher, clock: Clock) -> None:
    agent, other = Player(dispatcher, slots=2, arch="x86_64"), Player(dispatcher, "other", arch="aarch64")
    agent.hello()
    other.hello()
    machine_of(lab, "only", 2048)
    claims.request(lab, BOB, claims.Request(predicate="name:only", reason="mine", length_ns=3600 * 10**9))
    send(lab, never={"step": {"machine": "mem>=9TiB"}})
    send(lab, machine={"step": {"agent": "arch:x86_64", "machine": "mem>=1TiB"}})
    clock.move(1)
    run(dispatcher)
    clock.move(30)
    run(dispatcher)
    counted = idle_while_waiting(lab, ANN, since_ns=clock())
    assert counted.slots_ns == (2 * 1 + 3 * 30) * 10**9
    assert counted.by_cause == {"machine": 2 * 30 * 10**9, "fit": 30 * 10**9}
    assert counted.share == 90 / 92


def test_a_drained_agent_gets_nothing_until_it_is_resumed(lab: Lab, dispatcher: Dispatcher) -> None:
    agent = Player(dispatcher)
    agent.hello()

    with pytest.raises(Forbidden):
        agents.drain(lab, ANN, "a1")
    agents.drain(lab, KEEPER, "a1")
    send(lab, one={})
    run(dispatcher)
    assert agent.starts() == []
    agent.hello()  # it stays so, whatever the agent does
    assert agent.starts() == []
    with pytest.raises(Conflict):
        agents.drain(lab, KEEPER, "a1")
    agents.resume(lab, KEEPER, "a1")
    run(dispatcher)
    (shown,) = agents.agents(lab, ANN)
    assert shown.state == "online"
    assert [(one.step, one.submitter) for one in shown.running] == [("one", "ann")]


# -- machines of the pool -----------------------------------------------------------------------------------------


def test_a_step_has_its_machine_for_itself(lab: Lab, dispatcher: Dispatcher) -> None:
    two = [machine_of(lab, "big", 64), machine_of(lab, "small", 16)]
    agent = Player(dispatcher, slots=10)
    agent.hello()
    sent = [send(lab, boot={"step": {"machine": "mem>=8GiB"}}) for _ in range(3)]
    big = send(lab, large={"step": {"machine": "mem>=32GiB"}})
    run(dispatcher)
    # The smallest that fits goes first, so one of the three has the small one, and one more took the big one.
    assert [start.machine["name"] for start in agent.starts() if start.machine] == ["small", "big"]
    first, second = agent.starts()
    with lab.store.read() as connection:
        held = connection.scalars(select(schema.claim.c.machine_id).where(schema.claim.c.state == "active")).all()
    assert sorted(held) == sorted(two)
    agent.end(second)
    (third,) = agent.starts()[2:]
    assert third.machine and third.machine["name"] == "big"
    agent.end(first, "failed", cause="exit")
    assert submissions.show(lab, ANN, sent[0].id).state == "failed"
    agent.end(third)
    assert agent.starts()[-1].step == "large"
    assert states(lab, big.id) == {"large": "running"}


def test_a_machine_that_somebody_took_first_is_not_given_and_the_step_waits_on(
    lab: Lab, dispatcher: Dispatcher
) -> None:
    machine_of(lab, "only", 64)
    agent = Player(dispatcher)
    agent.hello()
    sent = send(lab, boot={"step": {"machine": "mem>=8GiB"}})
    store, write_soon = lab.store, lab.store.write_soon
    taken: list[claims.Claim] = []

    def reserve_first(change: Any) -> Any:
        store.write_soon = write_soon  # type: ignore[method-assign]
        wanted = claims.Request(predicate="name:only", reason="mine", length_ns=3600 * 10**9)
        taken.append(claims.request(lab, BOB, wanted))
        return write_soon(change)

    store.write_soon = reserve_first  # type: ignore[method-assign]
    run(dispatcher)
    assert agent.starts() == []
    assert states(lab, sent.id) == {"boot": "ready"}
    claims.release(lab, BOB, taken[0].id)
    run(dispatcher)
    assert [start.step for start in agent.starts()] == ["boot"]


def test_a_step_never_has_a_machine_that_is_not_for_who_sent_it_in(lab: Lab, dispatcher: Dispatcher) -> None:
    machine_of(lab, "anns", 64, owner="ann", policy={"users": ["ann"]})
    agent = Player(dispatcher, slots=4)
    agent.hello()
    bobs = send(lab, BOB, boot={"step": {"machine": "anns"}})
    run(dispatcher)
    assert agent.starts() == []
    told = reason(dispatcher, bobs.id)
    assert (told.code, told.text) == ("machines-barred", "the one machine that is anns takes no steps of bob's")
    with lab.store.read() as connection:
        assert touch.find(connection, "anns").holder == ""
    anns = send(lab, ANN, boot={"step": {"machine": "anns"}})
    run(dispatcher)
    assert [start.submission for start in agent.starts()] == [anns.id]
    agent.end(agent.starts()[0])
    # He is let in, or joins the team that is: it goes on by itself.
    edit = machines.Edit(policy=machines.Policy(users=("ann",), teams=("kernel",), prepare="none"))
    machines.edit(lab, with_roles("root", ["admin"]), "anns", edit)
    run(dispatcher)
    assert len(agent.starts()) == 1
    row = {"name": "bob", "kind": "person", "roles": ["user"], "teams": ["kernel"]}

    def join(connection: Any) -> None:
        connection.execute(insert(schema.principal).values(row))
        lab.store.event(connection, "root", "principal.changed", "principal", "bob")

    lab.store.write(join)
    run(dispatcher)
    assert [start.submission for start in agent.starts()] == [anns.id, bobs.id]


def test_steps_of_all_whom_owners_treat_alike_are_one_group(lab: Lab, dispatcher: Dispatcher) -> None:
    machine_of(lab, "big", 64)
    machine_of(lab, "kept", 16, state="suspect", owner="ann", policy={"users": ["ann"]})
    cat, dan = with_roles("cat", ["user"]), with_roles("dan", ["user"])
    sent = [send(lab, who, boot={"step": {"machine": "mem>=8GiB"}}) for who in (ANN, BOB, cat, dan)]
    run(dispatcher)

    def groups() -> list[int]:
        return [dispatcher.ready.group_of(node.id) for one in sent for node in dispatcher.subs[one.id].steps.values()]

    anns, bobs, *others = groups()
    assert others == [bobs, bobs] and anns != bobs
    # The owner lets cat have it, too: hers is with his from now on, and is given the machine.
    edit = machines.Edit(policy=machines.Policy(users=("ann", "cat"), prepare="none"))
    root = with_roles("root", ["admin"])
    machines.edit(lab, root, "kept", edit)
    run(dispatcher)
    assert groups() == [anns, bobs, anns, bobs]
    machines.mark(lab, root, "big", "suspect", "smoke")
    machines.mark(lab, root, "kept", "ready")
    submissions.cancel(lab, ANN, sent[0].id)
    agent = Player(dispatcher, slots=4)
    agent.hello()
    assert [start.submission for start in agent.starts()] == [sent[2].id]


def test_the_machine_that_is_thought_of_is_the_one_that_is_given(
    lab: Lab, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each start looks at all machines that fit once more, or is refused one that somebody has."""
    for number, gib in enumerate((64, 16, 16, 32, 128)):
        machine_of(lab, f"m{9 - number}", gib)
    agent = Player(dispatcher, slots=9)
    agent.hello()
    thought: list[str | None] = []
    use = dispatcher.machines.use

    def spy(group: int) -> str | None:
        thought.append(use(group))
        return thought[-1]

    monkeypatch.setattr(dispatcher.machines, "use", spy)
    for predicate in ("mem>=8GiB", "mem>=32GiB", "mem>=8GiB", "mem>=8GiB", "mem>=8GiB", "mem>=8GiB"):
        send(lab, boot={"step": {"machine": predicate}})
    run(dispatcher)
    given = [start.machine["id"] for start in agent.starts() if start.machine]
    assert given == thought == ["id-m7", "id-m6", "id-m8", "id-m9", "id-m5"]


@pytest.mark.parametrize(
    ("made", "code", "text"),
    [
        ({"policy": {"steps": False}}, "machines-barred", "the one machine that is mem>=8GiB takes no steps of ann's"),
        ({"state": "broken"}, "machines-down", "the one machine that is mem>=8GiB is broken, suspect or off"),
        ({"state": "off"}, "machines-down", "the one machine that is mem>=8GiB is broken, suspect or off"),
    ],
)
def test_a_machine_that_cannot_be_given_is_not_in_use_and_idles_nobody(
    lab: Lab, dispatcher: Dispatcher, clock: Clock, made: dict[str, Any], code: str, text: str
) -> None:
    machine_of(lab, "only", 64, **made)
    agent = Player(dispatcher)
    agent.hello()
    sent = send(lab, boot={"step": {"machine": "mem>=8GiB"}})
    clock.move(1)
    run(dispatcher)
    clock.move(30)
    run(dispatcher)
    told = reason(dispatcher, sent.id)
    assert (told.code, told.text) == (code, text)
    assert idle_while_waiting(lab, ANN, since_ns=clock()).by_cause == {}


def test_a_machine_that_sleeps_is_possible(lab: Lab, dispatcher: Dispatcher, clock: Clock) -> None:
    machine_of(lab, "only", 64, state="off", state_reason=boots.ASLEEP)
    agent = Player(dispatcher)
    agent.hello()
    sent = send(lab, boot={"step": {"machine": "mem>=8GiB"}})
    clock.move(1)
    run(dispatcher)
    clock.move(30)
    run(dispatcher)
    text = "the one machine that is mem>=8GiB is switched on for it, which takes about 5 min"
    assert reason(dispatcher, sent.id).text == text
    assert idle_while_waiting(lab, ANN, since_ns=clock()).by_cause == {"machine": 30 * 10**9}


def test_only_what_can_change_which_machines_fit_makes_it_look_for_them(
    lab: Lab, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = machine_of(lab, "only", 64)
    Player(dispatcher).hello()
    send(lab, boot={"step": {"machine": "mem>=8TiB"}})
    run(dispatcher)
    looks: list[bool] = []
    look = dispatcher.machines.look

    def spy(*, facts: bool, people: bool = False) -> bool:
        looks.append(facts)
        return look(facts=facts, people=people)

    monkeypatch.setattr(dispatcher.machines, "look", spy)

    def after(type_: str, object_: str = "machine") -> list[bool]:
        looks.clear()
        lab.store.write(lambda c: lab.store.event(c, "lab", type_, object_, only) and None)
        run(dispatcher)
        return list(looks)

    for type_ in ("health.down", "health.up", "console.boot", "power.done", "power.asked", "endpoint.set"):
        assert after(type_) == [], type_
    assert after("machine.state") == [False]
    assert after("claim.began", "claim") == [False]
    assert after("power.budget", "site") == [False]
    monkeypatch.setattr(dispatcher.machines, "over", {only: "a power budget keeps it back"})
    assert after("power.done") == [False]
    for type_ in ("machine.registered", "machine.facts", "machine.edited", "netbox.undone"):
        assert after(type_) == [True], type_


def test_a_predicate_may_ask_for_the_state_and_a_retired_machine_is_none(lab: Lab, dispatcher: Dispatcher) -> None:
    machine_of(lab, "only", 64, state="suspect")
    root = with_roles("root", ["admin"])
    agent = Player(dispatcher, slots=2)
    agent.hello()
    sent = send(lab, boot={"step": {"machine": "mem>=8GiB state:ready"}})
    gone = send(lab, boot={"step": {"machine": "mem>=1GiB state:broken"}})
    run(dispatcher)
    assert reason(dispatcher, sent.id).code == "no-machine"
    machines.mark(lab, root, "only", "ready")
    run(dispatcher)
    assert [start.submission for start in agent.starts()] == [sent.id]
    agent.end(agent.starts()[0])
    machines.mark(lab, root, "only", "broken", "fire")
    run(dispatcher)
    assert reason(dispatcher, gone.id).code == "machines-down"
    other = send(lab, boot={"step": {"machine": "mem>=1GiB"}})
    run(dispatcher)
    assert reason(dispatcher, other.id).code == "machines-down"
    machines.retire(lab, root, "only", "burnt")
    run(dispatcher)
    assert reason(dispatcher, other.id).code == "no-machine"


def reason(dispatcher: Dispatcher, submission: int) -> Why:
    """Of the one step of a submission."""
    (node,) = dispatcher.subs[submission].steps.values()
    return why(dispatcher, node)


def machine_of(lab: Lab, name: str, gib: int, **more: Any) -> str:
    """A machine that needs no preparation; returns its id."""
    row = {"id": f"id-{name}", "name": name, "state": "ready", "state_since_ns": 0, "identity": {}, "registered_ns": 0}
    fact = {"machine_id": row["id"], "key": "mem", "text": str(gib << 30), "num": float(gib << 30)}

    def change(connection: Any) -> None:
        policy = {"prepare": "none", **more.pop("policy", {})}
        connection.execute(insert(schema.machine).values(row | {"policy": policy} | more))
        connection.execute(insert(schema.fact).values(fact))
        lab.store.event(connection, "ann", "machine.registered", "machine", row["id"])

    lab.store.write(change)
    return f"id-{name}"


# -- disks --------------------------------------------------------------------------------------------------------


def test_a_commit_that_fails_loses_nothing_and_tells_nobody(lab: Lab, dispatcher: Dispatcher, clock: Clock) -> None:
    agent = Player(dispatcher)
    sent = begun(lab, agent, one={}, two={"needs": ["one"]})
    (start,) = agent.starts()
    full = True

    @event.listens_for(lab.store.engine, "commit")
    def commit(_: Any) -> None:
        if full:
            raise OperationalError("COMMIT", {}, Exception("database or disk is full"))

    agent.end(start, output={"kept": 1})
    assert agent.taken() == []
    assert states(lab, sent.id) == {"one": "running", "two": "blocked"}
    full = False
    run(dispatcher)
    assert agent.taken() == []
    clock.move(1.1)
    run(dispatcher)
    assert agent.taken() == [True]
    assert states(lab, sent.id) == {"one": "passed", "two": "running"}
    assert steps.by_name(lab, ANN, sent.id, "one").output == {"kept": 1}
