"""How the lab stands, at a glance: machines by state, what runs, what waits until when, and what stood idle meanwhile.

Only gathers what the nouns say of themselves, for the front page and REST.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, select

from evenkeel.documents.base import Model
from evenkeel.lab import agents, claims, forecasts, schema, submissions
from evenkeel.lab.actor import Actor
from evenkeel.lab.claims import Claim
from evenkeel.lab.forecasts import Eta
from evenkeel.lab.idle import Idle, idle_while_waiting
from evenkeel.lab.lab import Lab
from evenkeel.lab.submissions import Submission

DAY_NS = 86_400 * 10**9
#: The front page shows so many of each; the pages of the nouns show all.
_MOST = 12


class Runs(Model):
    """A step that runs now.  ``eta``: when it ends, if that can be foretold."""

    step: str
    step_id: int
    submission: int
    submission_name: str
    submitter: str
    agent: str
    started_ns: int
    eta: Eta | None


class Open(Model):
    """A submission that has not ended."""

    submission: Submission
    eta: Eta | None


class Overview(Model):
    """``slots``, ``busy``: of agents that are online.  ``machines``, ``steps``: by state.  ``idle``: of the last day.

    ``mine``: claims of who asks; ``wait``: claims that wait for a machine; ``runs``: the oldest first.
    ``no_forecast``: in words, why nothing is foretold.
    """

    at_ns: int
    machines: dict[str, int]
    steps: dict[str, int]
    agents: int
    slots: int
    busy: int
    idle: Idle
    mine: tuple[Claim, ...]
    wait: tuple[Claim, ...]
    runs: tuple[Runs, ...]
    open: tuple[Open, ...]
    no_forecast: str = ""


def overview(lab: Lab, actor: Actor) -> Overview:
    actor.need("read", "look at the lab")
    now = lab.now()
    with lab.store.read() as connection:
        machine, step = schema.machine.c, schema.step.c
        machines = connection.execute(select(machine.state, func.count()).group_by(machine.state)).all()
        live = select(step.state, func.count()).where(step.state.in_(("blocked", "ready", "running")))
        steps = connection.execute(live.group_by(step.state)).all()
    of_steps, of_submissions, none = forecasts.current(lab, actor)
    online = [one for one in agents.agents(lab, actor) if one.state in ("online", "drained")]
    running = sorted((one for agent in online for one in _runs(agent, of_steps)), key=lambda one: one.started_ns)
    found = submissions.submissions(lab, actor, state="open", limit=_MOST).items
    return Overview(
        at_ns=now,
        machines={row[0]: row[1] for row in machines if row[0] != "retired"},
        steps={row[0]: row[1] for row in steps},
        agents=len(online),
        slots=sum(agent.slots for agent in online if agent.state == "online"),
        busy=len(running),
        idle=idle_while_waiting(lab, actor, since_ns=now - DAY_NS),
        mine=claims.listing(lab, actor, state="open", holder=actor.name, limit=_MOST).items,
        wait=tuple(claims.waiting(lab, actor)[:_MOST]),
        runs=tuple(running[:_MOST]),
        open=tuple(Open(submission=one, eta=of_submissions.get(one.id)) for one in found),
        no_forecast=none,
    )


def _runs(agent: agents.Agent, etas: Mapping[int, Eta]) -> list[Runs]:
    return [
        Runs(
            step=one.step,
            step_id=one.step_id,
            submission=one.submission,
            submission_name=one.submission_name,
            submitter=one.submitter,
            agent=agent.name,
            started_ns=one.started_ns,
            eta=etas.get(one.step_id),
        )
        for one in agent.running
    ]
